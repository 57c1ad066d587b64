# SPDX-License-Identifier: GPL-2.0-only
"""Finding the region of a reported range by tables finds what a plain scan finds, on any layout of regions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.apply_reports import kdamond_apply_zero_access_report, kdamond_check_reported_accesses, lookup_of
from kdamon.core import damon_add_target, damon_new_ctx, damon_new_target, report_counters
from kdamon.damon import damon_ctx, damon_operations, damon_ops_id, damon_target
from kdamon.kernel import VirtualClock
from kdamon.regions import Regions
from kdamon.reports.deliver import DAMON_ACCESS_REPORTS_CAP
from kdamon.reports.lookup import RegionLookup
from kdamon.reports.queue import ReportQueue
from kdamon.reports.record import REPORT_DTYPE, report_array
from tests.support.tables import effort

TOP = 2**64


def plain(ranges: list[tuple[int, int]], addr: int, size: int) -> tuple[int, bool]:
    """The row that contains the range wholly or -1, and whether the range overlaps some region nevertheless."""
    for row, (start, end) in enumerate(ranges):
        if start <= addr < end and addr + size <= end and addr + size < TOP:
            return row, False
    access_end = addr + size
    if access_end < TOP:
        return -1, any(addr < end and (access_end > start if start > addr else True) for start, end in ranges)
    return -1, any(addr < end for _, end in ranges)


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Regions of very different sizes, neighbours or with gaps up to the whole address space, in any unit."""
    unit = draw(st.sampled_from([1, 64, 4096]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 60))
    sizes = [max(1, int(2 ** rng.uniform(0, draw(st.sampled_from([3, 12, 30]))))) for _ in range(n)]
    gaps = [0 if rng.random() < 0.7 else int(2 ** rng.uniform(0, 34)) for _ in range(n)]
    at = draw(st.sampled_from([0, 1, 2**20, 2**40]))
    ranges = []
    for size, gap in zip(sizes, gaps, strict=True):
        start = at + gap
        at = start + size
        ranges.append((start * unit, at * unit))
    fits = [r for r in ranges if r[1] < TOP]
    if draw(st.booleans()):
        fits.append((TOP - 4096, TOP - 1))
    return fits


def questions(rng: np.random.Generator, ranges: list[tuple[int, int]], n: int) -> tuple[list[int], list[int]]:
    """Ranges to ask for: inside, at and across edges, in gaps, empty, enormous and wrapping around."""
    borders = [b for r in ranges for b in r]
    addrs, sizes = [], []
    for _ in range(n):
        start, end = ranges[rng.integers(len(ranges))]
        kind = rng.random()
        if kind < 0.6:
            addr = start + int(rng.random() * (end - start))
        elif kind < 0.9:
            addr = borders[rng.integers(len(borders))] + int(rng.integers(-3, 4))
        else:
            addr = int(rng.integers(0, 2**63)) * 2 + 1
        addrs.append(min(max(addr, 0), TOP - 1))
        sizes.append([0, 1, 2, 64, 4096, end - start, TOP - 1, TOP - addrs[-1] - 1][rng.integers(8)])
    return addrs, [min(size, TOP - 1) for size in sizes]


@effort(100)
@given(layouts(), st.integers(0, 2**32 - 1))
def test_tables_find_what_a_scan_finds(ranges: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    lookup = RegionLookup(Regions([a for a, _ in ranges], [b for _, b in ranges]))
    for n in (20, 400, 300):
        addrs, sizes = questions(rng, ranges, n)
        rows, across = lookup.find(np.array(addrs, np.uint64), np.array(sizes, np.uint64))
        if across is None:
            across = np.zeros(n, np.bool_)
        expected = [plain(ranges, addr, size) for addr, size in zip(addrs, sizes, strict=True)]
        assert expected == list(zip(rows.tolist(), across.tolist(), strict=True))
    assert lookup._spans is not None, "the tables were never used"


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_without_regions_nothing_is_found(n: int) -> None:
    lookup = RegionLookup(Regions())
    rows, across = lookup.find(np.zeros(n, np.uint64), np.ones(n, np.uint64))
    assert [-1] * n == rows.tolist()
    assert across is None


def test_a_lookup_fits_as_long_as_the_ranges_are_the_same() -> None:
    regions = Regions([0, 100], [100, 200])
    lookup = RegionLookup(regions)
    regions.reset_aggregated()
    assert lookup.fits(regions)
    regions.split_at(0, 50)
    assert not lookup.fits(regions)


def context(nr_regions: int, counts: bool) -> damon_ctx:
    ctx = damon_new_ctx(seed=1)
    ctx.clock = VirtualClock()
    ctx.ops = damon_operations(id=damon_ops_id.DAMON_OPS_PADDR)
    ctx.report_counts = counts
    t = damon_new_target()
    t.regions = Regions([4096 * i for i in range(nr_regions)], [4096 * (i + 1) for i in range(nr_regions)])
    damon_add_target(ctx, t)
    ctx.reports = ReportQueue(ctx.clock)
    return ctx


@pytest.mark.parametrize("counts", [False, True])
def test_large_batches_count_as_small_ones_do(counts: bool) -> None:
    """However the reports of a sampling interval are cut into batches: the same regions, the same counters."""
    n, nr_regions = 60_000, 300
    rng = np.random.default_rng(3)
    reports = report_array(
        n,
        addr=rng.integers(0, 4096 * (nr_regions + 10), n).astype(np.uint64),
        size=rng.choice([0, 1, 100, 4096], n),
        nr_accesses=rng.integers(-1, 3, n),
        pid=rng.random(n) < 0.1,
    )
    results = []
    for cuts in ([], [1, 2, 3, 50, 20_000, 20_001, 55_000], sorted(rng.integers(0, n, 400).tolist())):
        ctx = context(nr_regions, counts)
        for _ in range(2):
            for part in np.split(reports, cuts):
                if len(part):
                    ctx.reports.lane().push(0, part, len(part), DAMON_ACCESS_REPORTS_CAP)
            assert kdamond_check_reported_accesses(ctx)
            kdamond_apply_zero_access_report(ctx)
        results.append((report_counters(ctx), ctx.adaptive_targets[0].regions.nr_accesses.tolist()))
    assert results[0] == results[1] == results[2]
    counters = results[0][0]
    assert 2 * n == counters.accepted == counters.applied + counters.ineligible + counters.straddling + counters.outside
    if not counts:
        assert [2] * nr_regions == results[0][1]


def test_reports_that_are_not_side_by_side_in_memory_count_too() -> None:
    """Every third of a batch, and a batch within larger records."""
    ctx = context(10, counts=False)
    every_third = report_array(30, addr=np.arange(30) * 4096)[::3]
    larger = np.zeros(5, [("time", "<u8"), ("report", REPORT_DTYPE)])
    larger["report"] = report_array(5, addr=4096)
    for part in (every_third, larger["report"], every_third[:2]):
        ctx.reports.lane().push(0, part, len(part), DAMON_ACCESS_REPORTS_CAP)
    kdamond_check_reported_accesses(ctx)
    assert [1, 1, 0, 1, 0, 0, 1, 0, 0, 1] == ctx.adaptive_targets[0].regions.nr_accesses.tolist()


def test_a_target_keeps_its_lookup_until_its_ranges_change() -> None:
    t = damon_target(regions=Regions([0, 10], [10, 20]))
    first = lookup_of(t)
    assert first is lookup_of(t)
    t.regions.split_at(0, 5)
    second = lookup_of(t)
    assert second is not first
    assert second.fits(t.regions)
