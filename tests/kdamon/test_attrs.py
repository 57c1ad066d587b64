# SPDX-License-Identifier: GPL-2.0-only
"""Monitoring attributes: what is refused, what a change does to results, and the auto-tuning of the intervals."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kdamon import trace
from kdamon.core import (
    damon_add_scheme,
    damon_get_intervals_adaptation_bp,
    damon_get_intervals_score,
    damon_new_ctx,
    damon_set_attrs,
    kdamond_tune_intervals,
)
from kdamon.damon import damon_attrs, damon_ctx, damon_intervals_goal, damon_region_sz_limit, damos
from tests.support.model import Region
from tests.support.tables import ctx_of, model_of, table_of


def goal(**changes: int) -> damon_intervals_goal:
    values = {"access_bp": 400, "aggrs": 3, "min_sample_us": 5000, "max_sample_us": 10_000_000}
    return damon_intervals_goal(**(values | changes))


def refused(ctx: damon_ctx, attrs: damon_attrs) -> int | None:
    with pytest.raises(OSError) as error:
        damon_set_attrs(ctx, attrs)
    return error.value.errno


def test_defaults() -> None:
    attrs = damon_new_ctx().attrs
    assert (5000, 100_000, 60_000_000) == (attrs.sample_interval, attrs.aggr_interval, attrs.ops_update_interval)
    assert (10, 1000) == (attrs.min_nr_regions, attrs.max_nr_regions)
    assert damon_intervals_goal(0, 0, 0, 0) == attrs.intervals_goal


@pytest.mark.parametrize(
    "attrs",
    [
        damon_attrs(min_nr_regions=2),
        damon_attrs(min_nr_regions=0),
        damon_attrs(min_nr_regions=11, max_nr_regions=10),
        damon_attrs(sample_interval=5001, aggr_interval=5000),
        damon_attrs(intervals_goal=goal(min_sample_us=5001)),
        damon_attrs(intervals_goal=goal(max_sample_us=4999, min_sample_us=1)),
        damon_attrs(intervals_goal=goal(min_sample_us=9000, max_sample_us=2000)),
    ],
)
def test_bad_attributes_are_refused_and_change_nothing(attrs: damon_attrs) -> None:
    regions = [Region(0, 10, 3, 4, 5)]
    ctx = ctx_of(table_of(regions))
    ctx.passed_sample_intervals, ctx.next_aggregation_sis, ctx.next_ops_update_sis = 7, 20, 12_000
    before = damon_attrs()
    assert errno.EINVAL == refused(ctx, attrs)
    assert before == ctx.attrs
    assert (7, 20, 12_000) == (ctx.passed_sample_intervals, ctx.next_aggregation_sis, ctx.next_ops_update_sis)
    assert regions == model_of(ctx.adaptive_targets[0].regions)


@pytest.mark.parametrize(
    "attrs",
    [
        damon_attrs(min_nr_regions=3, max_nr_regions=3),
        damon_attrs(sample_interval=5000, aggr_interval=5000),
        damon_attrs(sample_interval=0, aggr_interval=0, ops_update_interval=0),
        damon_attrs(intervals_goal=goal(min_sample_us=5000, max_sample_us=5000)),
        damon_attrs(intervals_goal=goal(aggrs=0, min_sample_us=9000, max_sample_us=1)),
    ],
)
def test_attributes_at_the_edge_of_what_is_allowed(attrs: damon_attrs) -> None:
    """Equal bounds, zero intervals, and the bounds of a goal that is turned off."""
    ctx = damon_new_ctx()
    damon_set_attrs(ctx, attrs)
    assert attrs == ctx.attrs


def test_the_goal_is_looked_at_before_the_regions() -> None:
    """Where several things are wrong, the message is about what the kernel finds first."""
    ctx = damon_new_ctx()
    attrs = damon_attrs(
        intervals_goal=goal(min_sample_us=9000), min_nr_regions=2, max_nr_regions=1, sample_interval=7, aggr_interval=6
    )
    found = []
    for correction in (
        {"intervals_goal": goal(min_sample_us=1)},
        {"min_nr_regions": 3},
        {"max_nr_regions": 3},
        {"aggr_interval": 7},
    ):
        with pytest.raises(OSError) as error:
            damon_set_attrs(ctx, attrs)
        found.append(str(error.value.strerror))
        for name, value in correction.items():
            setattr(attrs, name, value)
    damon_set_attrs(ctx, attrs)
    assert [True] * 4 == [
        "goal" in found[0],
        "at least 3" in found[1],
        "maximum" in found[2],
        "aggregation" in found[3],
    ]


def test_aggr_samples_is_filled_in_for_the_caller_too() -> None:
    attrs = damon_attrs(sample_interval=3000, aggr_interval=100_000)
    ctx = damon_new_ctx()
    damon_set_attrs(ctx, attrs)
    assert (33, 33) == (attrs.aggr_samples, ctx.attrs.aggr_samples)
    damon_set_attrs(ctx, damon_attrs(sample_interval=0, aggr_interval=100, aggr_samples=0))
    assert 100 == ctx.attrs.aggr_samples


def test_the_callers_attributes_are_copied() -> None:
    attrs = damon_attrs(intervals_goal=goal())
    ctx = damon_new_ctx()
    damon_set_attrs(ctx, attrs)
    attrs.sample_interval = attrs.intervals_goal.aggrs = 1
    assert (5000, 3) == (ctx.attrs.sample_interval, ctx.attrs.intervals_goal.aggrs)


def test_everything_is_planned_anew() -> None:
    """From now on, in new sampling intervals; the intervals tuning keeps its plan."""
    ctx = damon_new_ctx()
    ctx.passed_sample_intervals, ctx.next_intervals_tune_sis = 1000, 77
    own, aggr = damos(apply_interval_us=30_000), damos()
    damon_add_scheme(ctx, own)
    damon_add_scheme(ctx, aggr)
    damon_set_attrs(ctx, damon_attrs(sample_interval=10_000, aggr_interval=200_000, ops_update_interval=1_000_000))
    assert (1020, 1100, 77) == (ctx.next_aggregation_sis, ctx.next_ops_update_sis, ctx.next_intervals_tune_sis)
    assert (1003, 1020) == (own.next_apply_sis, aggr.next_apply_sis)


@pytest.mark.parametrize(("passed", "nr_accesses"), [(19, 0), (20, 10), (21, 10)])
def test_counts_of_an_unfinished_aggregation_are_dropped(passed: int, nr_accesses: int) -> None:
    """A complete one is converted. Whether it is complete is decided before anything changes."""
    ctx = ctx_of(table_of([Region(0, 10, 20, 20, 6, 20)]))
    ctx.passed_sample_intervals, ctx.next_aggregation_sis = passed, 20
    damon_set_attrs(ctx, damon_attrs(sample_interval=10_000, aggr_interval=100_000))
    assert [Region(0, 10, nr_accesses, 10, 6, nr_accesses)] == model_of(ctx.adaptive_targets[0].regions)


@pytest.mark.parametrize(
    ("old", "new"), [((0, 100_000), (5000, 100_000)), ((0, 0), (5000, 50_000)), ((5000, 100_000), (0, 0))]
)
def test_nothing_is_converted_from_or_to_zero_intervals(old: tuple[int, int], new: tuple[int, int]) -> None:
    regions = [Region(0, 10, 2, 3, 4)]
    ctx = ctx_of(table_of(regions))
    ctx.attrs = damon_attrs(sample_interval=old[0], aggr_interval=old[1])
    damon_set_attrs(ctx, damon_attrs(sample_interval=new[0], aggr_interval=new[1]))
    assert regions == model_of(ctx.adaptive_targets[0].regions)


# Intervals auto-tuning.


def ctx_with_score(score: int, sample_interval: int = 5000, **goals: int) -> damon_ctx:
    """A context whose one region was accessed so often that the intervals score is ``score``."""
    regions = table_of([Region(0, 1 << 30, nr_accesses=score)])
    ctx = ctx_of(regions)
    # 20000 samples of which half should be accesses: 10000 of them are the goal.
    ctx.attrs = damon_attrs(
        sample_interval=sample_interval,
        aggr_interval=sample_interval * 20_000,
        aggr_samples=20_000,
        intervals_goal=goal(access_bp=5000, **goals),
    )
    return ctx


ADAPTATIONS = [
    (0, 20_000),
    (2500, 17_500),
    (5000, 15_000),
    (9999, 10_001),
    (10_000, 10_000),
    (10_001, 9999),
    (12_500, 8750),
    (15_000, 7500),
    (19_999, 5000),
    (20_000, 5000),
    (1_000_000, 5000),
]


@pytest.mark.parametrize(("score", "adaptation"), ADAPTATIONS)
def test_adaptation_follows_the_score(score: int, adaptation: int) -> None:
    ctx = ctx_with_score(score)
    assert score == damon_get_intervals_score(ctx)
    assert adaptation == damon_get_intervals_adaptation_bp(ctx)


def test_the_score_weighs_regions_by_size() -> None:
    ctx = ctx_of(table_of([Region(0, 300, nr_accesses=20), Region(500, 600, nr_accesses=0)]), table_of([]))
    ctx.attrs = damon_attrs(aggr_samples=20, intervals_goal=goal(access_bp=400))
    # 300 * 20 events of 400 * 20; 4 percent of these are wanted.
    assert 6000 * 10_000 // 320 == damon_get_intervals_score(ctx)


def test_without_regions_there_is_a_score_all_the_same() -> None:
    ctx = ctx_of(table_of([]))
    assert 0 == damon_get_intervals_score(ctx)


@pytest.mark.parametrize(("score", "adaptation"), ADAPTATIONS)
def test_tuned_intervals_are_multiplied_and_bounded(score: int, adaptation: int) -> None:
    """The number of samples per aggregation interval stays what it was."""
    seen: list[int] = []
    probe = lambda ctx, sample_us: seen.append(sample_us)  # noqa: E731 (unregistered by identity)
    trace.damon_monitor_intervals_tune.register(probe)
    try:
        ctx = ctx_with_score(score, min_sample_us=3000, max_sample_us=9000)
        kdamond_tune_intervals(ctx)
    finally:
        trace.damon_monitor_intervals_tune.unregister(probe)
    expected = max(3000, min(9000, 5000 * adaptation // 10_000))
    assert (expected, expected * 20_000) == (ctx.attrs.sample_interval, ctx.attrs.aggr_interval)
    assert ([] if adaptation == 10_000 else [expected]) == seen


def test_tuning_converts_complete_results() -> None:
    """Halved intervals with the same number of samples: counts stay, ages double."""
    ctx = ctx_with_score(20_000, sample_interval=10_000)
    ctx.attrs.min_nr_regions = 3
    ctx.adaptive_targets[0].regions.age = np.array([8], np.uint32)
    ctx.passed_sample_intervals = ctx.next_aggregation_sis = 20_000
    kdamond_tune_intervals(ctx)
    assert 5000 == ctx.attrs.sample_interval
    assert [Region(0, 1 << 30, 20_000, age=16)] == model_of(ctx.adaptive_targets[0].regions)


@pytest.mark.parametrize(("wanted", "size"), [(10, (1 << 47) // 10), (1 << 22, 1 << 25), (1 << 40, 1 << 25)])
def test_the_minimum_number_of_regions_does_not_take_all_memory(wanted: int, size: int) -> None:
    """A target that is nearly all addresses is cut into four million regions at most."""
    ctx = ctx_of(table_of([Region(0, 1 << 47)]))
    ctx.attrs = damon_attrs(min_nr_regions=wanted, max_nr_regions=1 << 63)
    assert size == damon_region_sz_limit(ctx)
