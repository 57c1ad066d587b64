# SPDX-License-Identifier: GPL-2.0-only
"""How hot and how cold regions are, in the kernel's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.core import damon_new_ctx
from kdamon.damon import damon_addr_range, damon_attrs, damon_ctx, damon_region, damos, damos_action, damos_quota
from kdamon.ops_common import (
    cold_scores,
    damon_cold_score,
    damon_hot_score,
    hot_scores,
    scheme_score,
    scheme_scores,
)
from kdamon.regions import Regions
from tests.support.tables import effort

#: Accesses of at most 20, age in aggregation intervals of 100 ms, the two weights; then the scores.
VECTORS = [
    (0, 0, 1, 1, 24, 75),
    (20, 0, 1, 1, 74, 25),
    (10, 0, 1, 1, 49, 50),
    (0, 10, 1, 1, 23, 76),
    (0, 1200, 1, 1, 18, 81),
    (0, 1200, 0, 1, 38, 61),
    (20, 1200, 1, 1, 79, 20),
    (20, 1200, 0, 1, 59, 40),
    (1, 36000, 1, 1, 35, 64),
    (5, 100, 1, 0, 24, 75),
    (5, 100, 0, 0, 0, 99),
    (19, 20, 500, 500, 73, 26),
    (20, 4294967295, 1, 1, 96, 3),
    (0, 4294967295, 1, 1, 1, 98),
]


def context(**attrs: int) -> damon_ctx:
    ctx = damon_new_ctx(seed=1)
    ctx.attrs = damon_attrs(**attrs)
    return ctx


def scheme(weight_nr_accesses: int, weight_age: int, weight_sz: int = 0) -> damos:
    return damos(quota=damos_quota(weight_sz=weight_sz, weight_nr_accesses=weight_nr_accesses, weight_age=weight_age))


def region(nr_accesses: int, age: int, last_nr_accesses: int = 0) -> damon_region:
    return damon_region(damon_addr_range(0, 4096), nr_accesses, age, last_nr_accesses)


@pytest.mark.parametrize("vector", VECTORS)
def test_scores(vector: tuple[int, int, int, int, int, int]) -> None:
    nr_accesses, age, weight_nr_accesses, weight_age, hot, cold = vector
    ctx, s, r = context(), scheme(weight_nr_accesses, weight_age), region(nr_accesses, age)
    assert (hot, cold) == (damon_hot_score(ctx, r, s), damon_cold_score(ctx, r, s))


def test_size_does_not_count() -> None:
    """As in the kernel, which has a weight for it and does not use it."""
    ctx, r = context(), region(10, 0)
    assert damon_hot_score(ctx, r, scheme(1, 1)) == damon_hot_score(ctx, r, scheme(1, 1, weight_sz=1000))


def test_large_weights_do_not_wrap_around() -> None:
    """They mean what their relation says."""
    ctx, r = context(), region(20, 1200)
    assert damon_hot_score(ctx, r, scheme(1, 1)) == damon_hot_score(ctx, r, scheme(4294967295, 4294967295))


def test_in_the_middle_of_an_aggregation_interval_the_last_one_counts_by_its_share() -> None:
    """What half an interval saw, and half of what the one before saw."""
    ctx = context()
    ctx.passed_sample_intervals, ctx.next_aggregation_sis = 10, 20
    assert damon_hot_score(ctx, region(5, 0, 10), scheme(1, 0)) == damon_hot_score(
        context(), region(10, 0), scheme(1, 0)
    )


def test_at_the_beginning_of_an_aggregation_interval_the_last_one_counts_alone() -> None:
    ctx = context()
    ctx.passed_sample_intervals, ctx.next_aggregation_sis = 20, 40
    r, s = region(5, 0, 10), scheme(1, 0)
    assert damon_hot_score(context(), region(10, 0), s) == damon_hot_score(ctx, r, s)
    table = Regions([0], [4096])
    table.nr_accesses[:], table.last_nr_accesses[:] = 5, 10
    assert [damon_hot_score(ctx, r, s)] == hot_scores(ctx, table, s).tolist()


@pytest.mark.parametrize("action", damos_action)
def test_what_an_action_is_for_has_its_best_scores(action: damos_action) -> None:
    """The coldest for what takes memory away, the hottest for what brings it near; all others are for all alike."""
    ctx, s = context(), scheme(1, 1)
    s.action = action
    table = Regions([0, 4096], [4096, 8192])
    table.nr_accesses[:] = 0, 20
    name = action.value
    cold, hot = name in {"pageout", "lru_deprio", "migrate_cold"}, name in {"lru_prio", "migrate_hot"}
    expected = [75, 25] if cold else [24, 74] if hot else [99, 99]
    assert expected == scheme_scores(ctx, table, s).tolist()
    assert expected == [scheme_score(ctx, table.region(row), s) for row in range(2)]


_counts = st.integers(0, 2**32 - 1)


@effort(100)
@given(
    rows=st.lists(st.tuples(_counts, _counts, _counts), max_size=8),
    weights=st.tuples(_counts, _counts),
    intervals=st.tuples(st.integers(1, 10**7), st.integers(1, 10**9)),
    passed=st.integers(0, 100),
)
def test_a_table_has_the_scores_of_its_regions(
    rows: list[tuple[int, int, int]], weights: tuple[int, int], intervals: tuple[int, int], passed: int
) -> None:
    """All at once is each by itself, always from 0 to 99."""
    ctx = context(sample_interval=intervals[0], aggr_interval=intervals[1])
    ctx.passed_sample_intervals, ctx.next_aggregation_sis = passed, 100
    ctx.attrs.sample_interval = min(intervals[0], intervals[1])
    s = scheme(*weights)
    table = Regions(range(0, 4096 * len(rows), 4096), range(4096, 4096 * len(rows) + 1, 4096))
    most = ctx.attrs.aggr_interval // ctx.attrs.sample_interval
    for name, column in zip(("nr_accesses", "last_nr_accesses", "age"), zip(*rows, strict=True), strict=False):
        bound = 2**32 if name == "age" else most + 1
        setattr(table, name, np.array([value % bound for value in column], np.uint32))
    regions = [table.region(row) for row in range(len(rows))]
    hot = [damon_hot_score(ctx, r, s) for r in regions]
    assert hot == hot_scores(ctx, table, s).tolist()
    assert [damon_cold_score(ctx, r, s) for r in regions] == cold_scores(ctx, table, s).tolist()
    assert all(0 <= score <= 99 for score in hot)
