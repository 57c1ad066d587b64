# SPDX-License-Identifier: GPL-2.0-only
"""Density of reports: where regions are cut and merged, what counts as accessed, and how well hot memory is found."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kdamon.core import (
    damon_commit_ctx,
    damon_new_ctx,
    damon_set_attrs,
    report_counters,
    run_ctx,
    validate_ctx,
)
from kdamon.damon import damon_attrs, damon_ctx, damon_nr_accesses_mvsum, damon_target
from kdamon.density import estimator as density
from kdamon.density.estimator import (
    adjust_regions_by_density,
    best_cuts,
    merge_least_different,
    remember_reports,
)
from kdamon.kernel import VirtualClock, rnd_state
from kdamon.mm.sim.machine import SimMachine
from kdamon.region_merge import merge_runs
from kdamon.regions import Regions
from kdamon.reports import history as report_memory
from kdamon.reports.deliver import report_accesses
from kdamon.reports.history import ReportHistory
from kdamon.reports.record import report_array
from tests.bench.density_workloads import WORKLOADS, Bucket, Phase, Workload, buckets
from tests.support.contexts import MS, WorkClock, bytes_of, first, plain_ctx, recorded, report_ops, sim_ctx
from tests.support.tables import effort, ranges_of, region_lists, table_of, target_of, well_formed

PAGE = 4096
Pages = npt.NDArray[np.intp]


def pages(*numbers: int | range) -> Pages:
    """Page numbers of ranges and single pages."""
    return np.concatenate([np.empty(0, np.intp), *(np.atleast_1d(np.array(n, np.intp)) for n in numbers)])


def paged_ctx(*tables: list[int], **attrs: int) -> damon_ctx:
    """A context with a target for each table of page numbers, at which one region ends and the next one begins."""
    ctx = damon_new_ctx(seed=1)
    ctx.density = True
    ctx.clock = VirtualClock()
    damon_set_attrs(ctx, damon_attrs(**({"min_nr_regions": 3} | attrs)))
    for edges in tables:
        bounds = np.array(edges, np.uint64) * np.uint64(PAGE)
        target_of(Regions(bounds[:-1], bounds[1:]), ctx)
    return ctx


def tell(t: damon_target, ctx: damon_ctx, numbers: Pages, nr_accesses: int = 1) -> None:
    """Report each of the pages."""
    addr = numbers.astype(np.uint64) * np.uint64(PAGE)
    remember_reports(t, ctx, addr, np.full(len(addr), nr_accesses, np.int32))


def aggregate(ctx: damon_ctx, sz_limit: int = 1 << 62) -> None:
    """End an aggregation interval, and begin the next one."""
    for t in ctx.adaptive_targets:
        t.regions.reset_aggregated()
    adjust_regions_by_density(ctx, sz_limit)
    validate_ctx(ctx)
    assert all(well_formed(t.regions) for t in ctx.adaptive_targets)


def page_edges(regions: Regions) -> list[int]:
    """Page numbers of the edges of touching regions."""
    assert (regions.start[1:] == regions.end[:-1]).all()
    return [*(regions.start // PAGE).tolist(), int(regions.end[-1]) // PAGE]


# Cuts.


def cuts(numbers: Pages, *edges: int) -> list[int]:
    """The best cut of each region between ``edges``, as page numbers; 0 for one that is no better than none."""
    addr = np.sort(numbers).astype(np.uint64) * np.uint64(PAGE)
    bounds = np.array(edges, np.uint64) * np.uint64(PAGE)
    ratio, at = best_cuts(addr, np.arange(len(addr) + 1.0), bounds[:-1], bounds[1:], PAGE)
    return [int(a) // PAGE if r > density.CUT_RATIO else 0 for r, a in zip(ratio, at, strict=True)]


@pytest.mark.parametrize(
    ("reported", "cut"),
    [
        (pages(range(20)), 20),
        (pages(range(80, 100)), 80),
        (pages(range(50), range(56, 100, 7)), 50),
        # After a hot end there may be nothing at all.
        (pages(*[range(30)] * 3), 30),
        # The better of two edges.
        (pages(range(30, 60)), 60),
        # One page, often.
        (pages(*[0] * 10), 1),
    ],
)
def test_a_region_is_cut_at_the_edge_of_what_is_dense(reported: Pages, cut: int) -> None:
    """To the page: neither a piece of what is sparse goes with it, nor is a piece lost."""
    assert [cut] == cuts(reported, 0, 100)


@pytest.mark.parametrize(
    "reported",
    [
        pages(),
        pages(50),
        pages(3, 4),
        pages(range(100)),
        pages(range(0, 100, 9)),
        pages(*[range(100)] * 50),
    ],
)
def test_a_region_that_is_alike_everywhere_is_not_cut(reported: Pages) -> None:
    assert [0] == cuts(reported, 0, 100)


def test_a_page_cannot_be_cut() -> None:
    assert [0, 40] == cuts(pages(*[0] * 50, range(20, 40)), 0, 1, 100)


def test_every_region_has_its_own_cut() -> None:
    reported = pages(range(20), range(180, 200), range(200, 300))
    assert [20, 180, 0] == cuts(reported, 0, 100, 200, 300)


def test_chance_does_not_cut() -> None:
    """Reports at random places: hardly ever in a thousand regions."""
    rng = np.random.default_rng(1)
    edges = range(0, 1_000_001, 1000)
    assert sum(cut > 0 for cut in cuts(rng.integers(0, 1_000_000, 200_000), *edges)) <= 5


# Merges.


def merged(n: list[float], most: int, size: list[float] | None = None, **more: Any) -> list[int]:
    """Rows that the merged regions begin with."""
    reports, sizes = np.array(n, float), np.array(size if size is not None else [1.0] * len(n))
    touching = np.array(more.get("touching", [True] * (len(n) - 1) + [False]))
    heads, kept, exposure = merge_least_different(
        reports, sizes.copy(), sizes, touching, max_nr_regions=most, sz_limit=more.get("sz_limit", np.inf)
    )
    assert sum(n) == kept.sum()
    assert sum(size or [1.0] * len(n)) == exposure.sum()
    return heads.tolist()


def test_neighbours_that_do_not_differ_are_merged() -> None:
    assert [0, 3] == merged([10, 12, 9, 100, 90], 10)
    assert [0] == merged([0, 0, 0, 0], 10)
    assert [0, 1] == merged([10, 1000], 10, size=[10, 100])
    assert [0] == merged([100, 1000], 10, size=[10, 100])


def test_of_too_many_regions_those_that_differ_least_are_merged() -> None:
    """And no more of them than are too many."""
    assert [0, 1, 2] == merged([1000, 300, 50], 3)
    assert [0, 2] == merged([100, 50, 10], 2)
    assert [0, 1] == merged([1000, 100, 50, 10], 2)
    assert [0] == merged([1000, 100, 50, 10], 1)


def test_what_does_not_touch_or_would_be_too_large_is_not_merged() -> None:
    assert [0, 2] == merged([5, 5, 5, 5], 1, touching=[True, False, True, False])
    assert [0, 1, 2] == merged([5, 5, 5], 1, sz_limit=1.5)
    assert [0, 2, 4] == merged([5, 5, 5, 5, 5], 1, sz_limit=2)


def test_merged_regions_have_the_means_of_their_counters() -> None:
    """Weighted by size, rounded down; and they are known since the younger one is."""
    table = Regions([0, 10, 40, 100], [10, 40, 50, 200])
    table.age, table.last_nr_accesses = np.array([8, 4, 1, 3], np.uint32), np.array([0, 4, 9, 7], np.uint32)
    table.density_since = np.array([1, 5, 2, 1], np.uint32)
    merge_runs(table, np.array([0, 3]))
    assert [(0, 50), (100, 200)] == ranges_of(table)
    assert [4, 3] == table.age.tolist()
    assert [4, 7] == table.last_nr_accesses.tolist()
    assert [5, 1] == table.density_since.tolist()


# What counts as accessed.


def test_hot_pages_get_a_region_and_the_count_that_samples_would_find() -> None:
    """One access of each page in a sampling interval: a sample finds 63 % of them, 13 of 20. The rest has none."""
    ctx = paged_ctx([0, 1000])
    tell(first(ctx), ctx, np.repeat(np.arange(100, 200), 20))
    aggregate(ctx)
    regions = first(ctx).regions
    assert [0, 100, 200, 1000] == page_edges(regions)
    assert [0, 13, 0] == regions.nr_accesses.tolist()
    assert regions.density is not None
    assert np.allclose([0, 20 / PAGE / 0.1, 0], regions.density)


def test_a_report_counts_as_often_as_it_says() -> None:
    """A source that samples one access in a hundred finds the same density with a hundredth of the reports."""
    ctx = paged_ctx([0, 100_000])
    tell(first(ctx), ctx, np.arange(10_000, 20_000, 5), nr_accesses=100)
    aggregate(ctx)
    regions = first(ctx).regions
    assert [0, 10_000, 19_996, 100_000] == page_edges(regions)
    assert [0, 13, 0] == regions.nr_accesses.tolist()


def test_a_few_weighty_reports_are_no_pattern() -> None:
    """Each stands for many accesses, but where it was made says no more than one."""
    ctx = paged_ctx([0, 1000])
    tell(first(ctx), ctx, pages(100, 400, 410), nr_accesses=1_000_000)
    aggregate(ctx)
    assert [0, 1000] == page_edges(first(ctx).regions)


def test_what_was_accessed_is_as_many_pages_as_were_reported() -> None:
    """Not the whole region that a few busy pages lie in; regions that fit best are marked."""
    ctx = paged_ctx([0, 10, 1010], max_nr_regions=3)
    tell(first(ctx), ctx, np.repeat(np.arange(0, 10), 30))
    tell(first(ctx), ctx, np.arange(20, 1010, 200))
    aggregate(ctx)
    assert [0, 10, 1010] == page_edges(first(ctx).regions)
    assert first(ctx).regions.nr_accesses[0] > 0
    assert 0 == first(ctx).regions.nr_accesses[1]


def test_nothing_reported_is_nothing_accessed() -> None:
    ctx = paged_ctx([0, 10, 1000])
    for _ in range(3):
        aggregate(ctx)
    assert [0] == first(ctx).regions.nr_accesses.tolist()
    assert [3] == first(ctx).regions.age.tolist()


def test_a_context_without_targets_or_regions_is_fine() -> None:
    aggregate(paged_ctx())
    aggregate(paged_ctx([0]))


def test_a_target_does_not_make_another_one_hot() -> None:
    """Regions of both share the limit, and reports of one are not the other's."""
    ctx = paged_ctx([0, 1000], [0, 1000], max_nr_regions=4)
    hot, cold = ctx.adaptive_targets
    tell(hot, ctx, np.repeat(np.arange(100, 200), 20))
    tell(cold, ctx, pages(3))
    aggregate(ctx)
    assert 4 == len(hot.regions) + len(cold.regions)
    assert [0, 1000] == page_edges(cold.regions)
    assert hot.regions.nr_accesses.max() > 10


# Time.


def test_what_changed_is_seen_in_the_next_interval() -> None:
    """What was hot has no density left, and what is hot now has all of it."""
    ctx = paged_ctx([0, 1000])
    for _ in range(20):
        tell(first(ctx), ctx, np.repeat(np.arange(100, 200), 20))
        aggregate(ctx)
    tell(first(ctx), ctx, np.repeat(np.arange(700, 800), 20))
    aggregate(ctx)
    regions = first(ctx).regions
    assert [0, 700, 800, 1000] == page_edges(regions)
    assert [0, 13, 0] == regions.nr_accesses.tolist()
    aged = ctx.adaptive_targets[0].regions.age
    assert 0 == aged[1]


def test_a_rate_too_low_for_one_interval_is_found_in_many() -> None:
    """Two pages of twenty in an interval are nothing, fifty intervals of them are a hot place."""
    ctx = paged_ctx([0, 1000])
    rng = np.random.default_rng(1)
    tell(first(ctx), ctx, rng.integers(300, 320, 2))
    aggregate(ctx)
    assert [0, 1000] == page_edges(first(ctx).regions)
    for _ in range(50):
        tell(first(ctx), ctx, rng.integers(300, 320, 2))
        aggregate(ctx)
    assert [0, 300, 320, 1000] == page_edges(first(ctx).regions)
    assert first(ctx).regions.age[0] > 40


def test_intervals_of_another_length_begin_anew() -> None:
    """Rates are per interval."""
    ctx = paged_ctx([0, 1000])
    for _ in range(5):
        tell(first(ctx), ctx, np.repeat(np.arange(100, 200), 20))
        aggregate(ctx)
    damon_set_attrs(ctx, damon_attrs(min_nr_regions=3, aggr_interval=200_000))
    tell(first(ctx), ctx, np.repeat(np.arange(100, 200), 40))
    aggregate(ctx)
    regions = first(ctx).regions
    assert regions.density is not None
    assert np.allclose([0, 20 / PAGE / 0.1, 0], regions.density)
    assert 1 == first(ctx).memory.now


# Memory.


def remembered(memory: ReportHistory) -> tuple[int, float]:
    """How many reports are remembered, and the accesses they stand for."""
    return sum(len(run) for run in memory.runs), sum(float(run.upto[-1]) for run in memory.runs)


def test_runs_hold_every_report_in_order_and_are_few() -> None:
    memory, rnd = ReportHistory(), rnd_state(1)
    rng = np.random.default_rng(1)
    passed_on: list[npt.NDArray[np.uint64]] = []
    for i in range(report_memory.INTERVALS):
        addr = rng.integers(0, 1000, i % 7 * 10).astype(np.uint64)
        passed_on.append(addr)
        memory.add(addr, np.ones(len(addr)), rnd)
        memory.learn(rnd)
        everything = np.concatenate([run.addr for run in memory.runs])
        assert np.sort(np.concatenate(passed_on)).tolist() == np.sort(everything).tolist()
        for run in memory.runs:
            assert (np.diff(run.addr.astype(np.int64)) >= 0).all()
            whole = run.place(np.array([0], np.uint64), np.array([1000], np.uint64))
            assert [len(np.unique(run.addr))] == run.distinct(whole).tolist()
        assert memory.runs[0].first == memory.runs[0].last == memory.now
        assert [run.last for run in memory.runs[1:]] == [run.first - 1 for run in memory.runs[:-1]]
    assert len(memory.runs) <= 12


def test_memory_is_bounded() -> None:
    """In reports and in intervals; the newest is never what goes."""
    memory, rnd = ReportHistory(), rnd_state(1)
    for _ in range(15):
        memory.add(np.arange(30_000, dtype=np.uint64), np.ones(30_000), rnd)
        memory.learn(rnd)
        assert 30_000 <= remembered(memory)[0] <= report_memory.REPORTS
    for _ in range(2 * report_memory.INTERVALS):
        memory.learn(rnd)
    assert (0, 0.0) == remembered(memory)


def test_of_too_many_reports_some_stand_for_all() -> None:
    memory, rnd = ReportHistory(), rnd_state(1)
    for _ in range(100):
        memory.add(np.arange(10_000, dtype=np.uint64), np.full(10_000, 3.0), rnd)
    memory.learn(rnd)
    n, weight = remembered(memory)
    assert n <= report_memory.REPORTS_PER_INTERVAL
    assert 3_000_000 == pytest.approx(weight, rel=0.05)


@effort(50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_gathering_keeps_order_and_weight(seed: int, most: int) -> None:
    """Also where only every so many-th report is taken."""
    rng = np.random.default_rng(seed)
    memory, rnd = ReportHistory(), rnd_state(seed)
    for _ in range(rng.integers(1, 6)):
        addr = rng.integers(0, 1000, rng.integers(0, 200)).astype(np.uint64)
        memory.add(addr, rng.integers(1, 9, len(addr)).astype(float), rnd)
        memory.learn(rnd)
    start, end = np.array([0, 300, 500], np.uint64), np.array([200, 500, 1000], np.uint64)
    places = memory.places(start, end)
    addr, weight = memory.gather(places, most)
    assert (np.diff(addr.astype(np.int64)) >= 0).all()
    assert memory.held(places).sum() == pytest.approx(weight.sum())
    assert not ((addr >= 200) & (addr < 300)).any()
    assert len(addr) <= 3 * (most + len(memory.runs))


# The option in a kdamond.


def reporting(script: Callable[[int], Any], seed: int = 1, on: bool = True, **callbacks: Any) -> damon_ctx:
    """A context that is reported ``script(sampling interval)`` each time."""

    def prepare(ctx: damon_ctx) -> None:
        validate_ctx(ctx)
        report_accesses(script(ctx.passed_sample_intervals))

    ctx = plain_ctx((0, 1 << 30), ops=report_ops(prepare_access_checks=prepare, **callbacks), seed=seed)
    ctx.min_region_sz = PAGE
    ctx.density = on
    ctx.clock = VirtualClock()
    return ctx


def hot_place(tick: int, n: int = 500) -> Any:
    rng = np.random.default_rng(tick)
    return report_array(n, addr=rng.integers(1 << 28, (1 << 28) + (1 << 24), n).astype(np.uint64))


def test_same_seed_and_reports_give_the_same_regions() -> None:
    """Also where reports are so many that some are left out at random."""

    def run(seed: int) -> list[bytes]:
        ctx = reporting(lambda tick: hot_place(tick, 4000), seed)
        with recorded(ctx) as recorder:
            run_ctx(ctx, 0.2)
        return [bytes_of(s.regions) for s in recorder.snapshots]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_between_aggregations_the_last_count_is_what_is_known() -> None:
    """Reports are counted when an interval ends: schemes that come in its middle do not see memory cool down."""
    seen: list[tuple[bool, bool]] = []

    def script(tick: int) -> Any:
        regions = first(ctx).regions
        if tick > 20:
            last = regions.last_nr_accesses
            seen.append((bool((damon_nr_accesses_mvsum(regions, ctx) == last).all()), bool(last.any())))
        return hot_place(tick)

    ctx = reporting(script)
    run_ctx(ctx, 0.1)
    assert {(True, True)} == set(seen)


@pytest.mark.parametrize("on", [False, True])
def test_what_is_reported_during_work_counts(on: bool) -> None:
    """The end of an interval is work; what is reported meanwhile is of the next one, however long it took."""

    def script(tick: int) -> Any:
        if tick == 5:
            report_accesses(report_array(7, addr=PAGE))
            clock.work(35 * MS)
        if tick == 50:
            report_accesses(report_array(3, addr=PAGE))
            clock.work(450 * MS)
        return report_array()

    ctx = reporting(script, on=on)
    clock = ctx.clock = WorkClock()
    run_ctx(ctx, 0.6)
    counters = report_counters(ctx)
    assert (10, 0) == (counters.applied, counters.late)


def test_accessed_bits_count_while_nothing_is_reported() -> None:
    """And the kernel's rules hold, because density knows nothing then; afterwards reports know better."""

    def check(ctx: damon_ctx) -> None:
        first(ctx).regions.nr_accesses += np.uint32(1)

    seen = []

    def script(tick: int) -> Any:
        regions = first(ctx).regions
        seen.append((regions.density is not None, int(regions.last_nr_accesses.min(initial=99))))
        return hot_place(tick) if 200 <= tick < 400 else report_array()

    ctx = reporting(script, check_accesses=check)
    run_ctx(ctx, 3.0)
    assert [(False, 20)] * 100 == seen[100:200]
    assert [(True, 0)] * 100 == seen[300:400]
    assert (False, 20) == seen[-1]


@pytest.mark.parametrize("page_table", [True, False])
def test_a_process_is_monitored_by_what_is_reported_of_it(page_table: bool) -> None:
    """Three mappings far apart, 64 MB of one are hot: those and no more, whether accessed bits are asked as well."""
    machine = SimMachine(seed=1)
    process = machine.spawn(
        [(1 << 28, 1 << 32), (0x7F00_0000_0000, 0x7F02_0000_0000), (0x7FFF_0000_0000, 0x7FFF_0010_0000)]
    )
    process.access(1 << 30, (1 << 30) + (1 << 26), rate=50)
    ctx = sim_ctx(process, machine)
    ctx.density = True
    ctx.sample_control.primitives_enabled.page_table = page_table
    rng = np.random.default_rng(1)

    def valid(t: damon_target) -> bool:
        addr = (1 << 30) + rng.integers(0, 1 << 14, 500) * PAGE
        report_accesses(report_array(500, pid=process.pid, addr=addr.astype(np.uint64)))
        validate_ctx(ctx)
        return True

    assert ctx.ops is not None
    ctx.ops = evolve(ctx.ops, target_valid=valid)
    with recorded(ctx) as recorder:
        run_ctx(ctx, 1.0)
    regions = recorder.snapshots[-1].regions
    marked = [pair for pair, n in zip(ranges_of(regions), regions.nr_accesses.tolist(), strict=True) if n]
    assert [1 << 30, (1 << 30) + (1 << 26)] == pytest.approx([marked[0][0], marked[-1][1]], abs=64 * PAGE)


def test_reports_of_pages_that_were_chosen_count_by_the_faithful_rule() -> None:
    """One fault in each region says nothing of density."""
    ctx = reporting(hot_place, report_faults=lambda ctx, sampled: None)
    ctx.sample_control.primitives_enabled.page_fault = True
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.1)
    assert all(s.regions.density is None for s in recorder.snapshots)
    assert [20] * 5 == [int(s.regions.nr_accesses.max()) for s in recorder.snapshots]


def test_off_leaves_nothing_behind() -> None:
    """Neither when it never was on, nor when a commit turns it off."""
    seen: list[tuple[bool, bool]] = []

    def script(tick: int) -> Any:
        t = first(ctx)
        if tick == 50:
            off = damon_new_ctx()
            off.ops, off.clock, off.min_region_sz = ctx.ops, ctx.clock, ctx.min_region_sz
            off.attrs = ctx.attrs
            off.adaptive_targets.append(damon_target())
            damon_commit_ctx(ctx, off)
        seen.append((t.memory is not None, t.regions.density is not None))
        return hot_place(tick)

    ctx = reporting(script)
    run_ctx(ctx, 0.1)
    assert [(True, True)] * 20 == seen[30:50]
    assert {(False, False)} == set(seen[50:])
    seen.clear()
    ctx = reporting(script, on=False)
    run_ctx(ctx, 0.04)
    assert {(False, False)} == set(seen)


@effort(60)
@given(st.data())
def test_regions_stay_regions(data: st.DataObject) -> None:
    """Whatever is reported: nothing lost, in order, no more than allowed, counts within the samples."""
    unit = data.draw(st.sampled_from([1, PAGE]), "unit")
    ctx = damon_new_ctx(seed=1)
    ctx.density, ctx.min_region_sz = True, unit
    most = data.draw(st.sampled_from([3, 10, 1000]), "max_nr_regions")
    damon_set_attrs(ctx, damon_attrs(min_nr_regions=3, max_nr_regions=most))
    for _ in range(data.draw(st.integers(0, 2), "targets")):
        target_of(table_of(data.draw(region_lists(unit=unit, max_regions=60, max_count=20, probes=False))), ctx)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))

    def covered(regions: Regions) -> list[int]:
        holes = regions.start[1:] != regions.end[:-1]
        edges = (regions.start[:1], regions.start[1:][holes], regions.end[:-1][holes], regions.end[-1:])
        return np.concatenate(edges).tolist()

    for _ in range(data.draw(st.integers(1, 5), "intervals")):
        before = [covered(t.regions) for t in ctx.adaptive_targets]
        pieces = sum(len(edges) // 2 for edges in before)
        for t in ctx.adaptive_targets:
            if len(t.regions):
                n = int(rng.choice([0, 1, 30, 1000]))
                row = rng.integers(0, len(t.regions), n) // int(rng.choice([1, 2, 60]))
                offset = (rng.random(n) ** int(rng.choice([1, 6])) * t.regions.sizes()[row]).astype(np.uint64)
                weight = rng.integers(-1, int(rng.choice([2, 1000])), n).astype(np.int32)
                remember_reports(t, ctx, t.regions.start[row] + offset, weight)
        aggregate(ctx)
        assert before == [covered(t.regions) for t in ctx.adaptive_targets]
        assert sum(len(t.regions) for t in ctx.adaptive_targets) <= max(most, pieces)


# What it is for. The whole figures are the benchmark's.


def monitored(name: str, seconds: float, on: bool = True, since: float = 0) -> list[Bucket]:
    """Snapshots of a workload from ``since`` on."""
    workload = next(w for w in WORKLOADS if w.name == name)
    return [b for b in buckets(workload, 1, on, seconds) if b.at > since]


def f1(seen: list[Bucket]) -> float:
    return median(b.quality.f1 for b in seen)


def ws_error(seen: list[Bucket]) -> float:
    return float(np.quantile([b.quality.ws_error for b in seen], 0.95))


@pytest.mark.parametrize(
    ("name", "aim", "seconds"),
    [("zipf", 0.70, 5), ("needle 10 GB in 100 TB", 0.95, 2), ("needle 200 MB in 160 GB", 0.95, 2)],
)
def test_hot_memory_is_found_and_no_more_is_accessed_than_is(name: str, aim: float, seconds: float) -> None:
    """The hottest bytes by density, and the working set within 20 %."""
    seen = monitored(name, seconds, since=0.6 * seconds)
    assert f1(seen) >= aim
    assert ws_error(seen) <= 0.2


@pytest.mark.parametrize(("name", "seconds"), [("stairs", 6.5), ("moving", 6.5), ("scattered", 2.0)])
def test_it_is_no_worse_than_the_faithful_rule(name: str, seconds: float) -> None:
    """Where that is good, and where nothing is."""
    on, off = monitored(name, seconds), monitored(name, seconds, on=False)
    assert f1(on) >= f1(off)
    assert ws_error(on) <= max(ws_error(off), 0.01)


def test_memory_that_is_alike_everywhere_stays_whole() -> None:
    """As much as the minimum number of regions allows: the limit on the size of a region is a tenth of all."""
    alike = Workload("alike", 1 << 32, lambda seed, number: Phase(np.array([0.0, 1 << 32]), np.array([2.0])))
    assert median(b.nr_regions for b in buckets(alike, 1, True, 4)) < 25
