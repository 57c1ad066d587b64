# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own unit tests of schemes (``mm/damon/tests/core-kunit.h``), with their names and numbers."""

from __future__ import annotations

import errno

import pytest
from attrs import evolve

from kdamon.core import damon_new_ctx, damon_new_scheme
from kdamon.damon import (
    damon_addr_range,
    damon_ctx,
    damon_size_range,
    damon_target,
    damos,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_migrate_dests,
    damos_quota,
    damos_quota_goal,
    damos_quota_goal_metric,
    damos_quota_goal_tuner,
    damos_watermarks,
    damos_wmark_metric,
)
from kdamon.damos import SchemeBatch, damon_commit_schemes
from kdamon.damos_filters import (
    damos_add_filter,
    damos_commit_filter,
    damos_filter_for_ops,
    damos_filter_match,
    damos_new_filter,
    damos_set_filters_default_reject,
)
from kdamon.damos_quota import damos_commit_quota, damos_commit_quota_goal, damos_commit_quota_goals
from kdamon.kernel import PAGE_SIZE, ULONG_MAX
from kdamon.regions import Regions
from tests.support.contexts import report_ops
from tests.support.tables import ctx_of, ranges_of

Metric = damos_quota_goal_metric
Type = damos_filter_type
M = PAGE_SIZE


def test_new_filter() -> None:
    f = damos_new_filter(Type.DAMOS_FILTER_TYPE_ANON, True, False)
    assert (Type.DAMOS_FILTER_TYPE_ANON, True, False) == (f.type, f.matching, f.allow)


# Goals and quotas.

PSI = damos_quota_goal(Metric.DAMOS_QUOTA_SOME_MEM_PSI_US, 1000, 123, last_psi_total=456)


def test_commit_quota_goal() -> None:
    """One after another to the same goal: its current value stays what the user gave last."""
    dst = evolve(PSI)
    current = PSI.current_value
    for src in (
        damos_quota_goal(Metric.DAMOS_QUOTA_SOME_MEM_PSI_US, 234, 345, last_psi_total=567),
        damos_quota_goal(Metric.DAMOS_QUOTA_USER_INPUT, 789, 12, complement=True),
        damos_quota_goal(Metric.DAMOS_QUOTA_NODE_MEM_FREE_BP, 345, 678, nid=9),
        damos_quota_goal(Metric.DAMOS_QUOTA_NODE_MEM_USED_BP, 12, 345, nid=6),
        damos_quota_goal(Metric.DAMOS_QUOTA_NODE_MEMCG_USED_BP, 456, 567, nid=6, memcg_path="/7"),
        damos_quota_goal(Metric.DAMOS_QUOTA_NODE_MEMCG_FREE_BP, 890, 901, nid=10, memcg_path="/1"),
        damos_quota_goal(Metric.DAMOS_QUOTA_SOME_MEM_PSI_US, 234, 345, last_psi_total=567),
        damos_quota_goal(Metric.DAMOS_QUOTA_NODE_ELIGIBLE_MEM_BP, 12, 345, nid=6),
    ):
        damos_commit_quota_goal(dst, src)
        current = src.current_value if src.metric is Metric.DAMOS_QUOTA_USER_INPUT else current
        assert evolve(src, current_value=current, last_psi_total=ULONG_MAX) == dst


@pytest.mark.parametrize(("before", "after"), [([], [123]), ([234], [345]), ([456], [])])
def test_commit_quota_goals(before: list[int], after: list[int]) -> None:
    dst, src = (
        damos_quota(goals=[damos_quota_goal(target_value=value) for value in values]) for values in (before, after)
    )
    damos_commit_quota_goals(dst, src)
    assert after == [goal.target_value for goal in dst.goals]


def test_commit_quota() -> None:
    tuner = damos_quota_goal_tuner
    dst = damos_quota(
        reset_interval=1,
        ms=2,
        sz=3,
        goal_tuner=tuner.DAMOS_QUOTA_GOAL_TUNER_CONSIST,
        fail_charge_num=2,
        fail_charge_denom=3,
        weight_sz=4,
        weight_nr_accesses=5,
        weight_age=6,
    )
    src = damos_quota(
        reset_interval=7,
        ms=8,
        sz=9,
        goal_tuner=tuner.DAMOS_QUOTA_GOAL_TUNER_TEMPORAL,
        fail_charge_num=1,
        fail_charge_denom=1024,
        weight_sz=10,
        weight_nr_accesses=11,
        weight_age=12,
    )
    damos_commit_quota(dst, src)
    names = ("reset_interval", "ms", "sz", "goal_tuner", "fail_charge_num", "fail_charge_denom")
    for name in (*names, "weight_sz", "weight_nr_accesses", "weight_age"):
        assert getattr(src, name) == getattr(dst, name)


def test_a_goal_without_a_target_is_refused_and_changes_nothing() -> None:
    dst, src = damos_quota(goals=[PSI]), damos_quota(goals=[damos_quota_goal(), damos_quota_goal(target_value=0)])
    with pytest.raises(OSError) as error:
        damos_commit_quota_goals(dst, src)
    assert (errno.EINVAL, [PSI]) == (error.value.errno, dst.goals)


# Commits of schemes.


def committed(mine: damos, theirs: damos) -> damos:
    dst, src = damon_new_ctx(), damon_new_ctx()
    dst.schemes, src.schemes = [mine], [theirs]
    damon_commit_schemes(dst, src)
    assert [mine] == dst.schemes
    return mine


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (([1, 2, 3], [2, 3, 4]), ([4, 5, 6], [5, 6, 7])),
        (([1, 2], [2, 3]), ([4, 5, 6], [5, 6, 7])),
        (([], []), ([4, 5, 6], [5, 6, 7])),
        (([1, 2, 3], [2, 3, 4]), ([4, 5], [5, 6])),
        (([1, 2, 3], [2, 3, 4]), ([], [])),
    ],
)
def test_commit_dests(before: tuple[list[int], list[int]], after: tuple[list[int], list[int]]) -> None:
    theirs = damos(migrate_dests=damos_migrate_dests(*after))
    mine = committed(damos(migrate_dests=damos_migrate_dests(*before)), theirs)
    assert after == (mine.migrate_dests.node_id_arr, mine.migrate_dests.weight_arr)
    assert theirs.migrate_dests.node_id_arr is not mine.migrate_dests.node_id_arr


def pageout(first: int, interval: int, wmarks: damos_watermarks) -> damos:
    pattern = damos_access_pattern(*range(first, first + 6))
    return damos(pattern, damos_action.DAMOS_PAGEOUT, interval, wmarks=wmarks)


def test_commit_pageout() -> None:
    rate = damos_wmark_metric.DAMOS_WMARK_FREE_MEM_RATE
    src = pageout(2, 2_000_000, damos_watermarks(rate, 800, 50, 30))
    dst = committed(pageout(1, 1_000_000, damos_watermarks(rate, 900, 100, 50)), src)
    assert (src.pattern, src.action, src.apply_interval_us) == (dst.pattern, dst.action, dst.apply_interval_us)
    assert src.wmarks == dst.wmarks
    assert src.wmarks is not dst.wmarks


def test_commit_migrate_hot() -> None:
    src = damos(damos_access_pattern(2, 3, 4, 5, 6, 7), damos_action.DAMOS_MIGRATE_HOT, 2_000_000, target_nid=5)
    dst = committed(pageout(1, 1_000_000, damos_watermarks()), src)
    assert (src.pattern, src.action, 5) == (dst.pattern, dst.action, dst.target_nid)


# Filters.


def addresses(start: int, end: int, matching: bool = True, allow: bool = False) -> damos_filter:
    return damos_filter(Type.DAMOS_FILTER_TYPE_ADDR, matching, allow, addr_range=damon_addr_range(start, end))


def sizes(low: int, high: int) -> damos_filter:
    return damos_filter(Type.DAMOS_FILTER_TYPE_HUGEPAGE_SIZE, sz_range=damon_size_range(low, high))


def hits(low: int, high: int) -> damos_filter:
    kind = Type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM
    return damos_filter(kind, matching=False, allow=True, range_min=low, range_max=high)


def anon(matching: bool, allow: bool) -> damos_filter:
    return damos_filter(Type.DAMOS_FILTER_TYPE_ANON, matching, allow)


def target(allow: bool, idx: int = 0) -> damos_filter:
    return damos_filter(Type.DAMOS_FILTER_TYPE_TARGET, True, allow, target_idx=idx)


@pytest.mark.parametrize(
    ("src", "valid"),
    [
        (anon(True, True), True),
        (damos_filter(Type.DAMOS_FILTER_TYPE_MEMCG, False, False, memcg_id=123), True),
        (damos_filter(Type.DAMOS_FILTER_TYPE_YOUNG, True, True), True),
        (sizes(234, 345), True),
        (sizes(456, 123), False),
        (damos_filter(Type.DAMOS_FILTER_TYPE_UNMAPPED, True, True), True),
        (addresses(456, 567, False), True),
        (addresses(567, 456, False), False),
        (target(True, 6), True),
        (hits(12, 34), True),
        (hits(34, 12), False),
    ],
)
def test_commit_filter(src: damos_filter, valid: bool) -> None:
    dst = anon(False, False)
    if valid:
        damos_commit_filter(dst, src)
        assert src == dst
        assert src.addr_range is not dst.addr_range
        assert src.sz_range is not dst.sz_range
    else:
        with pytest.raises(OSError) as error:
            damos_commit_filter(dst, src)
        assert (errno.EINVAL, anon(False, False)) == (error.value.errno, dst)


@pytest.mark.parametrize(
    ("start", "end", "matches", "parts"),
    [
        (3, 5, True, [(3, 5)]),
        (1, 2, False, [(1, 2)]),
        (6, 8, False, [(6, 8)]),
        (1, 4, False, [(1, 2), (2, 4)]),
        (2, 8, True, [(2, 6), (6, 8)]),
    ],
)
def test_filter_out(start: int, end: int, matches: bool, parts: list[tuple[int, int]]) -> None:
    ctx = ctx_of(Regions([start], [end]))
    t = ctx.adaptive_targets[0]
    assert matches == damos_filter_match(ctx, t, 0, addresses(2, 6))
    assert parts == ranges_of(t.regions)


def page_ctx(start: int, end: int) -> tuple[damon_ctx, damon_target]:
    """A context with one region, numbers in pages, and an operations set that applies to nothing."""
    ctx = ctx_of(Regions([start * M], [end * M]), min_region_sz=M)
    ctx.ops = report_ops(apply_scheme=lambda *_: (0, 0))
    return ctx, ctx.adaptive_targets[0]


def damos_apply_scheme(ctx: damon_ctx, t: damon_target, s: damos) -> None:
    """Apply ``s`` to the first region of ``t``."""
    batch = SchemeBatch(ctx, t, s)
    batch.damos_apply_scheme(0, 0)
    batch.apply()


def with_filters(*filters: damos_filter) -> damos:
    s = damos()
    for f in filters:
        damos_add_filter(s, f)
    damos_set_filters_default_reject(s)
    return s


def pages(t: damon_target) -> list[tuple[int, int]]:
    return [(start // M, end // M) for start, end in ranges_of(t.regions)]


def test_apply_scheme_filtered_sz() -> None:
    """What counts as tried is the part that the filter left."""
    ctx, t = page_ctx(0, 4)
    s = with_filters(addresses(2 * M, 8 * M))
    damos_apply_scheme(ctx, t, s)
    assert ([(0, 2), (2, 4)], 2 * M) == (pages(t), s.stat.sz_tried)
    ctx, t = page_ctx(2, 10)
    s = with_filters(addresses(2 * M, 8 * M, allow=True))
    damos_apply_scheme(ctx, t, s)
    assert ([(2, 8), (8, 10)], 6 * M) == (pages(t), s.stat.sz_tried)


def test_apply_scheme_filter_sz_unchanged() -> None:
    ctx, t = page_ctx(4, 6)
    s = with_filters(addresses(2 * M, 8 * M))
    damos_apply_scheme(ctx, t, s)
    assert (0, 0, [(4, 6)]) == (s.stat.nr_tried, s.stat.sz_tried, pages(t))
    s = with_filters(addresses(2 * M, 8 * M, allow=True))
    damos_apply_scheme(ctx, t, s)
    assert (2 * M, [(4, 6)]) == (s.stat.sz_tried, pages(t))
    ctx, t = page_ctx(0, 8)
    s = with_filters(addresses(4 * M, 12 * M), addresses(2 * M, 3 * M))
    damos_apply_scheme(ctx, t, s)
    assert ([(0, 2), (2, 4), (4, 8)], 2 * M) == (pages(t), s.stat.sz_tried)
    s = with_filters(target(allow=True))
    damos_apply_scheme(ctx, t, s)
    assert (2 * M, 3) == (s.stat.sz_tried, len(t.regions))


def test_the_quota_is_charged_what_the_filter_left() -> None:
    """Not what the filter cut off before: so the quota has room for the next region."""
    ctx, t = page_ctx(0, 4)
    s = with_filters(addresses(2 * M, 8 * M))
    s.quota = damos_quota(sz=100 * M, esz=100 * M)
    damos_apply_scheme(ctx, t, s)
    assert (2 * M, 2 * M) == (s.stat.sz_tried, s.quota.charged_sz)


def test_a_new_scheme_has_the_quota_that_was_given() -> None:
    quota = damos_quota(1000, sz=5, goals=[damos_quota_goal(target_value=7)], fail_charge_num=1, fail_charge_denom=2)
    s = damon_new_scheme(damos_access_pattern(), damos_action.DAMOS_STAT, quota=quota)
    assert s.quota is quota


def test_apply_scheme_quota_sz() -> None:
    ctx, t = page_ctx(0, 4)
    ctx.ops = report_ops()
    s = damos()
    damos_apply_scheme(ctx, t, s)
    assert 4 * M == s.stat.sz_tried
    ctx, t = page_ctx(0, 4)
    s = damos()
    damos_apply_scheme(ctx, t, s)
    assert 4 * M == s.stat.sz_tried
    ctx, t = page_ctx(0, 8)
    s = damos(quota=damos_quota(esz=2 * M))
    damos_apply_scheme(ctx, t, s)
    assert ([(0, 2), (2, 8)], 2 * M) == (pages(t), s.stat.sz_tried)
    ctx, t = page_ctx(0, 4)
    s = damos(quota=damos_quota(esz=1))
    damos_apply_scheme(ctx, t, s)
    assert (1, 0, [(0, 4)]) == (s.stat.nr_tried, s.stat.sz_tried, pages(t))


@pytest.mark.parametrize(
    ("filters", "core", "ops"),
    [
        ([], False, False),
        ([target(True)], True, False),
        ([target(False)], False, False),
        ([target(False), anon(True, True)], False, True),
        ([target(True), anon(True, True)], False, True),
    ],
)
def test_set_filters_default_reject(filters: list[damos_filter], core: bool, ops: bool) -> None:
    s = with_filters(*filters)
    assert (core, ops) == (s.core_filters_default_reject, s.ops_filters_default_reject)


def test_the_core_handles_addresses_targets_and_probes() -> None:
    """A filter is sorted by its type, wherever it was written."""
    core = [kind for kind in Type if not damos_filter_for_ops(kind)]
    expected = [Type.DAMOS_FILTER_TYPE_ADDR, Type.DAMOS_FILTER_TYPE_TARGET, Type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM]
    assert expected == core
    s = with_filters(anon(True, True), addresses(0, 1), target(True))
    assert ([anon(True, True)], [addresses(0, 1), target(True)]) == (s.ops_filters, s.core_filters)
