# SPDX-License-Identifier: GPL-2.0-only
"""The accesses at each address over a whole recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import F64Array, Indexes, U64Array, distinct
from kdamon_tools.snapshot import Config, Snapshot
from kdamon_tools.views.measures import weight_of

__all__ = ["Profile", "profile_of", "swept"]

#: Minimum number of aggregations in which memory was hot: a single one may come from a region that is being split.
_SOME_TIME: Final = 3
#: Maximum number of time spans that a run is divided into, about the number of columns of a picture.
_MOST_TIMES: Final = 64


@frozen(eq=False)
class Profile:
    """The accesses at each address over a whole recording: piece i is [edges[i], edges[i + 1]).

    :ivar covered: how long it was monitored, as :func:`kdamon_tools.views.regions.weight_of` counts.
    :ivar accesses: sum of its accesses, each times that of its snapshot.
    :ivar unknown: the same of its unknown samples.
    :ivar peak: the share of the sampling intervals in which it was accessed while it was hottest, 0 to 1.
    """

    edges: U64Array
    covered: F64Array
    accesses: F64Array
    unknown: F64Array
    peak: F64Array

    @property
    def sizes(self) -> F64Array:
        """Bytes of each piece, shape (n,)."""
        return np.diff(self.edges).astype(np.float64)


def profile_of(snapshots: list[Snapshot], config: Config) -> Profile:
    """Sum up all snapshots per address, by sweeps over the edges of all regions; a part of the time after the other."""
    merged = np.array([float(snapshot.merged) for snapshot in snapshots])
    of_each = np.array([weight_of(snapshot, config) for snapshot in snapshots])
    tables = [snapshot.regions for snapshot in snapshots]
    parts = _times(merged)
    edges = np.empty(0, np.uint64)
    for first, end in parts:
        of_time = tables[first:end]
        edges = distinct(np.concatenate([edges, *(rows[name] for rows in of_time for name in ("start", "end"))]))
    covered, accesses, unknown, peak = np.zeros((4, max(0, len(edges) - 1)))
    for first, end in parts:
        rows = np.concatenate(tables[first:end])
        weights = np.repeat(of_each[first:end], [len(table) for table in tables[first:end]])
        borders = [np.searchsorted(edges, rows[name]) for name in ("start", "end")]
        here = swept(borders, weights * rows["mean_accesses"], len(edges))
        accesses += here
        np.maximum(peak, here / (config.max_nr_accesses * of_each[first:end].sum()), out=peak)
        covered += swept(borders, weights, len(edges))
        unknown += swept(borders, weights * rows["nr_unknown"], len(edges))
    return Profile(edges, covered, accesses, unknown, np.minimum(peak, 1.0))


def swept(borders: Sequence[Indexes], values: F64Array, nr_edges: int) -> F64Array:
    """Sum of ``values``, one of each row, at each piece.

    :param borders: the edges at which the rows begin and end, shape (n,) each.
    """
    steps = np.bincount(borders[0], values, nr_edges) - np.bincount(borders[1], values, nr_edges)
    return np.maximum(np.cumsum(steps)[:-1], 0)


def _times(merged: F64Array) -> list[tuple[int, int]]:
    """Groups of neighbouring snapshots, first and end (exclusive), that cover about equally long times."""
    after = np.cumsum(merged)
    count = int(np.clip(after[-1] // _SOME_TIME, 1, _MOST_TIMES))
    of_each = np.minimum((after - merged / 2) * count // after[-1], count - 1).astype(int)
    starts = np.flatnonzero(np.diff(of_each, prepend=-1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(merged)], strict=True))
