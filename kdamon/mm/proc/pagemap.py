# SPDX-License-Identifier: GPL-2.0-only
"""The pages of whole ranges: /proc/PID/pagemap (``fs/proc/task_mmu.c``), and the page table walk where it works.

Memory is read in blocks of 2 MiB, the size that one page table maps. Empty blocks are left out, by the walk or by
PAGEMAP_SCAN, so that terabytes of reserved addresses cost no more than the pages in them. No call holds the target's
mmap_lock for long, see :mod:`kdamon.mm.mmap_lock`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U8Array, U64Array
from kdamon.kernel import PAGE_SIZE, PMD_SIZE
from kdamon.mm import ranges
from kdamon.mm.bpf.walk_program import ACCESSED, LEVEL, PRESENT
from kdamon.mm.bpf.walker import Walker, shared_walker
from kdamon.mm.mmap_lock import held
from kdamon.mm.proc.populated import populated

__all__ = [
    "Pagemap",
    "anonymous",
    "entries_at",
    "exclusive",
    "exclusive_frames",
    "frames",
    "present",
    "swapped",
    "tracked",
]

_GIB: Final = 1 << 30
#: What one entry of the page directory maps with four levels of page tables, and one of the next level with five.
_PGDIR: Final = 1 << 39
#: Levels of the walk, see :data:`kdamon.mm.bpf.walk_program.LEVEL`.
_PMD: Final = 2
_PUD: Final = 3
_TOP: Final = 4
#: Tables that are looked through at once: 4096 entries.
_TABLES: Final = 8

# Documentation/admin-guide/mm/pagemap.rst
_PRESENT: Final = np.uint64(1 << 63)
_SWAP: Final = np.uint64(1 << 62)
_FILE: Final = np.uint64(1 << 61)
_GUARD: Final = np.uint64(1 << 58)
_TRACKED: Final = np.uint64(1 << 57)
_EXCLUSIVE: Final = np.uint64(1 << 56)
_PFN_MASK: Final = np.uint64((1 << 55) - 1)

_ENTRIES: Final = np.uint64(PMD_SIZE // PAGE_SIZE)
_WITHIN: Final = np.arange(0, PMD_SIZE, PAGE_SIZE, dtype=np.uint64)


def present(entries: U64Array) -> Mask:
    """Which pages are in memory and mapped."""
    return (entries & _PRESENT) != 0


def anonymous(entries: U64Array) -> Mask:
    """Which mapped pages are neither of a file nor of shared memory."""
    return (entries & (_PRESENT | _FILE)) == _PRESENT


def swapped(entries: U64Array) -> Mask:
    """Which pages are in swap."""
    # A guard page looks as if it was there, too.
    return (entries & (_SWAP | _GUARD)) == _SWAP


def tracked(entries: U64Array) -> Mask:
    """Which pages, in memory or in swap, a userfaultfd protects."""
    return (entries & _TRACKED) != 0


def frames(entries: U64Array) -> U64Array:
    """Page frame numbers; 0 for pages that are not there, and for all without CAP_SYS_ADMIN."""
    return np.where(present(entries), entries & _PFN_MASK, np.uint64(0))


def exclusive(entries: U64Array) -> Mask:
    """Which pages are mapped here alone: by no other process, and by no other mapping of this one."""
    return (entries & _EXCLUSIVE) != 0


def exclusive_frames(entries: U64Array) -> U64Array:
    """Page frame numbers of pages that no other process maps; 0 for all others."""
    return np.where(exclusive(entries), frames(entries), np.uint64(0))


def entries_at(fd: int, addrs: U64Array) -> U64Array:
    """The entries of an open /proc/PID/pagemap for ``addrs`` in any order, 0 beyond its end, shape (n,).

    Pages of one page table that follow each other are read at once.
    """
    pages = addrs >> np.uint64(12)
    if not len(pages):
        return pages
    apart = (pages[1:] != pages[:-1] + np.uint64(1)) | (pages[1:] % _ENTRIES == 0)
    first = np.append(0, np.flatnonzero(apart) + 1)
    counts = np.diff(np.append(first, len(pages)))
    # Addresses of the kernel's half are beyond the end of the file, or of any file.
    parts = [
        _read(fd, page, count) if page < 1 << 45 else bytes(8 * count)
        for page, count in zip(pages[first].tolist(), counts.tolist(), strict=True)
    ]
    return np.frombuffer(b"".join(parts), dtype=np.uint64)


def _read(fd: int, page: int, count: int) -> bytes:
    """``count`` entries of one page table from the number ``page`` on; 0 where the address space ended."""
    with held.of(fd):
        entries = os.pread(fd, 8 * count, 8 * page)
    return entries.ljust(8 * count, b"\0")


def _parts(blocks: U64Array) -> Iterator[U64Array]:
    return (blocks[first : first + _TABLES] for first in range(0, len(blocks), _TABLES))


class Pagemap:
    """The pages of one address space.

    :param fd: open /proc/PID/pagemap; stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._walker: Walker | None = None
        self._lacking: OSError | None = None
        try:
            self._walker = shared_walker()
        except OSError as error:
            self._lacking = error

    def groups(self, wanted: U64Array) -> Iterator[U64Array]:
        """The blocks (as ranges) that touch ``wanted`` and may hold pages there, ascending, a gibibyte's at a time.

        Holes cost next to nothing where the page table walk works, or PAGEMAP_SCAN (Linux 6.7).
        """
        if self._walker is None:
            yield from populated(self._fd, wanted)
            return
        # From the top, so that 100 TiB without page tables cost 200 addresses and not 100000; and several tables at
        # once, because most processes have few, and each walk takes as long as hundreds of addresses.
        tops = self._tables(ranges.blocks(wanted, _PGDIR), _TOP)
        for part in _parts(tops):
            gibs = self._tables(ranges.blocks(ranges.intersect(part, wanted), _GIB), _PUD)
            for few in _parts(gibs):
                found = self._tables(ranges.blocks(ranges.intersect(few, wanted), PMD_SIZE), _PMD)
                numbers = found[:, 0] // np.uint64(_GIB)
                yield from (one for one in np.split(found, np.flatnonzero(np.diff(numbers)) + 1) if len(one))

    def _tables(self, candidates: U64Array, level: int) -> U64Array:
        """The ``candidates`` for which the walk does not end at ``level`` already."""
        flags = self.walk(candidates[:, 0])
        empty = ((flags & LEVEL) >= level) & ((flags & PRESENT) == 0)
        return candidates[~empty]

    @staticmethod
    def pages(blocks: U64Array) -> U64Array:
        """The addresses of all pages in ``blocks``, ascending, 512 for each."""
        return (blocks[:, :1] + _WITHIN).ravel()

    def entries(self, blocks: U64Array) -> U64Array:
        """The pagemap's entries for :meth:`pages` of ``blocks``; 0 where the address space ended."""
        parts = [_read(self._fd, start // PAGE_SIZE, PMD_SIZE // PAGE_SIZE) for start in blocks[:, 0].tolist()]
        return np.frombuffer(b"".join(parts), dtype=np.uint64)

    def accessed(self, pages: U64Array) -> Mask:
        """Which of ``pages`` are mapped and have their accessed bit set.

        :raises OSError: see :meth:`walk`.
        """
        return (self.walk(pages) & (PRESENT | ACCESSED)) == PRESENT | ACCESSED

    def huge(self, blocks: U64Array) -> tuple[Mask, Mask]:
        """Which of ``blocks`` one huge page maps, and which a page table.

        :raises OSError: see :meth:`walk`.
        """
        flags = self.walk(blocks[:, 0])
        return (flags & (LEVEL | PRESENT)) == _PMD | PRESENT, (flags & LEVEL) == 1

    def walk(self, addrs: U64Array) -> U8Array:
        """The flags of the page table walk for ``addrs``.

        :raises OSError: why this machine cannot walk page tables, see :class:`kdamon.mm.bpf.walker.Walker`.
        """
        if self._walker is None:
            assert self._lacking is not None
            raise OSError(self._lacking.errno, self._lacking.strerror)
        return self._walker.young(self._fd, addrs)
