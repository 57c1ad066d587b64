# SPDX-License-Identifier: GPL-2.0-only
"""Recordings to show, and records of them."""

from __future__ import annotations

import attrs
import numpy as np

from kdamon.names.table import NAMED_RANGE, NO_OFFSET, NameTable, changes
from kdamon.records.writer import RecordWriter
from kdamon_tools.snapshot import Config, Counters, Recording, Snapshot

__all__ = ["HOSTILE", "MIB", "name_table", "recording", "stairs", "tuned", "write_record"]

MIB = 1 << 20
#: A name that would be markup, a colour, and the end of a script.
HOSTILE = "[anon: </script><b>&\x1b[31m\n\udcff]"


def name_table(*rows: tuple[int, int, str]) -> NameTable:
    """Names of (start, end, name)."""
    names = list(dict.fromkeys(name for _, _, name in rows))
    table = np.array([(start, end, NO_OFFSET, names.index(name)) for start, end, name in sorted(rows)], NAMED_RANGE)
    return NameTable(table, tuple(names), 100.0)


def recording(
    rows: list[list[tuple[int, int, float, int, float]]], names: NameTable | None = None, seconds: float = 0.1
) -> Recording:
    """A recording that began at time 100, with a snapshot of each of ``rows`` every ``seconds``."""
    snapshots = [Snapshot.of(100 + seconds * number, of, seconds=seconds) for number, of in enumerate(rows, 1)]
    end = 100 + seconds * len(rows)
    return Recording(Config(pid=42), snapshots, Counters(), 100.0, end, "the time was over", names=names)


def stairs(steps: int = 10, each: int = 4, base: int = 0x7F00_0000_0000) -> Recording:
    """One MiB of a heap after the other is hot for ``each`` snapshots; a library is unknown, a stack far away warm."""
    heap, library, stack = base, base + (1 << 40), base + (2 << 40)
    rows = []
    for number in range(steps * each):
        start = heap + number // each * MIB
        below = [(heap, start, 0.0, number, 0.0)] if start > heap else []
        end = heap + 2 * steps * MIB
        rows.append(
            [
                *below,
                (start, start + MIB, 20.0, number % each, 0.0),
                (start + MIB, end, 0.0, number, 0.0),
                (library, library + MIB, 0.0, number, 20.0),
                (stack, stack + 0x8000, 5.0, number, 0.0),
            ]
        )
    names = name_table(
        (heap, heap + 2 * steps * MIB, "[heap]"),
        (library, library + MIB, HOSTILE),
        (stack, stack + 0x8000, "[stack]"),
    )
    return recording(rows, names)


def write_record(path: str, of: Recording) -> None:
    """Write a record that holds ``of``."""
    config = attrs.asdict(of.config, recurse=False)
    config.pop("command")
    run = {"config": config, "started": of.started, "command": list(of.config.command), "note": of.note}
    writer = RecordWriter(path, run)
    for snapshot in of.snapshots:
        writer.add(snapshot)
        if snapshot.use is not None:
            writer.add_use(snapshot.use)
        if snapshot.residency is not None:
            writer.change_residency(snapshot.residency)
    if of.names is not None:
        writer.change_names(changes(None, of.names))
    writer.add_counters(of.ended, attrs.asdict(of.counters))
    writer.add_process(of.started, {"rss_anon": 3 * MIB, "rss_file": MIB, "rss_shmem": 0, "swap": 0})
    writer.close(ended=of.ended)


def tuned() -> Recording:
    """9.6 s whose aggregation interval became longer: 0.1 s eight times, 0.2 s four times, 1.6 s five times.

    A MiB was hot in the first 0.8 s and idle since, another one was never accessed, and a third one is always hot.
    """
    heap, idle, hot = 1 << 30, (1 << 30) + MIB, (1 << 30) + 2 * MIB
    snapshots, time = [], 100.0
    for count, aggr_us in ((8, 100_000), (4, 200_000), (5, 1_600_000)):
        for _ in range(count):
            time += aggr_us / 1e6
            since, age = time - 100.0, round((time - 100.0) * 1e6) // aggr_us
            early = (20.0, age) if since < 0.85 else (0.0, round((since - 0.8) * 1e6) // aggr_us)
            regions = [(heap, idle, *early, 0), (idle, hot, 0.0, age, 0), (hot, hot + MIB, 20.0, age, 0)]
            snapshots.append(attrs.evolve(Snapshot.of(time, regions, seconds=aggr_us / 1e6), aggr_us=aggr_us))
    names = name_table((heap, idle, "early"), (idle, hot, "idle"), (hot, hot + MIB, "hot"))
    config = Config(pid=42, intervals="tuned")
    return Recording(config, snapshots, Counters(), 100.0, 109.6, "the time was over", names=names)
