# SPDX-License-Identifier: GPL-2.0-only
"""Monitoring a process or physical memory from within this process: the core behind an object of snapshots."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

import attrs
import numpy as np

import kdamon.ops_reports
import kdamon.paddr
import kdamon.vaddr  # noqa: F401 (all three register operations sets)
from kdamon import trace
from kdamon.core import (
    damon_add_target,
    damon_is_running,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_set_regions,
    damon_start,
    damon_stop,
)
from kdamon.damon import (
    damon_addr_range,
    damon_attrs,
    damon_ctx,
    damon_ops_id,
    damon_primitives_enabled,
    damon_sample_control,
    damon_sample_filter_type,
    damon_target,
)
from kdamon.kernel import NSEC_PER_USEC, RealClock
from kdamon.mapped import follow_mappings
from kdamon.mm import Machine, PhysicalMemory, Task, U64Array
from kdamon.mm.linux.memory_apart import MemoryApart
from kdamon.mm.ranges import NO_RANGES
from kdamon.regions import damon_regions
from kdamon.reports.apply import damon_report_counters_of
from kdamon.sample_control import damon_add_sample_filter, damon_new_sample_filter
from kdamon_fs.sysfs_sample import damon_sysfs_check_faults
from kdamon_tools.addresses import size_within
from kdamon_tools.origin import Origin, this_machine
from kdamon_tools.sampled_time import SampledTime
from kdamon_tools.snapshot import REGION, Config, Counters, RegionTable, Snapshot

__all__ = ["OPS", "Monitor", "add_target", "new_context", "region_table"]

#: Seconds that a look at the mappings is waited for.
_LOOK_S: Final = 1.0
#: Operations sets by keyword.
OPS = {
    "vaddr": damon_ops_id.DAMON_OPS_VADDR,
    "fvaddr": damon_ops_id.DAMON_OPS_FVADDR,
    "paddr": damon_ops_id.DAMON_OPS_PADDR,
    "reports": damon_ops_id.DAMON_OPS_REPORTS,
}


def new_context(config: Config, seed: int | None = None) -> damon_ctx:
    """A context without targets that monitors as ``config`` says.

    :param seed: makes everything random in it repeatable.
    :raises OSError: EINVAL the attributes make no sense.
    """
    ctx = damon_new_ctx(seed)
    damon_select_ops(ctx, OPS[config.ops])
    if config.ops == "vaddr" and config.vaddr_regions == "mappings":
        follow_mappings(ctx)
    damon_set_attrs(
        ctx,
        damon_attrs(
            sample_interval=config.sample_us,
            aggr_interval=config.aggr_us,
            ops_update_interval=config.update_us,
            min_nr_regions=config.min_regions,
            max_nr_regions=config.max_regions,
        ),
    )
    ctx.sample_control = _sample_control(config)
    ctx.density = config.density
    return ctx


def add_target(ctx: damon_ctx, config: Config) -> damon_target:
    """Add the process and the ranges of ``config`` to ``ctx``.

    :raises OSError: EINVAL the ranges overlap.
    """
    target = damon_new_target()
    target.pid = config.pid
    if config.ranges:
        ranges = [damon_addr_range(start, end) for start, end in sorted(config.ranges)]
        damon_set_regions(target, ranges, ctx.min_region_sz)
    damon_add_target(ctx, target)
    return target


class Monitor:
    """Monitors a process, or physical memory, while the ``with`` block runs.

    :param config: what and how; physical memory without ranges is all there is.
    :param machine: where that is; None where there need not be any, with the operations set for reports.
    :param birth: of the process that is meant, see :meth:`kdamon.mm.Machine.get_task`.
    :raises OSError: the process or the attributes cannot be monitored; the message says why.
    """

    def __init__(self, config: Config, machine: Machine | None, birth: int | None = None) -> None:
        self.config = config
        self.started = 0.0
        #: This machine, and the wall clock when monitoring began.
        self.origin = Origin()
        #: Why monitoring did not end, empty where it did.
        self.not_ended = ""
        self.ended = 0.0
        self._collected: deque[tuple[int, int, damon_regions]] = deque()
        self._clock = SampledTime(RealClock(), config.max_nr_accesses * config.sample_us * NSEC_PER_USEC)
        self._suspended = _suspended()
        self._cpu_s: float | None = None
        self._mapped: int | None = None
        self._looking: threading.Thread | None = None
        self._present: U64Array | None = None
        self._ctx = self._new_ctx(machine, birth)

    def _new_ctx(self, machine: Machine | None, birth: int | None) -> damon_ctx:
        config = self.config
        ctx = new_context(config)
        ctx.clock = self._clock
        ctx.machine = machine
        if machine is not None and config.ops == "paddr":
            memory = machine.physical_memory()
            ranges = config.ranges or tuple((start, end) for start, end in memory.ram().tolist())
            self._target = add_target(ctx, attrs.evolve(config, ranges=ranges))
            self._target.task = memory
            return ctx
        self._target = add_target(ctx, config)
        if machine is not None:
            if config.primitive == "page_fault":
                damon_sysfs_check_faults(ctx.sample_control, machine)
            self._target.task = machine.get_task(config.pid, config.primitive, birth)
            if config.primitive == "page_fault":
                _check_threads(config.tids, self._target.task)
        return ctx

    def __enter__(self) -> Monitor:
        trace.damon_aggregated.register(self._aggregated)
        self.started = self._now()
        self.origin = this_machine(datetime.now(UTC))
        try:
            damon_start([self._ctx], exclusive=False)
        except BaseException:
            trace.damon_aggregated.unregister(self._aggregated)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End monitoring, as the ``with`` block does; may be repeated."""
        try:
            damon_stop([self._ctx])
        except OSError as lingering:
            # What was seen until now can be shown all the same.
            self.not_ended = lingering.strerror or str(lingering)
        self.give_up(self.not_ended)

    def give_up(self, why: str) -> None:
        """Be done with monitoring that did not end."""
        self.not_ended = why
        trace.damon_aggregated.unregister(self._aggregated)
        # Not now: to let a process go may take seconds.
        self.ended = self.ended or (self._clock.reached or self._clock.now()) / 1e9

    def _now(self) -> float:
        return self._ctx.clock.now() / 1e9

    def _aggregated(self, ctx: damon_ctx, _target: int, regions: damon_regions) -> None:
        """Runs in the kdamond: only copy, so that its next sample is not late."""
        if ctx is self._ctx:
            self._collected.append((*self._clock.take_span(), regions.copy()))
            task = self._target.task
            self._cpu_s = time.thread_time() + (task.cpu_s if isinstance(task, MemoryApart) else 0.0)

    def drain(self) -> list[Snapshot]:
        """The snapshots that were taken since the last call, oldest first."""
        snapshots = []
        while self._collected:
            began, ended, regions = self._collected.popleft()
            snapshots.append(Snapshot(began / 1e9, ended / 1e9, region_table(regions)))
        return snapshots

    def look_at_ranges(self) -> U64Array | None:
        """What is mapped now, or the machine's memory, and remember how much of the given ranges that is.

        :returns: bytes, ascending and disjoint, shape (n, 2); None where no ranges were given, where reports alone
            count, and where it cannot be known, or not in a second.
        """
        if not self.config.ranges or self._target.task is None:
            return None
        if self._looking is None:
            self._looking = threading.Thread(target=self._look, daemon=True)
            self._looking.start()
        # The process decides how long a look takes; the caller must be able to end.
        self._looking.join(_LOOK_S)
        if self._looking.is_alive():
            return None
        self._looking = None
        if self._present is not None:
            self._mapped = max(self._mapped or 0, size_within(self.config.ranges, self._present))
        return self._present

    def _look(self) -> None:
        task = self._target.task
        self._present = None
        with contextlib.suppress(OSError):
            mm = None if task is None or isinstance(task, PhysicalMemory) else task.get_mm()
            self._present = task.ram() if isinstance(task, PhysicalMemory) else NO_RANGES if mm is None else mm.vmas()

    def _never_mapped(self) -> int | None:
        """Bytes of the ranges in which nothing was whenever that was looked at; None: it never was."""
        size = sum(end - start for start, end in self.config.ranges)
        return None if self._mapped is None else size - self._mapped

    def running(self) -> bool:
        """Return whether monitoring goes on; it ends by itself when the process is gone."""
        return damon_is_running(self._ctx)

    def error(self) -> BaseException | None:
        """What ended the monitoring against its will, normally None."""
        return self._ctx.kdamond_error

    def counters(self) -> Counters:
        """How well the monitoring went so far."""
        ctx = self._ctx
        return Counters(
            missed_intervals=ctx.missed_intervals,
            samples=ctx.nr_samples,
            unknown=ctx.nr_unknown,
            cpu_s=self._cpu_s,
            reports=attrs.asdict(damon_report_counters_of(ctx)),
            sparse=self._target.sparse,
            never_mapped=self._never_mapped(),
            faults_lost=0 if ctx.machine is None else ctx.machine.faults_lost,
            suspended_s=_suspended() - self._suspended,
        )


def _suspended() -> float:
    """How long the machine was suspended since it was booted, seconds, to a hundredth."""
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic(), 2)


def _check_threads(tids: Sequence[int], task: Task) -> None:
    """Refuse threads that are none of the process, and give ``task`` back: OSError ESRCH."""
    strange = [tid for tid in tids if not task.has_thread(tid)]
    if strange:
        task.put()
        names = " and ".join(map(str, strange))
        raise OSError(
            errno.ESRCH,
            f"process {task.pid} has no thread {names}, or it ended; name threads as /proc/{task.pid}/task does, by "
            "their numbers where kdamon runs",
        )


def _sample_control(config: Config) -> damon_sample_control:
    """Where accesses come from and which count, as ``config`` says: each filter allows what it names."""
    primitives = damon_primitives_enabled(config.primitive == "page_table", config.primitive == "page_fault")
    control = damon_sample_control(primitives)
    kinds = damon_sample_filter_type
    if config.write_only:
        damon_add_sample_filter(control, damon_new_sample_filter(kinds.DAMON_FILTER_TYPE_WRITE, True, True))
    if config.cpus:
        f = damon_new_sample_filter(kinds.DAMON_FILTER_TYPE_CPUMASK, True, True, cpumask=config.cpus)
        damon_add_sample_filter(control, f)
    if config.tids:
        f = damon_new_sample_filter(kinds.DAMON_FILTER_TYPE_THREADS, True, True, tid_arr=config.tids)
        damon_add_sample_filter(control, f)
    return control


def region_table(regions: damon_regions) -> RegionTable:
    """What a snapshot keeps of ``regions``."""
    table = np.empty(len(regions), dtype=REGION)
    for name in REGION.names or ():
        table[name] = getattr(regions, name)
    return table
