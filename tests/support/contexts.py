# SPDX-License-Identifier: GPL-2.0-only
"""Contexts whose time the tests hold in their hands."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from attrs import define, field

from kdamon import trace
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
    damon_operations,
    damon_ops_id,
    damon_target,
    damos,
)
from kdamon.kernel import VirtualClock
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.regions import Regions

MS = 1_000_000


class WorkClock(VirtualClock):
    """A virtual clock on which work takes time too."""

    def __init__(self) -> None:
        super().__init__()
        #: When each sleep began and when it was to end.
        self.sleeps: list[tuple[int, int]] = []

    def work(self, ns: int) -> None:
        """Let ``ns`` pass."""
        self._now += ns

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        self.sleeps.append((self.now(), deadline))
        super().sleep_until(deadline, wake)


class SteppedClock:
    """A clock that lets its sleeper wake up only when the test says so: one interval at a time."""

    monotonic = False

    def __init__(self) -> None:
        self._now = 0
        self._asleep = threading.Semaphore(0)
        self._go = threading.Semaphore(0)
        self._free = False

    def now(self) -> int:
        return self._now

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        self._asleep.release()
        if not self._free:
            self._go.acquire()
        self._now = max(self._now, deadline)

    def wait_asleep(self) -> None:
        """Wait until the sleeper sleeps."""
        assert self._asleep.acquire(timeout=60), "no thread went to sleep"

    def step(self) -> None:
        """Let the sleeper do one round, to its next sleep."""
        self._go.release()
        self.wait_asleep()

    def work(self, ns: int) -> None:
        """Let ``ns`` pass while the sleeper sleeps: it will be late."""
        self._now += ns

    def release(self) -> None:
        """Let the sleeper never wait again."""
        self._free = True
        self._go.release()


def report_ops(apply_scheme: Any = None, **callbacks: Any) -> damon_operations:
    """A set of operations without address spaces: what is not in ``callbacks`` is missing.

    :param apply_scheme: applies a scheme to one region, its row in the table; returns applied and passed bytes.
    """

    def by_region(ctx: damon_ctx, t: damon_target, rows: Any, s: damos) -> tuple[Any, Any]:
        applied = [apply_scheme(ctx, t, row, s) for row in rows.tolist()]
        return tuple(np.array(applied, np.uint64).reshape(-1, 2).T)

    callbacks["apply_scheme"] = apply_scheme and by_region
    return damon_operations(id=damon_ops_id.DAMON_OPS_PADDR, **callbacks)


def plain_ctx(*ranges: tuple[int, int], ops: damon_operations | None = None, seed: int = 1, **attrs: int) -> damon_ctx:
    """A context with one target of ``ranges`` and, unless ``ops`` is given, no way to check accesses itself."""
    ctx = damon_new_ctx(seed)
    ctx.ops = ops if ops is not None else report_ops()
    ctx.min_region_sz = 1
    damon_set_attrs(
        ctx, damon_attrs(**({"min_nr_regions": 3, "sample_interval": 1000, "aggr_interval": 20_000} | attrs))
    )
    t = damon_new_target()
    t.regions = Regions([start for start, _ in ranges], [end for _, end in ranges])
    damon_add_target(ctx, t)
    return ctx


def sim_ctx(
    process: SimProcess,
    machine: SimMachine,
    seed: int = 1,
    ops: damon_ops_id = damon_ops_id.DAMON_OPS_VADDR,
    **attrs: Any,
) -> damon_ctx:
    """A context that monitors ``process``."""
    ctx = damon_new_ctx(seed)
    ctx.machine, ctx.clock = machine, machine.clock
    damon_select_ops(ctx, ops)
    damon_set_attrs(ctx, damon_attrs(**attrs))
    t = damon_new_target()
    t.pid = process.pid
    damon_add_target(ctx, t)
    return ctx


@define
class Snapshot:
    """One aggregation: copies of all regions, and the sampling interval it ended with."""

    sis: int
    target: int
    regions: Regions
    sample_us: int


@define
class Recorder:
    """What the tracepoints reported."""

    ctx: damon_ctx
    snapshots: list[Snapshot] = field(factory=list)
    tuned: list[int] = field(factory=list)

    def _aggregated(self, ctx: damon_ctx, target: int, regions: Regions) -> None:
        if ctx is self.ctx:
            sis = ctx.passed_sample_intervals
            self.snapshots.append(Snapshot(sis, target, regions.copy(), ctx.attrs.sample_interval))

    def _tuned(self, ctx: damon_ctx, sample_us: int) -> None:
        if ctx is self.ctx:
            self.tuned.append(sample_us)


@contextmanager
def recorded(ctx: damon_ctx) -> Iterator[Recorder]:
    """Listen to the tracepoints of ``ctx``."""
    recorder = Recorder(ctx)
    aggregated, tuned = recorder._aggregated, recorder._tuned
    trace.damon_aggregated.register(aggregated)
    trace.damon_monitor_intervals_tune.register(tuned)
    try:
        yield recorder
    finally:
        trace.damon_aggregated.unregister(aggregated)
        trace.damon_monitor_intervals_tune.unregister(tuned)


@contextmanager
def stopped(*ctxs: damon_ctx) -> Iterator[None]:
    """Stop ``ctxs`` at the end, whatever happens."""
    try:
        yield
    finally:
        for ctx in ctxs:
            if isinstance(ctx.clock, SteppedClock):
                ctx.clock.release()
        damon_stop(list(ctxs))


@contextmanager
def stepped(ctx: damon_ctx) -> Iterator[SteppedClock]:
    """Start ``ctx`` with a clock that the test steps; its kdamond sleeps in the first interval. Stop it at the end."""
    clock = ctx.clock if isinstance(ctx.clock, SteppedClock) else SteppedClock()
    ctx.clock = clock
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        clock.wait_asleep()
        yield clock


def in_kdamond(ctx: damon_ctx, fn: Callable[[], Any]) -> Any:
    """Call ``fn`` in the kdamond of ``ctx``; returns what it returns."""
    result: list[Any] = []
    damon_call(ctx, damon_call_control(lambda data: data.append(fn()), result))
    return result[0]


def bytes_of(regions: Regions) -> bytes:
    """Everything that a table holds."""
    names = ("start", "end", "nr_accesses", "last_nr_accesses", "age", "unknown_age", "nr_unknown", "last_nr_unknown")
    return b"".join(np.ascontiguousarray(getattr(regions, name)).tobytes() for name in names)


def first(ctx: damon_ctx) -> damon_target:
    """The first target."""
    return ctx.adaptive_targets[0]
