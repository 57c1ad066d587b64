# SPDX-License-Identifier: GPL-2.0-only
"""The mappings of a process: from /proc/PID/maps (``fs/proc/task_mmu.c: show_map_vma()``), or by a BPF program.

A process may have tens of thousands, and to read them all takes longer than a sampling interval. So :class:`MapsReader`
and :class:`VmasReader` read them in pieces, and :class:`RecentMappings` keeps the last whole list meanwhile. It reads
none where the kernel shows that none changed.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import Indexes, Mask, U8Array, U64Array
from kdamon.kernel import PAGE_SHIFT
from kdamon.mm.bpf.vma_reader import Found, VmaReader, made_vma_reader, vma_reader
from kdamon.mm.bpf.walker import made_walker
from kdamon.mm.mmap_lock import held

__all__ = [
    "Mappings",
    "MapsReader",
    "NamedMapping",
    "RecentMappings",
    "VmasReader",
    "containing",
    "parse",
    "read_lines",
]

#: The size of one read; the kernel fills at most its own buffer, a page, unless one line needs more.
_CHUNK: Final = 1 << 16
#: No address has more hexadecimal digits.
_DIGITS: Final = 16
#: [vsyscall] is shown in the kernel's half; it is no mapping of the process.
_KERNEL_HALF: Final = np.uint64(1 << 63)

#: Mappings that are read at once: some milliseconds from /proc/PID/maps.
_AT_ONCE: Final = 1024

#: Nanoseconds of monitoring for each mapping that is read meanwhile, some thirty times the time of the read: from
#: /proc/PID/maps, and by the BPF program.
_TIME_OF_LINE: Final = 32_000
_TIME_OF_VMA: Final = 5_000

#: Address spaces after which each further one is worth the time to make the program's reader.
_MANY: Final = 16
_address_spaces = itertools.count()

#: Steps in a row that do not get the mmap_lock before the kernel is to wait for it.
_ATTEMPTS: Final = 16

# include/linux/mm.h
_VM_WRITE: Final = np.uint64(0x2)
#: VM_READ, VM_WRITE, VM_EXEC.
_VM_ACCESS: Final = np.uint64(0x7)
_VM_MAYSHARE: Final = np.uint64(0x80)

_HEX = np.zeros(256, dtype=np.uint64)
_HEX[ord("0") : ord("9") + 1] = np.arange(10)
_HEX[ord("a") : ord("f") + 1] = np.arange(10, 16)


@frozen
class Mappings:
    """Mappings in address order.

    :ivar ranges: start and end, bytes, ascending and disjoint, shape (n, 2).
    :ivar offsets: where each begins in its file, bytes, shape (n,); 0 without a file.
    :ivar devices: the device that each file is on, as st_dev, shape (n,); 0 without a file.
    :ivar writable: which may be written now, shape (n,).
    :ivar shared: which are shared, shape (n,).
    :ivar files: which are of a file, be it one of shared memory, shape (n,).
    :ivar accessible: which may be read, written or executed now, shape (n,).
    """

    ranges: U64Array
    offsets: U64Array
    devices: U64Array
    writable: Mask
    shared: Mask
    files: Mask
    accessible: Mask

    def __len__(self) -> int:
        return len(self.ranges)

    def of(self, rows: Mask) -> Mappings:
        """Those of ``rows``."""
        return Mappings(
            self.ranges[rows],
            self.offsets[rows],
            self.devices[rows],
            self.writable[rows],
            self.shared[rows],
            self.files[rows],
            self.accessible[rows],
        )

    @staticmethod
    def joined(parts: list[Mappings]) -> Mappings:
        """All of ``parts``, each of which begins after the one before; at least one."""
        return Mappings(
            np.concatenate([part.ranges for part in parts]),
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.devices for part in parts]),
            np.concatenate([part.writable for part in parts]),
            np.concatenate([part.shared for part in parts]),
            np.concatenate([part.files for part in parts]),
            np.concatenate([part.accessible for part in parts]),
        )

    @classmethod
    def parse(cls, lines: bytes) -> Mappings:
        """The mappings in whole lines of /proc/PID/maps.

        The kernel gives the list in pieces, between which mappings come and go: a line that is not above the one
        before it is left out.
        """
        # Room for the digits that an address at the very start does not have.
        data = np.frombuffer(b"\n" * _DIGITS + lines, dtype=np.uint8)
        ends = np.flatnonzero(data == ord("\n"))[_DIGITS - 1 :]
        begins, ends = ends[:-1] + 1, ends[1:]
        dash = _first(data, "-", begins)
        after_range = _first(data, " ", dash)
        after_permissions = _first(data, " ", after_range + 1)
        after_offset = _first(data, " ", after_permissions + 1)
        colon = _first(data, ":", after_offset)
        after_device = _first(data, " ", colon)
        ranges = np.stack((_numbers(data, begins, dash), _numbers(data, dash + 1, after_range)), axis=1)
        major = _numbers(data, after_offset + 1, colon)
        minor = _numbers(data, colon + 1, after_device)
        devices = major << np.uint64(8) | minor & np.uint64(0xFF) | (minor >> np.uint64(8)) << np.uint64(20)
        # Not by the inode: the first System V shared memory has number 0.
        files = devices != 0
        offsets = np.zeros(len(ranges), dtype=np.uint64)
        offsets[files] = _numbers(data, after_permissions[files] + 1, after_offset[files])
        writable, shared = data[after_range + 2] == ord("w"), data[after_range + 4] == ord("s")
        accessible = writable | (data[after_range + 1] == ord("r")) | (data[after_range + 3] == ord("x"))
        return cls(ranges, offsets, devices, writable, shared, files, accessible).above(0)

    @classmethod
    def of_vmas(cls, records: U64Array) -> Mappings:
        """The mappings in ``records``, see :meth:`kdamon.mm.bpf.vma_reader.VmaReader.read`."""
        _, _, flags, offsets, devices = np.ascontiguousarray(records.T)
        files = devices != 0
        offsets <<= np.uint64(PAGE_SHIFT)
        offsets[~files] = 0
        if files.any():
            # include/linux/kdev_t.h: MAJOR(), MINOR(), new_encode_dev().
            major, minor = devices >> np.uint64(20), devices & np.uint64(0xFFFFF)
            devices = minor & np.uint64(0xFF) | major << np.uint64(8) | minor >> np.uint64(8) << np.uint64(20)
        writable, shared = (flags & _VM_WRITE) != 0, (flags & _VM_MAYSHARE) != 0
        accessible = (flags & _VM_ACCESS) != 0
        return cls(records[:, :2].copy(), offsets, devices, writable, shared, files, accessible)

    def above(self, last: int) -> Mappings:
        """Those that begin at ``last`` or above, and at the end of the one before or above."""
        kept = (self.ranges[:, 0] < _KERNEL_HALF) & (self.ranges[:, 0] >= np.uint64(last))
        if (self.ranges[1:, 0] < self.ranges[:-1, 1]).any():
            for row, (start, end) in enumerate(self.ranges.tolist()):
                kept[row] &= start >= last
                last = end if kept[row] else last
        return self if kept.all() else self.of(kept)


def _first(data: U8Array, character: str, places: Indexes) -> Indexes:
    """Where ``character`` is first, at each of ``places`` or after it; the end of ``data`` where it is not."""
    found = np.append(np.flatnonzero(data == ord(character)), len(data) - 1)
    return found[np.minimum(np.searchsorted(found, places), len(found) - 1)]


def _numbers(data: U8Array, begins: Indexes, ends: Indexes) -> U64Array:
    """The hexadecimal numbers from ``begins`` to ``ends`` (exclusive) in ``data``."""
    widths = ends - begins
    columns = np.arange(widths.max(initial=0))
    digits = _HEX[data[ends[:, None] - 1 - columns]] << (columns.astype(np.uint64) * np.uint64(4))
    digits[widths[:, None] <= columns] = 0
    return np.bitwise_or.reduce(digits, axis=1)


def parse(contents: bytes) -> U64Array:
    """Start and end of each mapping in ``contents``, those of /proc/PID/maps, see :class:`Mappings`."""
    return Mappings.parse(contents).ranges


@frozen
class NamedMapping:
    """One mapping with its name.

    :ivar start: its first address, bytes.
    :ivar end: the address after its last one, bytes.
    :ivar permissions: such as ``rw-p``.
    :ivar offset: where it begins in its file, bytes; 0 without a file.
    :ivar inode: the number of its file; 0 without a file, and for the first System V shared memory.
    :ivar name: the path of its file or a name such as ``[heap]``; empty where it has none.
    """

    start: int
    end: int
    permissions: str
    offset: int
    inode: int
    name: str

    @classmethod
    def parse(cls, line: bytes) -> NamedMapping:
        """The mapping of a line of /proc/PID/maps, without its newline."""
        addresses, permissions, offset, _device, inode, *name = line.split(None, 5)
        start, end = (int(address, 16) for address in addresses.split(b"-"))
        return cls(start, end, permissions.decode("ascii"), int(offset, 16), int(inode), os.fsdecode(b"".join(name)))


def read_lines(fd: int, pagemap: int = -1) -> list[bytes]:
    """The lines of an open /proc/PID/maps; none when the address space is gone.

    The kernel gives the list in pieces, between which mappings come and go.

    :param fd: must not be read by others meanwhile.
    :param pagemap: as for :class:`MapsReader`.
    """
    texts: list[bytes] = []
    offset = 0
    while True:
        try:
            with held.of(pagemap):
                text = os.pread(fd, _CHUNK, offset)
        except ProcessLookupError:
            return []
        if not text:
            # A name may hold any other character.
            return b"".join(texts).split(b"\n")[:-1]
        texts.append(text)
        offset += len(text)


class MapsReader:
    """Reads an open /proc/PID/maps from its beginning to its end.

    :param fd: stays the caller's; others must not read it meanwhile, or the kernel starts over each time.
    :param pagemap: open /proc/PID/pagemap of the same address space, see :data:`kdamon.mm.mmap_lock.held`; -1 for none.
    """

    def __init__(self, fd: int, pagemap: int = -1) -> None:
        self._fd = fd
        self._pagemap = pagemap
        self._offset = 0
        self._rest = b""
        self._parts = [Mappings.parse(b"")]
        self._last = 0

    def step(self, count: int) -> Mappings | None:
        """Read about ``count`` mappings more; returns all of them once the last was read.

        There are none when the address space is gone.
        """
        texts = [self._rest]
        while count > 0:
            try:
                with held.of(self._pagemap):
                    text = os.pread(self._fd, _CHUNK, self._offset)
            except ProcessLookupError:
                return Mappings.parse(b"")
            if not text:
                break
            self._offset += len(text)
            texts.append(text)
            count -= text.count(b"\n")
        lines, newline, self._rest = b"".join(texts).rpartition(b"\n")
        part = Mappings.parse(lines + newline).above(self._last)
        if len(part):
            self._parts.append(part)
            self._last = int(part.ranges[-1, 1])
        return Mappings.joined(self._parts) if count > 0 else None

    def all(self) -> Mappings:
        """Read to the end."""
        while (found := self.step(_AT_ONCE)) is None:
            pass
        return found


class VmasReader:
    """Reads mappings by a BPF program from the first to the last.

    :param reader: stays the caller's.
    :param pagemap: open /proc/PID/pagemap of the address space; stays the caller's.
    """

    def __init__(self, reader: VmaReader, pagemap: int) -> None:
        self._reader = reader
        self._pagemap = pagemap
        self._parts: list[Mappings] = []
        self._last = 0
        self._failures = 0

    def step(self, count: int) -> Mappings | None:
        """As :meth:`MapsReader.step`; less than ``count`` where the process itself changes its mappings right now.

        :raises BlockingIOError: it does so all the time.
        :raises ProcessLookupError: the address space has no owner any more.
        """
        parts = []
        found = Found.MORE
        while count > 0 and found == Found.MORE:
            # Fewer at once are rarely changed meanwhile.
            records, found = self._reader.read(self._pagemap, self._last, max(1, count >> self._failures))
            if len(records):
                parts.append(records)
                self._last = int(records[-1, 1])
                self._failures = 0
            count -= len(records)
        if found == Found.LOST:
            raise ProcessLookupError(errno.ESRCH, "the address space has no owner")
        if found == Found.BUSY:
            self._failures += 1
            if self._failures >= _ATTEMPTS:
                raise BlockingIOError(errno.EAGAIN, "the process changes its mappings all the time")
        if parts:
            # A mapping that grew since the last part was read begins below it.
            last = int(self._parts[-1].ranges[-1, 1]) if self._parts else 0
            records = np.concatenate(parts) if len(parts) > 1 else parts[0]
            part = Mappings.of_vmas(records)
            if records[0, 0] < last or (records[1:, 0] < records[:-1, 1]).any():
                part = part.above(last)
            if len(part):
                self._parts.append(part)
        return Mappings.joined(self._parts or [Mappings.parse(b"")]) if found == Found.ALL else None


class RecentMappings:
    """The mappings of an address space as they were a moment ago.

    :param fd: its open /proc/PID/maps, see :class:`MapsReader`.
    :param pagemap: as for it; with -1 the mappings are read from /proc/PID/maps alone.
    """

    def __init__(self, fd: int, pagemap: int = -1) -> None:
        self._fd = fd
        self._pagemap = pagemap
        self._reader: MapsReader | VmasReader | None = None
        self._read_at = 0
        self._known: Mappings | None = None
        # The state of the address space when it began to be read, and when the known list did.
        self._sequence: int | None = None
        self._known_sequence: int | None = None
        self._looks = 0

    @property
    def looks(self) -> int:
        """How often :meth:`known` became a new list or turned out to be the present one."""
        return self._looks

    @property
    def time_of_one(self) -> int:
        """Nanoseconds of monitoring in which one mapping may be read."""
        return _TIME_OF_VMA if isinstance(self._reader, VmasReader) else _TIME_OF_LINE

    def known(self) -> Mappings:
        """The last list that was read to its end."""
        if self._known is None:
            self.begin()
            while self._known is None:
                self._step(_AT_ONCE)
            many = len(self._known) > _AT_ONCE or next(_address_spaces) >= _MANY
            if many and self._pagemap >= 0:
                # Now, because it takes as long as a sampling interval.
                vma_reader()
        return self._known

    def now(self) -> Mappings:
        """The present mappings, unless they are so many that reading them takes long.

        In that case each :meth:`go_on` reads more of them, and this returns the previous list.
        """
        if self._known is None:
            return self.known()
        self.begin()
        self._step(_AT_ONCE)
        if isinstance(self._reader, VmasReader) and len(self._known) <= _AT_ONCE // 2:
            # The mmap_lock was taken; for a few lines the kernel may wait.
            self._reader = MapsReader(self._fd, self._pagemap)
            self._step(_AT_ONCE)
        return self._known

    def recent(self, age: int) -> Mappings:
        """As :meth:`now`, or a list that began to be read less than ``age`` nanoseconds ago."""
        return self.now() if time.monotonic_ns() >= self._read_at + age else self.known()

    def begin(self, anyway: bool = False) -> None:
        """Begin to read them again, unless that is under way, or none changed since the known list was read.

        :param anyway: also if none changed.
        """
        if self._reader is not None:
            return
        self._read_at = time.monotonic_ns()
        self._sequence = self._changes()
        if not anyway and self._sequence is not None and self._sequence == self._known_sequence:
            self._looks += 1
            return
        many = self._known is not None and len(self._known) > _AT_ONCE
        reader = None if self._pagemap < 0 else vma_reader() if many else made_vma_reader()
        self._reader = MapsReader(self._fd, self._pagemap) if reader is None else VmasReader(reader, self._pagemap)

    def extent(self) -> tuple[int, int] | None:
        """The state of the mappings, and bytes of page tables; None where :meth:`known` may not be the present list."""
        walker = made_walker() if self._pagemap >= 0 else None
        sequence = self._changes()
        if walker is None or sequence is None or sequence != self._known_sequence:
            return None
        tables = walker.table_bytes(self._pagemap)
        return None if tables is None else (sequence, tables)

    def _changes(self) -> int | None:
        """What shows whether a mapping changed, None where nothing does."""
        walker = made_walker() if self._pagemap >= 0 else None
        return None if walker is None else walker.changes(self._pagemap)

    @property
    def under_way(self) -> bool:
        """Whether they are being read."""
        return self._reader is not None

    def go_on(self, count: int) -> None:
        """Read about ``count`` mappings more, if that is under way."""
        if self._reader is not None:
            self._step(count)

    def _step(self, count: int) -> None:
        if self._reader is None:
            return
        try:
            found = self._reader.step(count)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ESRCH}:
                raise
            # The kernel waits for the lock itself there, and shows which address spaces ended.
            self._reader = MapsReader(self._fd, self._pagemap)
            found = self._reader.step(count)
        if found is not None:
            self._known, self._known_sequence, self._reader = found, self._sequence, None
            self._looks += 1


def containing(vmas: U64Array, addr: int) -> tuple[int, int] | None:
    """The mapping (start, end) in ``vmas`` that contains ``addr``, None when it is not mapped."""
    index = int(np.searchsorted(vmas[:, 0], np.uint64(addr), side="right")) - 1
    if index < 0 or addr >= vmas[index, 1]:
        return None
    return int(vmas[index, 0]), int(vmas[index, 1])
