# SPDX-License-Identifier: GPL-2.0-only
"""Counters for Perfetto: bytes by heat of each name, and the size of the process.

The format is the JSON of Chrome's trace events. A counter has its value until the next one, so that only changes are
written. Perfetto drops events of negative times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from kdamon.arrays import I64Array
from kdamon_tools.exports import Write
from kdamon_tools.exports.folded import process_text
from kdamon_tools.exports.heats import HEAT, Heats, HeatSum
from kdamon_tools.output.readable import json_text
from kdamon_tools.recorded.recording import config_of
from kdamon_tools.recorded.selection import Selection
from kdamon_tools.views.measures import aggr_seconds

__all__ = ["export"]

#: Names with counters of their own at most; the rest is one counter.
_MOST_NAMES: Final = 40
_OTHERS: Final = "[others]"
_ALL: Final = "all memory"
_HOT, _WARM, _COLD, _UNKNOWN = range(len(HEAT))
#: Values of the counters of what is in memory.
_RESIDENT: Final = ("anonymous", "of files", "swapped")
#: A pause between two snapshots that is longer than so many aggregation intervals is shown.
_NOTABLE: Final = 3


def export(selection: Selection, write: Write) -> list[str]:
    """Write the events; those of names with the most accessed memory have their own counters."""
    total = HeatSum()
    total.add(selection, part=0.5)
    accessed = {name: float(sizes[_HOT] + sizes[_WARM]) for name, sizes in total.byte_seconds.items()}
    largest = sorted(accessed, key=lambda name: (-accessed[name], name))[:_MOST_NAMES]
    run = selection.record.run
    first = {"ph": "M", "pid": run.pid, "name": "process_name", "args": {"name": process_text(run)}}
    write(b'{"displayTimeUnit":"ms","traceEvents":[\n' + _line(first))
    for event in _events(selection, frozenset(largest)):
        write(b",\n" + _line({"ph": "C", "pid": run.pid, **event}))
    write(b"\n]}\n")
    return []


def _line(event: dict[str, Any]) -> bytes:
    return json_text(event, separators=(",", ":")).encode()


def _events(selection: Selection, named: frozenset[str]) -> Iterator[dict[str, Any]]:
    """The counters, by time."""
    run = selection.record.run
    config, heats = config_of(run), Heats(selection)
    before: dict[str, I64Array] = {}
    there: dict[str, I64Array] = {}
    ended = math.inf
    for snapshot in selection.snapshots(part=0.5, done=0.5):
        if snapshot.began - ended > _NOTABLE * aggr_seconds(snapshot, config):
            # Nothing is known of the time in between.
            yield from (_counter(name, ended, run.started, _all_unknown(sizes)) for name, sizes in before.items())
            before = {}
        ended = snapshot.time
        now: dict[str, I64Array] = {_ALL: np.zeros(len(HEAT), np.int64)}
        for name, sizes in zip(*heats.of(snapshot), strict=True):
            key = name if name in named else _OTHERS
            now[key] = now.get(key, 0) + sizes
            now[_ALL] = now[_ALL] + sizes
        for name in before.keys() - now.keys():
            now[name] = np.zeros(len(HEAT), np.int64)
        for name, sizes in now.items():
            if name not in before or (before[name] != sizes).any():
                yield _counter(name, snapshot.began, run.started, sizes)
        before = now
        resident = {name: sizes for name, sizes in heats.resident(snapshot).items() if name in named}
        for name, sizes in resident.items():
            if name not in there or (there[name] != sizes).any():
                yield _counter(f"{name} in memory", snapshot.began, run.started, sizes, _RESIDENT)
        there |= resident
    yield from _of_process(selection)


def _all_unknown(sizes: I64Array) -> I64Array:
    unknown = np.zeros(len(HEAT), np.int64)
    unknown[_UNKNOWN] = sizes.sum()
    return unknown


def _counter(name: str, time: float, started: float, sizes: I64Array, kinds: tuple[str, ...] = HEAT) -> dict[str, Any]:
    return {"name": name, "ts": _microseconds(time - started), "args": dict(zip(kinds, sizes.tolist(), strict=True))}


def _of_process(selection: Selection) -> Iterator[dict[str, Any]]:
    """Resident and swapped bytes."""
    run = selection.record.run
    rows = selection.record.process_data()
    low = -math.inf if selection.since is None else selection.since
    high = math.inf if selection.until is None else selection.until
    for row in rows[(rows["time"] >= low) & (rows["time"] < high)]:
        sizes = {name: int(row[name]) for name in ("rss_anon", "rss_file", "rss_shmem", "swap") if row[name] >= 0}
        if sizes:
            yield {"name": "resident", "ts": _microseconds(float(row["time"]) - run.started), "args": sizes}


def _microseconds(seconds: float) -> float:
    return max(0.0, round(seconds * 1e6, 3))
