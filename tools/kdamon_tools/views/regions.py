# SPDX-License-Identifier: GPL-2.0-only
"""Which regions are hot, warm, cold or unknown, what lies there, and all of them at one time as a table."""

from __future__ import annotations

from typing import Final

import numpy as np

from kdamon.arrays import F64Array, Indexes, Mask, U64Array
from kdamon.names.table import NameTable
from kdamon_tools.snapshot import Config, Recording, Snapshot
from kdamon_tools.units import format_seconds
from kdamon_tools.views.grid import bytes_in
from kdamon_tools.views.measures import ages_of, shares_of
from kdamon_tools.views.table import Column, Kind, Report, Table

__all__ = [
    "HOT",
    "NO_NAME",
    "Named",
    "idle_seconds",
    "kinds_of",
    "regions_view",
    "unknown_in",
]

#: Memory that was accessed in at least this share of the sampling intervals is hot.
HOT: Final = 0.5
#: The name of memory that has none.
NO_NAME: Final = "[unnamed]"


def unknown_in(snapshot: Snapshot, config: Config) -> Mask:
    """Which regions are unknown: most of their samples could not be taken, and too few to judge from were.

    A region that was seen accessed is known to be in use.
    """
    regions = snapshot.regions
    return (regions["nr_unknown"] > 0.5 * config.max_nr_accesses) & (regions["nr_accesses"] < 1)


def kinds_of(snapshot: Snapshot, config: Config) -> F64Array:
    """1 where a region is of a kind, else 0; each is of one. Rows: hot, warm, cold, unknown; shape (4, n)."""
    unknown = unknown_in(snapshot, config)
    hot = (shares_of(snapshot, config) >= HOT) & ~unknown
    warm = (snapshot.regions["nr_accesses"] >= 1) & ~hot & ~unknown
    return np.stack([hot, warm, ~(hot | warm | unknown), unknown]).astype(np.float64)


def idle_seconds(snapshot: Snapshot, config: Config) -> F64Array:
    """For how long each region has not been accessed, seconds; 0: it is in use; NaN: unknown; shape (n,).

    This is DAMON's age of a region without accesses: a lower bound, since a change of its neighbours makes it young.
    """
    idle = np.where(snapshot.regions["nr_accesses"] >= 1, 0.0, ages_of(snapshot, config))
    return np.where(unknown_in(snapshot, config), np.nan, idle)


class Named:
    """Adds up regions by name.

    :param table: None: nothing has a name.
    :ivar names: all names, raw; the last one is :data:`NO_NAME`.
    """

    def __init__(self, table: NameTable | None) -> None:
        rows = np.empty(0, [("start", "<u8"), ("end", "<u8"), ("name", "<i4")]) if table is None else table.rows
        used, self._which = np.unique(rows["name"], return_inverse=True)
        self.names = [*([] if table is None else (table.names[number] for number in used)), NO_NAME]
        self._rows: U64Array = np.stack([rows["start"], rows["end"]], axis=1)

    def sums(self, snapshot: Snapshot, factors: F64Array) -> F64Array:
        """Bytes of the regions, each times its region's factor, by name.

        :param factors: shape (k, number of regions).
        :returns: shape (k, number of names).
        """
        sums = np.zeros((len(factors), len(self.names)))
        if not len(snapshot.regions):
            return sums
        for row, factor in zip(sums, factors, strict=True):
            if len(self._rows):
                row[:-1] = np.bincount(self._which, bytes_in(snapshot, self._rows, factor), len(self.names) - 1)
            row[-1] = max(0.0, float((snapshot.sizes * factor).sum() - row.sum()))
        # What is left of a sum of doubles is no byte.
        return np.where(sums < 0.5, 0.0, sums)

    def least(self, snapshot: Snapshot, values: F64Array) -> F64Array:
        """The smallest of the regions' values by name; NaN where there is none; shape (number of names,)."""
        found = np.full(len(self.names), np.nan)
        regions = snapshot.regions
        if len(regions) and len(self._rows):
            first = np.searchsorted(regions["end"], self._rows[:, 0], side="right")
            end = np.searchsorted(regions["start"], self._rows[:, 1], side="left")
            here = np.fmin.reduceat(np.append(values, np.nan), np.stack([first, end], axis=1).ravel())[::2]
            np.fmin.at(found, self._which, np.where(first < end, here, np.nan))
        if len(regions):
            # Not worth more: the regions that no name touches.
            outside = self._outside(snapshot)
            if len(outside):
                found[-1] = np.fmin.reduce(values[outside])
        return found

    def _outside(self, snapshot: Snapshot) -> Indexes:
        regions = snapshot.regions
        if not len(self._rows):
            return np.arange(len(regions))
        bounds = np.stack([regions["start"], regions["end"]], axis=1)
        first = np.searchsorted(self._rows[:, 1], bounds[:, 0], side="right")
        end = np.searchsorted(self._rows[:, 0], bounds[:, 1], side="left")
        return np.flatnonzero(first >= end)


_COLUMNS: Final = (
    Column("start", "start", Kind.ADDRESS),
    Column("end", "end", Kind.ADDRESS, hidden=True),
    Column("bytes", "size", Kind.BYTES),
    Column("accessed", "accessed", Kind.SHARE),
    Column("age_seconds", "age", Kind.SECONDS),
    Column("unknown", "unknown", Kind.SHARE, optional=1),
    Column("name", "name", Kind.TEXT),
)
#: Columns where it is known what is in memory.
_RESIDENT: Final = (
    Column("resident_bytes", "in memory", Kind.BYTES, optional=1),
    Column("anon_bytes", "anonymous", Kind.BYTES, hidden=True),
    Column("file_bytes", "of files", Kind.BYTES, hidden=True),
    Column("swapped_bytes", "swapped", Kind.BYTES, hidden=True),
)


def _in_memory(snapshot: Snapshot) -> list[list[int | None]]:
    """The values of :data:`_RESIDENT` for each region; None where not all of it was looked at."""
    assert snapshot.residency is not None
    sums = snapshot.residency.sums(snapshot.regions)
    known = (sums["unknown"] == 0).tolist()
    columns = (sums["anon"] + sums["file"], sums["anon"], sums["file"], sums["swapped"])
    return [
        [int(size) if is_known else None for size, is_known in zip(column.tolist(), known, strict=True)]
        for column in columns
    ]


def regions_view(recording: Recording, at: float | None = None) -> Report:
    """The regions of one snapshot.

    :param at: seconds since the start, the snapshot that was being taken then, or the next one; None: the last one.
    """
    config = recording.config
    times = np.array([snapshot.time for snapshot in recording.snapshots])
    place = len(times) - 1
    if at is not None:
        place = min(place, int(np.searchsorted(times, recording.started + at)))
    snapshot = recording.snapshots[place]
    regions = snapshot.regions
    names = [""] * len(regions) if recording.names is None else recording.names.named(regions)
    columns = (
        regions["start"].tolist(),
        regions["end"].tolist(),
        (regions["end"] - regions["start"]).tolist(),
        shares_of(snapshot, config).round(6).tolist(),
        ages_of(snapshot, config).tolist(),
        np.minimum(1.0, regions["nr_unknown"] / config.max_nr_accesses).astype(np.float64).round(6).tolist(),
        names,
    )
    shown: tuple[Column, ...] = _COLUMNS
    if snapshot.residency is not None:
        shown, columns = (*_COLUMNS, *_RESIDENT), (*columns, *_in_memory(snapshot))
    began, ended = snapshot.began - recording.started, snapshot.time - recording.started
    return Report(
        "regions",
        (
            ("from_seconds", "from", Kind.SECONDS, round(began, 6)),
            ("to_seconds", "to", Kind.SECONDS, round(ended, 6)),
        ),
        (Table("regions", shown, tuple(zip(*columns, strict=True)), "regions"),),
        (f"regions of {format_seconds(recording.seconds)} of monitoring, as they were at {ended:.1f} s",),
    )
