# SPDX-License-Identifier: GPL-2.0-only
"""Values of records, checked: the file may be another user's, or damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import attrs
import numpy as np

from kdamon.arrays import Records
from kdamon.mm.proc.maps import NamedMapping
from kdamon.monitoring.config import Config
from kdamon.names.table import NameTable
from kdamon.records.columns import MOST_ROWS, Corrupt
from kdamon.records.values import Run, SeenMapping

__all__ = ["EVER", "check_regions", "checked_names", "object_of", "run_of", "seen_mapping"]

#: Nanoseconds that no record reaches.
EVER: Final = 1 << 62


def object_of(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise Corrupt("counters are no object")
    return found


def seen_mapping(row: tuple[Any, ...], last: int) -> SeenMapping:
    start, end, permissions, offset, inode, name, appeared, seen = row
    numbers = [int(number) % (1 << 64) for number in (start, end, offset, inode)]
    mapping = NamedMapping(numbers[0], numbers[1], str(permissions), numbers[2], numbers[3], os.fsdecode(name))
    return SeenMapping(mapping, appeared / 1e9, (max(last, appeared) if seen is None else seen) / 1e9)


def checked_names(table: NameTable) -> NameTable:
    """Refuse a table whose rows overlap or have no name."""
    rows = table.rows
    if len(rows) > MOST_ROWS:
        raise Corrupt("there are too many named ranges")
    numbers = rows["name"]
    if (rows["end"] <= rows["start"]).any() or (rows["end"][:-1] > rows["start"][1:]).any():
        raise Corrupt("named ranges overlap")
    if len(rows) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(table.names):
        raise Corrupt("a named range has no name")
    return table


def check_regions(regions: Records, counts: np.ndarray[Any, Any]) -> None:
    """Refuse regions that overlap, and counters that are no numbers.

    :param counts: how many of them each snapshot has.
    """
    apart = np.ones(len(regions) + 1, np.bool_)
    apart[np.cumsum(counts)] = False
    if (regions["end"] <= regions["start"]).any() or ((regions["end"][:-1] > regions["start"][1:]) & apart[1:-1]).any():
        raise Corrupt("regions overlap")
    for name in ("nr_accesses", "nr_unknown", "mean_accesses"):
        if not (regions[name] >= 0).all() or np.isinf(regions[name]).any():
            raise Corrupt("the accesses of a region are no number")


def run_of(values: dict[str, Any], last: float | None) -> Run:
    started = float(values["started"])
    at = values.get("started_at")
    ended = values.get("ended")
    end = float(ended) if ended is not None else started if last is None else last
    if not 0 <= started <= end < EVER / 1e9:
        raise Corrupt("its begin and its end are no times")
    return Run(
        config=_config(values["config"]),
        started=started,
        ended=end,
        complete=ended is not None,
        started_at=None if at is None else datetime.fromisoformat(at).astimezone(UTC),
        command=tuple(map(str, values.get("command") or ())),
        remarks=tuple(map(str, values.get("remarks") or ())),
        note=str(values.get("note") or ""),
        part=int(values.get("part") or 1),
        nr_cpus=_known(int, values.get("nr_cpus")),
        memory_bytes=_known(int, values.get("memory_bytes")),
        **{
            name: _known(str, values.get(name))
            for name in ("name", "host", "kernel_release", "architecture", "boot_id", "kdamon_version")
        },
        values=values,
    )


def _known(kind: Any, value: Any) -> Any:
    return None if value is None else kind(value)


def _config(values: dict[str, Any]) -> Config:
    """The request of a run; fields of a newer kdamon are left out."""
    given: dict[str, Any] = {}
    for one in attrs.fields(Config):
        if one.name not in values:
            continue
        value = values[one.name]
        if one.name == "ranges":
            given[one.name] = tuple((int(start), int(end)) for start, end in value)
        elif one.name in {"cpus", "tids"}:
            given[one.name] = tuple(map(int, value))
        else:
            given[one.name] = _kind(one.default)(value)
    config = Config(**given)
    if not 1 <= config.sample_us <= EVER or not 1 <= config.aggr_us <= EVER:
        raise Corrupt("its intervals are no times")
    return config


def _kind(default: Any) -> Callable[[Any], Any]:
    """The type of a field by its default; a field without one is the process."""
    return bool if isinstance(default, bool) else str if isinstance(default, str) else int
