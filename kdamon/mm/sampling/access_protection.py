# SPDX-License-Identifier: GPL-2.0-only
"""The mappings of one address space whose pages fault when they are read or written (userfaultfd RWP, Linux 7.3).

A part of :mod:`kdamon.mm.sampling.protection`, with its lock. Two things differ from write protection:

* A huge page of anonymous memory, or of hugetlbfs, is armed as a whole and stays whole. One of shared memory is not
  armed: the kernel would split it, also if it is given all of it (``mm/mprotect.c: pgtable_split_needed()``).
* The kernel has no call that arms a page only if it is no part of a huge page, as PAGEMAP_SCAN does for writes. So
  pages are looked at right before. Between the two calls, some tenths of a millisecond, a page can become part of a
  huge one only if khugepaged or MADV_COLLAPSE just gets there: then the kernel splits that one. A huge page that is
  split in between is noticed afterwards, and what was armed of it is released.
"""

from __future__ import annotations

import errno
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import Indexes, Mask, U64Array
from kdamon.kernel import PAGE_SIZE, PMD_SIZE
from kdamon.mm.ranges import NO_RANGES, inside
from kdamon.mm.sampling.fault_sample import State, States
from kdamon.mm.sampling.uffd import ACCESSED, HUGE, PRESENT, SWAPPED, Pages, Userfaultfd

__all__ = ["AccessProtection", "Armed", "keys"]

#: Pages that are looked at, and then armed, together.
_TOGETHER: Final = 128
_PAGE_SIZE: Final = np.uint64(PAGE_SIZE)
_HUGE_SIZES: Final = (PMD_SIZE, 1 << 30)


@frozen
class Armed:
    """The outcome of arming.

    :ivar states: of each page, shape (n,).
    :ivar ranges: what is armed, start and end, shape (k, 2).
    :ivar whole: which pages are armed as parts of huge ones, shape (n,).
    :ivar sizes: of these huge pages, bytes, shape (n,); elsewhere a page's.
    :ivar missing: pages that are there, in no such mapping any more, shape (m,).
    :ivar left_out: some are of huge pages that would be split.
    """

    states: States
    ranges: U64Array
    whole: Mask
    sizes: U64Array
    missing: U64Array
    left_out: bool


class AccessProtection:
    """Registers such mappings, and arms pages in them.

    :param userfaultfd: one that tracks reads; stays the caller's.
    :param table: the pages of its address space.
    """

    def __init__(self, userfaultfd: Userfaultfd, table: Pages) -> None:
        self._userfaultfd = userfaultfd
        self._table = table
        #: The registered mappings, in address order, shape (n, 2).
        self.ranges: U64Array = NO_RANGES
        # The size of huge pages that can be armed in each, a page's where none can.
        self._sizes: U64Array = np.empty(0, dtype=np.uint64)

    def keep(self, rows: Mask) -> None:
        """Go on with ``rows`` of :attr:`ranges` alone; the kernel keeps the others until they are unmapped."""
        self.ranges, self._sizes = self.ranges[rows], self._sizes[rows]

    def register(self, ranges: U64Array, files: Mask) -> tuple[Mask, Mask]:
        """Register mappings that are not registered yet, or may be others by now.

        :param ranges: theirs, shape (n, 2).
        :param files: which are of a file, be it one of shared memory, shape (n,).
        :returns: which are registered now, and which of these are hugetlbfs, each of shape (n,).
        :raises OSError: ESRCH the address space ended.
        """
        registered, hugetlb = self._userfaultfd.register_reads(ranges)
        sizes = np.where(files, _PAGE_SIZE, np.uint64(PMD_SIZE))
        for row in np.flatnonzero(hugetlb).tolist():
            sizes[row] = self._page_size(int(ranges[row, 0]))
        self.ranges = np.concatenate((self.ranges, ranges[registered]))
        self._sizes = np.concatenate((self._sizes, sizes[registered]))
        order = self.ranges[:, 0].argsort(kind="stable")
        self.ranges, self._sizes = self.ranges[order], self._sizes[order]
        return registered, hugetlb

    def _page_size(self, start: int) -> int:
        """The size of the pages of a hugetlbfs mapping: the kernel registers no part of one."""
        for size in _HUGE_SIZES:
            if self._userfaultfd.register_reads(np.array([[start, start + size]], dtype=np.uint64))[0].all():
                return size
        return PAGE_SIZE

    def whole(self, pages: U64Array) -> Mask:
        """Which of ``pages`` are in mappings whose huge pages can be armed, shape (n,)."""
        found = inside(self.ranges, pages)
        found[found] = self._sizes[self._rows(pages[found])] > _PAGE_SIZE
        return found

    def _rows(self, pages: U64Array) -> Indexes:
        return np.searchsorted(self.ranges[:, 0], pages, side="right") - 1

    def arm(self, pages: U64Array) -> Armed:
        """Arm ``pages``, all of them in :attr:`ranges`."""
        states = np.full(len(pages), State.UNKNOWN, dtype=np.uint8)
        sizes = self._sizes[self._rows(pages)]
        whole = np.zeros(len(pages), dtype=np.bool_)
        gone = np.zeros(len(pages), dtype=np.bool_)
        left_out = False
        ranges = [NO_RANGES]
        for at in range(0, len(pages), _TOGETHER):
            part = slice(at, at + _TOGETHER)
            # Right before they are armed.
            categories = self._table.categories(pages[part])
            present, huge = (categories & np.uint64(PRESENT)) != 0, (categories & np.uint64(HUGE)) != 0
            states[part][~present] = State.FREE
            states[part][(categories & np.uint64(SWAPPED)) != 0] = State.AWAY
            whole[part] = present & huge & (sizes[part] > _PAGE_SIZE)
            left_out |= bool((present & huge & ~whole[part]).any())
            wanted = np.flatnonzero(present & (~huge | whole[part])) + at
            widths = np.where(whole[wanted], sizes[wanted], _PAGE_SIZE)
            starts = pages[wanted] & ~(widths - np.uint64(1))
            leaves, which = _each_once(np.stack((starts, starts + widths), axis=1))
            results = self._userfaultfd.protect(leaves)
            ranges.append(leaves[results == 0])
            of_page = results[which]
            states[wanted[of_page == 0]] = State.GUARDED
            gone[wanted[of_page == -errno.ENOENT]] = True
        whole &= states == State.GUARDED
        armed = self._without_split(pages, states, whole, _each_once(np.concatenate(ranges))[0])
        return Armed(states, armed, whole, np.where(whole, sizes, _PAGE_SIZE), pages[gone], left_out)

    def _without_split(self, pages: U64Array, states: States, whole: Mask, ranges: U64Array) -> U64Array:
        """What of ``ranges`` stays armed: huge pages that were split just before they were armed are released."""
        rows = np.flatnonzero(ranges[:, 1] - ranges[:, 0] > _PAGE_SIZE)
        if not len(rows):
            return ranges
        split = ranges[rows[(self._table.categories(ranges[rows, 0]) & np.uint64(HUGE)) == 0]]
        if not len(split):
            return ranges
        self._release(split)
        lost = whole & inside(split, pages)
        states[lost], whole[lost] = State.UNKNOWN, False
        return ranges[~inside(split, ranges[:, 0])]

    def disarm(self, ranges: U64Array) -> U64Array:
        """Take the protection off what :meth:`arm` armed.

        :param ranges: each once, as it returned them, shape (k, 2).
        :returns: those in mappings that are others by now, in which nothing is known, shape (m, 2).
        """
        if not len(ranges):
            return NO_RANGES
        categories = self._table.categories(ranges[:, 0])
        accessed, huge = (categories & np.uint64(ACCESSED)) != 0, (categories & np.uint64(HUGE)) != 0
        small = ranges[:, 1] - ranges[:, 0] == _PAGE_SIZE
        # A page that is armed becomes no part of a huge one: such a one came from elsewhere, as by mremap().
        moved = ranges[small & huge & ~accessed]
        pages = ranges[small & ~huge & ~accessed & ((categories & np.uint64(PRESENT | SWAPPED)) != 0)]
        lost = pages[self._userfaultfd.unprotect(pages) == -errno.ENOENT]
        # One that was accessed and is whole has no protection left; parts of one that was split may have.
        return np.concatenate((moved, lost, self._release(ranges[~small & ~(huge & accessed)])))

    def _release(self, huge: U64Array) -> U64Array:
        """Take the protection off places of huge pages; returns those that are not all such a mapping's any more."""
        if not len(huge):
            return NO_RANGES
        lost = huge[self._userfaultfd.unprotect(huge) == -errno.ENOENT]
        for start, end in lost.tolist():
            pages = np.arange(start, end, PAGE_SIZE, dtype=np.uint64)
            pages = pages[self._table.guarded(pages)]
            self._userfaultfd.unprotect(np.stack((pages, pages + _PAGE_SIZE), axis=1))
        return lost


def keys(ranges: U64Array) -> U64Array:
    """A number for each of ``ranges``, shape (n,): pages and huge pages that begin at one address differ."""
    return ranges[:, 0] | (ranges[:, 1] - ranges[:, 0] > _PAGE_SIZE)


def _each_once(ranges: U64Array) -> tuple[U64Array, Indexes]:
    """``ranges`` ascending and each once, and where each of them is among these."""
    _, first, which = np.unique(keys(ranges), return_index=True, return_inverse=True)
    return ranges[first], which
