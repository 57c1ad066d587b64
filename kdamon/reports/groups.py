# SPDX-License-Identifier: GPL-2.0-only
"""Which CPUs, threads or nodes the reports of each region came from, in each aggregation interval.

The kdamond only keeps the columns of reports that were counted; the thread that takes the snapshot makes a table of
them, in one pass for an aggregation interval. That is about the regions before similar neighbours are merged: two
threads may write two halves of what is one region of the snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from attrs import evolve, field, fields, frozen

from kdamon.arrays import I32Array, I64Array, Indexes, Mask, Records, U64Array
from kdamon.kernel import PAGE_SIZE, ULONG_MAX

__all__ = [
    "COLUMNS",
    "GROUP_ADDRESS",
    "GROUP_REGION",
    "UNKNOWN_GROUP",
    "GroupTable",
    "GroupedInterval",
    "GroupedReports",
    "sum_addresses",
]

#: The column of reports for each property by which they can be grouped.
COLUMNS: Final = {"cpu": "cpu", "thread": "tid", "node": "node_id"}
#: The group of the reports that do not say which CPU, thread or node it was.
UNKNOWN_GROUP: Final = {"cpu": -1, "thread": 0, "node": -1}
#: One region that one group accessed in an aggregation interval: the group (of :data:`UNKNOWN_GROUP`: not known), the
#: region in bytes, in how many sampling intervals the group accessed it, the numbers of its reports and of the writes
#: among them, and the lowest and the highest address that it wrote (0 without a write).
GROUP_REGION: Final = np.dtype(
    [
        ("group", "<i4"),
        ("start", "<u8"),
        ("end", "<u8"),
        ("nr_accesses", "<f4"),
        ("nr_reports", "<u4"),
        ("nr_writes", "<u4"),
        ("first", "<u8"),
        ("last", "<u8"),
    ]
)
#: An address that a group wrote in a small region, and how often that was reported.
GROUP_ADDRESS: Final = np.dtype([("addr", "<u8"), ("group", "<i4"), ("nr_writes", "<u4")])
#: Size of regions whose addresses are kept one by one, bytes: sampled often enough to show the same place again.
_SMALL: Final = 16 * PAGE_SIZE
#: Reports that wait to be counted at most.
_WAITING: Final = 1 << 16


@frozen(eq=False)
class GroupTable:
    """The groups of the reports of one aggregation interval.

    :ivar regions: rows of :data:`GROUP_REGION`, by group and address; those of a group are disjoint.
    :ivar addresses: rows of :data:`GROUP_ADDRESS`, by address and group, each pair once.
    """

    regions: Records
    addresses: Records


#: Reports that are not counted yet: the sampling interval; region, group, whether it is a write, and address of each.
_Waiting = tuple[int, Indexes, I32Array, Mask, U64Array]


@frozen(eq=False)
class _Counts:
    """Numbers of reports by sampling interval, region and group, each of shape (n,); columns, as these are sorted fast.

    :ivar first: the lowest address that was written, the largest number for none.
    :ivar last: the highest one, 0 for none.
    """

    interval: I64Array
    row: I64Array
    group: I32Array
    nr_reports: I64Array
    nr_writes: I64Array
    first: U64Array
    last: U64Array

    @classmethod
    def joined(cls, parts: Sequence[_Counts]) -> _Counts:
        """Those of all ``parts``, at least one."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    def summed(self) -> tuple[_Counts, Indexes]:
        """With each interval, row and group once; and how often each was there, shape (m,)."""
        groups = np.sort(self.group)
        groups = groups[np.concatenate(([True], groups[1:] != groups[:-1]))]
        # One number for all three: sorting by one key takes a tenth of the time.
        key = (self.interval * (self.row.max(initial=0) + 1) + self.row) * len(groups)
        key += np.searchsorted(groups, self.group)
        order = np.argsort(key)
        key = key[order]
        at = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1]))[: len(key)])
        some = order[at]
        summed = _Counts(
            self.interval[some],
            self.row[some],
            self.group[some],
            np.add.reduceat(self.nr_reports[order], at),
            np.add.reduceat(self.nr_writes[order], at),
            np.minimum.reduceat(self.first[order], at),
            np.maximum.reduceat(self.last[order], at),
        )
        return summed, np.diff(at, append=len(key))


@frozen(eq=False)
class _Part:
    """Reports that were counted for the same regions.

    :ivar start: where the regions begin, shape (m,); the same array as long as they are the same regions.
    :ivar counts: each interval, region and group once; at most one element.
    :ivar waiting: reports that are not in ``counts`` yet.
    """

    start: U64Array
    end: U64Array
    counts: list[_Counts] = field(factory=list)
    waiting: list[_Waiting] = field(factory=list)

    def __len__(self) -> int:
        return sum(len(counts.row) for counts in self.counts)

    def count_waiting(self) -> Records:
        """Count what waits; returns rows of :data:`GROUP_ADDRESS`, each address as often as it was written."""
        if not self.waiting:
            return np.empty(0, GROUP_ADDRESS)
        interval = np.repeat([one[0] for one in self.waiting], [len(one[1]) for one in self.waiting])
        row, group, write, addr = (np.concatenate([one[at] for one in self.waiting]) for at in range(1, 5))
        self.waiting.clear()
        new = _Counts(
            interval,
            row,
            group,
            np.ones(len(row), np.int64),
            write.astype(np.int64),
            np.where(write, addr, np.uint64(ULONG_MAX)),
            np.where(write, addr, np.uint64(0)),
        )
        self.counts[:] = [_Counts.joined([*self.counts, new]).summed()[0]]
        small = (write & (self.end - self.start <= _SMALL)[row]).nonzero()[0]
        found = np.empty(len(small), GROUP_ADDRESS)
        found["addr"], found["group"], found["nr_writes"] = addr[small], group[small], 1
        return found


class GroupedInterval:
    """The reports of one aggregation interval, counted when :meth:`table` is called, by any one thread."""

    def __init__(self) -> None:
        self._nr_waiting = 0
        self._parts: list[_Part] = []
        self._addresses = np.empty(0, GROUP_ADDRESS)

    def add(self, bounds: tuple[U64Array, U64Array], waiting: _Waiting) -> None:
        """Take reports of regions with these starts and ends."""
        if not self._parts or self._parts[-1].start is not bounds[0] or self._parts[-1].end is not bounds[1]:
            self._parts.append(_Part(*bounds))
        part = self._parts[-1]
        part.waiting.append(waiting)
        self._nr_waiting += len(waiting[1])
        # As many as there are counts already, so that many reports take time in proportion to their number.
        if self._nr_waiting > max(_WAITING, len(part)):
            self._count_waiting()

    def table(self) -> GroupTable:
        """The table of the reports."""
        self._count_waiting()
        if not self._parts:
            return GroupTable(np.empty(0, GROUP_REGION), self._addresses)
        start, end, counts = _joined(self._parts)
        rows, nr_intervals = evolve(counts, interval=np.zeros(len(counts.row), np.int64)).summed()
        table = np.empty(len(rows.row), GROUP_REGION)
        table["start"], table["end"], table["nr_accesses"] = start[rows.row], end[rows.row], nr_intervals
        for name in ("group", "nr_reports", "nr_writes", "last"):
            table[name] = getattr(rows, name)
        table["first"] = np.where(rows.nr_writes > 0, rows.first, np.uint64(0))
        return GroupTable(table[np.lexsort((table["start"], table["group"]))], self._addresses)

    def _count_waiting(self) -> None:
        found = [part.count_waiting() for part in self._parts]
        self._nr_waiting = 0
        if any(map(len, found)):
            self._addresses = sum_addresses(np.concatenate((self._addresses, *found)))


class GroupedReports:
    """Collects the groups of a target's reports; one thread uses it.

    :param by: a key of :data:`COLUMNS`.
    """

    def __init__(self, by: str) -> None:
        self._column, self._unknown = COLUMNS[by], np.int32(UNKNOWN_GROUP[by])
        self._interval = 0
        self._interval_reports = GroupedInterval()

    def begin_interval(self) -> None:
        """The reports that follow are of the next sampling interval."""
        self._interval += 1

    def add(self, bounds: tuple[U64Array, U64Array], rows: Indexes, reports: Any, addr: U64Array) -> None:
        """Take reports that were counted for regions; the arrays must not be changed afterwards.

        :param bounds: start and end of the regions, shape (m,) each.
        :param rows: the region of each report, -1 for none, shape (n,).
        :param reports: columns or records, shape (n,).
        :param addr: the addresses of the reports in the unit of the regions, shape (n,).
        """
        groups, writes = np.maximum(reports[self._column], self._unknown), reports["write"]
        if len(rows) and rows.min() < 0:
            inside = (rows >= 0).nonzero()[0]
            rows, groups, writes, addr = rows[inside], groups[inside], writes[inside], addr[inside]
        if not len(rows):
            return
        self._interval_reports.add(bounds, (self._interval, rows, groups, writes, addr))

    def take(self) -> GroupedInterval:
        """All reports since the last call; costs next to nothing."""
        taken, self._interval_reports = self._interval_reports, GroupedInterval()
        self._interval = 0
        return taken


def sum_addresses(rows: Records) -> Records:
    """``rows`` of :data:`GROUP_ADDRESS` with each pair of address and group once, in their order."""
    if not len(rows):
        return rows
    rows = rows[np.lexsort((rows["group"], rows["addr"]))]
    new = (rows["addr"][1:] != rows["addr"][:-1]) | (rows["group"][1:] != rows["group"][:-1])
    first = np.flatnonzero(np.concatenate(([True], new)))
    summed = rows[first]
    summed["nr_writes"] = np.add.reduceat(rows["nr_writes"], first)
    return summed


def _joined(parts: list[_Part]) -> tuple[U64Array, U64Array, _Counts]:
    """All counts as of one list of regions, those of the last part.

    Regions can change within an aggregation interval, with the mappings. What was counted for an earlier region is
    counted for the last one that has its middle; or else for the part of the earlier one that is in no later region.
    """
    start, end = parts[-1].start, parts[-1].end
    if len(parts) == 1:
        return start, end, parts[0].counts[0]
    counts = list(parts[-1].counts)
    for part in reversed(parts[:-1]):
        (earlier,) = part.counts
        used, row = np.unique(earlier.row, return_inverse=True)
        lowest, highest = part.start[used], part.end[used]
        middle = lowest + (highest - lowest) // np.uint64(2)
        at = np.searchsorted(start, middle, side="right")
        # One more region on each side makes every index one.
        below, above = np.concatenate(([np.uint64(0)], end))[at], np.append(start, np.uint64(ULONG_MAX))[at]
        outside = middle >= below
        target = np.where(outside, len(start) + np.cumsum(outside) - 1, at - 1)
        counts.append(evolve(earlier, row=target[row]))
        start = np.concatenate((start, np.maximum(lowest, below)[outside]))
        end = np.concatenate((end, np.minimum(highest, above)[outside]))
        order = np.argsort(start, kind="stable")
        place = np.argsort(order, kind="stable")
        start, end = start[order], end[order]
        counts = [evolve(some, row=place[some.row]) for some in counts]
    return start, end, _Counts.joined(counts).summed()[0]
