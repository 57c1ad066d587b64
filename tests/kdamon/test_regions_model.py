# SPDX-License-Identifier: GPL-2.0-only
"""The region table against the plain model: same regions in, same regions out, for every function over regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdamon.apply_reports import apply_access_reports
from kdamon.core import (
    damon_apply_min_nr_regions,
    damon_merge_regions_of,
    damon_set_regions,
    damon_split_some_regions,
    damon_update_monitoring_results,
    kdamond_merge_regions,
    kdamond_reset_aggregated,
    kdamond_split_regions,
)
from kdamon.damon import damon_attrs
from kdamon.kernel import ALIGN, UINT_MAX, ULONG_MAX, rnd_state
from kdamon.region_merge import merge_equal, merge_similar
from kdamon.regions import Regions
from kdamon.reports.record import report_array
from tests.support import model
from tests.support.model import Region, Report
from tests.support.tables import (
    addr_ranges,
    ctx_of,
    effort,
    has_probes,
    model_of,
    ranges_of,
    region_lists,
    table_of,
    target_of,
    well_formed,
)

THRESHOLDS = st.sampled_from([0, 1, 2, 9, 100, 2**32 - 1, 2**40])
LIMITS = st.sampled_from([0, 1, 5, 1000, 1 << 21, 1 << 35, 1 << 63, 2**64 - 1])


def tables(regions: Sequence[Region]) -> Regions:
    return table_of(regions, has_probes(regions))


def copies(regions: Sequence[Region]) -> list[Region]:
    return [r.copy() for r in regions]


class Draws:
    """Random numbers that are remembered: draw ``i`` of row ``j`` is ``raw[i][j]``."""

    def __init__(self, seed: int) -> None:
        self.raw: list[list[int]] = []
        self._rnd = rnd_state(seed)

    def __call__(self, n: int) -> np.ndarray:
        raw = self._rnd.u32(n).copy()
        self.raw.append(raw.tolist())
        return raw

    def tenths(self, row: int, attempt: int) -> int:
        return 1 + (self.raw[attempt][row] * 9 >> 32)


# Merge.


@effort(150)
@given(region_lists(), THRESHOLDS, LIMITS, st.booleans(), st.tuples(st.sampled_from([1, 2, 20]), st.booleans()))
def test_merge_regions_of_equals_the_model(
    regions: list[Region], threshold: int, sz_limit: int, count_age: bool, unknown: tuple[int, bool]
) -> None:
    samples, unknown_apart = unknown
    expected = copies(regions)
    model.merge_regions_of(expected, threshold, sz_limit, count_age, samples, unknown_apart)
    t = target_of(tables(regions))
    damon_merge_regions_of(t, threshold, sz_limit, count_age, nr_samples=samples, unknown_apart=unknown_apart)
    assert expected == model_of(t.regions)
    assert well_formed(t.regions)


@pytest.mark.parametrize("chains", [1, 2, 50])
@pytest.mark.parametrize("length", [1, 2, 3, 24, 100])
def test_chains_of_neighbours_merge_as_in_the_model(chains: int, length: int) -> None:
    """Whether neighbours are many or few, and touch each other in long rows or short ones."""
    regions = []
    for i in range(chains * length):
        start = 10 * i + 5 * (i // length)
        regions.append(Region(start, start + 10, nr_accesses=i % 3, age=i % 7, nr_unknown=i % 2))
    expected = copies(regions)
    model.merge_regions_of(expected, 1, 10_000, True)
    t = target_of(table_of(regions))
    damon_merge_regions_of(t, 1, 10_000, True)
    assert expected == model_of(t.regions)


@effort(100)
@given(st.lists(region_lists(max_regions=120), max_size=3), st.integers(0, 4), LIMITS, st.integers(3, 60))
def test_kdamond_merge_regions_raises_the_threshold_as_the_model(
    targets: list[list[Region]], threshold: int, sz_limit: int, max_nr: int
) -> None:
    """Regions age once, and the threshold doubles until there are few enough or it cannot grow."""
    expected = [copies(regions) for regions in targets]
    model.kdamond_merge_regions(expected, threshold, sz_limit, max_nr, 20)
    ctx = ctx_of(*(tables(regions) for regions in targets))
    ctx.attrs = damon_attrs(min_nr_regions=3, max_nr_regions=max_nr)
    kdamond_merge_regions(ctx, threshold, sz_limit)
    assert expected == [model_of(t.regions) for t in ctx.adaptive_targets]


@pytest.mark.parametrize(("difference", "left"), [(20, 1), (21, 10), (32, 10)])
def test_the_threshold_grows_to_the_number_of_samples(difference: int, left: int) -> None:
    """Not beyond it, though doubling 16 would make it 32."""
    ctx = ctx_of(table_of([Region(10 * i, 10 * i + 10, difference * (i % 2)) for i in range(10)]))
    ctx.attrs = damon_attrs(min_nr_regions=3, max_nr_regions=3)
    kdamond_merge_regions(ctx, 1, 1000)
    assert left == len(ctx.adaptive_targets[0].regions)


@effort(200)
@given(region_lists(max_count=1), st.integers(1, 4), st.integers(0, 8))
def test_merge_equal_equals_the_model(regions: list[Region], kinds: int, parts: int) -> None:
    """With ``kinds`` different ages, and a limit that some, all or no neighbours keep."""
    for r in regions:
        r.age %= kinds
        r.nr_accesses = r.last_nr_accesses = 0
        r.unknown_age = r.last_nr_unknown = 0
        r.nr_unknown //= 2
        r.probe_hits = [hits // 200 for hits in r.probe_hits[:1]] + [0] * 3
        r.last_probe_hits = [hits // 200 for hits in r.last_probe_hits[:1]] + [0] * 3
    sz_limit = parts * max((r.size for r in regions), default=0) // 2
    expected = copies(regions)
    model.merge_equal(expected, sz_limit)
    table = tables(regions)
    merge_equal(table, sz_limit)
    assert expected == model_of(table)
    assert well_formed(table)


@effort(60)
@given(region_lists(max_regions=2, min_regions=2))
def test_two_regions_merge_as_in_the_model(regions: list[Region]) -> None:
    """Also where products wrap around as C's do."""
    regions[0].end = regions[1].start
    expected = copies(regions)
    model.merge_two(expected[0], expected.pop())
    table = tables(regions)
    merge_similar(table, UINT_MAX, ULONG_MAX)
    assert expected == model_of(table)


def test_means_wrap_as_in_c() -> None:
    """The products are unsigned long: 2**33 times 2**31 is nothing."""
    regions = [Region(0, 1 << 33, nr_accesses=1 << 31, age=3), Region(1 << 33, 1 << 34, nr_accesses=4, age=5)]
    table = table_of(regions)
    merge_similar(table, UINT_MAX, 1 << 34)
    assert [Region(0, 1 << 34, nr_accesses=2, age=4)] == model_of(table)


# Split.


@effort(80)
@given(region_lists(max_regions=60, min_regions=1), st.data())
def test_split_at_equals_the_model(regions: list[Region], data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(regions) - 1))
    size = data.draw(st.integers(1, max(1, regions[row].size - 1)))
    expected = copies(regions)
    model.split_at(expected, row, size)
    table = tables(regions)
    table.split_at(row, size)
    assert expected == model_of(table)


@effort(100)
@given(region_lists(max_regions=100), st.sampled_from([1, 2, 3, 4096]), st.sampled_from([1, 2, 7, 50]))
def test_split_max_equals_the_model(regions: list[Region], unit: int, parts: int) -> None:
    total = sum(r.size for r in regions)
    size = max(model.align_up(max(total // parts, 1), unit), 1)
    expected = copies(regions)
    model.split_max(expected, size)
    table = tables(regions)
    table.split_max(size)
    assert expected == model_of(table)
    assert well_formed(table)


@pytest.mark.parametrize("size", [2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1])
def test_split_max_at_the_end_of_the_address_space(size: int) -> None:
    regions = [Region(0, 2**64 - 1, age=7)]
    expected = copies(regions)
    model.split_max(expected, size)
    table = table_of(regions)
    table.split_max(size)
    assert expected == model_of(table)


@effort(150)
@given(region_lists(), st.sampled_from([2, 3, 4]), st.sampled_from([1, 2, 16, 4096]), st.integers(0, 2**16))
def test_split_regions_of_equals_the_model(regions: list[Region], nr_subs: int, min_size: int, seed: int) -> None:
    """With the same random numbers the same cuts; each further cut is made in the leftmost part."""
    draws = Draws(seed)
    table = tables(regions)
    table.split_random(nr_subs, min_size, draws)
    expected = copies(regions)
    model.split_regions_of(expected, nr_subs, min_size, draws.tenths)
    assert expected == model_of(table)
    assert well_formed(table)


@effort(80)
@given(
    st.lists(region_lists(max_regions=80), min_size=1, max_size=3),
    st.integers(2, 9),
    st.integers(0, 20),
    st.sampled_from([1, 2, 4096]),
)
def test_split_some_regions_equals_the_model(
    targets: list[list[Region]], step: int, rotation: int, min_size: int
) -> None:
    """One in every ``step`` regions, counted over all targets, the next one each time."""
    ctx = ctx_of(*(tables(regions) for regions in targets), seed=rotation, min_region_sz=min_size)
    ctx.split_rotation = rotation
    damon_split_some_regions(ctx, step)

    rnd = rnd_state(rotation)
    raw = np.concatenate([rnd.u32(len(regions)).copy() for regions in targets]).tolist()
    expected = [copies(regions) for regions in targets]
    model.split_some_regions(expected, step, rotation % step, min_size, lambda row, _: 1 + (raw[row] * 9 >> 32))
    assert expected == [model_of(t.regions) for t in ctx.adaptive_targets]
    assert rotation + 1 == ctx.split_rotation


@effort(150)
@given(
    st.lists(region_lists(max_regions=150), max_size=2),
    st.integers(3, 400),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_splitting_never_exceeds_the_maximum(
    targets: list[list[Region]], max_nr: int, same_as_before: bool, seed: int
) -> None:
    ctx = ctx_of(*(tables(regions) for regions in targets), seed=seed)
    before = sum(len(regions) for regions in targets)
    ctx.attrs = damon_attrs(min_nr_regions=3, max_nr_regions=max_nr)
    ctx.last_nr_regions = before if same_as_before else before + 1
    ctx.split_rotation = seed
    kdamond_split_regions(ctx)
    after = sum(len(t.regions) for t in ctx.adaptive_targets)
    assert before <= after <= max(before, max_nr)
    assert before == ctx.last_nr_regions


@pytest.mark.parametrize("max_nr", range(3, 40))
def test_splitting_above_half_of_the_maximum_stays_below_it(max_nr: int) -> None:
    """Each number of regions, each rotation that makes a difference; every region can be cut."""
    for n in range(max_nr + 2):
        # One in so many is cut, at most.
        for rotation in range(max_nr // max(max_nr - n, 1) + 1):
            ctx = ctx_of(Regions([100 * i for i in range(n)], [100 * i + 100 for i in range(n)]))
            ctx.attrs = damon_attrs(min_nr_regions=3, max_nr_regions=max_nr)
            ctx.split_rotation = rotation
            kdamond_split_regions(ctx)
            assert n <= len(ctx.adaptive_targets[0].regions) <= max(n, max_nr)


@pytest.mark.parametrize(
    ("regions", "max_nr", "before", "most"),
    [
        (10, 33, 10, 30),
        (10, 33, 9, 20),
        (10, 32, 10, 20),
        (10, 20, 10, 20),
        (10, 20, 9, 20),
    ],
)
def test_regions_are_cut_in_three_where_two_did_not_help(regions: int, max_nr: int, before: int, most: int) -> None:
    """Only when their number is what it was, and below a third of the maximum."""
    counts = set()
    for seed in range(20):
        ctx = ctx_of(Regions([1000 * i for i in range(regions)], [1000 * i + 1000 for i in range(regions)]), seed=seed)
        ctx.attrs = damon_attrs(min_nr_regions=3, max_nr_regions=max_nr)
        ctx.last_nr_regions = before
        kdamond_split_regions(ctx)
        counts.add(len(ctx.adaptive_targets[0].regions))
    assert {most} == counts


@effort(60)
@given(st.lists(region_lists(max_regions=40), min_size=1, max_size=3), st.integers(3, 30), st.sampled_from([1, 8]))
def test_min_nr_regions_cuts_as_the_model(targets: list[list[Region]], min_nr: int, unit: int) -> None:
    ctx = ctx_of(*(tables(regions) for regions in targets), min_region_sz=unit)
    ctx.attrs = damon_attrs(min_nr_regions=min_nr)
    limit = ALIGN(max(sum(r.size for regions in targets for r in regions) // min_nr, unit), unit)
    expected = [copies(regions) for regions in targets]
    for regions in expected:
        model.split_max(regions, limit)
    assert limit == damon_apply_min_nr_regions(ctx)
    assert expected == [model_of(t.regions) for t in ctx.adaptive_targets]


# Regions of a target.


@st.composite
def ranges_for(draw: st.DrawFn, regions: list[Region], unit: int) -> list[tuple[int, int]]:
    """Ranges at, near and far from the bounds of ``regions``; mostly ascending, aligned or not."""
    bounds = [b for r in regions for b in (r.start, r.end)] or [0, 100 * unit]
    n = draw(st.integers(0, 12))
    picks = draw(st.lists(st.sampled_from(bounds), min_size=2 * n, max_size=2 * n))
    shift = st.sampled_from([0, 0, 0, 1, -1, unit, -unit, 3 * unit + 1, -3 * unit - 1])
    points = [max(0, p + draw(shift)) for p in picks]
    if draw(st.integers(0, 9)):
        points.sort()
    return [(points[2 * i], points[2 * i + 1]) for i in range(n)]


@effort(400)
@given(st.sampled_from([1, 4, 4096]), st.data())
def test_set_regions_equals_the_model(unit: int, data: st.DataObject) -> None:
    """Keeps what is known of memory that stays, fits the ends, fills holes; refuses bad ranges and changes nothing."""
    regions = data.draw(region_lists(max_regions=data.draw(st.sampled_from([4, 15, 120])), unit=unit))
    ranges = data.draw(ranges_for(regions, unit))
    expected = copies(regions)
    t = target_of(tables(regions))
    try:
        model.set_regions(expected, ranges, unit)
    except OSError as refused:
        with pytest.raises(OSError) as error:
            damon_set_regions(t, addr_ranges(ranges), unit)
        assert refused.errno == error.value.errno
        assert regions == model_of(t.regions)
    else:
        damon_set_regions(t, addr_ranges(ranges), unit)
        assert expected == model_of(t.regions)
        assert well_formed(t.regions)


@effort(60)
@given(st.sampled_from([1, 4096]), st.data())
def test_set_regions_covers_just_the_ranges(unit: int, data: st.DataObject) -> None:
    """Whatever was there before, exactly the aligned ranges are covered afterwards."""
    regions = data.draw(region_lists(max_regions=30, unit=unit))
    points = sorted(data.draw(st.sets(st.integers(0, 200).map(lambda p: p * unit), max_size=16)))
    ranges = list(zip(points[::2], points[1::2], strict=False))
    t = target_of(tables(regions))
    damon_set_regions(t, addr_ranges(ranges), unit)
    covered: list[list[int]] = []
    for start, end in ranges_of(t.regions):
        if covered and covered[-1][1] == start:
            covered[-1][1] = end
        else:
            covered.append([start, end])
    joined: list[list[int]] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    assert joined == covered


# Attributes.

INTERVALS = st.tuples(
    st.sampled_from([0, 1, 5, 1000, 5000, 99_999, 10**7]), st.sampled_from([0, 1, 20, 5000, 100_000, 10**9, 2**45])
)


@effort(150)
@given(region_lists(max_regions=60, probes=False), INTERVALS, INTERVALS, st.booleans())
@example([Region(3, 7, 15, 3, 20)], (10, 1000), (1, 1000), False)
def test_update_monitoring_results_equals_the_model(
    regions: list[Region], old: tuple[int, int], new: tuple[int, int], aggregating: bool
) -> None:
    """Counts go through 1/10000 and are cut off twice, ages once, as in the kernel."""
    expected = copies(regions)
    model.update_monitoring_results(expected, old, new, aggregating)
    ctx = ctx_of(table_of(regions))
    ctx.attrs = damon_attrs(sample_interval=old[0], aggr_interval=old[1])
    new_attrs = damon_attrs(sample_interval=new[0], aggr_interval=new[1])
    damon_update_monitoring_results(ctx, new_attrs, aggregating)
    assert expected == model_of(ctx.adaptive_targets[0].regions)
    assert well_formed(ctx.adaptive_targets[0].regions)


@effort(40)
@given(region_lists(max_regions=60))
def test_reset_aggregated_makes_counters_the_last_ones(regions: list[Region]) -> None:
    ctx = ctx_of(tables(regions))
    kdamond_reset_aggregated(ctx)
    for r in regions:
        r.last_nr_accesses, r.nr_accesses = r.nr_accesses, 0
        r.last_nr_unknown, r.nr_unknown = r.nr_unknown, 0
        r.last_probe_hits, r.probe_hits = r.probe_hits, [0] * 4
    assert regions == model_of(ctx.adaptive_targets[0].regions)


# Reports.


@st.composite
def reports_for(draw: st.DrawFn, regions: list[Region]) -> list[Report]:
    """Reports inside, across and beside ``regions``, some of size zero or that wrap around."""
    bounds = [b for r in regions for b in (r.start, r.end)] or [0, 4096]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.sampled_from([[1], [0, 1, 64], [1, 4096, 1 << 40], [1, 2**64 - 1, 2**64 - 4096]]))
    n = draw(st.integers(0, 80))
    addrs = rng.choice(np.array(bounds, np.uint64), n).astype(object) + rng.integers(-3, 5000, n)
    return [
        Report(min(max(int(a), 0), 2**64 - 1), sizes[s], int(c))
        for a, s, c in zip(addrs, rng.integers(0, len(sizes), n), rng.integers(-2, 9, n), strict=True)
    ]


@effort(200)
@given(region_lists(max_count=20, probes=False), st.booleans(), st.data())
def test_report_application_equals_a_linear_scan(regions: list[Region], counts: bool, data: st.DataObject) -> None:
    """Each report is found in the one region that contains it; what overlaps without being contained is straddling."""
    reports = data.draw(reports_for(regions))
    expected = copies(regions)
    fates = model.apply_reports(expected, reports, cap=20 if counts else None)
    ctx = ctx_of(table_of(regions))
    ctx.report_counts = counts
    batch = report_array(
        len(reports),
        addr=np.array([r.addr for r in reports], np.uint64),
        size=np.array([r.size for r in reports], np.uint64),
        nr_accesses=[r.nr_accesses for r in reports],
    )
    within, across = apply_access_reports(batch, ctx.adaptive_targets[0], ctx)
    assert [fate == "applied" for fate in fates] == within.tolist()
    assert [fate == "straddling" for fate in fates] == across.tolist()
    assert expected == model_of(ctx.adaptive_targets[0].regions)
