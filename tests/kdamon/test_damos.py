# SPDX-License-Identifier: GPL-2.0-only
"""Schemes: which regions they want, when they are applied, what they count. Walks are in test_control.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdamon.core import damon_add_scheme, damon_nr_samples_per_aggr, damon_set_attrs, damon_set_schemes, run_ctx
from kdamon.damon import (
    damon_attrs,
    damon_ctx,
    damon_intervals_goal,
    damon_nr_accesses_mvsum,
    damon_target,
    damos,
    damos_access_pattern,
    damos_action,
    damos_stat,
    damos_walk_control,
)
from kdamon.damos import damon_commit_schemes, kdamond_apply_schemes
from kdamon.kernel import PAGE_SIZE
from kdamon.mm.sim.machine import SimMachine
from kdamon.regions import Regions
from tests.support.contexts import WorkClock, first, plain_ctx, recorded, report_ops, sim_ctx
from tests.support.model import Region
from tests.support.tables import ctx_of, model_of, table_of

#: Sizes 10, 20, 30, 40; nr_accesses 0, 5, 10, 20; age 0, 3, 6, 9.
FOUR = [
    Region(0, 10, 0, 0, 0),
    Region(100, 120, 5, 5, 3),
    Region(200, 230, 10, 10, 6),
    Region(300, 340, 20, 20, 9),
]


def applied(ctx: damon_ctx, *schemes: damos) -> list[tuple[int, int, int, int]]:
    """Apply ``schemes`` now; returns (scheme, start, end, nr_accesses) of each region that was walked."""
    damon_set_schemes(ctx, schemes)
    for s in ctx.schemes:
        s.next_apply_sis = ctx.passed_sample_intervals
    seen: list[tuple[int, int, int, int]] = []

    def walk(*args: Any) -> None:
        _data, _ctx, _t, r, s, _passed = args
        seen.append((ctx.schemes.index(s), r.start, r.end, r.nr_accesses))

    ctx.walk_control = damos_walk_control(walk)
    kdamond_apply_schemes(ctx)
    return seen


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ({}, [0, 1, 2, 3]),
        ({"min_sz_region": 20, "max_sz_region": 30}, [1, 2]),
        ({"min_sz_region": 21, "max_sz_region": 29}, []),
        ({"min_sz_region": 40}, [3]),
        ({"max_sz_region": 10}, [0]),
        ({"min_nr_accesses": 5, "max_nr_accesses": 10}, [1, 2]),
        ({"min_nr_accesses": 6, "max_nr_accesses": 9}, []),
        ({"max_nr_accesses": 0}, [0]),
        ({"min_age_region": 3, "max_age_region": 6}, [1, 2]),
        ({"min_age_region": 4, "max_age_region": 5}, []),
        ({"min_age_region": 9}, [3]),
        ({"min_sz_region": 20, "max_nr_accesses": 10, "min_age_region": 6}, [2]),
        ({"min_sz_region": 31, "max_sz_region": 29}, []),
        ({"max_sz_region": 2**64 - 1, "max_nr_accesses": 2**32 - 1, "max_age_region": 2**32 - 1}, [0, 1, 2, 3]),
    ],
)
def test_all_bounds_of_a_pattern_are_inclusive(pattern: dict[str, int], wanted: list[int]) -> None:
    ctx = ctx_of(table_of(FOUR))
    scheme = damos(damos_access_pattern(**pattern))
    seen = applied(ctx, scheme)
    assert [(0, FOUR[i].start, FOUR[i].end, FOUR[i].nr_accesses) for i in wanted] == seen
    assert len(wanted) == scheme.stat.nr_tried
    assert sum(FOUR[i].size for i in wanted) == scheme.stat.sz_tried
    assert FOUR == model_of(first(ctx).regions)


def test_the_pattern_and_the_walk_see_the_moving_sum() -> None:
    """In the middle of an aggregation interval half of the last one still counts."""
    ctx = ctx_of(table_of([Region(0, 10, 3, 10), Region(20, 30, 8, 0)]))
    ctx.attrs = damon_attrs(sample_interval=1, aggr_interval=10)
    ctx.passed_sample_intervals, ctx.next_aggregation_sis = 5, 10
    assert [8, 8] == damon_nr_accesses_mvsum(first(ctx).regions, ctx).tolist()
    eights = damos(damos_access_pattern(min_nr_accesses=8, max_nr_accesses=8))
    assert [(0, 0, 10, 8), (0, 20, 30, 8)] == applied(ctx, eights)
    assert [3, 8] == first(ctx).regions.nr_accesses.tolist()


def test_each_walk_sees_one_application_of_each_scheme() -> None:
    """Schemes that are due more often are seen once; the next walk sees them all again."""
    ctx = ctx_of(table_of(FOUR[:1]))
    damon_set_schemes(ctx, [damos(apply_interval_us=5000), damos(apply_interval_us=15_000), damos()])
    seen: list[int] = []
    for first_pass in (1, 21):
        control = damos_walk_control(lambda _d, _c, _t, _r, s, _p: seen.append(ctx.schemes.index(s)))
        ctx.walk_control = control
        for ctx.passed_sample_intervals in range(first_pass, first_pass + 20):
            assert ctx.walk_control is control
            kdamond_apply_schemes(ctx)
        assert ctx.walk_control is None
        assert control.completion.is_set()
        assert [0, 1, 2] == sorted(seen)
        seen.clear()


def test_stat_counts_what_it_tried_and_applies_nothing() -> None:
    def never(*_: Any) -> tuple[int, int]:
        raise AssertionError("stat needs no operations set")

    ctx = ctx_of(table_of(FOUR))
    ctx.ops = report_ops(apply_scheme=never)
    scheme = damos()
    applied(ctx, scheme)
    applied(ctx, scheme)
    assert damos_stat(nr_tried=8, sz_tried=200, nr_snapshots=2) == scheme.stat


def test_actions_are_applied_to_each_region_and_reset_its_age() -> None:
    """What the operations set applied to and what passed its filters are counted in bytes."""
    calls: list[tuple[damon_target, int]] = []

    def apply(ctx: damon_ctx, t: damon_target, row: int, s: damos) -> tuple[int, int]:
        calls.append((t, row))
        return (0, 1) if row == 2 else (7, 5)

    ctx = ctx_of(table_of(FOUR))
    ctx.ops = report_ops(apply_scheme=apply)
    scheme = damos(damos_access_pattern(min_sz_region=20), damos_action.DAMOS_COLD)
    applied(ctx, scheme)
    assert [(first(ctx), 1), (first(ctx), 2), (first(ctx), 3)] == calls
    assert damos_stat(3, 90, 2, 14, sz_ops_filter_passed=11, nr_snapshots=1) == scheme.stat
    assert [0, 0, 0, 0] == first(ctx).regions.age.tolist()


def test_snapshots_are_counted_for_each_target() -> None:
    """Of targets that have regions and are still there."""
    ctx = ctx_of(table_of(FOUR), table_of([]), table_of(FOUR[:1]), table_of(FOUR[1:]))
    gone = ctx.adaptive_targets[3]
    ctx.ops = report_ops(target_valid=lambda t: t is not gone)
    scheme = damos()
    applied(ctx, scheme)
    assert damos_stat(nr_tried=5, sz_tried=110, nr_snapshots=2) == scheme.stat


def test_a_scheme_stops_after_its_maximum_of_snapshots() -> None:
    """Also in the middle of the targets."""
    ctx = ctx_of(table_of(FOUR), table_of(FOUR[:1]))
    limited, free = damos(max_nr_snapshots=3), damos()
    for _ in range(4):
        applied(ctx, limited, free)
    assert damos_stat(nr_tried=9, sz_tried=210, nr_snapshots=3) == limited.stat
    assert damos_stat(nr_tried=20, sz_tried=440, nr_snapshots=8) == free.stat
    limited.max_nr_snapshots = 4
    applied(ctx, limited)
    assert 4 == limited.stat.nr_snapshots


def test_neighbours_that_hold_the_same_are_merged_behind_the_schemes() -> None:
    """Up to the size that the minimum number of regions allows; never across a gap."""
    regions = [
        Region(0, 10, 1, 2, 3),
        Region(10, 20, 1, 2, 3),
        Region(20, 30, 1, 2, 4),
        Region(31, 40, 1, 2, 4),
        Region(40, 70, 1, 2, 4),
    ]
    ctx = ctx_of(table_of(regions))
    # 69 bytes in at least 3 regions: 23 bytes are the most.
    ctx.attrs = damon_attrs(min_nr_regions=3)
    scheme = damos()
    seen = applied(ctx, scheme)
    assert [(r.start, r.end) for r in regions] == [(start, end) for _, start, end, _ in seen]
    assert [Region(0, 20, 1, 2, 3), *regions[2:]] == model_of(first(ctx).regions)


@pytest.mark.parametrize(
    ("apply_interval_us", "expected"),
    [
        (0, [4, 8, 12]),
        (2000, [2, 4, 6, 8, 10, 12]),
        (3000, [3, 6, 9, 12]),
        (5000, [5, 10]),
        (999, list(range(1, 13))),
        (1, list(range(1, 13))),
        (1000, list(range(1, 13))),
        (100_000, []),
    ],
)
def test_each_scheme_has_its_own_interval(apply_interval_us: int, expected: list[int]) -> None:
    """0 is the aggregation interval; one shorter than the sampling interval is due each sampling interval."""
    seen: list[int] = []

    def apply(ctx: damon_ctx, t: damon_target, row: int, s: damos) -> tuple[int, int]:
        seen.append(ctx.passed_sample_intervals)
        return 0, 0

    ctx = plain_ctx((0, 2), ops=report_ops(apply_scheme=apply), sample_interval=1000, aggr_interval=4000)
    ctx.min_region_sz = 2
    ctx.clock = WorkClock()
    damon_add_scheme(ctx, damos(action=damos_action.DAMOS_COLD, apply_interval_us=apply_interval_us))
    run_ctx(ctx, 0.012)
    assert expected == seen


def test_a_sampling_interval_of_nothing_counts_as_a_microsecond() -> None:
    ctx = ctx_of(table_of(FOUR))
    ctx.attrs = damon_attrs(sample_interval=0, aggr_interval=40)
    ctx.passed_sample_intervals = 2
    for interval, due in ((0, 42), (7, 9)):
        s = damos(apply_interval_us=interval)
        damon_add_scheme(ctx, s)
        assert due == s.next_apply_sis


def test_other_intervals_plan_applications_anew() -> None:
    """Other parameters of a scheme do not: those count from its next application on."""
    ctx = ctx_of(table_of(FOUR))
    damon_set_schemes(ctx, [damos(), damos(apply_interval_us=30_000)])
    assert [20, 6] == [s.next_apply_sis for s in ctx.schemes]
    ctx.passed_sample_intervals = 5
    src = ctx_of()
    src.schemes = [damos(apply_interval_us=10_000), damos(apply_interval_us=30_000), damos()]
    damon_commit_schemes(ctx, src)
    assert [20, 6, 25] == [s.next_apply_sis for s in ctx.schemes]
    damon_set_attrs(ctx, damon_attrs(sample_interval=1000, aggr_interval=50_000))
    assert [15, 35, 55] == [s.next_apply_sis for s in ctx.schemes]


@pytest.mark.parametrize(("apply_interval_us", "times"), [(1_000_000, 10), (310_000, 32), (0, 100)])
def test_tuning_the_intervals_does_not_put_applications_off(apply_interval_us: int, times: int) -> None:
    """Ten seconds of memory so busy that each tuning, three times a second, leaves the intervals at their least."""
    machine = SimMachine()
    process = machine.spawn([(0, PAGE_SIZE * 16), (1 << 30, (1 << 30) + PAGE_SIZE), (1 << 40, (1 << 40) + PAGE_SIZE)])
    process.access(0, 1 << 41)
    goal = damon_intervals_goal(access_bp=400, aggrs=3, min_sample_us=5000, max_sample_us=1_000_000)
    ctx = sim_ctx(process, machine, sample_interval=5000, aggr_interval=100_000, intervals_goal=goal)
    s = damos(apply_interval_us=apply_interval_us)
    damon_add_scheme(ctx, s)
    run_ctx(ctx, 10.001)
    assert (times, 100_000) == (s.stat.nr_snapshots, ctx.attrs.aggr_interval)


def test_a_scheme_without_an_interval_follows_tuned_aggregation_intervals() -> None:
    """Of memory so idle that they double, time after time."""
    machine = SimMachine()
    process = machine.spawn([(0, PAGE_SIZE * 16), (1 << 30, (1 << 30) + PAGE_SIZE), (1 << 40, (1 << 40) + PAGE_SIZE)])
    goal = damon_intervals_goal(access_bp=400, aggrs=1, min_sample_us=5000, max_sample_us=40_000)
    ctx = sim_ctx(process, machine, sample_interval=5000, aggr_interval=100_000, intervals_goal=goal)
    s = damos()
    damon_add_scheme(ctx, s)
    with recorded(ctx) as recorder:
        run_ctx(ctx, 10)
    assert [10_000, 20_000, 40_000] == recorder.tuned[:3]
    assert len(recorder.snapshots) == s.stat.nr_snapshots


def test_schemes_see_complete_counts_at_the_end_of_an_aggregation() -> None:
    """Whatever the moving sum does between, there it is the count of all samples."""

    def check(ctx: damon_ctx) -> None:
        first(ctx).regions.nr_accesses += np.uint32(ctx.passed_sample_intervals % 2)

    ctx = plain_ctx((0, 2), ops=report_ops(check_accesses=check), sample_interval=1000, aggr_interval=10_000)
    ctx.min_region_sz = 2
    ctx.clock = WorkClock()
    exact = damos(damos_access_pattern(min_nr_accesses=5, max_nr_accesses=5))
    other = damos(damos_access_pattern(max_nr_accesses=4))
    damon_set_schemes(ctx, [exact, other])
    run_ctx(ctx, 0.1)
    assert (10, 0) == (exact.stat.nr_tried, other.stat.nr_tried)
    assert 10 == damon_nr_samples_per_aggr(ctx.attrs)


def test_all_regions_gone_is_no_error() -> None:
    ctx = ctx_of(Regions())
    scheme = damos()
    assert [] == applied(ctx, scheme)
    assert damos_stat() == scheme.stat


def test_a_committed_scheme_is_the_sources_but_not_shared() -> None:
    dst, src = ctx_of(table_of(FOUR)), ctx_of(table_of(FOUR))
    src.schemes = [damos(damos_access_pattern(1, 2, 3, 4, 5, 6), damos_action.DAMOS_STAT, 7, 8)]
    damon_commit_schemes(dst, src)
    assert (src.schemes[0].pattern, 7, 8) == (
        dst.schemes[0].pattern,
        dst.schemes[0].apply_interval_us,
        dst.schemes[0].max_nr_snapshots,
    )
    src.schemes[0].pattern.min_sz_region = 99
    assert 1 == dst.schemes[0].pattern.min_sz_region
