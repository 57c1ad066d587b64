# SPDX-License-Identifier: GPL-2.0-only
"""Which named memory is hot, warm, cold and idle."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from attrs import evolve

from kdamon_tools.snapshot import Recording
from kdamon_tools.units import format_seconds
from kdamon_tools.views.in_memory import idle_in_memory, where_in_memory
from kdamon_tools.views.measures import ages_of, aggr_seconds, weight_of
from kdamon_tools.views.regions import HOT, Named, idle_seconds, kinds_of
from kdamon_tools.views.resident import known_snapshots
from kdamon_tools.views.table import Column, Kind, Order, Report, Table
from kdamon_tools.views.written import Written

__all__ = ["IDLE_FOR", "idle_view", "where_view"]

#: Seconds of the columns of the view ``idle``.
IDLE_FOR: Final = (1, 10, 60, 600, 3600)

_MAPPED: Final = "bytes are of what is mapped: how much of it is in memory is not known"
_WHERE: Final = (
    Column("name", "name", Kind.TEXT),
    Column("bytes", "mapped", Kind.BYTES, optional=1),
    Column("hot_bytes", "hot", Kind.BYTES),
    Column("warm_bytes", "warm", Kind.BYTES),
    Column("cold_bytes", "cold", Kind.BYTES),
    Column("unknown_bytes", "unknown", Kind.BYTES, optional=1),
    Column("idle_seconds", "idle for", Kind.SECONDS),
)
_ABOUT_WRITTEN: Final = "written: the part of it that was written in an aggregation interval, unknown memory left out"
_WRITTEN: Final = Column("written_share", "written", Kind.SHARE)


def where_view(recording: Recording) -> Report:
    """A row for each name: bytes that were hot, warm, cold and unknown, on average, and how long all of it was idle.

    Also how much of it was written, if the recording knows. Bytes are of what was in memory, where that is known, else
    of what is mapped.
    """
    if known_snapshots(recording):
        return where_in_memory(recording)
    named = Named(recording.names)
    config = recording.config
    sums, weight = np.zeros((4, len(named.names))), 0.0
    writes = Written(recording, named)
    for snapshot in recording.snapshots:
        of_snapshot = named.sums(snapshot, kinds_of(snapshot, config))
        writes.add(snapshot, of_snapshot)
        sums += weight_of(snapshot, config) * of_snapshot
        weight += weight_of(snapshot, config)
    means = np.rint(sums / (weight or 1.0))
    written = writes.shares()
    idle = np.full(len(named.names), np.nan)
    if recording.snapshots:
        last = recording.snapshots[-1]
        ages = idle_seconds(last, config)
        idle = named.least(last, ages)
        known, unknown = named.sums(last, np.stack([~np.isnan(ages), np.isnan(ages)]).astype(np.float64))
        # What was seen accessed is in use, however little of it was sampled.
        idle[(unknown > known) & (idle > 0)] = np.nan
    order = [
        place
        for place in np.lexsort((-means.sum(axis=0), -means[:2].sum(axis=0))).tolist()
        if means[:, place].sum() > 0
    ]
    rows = tuple(
        (
            named.names[place],
            int(means[:, place].sum()),
            *map(int, means[:, place]),
            *(() if written is None else (written[place],)),
            _known(idle[place]),
        )
        for place in order
    )
    columns = _WHERE if written is None else (*_WHERE[:-1], _WRITTEN, _WHERE[-1])
    kinds = means.sum(axis=1).astype(int).tolist()
    return Report(
        "where",
        (
            ("basis", "", Kind.TEXT, "mapped"),
            *(
                (f"{key}_bytes", key, Kind.BYTES, size)
                for key, size in zip(("hot", "warm", "cold", "unknown"), kinds, strict=True)
            ),
        ),
        (Table("names", columns, rows, "names", Order.RANK),),
        (
            f"average of {format_seconds(recording.seconds)}: hot was accessed in at least {HOT:.0%} of the samples of "
            "an aggregation interval, warm in fewer, cold in none; idle for: how long none of it was accessed, at the "
            f"end; {_MAPPED}",
            *(() if written is None else (_ABOUT_WRITTEN,)),
            *_about_names(recording),
        ),
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def _about_names(recording: Recording) -> tuple[str, ...]:
    return () if recording.names is not None else ("there are no names in this recording",)


def idle_view(recording: Recording) -> Report:
    """Bytes that were not accessed for at least some times, by name, at the end of the recording."""
    config = recording.config
    covered = max(recording.seconds, _oldest(recording)) + _last_interval(recording)
    times = [seconds for seconds in IDLE_FOR if seconds <= covered]
    notes = []
    if len(times) < len(IDLE_FOR):
        notes.append(f"{format_seconds(covered)} of monitoring are known: longer idle times cannot be known from them")
    if known_snapshots(recording):
        report = idle_in_memory(recording, times, [_span(seconds) for seconds in times])
        return evolve(report, notes=(*report.notes, *notes))
    named = Named(recording.names)
    columns = (
        Column("name", "name", Kind.TEXT),
        Column("bytes", "mapped", Kind.BYTES, optional=1),
        *(Column(f"idle_{seconds}s_bytes", f"idle {_span(seconds)}", Kind.BYTES) for seconds in times),
        Column("unknown_bytes", "unknown", Kind.BYTES, optional=1),
    )
    rows: list[tuple[Any, ...]] = []
    if recording.snapshots:
        last = recording.snapshots[-1]
        idle = idle_seconds(last, config)
        kinds = [
            np.ones(len(idle)),
            *((idle >= seconds).astype(float) for seconds in times),
            np.isnan(idle).astype(float),
        ]
        sums = np.rint(named.sums(last, np.stack(kinds)))
        by = sums[1] if times else sums[0]
        order = [place for place in np.lexsort((-sums[0], -by)).tolist() if sums[0, place] > 0]
        rows = [(named.names[place], *map(int, sums[:, place])) for place in order]
    totals = tuple(
        (column.key, column.title, Kind.BYTES, sum(row[place] for row in rows))
        for place, column in enumerate(columns)
        if column.kind is Kind.BYTES
    )
    notes.insert(0, f"at the end, by the age of regions that were not accessed; {_MAPPED}")
    return Report(
        "idle",
        (("basis", "", Kind.TEXT, "mapped"), *totals),
        (Table("names", columns, tuple(rows), "names", Order.RANK),),
        (*notes, *_about_names(recording)),
    )


def _oldest(recording: Recording) -> float:
    """The age of the oldest region at the end, seconds: a part of a run knows what was before it."""
    if not recording.snapshots or not len(recording.snapshots[-1].regions):
        return 0.0
    return float(ages_of(recording.snapshots[-1], recording.config).max())


def _last_interval(recording: Recording) -> float:
    return aggr_seconds(recording.snapshots[-1], recording.config) if recording.snapshots else 0.0


def _span(seconds: int) -> str:
    return f"{seconds} s" if seconds < 60 else f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h"
