# SPDX-License-Identifier: GPL-2.0-only
"""Quotas: charge windows, where to go on, which regions are worth it; and core filters, on any regions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.core import damon_add_scheme, damon_destroy_target, damon_set_attrs, run_ctx, validate_ctx
from kdamon.damon import (
    damon_addr_range,
    damon_attrs,
    damon_ctx,
    damon_region,
    damon_target,
    damos,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_quota,
    damos_quota_goal,
    damos_quota_goal_metric,
    damos_stat,
)
from kdamon.damos import damon_commit_schemes, kdamond_apply_schemes
from kdamon.damos_filters import damos_add_filter
from kdamon.damos_quota import damos_charge_quota
from kdamon.mm.sim.machine import SimMachine
from kdamon.regions import Regions
from tests.support.contexts import WorkClock, report_ops, sim_ctx
from tests.support.model import Region
from tests.support.tables import ctx_of, effort, ranges_of, region_lists, table_of

WINDOW_MS = 1000


class Applied:
    """An operations set that remembers what it was applied to."""

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self.ranges: list[tuple[int, int, int]] = []

    def __call__(self, ctx: damon_ctx, t: damon_target, row: int, s: damos) -> tuple[int, int]:
        start, end = int(t.regions.start[row]), int(t.regions.end[row])
        self.ranges.append((ctx.adaptive_targets.index(t), start, end))
        return int((end - start) * self.share), 0

    def take(self) -> list[tuple[int, int, int]]:
        """What was applied to since the last call: place of the target, start, end."""
        ranges, self.ranges = self.ranges, []
        return ranges


def quota_ctx(*tables: Regions, ops: Any = None, min_region_sz: int = 1, **callbacks: Any) -> damon_ctx:
    ctx = ctx_of(*tables, min_region_sz=min_region_sz)
    damon_set_attrs(ctx, damon_attrs(min_nr_regions=3))
    ctx.ops = report_ops(apply_scheme=ops or Applied(), **callbacks)
    return ctx


def pageout(sz: int, **quota: Any) -> damos:
    return damos(
        action=damos_action.DAMOS_PAGEOUT, quota=damos_quota(**({"sz": sz, "reset_interval": WINDOW_MS} | quota))
    )


def apply(ctx: damon_ctx, ms: int = 0) -> None:
    """Apply all schemes, ``ms`` after the last time."""
    ctx.deadline += ms * 1_000_000
    for s in ctx.schemes:
        s.next_apply_sis = ctx.passed_sample_intervals
    kdamond_apply_schemes(ctx)
    validate_ctx(ctx)


# Charge windows.


def test_a_window_ends_where_the_quota_does_and_the_next_goes_on_there() -> None:
    """Round all targets and back to the beginning."""
    ops = Applied()
    ctx = quota_ctx(Regions([0, 200], [100, 250]), Regions([0], [60]), ops=ops)
    damon_add_scheme(ctx, pageout(80))
    seen = []
    for _ in range(4):
        apply(ctx, WINDOW_MS)
        seen.append(ops.take())
    assert [
        [(0, 0, 80)],
        [(0, 80, 100), (0, 200, 250), (1, 0, 10)],
        [(1, 10, 60)],
        [(0, 0, 80)],
    ] == seen


def test_the_operations_set_gets_as_many_regions_at_once_as_surely_fit() -> None:
    """All without a quota; else what fits in whole, then what is left of the quota; more where charges are lower."""
    batches: list[list[tuple[int, int]]] = []

    def apply_scheme(ctx: damon_ctx, t: damon_target, rows: Any, s: damos) -> tuple[Any, Any]:
        batches.append([(int(t.regions.start[row]), int(t.regions.end[row])) for row in rows])
        nothing = np.zeros(len(rows), np.uint64)
        return nothing, nothing

    def batches_of(s: damos) -> list[list[tuple[int, int]]]:
        ctx = quota_ctx(Regions([0, 20, 40, 60], [10, 30, 50, 70]))
        assert ctx.ops is not None
        ctx.ops.apply_scheme = apply_scheme
        damon_add_scheme(ctx, s)
        batches.clear()
        apply(ctx, WINDOW_MS)
        assert s.stat.sz_tried == sum(end - start for batch in batches for start, end in batch)
        return batches

    assert [[(0, 10), (20, 30), (40, 50), (60, 70)]] == batches_of(damos(action=damos_action.DAMOS_PAGEOUT))
    assert [[(0, 10), (20, 30)], [(40, 45)]] == batches_of(pageout(25))
    assert [[(0, 10), (20, 30)], [(40, 50), (60, 70)]] == batches_of(
        pageout(25, fail_charge_num=1, fail_charge_denom=4)
    )
    assert [[(0, 10)], [(20, 25)]] == batches_of(pageout(25, fail_charge_num=2, fail_charge_denom=1))


def test_the_end_of_the_last_target_ends_a_pass() -> None:
    """What is left of the quota is for the next pass, which begins at the beginning."""
    ops = Applied()
    ctx = quota_ctx(Regions([0], [100]), ops=ops)
    damon_add_scheme(ctx, pageout(150))
    apply(ctx, WINDOW_MS)
    apply(ctx, 100)
    assert [(0, 0, 100), (0, 0, 50)] == ops.take()
    assert (150, 0) == (ctx.schemes[0].quota.charged_sz, ctx.schemes[0].stat.qt_exceeds)
    apply(ctx, 100)
    assert [] == ops.take()
    apply(ctx, WINDOW_MS - 200)
    assert [(0, 50, 100)] == ops.take()
    assert (50, 1) == (ctx.schemes[0].quota.charged_sz, ctx.schemes[0].stat.qt_exceeds)


def test_without_a_reset_interval_each_pass_is_a_window() -> None:
    ops = Applied()
    ctx = quota_ctx(Regions([0], [100]), ops=ops)
    damon_add_scheme(ctx, pageout(30, reset_interval=0))
    for _ in range(4):
        apply(ctx, 0)
    assert [(0, 0, 30), (0, 30, 60), (0, 60, 90), (0, 90, 100)] == ops.take()


@pytest.mark.parametrize(
    ("sz", "expected"),
    [
        (50, [[(5, 48)], [(48, 96)], [(96, 100), (5, 48)], [(48, 96)]]),
        (31, [[(5, 36)], [(36, 67)], [(67, 98)], [(98, 100), (5, 34)]]),
    ],
)
def test_a_quota_ends_between_huge_pages(sz: int, expected: list[list[tuple[int, int]]]) -> None:
    """Where it has room for two; the rest stays unused, and the window counts as full."""
    ops = Applied()
    ctx = quota_ctx(Regions([5], [100]), ops=ops)
    assert ctx.ops is not None
    ctx.ops.action_sz = 16
    s = pageout(sz)
    damon_add_scheme(ctx, s)
    seen = []
    for _ in expected:
        apply(ctx, WINDOW_MS)
        apply(ctx, 100)
        seen.append([(start, end) for _, start, end in ops.take()])
        validate_ctx(ctx)
    assert expected == seen
    assert len(expected) - 1 == s.stat.qt_exceeds


def test_what_just_fits_is_not_cut() -> None:
    """Also where its size is no multiple of the smallest region."""
    ops = Applied()
    ctx = quota_ctx(Regions([0, 32], [32, 56]), Regions([0], [24]), ops=ops, min_region_sz=16)
    damon_add_scheme(ctx, pageout(80))
    apply(ctx, WINDOW_MS)
    assert [(0, 0, 32), (0, 32, 56), (1, 0, 24)] == ops.take()


def test_parts_are_multiples_of_the_smallest_region() -> None:
    """A quota that is smaller than it applies to nothing."""
    ops = Applied()
    ctx = quota_ctx(Regions([0], [4096 * 10]), ops=ops, min_region_sz=4096)
    damon_add_scheme(ctx, pageout(4096 * 3 - 1))
    apply(ctx, WINDOW_MS)
    assert [(0, 0, 8192)] == ops.take()
    ctx.schemes[0].quota = damos_quota(sz=4095, reset_interval=WINDOW_MS)
    apply(ctx, WINDOW_MS)
    assert [] == ops.take()


def test_a_part_that_is_charged_up_to_the_middle_of_a_smallest_region_is_skipped_to_its_end() -> None:
    """Where a region begins elsewhere now; also if it is the last one."""
    ops = Applied()
    ctx = quota_ctx(Regions([8], [208]), ops=ops, min_region_sz=16)
    damon_add_scheme(ctx, pageout(40))
    apply(ctx, WINDOW_MS)
    ctx.adaptive_targets[0].regions = Regions([0], [208])
    apply(ctx, WINDOW_MS)
    assert [(0, 8, 40), (0, 48, 80)] == ops.take()
    quota = ctx.schemes[0].quota
    quota.charge_target_from, quota.charge_addr_from = ctx.adaptive_targets[0], 40
    ctx.adaptive_targets[0].regions = Regions([32, 48], [48, 208])
    apply(ctx, WINDOW_MS)
    assert [(0, 48, 80)] == ops.take()


def test_snapshots_stand_still_while_a_window_is_full() -> None:
    """They count where a pass comes to the end of a target."""
    ctx = quota_ctx(Regions([0], [100]))
    s = pageout(40)
    damon_add_scheme(ctx, s)
    counts = []
    for _ in range(5):
        apply(ctx, WINDOW_MS)
        apply(ctx, 100)
        counts.append(s.stat.nr_snapshots)
    assert [0, 0, 1, 1, 2] == counts


def test_a_limit_of_snapshots_holds_for_quotas_too() -> None:
    ctx = quota_ctx(Regions([0], [100]))
    s = pageout(1000)
    s.max_nr_snapshots = 3
    damon_add_scheme(ctx, s)
    for _ in range(5):
        apply(ctx, WINDOW_MS)
    assert (3, 300) == (s.stat.nr_snapshots, s.stat.sz_tried)


def test_a_time_quota_follows_the_measured_throughput() -> None:
    """A page in a microsecond at first; then as many bytes as were applied to in that time, at least a region."""

    def apply_scheme(ctx: damon_ctx, t: damon_target, row: int, s: damos) -> tuple[int, int]:
        clock.now_ns += 2_000_000_000
        return int(t.regions.sizes()[row]), 0

    class Clock:
        now_ns = 0

        def now(self) -> int:
            return self.now_ns

        def sleep_until(self, deadline: int, wake: Any) -> None:
            raise AssertionError

    clock = Clock()
    ctx = quota_ctx(Regions([0], [1 << 30]), ops=apply_scheme, min_region_sz=4096)
    ctx.clock = clock
    s = pageout(0, ms=10)
    damon_add_scheme(ctx, s)
    apply(ctx, WINDOW_MS)
    assert (40 << 20, 40 << 20) == (s.quota.esz, s.stat.sz_tried)
    apply(ctx, WINDOW_MS)
    assert (40 << 20) // 2000 * 10 == s.quota.esz
    s.quota.ms = 1
    s.quota.total_charged_ns = 10**15
    apply(ctx, WINDOW_MS)
    assert 4096 == s.quota.esz


def test_a_window_that_practically_never_ends_is_doubted_once(caplog: pytest.LogCaptureFixture) -> None:
    """Goals are looked at when a window begins: the kernel takes 2**31 ms and more for endless."""
    for ms, lines in ((2**31 - 1, 0), (2**31, 1), (2**64 - 1, 1)):
        caplog.clear()
        ctx = quota_ctx(table_of([Region(0, 1000)]))
        goal = damos_quota_goal(damos_quota_goal_metric.DAMOS_QUOTA_USER_INPUT, 100, 50)
        damon_add_scheme(ctx, pageout(30, reset_interval=ms, goals=[goal]))
        for _ in range(3):
            apply(ctx, 1000)
        assert [f"a charge window of {ms} ms is 25 days or more"] * lines == [
            message.split(",")[0] for message in caplog.messages
        ]


@pytest.mark.parametrize(
    ("num", "denom", "applied", "charged"),
    [
        (0, 0, 0, 1000),
        (0, 0, 400, 1000),
        (1, 4, 0, 250),
        (1, 4, 400, 550),
        (0, 1, 400, 400),
        (3, 1, 400, 2200),
        (1, 4096, 0, 0),
        (1, 4, 1001, 1000),
    ],
)
def test_what_failed_is_charged_by_its_ratio(num: int, denom: int, applied: int, charged: int) -> None:
    quota = damos_quota(fail_charge_num=num, fail_charge_denom=denom)
    damos_charge_quota(quota, 1000, applied)
    assert charged == quota.charged_sz


def test_a_pass_ends_also_where_the_action_fails_everywhere_for_free() -> None:
    """The next pass continues after the last part; after each pass, parts of one kind are one region again."""
    ops = Applied(0.0)
    ctx = quota_ctx(Regions([0], [1 << 40]), ops=ops, min_region_sz=4096)
    ctx.attrs.min_nr_regions = 1
    ctx.attrs.max_nr_regions = 100
    damon_add_scheme(ctx, pageout(4096, fail_charge_num=0, fail_charge_denom=1))
    for _ in range(3):
        apply(ctx, 100)
    ranges = ops.take()
    assert [(0, n * 4096, (n + 1) * 4096) for n in range(len(ranges))] == ranges
    assert 300 <= len(ranges) <= 310
    assert [(0, 1 << 40)] == ranges_of(ctx.adaptive_targets[0].regions)


@pytest.mark.parametrize(
    ("sz", "wanted"),
    [(100, [3]), (101, [0, 3]), (300, [0, 3]), (301, [0, 1, 3]), (10_000, [0, 1, 2, 3])],
)
def test_the_highest_scores_that_fill_the_quota_are_worth_it(sz: int, wanted: list[int]) -> None:
    """Every region of the last of these scores is, in the order of addresses."""
    table = Regions([0, 200, 1000, 2000], [200, 700, 1900, 2100])

    def score(ctx: damon_ctx, region: damon_region, s: damos) -> int:
        return {0: 50, 200: 20, 1000: 0, 2000: 99}[region.start]

    ops = Applied()
    ctx = quota_ctx(table, ops=ops, get_scheme_score=score)
    damon_add_scheme(ctx, pageout(sz))
    apply(ctx, WINDOW_MS)
    starts = [start for _, start, _ in ops.take()]
    left, visited = sz, []
    for i, size in enumerate((200, 500, 900, 100)):
        if i in wanted and left > 0:
            visited.append([0, 200, 1000, 2000][i])
            left -= size
    assert visited == starts


def test_scores_of_a_table_go_before_those_of_a_region() -> None:
    def never(*_: Any) -> int:
        raise AssertionError("asked for one region")

    ops = Applied()
    scores = lambda ctx, regions, s: np.array([0, 99, 0])  # noqa: E731
    table = Regions([0, 100, 200], [100, 200, 300])
    ctx = quota_ctx(table, ops=ops, get_scheme_score=never, get_scheme_scores=scores)
    damon_add_scheme(ctx, pageout(50))
    apply(ctx, WINDOW_MS)
    assert [(0, 100, 150)] == ops.take()


def test_only_regions_that_the_filters_leave_compete_for_the_quota() -> None:
    ops = Applied()
    scores = lambda ctx, regions, s: np.array([10, 99])  # noqa: E731
    ctx = quota_ctx(Regions([0, 100], [100, 300]), ops=ops, get_scheme_scores=scores)
    s = pageout(50)
    damos_add_filter(s, addresses(100, 300))
    damon_add_scheme(ctx, s)
    apply(ctx, WINDOW_MS)
    assert [(0, 0, 50)] == ops.take()


def test_a_target_that_is_gone_holds_nothing_up() -> None:
    """Neither one that ended, nor one that was removed, nor one without regions."""
    ops = Applied()
    tables = [Regions([0], [100]), Regions([0], [50])]
    gone: list[damon_target] = []
    ctx = quota_ctx(*tables, ops=ops, target_valid=lambda t: t not in gone)
    damon_add_scheme(ctx, pageout(40))
    apply(ctx, WINDOW_MS)
    first = ctx.adaptive_targets[0]
    assert first is ctx.schemes[0].quota.charge_target_from
    gone.append(first)
    apply(ctx, WINDOW_MS)
    assert [(0, 0, 40), (1, 0, 40)] == ops.take()
    ctx.adaptive_targets[1].regions = Regions()
    gone.clear()
    apply(ctx, WINDOW_MS)
    apply(ctx, WINDOW_MS)
    assert [(0, 0, 40)] == ops.take()
    damon_destroy_target(first, ctx)
    assert (None, 0) == (ctx.schemes[0].quota.charge_target_from, ctx.schemes[0].quota.charge_addr_from)


def test_what_one_window_could_not_use_is_not_missing_in_the_next() -> None:
    ops = Applied()
    first, second = Regions([0, 64, 128], [64, 128, 256]), Regions([0], [16])
    ctx = quota_ctx(first, second, ops=ops, min_region_sz=16)
    assert ctx.ops is not None
    ctx.ops.action_sz = 64
    damon_add_scheme(ctx, pageout(144))
    apply(ctx, WINDOW_MS)
    assert [(0, 0, 64), (0, 64, 128)] == ops.take()
    apply(ctx, WINDOW_MS)
    assert [(0, 128, 256), (1, 0, 16)] == ops.take()


def test_what_linux_tried_in_twelve_seconds() -> None:
    """7.2 under 8 MiB a second: the quota holds from the first window on, and each but the last was seen to be full."""
    machine = SimMachine()
    process = machine.spawn([(0, 200 << 20), (1 << 40, (1 << 40) + 4096), (1 << 46, (1 << 46) + 4096)])
    ctx = sim_ctx(process, machine)
    s = pageout(8 << 20)
    s.pattern = damos_access_pattern(min_sz_region=4096, max_nr_accesses=0, min_age_region=5)
    damon_add_scheme(ctx, s)
    run_ctx(ctx, 12.001)
    assert (100663296, 11, 8388608) == (s.stat.sz_tried, s.stat.qt_exceeds, s.quota.esz)


# Commits.


def test_an_unchanged_commit_keeps_the_state_of_the_quota() -> None:
    """What was charged, where to go on, statistics; the next window is as if nothing had been."""
    results = []
    for commits in (False, True):
        ops = Applied()
        ctx = quota_ctx(Regions([0, 200], [100, 250]), ops=ops)
        damon_add_scheme(ctx, pageout(40))
        for _ in range(6):
            apply(ctx, 500)
            if commits:
                src = ctx_of()
                src.schemes = [pageout(40)]
                damon_commit_schemes(ctx, src)
        results.append((ops.take(), ctx.schemes[0].stat, ctx.schemes[0].quota.charged_sz))
    assert results[0] == results[1]


def test_a_quota_that_is_taken_away_limits_nothing() -> None:
    ops = Applied()
    ctx = quota_ctx(Regions([0], [100]), ops=ops)
    damon_add_scheme(ctx, pageout(40))
    apply(ctx, WINDOW_MS)
    src = ctx_of()
    src.schemes = [damos(action=damos_action.DAMOS_PAGEOUT)]
    damon_commit_schemes(ctx, src)
    ops.take()
    apply(ctx)
    assert [(0, 0, 40), (0, 40, 100)] == ops.take()
    src.schemes = [pageout(30)]
    damon_commit_schemes(ctx, src)
    apply(ctx)
    assert [(0, 0, 30)] == ops.take()


def test_a_quota_that_was_taken_away_still_tells_the_throughput() -> None:
    """What its last window did counts, as the time that this took does."""
    ctx = quota_ctx(Regions([0], [1 << 20]))
    clock = WorkClock()
    ctx.clock = clock

    def apply_scheme(ctx: damon_ctx, t: damon_target, row: int, s: damos) -> tuple[int, int]:
        clock.work(1_000_000)
        return 0, 0

    ctx.ops = report_ops(apply_scheme=apply_scheme)
    damon_add_scheme(ctx, pageout(5000))
    apply(ctx, WINDOW_MS)
    for quota in (damos_quota(), damos_quota(ms=3, reset_interval=WINDOW_MS)):
        src = ctx_of()
        src.schemes = [damos(action=damos_action.DAMOS_PAGEOUT, quota=quota)]
        damon_commit_schemes(ctx, src)
    apply(ctx, WINDOW_MS)
    assert 15000 == ctx.schemes[0].quota.esz


def test_a_scheme_without_a_quota_is_not_charged() -> None:
    """When it gets one, it has all of it."""
    ops = Applied()
    ctx = quota_ctx(Regions([0], [1000]), ops=ops)
    damon_add_scheme(ctx, damos(action=damos_action.DAMOS_PAGEOUT))
    apply(ctx, WINDOW_MS)
    src = ctx_of()
    src.schemes = [pageout(40)]
    damon_commit_schemes(ctx, src)
    ops.take()
    apply(ctx, 0)
    assert [(0, 0, 40)] == ops.take()


# Several schemes.


def test_a_part_that_a_scheme_cuts_off_is_not_counted_twice_by_the_others() -> None:
    ctx = quota_ctx(Regions([0], [100]))
    every, limited = damos(), pageout(30)
    damon_add_scheme(ctx, every)
    damon_add_scheme(ctx, limited)
    apply(ctx, WINDOW_MS)
    assert damos_stat(nr_tried=1, sz_tried=100, nr_snapshots=1) == every.stat
    assert damos_stat(1, 30, 1, 30) == limited.stat


def test_a_later_scheme_sees_what_an_earlier_one_made_young() -> None:
    """An action resets the age of what it was applied to: a scheme for old regions finds the rest."""
    ctx = quota_ctx(table_of([Region(0, 100, age=5)]))
    damon_add_scheme(ctx, pageout(30))
    old = damos(damos_access_pattern(min_age_region=5))
    damon_add_scheme(ctx, old)
    apply(ctx, WINDOW_MS)
    assert (70, [(0, 30), (30, 100)]) == (old.stat.sz_tried, ranges_of(ctx.adaptive_targets[0].regions))


# Any regions.


def addresses(start: int, end: int, matching: bool = True, allow: bool = False) -> damos_filter:
    kind = damos_filter_type.DAMOS_FILTER_TYPE_ADDR
    return damos_filter(kind, matching, allow, addr_range=damon_addr_range(start, end))


@effort(60)
@given(regions=region_lists(min_regions=1, max_regions=20, unit=16, probes=False), sz=st.integers(16, 1 << 40))
def test_all_memory_has_its_turn_before_any_has_a_second(regions: list[Region], sz: int) -> None:
    """Windows go on where the last one stopped; the end of a target may be short of a full quota."""
    ops = Applied()
    ctx = quota_ctx(table_of(regions), ops=ops, min_region_sz=16)
    ctx.attrs.aggr_interval = ctx.attrs.sample_interval * 2000
    damon_add_scheme(ctx, pageout(sz))
    total = sum(r.size for r in regions)
    turns: list[tuple[int, int]] = []
    for _ in range(min(total // (sz - sz % 16) + 1, 50)):
        apply(ctx, WINDOW_MS)
        now = [(start, end) for _, start, end in ops.take()]
        if turns and now and now[0][0] < turns[-1][1]:
            assert sum(end - start for start, end in turns) == total
            break
        turns += now
    assert sorted(turns) == turns
    assert all(a[1] <= b[0] for a, b in pairwise(turns))
