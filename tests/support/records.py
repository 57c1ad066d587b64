# SPDX-License-Identifier: GPL-2.0-only
"""Records of runs that never were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from kdamon import Config, Counters, Record, Snapshot
from kdamon.damon import ReportCounters
from kdamon.mm.proc.maps import NamedMapping
from kdamon.names.table import NAMED_RANGE, NO_OFFSET, NameTable, changes
from kdamon.records.writer import RecordWriter

__all__ = [
    "HEAP",
    "LIBRARY",
    "STARTED",
    "counters",
    "names",
    "read_all",
    "rows",
    "run_values",
    "some_record",
    "times_of",
    "with_means",
    "writer",
]

#: CLOCK_MONOTONIC seconds when the runs began.
STARTED = 1000.0
MIB = 1 << 20
HEAP = NamedMapping(0x10_0000, 0x10_0000 + 8 * MIB, "rw-p", 0, 0, "[heap]")
LIBRARY = NamedMapping(0x7000_0000_0000, 0x7000_0000_0000 + 2 * MIB, "r-xp", 0x1000, 7, "/lib/a b;c\n\udcff.so")


def run_values(**values: Any) -> dict[str, Any]:
    """The values of a run of process 12."""
    return {"config": attrs.asdict(Config(pid=12)), "started": STARTED, "name": "server"} | values


def writer(path: Path | str, **values: Any) -> RecordWriter:
    """A new record."""
    return RecordWriter(path, run_values(**values))


def names(time: float = STARTED) -> NameTable:
    """Those of :data:`HEAP` and :data:`LIBRARY`, which has two sections."""
    half = (LIBRARY.start + LIBRARY.end) // 2
    table = [
        (HEAP.start, HEAP.end, NO_OFFSET, 0),
        (LIBRARY.start, half, 0x1000, 1),
        (half, LIBRARY.end, 0, 2),
    ]
    return NameTable(np.array(table, NAMED_RANGE), ("[heap]", "a b;c.so .text", "a b;c.so .data"), time)


def rows(number: int) -> list[tuple[int, int, float, int, float]]:
    """Regions of the snapshot with this number: half of the heap is hot, a quarter warm, the library cold."""
    quarter = (HEAP.end - HEAP.start) // 4
    return [
        (HEAP.start, HEAP.start + 2 * quarter, 20, number, 0),
        (HEAP.start + 2 * quarter, HEAP.start + 3 * quarter, 1, 0, 2),
        (HEAP.start + 3 * quarter, HEAP.end, 0, number, 20),
        (LIBRARY.start, LIBRARY.end, 0, number, 0),
    ]


def with_means(regions: list[tuple[int, int, float, int, float]]) -> list[tuple[int, int, float, int, float, float]]:
    """The same rows as a snapshot has them, with ``mean_accesses``."""
    return [(*region, region[2]) for region in regions]


def some_record(path: Path | str, snapshots: int = 30, **values: Any) -> Path:
    """A whole record with a snapshot of four regions each tenth of a second, and everything else."""
    record = writer(path, **values)
    record.add_clocks(1000 * 10**9, 10**18, 1001 * 10**9)
    record.change_mappings(STARTED, (), (HEAP, LIBRARY), STARTED)
    record.change_names(changes(None, names()))
    record.name_thread(STARTED, 13, "worker")
    for number in range(snapshots):
        time = STARTED + (number + 1) / 10
        record.add(Snapshot.of(time, rows(number)))
        if number % 10 == 9:
            record.add_process(time, {"rss_anon": 6 * MIB, "rss_file": MIB, "threads": 2})
            record.add_counters(time, counters(samples=20 * number, unknown=number))
            record.flush()
    record.close(ended=STARTED + snapshots / 10, note="the time was over", remarks=["a remark"])
    return Path(path)


def read_all(record: Record) -> Mapping[str, Any]:
    """Everything that a record holds."""
    extra = sorted(record.columns)
    return {
        "run": record.run,
        "counters": (record.counters, record.counter_log()),
        "process": record.process_data(),
        "clocks": record.clocks(),
        "snapshots": list(record.snapshots(extra=extra)),
        "times": record.times(),
        "regions": record.regions(extra=extra),
        "mappings": (record.mappings, record.mappings_at(STARTED + 1)),
        "names": (list(record.name_tables()), record.names_at(STARTED), record.names),
        "threads": record.threads,
    }


def counters(**values: int) -> dict[str, Any]:
    """Totals as a run records them."""
    return attrs.asdict(Counters(reports=attrs.asdict(ReportCounters()))) | values


def times_of(snapshots: Iterable[Snapshot]) -> list[float]:
    """Seconds since the run began."""
    return [round(snapshot.time - STARTED, 6) for snapshot in snapshots]
