# SPDX-License-Identifier: GPL-2.0-only
"""The kinds of files, and ranges, that the tree's other modules share (``mm/damon/sysfs-common.c``)."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

from kdamon.kstrtox import kstrtobool, kstrtoint, kstrtouint, kstrtoul
from kdamon.mm import Machine
from kdamon_fs.kobject import Tree, kobj_attribute, kobject

__all__ = [
    "MachineTree",
    "bool_attribute",
    "damon_sysfs_ul_range",
    "int_attribute",
    "keyword_attribute",
    "memcg_id_of",
    "name_of",
    "not_supported",
    "read_only_attribute",
    "text_attribute",
    "text_of",
    "uint_attribute",
    "ulong_attribute",
]


class MachineTree(Tree):
    """A tree whose files need to know the machine, to find processes."""

    @abstractmethod
    def machine(self) -> Machine:
        """Return the machine.

        :raises OSError: EOPNOTSUPP or EPERM, with a sentence on what this machine lacks.
        """


def _number_attribute(
    name: str, parse: Callable[[str], int], since: str | None, squash: bool, field: str | None
) -> kobj_attribute:
    field = field or name

    def show(kobj: kobject) -> str:
        return f"{getattr(kobj, field)}\n"

    def store(kobj: kobject, text: str) -> None:
        try:
            value = parse(text)
        except OSError as error:
            raise OSError(errno.EINVAL if squash else error.errno, error.strerror) from None
        setattr(kobj, field, value)

    return kobj_attribute(name, show, store, since)


def ulong_attribute(name: str, since: str | None = None, *, squash: bool = False) -> kobj_attribute:
    """A file for an ``unsigned long``, kept in the directory's field of the same name.

    :param squash: return EINVAL also where the number is only too large, as some of the kernel's files do.
    """
    return _number_attribute(name, kstrtoul, since, squash, None)


def uint_attribute(name: str, since: str | None = None, *, squash: bool = False) -> kobj_attribute:
    """A file for an ``unsigned int``; see :func:`ulong_attribute`."""
    return _number_attribute(name, kstrtouint, since, squash, None)


def int_attribute(
    name: str, since: str | None = None, *, squash: bool = False, field: str | None = None
) -> kobj_attribute:
    """A file for an ``int``, kept in ``field``; see :func:`ulong_attribute`."""
    return _number_attribute(name, kstrtoint, since, squash, field)


def bool_attribute(name: str, since: str | None = None, *, field: str | None = None) -> kobj_attribute:
    """A file for a truth value, ``Y`` or ``N``, kept in ``field``."""
    field = field or name

    def show(kobj: kobject) -> str:
        return "Y\n" if getattr(kobj, field) else "N\n"

    def store(kobj: kobject, text: str) -> None:
        setattr(kobj, field, kstrtobool(text))

    return kobj_attribute(name, show, store, since)


def keyword_attribute(
    name: str,
    keywords: tuple[str, ...] | Callable[[Any], tuple[str, ...]],
    since: str | None = None,
    *,
    field: str | None = None,
) -> kobj_attribute:
    """A file for one of ``keywords`` (or of those that the directory allows), kept in ``field`` as it is."""
    field = field or name

    def show(kobj: kobject) -> str:
        return f"{getattr(kobj, field)}\n"

    def store(kobj: kobject, text: str) -> None:
        allowed = keywords(kobj) if callable(keywords) else keywords
        keyword = text.removesuffix("\n")
        if keyword not in allowed:
            raise OSError(errno.EINVAL, f"{keyword[:40]!r} is not one of {', '.join(allowed)}")
        setattr(kobj, field, keyword)

    return kobj_attribute(name, show, store, since)


def text_attribute(name: str, since: str | None = None) -> kobj_attribute:
    """A file for any text, kept with its newline; the kernel guards these by the tree's lock."""

    def show(kobj: kobject) -> str:
        with kobj.tree.trylock():
            return f"{getattr(kobj, name)}\n"

    def store(kobj: kobject, text: str) -> None:
        with kobj.tree.trylock():
            setattr(kobj, name, text)

    return kobj_attribute(name, show, store, since)


def read_only_attribute(name: str, since: str | None = None) -> kobj_attribute:
    """A file that shows the number in the directory's field of the same name."""

    def show(kobj: kobject) -> str:
        return f"{getattr(kobj, name)}\n"

    return kobj_attribute(name, show, None, since)


class damon_sysfs_ul_range(kobject):
    """A directory of two numbers, ``min`` and ``max``."""

    __slots__ = ("max", "min")

    default_attributes = (ulong_attribute("min"), ulong_attribute("max"))

    def __init__(self, tree: Tree, minimum: int, maximum: int) -> None:
        super().__init__(tree)
        self.min = minimum
        self.max = maximum


def name_of(text: str) -> str:
    """The name of a file or control group that was written to the tree; one newline at the end is ignored.

    The tree's text has one character per byte; names have surrogates for bytes that are not UTF-8.
    """
    return os.fsdecode(text.removesuffix("\n").encode("latin-1"))


def text_of(name: str) -> str:
    """The tree's text for a name, without a newline."""
    return os.fsencode(name).decode("latin-1")


def memcg_id_of(kobj: kobject, name: str, text: str, machine: Callable[[], Machine]) -> int:
    """The number of the memory cgroup that a file names; one newline at the end is ignored.

    :raises OSError: EINVAL there is no such cgroup.
    """
    try:
        return machine().memcg_id(name_of(text))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        raise OSError(errno.EINVAL, f"{kobj.location()}/{name}: {error.strerror}") from None


def not_supported(kobj: kobject, name: str, what: str) -> NoReturn:
    """Refuse to start or commit with a value that the file accepts, but that has no effect here.

    :param name: the file, in the directory ``kobj``.
    :param what: the request, the subject of "... is not supported".
    :raises OSError: EINVAL, always.
    """
    raise OSError(errno.EINVAL, f"{kobj.location()}/{name}: {what} is not supported by this version of kdamon")
