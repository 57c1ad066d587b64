# SPDX-License-Identifier: GPL-2.0-only
"""The names in /proc/PID/maps (``fs/proc/task_mmu.c: show_map_vma()``), read in pieces."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np
from attrs import Factory, define, frozen

from kdamon.arrays import I32Array, I64Array, Mask, Records, U64Array
from kdamon.names.table import AT_ONCE, NAMED_RANGE, NO_OFFSET
from kdamon.names.texts import NameList, mapping_text, neighbour_text

__all__ = ["MappedFile", "MappingRows", "NamedMappings", "read_names"]

#: The size of one read, as of :mod:`kdamon.mm.proc.maps`, and lines that are taken apart before others may run.
_CHUNK: Final = 1 << 16
_LINES: Final = 128
_KERNEL_HALF: Final = 1 << 63
#: Stands for the name of anonymous memory.
_ANON: Final = -1
#: Texts of lines that are remembered.
_MOST_KNOWN: Final = 1 << 14


@define
class MappedFile:
    """A file with a mapping that may be executed: a program or a library.

    :ivar name: as in names.
    :ivar path: as the process sees it.
    :ivar inode: its number.
    :ivar range: the addresses of one of its mappings, as in /proc/PID/map_files.
    :ivar rows: its mappings, places in :attr:`NamedMappings.rows`.
    """

    name: str
    path: bytes
    inode: int
    range: str
    rows: list[int] = Factory(list)
    executable: bool = False


@frozen(eq=False)
class NamedMappings:
    """The mappings of a process at one time.

    :ivar rows: one for each, of :data:`kdamon.names.table.NAMED_RANGE`, ascending and disjoint, shape (n,).
    :ivar anonymous: which have neither a file nor a name, shape (n,).
    :ivar accessible: which may be read, written or executed, shape (n,).
    :ivar files: those with a mapping that may be executed, by device and inode, as the lines have them.
    """

    rows: Records
    anonymous: Mask
    accessible: Mask
    files: dict[tuple[bytes, bytes], MappedFile]


class MappingRows:
    """Collects the mappings of lines.

    :param names: takes the names.
    """

    def __init__(self, names: NameList) -> None:
        self._names = names
        self._known: dict[bytes, int] = {}
        self._files: dict[tuple[bytes, bytes], MappedFile] = {}
        self._parts: list[Records] = []
        self._accessible: list[Mask] = []
        self._count = 0
        self._last = 0

    def add(self, lines: list[bytes]) -> None:
        """Add mappings, in the order of their addresses.

        The kernel gives the list in pieces, between which mappings come and go: a line that is not above the one before
        it is left out.

        :param lines: without newlines.
        """
        rows, accessible = [], []
        for line in lines:
            addresses, permissions, offset, device, inode, *rest = line.split(None, 5)
            start_text, _, end_text = addresses.partition(b"-")
            start, end = int(start_text, 16), int(end_text, 16)
            if start < self._last or start >= _KERNEL_HALF or end <= start:
                continue
            self._last = end
            name = rest[0] if rest else b""
            number = self._number(name) if name else _ANON
            # Not by the inode: the first System V shared memory has number 0.
            in_file = device != b"00:00"
            if in_file and name:
                self._add_to_file(device, inode, addresses, name, permissions[2:3] == b"x")
            rows.append((start, end, int(offset, 16) if in_file else NO_OFFSET, number))
            accessible.append(permissions[:3] != b"---")
            self._count += 1
        self._parts.append(np.array(rows, NAMED_RANGE))
        self._accessible.append(np.array(accessible, np.bool_))

    def _number(self, name: bytes) -> int:
        number = self._known.get(name)
        if number is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            number = self._known[name] = self._names.number(mapping_text(name))
        return number

    def _add_to_file(self, device: bytes, inode: bytes, addresses: bytes, name: bytes, executable: bool) -> None:
        file = self._files.get((device, inode))
        if file is None:
            file = MappedFile(mapping_text(name), name, int(inode), addresses.decode("ascii"))
            self._files[device, inode] = file
        file.rows.append(self._count)
        file.executable |= executable

    def mappings(self) -> NamedMappings:
        """All of them; anonymous memory now has its names."""
        rows, accessible = np.empty(self._count, NAMED_RANGE), np.empty(self._count, np.bool_)
        at = 0
        for part, flags in zip(self._parts, self._accessible, strict=True):
            rows[at : at + len(part)], accessible[at : at + len(part)] = part, flags
            at += len(part)
        anonymous = rows["name"] == _ANON
        rows["name"][anonymous] = self._of_neighbours(rows, anonymous)
        return NamedMappings(rows, anonymous, accessible, {k: f for k, f in self._files.items() if f.executable})

    def _of_neighbours(self, rows: Records, anonymous: Mask) -> I32Array:
        """The names of anonymous memory, by the nearest mapping that has one."""
        named = np.flatnonzero(~anonymous)
        wanted = np.flatnonzero(anonymous)
        numbers = np.full(len(wanted), _ANON, np.int32)
        known: dict[int, int] = {}
        for first in range(0, len(wanted), AT_ONCE):
            of = wanted[first : first + AT_ONCE]
            after = np.searchsorted(named, of)
            # Twice the name's number, and 1 where the memory is above it; -1 without a neighbour.
            keys = np.full(len(of), -1, np.int64)
            if len(named):
                keys = _neighbours(rows, named, of, after)
            unique, which = np.unique(keys, return_inverse=True)
            found = []
            for key in unique.tolist():
                if key not in known:
                    neighbour = self._names.name(key >> 1) if key >= 0 else ""
                    known[key] = self._names.number(neighbour_text(neighbour, bool(key & 1)))
                found.append(known[key])
            numbers[first : first + AT_ONCE] = np.array(found, np.int32)[which]
        return numbers


def _neighbours(rows: Records, named: I64Array, of: I64Array, after: I64Array) -> I64Array:
    """For each row ``of``: twice the name of the nearest of the rows ``named``, and 1 where that is the one below."""
    below, above = named[np.maximum(after - 1, 0)], named[np.minimum(after, len(named) - 1)]
    far: U64Array = np.full(len(of), NO_OFFSET, np.uint64)
    to_below = np.where(after > 0, rows["start"][of] - rows["end"][below], far)
    to_above = np.where(after < len(named), rows["start"][above] - rows["end"][of], far)
    nearer = to_below <= to_above
    neighbour = rows["name"][np.where(nearer, below, above)].astype(np.int64)
    return neighbour * 2 + nearer


def read_names(read: Callable[[int, int], bytes], names: NameList) -> NamedMappings:
    """The mappings of an open /proc/PID/maps; none when the address space is gone.

    Other threads can run after each piece.

    :param read: takes the number of bytes and the offset, as :func:`os.pread` does of a file.
    :param names: takes the names.
    """
    found = MappingRows(names)
    rest, offset = b"", 0
    while True:
        try:
            text = read(_CHUNK, offset)
        except ProcessLookupError:
            return MappingRows(names).mappings()
        if not text:
            return found.mappings()
        offset += len(text)
        # A name may hold any character but a newline.
        *lines, rest = (rest + text).split(b"\n")
        for first in range(0, len(lines), _LINES):
            found.add(lines[first : first + _LINES])
            time.sleep(0)
