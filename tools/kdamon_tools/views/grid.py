# SPDX-License-Identifier: GPL-2.0-only
"""Address x time: how often each range was accessed in each span of time. All heatmaps draw this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import F64Array, Mask, U64Array
from kdamon_tools.snapshot import Config, Recording, Snapshot
from kdamon_tools.views.measures import aggr_seconds, shares_of, weight_of

__all__ = ["NEGLIGIBLE", "Columns", "Grid", "bytes_in", "columns_of", "grid_of"]

#: Below this share of the sampling intervals, memory is drawn as not accessed.
NEGLIGIBLE: Final = 0.01
#: Steps of a share, where it is a part of an integer.
_SHARE_STEPS: Final = 1 << 20


@frozen(eq=False)
class Columns:
    """Equally long spans of time, and the snapshots of each.

    :ivar edges: CLOCK_MONOTONIC seconds at which they begin, and the end of the last one, shape (n + 1,).
    :ivar snapshots: those of each column; none where nothing was sampled.
    """

    edges: F64Array
    snapshots: list[list[Snapshot]]

    def __len__(self) -> int:
        return len(self.snapshots)


@frozen(eq=False)
class Grid:
    """The accesses in ``rows`` of addresses and columns of time; arrays have the shape (rows, columns).

    Sums, so that columns can be joined: :meth:`joined`.

    :ivar rows: start and end (exclusive) of each row, bytes, shape (rows, 2).
    :ivar covered: how long the row was monitored, as :func:`weight_of` counts, each times its monitored bytes.
    :ivar unknown: the same of bytes that were mostly unknown.
    :ivar hottest: sum over this time of the share, 0 to 1, of the hottest known region in the row.
    :ivar known: how long there was a known region.
    :ivar age: the age, seconds, of the hottest known region at the column's end; -1 without one.
    """

    rows: U64Array
    covered: F64Array
    unknown: F64Array
    hottest: F64Array
    known: F64Array
    age: F64Array

    @property
    def shares(self) -> F64Array:
        """The share, 0 to 1, of the sampling intervals in which the hottest part of each row was accessed."""
        return self.hottest / np.maximum(self.known, 1)

    @property
    def absent(self) -> Mask:
        """Where nothing was monitored."""
        return self.covered <= 0

    @property
    def mostly_unknown(self) -> Mask:
        """Where most samples could not be taken, and no access was seen."""
        return ~self.absent & (self.shares < NEGLIGIBLE) & (self.unknown > 0.5 * self.covered)

    def joined(self, factor: int) -> Grid:
        """The same with ``factor`` columns in one; the last one may have fewer."""
        starts = np.arange(0, self.covered.shape[1], factor)
        parts = (self.covered, self.unknown, self.hottest, self.known)
        covered, unknown, hottest, known = (np.add.reduceat(part, starts, axis=1) for part in parts)
        last = np.minimum(starts + factor, self.age.shape[1]) - 1
        return Grid(self.rows, covered, unknown, hottest, known, self.age[:, last])


def columns_of(recording: Recording, room: int) -> Columns:
    """At most ``room`` columns, each with the snapshots whose middle it contains, else the one that contains its own.

    The number of columns is that of snapshots without pauses, if there is room for them.
    """
    snapshots = recording.snapshots
    began = np.array([snapshot.began for snapshot in snapshots])
    ended = np.array([snapshot.time for snapshot in snapshots])
    start, end = min(recording.started, began[0]), max(recording.ended, ended[-1])
    usual = max(float(np.median(ended - began)), (end - start) / room)
    count = max(1, round((end - start) / usual)) if usual else 1
    edges = np.linspace(start, end, count + 1)
    columns: list[list[Snapshot]] = [[] for _ in range(count)]
    for snapshot, column in zip(
        snapshots, np.searchsorted(edges[1:-1], (began + ended) / 2, side="right"), strict=True
    ):
        columns[column].append(snapshot)
    for column, middle in enumerate((edges[:-1] + edges[1:]) / 2):
        around = int(np.searchsorted(ended, middle))
        if not columns[column] and around < len(snapshots) and began[around] <= middle:
            columns[column] = [snapshots[around]]
    return Columns(edges, columns)


def grid_of(columns: Sequence[Sequence[Snapshot]], rows: U64Array, config: Config) -> Grid:
    """The accesses in each of ``rows``, ascending and disjoint, shape (n, 2), in each of ``columns``."""
    sums = np.zeros((4, len(rows), len(columns)))
    ages = np.full((len(rows), len(columns)), -1.0)
    for column, snapshots in enumerate(columns):
        for snapshot in snapshots:
            if len(snapshot.regions):
                values, age = _measure(snapshot, rows, config)
                sums[:, :, column] += weight_of(snapshot, config) * values
                ages[:, column] = age
    return Grid(rows, sums[0], sums[1], sums[2], sums[3], ages)


def _measure(snapshot: Snapshot, rows: U64Array, config: Config) -> tuple[F64Array, F64Array]:
    """The values of ``snapshot``, which has regions, for each of ``rows``, shape (4, n), and the ages.

    Values: covered bytes; mostly unknown bytes; the share, 0 to 1, of sampling intervals in which the hottest known
    region was accessed; and 1 where there is a known region.
    """
    regions = snapshot.regions
    known = regions["nr_unknown"] <= 0.5 * config.max_nr_accesses
    shares = shares_of(snapshot, config)
    # Share and age in one number: the maximum is the age of the hottest region. -1 is unknown, as is the region that
    # is added to make every end an index.
    both = np.rint(shares * _SHARE_STEPS).astype(np.int64) << 32 | regions["age"]
    both = np.append(np.where(known, both, -1), -1)
    first = np.searchsorted(regions["end"], rows[:, 0], side="right")
    end = np.searchsorted(regions["start"], rows[:, 1], side="left")
    hottest = np.maximum.reduceat(both, np.stack([first, end], axis=1).ravel())[::2]
    sampled = (first < end) & (hottest >= 0)
    covered = bytes_in(snapshot, rows, np.ones(len(regions)))
    unknown = bytes_in(snapshot, rows, (~known).astype(np.float64))
    share = np.where(sampled, (hottest >> 32) / _SHARE_STEPS, 0.0)
    age = np.where(sampled, (hottest & 0xFFFFFFFF) * aggr_seconds(snapshot, config), -1.0)
    return np.stack([covered, unknown, share, sampled]), age


def bytes_in(snapshot: Snapshot, rows: U64Array, factors: F64Array) -> F64Array:
    """Bytes of the regions of ``snapshot`` in each of ``rows``, each times its region's factor, shape (n,).

    :param rows: start and end of each, the first one with the lowest start, shape (n, 2).
    :param factors: one for each region.
    """
    regions = snapshot.regions
    # Relative to the first row: addresses near 2**64 leave a double no room for pages.
    base = rows[0, 0]
    points = np.empty(2 * len(regions))
    points[0::2] = (regions["start"] - base).view(np.int64)
    points[1::2] = (regions["end"] - base).view(np.int64)
    sums = np.cumsum(snapshot.sizes * factors)
    integral = np.empty(2 * len(regions))
    integral[0], integral[1::2], integral[2::2] = 0, sums, sums[:-1]
    at_edges = np.interp((rows - base).astype(np.float64), points, integral)
    return at_edges[:, 1] - at_edges[:, 0]
