# SPDX-License-Identifier: GPL-2.0-only
"""Watermarks: when a scheme works, and what a kdamond does while none does."""

from __future__ import annotations

import errno

import pytest

from kdamon.core import (
    damon_add_scheme,
    damon_call,
    damon_commit_ctx,
    damon_new_ctx,
    damon_start,
    damos_walk,
    run_ctx,
)
from kdamon.damon import (
    damon_call_control,
    damon_ctx,
    damos,
    damos_access_pattern,
    damos_filter,
    damos_filter_type,
    damos_quota,
    damos_quota_goal,
    damos_walk_control,
    damos_watermarks,
    damos_wmark_metric,
)
from kdamon.damos import damon_commit_schemes, kdamond_apply_schemes
from kdamon.damos_wmarks import damos_wmark_wait_us
from kdamon.kernel import PAGE_SIZE, RealClock
from kdamon.mm.sim.machine import SimMachine
from kdamon.regions import Regions
from tests.support.contexts import plain_ctx, sim_ctx, stopped
from tests.support.tables import ctx_of
from tests.support.waiting import eventually

RATE = damos_wmark_metric.DAMOS_WMARK_FREE_MEM_RATE


def scheme(interval: int = 5000, metric: damos_wmark_metric = RATE) -> damos:
    """One that begins to work below 40 percent of free memory, until there are more than 50 or less than 20."""
    return damos(wmarks=damos_watermarks(metric, interval, high=500, mid=400, low=200))


def machine_ctx(machine: SimMachine | None, *schemes: damos) -> damon_ctx:
    ctx = ctx_of(Regions([0], [PAGE_SIZE]))
    ctx.machine = machine
    for s in schemes:
        damon_add_scheme(ctx, s)
    return ctx


def test_a_scheme_is_activated_at_mid_and_deactivated_outside_of_high_and_low() -> None:
    """Between mid and high it stays what it is."""
    machine, s = SimMachine(), scheme()
    ctx = machine_ctx(machine, s)
    seen = []
    for rate in (450, 501, 500, 401, 400, 399, 200, 199, 399, 500, 501):
        machine.metrics["free_mem_rate"] = rate
        seen.append((rate, damos_wmark_wait_us(ctx, s), s.wmarks.activated))
    active, inactive = (0, True), (5000, False)
    assert [
        (450, *active),
        (501, *inactive),
        (500, *inactive),
        (401, *inactive),
        (400, *inactive),
        (399, *active),
        (200, *active),
        (199, *inactive),
        (399, *active),
        (500, *active),
        (501, *inactive),
    ] == seen


@pytest.mark.parametrize("what", ["no metric", "no machine", "not measured"])
def test_what_is_not_known_deactivates_nothing(what: str) -> None:
    machine = SimMachine()
    machine.metrics["free_mem_rate"] = 1000
    s = scheme(metric=damos_wmark_metric.DAMOS_WMARK_NONE if what == "no metric" else RATE)
    if what == "not measured":
        del machine.metrics["free_mem_rate"]
    ctx = machine_ctx(None if what == "no machine" else machine, s)
    assert (0, True) == (damos_wmark_wait_us(ctx, s), s.wmarks.activated)


def test_a_commit_keeps_a_scheme_inactive_unless_it_changes_the_metric() -> None:
    ctx, src = machine_ctx(SimMachine(), scheme()), damon_new_ctx()
    ctx.schemes[0].wmarks.activated = False
    src.schemes = [scheme(interval=7000)]
    damon_commit_schemes(ctx, src)
    assert (7000, False) == (ctx.schemes[0].wmarks.interval, ctx.schemes[0].wmarks.activated)
    src.schemes = [damos()]
    damon_commit_schemes(ctx, src)
    assert ctx.schemes[0].wmarks.activated


def run_with(rates: dict[float, int], *schemes: damos) -> tuple[damon_ctx, list[tuple[float, int]]]:
    """Simulate two seconds in which free memory changes at given times; returns what each apply saw."""

    class Machine(SimMachine):
        def metric(self, name: str, *, nid: int = 0, memcg: str = "") -> int:
            self.metrics["free_mem_rate"] = [rate for at, rate in rates.items() if at <= self.clock.now() / 1e9][-1]
            return super().metric(name, nid=nid, memcg=memcg)

    machine = Machine()
    process = machine.spawn([(0, PAGE_SIZE * 16), (1 << 30, (1 << 30) + PAGE_SIZE), (1 << 40, (1 << 40) + PAGE_SIZE)])
    ctx = sim_ctx(process, machine)
    for s in schemes:
        damon_add_scheme(ctx, s)
    run_ctx(ctx, 2)
    return ctx, [(s.stat.nr_snapshots, s.stat.nr_tried) for s in schemes]


def test_nothing_is_monitored_while_all_schemes_are_inactive() -> None:
    """One second of the two: half of the snapshots, half of the samples."""
    both = [scheme(100_000), scheme(50_000)]
    ctx, applied = run_with({0: 300, 0.5: 600, 1.5: 300}, *both)
    assert all(9 <= snapshots <= 11 for snapshots, _ in applied)
    assert 190 <= ctx.passed_sample_intervals <= 212


def test_a_scheme_that_works_keeps_the_kdamond_going() -> None:
    """Only the inactive one is not applied."""
    idle, busy = scheme(), damos()
    ctx, ((idle_snapshots, _), (busy_snapshots, _)) = run_with({0: 900}, idle, busy)
    assert (0, 20) == (idle_snapshots, busy_snapshots)
    assert 400 == ctx.passed_sample_intervals


def test_a_walk_does_not_wait_for_a_scheme_that_is_inactive() -> None:
    """It sees what the others do, and is over when they had their turn; the inactive one had its turn, too."""
    ctx = machine_ctx(None, damos(), damos())
    busy, idle = ctx.schemes
    idle.wmarks.activated = False
    idle.quota.sz = 10
    busy.next_apply_sis = idle.next_apply_sis = ctx.passed_sample_intervals = 7
    seen: list[damos] = []
    control = damos_walk_control(lambda _d, _c, _t, _r, s, _p: seen.append(s))
    ctx.walk_control = control
    kdamond_apply_schemes(ctx)
    assert ([busy], None, False) == (seen, ctx.walk_control, control.canceled)
    assert control.completion.is_set()
    assert [27, 27] == [s.next_apply_sis for s in ctx.schemes]
    assert (1, 0) == (busy.stat.nr_snapshots, idle.stat.nr_snapshots)
    assert idle.quota.charged_from is None, "its quota has no window"


def test_an_inactive_kdamond_answers_calls_cancels_walks_and_stops() -> None:
    machine = SimMachine()
    machine.metrics["free_mem_rate"] = 900
    process = machine.spawn([(0, PAGE_SIZE * 16), (1 << 30, (1 << 30) + PAGE_SIZE), (1 << 40, (1 << 40) + PAGE_SIZE)])
    ctx = sim_ctx(process, machine)
    ctx.clock = RealClock()
    damon_add_scheme(ctx, scheme(20_000))
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        called: list[int] = []
        damon_call(ctx, damon_call_control(called.append, 1))
        assert [1] == called
        with pytest.raises(OSError) as error:
            damos_walk(ctx, damos_walk_control(lambda *_: None))
        assert errno.ECANCELED == error.value.errno
        assert 0 == ctx.nr_samples
        machine.metrics["free_mem_rate"] = 300
        eventually(lambda: ctx.nr_samples, "monitoring after it was activated")


def test_a_walk_is_canceled_too_where_watermarks_have_no_interval() -> None:
    """Monitoring goes on then, but nothing would ever be tried."""
    machine = SimMachine()
    machine.metrics["free_mem_rate"] = 900
    process = machine.spawn([(0, PAGE_SIZE * 16), (1 << 30, (1 << 30) + PAGE_SIZE), (1 << 40, (1 << 40) + PAGE_SIZE)])
    ctx = sim_ctx(process, machine)
    ctx.clock = RealClock()
    damon_add_scheme(ctx, scheme(0))
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        with pytest.raises(OSError) as error:
            damos_walk(ctx, damos_walk_control(lambda *_: None))
        assert errno.ECANCELED == error.value.errno
        eventually(lambda: ctx.nr_samples, "monitoring")


@pytest.mark.parametrize("after", [[], [damos()], [scheme(5000, damos_wmark_metric.DAMOS_WMARK_NONE)]])
def test_monitoring_begins_when_a_commit_takes_the_watermarks_away(after: list[damos]) -> None:
    """Also if it leaves no scheme."""
    machine = SimMachine()
    machine.metrics["free_mem_rate"] = 900
    process = machine.spawn([(0, PAGE_SIZE * 16), (1 << 30, (1 << 30) + PAGE_SIZE), (1 << 40, (1 << 40) + PAGE_SIZE)])
    ctx, src = sim_ctx(process, machine), sim_ctx(process, machine)
    ctx.clock = RealClock()
    damon_add_scheme(ctx, scheme(5000))
    src.schemes = after
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        damon_call(ctx, damon_call_control(lambda _: damon_commit_ctx(ctx, src)))
        eventually(lambda: ctx.nr_samples, "monitoring without watermarks")


# Commits of whole contexts.


def bad_schemes() -> list[damos]:
    kind = damos_filter_type.DAMOS_FILTER_TYPE_HUGEPAGE_SIZE
    sized = damos_filter(kind)
    sized.sz_range.min = 1
    return [
        damos(core_filters=[], ops_filters=[sized]),
        damos(quota=damos_quota(goals=[damos_quota_goal(target_value=0)])),
    ]


@pytest.mark.parametrize("bad", [0, 1])
def test_a_commit_with_a_bad_scheme_changes_nothing(bad: int) -> None:
    """Neither that scheme nor those before it, nor anything else."""
    ctx, src = plain_ctx((0, 100)), plain_ctx((0, 100), sample_interval=2000)
    ctx.schemes = [damos(damos_access_pattern(min_age_region=7)), damos()]
    src.schemes = [damos(damos_access_pattern(min_age_region=8)), bad_schemes()[bad]]
    before = (ctx.attrs, ctx.schemes[0].pattern)
    with pytest.raises(OSError) as error:
        damon_commit_ctx(ctx, src)
    assert errno.EINVAL == error.value.errno
    assert before == (ctx.attrs, ctx.schemes[0].pattern)
    assert not ctx.maybe_corrupted
