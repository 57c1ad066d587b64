# SPDX-License-Identifier: GPL-2.0-only
"""Finds memory that several CPUs, threads or nodes write: leads to false sharing and to a better placement.

What counts is a region that several groups wrote in the same aggregation interval, and of it the part in which their
addresses overlap: two threads that write two halves of a region share nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import F64Array, I64Array, Indexes, Records, U64Array, distinct
from kdamon.kernel import PAGE_SHIFT, PAGE_SIZE, ULONG_MAX
from kdamon.reports.groups import GROUP_ADDRESS, GroupTable, sum_addresses

__all__ = ["MOST_RANGES", "SharedRange", "SharedWrites", "Writer"]

#: Ranges that are kept in the end.
MOST_RANGES: Final = 100
#: Rows of evidence, and written addresses, that are kept during a run.
_MOST_ROWS: Final = 1 << 16
#: The edges of evidence are rounded to this part of its size, so that the same memory gives the same rows.
_ROUNDED: Final = 3
#: Neighbours belong together if they are written about equally often, up to a factor of 2 to the power of this.
_SIMILAR: Final = 2
#: Writes by others than the main writer that make a range worth a line: a single one may be of a thread that moved.
_LEAST: Final = 2
#: Bytes of a cache line, as a power of two, and of what is written at once.
_LINE_SHIFT: Final = 6
_WORD_SHIFT: Final = 3

_IN_PAGE: Final = np.uint64(PAGE_SIZE - 1)

#: A range and the writes of one group in it.
_EVIDENCE: Final = np.dtype([("start", np.uint64), ("end", np.uint64), ("group", np.int64), ("nr_writes", np.int64)])


@frozen
class Writer:
    """A group that writes a range; ``number`` is None if it is not known which one."""

    number: int | None
    nr_writes: int


@frozen
class SharedRange:
    """A range that several groups write.

    :ivar nr_writes: writes that were seen there while it was shared; where ranges overlap in time, an estimate.
    :ivar writers: those with most writes first.
    :ivar lines: cache lines in which writes were seen; None where the region is too large to see a place again.
    :ivar shared_lines: those of them that several groups wrote.
    :ivar apart: those of these in which no two groups wrote the same eight bytes: false sharing, as far as was seen.
    """

    start: int
    end: int
    nr_writes: int
    writers: tuple[Writer, ...]
    lines: int | None = None
    shared_lines: int | None = None
    apart: int | None = None


class SharedWrites:
    """Collects evidence of shared memory in bounded room; where that is full, the weakest evidence is dropped."""

    def __init__(self) -> None:
        self._evidence = np.empty(0, _EVIDENCE)
        self._addresses = np.empty(0, GROUP_ADDRESS)
        self._waiting: list[Records] = []
        self._waiting_addresses: list[Records] = []

    def add(self, table: GroupTable) -> None:
        """Add the table of one aggregation interval."""
        found = _evidence_of(table.regions)
        if len(found):
            self._waiting.append(found)
        if len(table.addresses):
            self._waiting_addresses.append(table.addresses)
        if sum(map(len, self._waiting)) + sum(map(len, self._waiting_addresses)) > _MOST_ROWS:
            self._settle()

    def _settle(self) -> None:
        self._evidence = _strongest(_summed(np.concatenate([self._evidence, *self._waiting])), ("start", "end"))
        self._addresses = _strongest(
            sum_addresses(np.concatenate([self._addresses, *self._waiting_addresses])), ("addr",)
        )
        self._waiting, self._waiting_addresses = [], []

    def ranges(self, numbers: Mapping[int, int | None]) -> tuple[SharedRange, ...]:
        """The ranges with most writes by others than their main writer, those with most first.

        :param numbers: the number of each group as it is shown.
        """
        self._settle()
        rows = self._evidence
        if not len(rows):
            return ()
        starts, ends = _similar_pieces(rows)
        of_range, group, writes = _divided(rows, starts, ends)
        first = np.flatnonzero(np.concatenate(([True], of_range[1:] != of_range[:-1])))
        total = np.add.reduceat(writes, first)
        others = total - np.maximum.reduceat(writes, first)
        order = np.lexsort((starts[of_range[first]], -total, -others))
        bounds = np.append(first, len(of_range))
        found = []
        for at in order[others[order] >= _LEAST - 0.5][:MOST_RANGES].tolist():
            here = slice(bounds[at], bounds[at + 1])
            pairs = sorted(zip((-writes[here].round()).tolist(), group[here].tolist(), strict=True))
            writers = tuple(Writer(numbers[number], -int(count)) for count, number in pairs if count)
            start, end = int(starts[of_range[bounds[at]]]), int(ends[of_range[bounds[at]]])
            found.append(SharedRange(start, end, sum(w.nr_writes for w in writers), writers, *self._lines(start, end)))
        return tuple(found)

    def _lines(self, start: int, end: int) -> tuple[int | None, int | None, int | None]:
        """See :class:`SharedRange`: lines, shared_lines, apart."""
        first, stop = np.searchsorted(self._addresses["addr"], np.array([start, end], np.uint64))
        here = self._addresses[first:stop]
        if not len(here):
            return None, None, None
        groups = here["group"].astype(np.int64)
        line = _groups_each(here["addr"] >> np.uint64(_LINE_SHIFT), groups)
        word = _groups_each(here["addr"] >> np.uint64(_WORD_SHIFT), groups)
        shared = {number for number, count in line.items() if count > 1}
        together = {number >> _LINE_SHIFT - _WORD_SHIFT for number, count in word.items() if count > 1}
        return len(line), len(shared), len(shared - together)


def _groups_each(places: U64Array, groups: I64Array) -> dict[int, int]:
    """How many groups there are at each place."""
    pairs = set(zip(places.tolist(), groups.tolist(), strict=True))
    counts: dict[int, int] = {}
    for place, _ in pairs:
        counts[place] = counts.get(place, 0) + 1
    return counts


def _evidence_of(regions: Records) -> Records:
    """The parts of regions in which several groups wrote, each group's writes in a row."""
    rows = regions[regions["nr_writes"] > 0]
    rows = rows[np.argsort(rows["start"], kind="stable")]
    new = np.concatenate(([True], rows["start"][1:] != rows["start"][:-1]))[: len(rows)]
    counts = np.diff(np.flatnonzero(new), append=len(rows))
    shared = np.repeat(counts > 1, counts)
    rows, counts = rows[shared], counts[counts > 1]
    if not len(rows):
        return np.empty(0, _EVIDENCE)
    region = np.repeat(np.arange(len(counts)), counts)
    # Groups that write different places of a page share it, too.
    first, last = rows["first"] & ~_IN_PAGE, rows["last"] | _IN_PAGE
    low, high = _overlap(first, last, region, len(counts))
    start, end = _rounded(low, np.maximum(low, high))
    inside = (low <= high)[region] & (first <= high[region]) & (last >= low[region])
    found = np.empty(int(inside.sum()), _EVIDENCE)
    found["start"], found["end"] = start[region][inside], end[region][inside]
    found["group"], found["nr_writes"] = rows["group"][inside], rows["nr_writes"][inside]
    return found


def _overlap(first: U64Array, last: U64Array, region: Indexes, count: int) -> tuple[U64Array, U64Array]:
    """The lowest and the highest address of each region that lie between the bounds of two groups; low > high for none.

    :param first: the lower bound of each row, shape (n,).
    :param last: the upper one.
    :param region: ascending numbers below ``count``, each there.
    """
    at = np.concatenate((first, last))
    begins = np.repeat([True, False], len(first))
    regions = np.concatenate((region, region))
    # Bounds that are equal overlap.
    order = np.lexsort((~begins, at, regions))
    at, begins, regions = at[order], begins[order], regions[order]
    after = np.cumsum(np.where(begins, 1, -1))
    low, high = np.full(count, ULONG_MAX, np.uint64), np.zeros(count, np.uint64)
    reaches, leaves = begins & (after == 2), ~begins & (after == 1)
    np.minimum.at(low, regions[reaches], at[reaches])
    np.maximum.at(high, regions[leaves], at[leaves])
    return low, high


def _rounded(low: U64Array, high: U64Array) -> tuple[U64Array, U64Array]:
    """Whole pages around addresses from ``low`` to ``high``; of many pages to a part of their size."""
    pages = (high >> np.uint64(PAGE_SHIFT)) - (low >> np.uint64(PAGE_SHIFT)) + np.uint64(1)
    shift = np.maximum(np.log2(np.maximum(pages.astype(np.float64), 1.0)).astype(np.int64) - _ROUNDED, 0)
    unit = np.uint64(PAGE_SIZE) << shift.astype(np.uint64)
    return low - low % unit, high - high % unit + unit


def _summed(rows: Records) -> Records:
    """``rows`` of evidence with each range and group once."""
    if not len(rows):
        return rows
    rows = rows[np.lexsort((rows["group"], rows["end"], rows["start"]))]
    same = np.ones(len(rows) - 1, np.bool_)
    for name in ("start", "end", "group"):
        same &= rows[name][1:] == rows[name][:-1]
    first = np.flatnonzero(np.concatenate(([True], ~same)))
    summed = rows[first]
    summed["nr_writes"] = np.add.reduceat(rows["nr_writes"], first)
    return summed


def _strongest(rows: Records, names: tuple[str, ...]) -> Records:
    """At most half of the room: what has most writes, in its order.

    :param rows: in an order in which those of the same ``names`` follow each other; they stay or go together.
    """
    if len(rows) <= _MOST_ROWS:
        return rows
    new = np.zeros(len(rows) - 1, np.bool_)
    for name in names:
        new |= rows[name][1:] != rows[name][:-1]
    first = np.flatnonzero(np.concatenate(([True], new)))
    counts = np.diff(first, append=len(rows))
    order = np.argsort(-np.add.reduceat(rows["nr_writes"].astype(np.int64), first), kind="stable")
    kept = np.zeros(len(first), np.bool_)
    kept[order[np.cumsum(counts[order]) <= _MOST_ROWS // 2]] = True
    return rows[np.repeat(kept, counts)]


def _similar_pieces(rows: Records) -> tuple[U64Array, U64Array]:
    """The written addresses, cut where there is a gap, or many more writes for each byte than before or after."""
    edges = distinct(np.concatenate([rows["start"], rows["end"]]))
    density = rows["nr_writes"] / (rows["end"] - rows["start"])
    steps = np.bincount(np.searchsorted(edges, rows["start"]), density, len(edges))
    steps -= np.bincount(np.searchsorted(edges, rows["end"]), density, len(edges))
    covers = np.bincount(np.searchsorted(edges, rows["start"]), minlength=len(edges))
    covers -= np.bincount(np.searchsorted(edges, rows["end"]), minlength=len(edges))
    written = np.cumsum(covers)[:-1] > 0
    level: F64Array = np.log2(np.maximum(np.cumsum(steps)[:-1], 1e-18))
    starts, ends, level = edges[:-1][written], edges[1:][written], level[written]
    cut = (starts[1:] != ends[:-1]) | (np.abs(np.diff(level)) > _SIMILAR)
    first = np.flatnonzero(np.concatenate(([True], cut)))
    return starts[first], ends[np.append(first[1:], len(starts)) - 1]


def _divided(rows: Records, starts: U64Array, ends: U64Array) -> tuple[I64Array, I64Array, F64Array]:
    """The writes of ``rows`` in each of some disjoint ranges: range, group and writes, by range; each pair once."""
    first = np.searchsorted(ends, rows["start"], side="right")
    counts = np.searchsorted(starts, rows["end"], side="left") - first
    row = np.repeat(np.arange(len(rows)), counts)
    of_range = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + first[row]
    size = np.minimum(rows["end"][row], ends[of_range]) - np.maximum(rows["start"][row], starts[of_range])
    writes = rows["nr_writes"][row] * (size / (rows["end"] - rows["start"])[row])
    groups, group = np.unique(rows["group"], return_inverse=True)
    pairs, at = np.unique(of_range * len(groups) + group[row], return_inverse=True)
    return pairs // len(groups), groups[pairs % len(groups)], np.bincount(at, writes).astype(np.float64)
