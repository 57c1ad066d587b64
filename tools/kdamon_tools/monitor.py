# SPDX-License-Identifier: GPL-2.0-only
"""Monitoring one process from within this one: the core's functions behind an object that hands out snapshots."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

import attrs
import numpy as np

import kdamon.vaddr  # noqa: F401 (registers the operations sets)
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
from kdamon.damon import damon_addr_range, damon_attrs, damon_ctx, damon_ops_id
from kdamon.mm import Machine
from kdamon.regions import damon_regions
from kdamon.reports import damon_report_counters_of
from kdamon_tools.snapshot import REGION, Config, Counters, RegionTable, Snapshot

__all__ = ["OPS", "Monitor"]

#: Operations sets by keyword, those that monitor one process.
OPS = {"vaddr": damon_ops_id.DAMON_OPS_VADDR, "fvaddr": damon_ops_id.DAMON_OPS_FVADDR}


class Monitor:
    """Monitors a process while the ``with`` block runs.

    :param config: what and how.
    :param machine: where the process is.
    :raises OSError: the process or the attributes cannot be monitored; the message says why.
    """

    def __init__(self, config: Config, machine: Machine) -> None:
        self.config = config
        self.started = 0.0
        self.ended = 0.0
        self._collected: deque[tuple[float, damon_regions]] = deque()
        self._cpu_s = 0.0
        self._ctx = self._new_ctx(machine)

    def _new_ctx(self, machine: Machine) -> damon_ctx:
        config = self.config
        ctx = damon_new_ctx()
        ctx.machine = machine
        damon_select_ops(ctx, OPS[config.ops])
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
        target = damon_new_target()
        target.pid = config.pid
        if config.ranges:
            ranges = [damon_addr_range(start, end) for start, end in sorted(config.ranges)]
            damon_set_regions(target, ranges, ctx.min_region_sz)
        target.task = machine.get_task(config.pid)
        damon_add_target(ctx, target)
        return ctx

    def __enter__(self) -> Monitor:
        trace.damon_aggregated.register(self._aggregated)
        self.started = self._now()
        try:
            damon_start([self._ctx], exclusive=False)
        except BaseException:
            trace.damon_aggregated.unregister(self._aggregated)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        damon_stop([self._ctx])
        trace.damon_aggregated.unregister(self._aggregated)
        self.ended = self._now()

    def _now(self) -> float:
        return self._ctx.clock.now() / 1e9

    def _aggregated(self, ctx: damon_ctx, _target: int, regions: damon_regions) -> None:
        """Runs in the kdamond: only copy, so that its next sample is not late."""
        if ctx is self._ctx:
            self._collected.append((self._now(), regions.copy()))
            self._cpu_s = time.thread_time()

    def drain(self) -> list[Snapshot]:
        """The snapshots that were taken since the last call, oldest first."""
        snapshots = []
        while self._collected:
            taken_at, regions = self._collected.popleft()
            snapshots.append(Snapshot(taken_at, _table(regions)))
        return snapshots

    def running(self) -> bool:
        """Tell whether monitoring goes on; it ends by itself when the process is gone."""
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
        )


def _table(regions: damon_regions) -> RegionTable:
    table = np.empty(len(regions), dtype=REGION)
    for name in REGION.names or ():
        table[name] = getattr(regions, name)
    return table
