# SPDX-License-Identifier: GPL-2.0-only
"""Memory whose samples are mostly unknown: never taken for cold, shown as unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attrs import evolve

from kdamon.core import damon_add_scheme, damon_set_regions, kdamond_merge_regions, run_ctx
from kdamon.damon import (
    damon_addr_range,
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_ops_id,
    damos,
    damos_access_pattern,
    damos_action,
    damos_quota,
    damos_walk_control,
)
from kdamon.lru_sort import damon_lru_sort
from kdamon.mm import Faults
from kdamon.mm.ranges import subtract, total
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.reclaim import damon_reclaim
from kdamon.regions import mostly_unknown
from kdamon.stat import idle_percentiles, unknown_mem_bp
from tests.support.contexts import first, sim_ctx
from tests.support.model import Region
from tests.support.modules import HEAP, MEBI, module, run
from tests.support.tables import ctx_of, model_of, table_of

COSTLY = {"pageout", "cold", "migrate_cold", "lru_deprio", "nohugepage"}
MIDDLE = HEAP + 32 * MEBI
END = HEAP + 64 * MEBI
#: Five samples in an aggregation interval, in place of twenty: what is at issue in long runs happens once in each.
FEW_SAMPLES = {"sample_interval": 20_000}
IDLE = damos_access_pattern(max_nr_accesses=0)
IDLE_A_SECOND = damos_access_pattern(max_nr_accesses=0, min_age_region=10)


def spawn(machine: SimMachine) -> SimProcess:
    """A process of which the first half of its memory is unknown, and all of it idle."""
    process = machine.spawn([(HEAP, END)], 150)
    process.unknown = [(HEAP, MIDDLE)]
    return process


def ctx_with(process: SimProcess, machine: SimMachine, *schemes: damos, **attrs: int) -> damon_ctx:
    """A context for all of the memory of ``process``, with ``schemes``."""
    ctx = sim_ctx(process, machine, ops=damon_ops_id.DAMON_OPS_FVADDR, **attrs)
    damon_set_regions(first(ctx), [damon_addr_range(HEAP, END)], ctx.min_region_sz)
    for scheme in schemes:
        damon_add_scheme(ctx, scheme)
    return ctx


def at(ctx: damon_ctx, machine: SimMachine, seconds: float, change: Any) -> None:
    """Call ``change`` once so many virtual seconds passed."""
    left = [change]

    def look(_data: Any) -> None:
        if left and machine.clock.now() >= seconds * 1e9:
            left.pop()()

    ctx.call_controls.append(damon_call_control(look, repeat=True))


def gone(process: SimProcess, start: int, end: int) -> int:
    """How many bytes of [start, end) are paged out."""
    return total(subtract(np.array([[start, end]], np.uint64), process.resident()))


@pytest.mark.parametrize(("nr_samples", "least"), [(1, 1), (2, 1), (3, 2), (20, 10), (21, 11)])
def test_mostly_is_at_least_half_of_the_samples(nr_samples: int, least: int) -> None:
    counts = np.arange(nr_samples + 1, dtype=np.uint32)
    assert [n >= least for n in counts] == mostly_unknown(counts, nr_samples).tolist()


# Schemes.


@pytest.mark.parametrize("pattern", [IDLE, IDLE_A_SECOND, damos_access_pattern()])
@pytest.mark.parametrize("action", list(damos_action))
def test_actions_that_cost_leave_alone_what_is_mostly_unknown(
    action: damos_action, pattern: damos_access_pattern
) -> None:
    """Others try it; all of them count how much it was."""
    machine = SimMachine(seed=1)
    scheme = damos(pattern, action)
    ctx = ctx_with(spawn(machine), machine, scheme, **FEW_SAMPLES)
    tried = {"unknown": 0, "known": 0}

    def spy(ctx: damon_ctx, t: Any, rows: Any, s: damos) -> Any:
        for start, end in zip(t.regions.start[rows].tolist(), t.regions.end[rows].tolist(), strict=True):
            tried["unknown"] += max(min(end, MIDDLE) - start, 0)
            tried["known"] += max(end - max(start, MIDDLE), 0)
        return (np.zeros(len(rows), np.uint64),) * 2

    assert ctx.ops is not None
    ctx.ops = evolve(ctx.ops, apply_scheme=spy)
    run_ctx(ctx, 2.02)
    assert (action.value in COSTLY) == scheme.needs_known
    assert scheme.stat.sz_unknown > 0
    if action is damos_action.DAMOS_STAT:
        # To do nothing, the core needs no operations set.
        assert 0.4 < scheme.stat.sz_unknown / scheme.stat.sz_tried < 0.6
        return
    assert scheme.stat.sz_tried == sum(tried.values())
    assert tried["known"] > 0
    # A region that reaches across the middle is known if less than half of it is not.
    assert (tried["unknown"] < 0.05 * tried["known"]) == (action.value in COSTLY)


def test_hot_memory_of_which_most_is_unknown_is_not_paged_out() -> None:
    """As of a file that one process reads all the time and another one has mapped but for a page here and there."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.access(HEAP, END)
    process.unknown = [(start + MEBI // 16, start + 4 * MEBI) for start in range(HEAP, END, 4 * MEBI)]
    ctx = ctx_with(process, machine, damos(IDLE_A_SECOND, damos_action.DAMOS_PAGEOUT), **FEW_SAMPLES)
    run_ctx(ctx, 20)
    assert 0 == ctx.schemes[0].stat.nr_tried


def test_the_known_part_is_paged_out_and_no_more() -> None:
    """However regions are cut and merged, with a quota that scores choose for as well as without."""
    for quota in (damos_quota(), damos_quota(reset_interval=1000, sz=2 * MEBI, weight_age=1)):
        machine = SimMachine(seed=1)
        process = spawn(machine)
        ctx = ctx_with(process, machine, damos(IDLE_A_SECOND, damos_action.DAMOS_PAGEOUT, quota=quota), **FEW_SAMPLES)
        run_ctx(ctx, 30)
        assert gone(process, MIDDLE, END) > 24 * MEBI
        assert gone(process, HEAP, MIDDLE) < MEBI


def test_a_quota_is_not_kept_for_what_is_unknown() -> None:
    """Unknown memory is the oldest, but not among the scores that share the quota."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.access(MIDDLE, END, until=20)
    quota = damos_quota(reset_interval=1000, sz=8 * MEBI, weight_age=1)
    ctx = ctx_with(process, machine, damos(IDLE_A_SECOND, damos_action.DAMOS_PAGEOUT, quota=quota), **FEW_SAMPLES)
    run_ctx(ctx, 32)
    assert gone(process, MIDDLE, END) > 24 * MEBI
    assert gone(process, HEAP, MIDDLE) < MEBI


def test_time_that_is_unknown_is_no_time_of_being_cold() -> None:
    """What becomes known after ten seconds has to be idle for five from then on; the age itself goes on."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.unknown = [(HEAP, END)]
    scheme = damos(damos_access_pattern(max_nr_accesses=0, min_age_region=50), damos_action.DAMOS_PAGEOUT)
    ctx = ctx_with(process, machine, scheme, **FEW_SAMPLES)
    seen: list[tuple[float, int]] = []
    at(ctx, machine, 10, process.unknown.clear)
    at(ctx, machine, 14.5, lambda: seen.append((gone(process, HEAP, END), int(first(ctx).regions.age.max()))))
    run_ctx(ctx, 16)
    [(too_early, age)] = seen
    assert 0 == too_early
    assert age > 130
    assert gone(process, HEAP, END) > 60 * MEBI


def test_what_was_known_before_does_not_count_either() -> None:
    """Cold for four seconds, unknown for two, and again known: five seconds begin anew."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.unknown = []
    scheme = damos(damos_access_pattern(max_nr_accesses=0, min_age_region=50), damos_action.DAMOS_PAGEOUT)
    ctx = ctx_with(process, machine, scheme)
    seen: list[int] = []
    at(ctx, machine, 4, lambda: process.unknown.append((HEAP, END)))
    at(ctx, machine, 6, process.unknown.clear)
    at(ctx, machine, 10.5, lambda: seen.append(gone(process, HEAP, END)))
    run_ctx(ctx, 12)
    assert [0] == seen
    assert gone(process, HEAP, END) > 60 * MEBI


@pytest.mark.parametrize("apply_interval_us", [5000, 10_000, 45_000, 100_000, 250_000])
def test_no_moment_of_an_interval_takes_it_for_known(apply_interval_us: int) -> None:
    """Neither before the first aggregation interval is over nor in the middle of another one."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.unknown = [(HEAP, END)]
    scheme = damos(IDLE, damos_action.DAMOS_PAGEOUT, apply_interval_us=apply_interval_us)
    run_ctx(ctx_with(process, machine, scheme), 1)
    assert 0 == scheme.stat.nr_tried
    assert 0 < scheme.stat.sz_unknown


def test_a_walk_shows_how_many_samples_were_unknown() -> None:
    """Those of the time that nr_accesses is about, also in the middle of an interval."""
    machine = SimMachine(seed=1)
    ctx = ctx_with(spawn(machine), machine, damos(apply_interval_us=45_000))
    rows: list[tuple[bool, int]] = []

    def show(_data: Any, _ctx: Any, _t: Any, region: Any, _s: Any, _passed: int) -> None:
        if region.end <= MIDDLE or region.start >= MIDDLE:
            rows.append((region.end <= MIDDLE, region.nr_unknown))

    at(ctx, machine, 2, lambda: setattr(ctx, "walk_control", damos_walk_control(show)))
    run_ctx(ctx, 3)
    assert {(True, 20), (False, 0)} == set(rows)


def test_memory_out_of_reach_is_unknown() -> None:
    """Nothing was sampled there, so nothing is known once it is in reach again."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.unknown = []
    scheme = damos(IDLE_A_SECOND, damos_action.DAMOS_PAGEOUT)
    ctx = ctx_with(process, machine, scheme)

    class OutOfReach:
        pid, primitive = 150, "page_table"

        def valid(self) -> bool:
            return True

        def get_mm(self) -> SimProcess | None:
            return process if machine.clock.now() >= 5e9 else None

        def put(self) -> None:
            return

    first(ctx).task = OutOfReach()
    seen: list[int] = []
    at(ctx, machine, 5.9, lambda: seen.append(gone(process, HEAP, END)))
    run_ctx(ctx, 8)
    assert [0] == seen
    assert gone(process, HEAP, END) > 60 * MEBI


def test_where_faults_are_lost_samples_are_unknown() -> None:
    """A page that no fault is known of may be one whose fault was lost."""

    class Losing(SimMachine):
        def faults(self) -> Faults:
            found = super().faults()
            self.faults_lost += len(found)
            return found[:0]

    machine = Losing(seed=1)
    process = spawn(machine)
    process.unknown = []
    process.access(HEAP, END)
    scheme = damos(IDLE, damos_action.DAMOS_PAGEOUT)
    ctx = ctx_with(process, machine, scheme)
    ctx.sample_control.primitives_enabled.page_fault = True
    run_ctx(ctx, 3)
    assert machine.faults_lost > 0
    assert 0 == scheme.stat.nr_tried
    assert ctx.nr_unknown == ctx.nr_samples > 0


# Regions.


def test_known_and_unknown_neighbours_stay_apart() -> None:
    """Unless there are too many regions: then what they are merged into is unknown, and as old as nothing."""
    regions = [Region(10 * i, 10 * i + 10, age=30, nr_unknown=20 if i % 5 == 0 else 9) for i in range(20)]
    ctx = ctx_of(table_of(regions))
    ctx.attrs = damon_attrs(min_nr_regions=3, max_nr_regions=8)
    kdamond_merge_regions(ctx, 0, 1000)
    assert [(10, 20, 31), (40, 9, 0)] * 4 == [(r.size, r.nr_unknown, r.unknown_age) for r in ctx_rows(ctx)]
    ctx.attrs = damon_attrs(min_nr_regions=3, max_nr_regions=3)
    kdamond_merge_regions(ctx, 0, 1000)
    assert [(200, 20, 32, 32)] == [(r.size, r.nr_unknown, r.age, r.unknown_age) for r in ctx_rows(ctx)]


def ctx_rows(ctx: damon_ctx) -> list[Region]:
    return model_of(first(ctx).regions)


def test_merged_known_regions_are_known_for_their_mean_time() -> None:
    """As with ages."""
    regions = [Region(0, 30, age=20, unknown_age=8), Region(30, 40, age=60)]
    ctx = ctx_of(table_of(regions))
    kdamond_merge_regions(ctx, 0, 1000)
    assert [(31, 6)] == [(r.age, r.unknown_age) for r in ctx_rows(ctx)]


def test_the_table_finds_where_memory_is_unknown() -> None:
    """Regions meet near the middle, since unknown and cold memory are different things."""
    machine = SimMachine(seed=1)
    ctx = ctx_with(spawn(machine), machine, **FEW_SAMPLES)
    edges: list[int] = []
    at(ctx, machine, 19.9, lambda: edges.extend(first(ctx).regions.start.tolist()))
    run_ctx(ctx, 20)
    assert min(abs(edge - MIDDLE) for edge in edges) < MEBI


# Modules.


def test_damon_reclaim_reclaims_only_what_is_known() -> None:
    machine = SimMachine(seed=1)
    process = spawn(machine)
    reclaim = module(
        damon_reclaim, machine, monitor_pids=(150,), min_age=1_000_000, wmarks_high=1000, wmarks_mid=999, wmarks_low=0
    )
    run(reclaim, reclaim.apply_parameters(), 15)
    assert gone(process, MIDDLE, END) > 24 * MEBI
    assert gone(process, HEAP, MIDDLE) < MEBI
    assert reclaim.stat.sz_unknown > 0


def test_damon_lru_sort_deactivates_only_what_is_known() -> None:
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.unknown = [(HEAP, END)]
    lru_sort = module(
        damon_lru_sort,
        machine,
        monitor_pids=(150,),
        cold_min_age=1_000_000,
        wmarks_high=1000,
        wmarks_mid=999,
        wmarks_low=0,
    )
    run(lru_sort, lru_sort.apply_parameters(), 5)
    assert 0 == lru_sort.cold_stat.nr_tried
    assert lru_sort.cold_stat.sz_unknown > 0


def test_damon_stat_counts_no_idle_time_that_is_unknown() -> None:
    """What is unknown now is a share of its own, what was unknown is idle since it is known."""
    regions = [Region(0, 60, age=99, unknown_age=95), Region(60, 80, age=99, unknown_age=99, nr_unknown=20)]
    regions.append(Region(80, 100, nr_accesses=5, age=9, unknown_age=3))
    ctx = ctx_of(table_of(regions))
    assert {-700, 500} == set(idle_percentiles(ctx) or ())
    assert 2000 == unknown_mem_bp(ctx)
