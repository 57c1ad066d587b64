# SPDX-License-Identifier: GPL-2.0-only
"""Probes on simulated memory: what is a hit, what weights do, commits; the kernel's unit tests with their numbers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon import trace
from kdamon.core import (
    damon_add_target,
    damon_commit_ctx,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    run_ctx,
    validate_ctx,
)
from kdamon.damon import (
    damon_access_report,
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_filter,
    damon_filter_type,
    damon_operations,
    damon_ops_id,
    damon_prep,
    damon_probe,
    damon_size_range,
    damos,
    damos_filter,
    damos_filter_type,
)
from kdamon.damos_filters import (
    core_filter_candidates,
    damos_add_filter,
    damos_commit_filter,
    damos_filter_for_ops,
    damos_filter_match,
)
from kdamon.kernel import UINT_MAX, ULONG_MAX
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.probes import (
    count_probe_hits,
    damon_add_filter,
    damon_add_probe,
    damon_commit_filter,
    damon_commit_probes,
    damon_new_filter,
    damon_new_probe,
    damon_probe_hits_mvsum,
    damon_probe_hits_wsum,
    damon_valid_probe_params,
)
from kdamon.region_merge import merge_runs, merge_similar
from kdamon.regions import Regions
from kdamon.reports.deliver import damon_report_access
from tests.support import model
from tests.support.contexts import first, plain_ctx, recorded, report_ops, sim_ctx
from tests.support.model import Region
from tests.support.tables import ctx_of, effort, model_of, region_lists, table_of, well_formed

MIB = 1 << 20
TYPE = damon_filter_type
ANON = TYPE.DAMON_FILTER_TYPE_ANON


def probe(*filters: tuple[bool, bool], kind: damon_filter_type = ANON, weight: int = 0) -> damon_probe:
    """A probe with filters of one type, given by what they match and allow."""
    return damon_probe(weight, filters=[damon_filter(kind, matching, allow) for matching, allow in filters])


def halves(weight: int = 0, **attrs: Any) -> tuple[SimMachine, SimProcess, damon_ctx]:
    """A process of twice 32 MiB: the first half is of memory cgroup 7, the second one, with a gap before, a file's."""
    machine = SimMachine(seed=1)
    process = machine.spawn([(MIB, 33 * MIB), (34 * MIB, 66 * MIB)])
    process.mark("anon", [(MIB, 33 * MIB)])
    process.mark("memcg", [(MIB, 33 * MIB)], memcg_id=7)
    attrs = {"sample_interval": 5000, "aggr_interval": 100_000, "min_nr_regions": 3, "max_nr_regions": 100} | attrs
    ctx = sim_ctx(process, machine, ops=damon_ops_id.DAMON_OPS_FVADDR, **attrs)
    first(ctx).regions = Regions([MIB, 34 * MIB], [33 * MIB, 66 * MIB])
    ctx.probes = [probe((True, True), weight=weight)]
    return machine, process, ctx


def shares(regions: Regions, i: int = 0) -> list[tuple[int, int]]:
    """The hits of a probe in the first and the second half: their smallest and largest number in each."""
    assert regions.probe_hits is not None
    left = regions.end <= np.uint64(33 * MIB)
    right = regions.start >= np.uint64(34 * MIB)
    assert (left | right).all()
    return [(int(hits.min()), int(hits.max())) for hits in (regions.probe_hits[half, i] for half in (left, right))]


# The kernel's unit tests.


def weighted(*weights: int) -> list[damon_probe]:
    return [damon_probe(weight) for weight in weights]


@pytest.mark.parametrize(
    ("before", "after"),
    [((), ()), ((), (1,)), ((), (1, 2)), ((1,), (2,)), ((1,), (2, 3)), ((2, 3), (1,)), ((2, 3), ()), ((2,), ())],
)
def test_commit_probes(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """damon_test_commit_probes: as many as in the source, with its weights."""
    dst, src = damon_new_ctx(), damon_new_ctx()
    dst.probes, src.probes = weighted(*before), weighted(*after)
    damon_commit_probes(dst, src)
    assert [one.weight for one in dst.probes] == list(after)
    assert not {id(one) for one in dst.probes} & {id(one) for one in src.probes}


@pytest.mark.parametrize(
    "src", [damon_filter(ANON, True, True), damon_filter(TYPE.DAMON_FILTER_TYPE_MEMCG, memcg_id=123)]
)
def test_commit_filter(src: damon_filter) -> None:
    """damon_test_commit_filter."""
    dst = damon_filter(ANON)
    damon_commit_filter(dst, src)
    assert dst == src


@pytest.mark.parametrize(
    ("aggr", "weights", "valid"),
    [
        (1_000_000, (0,), True),
        (255, (100,), True),
        (256, (100,), False),
        (255, (UINT_MAX // 255,), True),
        (255, (UINT_MAX // 255 + 1,), False),
        (1, (UINT_MAX,), True),
        (1, (UINT_MAX, 1), False),
        (1, (0, 0, 0, 0), True),
        (1, (0, 0, 0, 0, 0), False),
    ],
)
def test_valid_probe_params(aggr: int, weights: tuple[int, ...], valid: bool) -> None:
    """damon_test_valid_probe_params, and the number of probes; start and commit ask it."""
    ctx = damon_new_ctx()
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_VADDR)
    damon_set_attrs(ctx, damon_attrs(sample_interval=1, aggr_interval=aggr))
    ctx.probes = weighted(*weights)
    for check in (damon_valid_probe_params, lambda src: damon_commit_ctx(damon_new_ctx(), src)):
        if valid:
            check(ctx)
        else:
            with pytest.raises(OSError, match=r"probe|weight") as error:
                check(ctx)
            assert errno.EINVAL == error.value.errno


def test_commit_damos_filter() -> None:
    """damos_test_commit_filter: a range that ends before it starts is refused."""
    dst = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON)
    src = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM, False, True, range_min=12, range_max=34)
    damos_commit_filter(dst, src)
    assert dst == src
    src.range_min, src.range_max = 34, 12
    with pytest.raises(OSError, match="exceeds its largest"):
        damos_commit_filter(dst, src)
    assert not damos_filter_for_ops(src.type)


# Further rules about parameters.


def test_sizes_that_end_before_they_start_are_refused() -> None:
    src = damon_filter(TYPE.DAMON_FILTER_TYPE_HUGEPAGE_SIZE, sz_range=damon_size_range(2, 1))
    with pytest.raises(OSError, match="exceeds its maximum"):
        damon_commit_filter(damon_filter(ANON), src)


def test_weights_and_density_exclude_each_other() -> None:
    """Both decide about regions."""
    ctx = damon_new_ctx()
    ctx.density, ctx.probes = True, weighted(0)
    damon_valid_probe_params(ctx)
    ctx.probes = weighted(1)
    with pytest.raises(OSError, match="density"):
        damon_valid_probe_params(ctx)


@pytest.mark.parametrize(
    "one",
    [
        damon_probe(preps=[damon_prep()]),
        probe((True, True), kind=TYPE.DAMON_FILTER_TYPE_PGIDLE_UNSET),
        probe((True, True), kind=TYPE.DAMON_FILTER_TYPE_PGIDLE_SET),
    ],
)
def test_probes_of_accesses_need_accessed_bits(one: damon_probe) -> None:
    """Pages that fault are prepared otherwise."""
    ctx = damon_new_ctx()
    ctx.probes = [one]
    damon_valid_probe_params(ctx)
    ctx.sample_control.primitives_enabled.page_fault = True
    with pytest.raises(OSError, match="turn page_fault off") as error:
        damon_valid_probe_params(ctx)
    assert errno.EOPNOTSUPP == error.value.errno


# What is a hit.


def passes(filters: list[damon_filter], matches: list[bool]) -> bool:
    """The kernel's loop for one page."""
    passed = True
    for f, of_type in zip(filters, matches, strict=True):
        if of_type == f.matching:
            return f.allow
        passed = not f.allow
    return passed


@effort(100)
@given(
    filters=st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=4), max_size=4),
    n=st.integers(0, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_first_filter_that_matches_decides(filters: list[list[tuple[bool, bool]]], n: int, seed: int) -> None:
    """Else the opposite of the last one; without any every sample is a hit. As the kernel's loop, page by page."""
    ctx = plain_ctx(*((10 * i, 10 * i + 10) for i in range(n)))
    ctx.probes = [probe(*some) for some in filters]
    every = [f for one in ctx.probes for f in one.filters]
    matches = np.random.default_rng(seed).random((len(every), n)) < 0.5
    count_probe_hits(ctx, first(ctx), matches)
    hits = first(ctx).regions.probe_hits
    assert hits is not None
    for row in range(n):
        at = 0
        for i, one in enumerate(ctx.probes):
            stop = at + len(one.filters)
            assert int(hits[row, i]) == passes(one.filters, matches[at:stop, row].tolist())
            at = stop
        assert not hits[row, len(ctx.probes) :].any()


def test_probes_tell_what_memory_is_of() -> None:
    """The measured cases: allow and reject give complements, no filter hits always, memcg is that of its number."""
    _, _, ctx = halves()
    ctx.probes = [
        probe((True, True)),
        probe((True, False)),
        damon_probe(),
        damon_probe(filters=[damon_filter(TYPE.DAMON_FILTER_TYPE_MEMCG, True, True, memcg_id=7)]),
    ]
    with recorded(ctx) as recorder:
        run_ctx(ctx, 1.02)
    assert 10 == len(recorder.snapshots)
    for snapshot in recorder.snapshots:
        expected = [[(20, 20), (0, 0)], [(0, 0), (20, 20)], [(20, 20), (20, 20)], [(20, 20), (0, 0)]]
        assert expected == [shares(snapshot.regions, i) for i in range(4)]


def test_other_memory_another_group_and_sizes() -> None:
    """Everything here is of single pages but for what was collapsed."""
    _, process, ctx = halves()
    process.mark("memcg", [], memcg_id=8)
    process.advise("collapse", np.array([[34 * MIB, 66 * MIB]], np.uint64))
    ctx.probes = [
        probe((False, True)),
        damon_probe(filters=[damon_filter(TYPE.DAMON_FILTER_TYPE_MEMCG, True, True, memcg_id=8)]),
        *(
            damon_probe(filters=[damon_filter(TYPE.DAMON_FILTER_TYPE_HUGEPAGE_SIZE, True, True, sz_range=sizes)])
            for sizes in (damon_size_range(1, 4096), damon_size_range(2 * MIB, 2 * MIB))
        ),
    ]
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.52)
    last = recorder.snapshots[-1].regions
    expected = [[(0, 0), (20, 20)], [(0, 0), (0, 0)], [(20, 20), (0, 0)], [(0, 0), (20, 20)]]
    assert expected == [shares(last, i) for i in range(4)]


def test_where_no_page_is_no_type_matches() -> None:
    """As where the kernel finds no folio: only what asks for pages of another type hits."""
    _, process, ctx = halves()
    process.advise("pageout", np.array([[MIB, 66 * MIB]], np.uint64))
    ctx.probes = [probe((True, True)), probe((False, True)), damon_probe()]
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.12)
    (snapshot,) = recorder.snapshots
    assert [[(0, 0)] * 2, [(20, 20)] * 2, [(20, 20)] * 2] == [shares(snapshot.regions, i) for i in range(3)]


def test_a_counter_has_eight_bits() -> None:
    """Measured: of 500 samples 244 remain."""
    _, _, ctx = halves(sample_interval=1000, aggr_interval=500_000)
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.51)
    (snapshot,) = recorder.snapshots
    assert [(244, 244), (0, 0)] == shares(snapshot.regions)


def test_what_cannot_be_told_is_no_hit(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once; with weights the samples count as unknown, because nothing else was sampled."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "page flags are for root alone")

    monkeypatch.setattr(SimProcess, "page_match", refuse)
    for weight in (0, 1):
        _, _, ctx = halves(weight)
        run_ctx(ctx, 0.101)
        assert ctx.nr_samples > 0
        assert ctx.nr_unknown == (ctx.nr_samples if weight else 0)
    assert sum("page flags are for root alone" in record.message for record in caplog.records) <= 1


@pytest.mark.parametrize("weight", [0, 1])
def test_accesses_as_a_property(weight: int) -> None:
    """Prepared pages are idle until they are accessed: with or without the check of accesses it is the same."""
    _, process, ctx = halves()
    process.access(MIB, 33 * MIB)
    ctx.probes = [
        damon_probe(weight, [damon_prep()], [damon_filter(TYPE.DAMON_FILTER_TYPE_PGIDLE_UNSET, True, True)]),
        damon_probe(0, [], [damon_filter(TYPE.DAMON_FILTER_TYPE_PGIDLE_SET, True, True)]),
    ]
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.52)
    last = recorder.snapshots[-1].regions
    assert [(20, 20), (0, 0)] == shares(last, 0)
    assert [(0, 0), (20, 20)] == shares(last, 1)
    accesses = last.nr_accesses[last.end <= np.uint64(33 * MIB)]
    assert set(accesses.tolist()) == {0 if weight else 20}


def test_unprepared_pages_are_neither_idle_nor_accessed() -> None:
    """Without a prep, and without the check of accesses, nothing is known."""
    _, process, ctx = halves()
    process.access(MIB, 33 * MIB)
    kinds = (TYPE.DAMON_FILTER_TYPE_PGIDLE_UNSET, TYPE.DAMON_FILTER_TYPE_PGIDLE_SET)
    ctx.probes = [probe((True, True), kind=kind, weight=1) for kind in kinds]
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.12)
    hits = recorder.snapshots[-1].regions.probe_hits
    assert hits is not None
    assert not hits.any()


@pytest.mark.parametrize("weight", [0, 1])
def test_physical_memory(weight: int) -> None:
    """Page frames are of the type that the pages in them are of; unused ones are of none."""
    machine = SimMachine(seed=1)
    process = machine.spawn([(MIB, 3 * MIB)])
    process.mark("anon", [(MIB, 2 * MIB)])
    process.access(2 * MIB, 3 * MIB)
    machine.place(process, MIB, 3 * MIB, 16 * MIB)
    ctx = sim_ctx(process, machine, ops=damon_ops_id.DAMON_OPS_PADDR, min_nr_regions=3, max_nr_regions=6)
    first(ctx).regions = Regions([16 * MIB, 17 * MIB, 18 * MIB], [17 * MIB, 18 * MIB, 19 * MIB])
    of_accesses = [damon_filter(TYPE.DAMON_FILTER_TYPE_PGIDLE_UNSET, True, True)]
    ctx.probes = [probe((True, True), weight=weight), damon_probe(0, [damon_prep()], of_accesses), probe((False, True))]
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.12)
    hits = recorder.snapshots[-1].regions.probe_hits
    assert hits is not None
    assert [[20, 0, 0], [0, 20, 20], [0, 0, 20]] == hits[:, :3].tolist()


# What weights do.


def test_with_weights_accesses_are_not_checked() -> None:
    """All is accessed, nothing is counted; regions end where the property changes and grow old."""
    _, process, ctx = halves(weight=100)
    process.mmap([(MIB, 65 * MIB)])
    process.access(MIB, 65 * MIB)
    first(ctx).regions = Regions([MIB], [65 * MIB])
    with recorded(ctx) as recorder:
        run_ctx(ctx, 20.02)
    last = recorder.snapshots[-1].regions
    assert not last.nr_accesses.any()
    assert not last.last_nr_accesses.any()
    assert last.probe_hits is not None
    # Only what reaches over the edge is hit now and then.
    sure = (last.probe_hits[:, 0] == 20) | (last.probe_hits[:, 0] == 0)
    assert int(last.sizes()[~sure].sum()) <= MIB
    assert int(last.age.max()) > 50
    assert ctx.nr_samples > 0
    assert 0 == ctx.nr_unknown


def test_weights_are_what_regions_are_compared_by() -> None:
    """Without weights the halves look alike, as nothing is accessed: there is no more than has to be."""
    numbers = []
    for weight in (0, 100):
        _, process, ctx = halves(weight)
        process.mmap([(MIB, 65 * MIB)])
        process.mark("anon", [(start * MIB, (start + 4) * MIB) for start in range(1, 65, 8)])
        first(ctx).regions = Regions([MIB], [65 * MIB])
        with recorded(ctx) as recorder:
            run_ctx(ctx, 5.02)
        numbers.append(float(np.mean([len(snapshot.regions) for snapshot in recorder.snapshots[30:]])))
    assert numbers[0] < 10
    assert numbers[1] > 16


@effort(150)
@given(
    region_lists(max_regions=100),
    st.lists(st.sampled_from([0, 1, 2, 100]), min_size=4, max_size=4).filter(any),
    st.sampled_from([0, 1, 30, 500, 100_000]),
    st.sampled_from([1, 1000, 1 << 40, ULONG_MAX]),
    st.booleans(),
)
def test_merging_by_hits_equals_the_kernels_loop(
    regions: list[Region], weights: list[int], threshold: int, sz_limit: int, count_age: bool
) -> None:
    """Scores of merged regions come from their merged hits."""
    table = table_of(regions, probes=True)
    expected = by_hits([r.copy() for r in regions], weights, threshold, sz_limit, count_age)
    column = np.array(weights, np.uint32)
    if count_age:
        table.count_age(threshold, column)
    merge_similar(table, threshold, sz_limit, column)
    got = model_of(table)
    if not any(r.nr_unknown for r in regions):
        assert expected == got
    assert [(r.start, r.end, r.nr_accesses, r.age, r.probe_hits, r.last_probe_hits) for r in expected] == [
        (r.start, r.end, r.nr_accesses, r.age, r.probe_hits, r.last_probe_hits) for r in got
    ]
    assert well_formed(table)


def by_hits(regions: list[Region], weights: list[int], threshold: int, sz_limit: int, count_age: bool) -> list[Region]:
    """``damon_merge_regions_of()`` with weights."""

    def score(hits: list[int]) -> int:
        return sum(h * w for h, w in zip(hits, weights, strict=True))

    merged: list[Region] = []
    for r in regions:
        now, last = score(r.probe_hits), score(r.last_probe_hits)
        if count_age:
            stable = abs(now - last) <= threshold and (now == 0) == (last == 0)
            r.age, r.unknown_age = ((r.age + 1) % model.U32, r.unknown_age) if stable else (0, 0)
        left = merged[-1] if merged else None
        if (
            left is not None
            and left.end == r.start
            and abs(now - score(left.probe_hits)) <= threshold
            and left.size + r.size <= sz_limit
        ):
            model.merge_two(left, r)
        else:
            merged.append(r)
    return merged


def test_too_many_regions_are_merged_whatever_the_weights() -> None:
    """Kernel: the threshold does not grow beyond the number of samples, which large weights exceed."""
    _, process, ctx = halves(weight=1000)
    process.mmap([(MIB, 65 * MIB)])
    process.mark("anon", [(start * MIB, (start + 1) * MIB) for start in range(1, 65, 2)])
    damon_set_attrs(ctx, damon_attrs(sample_interval=5000, aggr_interval=100_000, min_nr_regions=3, max_nr_regions=8))
    starts = np.arange(1, 65, dtype=np.uint64) * np.uint64(MIB)
    first(ctx).regions = Regions(starts, starts + np.uint64(MIB))
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.52)
    assert all(len(snapshot.regions) <= 8 for snapshot in recorder.snapshots)


# Hits of the last aggregation interval's time.


@pytest.mark.parametrize(
    ("passed", "nr", "last", "expected"), [(0, 5, 3, 3), (0, 0, 7, 7), (5, 3, 10, 8), (8, 3, 10, 5), (10, 42, 49, 42)]
)
def test_moving_sums(passed: int, nr: int, last: int, expected: int) -> None:
    """The numbers of damon_test_nr_accesses_mvsum; weighted sums are of the same."""
    ctx = plain_ctx((0, 10), (10, 20), sample_interval=1, aggr_interval=10)
    ctx.passed_sample_intervals, ctx.next_aggregation_sis = passed, 10
    ctx.probes = weighted(0, 100)
    regions = first(ctx).regions
    regions.use_probes()
    assert regions.probe_hits is not None
    assert regions.last_probe_hits is not None
    regions.probe_hits[1, 1], regions.last_probe_hits[1, 1] = nr, last
    assert expected == damon_probe_hits_mvsum(1, regions.region(1), ctx)
    assert [0, 100 * expected] == damon_probe_hits_wsum(regions, ctx).tolist()
    assert [100 * expected] == damon_probe_hits_wsum(regions, ctx, slice(1, 2)).tolist()


def test_a_moving_sum_has_eight_bits() -> None:
    ctx = plain_ctx((0, 10), sample_interval=1, aggr_interval=10)
    ctx.passed_sample_intervals, ctx.next_aggregation_sis = 5, 10
    ctx.probes = weighted(1)
    regions = first(ctx).regions
    regions.use_probes()
    assert regions.probe_hits is not None
    assert regions.last_probe_hits is not None
    regions.probe_hits[0, 0] = regions.last_probe_hits[0, 0] = 200
    assert 300 - 256 == damon_probe_hits_mvsum(0, regions.region(0), ctx)
    assert [44] == damon_probe_hits_wsum(regions, ctx).tolist()


# The filter of schemes.


@pytest.mark.parametrize(("matching", "allow"), list(product((False, True), repeat=2)))
def test_schemes_can_go_by_weighted_sums(matching: bool, allow: bool) -> None:
    """From range_min to range_max, both included; each region by itself and all at once give the same."""
    ctx = plain_ctx(*((10 * i, 10 * i + 10) for i in range(5)), sample_interval=1, aggr_interval=10)
    ctx.passed_sample_intervals = ctx.next_aggregation_sis = 10
    ctx.probes = weighted(3)
    regions = first(ctx).regions
    regions.use_probes()
    assert regions.probe_hits is not None
    regions.probe_hits[:, 0] = [0, 3, 4, 7, 8]
    s = damos()
    f = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM, matching, allow, range_min=9, range_max=21)
    damos_add_filter(s, f)
    assert s.core_filters == [f]
    s.core_filters_default_reject = allow
    inside = [False, True, True, True, False]
    matched = [damos_filter_match(ctx, first(ctx), row, f) for row in range(5)]
    assert matched == [one == matching for one in inside]
    candidates = core_filter_candidates(ctx, first(ctx), s)
    assert candidates.tolist() == [allow if one else not allow for one in matched]


def test_a_scheme_for_anonymous_memory() -> None:
    """Regions are chosen by what they are, not by their accesses."""
    _, _, ctx = halves(weight=1)
    s = damos()
    whole = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM, True, True, range_min=20, range_max=20)
    damos_add_filter(s, whole)
    ctx.schemes = [s]
    run_ctx(ctx, 1.02)
    assert 10 == s.stat.nr_snapshots
    assert 10 * 32 * MIB == s.stat.sz_tried


def test_each_target_is_probed_by_itself() -> None:
    """And schemes select by target and sum together; a target that ended counts nothing."""
    machine, _, ctx = halves(weight=1)
    other = machine.spawn([(MIB, 9 * MIB)])
    other.mark("anon", [(MIB, 9 * MIB)])
    t = damon_new_target()
    t.pid, t.regions = other.pid, Regions([MIB], [9 * MIB])
    damon_add_target(ctx, t)
    s = damos()
    kind = damos_filter_type
    damos_add_filter(s, damos_filter(kind.DAMOS_FILTER_TYPE_TARGET, True, False, target_idx=0))
    damos_add_filter(s, damos_filter(kind.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM, True, True, range_min=20, range_max=20))
    ctx.schemes = [s]

    def end(_: object) -> None:
        if ctx.passed_sample_intervals == 61:
            other.exit()

    ctx.call_controls = [damon_call_control(end, repeat=True)]
    run_ctx(ctx, 1.02)
    assert 3 * 8 * MIB == s.stat.sz_tried
    assert t.regions.last_probe_hits is not None
    assert not t.regions.last_probe_hits.any()


# Commits and changes of attributes.


def test_changed_intervals_convert_hits() -> None:
    """As nr_accesses: by share of the samples; those of an interval under way are dropped."""
    ctx = plain_ctx((0, 10), sample_interval=100, aggr_interval=2000)
    regions = first(ctx).regions
    regions.use_probes()
    for aggregating, now in ((False, 5), (True, 0)):
        regions.probe_hits, regions.last_probe_hits = np.full((1, 4), 10, np.uint8), np.full((1, 4), 15, np.uint8)
        damon_set_attrs(ctx, damon_attrs(100, 2000))
        regions.probe_hits, regions.last_probe_hits = np.full((1, 4), 10, np.uint8), np.full((1, 4), 15, np.uint8)
        ctx.passed_sample_intervals = ctx.next_aggregation_sis - aggregating
        damon_set_attrs(ctx, damon_attrs(100, 1000))
        assert regions.probe_hits.tolist() == [[now] * 4]
        assert [[7] * 4] == regions.last_probe_hits.tolist()
        assert well_formed(regions)
        damon_set_attrs(ctx, damon_attrs(100, 2000))


def at_sis(ctx: damon_ctx, at: int, fn: Callable[[], None]) -> None:
    """Let ``fn`` be called in the kdamond in the sampling interval ``at``."""
    check = ctx.ops
    assert check is not None
    original = check.check_accesses

    def hook(c: damon_ctx) -> None:
        original(c)
        if c.passed_sample_intervals == at:
            fn()

    ctx.ops = damon_operations(
        id=check.id, init=check.init, prepare_access_checks=check.prepare_access_checks, check_accesses=hook,
        apply_probes=check.apply_probes, prep_probes=check.prep_probes, target_valid=check.target_valid,
        target_has_pid=True, needs_task=True,
    )  # fmt: skip


def source_of(ctx: damon_ctx, *probes: damon_probe) -> damon_ctx:
    """A commit's source with the attributes of ``ctx`` and other probes."""
    src = damon_new_ctx()
    src.ops, src.probes = ctx.ops, list(probes)
    damon_set_attrs(src, damon_attrs(**{name: getattr(ctx.attrs, name) for name in (
        "sample_interval", "aggr_interval", "ops_update_interval", "min_nr_regions", "max_nr_regions"
    )}))  # fmt: skip
    for t in ctx.adaptive_targets:
        mine = type(t)()
        mine.pid = t.pid
        src.adaptive_targets.append(mine)
    return src


def test_a_probe_that_is_added_counts_from_then_on() -> None:
    """The aggregation interval under way goes on, and so do the hits of the probe that stays."""
    _, _, ctx = halves()
    at_sis(ctx, 31, lambda: damon_commit_ctx(ctx, source_of(ctx, probe((True, True)), probe((False, True)))))
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.32)
    assert [20, 40, 60] == [snapshot.sis for snapshot in recorder.snapshots]
    found = [[shares(snapshot.regions, i) for i in (0, 1)] for snapshot in recorder.snapshots]
    assert [[(20, 20), (0, 0)]] * 3 == [one[0] for one in found]
    assert [[(0, 0), (0, 0)], [(0, 0), (10, 10)], [(0, 0), (20, 20)]] == [one[1] for one in found]


def test_probes_that_are_gone_cost_nothing() -> None:
    """Neither columns nor a call."""
    _, _, ctx = halves()
    at_sis(ctx, 21, lambda: damon_commit_ctx(ctx, source_of(ctx)))
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.32)
    assert [False, True, True] == [snapshot.regions.probe_hits is None for snapshot in recorder.snapshots]

    ctx = plain_ctx((0, 100), ops=report_ops(apply_probes=lambda *_: pytest.fail("there is no probe")))
    clocked = SimMachine()
    ctx.clock = clocked.clock
    run_ctx(ctx, 0.05)


def test_a_commit_that_fails_changes_nothing() -> None:
    """Everything is tried on a copy first."""
    _, _, ctx = halves(weight=1)
    bad = damon_filter(TYPE.DAMON_FILTER_TYPE_HUGEPAGE_SIZE, sz_range=damon_size_range(2, 1))
    for probes in ((damon_probe(UINT_MAX),), (damon_probe(1, filters=[bad]),)):
        before = list(ctx.probes)
        with pytest.raises(OSError, match=r"probe|minimum"):
            damon_commit_ctx(ctx, source_of(ctx, *probes))
        assert ctx.probes == before
        assert not ctx.maybe_corrupted


def test_makers_add_behind_the_last() -> None:
    ctx = damon_new_ctx()
    one, other = damon_new_probe(), damon_new_probe()
    damon_add_probe(ctx, one)
    damon_add_probe(ctx, other)
    damon_add_filter(other, damon_new_filter(ANON, True, False))
    assert ctx.probes == [damon_probe(), damon_probe(filters=[damon_filter(ANON, True, False)])]


# What is shown, and what always holds.


def test_the_tracepoint_of_hits_needs_probes() -> None:
    """It reports each target, with complete hits."""
    seen: list[list[tuple[int, int]]] = []
    hook = lambda c, _t, regions: seen.append(shares(regions))  # noqa: E731 (unregistered by identity)
    trace.damon_region_aggregated.register(hook)
    try:
        _, _, ctx = halves()
        run_ctx(ctx, 0.32)
        assert [[(20, 20), (0, 0)]] * 3 == seen
        _, _, ctx = halves()
        ctx.probes = []
        run_ctx(ctx, 0.32)
        assert 3 == len(seen)
    finally:
        trace.damon_region_aggregated.unregister(hook)


@effort(25)
@given(
    weights=st.lists(st.sampled_from([0, 0, 1, 50]), min_size=1, max_size=4),
    ops=st.sampled_from([damon_ops_id.DAMON_OPS_VADDR, damon_ops_id.DAMON_OPS_FVADDR]),
    prep=st.booleans(),
    seed=st.integers(0, 1000),
    max_nr_regions=st.sampled_from([3, 10, 60]),
)
def test_invariants_hold_whatever_is_probed(
    weights: list[int], ops: damon_ops_id, prep: bool, seed: int, max_nr_regions: int
) -> None:
    """validate_ctx() after each aggregation; allow and its opposite are complements; sizes are conserved."""
    machine = SimMachine(seed=seed)
    process = machine.spawn([(MIB, 9 * MIB), (1 << 32, (1 << 32) + 8 * MIB), (1 << 46, (1 << 46) + MIB)])
    process.mark("anon", [(2 * MIB, 5 * MIB)])
    process.access(4 * MIB, 6 * MIB, rate=100)
    ctx = sim_ctx(process, machine, seed=seed, ops=ops, min_nr_regions=3, max_nr_regions=max_nr_regions)
    if ops is damon_ops_id.DAMON_OPS_FVADDR:
        first(ctx).regions = Regions([MIB], [9 * MIB])
    kinds = [ANON, ANON, TYPE.DAMON_FILTER_TYPE_PGIDLE_UNSET, TYPE.DAMON_FILTER_TYPE_PGIDLE_SET]
    ctx.probes = [
        damon_probe(weight, [damon_prep()] * prep, [damon_filter(kind, True, i != 1)])
        for i, (weight, kind) in enumerate(zip(weights, kinds, strict=False))
    ]
    totals = set()

    def check(c: damon_ctx, _target: int, regions: Regions) -> None:
        validate_ctx(c)
        totals.add(regions.total())
        assert regions.probe_hits is not None
        if len(weights) > 1 and c.passed_sample_intervals == 20:
            assert (regions.probe_hits[:, :2].sum(axis=1) >= 19).all()

    trace.damon_aggregated.register(check)
    try:
        run_ctx(ctx, 1.02)
    finally:
        trace.damon_aggregated.unregister(check)
    assert 1 == len(totals)


def test_merging_keeps_the_columns_of_a_context_together() -> None:
    """Density merges runs of regions: hits become means as well."""
    table = table_of([Region(0, 100, probe_hits=[6, 0, 0, 0]), Region(100, 300, probe_hits=[14, 0, 0, 0])], probes=True)
    ctx_of(table)
    merge_runs(table, np.array([0], np.intp))
    assert [[11, 0, 0, 0]] == [r.probe_hits for r in model_of(table)]


def test_reports_count_beside_weights() -> None:
    """Only the context's own check of accesses is off."""
    _, process, ctx = halves(weight=1)
    report = damon_access_report(process.pid, 40 * MIB, 1)

    def push(_data: Any) -> None:
        damon_report_access(report)

    ctx.call_controls = [damon_call_control(push, repeat=True)]
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.22)
    last = recorder.snapshots[-1].regions
    holds = (last.start <= np.uint64(40 * MIB)) & (last.end > np.uint64(40 * MIB))
    assert int(last.nr_accesses[holds][0]) > 0
    assert [(20, 20), (0, 0)] == shares(last)
