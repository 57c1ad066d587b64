# SPDX-License-Identifier: GPL-2.0-only
"""Summarizes monitoring in two metrics: memory bandwidth and idle time (``mm/damon/stat.c``)."""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np
from attrs import define, field

from kdamon.arrays import I64Array
from kdamon.core import damon_destroy_ctx, damon_set_attrs
from kdamon.damon import damon_attrs, damon_ctx, damon_intervals_goal, damon_nr_samples_per_aggr
from kdamon.kernel import NSEC_PER_MSEC, time_after_eq, ulong
from kdamon.modules_common import DamonModule
from kdamon.regions import mostly_unknown

__all__ = ["bandwidth_of", "damon_stat", "idle_percentiles", "unknown_mem_bp"]


#: Time between two updates of the results at least, nanoseconds.
_REFRESH_INTERVAL: Final = 5000 * NSEC_PER_MSEC


def bandwidth_of(ctx: damon_ctx) -> int:
    """Estimate the memory bandwidth: every sampled access stands for one of each byte of its region.

    :returns: bytes per second (``damon_stat_set_estimated_memory_bandwidth()``).
    """
    access_bytes = sum(int((t.regions.sizes() * t.regions.nr_accesses).sum()) for t in ctx.adaptive_targets)
    return ulong(access_bytes * 1_000_000) // ctx.attrs.aggr_interval


def idle_percentiles(ctx: damon_ctx) -> tuple[int, ...] | None:
    """How long the memory was idle, percentile by percentile from the busiest memory on.

    Memory that is accessed has a negative time: that for which it has been so.

    :returns: percentiles 0 to 100, milliseconds; None if there is no memory that anything is known of
        (``damon_stat_set_idletime_percentiles()``).
    """
    # Kernel: knows of every access. Here: regions that are mostly unknown are left out, because they would look idle.
    # (docs/deviations.md#the-idle-time-of-unknown-memory)
    nr_samples = damon_nr_samples_per_aggr(ctx.attrs)
    tables = [t.regions for t in ctx.adaptive_targets if len(t.regions)]
    known = [~mostly_unknown(regions.nr_unknown, nr_samples) for regions in tables]
    if not any(rows.any() for rows in known):
        return None
    rows = np.concatenate(known)
    sizes = np.concatenate([regions.sizes() for regions in tables])[rows]
    ages: I64Array = np.concatenate([regions.known_age() for regions in tables])[rows].astype(np.int64) + 1
    idle = np.where(np.concatenate([regions.nr_accesses for regions in tables])[rows] > 0, -ages, ages)
    order = np.argsort(idle, kind="stable")
    accounted = sizes[order].cumsum()
    # Percentile p is that of the first region with which p percent of the memory are accounted for.
    filled = accounted * np.uint64(100) // accounted[-1]
    at = np.searchsorted(filled, np.arange(101, dtype=np.uint64))
    aggr_us = ctx.attrs.aggr_interval
    # C divides towards zero.
    return tuple(abs(n) * aggr_us // 1000 * (1 if n > 0 else -1) for n in idle[order][at].tolist())


def unknown_mem_bp(ctx: damon_ctx) -> int:
    """Share of the memory that is mostly unknown, and left out of the percentiles, 1/10000 (no kernel counterpart)."""
    nr_samples = damon_nr_samples_per_aggr(ctx.attrs)
    tables = [t.regions for t in ctx.adaptive_targets]
    unknown = sum(int(regions.sizes()[mostly_unknown(regions.nr_unknown, nr_samples)].sum()) for regions in tables)
    return unknown * 10000 // (sum(regions.total() for regions in tables) or 1)


@define(slots=True, eq=False, kw_only=True)
class damon_stat(DamonModule):
    """The module. Its results stay readable after it is disabled.

    :ivar estimated_memory_bandwidth: see :func:`bandwidth_of`.
    :ivar memory_idle_ms_percentiles: see :func:`idle_percentiles`.
    :ivar unknown_mem_bp: see :func:`unknown_mem_bp`.
    :ivar aggr_interval_us: the tuned aggregation interval that they come from, microseconds.
    """

    name: ClassVar[str] = "damon_stat"

    estimated_memory_bandwidth: int = 0
    memory_idle_ms_percentiles: tuple[int, ...] = (0,) * 101
    unknown_mem_bp: int = 0
    aggr_interval_us: int = 0
    _last_refresh: int = field(default=0, init=False)

    def build_ctx(self) -> damon_ctx:
        """A context for what the parameters name; becomes :attr:`ctx` (``damon_stat_build_ctx()``).

        :raises OSError: EINVAL they name no process that exists; what the machine raises.
        """
        scope = self.scope()
        ctx = self._new_ctx(scope)
        try:
            # Observe 4 percent of all possible accesses, by sampling intervals of 5 milliseconds to 10 seconds.
            damon_set_attrs(ctx, damon_attrs(intervals_goal=damon_intervals_goal(400, 3, 5000, 10_000_000)))
            self._add_targets(ctx, scope, None)
        except BaseException:
            damon_destroy_ctx(ctx)
            raise
        self._scope = scope
        self._last_refresh = self.clock.now()
        self.ctx = ctx
        return ctx

    def _start(self) -> None:
        self._run(self.build_ctx())

    def refresh(self, ctx: damon_ctx) -> None:
        """Take over the results if the last ones are more than 5 seconds old (``damon_stat_damon_call_fn()``)."""
        now = ctx.clock.now()
        # Kernel: anywhere in an aggregation interval, when most accesses may not be counted yet. Here: at its end,
        # because only then the counters mean what the formulas take them for.
        # (docs/deviations.md#statistics-at-the-end-of-an-aggregation)
        complete = time_after_eq(ctx.passed_sample_intervals, ctx.next_aggregation_sis)
        if not complete or now <= self._last_refresh + _REFRESH_INTERVAL:
            return
        self._last_refresh = now
        self.aggr_interval_us = ctx.attrs.aggr_interval
        self.estimated_memory_bandwidth = bandwidth_of(ctx)
        self.unknown_mem_bp = unknown_mem_bp(ctx)
        self.memory_idle_ms_percentiles = idle_percentiles(ctx) or self.memory_idle_ms_percentiles
