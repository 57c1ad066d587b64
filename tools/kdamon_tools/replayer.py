# SPDX-License-Identifier: GPL-2.0-only
"""Replays recorded reports: their processes and ranges, their due times, and the monitoring based on them."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
import numpy as np

from kdamon import trace
from kdamon.apply_reports import report_counters
from kdamon.arrays import I64Array, Indexes, U64Array
from kdamon.core import damon_is_running, damon_start, damon_stop, run_ctx
from kdamon.damon import damon_ctx
from kdamon.kernel import NSEC_PER_USEC, PAGE_SIZE, RealClock, VirtualClock
from kdamon.mm.proc.cgroup import memory_left
from kdamon.monitoring.context import add_target, new_context
from kdamon.monitoring.sampled_time import SampledTime
from kdamon.monitoring.snapshot import region_table
from kdamon.regions import Regions
from kdamon.reports.deliver import report_accesses
from kdamon.reports.groups import GroupedInterval
from kdamon.vaddr import damon_va_three_regions
from kdamon_tools.groups import Grouping
from kdamon_tools.history import MOST_SNAPSHOTS, History
from kdamon_tools.report_files.records import reports_of
from kdamon_tools.report_files.stored_records import RecordSource
from kdamon_tools.snapshot import Config, Counters, Range, Recording, Snapshot
from kdamon_tools.units import format_bytes

__all__ = ["MOST_PROCESSES", "Replay", "ReplayClock", "Tape", "processes_of", "ranges_of"]

#: Number of records to read at once: files may be larger than memory.
_BLOCK: Final = 1 << 18
#: The first kernel address.
_KERNEL_HALF: Final = np.uint64(1 << 63)
_PAGE: Final = np.uint64(PAGE_SIZE)
#: Time for which reports are collected into a batch when they are replayed in real time.
_TICK_NS: Final = 1_000_000
#: Interval between checks of the kdamond while no reports are due.
_LOOK_NS: Final = 20_000_000

#: Bytes of memory per report: its time, its index, and the temporary memory of sorting.
_SORTING_BYTES: Final = 32
#: Limits of the histories of all processes together.
_ALL_SNAPSHOTS: Final = 1 << 19
_ALL_ROWS: Final = 1 << 24
#: Regions in all snapshots of one of them.
_MOST_ROWS: Final = 1 << 20
#: Maximum number of sampling intervals of a replay: hours of work, but finite.
_MOST_INTERVALS: Final = 100_000_000

#: Maximum number of processes to monitor: for each, a second of a recording takes some milliseconds.
MOST_PROCESSES: Final = 1000

#: Receives the elapsed and the total time, nanoseconds.
Progress = Callable[[int, int], None]


class Tape:
    """Recorded reports in the order of their times, relative to the first one's.

    :param records: shape (n,), in any order; reports of equal times keep their order.
    :raises OSError: they cannot be read (any more); the same for all methods.
    """

    def __init__(self, records: RecordSource) -> None:
        self._records = records
        self._block = _BLOCK
        self._order = self._find_order()
        #: Times of the first and the last report, nanoseconds of the clock of the file's source.
        self.started, self.ended = self._ends()
        self._next = 0
        self._now = records[:0]
        self._times: U64Array = np.zeros(0, np.uint64)
        self._at = 0

    def _find_order(self) -> Indexes | None:
        """The rows by their times, None where they are in order."""
        previous = np.uint64(0)
        for times in self._blocks_of_times():
            if times[0] < previous or (times[1:] < times[:-1]).any():
                _check_room(len(self._records))
                return np.argsort(np.concatenate(list(self._blocks_of_times())), kind="stable")
            previous = times[-1]
        return None

    def _blocks_of_times(self) -> Iterator[U64Array]:
        for at in range(0, len(self._records), self._block):
            yield self._records[at : at + self._block]["time"].copy()

    def _ends(self) -> tuple[int, int]:
        if not len(self._records):
            return 0, 0
        rows = np.array([0, len(self._records) - 1]) if self._order is None else self._order[[0, -1]]
        started, ended = self._records[rows]["time"].tolist()
        return started, ended

    def _load(self) -> bool:
        """Load the next block; return False at the end."""
        rows = slice(self._next, self._next + self._block)
        self._now = self._records[rows] if self._order is None else self._records[self._order[rows]]
        self._next += len(self._now)
        self._times = self._now["time"] - np.uint64(self.started)
        self._at = 0
        return len(self._now) > 0

    def play(self, until: int) -> None:
        """Report the remaining accesses up to ``until`` (exclusive), nanoseconds after the first report."""
        while self._at < len(self._times) or self._load():
            stop = self._at + int(np.searchsorted(self._times[self._at :], np.uint64(until)))
            report_accesses(reports_of(self._now[self._at : stop]))
            self._at = stop
            if stop < len(self._times):
                break

    @property
    def next_due(self) -> int | None:
        """The due time of the next report, nanoseconds after the first; None at the end."""
        if self._at < len(self._times) or self._load():
            return int(self._times[self._at])
        return None


def _check_room(n: int) -> None:
    """Reject more times to sort than fit into memory: a file may have any size, and be mostly a hole."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    left = min(available, memory_left(os.fsdecode(Path("/proc/self/cgroup").read_bytes())))
    if n * _SORTING_BYTES > left:
        raise OSError(
            errno.ENOMEM,
            f"the {n} reports are not in the order of their times, and sorting them takes "
            f"{format_bytes(n * _SORTING_BYTES)} of memory, of which there is {format_bytes(left)}",
        )


class ReplayClock(VirtualClock):
    """A simulated clock; while a caller sleeps, reports arrive.

    :param tape: the reports; the clock's 0 is the time of the first one.
    :param progress: receives the time after each sleep, nanoseconds.
    """

    def __init__(self, tape: Tape, progress: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self._tape = tape
        self._progress = progress

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        """Move the clock to ``deadline``, and report the accesses before it."""
        super().sleep_until(deadline, wake)
        self._tape.play(self.now())
        if self._progress is not None:
            self._progress(self.now())


class Replay:
    """Monitors processes with recorded reports.

    :param tape: the reports.
    :param configs: one for each process; they differ only in the process and the ranges.
    :param seed: makes the random splits of regions repeatable.
    :param progress: receives the progress.
    :raises OSError: EINVAL the attributes or ranges are invalid, or the reports are years apart.
    """

    def __init__(self, tape: Tape, configs: Sequence[Config], seed: int, progress: Progress | None = None) -> None:
        self._tape = tape
        self._configs = configs
        self._progress = progress
        # Whole sampling intervals, as the core counts them; to the end of the one that the last report lies in.
        self._aggregation = configs[0].max_nr_accesses * configs[0].sample_us * NSEC_PER_USEC
        self._duration = ((tape.ended - tape.started) // self._aggregation + 1) * self._aggregation
        if self._duration > _MOST_INTERVALS * configs[0].sample_us * NSEC_PER_USEC:
            raise OSError(
                errno.EINVAL,
                f"the first and the last report are {self._duration / 1e9:.0f} s apart, too long to replay in "
                f"steps of {configs[0].sample_us} us; check the times of the file, or use longer intervals",
            )
        self._collected: deque[tuple[int, int, int, Regions, GroupedInterval | None]] = deque()
        self._span = (0, 0)
        self._histories = [
            History(min(MOST_SNAPSHOTS, _ALL_SNAPSHOTS // len(configs)), min(_MOST_ROWS, _ALL_ROWS // len(configs)))
            for _ in configs
        ]
        self._groupings = [Grouping(config.by) for config in configs]
        self._began = 0
        self._aggregations = 0
        self._ctx = new_context(configs[0], seed)
        for config in configs:
            add_target(self._ctx, config)

    def in_simulated_time(self) -> list[Recording]:
        """Replay as fast as possible: each sampling interval always receives the same reports, those of its time."""
        self._ctx.clock = ReplayClock(self._tape, self._drain)
        trace.damon_aggregated.register(self._aggregated)
        try:
            run_ctx(self._ctx, self._duration / 1e9)
        finally:
            trace.damon_aggregated.unregister(self._aggregated)
        return self._recordings()

    def in_real_time(self) -> list[Recording]:
        """Replay in real time, with an ordinary kdamond."""
        self._ctx.clock = SampledTime(RealClock(), self._aggregation)
        trace.damon_aggregated.register(self._aggregated)
        try:
            # Before the kdamond may begin: no snapshot begins earlier than what is replayed.
            self._began = time.monotonic_ns()
            damon_start([self._ctx], exclusive=False)
            # The kdamond lags a little, and by a whole aggregation interval if it missed many sampling intervals.
            while (now := time.monotonic_ns() - self._began) < self._duration + self._aggregation:
                self._tape.play(now)
                self._drain(min(now, self._duration))
                if self._aggregations * self._aggregation >= self._duration or not damon_is_running(self._ctx):
                    break
                due = self._tape.next_due
                time.sleep(min(max(_TICK_NS, _LOOK_NS if due is None else due - now), _LOOK_NS) / 1e9)
        finally:
            damon_stop([self._ctx])
            trace.damon_aggregated.unregister(self._aggregated)
        if self._ctx.kdamond_error is not None:
            raise self._ctx.kdamond_error
        return self._recordings()

    def _aggregated(self, ctx: damon_ctx, target: int, regions: Regions) -> None:
        if ctx is self._ctx:
            if target == 0:
                self._span = self._take_span()
                self._aggregations += 1
            groups = ctx.adaptive_targets[target].groups
            taken = None if groups is None else groups.take()
            self._collected.append((*self._span, target, regions.copy(), taken))

    def _take_span(self) -> tuple[int, int]:
        """The begin and the end of sampling, nanoseconds of the clock."""
        clock = self._ctx.clock
        if isinstance(clock, SampledTime):
            return clock.take_span()
        return clock.now() - self._aggregation, clock.now()

    def _drain(self, now: int) -> None:
        """Move the collected snapshots into the histories, whose size is bounded."""
        while self._collected:
            began, ended, target, regions, groups = self._collected.popleft()
            began, ended = (self._tape.started + at - self._began for at in (began, ended))
            table = None if groups is None else groups.table()
            if table is not None:
                self._groupings[target].add(table)
            self._histories[target].add(Snapshot(began / 1e9, ended / 1e9, region_table(regions), groups=table))
        if self._progress is not None:
            self._progress(now, self._duration)

    def _recordings(self) -> list[Recording]:
        self._drain(self._duration)
        started, ended = self._tape.started / 1e9, (self._tape.started + self._duration) / 1e9
        counters = Counters(
            missed_intervals=self._ctx.missed_intervals, reports=attrs.asdict(report_counters(self._ctx))
        )
        return [
            Recording(
                *(config, history.snapshots, counters, started, ended, "replayed"),
                groups=grouping.log() if config.by else None,
            )
            for config, history, grouping in zip(self._configs, self._histories, self._groupings, strict=True)
        ]


class _Merged:
    """Two columns that grow by blocks, merged whenever they have doubled, so that many blocks take little time.

    :param merge: merges the columns of several blocks.
    """

    def __init__(self, merge: Callable[[U64Array, U64Array], tuple[U64Array, U64Array]]) -> None:
        self._merge = merge
        self._parts: list[tuple[U64Array, U64Array]] = []
        self._merged = self._waiting = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, one: U64Array, other: U64Array) -> None:
        """Add the two columns of a block."""
        self._parts.append((one, other))
        self._waiting += len(one)
        if self._waiting > self._merged:
            self.columns()

    def columns(self) -> tuple[U64Array, U64Array]:
        """The merged columns."""
        one, other = self._merge(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))
        self._parts = [(one, other)]
        self._merged, self._waiting = len(one), 0
        return one, other


def _counted(keys: U64Array, counts: U64Array) -> tuple[U64Array, U64Array]:
    """Each key once, ascending, with the sum of its counts."""
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return keys[first], np.add.reduceat(counts, first)


def processes_of(records: RecordSource) -> I64Array:
    """The processes of ``records``, those with most reports first, shape (n,)."""
    counts = _Merged(_counted)
    for at in range(0, len(records), _BLOCK):
        of_block, times = np.unique(records[at : at + _BLOCK]["pid"], return_counts=True)
        counts.add(of_block.astype(np.int64).view(np.uint64), times.astype(np.uint64))
    if not len(records):
        return np.zeros(0, np.int64)
    keys, numbers = counts.columns()
    pids = keys.view(np.int64)
    return pids[np.lexsort((pids, ~numbers))]


def ranges_of(records: RecordSource, pids: Collection[int]) -> dict[int, list[Range]]:
    """The ranges to monitor of each process: the pages of its reports, without the two biggest gaps.

    vaddr divides the mappings of a process in the same way. Kernel addresses are left out; a process that has no other
    ones is missing in the result.
    """
    pages = {pid: _Merged(_joined) for pid in pids}
    wanted = np.fromiter(pids, np.int64, len(pids))
    for at in range(0, len(records), _BLOCK):
        block = records[at : at + _BLOCK]
        addr, size = block["addr"], np.maximum(block["size"], np.uint64(1))
        usable = (addr < _KERNEL_HALF) & (size < _KERNEL_HALF) & np.isin(block["pid"], wanted)
        # Grouped by process: a pass over the block for each process would take too long for many processes.
        rows = np.flatnonzero(usable)
        rows = rows[np.argsort(block["pid"][rows], kind="stable")]
        of_rows = block["pid"][rows]
        starts, ends = addr[rows] // _PAGE, (addr[rows] + size[rows] + _PAGE - np.uint64(1)) // _PAGE
        first = np.flatnonzero(np.concatenate(([True], of_rows[1:] != of_rows[:-1]))[: len(rows)]).tolist()
        for begin, end in zip(first, [*first[1:], len(rows)], strict=False):
            pages[int(of_rows[begin])].add(*_joined(starts[begin:end], ends[begin:end]))
    return {pid: _three_ranges(*merged.columns()) for pid, merged in pages.items() if merged}


def _joined(starts: U64Array, ends: U64Array) -> tuple[U64Array, U64Array]:
    """The union of the ranges [starts, ends), ascending and disjoint."""
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    first = np.concatenate(([True], starts[1:] > reach[:-1]))[: len(starts)]
    last = np.concatenate((first[1:], [True]))[: len(starts)]
    return starts[first], reach[last]


def _three_ranges(first_pages: U64Array, end_pages: U64Array) -> list[Range]:
    runs = np.stack([first_pages, end_pages], axis=1) * _PAGE
    if len(runs) < 3:
        return [(start, end) for start, end in runs.tolist()]
    return [(r.start, r.end) for r in damon_va_three_regions(runs, PAGE_SIZE)]
