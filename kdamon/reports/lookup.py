# SPDX-License-Identifier: GPL-2.0-only
"""Finds the regions of reported ranges, in batches: by a table of blocks, or by bisection near edges."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from kdamon.arrays import Indexes, Mask, U64Array
from kdamon.regions import Regions

__all__ = ["RegionLookup"]


#: Blocks for each region: so one address in about this many lies in a block that an edge goes through.
_BLOCKS_PER_REGION: Final = 64
#: So few ranges are found faster by bisection than in a table.
_FEW: Final = 256
#: More blocks than this leave the processor's cache.
_MAX_BLOCKS: Final = 1 << 17
#: A bisection takes the time of so many blocks of a table that is made.
_BLOCKS_PER_BISECTION: Final = 16
#: A gap as wide as this share of all between the first region and the last is left out of the tables.
_WIDE_GAP: Final = 16
_MAX_SPANS: Final = 4

_1: Final = np.uint64(1)


class _span:
    """Neighbouring regions without a wide gap, and for every block of their addresses the one region it lies in."""

    def __init__(self, start: U64Array, end: U64Array, first_row: int, nr_blocks: int) -> None:
        base = start[0]
        self.base, self.end = base, end[-1]
        self.shift = np.uint64(max(int(self.end - base - _1).bit_length() - (nr_blocks.bit_length() - 1), 0))
        self.block = _1 << self.shift
        # Blocks from the first one that begins in a region to the one that its end lies in are the region's alone.
        inner = (start - base) >> self.shift
        inner += (inner << self.shift) != start - base
        outer = np.maximum((end - base) >> self.shift, inner)
        borders = np.empty(2 * len(start) + 1, np.intp)
        borders[0:-1:2], borders[1::2] = inner, outer
        borders[-1] = max(((self.end - base - _1) >> self.shift) + _1, outer[-1])
        values = np.full(2 * len(start) + 1, -1, np.intp)
        values[1::2] = np.arange(first_row, first_row + len(start))
        self.rows = values.repeat(np.diff(borders, prepend=0))

    def find(self, addr: U64Array, size: U64Array) -> Indexes:
        """The row of each range that begins in this span, or -1 where only a bisection can find it."""
        offset = addr - self.base
        rows: Indexes = self.rows.take((offset >> self.shift).view(np.intp), mode="clip")
        # Bytes after the first one: in the block, and in the range. A size of 0 wraps around to the largest number.
        np.invert(offset, out=offset)
        offset &= self.block - _1
        ends_in_block = size - _1 <= offset
        if not ends_in_block.all():
            rows[~ends_in_block] = -1
        return rows


class RegionLookup:
    """Finds the rows of a region table that reported ranges lie in.

    Good as long as the table's ``start`` and ``end`` are the arrays that it was made for (:meth:`fits`).
    """

    def __init__(self, regions: Regions) -> None:
        self._start, self._end = regions.start, regions.end
        self._spans: list[_span] | None = None
        #: The cost of bisections so far, in blocks of a table.
        self._spent = 0

    def fits(self, regions: Regions) -> bool:
        """Return whether ``regions`` still has the ranges that this was made for."""
        return regions.start is self._start and regions.end is self._end

    def find(self, addr: U64Array, size: U64Array) -> tuple[Indexes, Mask | None]:
        """Find the region that contains each range wholly.

        :param addr: where the ranges begin, shape (n,).
        :param size: their sizes, shape (n,); one that wraps around is in no region.
        :returns: rows or -1, shape (n,), and which of the latter overlap a region nevertheless, None for none.
        """
        if not len(self._start) or not len(addr):
            return np.full(len(addr), -1, np.intp), None
        if len(addr) <= _FEW or not self._worth_a_table(len(addr)):
            return self._bisect(addr, size)
        rows = self._find_in_spans(addr, size)
        if rows.min() >= 0:
            return rows, None
        rest = (rows < 0).nonzero()[0]
        rows[rest], across_rest = self._bisect(addr.take(rest), size.take(rest))
        if across_rest is None:
            return rows, None
        across = np.zeros(len(addr), np.bool_)
        across[rest] = across_rest
        return rows, across

    def _worth_a_table(self, n: int) -> bool:
        """Return whether there are tables; made once bisections have cost as much as making them does."""
        if self._spans is None:
            self._spent += n * _BLOCKS_PER_BISECTION
            nr_blocks = min(1 << (len(self._start) * _BLOCKS_PER_REGION).bit_length(), _MAX_BLOCKS)
            if self._spent < nr_blocks:
                return False
            self._spans = self._make_spans(nr_blocks)
        return True

    def _make_spans(self, nr_blocks: int) -> list[_span]:
        start, end = self._start, self._end
        gaps = start[1:] - end[:-1]
        wide = (gaps > (end[-1] - start[0]) // np.uint64(_WIDE_GAP)).nonzero()[0]
        widest = np.sort(wide[np.argsort(gaps[wide])[-(_MAX_SPANS - 1) :]]) + 1
        cuts = [0, *widest.tolist(), len(start)]
        return [_span(start[a:b], end[a:b], a, nr_blocks) for a, b in pairwise(cuts)]

    def _find_in_spans(self, addr: U64Array, size: U64Array) -> Indexes:
        assert self._spans is not None
        low, high = addr.min(), addr.max()
        rows = None
        for span in self._spans:
            if span.base <= low and high < span.end:
                return span.find(addr, size)
            if rows is None:
                rows = np.full(len(addr), -1, np.intp)
            if low < span.end and span.base <= high:
                among = ((addr >= span.base) & (addr < span.end)).nonzero()[0]
                rows[among] = span.find(addr.take(among), size.take(among))
        assert rows is not None
        return rows

    def _bisect(self, addr: U64Array, size: U64Array) -> tuple[Indexes, Mask | None]:
        start, access_end = self._start, addr + size
        row: Indexes = start.searchsorted(addr, "right")
        row -= 1
        end = self._end.take(row, mode="clip")
        # A range that wraps around contains nothing: its end says nothing about where it lies.
        # (docs/deviations.md#a-range-that-wraps-around)
        begins_in = (row >= 0) & (addr < end)
        within = begins_in & (access_end >= addr) & (access_end <= end)
        if within.all():
            return row, None
        into_next = (access_end > start.take(row + 1, mode="clip")) | (access_end < addr)
        across = ~within & (begins_in | ((row + 1 < len(start)) & into_next))
        row[~within] = -1
        return row, across
