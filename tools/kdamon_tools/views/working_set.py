# SPDX-License-Identifier: GPL-2.0-only
"""How much memory is in use: its distribution, its course, and a summary of a whole recording."""

from __future__ import annotations

from typing import Final

import numpy as np
from attrs import evolve, frozen

from kdamon.arrays import F64Array
from kdamon_tools.snapshot import Config, Counters, Recording, Snapshot
from kdamon_tools.views.measures import aggr_seconds, weight_of
from kdamon_tools.views.regions import kinds_of
from kdamon_tools.views.table import Column, Kind, Order, Report, Table
from kdamon_tools.views.use import NOTE, USE_COLUMNS, is_watched, use_columns, use_facts, used_over_time

__all__ = ["Course", "course_of", "percentile_of", "summary_view", "wss_view"]

_PERCENTILES: Final = (0, 25, 50, 75, 95, 100)


@frozen(eq=False)
class Course:
    """Bytes of each snapshot, shape (n,) each.

    :ivar seconds: when it ended, since the start of the recording.
    :ivar accessed: accessed at all in the aggregation interval.
    :ivar hot: accessed in at least half of the samples.
    :ivar unknown: most samples could not be taken.
    :ivar monitored: all regions.
    :ivar resident: in memory then; NaN where that is not known.
    :ivar weights: of each snapshot in means over time, see :func:`kdamon_tools.views.measures.weight_of`.
    :ivar cold: in memory and not accessed; NaN where that is not known.
    :ivar used: used within 10 s, by watched pages; NaN where that is not known.
    """

    seconds: F64Array
    accessed: F64Array
    hot: F64Array
    unknown: F64Array
    monitored: F64Array
    resident: F64Array
    weights: F64Array
    cold: F64Array
    used: F64Array


def course_of(recording: Recording) -> Course:
    """The bytes in use over time."""
    sums = np.array(
        [
            [
                snapshot.time - recording.started,
                *(kinds_of(snapshot, recording.config) @ snapshot.sizes),
                weight_of(snapshot, recording.config),
                _cold_in_memory(snapshot, recording.config),
            ]
            for snapshot in recording.snapshots
        ]
    ).reshape(-1, 7)
    seconds, hot, warm, cold, unknown, weights, in_memory = sums.T
    resident = np.full(len(seconds), np.nan)
    if recording.resident is not None and len(recording.resident.times):
        at = np.searchsorted(recording.resident.times, seconds + recording.started, side="right") - 1
        resident = np.where(at >= 0, recording.resident.sizes[np.maximum(at, 0)], np.nan)
    monitored, used = hot + warm + cold + unknown, used_over_time(recording)
    return Course(seconds, hot + warm, hot, unknown, monitored, resident, weights, in_memory, used)


def _cold_in_memory(snapshot: Snapshot, config: Config) -> float:
    if snapshot.residency is None:
        return np.nan
    sizes = snapshot.residency.sums(snapshot.regions)
    return float(kinds_of(snapshot, config)[2] @ (sizes["anon"] + sizes["file"]).astype(np.float64))


def percentile_of(values: F64Array, weights: F64Array, percent: float) -> int | None:
    """The smallest value that at least ``percent`` of the weights do not exceed; None without any."""
    known = ~np.isnan(values)
    values, weights = values[known], weights[known]
    if not len(values):
        return None
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weights[order])
    return int(values[order][min(len(values) - 1, int(np.searchsorted(sums, percent / 100 * sums[-1] - 1e-9)))])


_SIZES: Final = (
    ("accessed", "accessed"),
    ("hot", "hot"),
    ("unknown", "unknown"),
    ("resident", "in memory"),
    ("monitored", "monitored"),
)
_BYTES: Final = tuple(Column(f"{name}_bytes", title, Kind.BYTES) for name, title in _SIZES)
_PERCENTILE: Final = Column("percentile", "% of time", Kind.COUNT)
_SECONDS: Final = Column("seconds", "time", Kind.SECONDS)


def wss_view(recording: Recording) -> Report:
    """The distribution of the working set, and its course.

    Where pages were watched, that is what was used within some windows, else what was accessed in an aggregation
    interval.
    """
    course = course_of(recording)
    columns = [getattr(course, name) for name, _ in _SIZES]
    shown, notes = _BYTES, (_about(recording),)
    facts, beside = use_facts(recording)
    if is_watched(recording):
        columns = [*use_columns(recording), *columns]
        shown = (*USE_COLUMNS, *(evolve(one, hidden=one.key != "resident_bytes") for one in _BYTES))
        notes = (NOTE,)
    rows = zip(
        course.seconds.round(6).tolist(),
        *([None if np.isnan(size) else int(size) for size in column] for column in columns),
        strict=True,
    )
    distribution = tuple(
        (percent, *(percentile_of(column, course.weights, percent) for column in columns)) for percent in _PERCENTILES
    )
    return Report(
        "wss",
        tuple(facts),
        (
            Table("distribution", (_PERCENTILE, *shown), distribution),
            Table("over_time", (_SECONDS, *shown), tuple(rows), "snapshots", Order.TIME),
        ),
        notes,
        beside,
    )


def _about(recording: Recording) -> str:
    found = {aggr_seconds(snapshot, recording.config) for snapshot in recording.snapshots}
    intervals = " to ".join(f"{seconds:.3g}" for seconds in sorted({min(found), max(found)})) if found else "?"
    return f"accessed: the regions that were seen accessed in an aggregation interval of {intervals} s"


def summary_view(recording: Recording) -> Report:
    """What ran, how much memory was in use, how much of that is not known, and what monitoring cost."""
    config, counters, course = recording.config, recording.counters, course_of(recording)
    unsampled = sum(end - begin for begin, end in recording.pauses())
    sampled = recording.seconds - unsampled
    # A record of damo has no counters, nor has one that was killed in its first second.
    counted = counters != Counters()
    used, beside = use_facts(recording)
    facts = [
        ("command", "command", Kind.TEXT, " ".join(config.command) or None),
        ("pid", "process", Kind.COUNT, config.pid or None),
        ("seconds", "monitored for", Kind.SECONDS, round(recording.seconds, 6)),
        ("aggregations", "aggregations", Kind.COUNT, sum(snapshot.merged for snapshot in recording.snapshots)),
        *used,
        *(
            (
                f"{name}_p{percent}_bytes",
                "" if used and name == "working_set" else f"{title}, p{percent}",
                Kind.BYTES,
                percentile_of(values, course.weights, percent),
            )
            for name, title, values in (
                ("working_set", "working set", course.accessed),
                *((("used_10s", "used within 10 s", course.used),) if used else ()),
                ("resident", "in memory", course.resident),
                ("hot", "hot", course.hot),
            )
            for percent in (50, 75, 95)
        ),
        ("unknown_share", "samples unknown", Kind.SHARE, _share(counters.unknown, counters.samples)),
        *(
            (name, title, Kind.COUNT, getattr(counters, name) if counted else None)
            for name, title in (
                ("samples", "samples"),
                ("missed_intervals", "sampling intervals missed"),
                ("lost_snapshots", "snapshots lost"),
            )
        ),
        ("unsampled_seconds", "nothing sampled for", Kind.SECONDS, round(unsampled, 6)),
        ("cpu_share", "CPU time of monitoring", Kind.SHARE, _share(counters.cpu_s, sampled)),
        ("watching_cpu_share", "", Kind.SHARE, _share(counters.watching_cpu_s, recording.seconds)),
    ]
    notes = [NOTE if used else _about(recording)]
    if recording.note:
        notes.append(f"end: {recording.note}")
    return Report("summary", tuple(facts), (), (*notes, *recording.remarks), beside)


def _share(part: float | None, whole: float) -> float | None:
    return None if part is None or whole <= 0 else round(part / whole, 6)
