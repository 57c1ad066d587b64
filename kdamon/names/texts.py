# SPDX-License-Identifier: GPL-2.0-only
"""The texts of names: of lines of /proc/PID/maps, sections, stacks and labels; and the list that they are kept in."""

from __future__ import annotations

import os
from typing import Final

__all__ = [
    "MOST_NAMES",
    "REST",
    "NameList",
    "label_text",
    "mapping_text",
    "neighbour_text",
    "section_text",
    "shortened",
    "stack_text",
]

#: Characters of a name: as many as a file's may have.
_LONGEST: Final = 255
#: Names of one process in a run; what comes later has one name together.
MOST_NAMES: Final = 1 << 16
REST: Final = "[more names]"

_ANON: Final = "[anon]"
#: How the kernel shows names that a program gave by PR_SET_VMA_ANON_NAME.
_OF_PROGRAMS: Final = ("[anon:", "[anon_shmem:")
_DELETED: Final = " (deleted)"
#: The kernel's own file for shared anonymous memory.
_SHARED: Final = "/dev/zero (deleted)"


def mapping_text(name: bytes) -> str:
    """The name of a mapping, as users know it.

    :param name: the last field of its line in /proc/PID/maps; not empty.
    :returns: the file's name without directories, or what the kernel writes in brackets.
    """
    text = os.fsdecode(name)
    if text.startswith("["):
        for prefix in _OF_PROGRAMS:
            if text.startswith(prefix):
                return shortened(f"{prefix} {text[len(prefix) :]}", _LONGEST)
        return shortened(text, _LONGEST)
    if text == _SHARED:
        return "[shared anon]"
    if text.startswith("/memfd:"):
        return shortened(text[1:].removesuffix(_DELETED), _LONGEST)
    if not text.startswith("/"):
        return shortened(text, _LONGEST)
    base = text.rpartition("/")[2]
    # Brackets and quotation marks are the kernel's and the programs'.
    return shortened(f"./{base}" if base[:1] in ("[", '"') else base, _LONGEST)


def neighbour_text(neighbour: str, above: bool) -> str:
    """The name of anonymous memory.

    :param neighbour: the name of the nearest mapping that has one; empty where there is none.
    :param above: whether the memory is above it.
    """
    return shortened(f"{_ANON} {'above' if above else 'below'} {neighbour}", _LONGEST) if neighbour else _ANON


def section_text(file: str, section: str) -> str:
    """The name of a section of a file."""
    return shortened(f"{file} {shortened(section, 64)}", _LONGEST)


def stack_text(tid: int, name: str) -> str:
    """The name of a thread's stack."""
    return f"[stack of {tid} {name}]" if name else f"[stack of {tid}]"


def label_text(label: str) -> str:
    """The name of an area that a program named."""
    return f'"{label}"'


def shortened(text: str, most: int) -> str:
    """``text`` with at most ``most`` characters, 3 or more: a long one loses its middle, which ``…`` stands for."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


class NameList:
    """Names by their numbers; a number keeps its name."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._tuple: tuple[str, ...] = ()

    def number(self, name: str) -> int:
        """The number of ``name``, which is added if there is room for it."""
        number = self._numbers.get(name)
        if number is None:
            if len(self._names) >= self._most - 1:
                name = REST
            number = self._numbers.setdefault(name, len(self._names))
            if number == len(self._names):
                self._names.append(name)
        return number

    def name(self, number: int) -> str:
        """The name with this number."""
        return self._names[number]

    def all(self) -> tuple[str, ...]:
        """All names; the same object as long as there is no other."""
        if len(self._tuple) != len(self._names):
            self._tuple = tuple(self._names)
        return self._tuple
