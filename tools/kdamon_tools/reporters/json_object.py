# SPDX-License-Identifier: GPL-2.0-only
"""A recording as JSON, for programs: one object, or an object for each aggregation.

docs/schemas describes every field.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import attrs

from kdamon.arrays import Records
from kdamon.monitoring.use import MemoryUse
from kdamon.reports.groups import GroupTable
from kdamon_tools.groups import GroupLog, known_number, raw_number
from kdamon_tools.origin import Origin, origin_fields
from kdamon_tools.output.readable import json_text
from kdamon_tools.reporters.groups import group_bytes
from kdamon_tools.reporters.table import summarize
from kdamon_tools.snapshot import Config, Recording, Snapshot

if TYPE_CHECKING:
    from kdamon.names.table import NameTable
    from kdamon_tools.compare import Accuracy
    from kdamon_tools.mapping_history import MappingLog

__all__ = ["REPLAY", "RUN", "RUN_LINES", "render_aggregation", "render_end", "render_header", "render_json"]

#: Names and versions of the schemas.
RUN: Final = "kdamon.run/1"
RUN_LINES: Final = "kdamon.run.lines/1"
REPLAY: Final = "kdamon.replay/1"
#: Rows that become Python objects at once; no other thread runs meanwhile.
_AT_ONCE: Final = 256
_WINDOW_BYTES: Final = ("accessed", "low", "high", "unknown", "idle", "idle_anon", "idle_file")


def render_json(recording: Recording, accuracy: Accuracy | None = None, schema: str = RUN) -> Iterator[str]:
    """One object on one line, without the end of the line, in parts: together they may be much larger than the memory
    that monitoring takes.

    :param accuracy: the comparison with the truth, if it is known.
    """
    document = {
        **origin_fields(schema, recording.origin),
        "config": _config(recording.config),
        "started": recording.started,
        **_mappings(recording.mappings, recording.started),
    }
    yield _line(document)[:-1] + ',"snapshots":['
    for number, snapshot in enumerate(recording.snapshots):
        fields = {**_fields(snapshot, recording.started), "merged": snapshot.merged}
        of_snapshot = _with_regions(fields, snapshot, recording.config.by, recording.names)
        yield f"{',' if number else ''}{of_snapshot}"
    yield "]," + _line(_totals(recording, accuracy))[1:]


def render_header(config: Config, started: float, origin: Origin, mappings: MappingLog | None) -> str:
    """The first of the lines: the monitoring request and the machine."""
    document = {
        **origin_fields(RUN_LINES, origin),
        "type": "header",
        "config": _config(config),
        "started": started,
        **_mappings(mappings, started),
    }
    return _line(document)


def render_aggregation(
    snapshot: Snapshot, since: float, index: int, dropped: int, by: str = "", *, names: NameTable | None = None
) -> str:
    """One of the lines: a snapshot.

    :param since: CLOCK_MONOTONIC seconds when monitoring began.
    :param index: the number of earlier aggregations.
    :param dropped: the number of these without a line.
    :param by: the property by which accesses are grouped, if they are.
    :param names: what lies at the addresses; None: that is not known.
    """
    fields = {"type": "aggregation", "index": index, "dropped": dropped, **_fields(snapshot, since)}
    return _with_regions(fields, snapshot, by, names)


def render_end(recording: Recording, accuracy: Accuracy | None, aggregations: int, dropped: int) -> str:
    """The last of the lines: totals.

    :param aggregations: their number.
    :param dropped: the number of these without a line.
    """
    document = {
        "type": "end",
        "aggregations": aggregations,
        "dropped": dropped,
        **_mappings(recording.mappings, recording.started),
        **_totals(recording, accuracy),
    }
    return _line(document)


def _line(document: dict[str, Any]) -> str:
    return json_text(document, separators=(",", ":"))


def _config(config: Config) -> dict[str, Any]:
    return attrs.asdict(config) | {"max_nr_accesses": config.max_nr_accesses}


def _totals(recording: Recording, accuracy: Accuracy | None) -> dict[str, Any]:
    totals: dict[str, Any] = {
        "seconds": recording.seconds,
        "note": recording.note,
        "remarks": list(recording.remarks),
        "counters": attrs.asdict(recording.counters) | {"use": _use(recording.counters.use, recording.started)},
        "summary": summarize(recording),
    }
    if accuracy is not None:
        totals["accuracy"] = attrs.asdict(accuracy)
    if recording.groups is not None:
        totals |= _groups(recording, recording.groups)
    return totals


def _groups(recording: Recording, log: GroupLog) -> dict[str, Any]:
    sizes = group_bytes(recording)
    groups = []
    for group in log.groups:
        accessed, hot = sizes.get(raw_number(log.by, group.number), (0, 0))
        groups.append({**attrs.asdict(group), "working_set_bytes": accessed, "hot_bytes": hot})
    return {"groups": groups, "shared": [attrs.asdict(shared) for shared in log.shared]}


def _mappings(log: MappingLog | None, since: float) -> dict[str, Any]:
    if log is None:
        return {"mappings": None, "mappings_read": None}
    return {
        "mappings": [
            attrs.asdict(one.mapping, filter=attrs.filters.exclude("inode"))
            | {"first_seen": round(one.first_seen - since, 6), "last_seen": round(one.last_seen - since, 6)}
            for one in log.seen
        ],
        "mappings_read": {
            "times": log.nr_reads,
            "first": round(log.first_read - since, 6),
            "last": round(log.last_read - since, 6),
            "left_out": log.nr_left_out,
        },
    }


def _fields(snapshot: Snapshot, since: float) -> dict[str, Any]:
    return {
        "began": round(snapshot.began - since, 6),
        "time": round(snapshot.time - since, 6),
        "aggr_us": snapshot.aggr_us or None,
        "use": _use(snapshot.use, since),
    }


def _use(use: MemoryUse | None, since: float) -> dict[str, Any] | None:
    if use is None:
        return None
    resident = use.resident
    return {
        "time": round(use.time - since, 6),
        "resident_bytes": None if resident is None else resident.total,
        "anon_bytes": None if resident is None else resident.anon,
        "file_bytes": None if resident is None else resident.file,
        "swapped_bytes": None if resident is None else resident.swapped,
        "windows": [
            {
                "seconds": window.seconds,
                **{f"{name}_bytes": getattr(window, name) for name in _WINDOW_BYTES},
                "pages": window.pages,
            }
            for window in use.windows
        ],
    }


def _with_regions(fields: dict[str, Any], snapshot: Snapshot, by: str, names: NameTable | None) -> str:
    """The object of ``fields`` and the regions, and those of groups.

    Written here, because general functions take ten times as long for the thousands of numbers of an aggregation.
    """
    rows = _rows(snapshot.regions)
    regions = ",".join(
        [
            f'{{"start":{start},"end":{end},"nr_accesses":{_number(nr_accesses)},"age":{age},'
            f'"nr_unknown":{_number(nr_unknown)},"mean_accesses":{_number(mean_accesses)}{resident}{name}}}'
            for (start, end, nr_accesses, age, nr_unknown, mean_accesses), resident, name in zip(
                rows, _resident(snapshot), _names(snapshot, names), strict=True
            )
        ]
    )
    groups = "" if snapshot.groups is None else f',"groups":[{_regions_of_groups(snapshot.groups, by)}]'
    return f'{_line(fields)[:-1]},"regions":[{regions}]{groups}}}'


def _resident(snapshot: Snapshot) -> Iterator[str]:
    """The fields of what each region has in memory and in swap; empty where that is not known."""
    if snapshot.residency is None:
        return itertools.repeat("", len(snapshot.regions))
    return (
        f',"resident_anon":{anon},"resident_file":{file},"swapped":{swapped}'
        if not unknown
        else ',"resident_anon":null,"resident_file":null,"swapped":null'
        for _, _, anon, file, swapped, unknown in _rows(snapshot.residency.sums(snapshot.regions))
    )


def _names(snapshot: Snapshot, names: NameTable | None) -> Iterator[str]:
    """The field of the name of each region; empty where names are not known."""
    if names is None:
        return itertools.repeat("", len(snapshot.regions))
    parts = (snapshot.regions[first : first + _AT_ONCE] for first in range(0, len(snapshot.regions), _AT_ONCE))
    texts = itertools.chain.from_iterable(names.named(part) for part in parts)
    return (f',"name":{json_text(text)}' for text in texts)


def _rows(table: Records) -> Iterator[tuple[Any, ...]]:
    return itertools.chain.from_iterable(
        table[first : first + _AT_ONCE].tolist() for first in range(0, len(table), _AT_ONCE)
    )


def _regions_of_groups(table: GroupTable, by: str) -> str:
    """The objects of the groups, with their regions."""
    groups = []
    for number, rows in itertools.groupby(_rows(table.regions), key=itemgetter(0)):
        regions = ",".join(
            [
                f'{{"start":{start},"end":{end},"nr_accesses":{_number(nr_accesses)},"nr_reports":{nr_reports},'
                f'"nr_writes":{nr_writes}}}'
                for _, start, end, nr_accesses, nr_reports, nr_writes, _, _ in rows
            ]
        )
        known = known_number(by, number)
        groups.append(f'{{"number":{"null" if known is None else known},"regions":[{regions}]}}')
    return ",".join(groups)


def _number(value: float) -> float:
    """Counts are integers unless snapshots were merged."""
    whole = int(value)
    return whole if whole == value else round(value, 3)
