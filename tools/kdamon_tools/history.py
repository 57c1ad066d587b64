# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of a run of any length in bounded memory."""

from __future__ import annotations

from typing import Final

import numpy as np

from kdamon_tools.snapshot import REGION, RegionTable, Snapshot

__all__ = ["MOST_ROWS", "MOST_SNAPSHOTS", "History", "merge_snapshots"]

#: The default limits of a history.
MOST_SNAPSHOTS: Final = 4096
MOST_ROWS: Final = 1 << 17


def merge_snapshots(older: Snapshot, newer: Snapshot) -> Snapshot:
    """The mean of two neighbouring snapshots, weighted by the number of aggregations that each represents.

    An address in only one of them keeps the values of that one. The result has at most as many regions as the larger of
    the two: neighbours that differ least are joined.
    """
    tables = (older.regions, newer.regions)
    edges = np.unique(np.concatenate([column for table in tables for column in (table["start"], table["end"])]))
    starts, ends = edges[:-1], edges[1:]
    pieces = np.zeros(len(starts), dtype=REGION)
    pieces["start"], pieces["end"] = starts, ends
    weights = np.zeros(len(starts))
    accesses, unknown = np.zeros(len(starts)), np.zeros(len(starts))
    for snapshot in (older, newer):
        table = snapshot.regions
        if not len(table):
            continue
        at = np.maximum(np.searchsorted(table["start"], starts, side="right"), 1) - 1
        inside = (table["start"][at] <= starts) & (ends <= table["end"][at])
        weights += inside * snapshot.merged
        accesses += inside * snapshot.merged * table["nr_accesses"][at]
        unknown += inside * snapshot.merged * table["nr_unknown"][at]
        pieces["age"] = np.where(inside, table["age"][at], pieces["age"])
    known = weights > 0
    pieces["nr_accesses"][known] = accesses[known] / weights[known]
    pieces["nr_unknown"][known] = unknown[known] / weights[known]
    merged = _join_neighbours(pieces[known], max(len(older.regions), len(newer.regions)))
    return Snapshot(older.began, newer.time, merged, older.merged + newer.merged)


def _join_neighbours(pieces: RegionTable, limit: int) -> RegionTable:
    """Join touching pieces of nearly equal counts, starting with equal ones, until at most ``limit`` are left."""
    tolerance = 0.0
    while len(pieces):
        touching = pieces["end"][:-1] == pieces["start"][1:]
        steps = np.abs(np.diff(pieces["nr_accesses"])) + np.abs(np.diff(pieces["nr_unknown"]))
        joined = touching & (steps <= tolerance)
        # In a chain, a pass joins only every second pair: a gradual slope must not become one region.
        if tolerance:
            joined[1::2] = False
        if not joined.any() and tolerance > 2 * float(pieces["nr_accesses"].max() + pieces["nr_unknown"].max()):
            return pieces
        first = np.flatnonzero(np.concatenate([[True], ~joined]))
        sizes = (pieces["end"] - pieces["start"]).astype(np.float64)
        total = np.add.reduceat(sizes, first)
        result = pieces[first].copy()
        result["end"] = pieces["end"][np.concatenate([first[1:] - 1, [len(pieces) - 1]])]
        for name in ("nr_accesses", "nr_unknown"):
            result[name] = np.add.reduceat(pieces[name] * sizes, first) / total
        result["age"] = np.maximum.reduceat(pieces["age"], first)
        pieces = result
        if len(pieces) <= limit:
            return pieces
        tolerance = 2 * tolerance or 0.25
    return pieces


class History:
    """Keeps the course of a run; when it grows too long, neighbouring snapshots are merged.

    :param max_snapshots: maximum number of snapshots to keep, at least 2.
    :param max_rows: maximum number of regions to keep in all snapshots together.
    """

    def __init__(self, max_snapshots: int = MOST_SNAPSHOTS, max_rows: int = MOST_ROWS) -> None:
        self.snapshots: list[Snapshot] = []
        self._max_snapshots = max_snapshots
        self._max_rows = max_rows
        self._rows = 0
        #: Of each snapshot and the next one.
        self._spans: list[float] = []

    def add(self, snapshot: Snapshot) -> None:
        """Append ``snapshot``, which is newer than all others."""
        self.snapshots.append(snapshot)
        self._rows += len(snapshot.regions)
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
        self._rows += len(merged.regions) - len(older.regions) - len(newer.regions)
        del self._spans[at]
        for pair in (at - 1, at):
            if 0 <= pair < len(self._spans):
                self._spans[pair] = self._span(pair)
