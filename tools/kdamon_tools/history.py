# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of a run of any length in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Final

import numpy as np
from attrs import evolve

from kdamon.arrays import F64Array, Records, U64Array, distinct
from kdamon.kernel import UINT_MAX, ULONG_MAX
from kdamon.reports.groups import GROUP_ADDRESS, GROUP_REGION, GroupTable
from kdamon_tools.snapshot import REGION, Snapshot

__all__ = ["MOST_ROWS", "MOST_SNAPSHOTS", "History", "merge_many", "merge_snapshots", "nr_rows"]

#: The default limits of a history.
MOST_SNAPSHOTS: Final = 4096
MOST_ROWS: Final = 1 << 17


def merge_snapshots(older: Snapshot, newer: Snapshot) -> Snapshot:
    """The mean of two neighbouring snapshots, weighted by the time of the aggregations that each represents.

    An address in only one of them keeps the values of that one. The result has at most as many regions as the larger of
    the two: neighbours that differ least are joined. It has the aggregation interval of the newer one.
    """
    weight_of = dict(zip((id(older), id(newer)), _weights((older, newer)), strict=True))
    tables = (older.regions, newer.regions)
    edges = distinct(np.concatenate([column for table in tables for column in (table["start"], table["end"])]))
    starts, ends = edges[:-1], edges[1:]
    pieces = np.zeros(len(starts), dtype=REGION)
    pieces["start"], pieces["end"] = starts, ends
    weights = np.zeros(len(starts))
    accesses, exact, unknown = np.zeros((3, len(starts)))
    for snapshot in (older, newer):
        table = snapshot.regions
        if not len(table):
            continue
        at = np.maximum(np.searchsorted(table["start"], starts, side="right"), 1) - 1
        inside = (table["start"][at] <= starts) & (ends <= table["end"][at])
        weight = inside * weight_of[id(snapshot)]
        weights += weight
        accesses += weight * table["nr_accesses"][at]
        unknown += weight * table["nr_unknown"][at]
        exact += weight * table["mean_accesses"][at]
        pieces["age"] = np.where(inside, _ages(snapshot, newer)[at], pieces["age"])
    known = weights > 0
    pieces["nr_accesses"][known] = accesses[known] / weights[known]
    pieces["mean_accesses"][known] = exact[known] / weights[known]
    pieces["nr_unknown"][known] = unknown[known] / weights[known]
    merged = _join_neighbours(pieces[known], max(len(older.regions), len(newer.regions)))
    groups = _merge_groups(older, newer)
    count = _count((older, newer))
    return Snapshot(older.began, newer.time, merged, count, groups, newer.aggr_us, newer.use, newer.residency)


def _weights(snapshots: Sequence[Snapshot]) -> F64Array:
    """How much each snapshot counts in a mean: its aggregations, in units of the interval of the last one."""
    merged = np.array([float(snapshot.merged) for snapshot in snapshots])
    intervals = np.array([float(snapshot.aggr_us) for snapshot in snapshots])
    # Without one it is that of the configuration, in all of them.
    return merged * intervals / intervals[-1] if intervals.all() else merged


def _count(snapshots: Sequence[Snapshot]) -> int:
    """The aggregations that all of them stand for, of the last one's interval."""
    return max(1, round(_weights(snapshots).sum()))


def _ages(snapshot: Snapshot, newer: Snapshot) -> U64Array:
    """The ages of the regions of ``snapshot`` in aggregation intervals of ``newer``, shape (n,)."""
    ages: U64Array = snapshot.regions["age"].astype(np.uint64)
    if snapshot.aggr_us in {newer.aggr_us, 0} or not newer.aggr_us:
        return ages
    return np.minimum(ages * np.uint64(snapshot.aggr_us) // np.uint64(newer.aggr_us), np.uint64(UINT_MAX))


def merge_many(snapshots: Sequence[Snapshot]) -> Snapshot:
    """The mean of neighbouring snapshots, one or more, as :func:`merge_snapshots` makes it of two; faster for many."""
    if len(snapshots) < 3 or any(snapshot.groups is not None for snapshot in snapshots):
        return reduce(merge_snapshots, snapshots)
    tables = [snapshot.regions for snapshot in snapshots]
    rows = np.concatenate(tables)
    last = snapshots[-1]
    weights = np.repeat(_weights(snapshots), [len(table) for table in tables])
    least = float(weights.min(initial=1.0))
    edges = distinct(np.concatenate([rows["start"], rows["end"]]))
    first, end = (np.searchsorted(edges, rows[name]) for name in ("start", "end"))

    def summed(values: F64Array) -> F64Array:
        steps = np.bincount(first, values, len(edges)) - np.bincount(end, values, len(edges))
        return np.cumsum(steps)[:-1]

    covered = summed(weights)
    known = covered > 0.5 * least
    pieces = np.zeros(max(0, len(edges) - 1), dtype=REGION)
    pieces["start"], pieces["end"] = edges[:-1], edges[1:]
    for name in set(REGION.names or ()) - {"start", "end", "age"}:
        # What is left of a sum of doubles is no access.
        sums = summed(weights * rows[name])
        pieces[name][known] = np.where(sums > 1e-6 * least, sums, 0.0)[known] / covered[known]
    for snapshot in snapshots[-2:]:
        # The newest age; that of memory which is gone is not worth more.
        table = snapshot.regions
        at = np.maximum(np.searchsorted(table["start"], edges[:-1], side="right"), 1) - 1
        if len(table):
            inside = (table["start"][at] <= edges[:-1]) & (edges[1:] <= table["end"][at])
            pieces["age"] = np.where(inside, _ages(snapshot, last)[at], pieces["age"])
    joined = _join_neighbours(pieces[known], max(map(len, tables)))
    whole = Snapshot(snapshots[0].began, last.time, joined, _count(snapshots), None, last.aggr_us)
    return evolve(whole, use=last.use, residency=last.residency)


def _merge_groups(older: Snapshot, newer: Snapshot) -> GroupTable | None:
    """The mean of the accesses of each group, which are none where a group has no row, and the sum of its reports.

    The reports of a region that is divided are in its first part. Single addresses are dropped.
    """
    if older.groups is None or newer.groups is None:
        return None
    tables = (older.groups.regions, newer.groups.regions)
    rows = np.concatenate(tables)
    of_each = _weights((older, newer))
    weights = np.repeat(of_each, [len(table) for table in tables])
    # Addresses of each group follow those of the one before: so all of them are one row of disjoint pieces.
    edges, groups = distinct(np.concatenate([rows["start"], rows["end"]])), distinct(rows["group"])
    base = np.searchsorted(groups, rows["group"]) * len(edges)
    bounds = distinct(np.concatenate([base + np.searchsorted(edges, rows[name]) for name in ("start", "end")]))
    first, end = (np.searchsorted(bounds, base + np.searchsorted(edges, rows[name])) for name in ("start", "end"))
    pieces = np.zeros(len(bounds), dtype=GROUP_REGION)
    pieces["group"], pieces["start"] = groups[bounds // max(1, len(edges))], edges[bounds % max(1, len(edges))]
    pieces["end"][:-1] = pieces["start"][1:]
    accesses = weights * rows["nr_accesses"] / of_each.sum()
    steps = np.bincount(first, accesses, len(bounds)) - np.bincount(end, accesses, len(bounds))
    pieces["nr_accesses"] = np.cumsum(steps)
    for name in ("nr_reports", "nr_writes"):
        pieces[name] = np.bincount(first, rows[name], len(bounds))
    pieces["first"] = ULONG_MAX
    wrote = rows["nr_writes"] > 0
    np.minimum.at(pieces["first"], first[wrote], rows["first"][wrote])
    np.maximum.at(pieces["last"], first[wrote], rows["last"][wrote])
    pieces["first"] *= pieces["nr_writes"] > 0
    covered = np.cumsum(np.bincount(first, minlength=len(bounds)) - np.bincount(end, minlength=len(bounds))) > 0
    joined = _join_neighbours(pieces[covered], max(map(len, tables)))
    return GroupTable(joined, np.empty(0, GROUP_ADDRESS))


#: How the values of neighbours become one.
_JOINED: Final = {
    "nr_reports": np.add,
    "nr_writes": np.add,
    "first": np.minimum,
    "last": np.maximum,
    "age": np.maximum,
}


def _join_neighbours(pieces: Records, limit: int) -> Records:
    """Join touching pieces of nearly equal counts, starting with equal ones, until at most ``limit`` are left."""
    tolerance = 0.0
    names = set(pieces.dtype.names or ())
    means = sorted({"nr_accesses", "nr_unknown"} & names)
    weighted = sorted({"mean_accesses"} & names | set(means))
    while len(pieces):
        touching = pieces["end"][:-1] == pieces["start"][1:]
        if "group" in names:
            touching &= pieces["group"][:-1] == pieces["group"][1:]
        steps = sum(np.abs(np.diff(pieces[name])) for name in means)
        joined = touching & (steps <= tolerance)
        # In a chain, a pass joins only every second pair: a gradual slope must not become one region.
        if tolerance:
            joined[1::2] = False
        if not joined.any() and tolerance > 2 * sum(float(pieces[name].max()) for name in means):
            return pieces
        first = np.flatnonzero(np.concatenate([[True], ~joined]))
        sizes = (pieces["end"] - pieces["start"]).astype(np.float64)
        total = np.add.reduceat(sizes, first)
        result = pieces[first].copy()
        result["end"] = pieces["end"][np.concatenate([first[1:] - 1, [len(pieces) - 1]])]
        for name in weighted:
            result[name] = np.add.reduceat(pieces[name] * sizes, first) / total
        for name in sorted(names & _JOINED.keys()):
            result[name] = _JOINED[name].reduceat(pieces[name], first)
        pieces = result
        if len(pieces) <= limit:
            return pieces
        tolerance = 2 * tolerance or 0.25
    return pieces


def nr_rows(snapshot: Snapshot) -> int:
    """The rows of its tables."""
    return len(snapshot.regions) + (0 if snapshot.groups is None else len(snapshot.groups.regions))


class History:
    """Keeps the course of a run; when it grows too long, neighbouring snapshots are merged.

    :param max_snapshots: maximum number of snapshots to keep, at least 2.
    :param max_rows: maximum number of regions, and regions of groups, to keep in all snapshots together.
    """

    def __init__(self, max_snapshots: int = MOST_SNAPSHOTS, max_rows: int = MOST_ROWS) -> None:
        self.snapshots: list[Snapshot] = []
        self._max_snapshots = max_snapshots
        self._max_rows = max_rows
        self._rows = 0
        #: Of each snapshot and the next one.
        self._spans: list[float] = []

    def add(self, snapshot: Snapshot) -> None:
        """Append ``snapshot``, which is newer than all others; of its groups only the regions are kept."""
        if snapshot.groups is not None:
            groups = GroupTable(snapshot.groups.regions, np.empty(0, GROUP_ADDRESS))
            snapshot = evolve(snapshot, groups=groups)
        self.snapshots.append(snapshot)
        self._rows += nr_rows(snapshot)
        if len(self.snapshots) > 1:
            self._spans.append(self._span(len(self.snapshots) - 2))
        while len(self.snapshots) > 2 and (len(self.snapshots) > self._max_snapshots or self._rows > self._max_rows):
            self._merge_one_pair()

    def _span(self, at: int) -> float:
        """Seconds that the snapshot ``at`` and the next one cover, with a pause between them."""
        # Times that differ by less than a microsecond are equally long.
        return round(self.snapshots[at + 1].time - self.snapshots[at].began, 6)

    def _merge_one_pair(self) -> None:
        """Merge the two neighbours that together cover the shortest time, the oldest of such pairs.

        A pause between them is part of that time, so that snapshots around a long one are merged last.

        One pair at a time: the monitor shares its interpreter with this, and a long pass would delay its samples.
        """
        at = self._spans.index(min(self._spans))
        older, newer = self.snapshots[at : at + 2]
        merged = merge_snapshots(older, newer)
        self.snapshots[at : at + 2] = [merged]
        self._rows += nr_rows(merged) - nr_rows(older) - nr_rows(newer)
        del self._spans[at]
        for pair in (at - 1, at):
            if 0 <= pair < len(self._spans):
                self._spans[pair] = self._span(pair)
