# SPDX-License-Identifier: GPL-2.0-only
"""Schemes of a running kdamond on a workload."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kdamon.core import (
    damon_add_target,
    damon_call,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_start,
    damon_stop,
)
from kdamon.damon import (
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_ops_id,
    damos,
    damos_access_pattern,
    damos_action,
    damos_stat,
)
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.regions import Regions
from tests.support.process_memory import SIZE
from tests.support.waiting import eventually
from tests.support.workload import Workload

__all__ = ["HOT", "monitoring", "pageout", "poll", "stat_of"]

HOT = 1024


@contextmanager
def monitoring(
    machine: LinuxMachine, work: Workload, *schemes: damos, primitive: str = "page_table", **fields: object
) -> Iterator[damon_ctx]:
    """A running kdamond with ``schemes`` on the workload's memory; ``fields`` of the context are set before."""
    ctx = damon_new_ctx(seed=1)
    ctx.machine = machine
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_FVADDR)
    damon_set_attrs(ctx, damon_attrs(sample_interval=5000, aggr_interval=100_000, min_nr_regions=32))
    ctx.sample_control.primitives_enabled.page_fault = primitive == "page_fault"
    t = damon_new_target()
    t.pid = work.pid
    t.task = machine.get_task(work.pid, primitive)
    t.regions = Regions([work.base], [work.base + SIZE])
    damon_add_target(ctx, t)
    ctx.schemes = list(schemes)
    for name, value in fields.items():
        setattr(ctx, name, value)
    damon_start([ctx], exclusive=False)
    try:
        yield ctx
    finally:
        with contextlib.suppress(OSError):
            damon_stop([ctx])


def pageout(**more: object) -> damos:
    """Pageout of what was not accessed for two aggregation intervals."""
    pattern = damos_access_pattern(max_nr_accesses=0, min_age_region=2)
    return damos(pattern, damos_action.DAMOS_PAGEOUT, **more)  # type: ignore[arg-type]


def stat_of(ctx: damon_ctx, s: damos) -> damos_stat:
    """The scheme's statistics, read between two sampling intervals."""
    read = damos_stat()

    def copy(_: object) -> None:
        for name in damos_stat.__slots__:
            if name != "__weakref__":
                setattr(read, name, getattr(s.stat, name))

    damon_call(ctx, damon_call_control(copy))
    return read


def poll(until: Callable[[], bool]) -> None:
    """Wait until ``until()`` is true; it is called seldom, because it may keep the workload busy."""
    eventually(until, "what the schemes are to do", pause=0.05)
