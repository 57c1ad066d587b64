# SPDX-License-Identifier: GPL-2.0-only
"""sysfs: directories and attributes with the kernel's read and write semantics (``lib/kobject.c``, ``fs/kernfs``).

A :class:`kobject` is a directory; its class lists its :class:`kobj_attribute` files. This module knows neither the
purpose of the files nor how the tree is mounted: :class:`Tree` resolves paths, :class:`OpenFile` is an open descriptor.

A path lookup is one dictionary access; numbered directories (:class:`NumberedDirectories`) come into being when
they are first used, so ``echo 2000 > nr_schemes`` costs nothing.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, TypeVar

from attrs import define, frozen

from kdamon.kernel import PAGE_SIZE
from kdamon.kstrtox import KMALLOC_MAX_SIZE, kstrtoint
from kdamon_fs.abi import ABI_VERSIONS, DEFAULT_ABI, known_since

__all__ = [
    "NumberedDirectories",
    "OpenFile",
    "Tree",
    "kobj_attribute",
    "kobject",
    "nr_attribute",
]

# Attributes.


@frozen(slots=True)
class kobj_attribute:
    """A file of a directory (``struct kobj_attribute``).

    :ivar name: the file's name.
    :ivar show: renders the file's text from its directory.
    :ivar store: parses the written text into the directory; None makes the file read-only.
    :ivar since: kernel version that the file came with, None when that is older than those of
        :data:`kdamon_fs.abi.ABI_VERSIONS`; :data:`kdamon_fs.abi.OWN` for files that no kernel has.
    """

    name: str
    show: Callable[[Any], str]
    store: Callable[[Any, str], None] | None = None
    since: str | None = None

    @property
    def mode(self) -> int:
        """Permission bits of the new file."""
        return 0o400 if self.store is None else 0o600


# Directories.


class kobject:
    """A directory (``struct kobject``).

    :param tree: the tree that it will be in; the tree's version decides which files exist.
    :ivar removed: no longer in the tree; its open files return ENODEV.
    :ivar hidden: not listed in its parent; reachable by name only.
    """

    __slots__ = (
        "attributes", "children", "first_file_ino", "hidden", "iattrs", "ino", "name", "parent", "removed", "tree",
    )  # fmt: skip

    #: The files of directories of this class (``struct kobj_type.default_groups``).
    default_attributes: ClassVar[tuple[kobj_attribute, ...]] = ()

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.name = ""
        self.parent: kobject | None = None
        self.children: dict[str, kobject] = {}
        self.removed = False
        self.hidden = False
        #: Changes by chmod(), chown() and utimensat(), by file name ("" is the directory).
        self.iattrs: dict[str, dict[str, int]] | None = None
        self.attributes = tree.attributes_of(type(self))
        #: Inode number of the directory; those of its files follow ``first_file_ino``.
        self.ino = self.first_file_ino = tree.take_inodes(1 + len(self.attributes))

    def add(self, name: str, child: kobject, since: str | None = None) -> None:
        """Put ``child`` into this directory (``kobject_add()``), unless the tree is older than ``since``."""
        if self.tree.has(since):
            child.name = name
            child.parent = self
            self.children[name] = child

    def remove(self) -> None:
        """Mark this directory and all below it as removed (``kobject_del()``)."""
        self.removed = True
        for child in list(self.children.values()):
            child.remove()

    def child(self, name: str) -> kobject | None:
        """The directory ``name`` in this one, None where there is none."""
        return self.children.get(name)

    def child_inodes(self) -> list[tuple[str, int]]:
        """Name and inode number of each directory in this one."""
        return [(name, child.ino) for name, child in list(self.children.items()) if not child.hidden]

    def nr_children(self) -> int:
        """Number of directories in this one."""
        return len(self.child_inodes())

    def location(self) -> str:
        """The path of this directory from the tree's top, without a leading slash."""
        names = []
        kobj: kobject | None = self
        while kobj is not None and kobj.parent is not None:
            names.append(kobj.name)
            kobj = kobj.parent
        return "/".join(reversed(names))


#: What a :class:`NumberedDirectories` has.
Numbered = TypeVar("Numbered", bound=kobject)


class NumberedDirectories(kobject, ABC, Generic[Numbered]):
    """A directory of directories 0, 1, ... with a file for their number.

    Any write to that file, also of the same number, removes them all and makes new ones.
    Iteration makes and gives them in the order of their numbers.
    """

    __slots__ = ("_first_ino", "nr")

    #: Those that exist yet; nothing else is added.
    children: dict[str, Numbered]  # type: ignore[assignment]

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.nr = 0
        self._first_ino = 0

    @abstractmethod
    def new_child(self) -> Numbered:
        """Make a directory that is to be numbered."""

    def check(self, nr: int) -> None:
        """Refuse numbers that make no sense here.

        :raises OSError: EINVAL.
        """
        if nr < 0:
            raise OSError(errno.EINVAL, f"{self.location()} cannot have {nr} directories")

    def rm_dirs(self) -> None:
        """Remove all numbered directories."""
        children, self.children, self.nr = self.children, {}, 0
        for child in children.values():
            child.remove()
        self.tree.forget_paths()

    def add_dirs(self, nr: int) -> None:
        """Replace the numbered directories by ``nr`` new ones; the caller holds the tree's lock.

        :raises OSError: ENOMEM for numbers whose array of pointers the kernel could not allocate.
        """
        self.rm_dirs()
        if nr * 8 > KMALLOC_MAX_SIZE:
            raise OSError(errno.ENOMEM, f"{nr} directories are too many; {KMALLOC_MAX_SIZE // 8} are the limit")
        self._first_ino = self.tree.take_inodes(nr)
        self.nr = nr
        self.tree.forget_paths()

    def __iter__(self) -> Iterator[Numbered]:
        return map(self.at, range(self.nr))

    def at(self, index: int) -> Numbered:
        """The numbered directory ``index``, which has to be less than :attr:`nr`."""
        name = str(index)
        child = self.children.get(name)
        if child is None:
            child = self.new_child()
            child.name = name
            child.parent = self
            child.ino = self._first_ino + index
            # Two threads may come here at once; the one that is later gets what the other one made.
            child = self.children.setdefault(name, child)
        return child

    def child(self, name: str) -> Numbered | None:
        """The numbered directory ``name``."""
        if name.isdecimal() and name.isascii() and (name == "0" or name[0] != "0") and int(name) < self.nr:
            return self.at(int(name))
        return None

    def child_inodes(self) -> list[tuple[str, int]]:
        """Number and inode number of each."""
        return [(str(i), self._first_ino + i) for i in range(self.nr)]

    def nr_children(self) -> int:
        """How many there are."""
        return self.nr


def _nr_show(kobj: NumberedDirectories[kobject]) -> str:
    return f"{kobj.nr}\n"


def _nr_store(kobj: NumberedDirectories[kobject], text: str) -> None:
    nr = kstrtoint(text)
    kobj.check(nr)
    with kobj.tree.trylock():
        kobj.add_dirs(nr)


def nr_attribute(name: str) -> kobj_attribute:
    """The file of a :class:`NumberedDirectories` that holds their number."""
    return kobj_attribute(name, _nr_show, _nr_store)


# The tree.


@define(slots=True, eq=False)
class inode:
    """A path's directory or file, and its ``stat()`` result."""

    kobj: kobject
    attribute: kobj_attribute | None
    stat: dict[str, int]


class OpenFile:
    """An open descriptor of an attribute (``struct kernfs_open_file``).

    A read at offset 0 renders the text, which later reads continue; every write is a separate store at any offset.
    """

    __slots__ = ("_attribute", "_kobj", "_text")

    def __init__(self, kobj: kobject, attribute: kobj_attribute) -> None:
        self._kobj = kobj
        self._attribute = attribute
        self._text: bytes | None = None

    def _get_active(self) -> None:
        if self._kobj.removed:
            raise OSError(errno.ENODEV, "the directory of this file was removed after the file was opened")

    def read(self, size: int, offset: int) -> bytes:
        """At most ``size`` bytes from ``offset``; nothing past the end.

        :raises OSError: ENODEV the file was removed; the errors of the file's show function.
        """
        self._get_active()
        if offset == 0 or self._text is None:
            # sysfs_emit() leaves the last byte of its page to a NUL.
            self._text = self._attribute.show(self._kobj).encode("latin-1")[: PAGE_SIZE - 1]
        return self._text[offset : offset + size]

    def write(self, data: bytes) -> int:
        """Store ``data`` up to its first NUL and return the number of bytes stored: a page at most.

        :raises OSError: ENODEV the file was removed; EIO it is read-only; the errors of the file's store function.
        """
        self._get_active()
        if not data:
            return 0
        data = data[:PAGE_SIZE]
        if self._attribute.store is None:
            raise OSError(errno.EIO, f"{self._attribute.name} can only be read")
        self._attribute.store(self._kobj, data.partition(b"\0")[0].decode("latin-1"))
        return len(data)


class Tree:
    """A tree of directories and files, addressed by path. Any thread may call its methods.

    :param abi: version of the tree, one of :data:`kdamon_fs.abi.ABI_VERSIONS`; files that came later do not exist.
    :raises OSError: EINVAL for an unknown version.
    """

    def __init__(self, abi: str = DEFAULT_ABI) -> None:
        if abi not in ABI_VERSIONS:
            raise OSError(
                errno.EINVAL,
                f"the files of version {abi!r} are not known; known are {', '.join(ABI_VERSIONS)}",
            )
        self.abi = abi
        # Deviation: docs/deviations.md#older-trees-hide-files-only
        self._known = known_since(abi)
        self._attributes: dict[type[kobject], dict[str, tuple[int, kobj_attribute]]] = {}
        self._inodes = 1
        self._inodes_lock = threading.Lock()
        self._paths: dict[str, inode] = {}
        self._lock = threading.Lock()
        self._time = time.time_ns()
        self.root = kobject(self)

    # For the directories.

    def has(self, since: str | None) -> bool:
        """Return whether this tree has the files that came with ``since``: a release, or kdamon."""
        return since is None or since in self._known

    def attributes_of(self, cls: type[kobject]) -> dict[str, tuple[int, kobj_attribute]]:
        """The files of directories of class ``cls``: index and attribute by name."""
        attributes = self._attributes.get(cls)
        if attributes is None:
            present = [attribute for attribute in cls.default_attributes if self.has(attribute.since)]
            attributes = {attribute.name: (i, attribute) for i, attribute in enumerate(present)}
            self._attributes[cls] = attributes
        return attributes

    def take_inodes(self, nr: int) -> int:
        """The first of ``nr`` consecutive unused inode numbers."""
        with self._inodes_lock:
            first = self._inodes
            self._inodes += nr
        return first

    @contextmanager
    def trylock(self) -> Iterator[None]:
        """Hold the tree's lock (``damon_sysfs_lock``).

        :raises OSError: EBUSY another thread holds it.
        """
        if not self.acquire():
            raise OSError(errno.EBUSY, "another command is being handled; try again")
        try:
            yield
        finally:
            self._lock.release()

    def acquire(self, timeout: float = 0.0) -> bool:
        """Try for ``timeout`` seconds to take the tree's lock; :meth:`release` it then."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Release the tree's lock."""
        self._lock.release()

    def forget_paths(self) -> None:
        """Drop the cached path lookups, after directories were added or removed."""
        # A new dictionary: a lookup in progress stores its result in the old one.
        self._paths = {}

    # For the users.

    def lookup(self, path: str) -> inode:
        """Find ``path`` (from the tree's top, with or without a leading slash).

        :raises OSError: ENOENT, ENOTDIR.
        """
        paths = self._paths
        found = paths.get(path)
        if found is None:
            found = paths[path] = self._walk(path)
        return found

    def _walk(self, path: str) -> inode:
        names = [name for name in path.split("/") if name]
        kobj = self.root
        for i, name in enumerate(names):
            child = kobj.child(name)
            if child is not None:
                kobj = child
                continue
            if name not in kobj.attributes:
                raise OSError(errno.ENOENT, f"{path} does not exist")
            if i + 1 < len(names):
                raise OSError(errno.ENOTDIR, f"{name} in {path} is a file")
            return self._file_inode(kobj, *kobj.attributes[name])
        return self._dir_inode(kobj)

    def _dir_inode(self, kobj: kobject) -> inode:
        fixed = {
            "st_mode": stat.S_IFDIR | 0o755,
            "st_nlink": 2 + kobj.nr_children(),
            "st_size": 0,
            "st_ino": kobj.ino,
        }
        return inode(kobj, None, self._stat(kobj, "", fixed))

    def _file_inode(self, kobj: kobject, place: int, attribute: kobj_attribute) -> inode:
        fixed = {
            "st_mode": stat.S_IFREG | attribute.mode,
            "st_nlink": 1,
            "st_size": PAGE_SIZE,
            "st_ino": kobj.first_file_ino + 1 + place,
        }
        return inode(kobj, attribute, self._stat(kobj, attribute.name, fixed))

    def _stat(self, kobj: kobject, name: str, fixed: dict[str, int]) -> dict[str, int]:
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._time)
        changed = {} if kobj.iattrs is None else kobj.iattrs.get(name, {})
        return {**fixed, "st_uid": 0, "st_gid": 0, **times, **changed}

    def getattr(self, path: str) -> dict[str, int]:
        """The ``stat()`` result for ``path``: fields by name, times in nanoseconds. The caller must not change it.

        :raises OSError: ENOENT, ENOTDIR.
        """
        return self.lookup(path).stat

    def setattr(self, path: str, **changes: int) -> None:
        """Change fields of :meth:`getattr`: ``st_mode`` (permission bits), ``st_uid``, ``st_gid``, times.

        :raises OSError: ENOENT, ENOTDIR.
        """
        found = self.lookup(path)
        if "st_mode" in changes:
            changes["st_mode"] = stat.S_IFMT(found.stat["st_mode"]) | stat.S_IMODE(changes["st_mode"])
        name = "" if found.attribute is None else found.attribute.name
        iattrs = found.kobj.iattrs = found.kobj.iattrs or {}
        iattrs[name] = {**iattrs.get(name, {}), **changes}
        self.forget_paths()

    def listdir(self, path: str) -> list[str]:
        """Names in the directory ``path``.

        :raises OSError: ENOENT, ENOTDIR.
        """
        return [name for name, _mode, _ino in self.readdir(path)]

    def readdir(self, path: str) -> list[tuple[str, int, int]]:
        """Name, mode and inode number of everything in the directory ``path``.

        :raises OSError: ENOENT, ENOTDIR.
        """
        found = self.lookup(path)
        if found.attribute is not None:
            raise OSError(errno.ENOTDIR, f"{path} is a file")
        kobj = found.kobj
        entries = [
            (name, stat.S_IFREG | attribute.mode, kobj.first_file_ino + 1 + place)
            for name, (place, attribute) in kobj.attributes.items()
        ]
        return entries + [(name, stat.S_IFDIR | 0o755, ino) for name, ino in kobj.child_inodes()]

    def open(self, path: str, flags: int) -> OpenFile:
        """Open the file ``path`` with the ``flags`` of ``open()``.

        :raises OSError: ENOENT, ENOTDIR, EISDIR; EACCES the file's mode forbids it, to root too; EINVAL O_DIRECT.
        """
        found = self.lookup(path)
        if found.attribute is None:
            raise OSError(errno.EISDIR, f"{path} is a directory")
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "files of this tree cannot be opened with O_DIRECT")
        access = flags & os.O_ACCMODE
        mode = found.stat["st_mode"]
        if (access != os.O_WRONLY and not mode & 0o444) or (access != os.O_RDONLY and not mode & 0o222):
            raise OSError(errno.EACCES, f"the mode of {path} does not allow this")
        return OpenFile(found.kobj, found.attribute)

    def read(self, path: str) -> bytes:
        """The content of the file ``path``.

        :raises OSError: as :meth:`open` and :meth:`OpenFile.read`.
        """
        return self.open(path, os.O_RDONLY).read(PAGE_SIZE, 0)

    def write(self, path: str, data: bytes) -> int:
        """Write ``data`` to the file ``path`` in one call; return the number of bytes stored.

        :raises OSError: as :meth:`open` and :meth:`OpenFile.write`.
        """
        return self.open(path, os.O_WRONLY).write(data)
