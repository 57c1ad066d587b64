# SPDX-License-Identifier: GPL-2.0-only
"""The views ``where`` and ``idle`` where it is known what was in memory: bytes are of that, by anonymous and file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from kdamon.arrays import F64Array, Records
from kdamon.monitoring.use import ACCESSED, CAME, IDLE, UNKNOWN, WINDOWS
from kdamon_tools.snapshot import Config, Recording, Snapshot
from kdamon_tools.units import format_bytes, format_seconds
from kdamon_tools.views import resident
from kdamon_tools.views.measures import weight_of
from kdamon_tools.views.regions import HOT, Named, idle_seconds, kinds_of
from kdamon_tools.views.resident import ResidentNames, known_snapshots
from kdamon_tools.views.table import Column, Kind, Order, Report, Table

__all__ = ["idle_in_memory", "where_in_memory"]

#: Watched pages of a name from which on they say how much of it is idle.
_ENOUGH: Final = 20
_NAME: Final = Column("name", "name", Kind.TEXT)
_UNKNOWN: Final = Column("unknown_bytes", "unknown", Kind.BYTES, optional=2)
_HEAT: Final = (
    Column("hot_bytes", "hot", Kind.BYTES),
    Column("warm_bytes", "warm", Kind.BYTES),
    Column("cold_bytes", "cold", Kind.BYTES),
    _UNKNOWN,
)
#: A mean of what was in memory is of snapshots that do not know more than this share.
_NOT_LOOKED_AT: Final = 0.05
#: Sums that text has on the line of what is in memory.
_BESIDE: Final = ("anon_bytes", "file_bytes")
_IN_MEMORY: Final = "bytes are of what is in memory; what is mapped and not there is in no other column"


def _sizes(sums: F64Array, mapped: F64Array, whole: int, parts: int) -> tuple[tuple[Column, ...], list[F64Array]]:
    """The columns of what is mapped, in memory and in swap, if any is, and their values by name.

    :param sums: by :data:`kdamon_tools.views.resident.KINDS` and name.
    :param whole: how optional the column of all that is in memory is.
    :param parts: the same of those of anonymous memory and of files.
    """
    anon, file, swapped = sums[resident.ANON], sums[resident.FILE], sums[resident.SWAPPED]
    columns = [
        Column("bytes", "mapped", Kind.BYTES, optional=5),
        Column("resident_bytes", "in memory", Kind.BYTES, optional=whole),
        Column("anon_bytes", "anonymous", Kind.BYTES, optional=parts),
        Column("file_bytes", "of files", Kind.BYTES, optional=parts),
    ]
    values = [mapped, anon + file, anon, file]
    if swapped.any():
        columns.append(Column("swapped_bytes", "swapped", Kind.BYTES))
        values.append(swapped)
    return tuple(columns), values


def _report(
    view: str, columns: Sequence[Column], names: list[str], values: Sequence[F64Array], ranks: Sequence[F64Array]
) -> Table:
    """A row for each name with any bytes, the one with the largest ranks first."""
    order = np.lexsort([-rank for rank in reversed(ranks)]).tolist()
    rows = [
        (names[place], *(_value(column, value[place]) for column, value in zip(columns, values, strict=True)))
        for place in order
        if any(value[place] > 0 for column, value in zip(columns, values, strict=True) if column.kind is Kind.BYTES)
    ]
    return Table(view, (_NAME, *columns), tuple(rows), "names", Order.RANK)


def _value(column: Column, value: float) -> Any:
    if np.isnan(value):
        return None
    return int(value) if column.kind is Kind.BYTES else round(float(value), 6)


def _totals(columns: Sequence[Column], values: Sequence[F64Array]) -> tuple[tuple[str, str, Kind, Any], ...]:
    """The sums of all columns of bytes; those that are hidden, or beside others, have no title."""
    return tuple(
        (column.key, "" if column.hidden or column.key in _BESIDE else column.title, Kind.BYTES, int(value.sum()))
        for column, value in zip(columns, values, strict=True)
        if column.kind is Kind.BYTES
    )


def _kinds(sums: F64Array) -> str:
    """Of what is in memory by name how much is anonymous, and of files."""
    anon, file = (format_bytes(int(sums[kind].sum())) for kind in (resident.ANON, resident.FILE))
    return f"{anon} anonymous, {file} of files"


def _looked_at(snapshots: list[Snapshot]) -> list[Snapshot]:
    """Those by which nearly all memory had been looked at; all of them if that was never so."""
    found = [one for one in snapshots if one.residency is not None and one.residency.unknown_share <= _NOT_LOOKED_AT]
    return found or snapshots


def where_in_memory(recording: Recording) -> Report:
    """A row for each name: bytes in memory, and of these hot, warm, cold and unknown ones, on average."""
    config, snapshots = recording.config, _looked_at(known_snapshots(recording))
    named, mapped = ResidentNames(recording.names), Named(recording.names)
    sums, sizes, weight = np.zeros((4, len(resident.KINDS), len(named.names))), np.zeros(len(named.names)), 0.0
    for snapshot in snapshots:
        of_snapshot = weight_of(snapshot, config)
        sums += of_snapshot * named.sums(snapshot, kinds_of(snapshot, config))
        sizes += of_snapshot * mapped.sums(snapshot, np.ones((1, len(snapshot.regions))))[0]
        weight += of_snapshot
    means, sizes = np.rint(sums / weight), np.rint(sizes / weight)
    heat = means[:, resident.ANON] + means[:, resident.FILE]
    heat[3] += means[:, resident.UNKNOWN].sum(axis=0)
    columns, values = _sizes(means.sum(axis=0), sizes, 4, 1)
    columns += (*_HEAT, Column("idle_seconds", "idle for", Kind.SECONDS, optional=3))
    values += [*heat, _idle_for(snapshots[-1], mapped, config)]
    return Report(
        "where",
        (("basis", "", Kind.TEXT, "memory"), *_totals(columns, values)),
        (_report("names", columns, named.names, values, (heat.sum(axis=0), heat[:2].sum(axis=0), sizes)),),
        (
            f"average of {format_seconds(recording.seconds)}; {_IN_MEMORY}: hot was accessed in at least {HOT:.0%} of "
            "the samples of an aggregation interval, warm in fewer, cold in none; idle for: how long none of it was "
            "accessed, at the end",
            *_about_names(recording),
        ),
        {"resident_bytes": _kinds(means.sum(axis=0))},
    )


def _idle_for(last: Snapshot, named: Named, config: Config) -> F64Array:
    """For how long nothing of a name was accessed; NaN is unknown."""
    ages = idle_seconds(last, config)
    idle = named.least(last, ages)
    known, unknown = named.sums(last, np.stack([~np.isnan(ages), np.isnan(ages)]).astype(np.float64))
    # What was seen accessed is in use, however little of it was sampled.
    idle[(unknown > known) & (idle > 0)] = np.nan
    return idle


def _about_names(recording: Recording) -> tuple[str, ...]:
    return () if recording.names is not None else ("there are no names in this recording",)


def idle_in_memory(recording: Recording, times: Sequence[int], span: Sequence[str]) -> Report:
    """Bytes in memory that were not accessed for at least some times, by name, at the end of the recording.

    :param times: seconds.
    :param span: their names.
    """
    last = known_snapshots(recording)[-1]
    named, mapped = ResidentNames(recording.names), Named(recording.names)
    ages = idle_seconds(last, recording.config)
    kinds = [np.ones(len(ages)), *((ages >= seconds).astype(float) for seconds in times), np.isnan(ages).astype(float)]
    all_sums = named.sums(last, np.stack(kinds))
    sums, unknown = all_sums[0], all_sums[-1, : resident.SWAPPED].sum(axis=0) + all_sums[0, resident.UNKNOWN]
    columns, values = _sizes(np.rint(sums), np.rint(mapped.sums(last, np.ones((1, len(ages))))[0]), 0, 3)
    shorter, by = sums[: resident.SWAPPED], sums[: resident.SWAPPED].sum(axis=0)
    notes = ["at the end, by the age of regions that were not accessed"]
    beside = {"resident_bytes": _kinds(sums)}
    for number, (seconds, text) in enumerate(zip(times, span, strict=True)):
        # It was idle for a shorter time as well.
        idle = np.minimum(all_sums[1 + number, : resident.SWAPPED], shorter)
        looks = recording.looks[recording.looks["window"] == seconds]
        if seconds in WINDOWS and len(looks):
            idle = np.minimum(_watched(looks, last, ages >= seconds, named, sums, idle), shorter)
            notes = [
                "at the end; idle for 1 s, 10 s and 1 min by watched pages of a name, else by the age of regions that "
                "were not accessed"
            ]
        shorter, idle = idle, np.rint(idle)
        key = f"idle_{seconds}s"
        columns += (
            Column(f"{key}_bytes", f"idle {text}", Kind.BYTES),
            Column(f"{key}_anon_bytes", "anonymous", Kind.BYTES, hidden=True),
            Column(f"{key}_file_bytes", "of files", Kind.BYTES, hidden=True),
        )
        values += [idle.sum(axis=0), *idle]
        by = idle.sum(axis=0) if number < 2 else by
        beside[f"{key}_bytes"] = _kinds(idle)
    columns, values = (*columns, _UNKNOWN), [*values, np.rint(unknown)]
    return Report(
        "idle",
        (("basis", "", Kind.TEXT, "memory"), *_totals(columns, values)),
        (_report("names", columns, named.names, values, (by, sums[: resident.SWAPPED].sum(axis=0))),),
        (f"{_IN_MEMORY}; {notes[0]}", *_about_names(recording)),
        beside,
    )


def _watched(  # noqa: PLR0917 -- what is known at the end
    looks: Records, last: Snapshot, old: Any, named: ResidentNames, sums: F64Array, idle: F64Array
) -> F64Array:
    """What is idle by watched pages: their share of what a name has in memory, if there are enough of them.

    Of a name with fewer, ``idle`` by the age of regions, less the share of watched pages there that were accessed.

    :param old: which regions are idle by their age.
    :param sums: by kind and name.
    :param idle: by the age of regions: anonymous, of files; shape (2, names).
    """
    counts = {state: named.looks(looks, state) for state in (IDLE, ACCESSED, CAME, UNKNOWN)}
    watched = sum(counts.values())
    by_pages = sums[: resident.SWAPPED] * counts[IDLE] / np.maximum(watched, 1)
    regions = last.regions
    at = np.minimum(np.searchsorted(regions["end"], looks["addr"], side="right"), len(regions) - 1)
    there = looks[(looks["addr"] >= regions["start"][at]) & (looks["addr"] < regions["end"][at]) & old[at]]
    accessed = named.looks(there, ACCESSED) + named.looks(there, CAME)
    share = accessed / np.maximum(accessed + named.looks(there, IDLE), 1)
    found: F64Array = np.where(watched >= _ENOUGH, by_pages, idle * (1 - share))
    return found
