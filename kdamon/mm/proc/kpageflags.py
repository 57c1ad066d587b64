# SPDX-License-Identifier: GPL-2.0-only
"""The state of physical pages: /proc/kpageflags, kpagecount and kpagecgroup (``fs/proc/page.c``)."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import Indexes, Mask, U64Array
from kdamon.lib.rights import refusal

__all__ = ["COMPOUND_HEAD", "COMPOUND_TAIL", "LRU", "FolioTable", "Folios", "shared_folios"]

# include/uapi/linux/kernel-page-flags.h
_UP_TO_DATE: Final = 1 << 3
LRU: Final = 1 << 5
_ACTIVE: Final = 1 << 6
_SLAB: Final = 1 << 7
_BUDDY: Final = 1 << 10
_MAPPED: Final = 1 << 11
_ANONYMOUS: Final = 1 << 12
_SWAP_CACHE: Final = 1 << 13
COMPOUND_HEAD: Final = 1 << 15
COMPOUND_TAIL: Final = 1 << 16
_HUGETLB: Final = 1 << 17
_NO_PAGE: Final = 1 << 20
_ZERO_PAGE: Final = 1 << 24
_RESERVED: Final = 1 << 32

#: A gap of at most so many page frames is read, too, because that saves a system call.
_READ_ALONG: Final = 64

#: Pages in the largest folio that is mapped by 4 KiB entries or by one 2 MiB entry; folios are aligned to their size.
_MAX_PAGES: Final = 512


@frozen
class FolioTable:
    """The folios of page frames; all columns of shape (n,).

    :ivar pfns: the page frames.
    :ivar heads: their folios' first page frames.
    :ivar pages: their folios' sizes in pages.
    :ivar flags: KPF_* bits.
    """

    pfns: U64Array
    heads: U64Array
    pages: U64Array
    flags: U64Array

    def rows(self, chosen: Mask) -> FolioTable:
        """A table of some of the rows."""
        return FolioTable(self.pfns[chosen], self.heads[chosen], self.pages[chosen], self.flags[chosen])

    def ordinary(self) -> Mask:
        """Which are the kernel's for ordinary use: not page frame 0, the zero page, huge TLB or a device's memory."""
        special = np.uint64(_HUGETLB | _NO_PAGE | _ZERO_PAGE | _RESERVED)
        return (self.pfns != 0) & ((self.flags & special) == 0)

    def active(self) -> Mask:
        """Which are on an active LRU list."""
        return (self.flags & np.uint64(_ACTIVE)) != 0

    def compound(self) -> Mask:
        """Which are a part of a folio of several pages."""
        return (self.flags & np.uint64(COMPOUND_HEAD | COMPOUND_TAIL)) != 0

    def listed(self) -> Mask:
        """Which are on an LRU list."""
        return (self.flags & np.uint64(LRU)) != 0

    def anonymous(self) -> Mask:
        """Which are neither of a file nor of shared memory."""
        return (self.flags & np.uint64(_ANONYMOUS)) != 0

    def cached(self) -> Mask:
        """Which hold file data or shared memory, and no process maps."""
        asked = np.uint64(_UP_TO_DATE | _MAPPED | _ANONYMOUS | _SWAP_CACHE)
        return (self.flags & asked) == _UP_TO_DATE


class Folios:
    """Reads the three files; without permission the methods for one page return None or False.

    :param flags_path: /proc/kpageflags
    :param count_path: /proc/kpagecount
    :param cgroup_path: /proc/kpagecgroup
    """

    def __init__(
        self,
        flags_path: str = "/proc/kpageflags",
        count_path: str = "/proc/kpagecount",
        cgroup_path: str = "/proc/kpagecgroup",
    ) -> None:
        self._flags_fd = self._count_fd = self._cgroup_fd = -1
        #: Whether this kernel was seen to show a folio's flags for each of its pages.
        self._tails_tell = False
        with contextlib.suppress(OSError):
            self._flags_fd = os.open(flags_path, os.O_RDONLY | os.O_CLOEXEC)
            self._count_fd = os.open(count_path, os.O_RDONLY | os.O_CLOEXEC)
            self._cgroup_fd = os.open(cgroup_path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the file descriptors back."""
        for fd in (self._flags_fd, self._count_fd, self._cgroup_fd):
            if fd >= 0:
                os.close(fd)
        self._flags_fd = self._count_fd = self._cgroup_fd = -1

    def flags(self, pfn: int) -> int | None:
        """The KPF_* bits of page frame ``pfn``, None when they cannot be read."""
        return self._number(self._flags_fd, pfn)

    def extent(self, pfn: int) -> tuple[int, int] | None:
        """First page frame and number of pages of the folio of ``pfn``, None when it is unknown."""
        flags = self.flags(pfn)
        if flags is None:
            return None
        if not flags & (COMPOUND_HEAD | COMPOUND_TAIL):
            return pfn, 1
        first = pfn & ~(_MAX_PAGES - 1)
        raw = os.pread(self._flags_fd, 8 * _MAX_PAGES, 8 * first)
        window = np.frombuffer(raw, dtype=np.uint64)
        heads = np.flatnonzero(window[: pfn - first + 1] & np.uint64(COMPOUND_HEAD))
        if not len(heads):
            return None
        head = int(heads[-1])
        others = np.flatnonzero((window[head + 1 :] & np.uint64(COMPOUND_TAIL)) == 0)
        pages = int(others[0]) + 1 if len(others) else len(window) - head
        # The folio may have changed between the two reads.
        return (first + head, pages) if pfn < first + head + pages else None

    def clearable(self, pfn: int, *, listed: bool) -> bool:
        """Return whether MADV_COLD clears the accessed bit of page ``pfn``: one mapping, and no special page.

        :param listed: ask for a page on an LRU list too, which MADV_COLD wants of pages of 4 KiB.
        """
        flags = self.flags(pfn)
        if flags is None or flags & (_HUGETLB | _ZERO_PAGE) or (listed and not flags & LRU):
            return False
        return self._number(self._count_fd, pfn) == 1

    def table(self, pfns: U64Array) -> FolioTable:
        """The folios that page frames are of.

        A folio that is larger than a huge page of 2 MiB counts as pages of their own.

        :raises OSError: EPERM page flags may not be read.
        """
        flags, heads, pages = self._many(self._flags_fd, pfns), pfns.copy(), np.ones(len(pfns), dtype=np.uint64)
        compound = np.flatnonzero(flags & np.uint64(COMPOUND_HEAD | COMPOUND_TAIL))
        if len(compound):
            size = np.uint64(_MAX_PAGES)
            windows, row = np.unique(pfns[compound] // size, return_inverse=True)
            row, within = row.reshape(-1), (pfns[compound] % size).astype(np.intp)
            frames = (windows[:, None] * size + np.arange(_MAX_PAGES, dtype=np.uint64)).ravel()
            around = self._many(self._flags_fd, frames).reshape(-1, _MAX_PAGES)
            first, last = _extents(around, row, within)
            # The folio may have changed between the two readings.
            known = (first >= 0) & (within < last)
            compound, row, first, last = compound[known], row[known], first[known], last[known]
            heads[compound] = windows[row] * size + first.astype(np.uint64)
            pages[compound] = (last - first).astype(np.uint64)
            # Some kernels show what is true of the whole folio for its first page only.
            flags[compound] |= around[row, first]
        return FolioTable(pfns, heads, pages, flags)

    def unreachable(self, pfns: U64Array) -> Mask:
        """Which page frames (any order, shape (n,)) no LRU list has and no process maps: they are not accessed.

        They are free, the kernel's own, or no memory.

        :raises OSError: EPERM page flags may not be read.
        """
        flags = self._many(self._flags_fd, pfns, beyond=_NO_PAGE)
        tails = np.flatnonzero(flags & np.uint64(COMPOUND_TAIL))
        if not self._tails_tell:
            # Some kernels show what is true of the whole folio for its first page only.
            self._tails_tell = bool((flags[tails] & np.uint64(LRU | _SLAB)).any())
        if not self._tails_tell:
            flags[tails] |= self.table(pfns[tails]).flags
        return (flags & np.uint64(LRU | _MAPPED | _ZERO_PAGE)) == 0

    def pages(self, pfns: U64Array) -> FolioTable:
        """As :meth:`table`, but of each page alone: much cheaper where folios are large.

        :raises OSError: EPERM page flags may not be read.
        """
        return FolioTable(pfns, pfns, np.ones(len(pfns), dtype=np.uint64), self._many(self._flags_fd, pfns))

    def cgroups(self, heads: U64Array) -> U64Array:
        """The inode numbers of the memory control groups that folios are charged to, 0 for none, shape (n,).

        :raises OSError: EPERM they may not be read, or the kernel has no such groups.
        """
        return self._many(self._cgroup_fd, heads)

    @staticmethod
    def _many(fd: int, pfns: U64Array, beyond: int = 0) -> U64Array:
        """The numbers of page frames ``pfns`` in any order; what lies close together is read at once.

        :param beyond: the value for page frames after the end of memory.
        """
        if fd < 0:
            raise _unreadable()
        if not len(pfns):
            return np.empty(0, dtype=np.uint64)
        frames, back = np.unique(pfns, return_inverse=True)
        begins = np.append(True, np.diff(frames) > _READ_ALONG)
        first = frames[begins]
        last = frames[np.append(begins[1:], True)]
        sizes = last - first + np.uint64(1)
        pread = os.pread
        places = zip((sizes * np.uint64(8)).tolist(), (first * np.uint64(8)).tolist(), strict=True)
        # The frames ascend: what is not there is all at the end.
        raw = b"".join([pread(fd, size, offset) for size, offset in places])
        raw += beyond.to_bytes(8, "little") * (int(sizes.sum()) - len(raw) // 8)
        run = np.cumsum(begins) - 1
        before = np.append(np.uint64(0), np.cumsum(sizes)[:-1])
        numbers: U64Array = np.frombuffer(raw, dtype=np.uint64)[frames - first[run] + before[run]]
        return numbers[back.reshape(-1)]

    @staticmethod
    def _number(fd: int, pfn: int) -> int | None:
        if fd < 0 or not pfn:
            return None
        raw = os.pread(fd, 8, 8 * pfn)
        return int.from_bytes(raw, "little") if len(raw) == 8 else None


def _extents(flags: U64Array, row: Indexes, within: Indexes) -> tuple[Indexes, Indexes]:
    """Where the folios of pages begin, -1 where that is not seen, and where they end.

    :param flags: of the pages of aligned windows, shape (m, _MAX_PAGES).
    :param row: the windows of the pages, shape (n,).
    :param within: their places in these, shape (n,).
    """
    at = np.arange(_MAX_PAGES)
    head = np.maximum.accumulate(np.where(flags & np.uint64(COMPOUND_HEAD), at, -1), axis=1)
    # For each page the first one after it that is no tail.
    end = np.where(flags & np.uint64(COMPOUND_TAIL), _MAX_PAGES, at)
    end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
    end = np.append(end[:, 1:], np.full((len(end), 1), _MAX_PAGES), axis=1)
    first = head[row, within]
    return first, end[row, first]


def _unreadable() -> OSError:
    """The reason why the files cannot be read; EPERM in any case."""
    for path, option in (("/proc/kpageflags", "CONFIG_PROC_PAGE_MONITOR"), ("/proc/kpagecgroup", "CONFIG_MEMCG")):
        if not os.path.exists(path):
            return OSError(errno.EPERM, f"{path} is missing; use a kernel with {option}=y")
    return refusal(
        "reading the state of pages from /proc/kpageflags and /proc/kpagecgroup needs",
        "reading these",
        "CAP_DAC_READ_SEARCH",
    )


@functools.cache
def shared_folios() -> Folios:
    """The one of this process, never closed; any thread may use it."""
    return Folios()
