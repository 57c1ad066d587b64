# SPDX-License-Identifier: GPL-2.0-only
"""Core filters beside what else decides about a region: quotas, access patterns, filters on pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.core import damon_add_scheme, run_ctx
from kdamon.damon import (
    damon_addr_range,
    damon_ctx,
    damon_ops_id,
    damon_target,
    damos,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_quota,
)
from kdamon.damos import kdamond_apply_schemes
from kdamon.damos_filters import damos_add_filter
from kdamon.damos_quota import damos_adjust_quota
from kdamon.kernel import PAGE_SIZE
from kdamon.mm.ranges import NO_RANGES, subtract, total, union
from kdamon.mm.sim.machine import SimMachine
from kdamon.regions import Regions
from tests.support.contexts import report_ops, sim_ctx
from tests.support.tables import ctx_of, effort, ranges_of

M = PAGE_SIZE


def addresses(start: int, end: int, matching: bool = True, allow: bool = False) -> damos_filter:
    kind = damos_filter_type.DAMOS_FILTER_TYPE_ADDR
    return damos_filter(kind, matching, allow, addr_range=damon_addr_range(start, end))


def test_parts_that_are_too_small_for_the_scheme_do_not_compete_for_the_quota() -> None:
    """Of 100 bytes of the best score a filter leaves 60 that are wanted, and 30 that are too few."""
    ctx = ctx_of(Regions([0, 200], [100, 300]))
    ctx.ops = report_ops(get_scheme_score=lambda _ctx, region, _s: 99 if region.start < 100 else 10)
    s = damos(damos_access_pattern(min_sz_region=50), quota=damos_quota(sz=80, reset_interval=1000))
    damos_add_filter(s, addresses(60, 70))
    damon_add_scheme(ctx, s)
    damos_adjust_quota(ctx, s)
    assert 10 == s.quota.min_score


@pytest.mark.parametrize(
    ("filters", "passed"),
    [
        ([("anon", True)], 4),
        ([("anon", False)], 12),
        ([("addr", True), ("anon", True)], 4 + 8),
        ([("addr", False), ("anon", True)], 4),
        ([("addr", True), ("anon", False)], 8 + 4),
    ],
)
def test_what_a_core_filter_allows_passes_as_a_whole(filters: list[tuple[str, bool]], passed: int) -> None:
    """Of 16 pages a core filter is about the first 8; the 4 after these are anonymous."""
    machine = SimMachine()
    process = machine.spawn([(M, 17 * M), (1 << 30, (1 << 30) + M), (1 << 40, (1 << 40) + M)])
    process.mark("anon", [(9 * M, 13 * M)])
    ctx = sim_ctx(process, machine, min_nr_regions=3, max_nr_regions=3)
    s = damos(max_nr_snapshots=1)
    damos_add_filter(s, addresses(17 * M, 1 << 63))
    for name, allow in filters:
        if name == "addr":
            damos_add_filter(s, addresses(M, 9 * M, allow=allow))
        else:
            damos_add_filter(s, damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON, True, allow))
    damon_add_scheme(ctx, s)
    run_ctx(ctx, 0.2)
    assert passed * M == s.stat.sz_ops_filter_passed


@pytest.mark.parametrize(
    ("matching", "allow", "of_addresses", "of_target"),
    [
        (True, True, 46141440, 209715200),
        (False, False, 46141440, 209715200),
        (True, False, 209715200 - 46141440, 0),
        (False, True, 209715200 - 46141440, 0),
    ],
)
def test_what_linux_tried_of_200_mb(matching: bool, allow: bool, of_addresses: int, of_target: int) -> None:
    """7.2, with a filter of 44 MB of its addresses, and with one of the only target."""
    target = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_TARGET, matching, allow)
    start = 0x7F3300000000
    middle = addresses(start + 0x1234000, start + 0x1234000 + 46141440, matching, allow)
    for f, expected in ((middle, of_addresses), (target, of_target)):
        ctx = ctx_of(Regions([start], [start + 209715200]), min_region_sz=M)
        ctx.ops = report_ops()
        s = damos()
        damos_add_filter(s, f)
        damon_add_scheme(ctx, s)
        s.next_apply_sis = 0
        kdamond_apply_schemes(ctx)
        assert expected == s.stat.sz_tried


# Page by page.

UNIT = 16
_edges = st.integers(0, 40 * UNIT)
_core = st.one_of(
    st.builds(lambda a, b, *how: addresses(min(a, b), max(a, b), *how), _edges, _edges, st.booleans(), st.booleans()),
    st.builds(
        lambda idx, matching, allow: damos_filter(
            damos_filter_type.DAMOS_FILTER_TYPE_TARGET, matching, allow, target_idx=idx
        ),
        st.integers(0, 2),
        st.booleans(),
        st.booleans(),
    ),
)


def decides(filters: list[damos_filter], place: int, unit: int, size: int) -> bool | None:
    """What the first filter that matches a piece of memory does with it; None if none matches."""
    for f in filters:
        if f.type is damos_filter_type.DAMOS_FILTER_TYPE_TARGET:
            inside = f.target_idx == place
        else:
            inside = f.addr_range.start // size <= unit < f.addr_range.end // size
        if inside == f.matching:
            return f.allow
    return None


@effort(200)
@given(
    cuts=st.lists(st.lists(st.integers(0, 40), max_size=12, unique=True), min_size=1, max_size=2),
    filters=st.lists(_core, min_size=1, max_size=4),
    with_ops_filter=st.booleans(),
)
def test_the_first_filter_that_matches_decides(
    cuts: list[list[int]], filters: list[damos_filter], with_ops_filter: bool
) -> None:
    """Cutting regions at the edges comes to the same as asking for each unit of memory.

    The operations set hears of what a filter allowed: its own have no say there.
    """
    tables = []
    for cut in cuts:
        points = sorted(cut)
        tables.append(Regions([p * UNIT for p in points[:-1]], [p * UNIT for p in points[1:]]))
    seen: list[tuple[int, int, bool]] = []

    def apply_scheme(ctx: damon_ctx, t: damon_target, row: int, s: damos) -> tuple[int, int]:
        start, end = int(t.regions.start[row]), int(t.regions.end[row])
        units = range(start // UNIT, end // UNIT)
        seen.extend((ctx.adaptive_targets.index(t), unit, s.core_filters_allowed) for unit in units)
        return end - start, 0

    ctx = ctx_of(*tables, min_region_sz=UNIT)
    ctx.ops = report_ops(apply_scheme=apply_scheme)
    s = damos(action=damos_action.DAMOS_PAGEOUT)
    for f in filters:
        damos_add_filter(s, f)
    if with_ops_filter:
        damos_add_filter(s, damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON, True, True))
    damon_add_scheme(ctx, s)
    s.next_apply_sis = 0
    expected = []
    for place, table in enumerate(tables):
        for start, end in ranges_of(table):
            for unit in range(start // UNIT, end // UNIT):
                decided = decides(filters, place, unit, UNIT)
                by_default = with_ops_filter or not filters[-1].allow
                if decided or (decided is None and by_default):
                    expected.append((place, unit, decided is True))
    kdamond_apply_schemes(ctx)
    assert expected == seen
    assert len(expected) * UNIT == s.stat.sz_tried == s.stat.sz_applied


_KINDS = ("anon", "active", "memcg", "unmapped")
_pages = st.lists(st.booleans(), min_size=32, max_size=32)


def page_ranges(chosen: list[bool], base: int) -> list[tuple[int, int]]:
    return [((base + i) * M, (base + i + 1) * M) for i, is_chosen in enumerate(chosen) if is_chosen]


@effort(60)
@given(
    core=st.lists(
        st.tuples(st.integers(0, 34), st.integers(0, 34), st.booleans(), st.booleans()),
        max_size=3,
    ),
    ops=st.lists(st.tuples(st.sampled_from(_KINDS), st.booleans(), st.booleans()), max_size=3),
    marks=st.tuples(_pages, _pages, _pages, _pages),
    action=st.sampled_from([damos_action.DAMOS_PAGEOUT, damos_action.DAMOS_STAT]),
)
def test_filters_of_the_core_go_before_those_on_pages(
    core: list[tuple[int, int, bool, bool]],
    ops: list[tuple[str, bool, bool]],
    marks: tuple[list[bool], ...],
    action: damos_action,
) -> None:
    """A page that a filter of the core matches is decided about; all others go on to the filters on pages."""
    machine = SimMachine()
    base = 16
    process = machine.spawn([(base * M, (base + 32) * M), (1 << 30, (1 << 30) + M), (1 << 40, (1 << 40) + M)])
    for kind, chosen in zip(_KINDS, marks, strict=True):
        process.mark(kind, page_ranges(chosen, base), memcg_id=7 if kind == "memcg" else 0)
    ctx = sim_ctx(process, machine, ops=damon_ops_id.DAMON_OPS_FVADDR, min_nr_regions=3, max_nr_regions=8)
    ctx.adaptive_targets[0].regions = Regions([base * M], [(base + 32) * M])
    s = damos(action=action, max_nr_snapshots=1)
    for a, b, matching, allow in core:
        damos_add_filter(s, addresses((base + min(a, b)) * M, (base + max(a, b)) * M, matching, allow))
    for kind, matching, allow in ops:
        f = damos_filter(damos_filter_type(kind), matching, allow, memcg_id=7 if kind == "memcg" else 0)
        damos_add_filter(s, f)
    damon_add_scheme(ctx, s)

    def passes(page: int) -> tuple[bool, bool]:
        """Whether a page gets to the operations set, and whether it passes its filters."""
        decided = decides(s.core_filters, 0, base + page, M)
        if decided is None:
            decided_by_default = not (core and not ops and core[-1][3])
            if not decided_by_default:
                return False, False
        elif not decided:
            return False, False
        if decided or not ops:
            return True, True
        for kind, matching, allow in ops:
            if marks[_KINDS.index(kind)][page] == matching:
                return True, allow
        return True, not ops[-1][2]

    answers = [passes(page) for page in range(32)]
    run_ctx(ctx, 0.2)
    assert sum(tried for tried, _ in answers) * M == s.stat.sz_tried
    through = sum(passed for _, passed in answers)
    assert (through * M if ops else 0) == s.stat.sz_ops_filter_passed
    if action is damos_action.DAMOS_PAGEOUT:
        gone = [[(base + page) * M, (base + page + 1) * M] for page, (_, passed) in enumerate(answers) if passed]
        out = subtract(np.array([[base * M, (base + 32) * M]], np.uint64), process.resident())
        assert total(np.array(gone, np.uint64).reshape(-1, 2)) == s.stat.sz_applied
        assert union(np.array(gone, np.uint64).reshape(-1, 2), NO_RANGES).tolist() == out.tolist()
