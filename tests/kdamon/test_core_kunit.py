# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own unit tests of the core (``mm/damon/tests/core-kunit.h``), with their names and numbers.

Those about schemes are in test_damos_kunit.py, those about probes in test_probes.py. A C test that looks at list
pointers looks at rows here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
import pytest

from kdamon import core
from kdamon.core import (
    damon_add_region,
    damon_add_target,
    damon_apply_min_nr_regions,
    damon_commit_ctx,
    damon_commit_target_regions,
    damon_destroy_ctx,
    damon_destroy_target,
    damon_feed_loop_next_input,
    damon_is_registered_ops,
    damon_merge_regions_of,
    damon_new_ctx,
    damon_new_region,
    damon_new_target,
    damon_rand,
    damon_register_ops,
    damon_select_ops,
    damon_set_attrs,
    damon_set_regions,
    damon_update_monitoring_results,
    damos_walk,
    kdamond_reset_aggregated,
    kdamond_split_regions,
    validate_ctx,
)
from kdamon.damon import (
    damon_attrs,
    damon_mvsum,
    damon_nr_accesses_mvsum,
    damon_nr_regions,
    damon_nr_samples_per_aggr,
    damon_operations,
    damon_ops_id,
    damos_walk_control,
)
from kdamon.kernel import UINT_MAX, ULONG_MAX
from kdamon.region_merge import merge_similar
from kdamon.regions import Regions
from tests.support.model import Region
from tests.support.tables import addr_ranges, ctx_of, model_of, ranges_of, table_of, target_of


def table(ranges: list[tuple[int, int]]) -> Regions:
    return Regions([start for start, _ in ranges], [end for _, end in ranges])


def u32(*values: int) -> np.ndarray:
    return np.array(values, np.uint32)


@pytest.fixture
def registered_ops() -> Iterator[None]:
    """Gives back the registered operations sets as they were."""
    core.load_operations()
    before = dict(core.damon_registered_ops)
    yield
    core.damon_registered_ops.clear()
    core.damon_registered_ops.update(before)


def test_target() -> None:
    ctx = damon_new_ctx()
    assert [] == ctx.adaptive_targets
    t = damon_new_target()
    damon_add_target(ctx, t)
    assert [t] == ctx.adaptive_targets
    damon_destroy_target(t, ctx)
    assert [] == ctx.adaptive_targets
    damon_destroy_ctx(ctx)


def test_regions() -> None:
    r = damon_new_region(1, 2)
    assert (1, 2, 0) == (r.start, r.end, r.nr_accesses)
    t = damon_new_target()
    assert 0 == damon_nr_regions(t)
    damon_add_region(r, t)
    assert 1 == damon_nr_regions(t)
    t.regions.keep(np.array([False]))
    assert 0 == damon_nr_regions(t)


def test_aggregate() -> None:
    starts = ([10, 20, 30], [5, 42, 49], [13, 33, 55])
    ends = ([15, 27, 40], [31, 45, 55], [23, 44, 66])
    counts = ([42, 95, 84], [10, 20, 30], [0, 1, 2])
    ctx = ctx_of(*(Regions(*bounds) for bounds in zip(starts, ends, strict=True)))
    for t, nr_accesses in zip(ctx.adaptive_targets, counts, strict=True):
        t.regions.nr_accesses = u32(*nr_accesses)
    kdamond_reset_aggregated(ctx)
    assert [[0, 0, 0]] * 3 == [t.regions.nr_accesses.tolist() for t in ctx.adaptive_targets]
    assert list(counts) == [t.regions.last_nr_accesses.tolist() for t in ctx.adaptive_targets]
    assert list(starts) == [t.regions.start.tolist() for t in ctx.adaptive_targets]


def test_split_at() -> None:
    whole = Region(0, 100, 42, 15, age=10, probe_hits=[7, 0, 0, 0], last_probe_hits=[3, 0, 0, 0])
    regions = table_of([whole], probes=True)
    regions.split_at(0, 25)
    left, right = whole.copy(), whole.copy()
    left.end = right.start = 25
    assert [left, right] == model_of(regions)


def test_merge_two_regions() -> None:
    regions = table_of(
        [
            Region(0, 100, 10, age=9, probe_hits=[6, 0, 0, 0]),
            Region(100, 300, 20, age=21, probe_hits=[14, 0, 0, 0]),
        ],
        probes=True,
    )
    merge_similar(regions, 10, 300)
    assert [Region(0, 300, 16, age=17, probe_hits=[11, 0, 0, 0])] == model_of(regions)


def test_a_merge_keeps_the_left_last_counters() -> None:
    regions = table_of(
        [Region(0, 4, last_nr_accesses=3, last_probe_hits=[1] * 4), Region(4, 8, last_nr_accesses=9)], probes=True
    )
    merge_similar(regions, 10, 300)
    assert [Region(0, 8, last_nr_accesses=3, last_probe_hits=[1] * 4)] == model_of(regions)


def test_merge_regions_of() -> None:
    starts = [0, 100, 114, 122, 130, 156, 170, 184, 230]
    ends = [100, 112, 122, 130, 156, 170, 184, 230, 10170]
    regions = Regions(starts, ends)
    regions.nr_accesses = u32(0, 0, 10, 10, 20, 30, 1, 2, 5)
    t = target_of(regions)
    damon_merge_regions_of(t, 9, 9999, count_age=True)
    expected = [(0, 112), (114, 130), (130, 156), (156, 170), (170, 230), (230, 10170)]
    assert expected == ranges_of(t.regions)


@pytest.mark.parametrize(
    ("ranges", "nr_subs", "min_region_sz", "most"),
    [
        ([(0, 22)], 2, 1, 2),
        ([(0, 220)], 4, 1, 4),
        ([(0, 220), (300, 400), (500, 700)], 4, 5, 12),
    ],
)
def test_split_regions_of(ranges: list[tuple[int, int]], nr_subs: int, min_region_sz: int, most: int) -> None:
    for seed in range(50):
        ctx = damon_new_ctx(seed)
        regions = table(ranges)
        regions.split_random(nr_subs, min_region_sz, ctx.rnd.u32)
        assert len(ranges) < len(regions) <= most
        # The kernel's test meant to say this: every part is a multiple of the smallest region.
        assert not (regions.sizes() % np.uint64(min_region_sz)).any()
        assert sum(end - start for start, end in ranges) == regions.total()


def test_split_above_half_progresses() -> None:
    regions = table([(100 * i, 100 * i + 100) for i in range(760)])
    regions.nr_accesses = u32(*(100 if i % 2 == 0 else 0 for i in range(760)))
    regions.age = u32(*[5] * 760)
    ctx = ctx_of(regions)
    ctx.attrs = damon_attrs(min_nr_regions=10, max_nr_regions=1500)
    kdamond_split_regions(ctx)
    assert 760 < len(regions) <= 1500


def test_ops_registration(registered_ops: None) -> None:
    assert damon_is_registered_ops(damon_ops_id.DAMON_OPS_VADDR)
    ctx = damon_new_ctx()
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_VADDR)
    assert ctx.ops is not None
    with pytest.raises(OSError) as twice:
        damon_register_ops(ctx.ops)
    assert errno.EINVAL == twice.value.errno
    with pytest.raises(OSError) as unknown:
        damon_select_ops(ctx, len(damon_ops_id))  # type: ignore[arg-type]
    assert errno.EINVAL == unknown.value.errno
    with pytest.raises(OSError) as unknown_id:
        damon_register_ops(damon_operations(id=len(damon_ops_id)))  # type: ignore[arg-type]
    assert errno.EINVAL == unknown_id.value.errno

    del core.damon_registered_ops[damon_ops_id.DAMON_OPS_VADDR]
    assert not damon_is_registered_ops(damon_ops_id.DAMON_OPS_VADDR)
    with pytest.raises(OSError) as cleared:
        damon_select_ops(ctx, damon_ops_id.DAMON_OPS_VADDR)
    assert errno.EINVAL == cleared.value.errno
    damon_register_ops(ctx.ops)
    with pytest.raises(OSError) as again:
        damon_register_ops(ctx.ops)
    assert errno.EINVAL == again.value.errno


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([], [(5, 15), (15, 25)], [(5, 15), (15, 25)]),
        ([(4, 16), (24, 32)], [(18, 23)], [(18, 23)]),
        ([(4, 16), (24, 32)], [(8, 28)], [(8, 16), (16, 24), (24, 28)]),
        ([(0, 4), (4, 17)], [(0, 15), (25, 40)], [(0, 4), (4, 15), (25, 40)]),
        ([(0, 4), (42, 52)], [(0, 15), (25, 40), (44, 50)], [(0, 15), (25, 40), (44, 50)]),
    ],
)
def test_set_regions(old: list[tuple[int, int]], new: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    t = target_of(table(old))
    damon_set_regions(t, addr_ranges(new), 1)
    assert expected == ranges_of(t.regions)


@pytest.mark.parametrize(("new", "min_region_sz"), [([(42, 42)], 1), ([(42, 21)], 1), ([(10, 20), (20, 30)], 4096)])
def test_set_regions_refuses(new: list[tuple[int, int]], min_region_sz: int) -> None:
    t = damon_new_target()
    with pytest.raises(OSError) as error:
        damon_set_regions(t, addr_ranges(new), min_region_sz)
    assert errno.EINVAL == error.value.errno
    assert [] == ranges_of(t.regions)


def test_set_regions_keeps_what_is_known_and_aligns_outwards() -> None:
    """Kept regions keep their counters, filled holes and new ranges know nothing, edges go outwards."""
    t = target_of(table_of([Region(0, 16, 3, 4, 5), Region(32, 48, 6, 7, 8), Region(96, 112, 9)]))
    damon_set_regions(t, addr_ranges([(5, 35), (60, 70)]), 4)
    assert [Region(4, 16, 3, 4, 5), Region(16, 32), Region(32, 36, 6, 7, 8), Region(60, 72)] == model_of(t.regions)


@pytest.mark.parametrize(
    ("sample", "aggr", "expected"), [(0, 5000, 5000), (0, 0, 1), (1, UINT_MAX + 1, UINT_MAX), (5000, 4999, 1)]
)
def test_nr_samples_per_aggr(sample: int, aggr: int, expected: int) -> None:
    assert expected == damon_nr_samples_per_aggr(damon_attrs(sample_interval=sample, aggr_interval=aggr))


def test_update_monitoring_result() -> None:
    """One region, converted three times, each time from the same old attributes."""
    ctx = ctx_of(table_of([Region(3, 7, 15, age=20)]))
    ctx.attrs = damon_attrs(sample_interval=10, aggr_interval=1000)
    regions = ctx.adaptive_targets[0].regions
    for sample, aggr, nr_accesses, age in ((100, 10000, 15, 2), (1, 1000, 150, 2), (1, 100, 150, 20)):
        damon_update_monitoring_results(ctx, damon_attrs(sample_interval=sample, aggr_interval=aggr), False)
        assert [Region(3, 7, nr_accesses, age=age)] == model_of(regions)


def test_set_attrs() -> None:
    ctx = damon_new_ctx()
    valid = {"min_nr_regions": 10, "max_nr_regions": 1000, "sample_interval": 5000, "aggr_interval": 100_000}
    damon_set_attrs(ctx, damon_attrs(**valid))
    for change in ({"min_nr_regions": 1}, {"max_nr_regions": 9}, {"aggr_interval": 4999}):
        with pytest.raises(OSError) as error:
            damon_set_attrs(ctx, damon_attrs(**(valid | change)))
        assert errno.EINVAL == error.value.errno


@pytest.mark.parametrize(
    ("current", "last", "left_bp", "expected"),
    [(0, 49, 10000, 49), (3, 10, 7000, 10), (3, 10, 5000, 8), (32, 100, 1000, 42), (42, 49, 0, 42)],
)
def test_mvsum(current: int, last: int, left_bp: int, expected: int) -> None:
    assert [expected] == damon_mvsum(u32(current), u32(last), left_bp).tolist()


@pytest.mark.parametrize(
    ("passed", "next_sis", "nr_accesses", "last", "expected"),
    [(0, 10, 5, 3, 3), (0, 10, 0, 7, 7), (5, 10, 3, 10, 8), (8, 10, 3, 10, 5), (10, 10, 42, 49, 42)],
)
def test_nr_accesses_mvsum(passed: int, next_sis: int, nr_accesses: int, last: int, expected: int) -> None:
    ctx = ctx_of(table_of([Region(0, 100, nr_accesses, last)]))
    ctx.attrs = damon_attrs(sample_interval=1, aggr_interval=10)
    ctx.passed_sample_intervals, ctx.next_aggregation_sis = passed, next_sis
    assert [expected] == damon_nr_accesses_mvsum(ctx.adaptive_targets[0].regions, ctx).tolist()


def test_commit_target_regions() -> None:
    dst = target_of(table([(3, 8), (8, 10)]))
    damon_commit_target_regions(dst, target_of(table([(4, 6)])), 1)
    assert [(4, 6)] == ranges_of(dst.regions)
    dst = target_of(table([(3, 8), (8, 10)]))
    damon_commit_target_regions(dst, target_of(table([])), 1)
    assert [(3, 8), (8, 10)] == ranges_of(dst.regions)


def test_commit_ctx() -> None:
    src, dst = damon_new_ctx(), damon_new_ctx()
    src.min_region_sz = 4096
    damon_commit_ctx(dst, src)
    src.min_region_sz = 4095
    with pytest.raises(OSError) as error:
        damon_commit_ctx(dst, src)
    assert errno.EINVAL == error.value.errno
    assert (4096, False) == (dst.min_region_sz, dst.pause)
    src.min_region_sz = 4096
    src.pause = True
    damon_commit_ctx(dst, src)
    assert dst.pause


def test_feed_loop_next_input() -> None:
    last = 900_000
    assert damon_feed_loop_next_input(last, 200) > last
    assert damon_feed_loop_next_input(last, 250_000_000) < last
    assert damon_feed_loop_next_input(last, 200) > damon_feed_loop_next_input(last, 2000)


@pytest.mark.parametrize(
    ("last", "score", "expected"),
    [
        (900_000, 200, 1_782_000),
        (900_000, 2000, 1_620_000),
        (900_000, 250_000_000, 10_000),
        (10_000, 0, 20_000),
        (10_000, 15_000, 10_000),
        (100_000_000, 0, 200_000_000),
        (100_000_000, 5000, 150_000_000),
        (100_000_000, 10_000, 100_000_000),
        (100_000_000, 15_000, 50_000_000),
        (100_000_000, 20_000, 10_000),
        (ULONG_MAX, 0, ULONG_MAX),
        (123_456_789, 9999, 123_469_134),
    ],
)
def test_feed_loop_next_input_is_exact(last: int, score: int, expected: int) -> None:
    assert expected == damon_feed_loop_next_input(last, score)


@pytest.mark.parametrize(
    ("size", "min_region_sz", "min_nr_regions", "largest", "regions"),
    [(10, 1, 10, 1, 10), (10, 1, 15, 1, 10), (10, 2, 2, 6, 2), (10, 2, 10, 2, 5)],
)
def test_apply_min_nr_regions(size: int, min_region_sz: int, min_nr_regions: int, largest: int, regions: int) -> None:
    ctx = ctx_of(table([(0, size)]), min_region_sz=min_region_sz)
    ctx.attrs = damon_attrs(min_nr_regions=min_nr_regions)
    assert largest == damon_apply_min_nr_regions(ctx)
    assert regions == damon_nr_regions(ctx.adaptive_targets[0])
    assert largest == int(ctx.adaptive_targets[0].regions.sizes().max())
    validate_ctx(ctx)


def test_add_region_keeps_the_others() -> None:
    """A region goes in with all it holds, and no other row changes, wherever it is inserted."""
    for probes in (False, True):
        hits = [1, 2, 3, 4] if probes else [0] * 4
        regions = table_of([Region(10, 20, 1, 2, 3, 4, hits, hits), Region(30, 40, 5, 6, 7, 8)], probes)
        others = model_of(regions)
        for row, (start, end) in enumerate([(0, 5), (22, 25), (50, 60)]):
            new = damon_new_region(start, end)
            new.nr_accesses, new.last_nr_accesses, new.age, new.nr_unknown, new.sampling_addr = 9, 8, 7, 6, start + 1
            new.probe_hits = new.last_probe_hits = tuple(hits)
            regions.insert(2 * row, new)
            others.insert(2 * row, Region(start, end, 9, 8, 7, 6, hits, hits))
            assert others == model_of(regions)
            assert start + 1 == regions.region(2 * row).sampling_addr


def test_is_last_region() -> None:
    t = damon_new_target()
    for start in range(0, 8, 2):
        damon_add_region(damon_new_region(start, start + 2), t)
        assert (start, start + 2) == ranges_of(t.regions)[-1]


def test_walk_control_obsolete() -> None:
    ctx = damon_new_ctx()
    assert ctx.walk_control_obsolete
    with pytest.raises(OSError) as error:
        damos_walk(ctx, damos_walk_control(lambda *_: None))
    assert errno.ECANCELED == error.value.errno


def test_rand() -> None:
    ctx = damon_new_ctx()
    values = damon_rand(ctx, np.zeros(10_000, np.uint64), np.full(10_000, 10, np.uint64), False)
    assert set(range(10)) == set(values.tolist())


@pytest.mark.parametrize("span", [1, 2, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 12345, 2**63, 2**64 - 1])
def test_rand_stays_within_and_reaches_everywhere(span: int) -> None:
    """Also in spans wider than 32 bits, which old kernels sampled only the beginning of."""
    ctx = damon_new_ctx(seed=5)
    left = min(1 << 20, 2**64 - 1 - span)
    n = 20_000
    spans = np.full(n, span, np.uint64)
    values = [v - left for v in damon_rand(ctx, np.full(n, left, np.uint64), spans, span >= 2**32).tolist()]
    assert 0 <= min(values) and max(values) < span
    eighths = {value * 8 // span for value in values}
    assert set(range(8)) == eighths or span < 8


def test_rand_is_the_upper_half_of_the_product() -> None:
    """Spans wider than 32 bits: exactly the upper 64 bits of the 128-bit product."""
    spans = [2**64 - 1, 2**32, 2**33 + 7, 3 << 61, 1]
    raw = damon_new_ctx(seed=9).rnd.u64(len(spans)).tolist()
    values = damon_rand(damon_new_ctx(seed=9), np.zeros(5, np.uint64), np.array(spans, np.uint64), True)
    assert [r * s >> 64 for r, s in zip(raw, spans, strict=True)] == values.tolist()


def test_nr_accesses_to_accesses_bp() -> None:
    """A case of older kernels: a count out of UINT_MAX samples is nothing in 1/10000, and nothing overflows."""
    ctx = ctx_of(table_of([Region(0, 10, 123, 123)]))
    ctx.attrs = damon_attrs(sample_interval=10, aggr_interval=UINT_MAX * 10)
    damon_update_monitoring_results(ctx, damon_attrs(sample_interval=1, aggr_interval=10_000), False)
    assert [Region(0, 10)] == model_of(ctx.adaptive_targets[0].regions)
