# SPDX-License-Identifier: GPL-2.0-only
"""Density of access reports: an estimator besides the kernel's rule (``damon_ctx.density``; no kernel counterpart).

By the rule of report-driven monitoring any report in a region marks the region as accessed. If accesses go to a few
pages spread over much memory, all of that memory looks hot. With ``density`` the monitor remembers, for each target,
the pages that were reported in the last aggregation intervals (:mod:`kdamon.reports.history`). When an interval ends,
it

1. forgets the older reports of regions whose rate of reports changed,
2. cuts regions where the density of the reports differs most, if the difference is significant,
3. merges neighbours that do not differ, and beyond ``max_nr_regions`` those that differ least,
4. estimates how much memory was accessed, and marks the densest regions of that size as accessed.

Reports are taken as a random sample of the accesses, and ``nr_accesses`` of a report as the number of accesses that it
stands for. "Differs" is a log likelihood ratio: how much more likely the reports are with one density for each part
than with one density for both, each part a Poisson process. All steps work on whole arrays, not region by region.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdamon.arrays import F64Array, I32Array, Indexes, Mask, U64Array
from kdamon.damon import damon_nr_samples_per_aggr
from kdamon.region_merge import merge_runs
from kdamon.regions import mostly_unknown
from kdamon.reports.history import Place, ReportHistory, ReportRun, spread

if TYPE_CHECKING:
    from kdamon.damon import damon_ctx, damon_target
    from kdamon.regions import Regions

__all__ = [
    "adjust_regions_by_density",
    "best_cuts",
    "forget_density",
    "log_likelihood",
    "merge_least_different",
    "remember_reports",
    "reports_are_random",
]

F32 = npt.NDArray[np.float32]

#: Log likelihood ratios from which on a region is cut, neighbours are not merged, and the old reports are forgotten.
CUT_RATIO = 10.0
KEEP_RATIO = 4.0
CHANGE_RATIO = 10.0
#: Rounds of cuts when an aggregation interval ends: each can cut a region once.
CUT_ROUNDS = 2
#: Reports that are examined for cuts, of all regions and of one; the rest has its turn in later intervals.
CUT_REPORTS = 1 << 14
CUT_REPORTS_PER_REGION = 1 << 11

_TINY = np.float32(1e-10)
_USEC_PER_SEC = 1_000_000


def remember_reports(t: damon_target, ctx: damon_ctx, addr: U64Array, nr_accesses: I32Array) -> None:
    """Remember reports that lie in regions of ``t``, each as an access of the page it begins in.

    :param addr: where they begin, core address units, shape (n,).
    :param nr_accesses: how many accesses they stand for, shape (n,); less than one counts as one.
    """
    if t.memory is None:
        t.memory = ReportHistory()
    page = addr - addr % np.uint64(ctx.min_region_sz)
    t.memory.add(page, np.maximum(nr_accesses, 1).astype(np.float64), ctx.rnd)


def reports_are_random(ctx: damon_ctx) -> bool:
    """Return whether the reports to ``ctx`` are a sample of all accesses.

    Reports of faults of sampled pages, one in each region, are not: for these the kernel's rule is right.
    """
    return not (ctx.sample_control.primitives_enabled.page_fault and ctx.ops is not None and ctx.ops.has_faults())


def _is_in_effect(ctx: damon_ctx) -> bool:
    if not reports_are_random(ctx):
        return False
    if ctx.ops is not None and ctx.ops.checks_accesses() and ctx.sample_control.primitives_enabled.page_table:
        # Accessed bits are all there is while nothing is reported.
        return any(t.memory is not None and t.memory.holds_any() for t in ctx.adaptive_targets)
    return True


def forget_density(ctx: damon_ctx) -> None:
    """Remove all state of this module from ``ctx``, which is not monitored by density any more."""
    for t in ctx.adaptive_targets:
        t.memory = t.regions.density = t.regions.density_since = None


def adjust_regions_by_density(ctx: damon_ctx, sz_limit: int) -> bool:
    """End an aggregation interval: cut, merge and count the regions of ``ctx`` by the density of reports.

    Does what ``kdamond_merge_regions()`` and ``kdamond_split_regions()`` do by nr_accesses. Afterwards there are no
    more than ``max_nr_regions`` regions, unless ``sz_limit`` or holes between regions forbid merges.

    :param sz_limit: largest region to make, core address units.
    :returns: whether that was done: not where reports are no sample (:func:`reports_are_random`), nor where there
        are none and accessed bits are sampled.
    """
    if not ctx.adaptive_targets or not _is_in_effect(ctx):
        forget_density(ctx)
        return False
    nr_regions = sum(len(t.regions) for t in ctx.adaptive_targets)
    room = max(2 * ctx.attrs.max_nr_regions - nr_regions, 0)
    held = []
    for t in ctx.adaptive_targets:
        memory = _recall(t, ctx)
        places = memory.places(t.regions.start, t.regions.end)
        changed = _forget_changed(memory, t.regions, places)
        rows = _to_examine(memory, t.regions, places, changed, CUT_REPORTS // len(ctx.adaptive_targets))
        room -= _cut(t, rows, places, unit=ctx.min_region_sz, room=room)
        held.append(memory.held(places).sum(axis=0) / memory.scale())
    _merge(ctx, held, sz_limit)
    for t in ctx.adaptive_targets:
        _count(ctx, _history(t), t.regions)
    largest = max((int(t.regions.nr_accesses.max(initial=0)) for t in ctx.adaptive_targets), default=0)
    for t in ctx.adaptive_targets:
        unknown = mostly_unknown(t.regions.nr_unknown, damon_nr_samples_per_aggr(ctx.attrs))
        t.regions.count_age(largest // 10, unknown=unknown)
    return True


def log_likelihood(n: Any, size: Any) -> Any:
    """Log likelihood of ``n`` reports in ``size`` at their own density, but for terms that cancel out."""
    return n * np.log(np.maximum(n, _TINY) / size)


# The history.


def _history(t: damon_target) -> ReportHistory:
    """The target's memory, which there is."""
    assert t.memory is not None
    return t.memory


def _recall(t: damon_target, ctx: damon_ctx) -> ReportHistory:
    """The target's memory with the interval that just ended."""
    memory = t.memory
    if memory is None:
        memory = t.memory = ReportHistory()
    if memory.interval != ctx.attrs.aggr_interval:
        # Rates are per interval: those of another length say nothing.
        memory.forget()
        memory.interval = ctx.attrs.aggr_interval
        t.regions.density = t.regions.density_since = None
    memory.learn(ctx.rnd)
    if t.regions.density is None or t.regions.density_since is None:
        t.regions.density = np.zeros(len(t.regions))
        t.regions.density_since = np.zeros(len(t.regions), np.uint32)
    since = t.regions.density_since
    # A region that is new is known from now on.
    since = np.where(since == 0, memory.now, np.maximum(since, memory.runs[-1].first))
    t.regions.density_since = since.astype(np.uint32)
    return memory


def _intervals(memory: ReportHistory, regions: Regions) -> F64Array:
    """For how many intervals the reports of each region are remembered, shape (n,)."""
    assert regions.density_since is not None
    return memory.now + 1.0 - regions.density_since.astype(np.float64)


def _forget_changed(memory: ReportHistory, regions: Regions, places: list[Place]) -> Mask:
    """Forget the older reports of regions whose rate of reports changed; returns which did, shape (n,).

    :param places: of the regions' reports; updated.
    """
    runs = memory.runs
    held = memory.held(places) / memory.scale()
    changed = np.zeros(len(regions), np.bool_)
    assert regions.density_since is not None
    since = regions.density_since
    if len(runs) > 1:
        recent = held.cumsum(axis=0)
        total = recent[-1]
        known = _intervals(memory, regions)
        recent_intervals = np.array([[memory.now - run.first + 1.0] for run in runs[:-1]])
        before_intervals = known - recent_intervals
        ratio = log_likelihood(recent[:-1], recent_intervals)
        ratio += log_likelihood(np.maximum(total - recent[:-1], 0), np.maximum(before_intervals, 1))
        ratio -= log_likelihood(total, known)
        ratio[before_intervals < 1] = 0
        best = ratio.argmax(axis=0)
        changed = ratio[best, np.arange(len(regions))] > CHANGE_RATIO
        firsts = np.array([run.first for run in runs], np.uint32)
        since = np.where(changed, firsts[best], since).astype(np.uint32)
        regions.density_since = since
    for i, run in enumerate(runs):
        stale = (held[i] > 0) & (since > run.last)
        if stale.any():
            first, stop = places[i]
            run.drop(first[stale], stop[stale])
            places[i] = run.place(regions.start, regions.end)
    return changed


# Cuts.


def _to_examine(
    memory: ReportHistory, regions: Regions, places: list[Place], changed: Mask, nr_reports: int
) -> Indexes:
    """The regions to look for cuts in: those that changed, then the others in turn; ascending rows."""
    n = len(regions)
    if not n:
        return np.empty(0, np.intp)
    reports = np.minimum(sum(stop - first for first, stop in places), CUT_REPORTS_PER_REGION)
    turn = (np.arange(n) - int(np.searchsorted(regions.start, np.uint64(memory.next_examined)))) % n
    turn[changed] -= n
    order = np.argsort(turn, kind="stable")
    within = order[: max(1, int(np.searchsorted(np.cumsum(reports[order]), nr_reports, "right")))]
    memory.next_examined = int(regions.start[(within[-1] + 1) % n])
    return np.sort(within[reports[within] > 1])


def _cut(t: damon_target, rows: Indexes, places: list[Place], *, unit: int, room: int) -> int:
    """Cut regions of ``t`` where the density of their reports differs; returns the number of cuts, at most ``room``.

    :param rows: of the regions to look for cuts in, ascending.
    :param places: of the regions' reports; updated.
    :param unit: size of a page.
    """
    if not len(rows):
        return 0
    regions, memory = t.regions, _history(t)
    addr, weight = memory.gather([(first[rows], stop[rows]) for first, stop in places], CUT_REPORTS_PER_REGION)
    upto = np.concatenate(([0.0], np.cumsum(weight / memory.scale())))
    start, end = regions.start, regions.end
    of = np.arange(len(regions), dtype=np.intp)
    for _ in range(CUT_ROUNDS):
        ratio, at = best_cuts(addr, upto, start[rows], end[rows], unit)
        good = _significant_cuts(ratio, room - (len(start) - len(regions)))
        if not len(good):
            break
        parts = np.ones(len(start), np.intp)
        parts[rows[good]] = 2
        start, end, of = start.repeat(parts), end.repeat(parts), of.repeat(parts)
        right = rows[good] + np.arange(1, len(good) + 1)
        start[right] = end[right - 1] = at[good]
        rows = np.sort(np.concatenate((right - 1, right)))
    nr_cuts = len(start) - len(regions)
    if nr_cuts:
        right = np.nonzero(start != regions.start[of])[0]
        _cut_places(memory, places, of, right, start[right])
        regions.rebuild(of, start, end)
    return nr_cuts


def _significant_cuts(ratio: F64Array, most: int) -> Indexes:
    """The cuts with enough evidence, ascending; if these are more than ``most``, the ones with most evidence."""
    good = np.nonzero(ratio > CUT_RATIO)[0]
    if len(good) > most:
        best_first = np.argsort(-ratio[good], kind="stable")
        good = np.sort(good[best_first[:most]])
    return good


def _cut_places(memory: ReportHistory, places: list[Place], of: Indexes, right: Indexes, at: U64Array) -> None:
    """Divide the reports of regions, as the regions themselves are cut.

    :param places: of the reports; updated.
    :param of: the row that each part was cut from.
    :param right: the parts that begin with a cut.
    :param at: the addresses of these cuts.
    """
    for i, run in enumerate(memory.runs):
        first, stop = (edges[of] for edges in places[i])
        first[right] = stop[right - 1] = np.searchsorted(run.addr, at)
        places[i] = first, stop


def best_cuts(addr: U64Array, upto: F64Array, start: U64Array, end: U64Array, unit: int) -> tuple[F64Array, U64Array]:
    """Where the densities on both sides differ most, in each of the regions [start, end).

    A cut lies before or after a reported page, at the edge of the denser side. The cut was chosen by that page, so the
    page does not count as evidence: otherwise every single report would justify a cut.

    :param addr: reported pages, ascending, shape (n,).
    :param upto: number of independent reports before each of them, and of all, shape (n + 1,).
    :param start: first addresses of the regions, ascending, shape (m,).
    :param end: their ends (exclusive).
    :param unit: size of a page.
    :returns: the log likelihood ratio of the cut (0 there is none) and its address, both of shape (m,).
    """
    ratio, at = np.zeros(len(start)), start.copy()
    first, stop = np.searchsorted(addr, start), np.searchsorted(addr, end)
    rows = np.nonzero((stop - first > 1) & (end - start > unit))[0]
    if not len(rows):
        return ratio, at
    start, end, first, stop = start[rows], end[rows], first[rows], stop[rows]
    report, dense, best = _best_gaps(addr, upto, (start, end), (first, stop), unit)
    address = np.where(dense, addr[np.maximum(report, 1) - 1] + np.uint64(unit), addr[report])
    left, n, size = upto[report] - upto[first], upto[stop] - upto[first], (end - start).astype(np.float64)
    # After the last report there is one more gap.
    last = addr[stop - 1] + np.uint64(unit)
    tail = _cut_likelihood(
        n, n, np.minimum((last - start).astype(np.float64), size), size, np.ones(len(rows), np.bool_)
    )
    use_tail = (tail > best) & (last < end)
    address, left, dense = np.where(use_tail, last, address), np.where(use_tail, n, left), dense | use_tail
    offset = address - start
    offset -= offset % np.uint64(unit)
    # Its likelihood ratio in double precision, at the edge of the page.
    valid = (offset > 0) & (offset < end - start) & (use_tail | np.isfinite(best))
    cut = np.where(valid, offset.astype(np.float64), size / 2)
    exact = _cut_likelihood(left, n, cut, size, dense) - log_likelihood(np.maximum(n - 1, 0), size)
    ratio[rows] = np.where(valid, exact, 0)
    at[rows] = start + offset
    return ratio, at


def _best_gaps(
    addr: U64Array, upto: F64Array, region: tuple[U64Array, U64Array], place: Place, unit: int
) -> tuple[Indexes, Mask, F32]:
    """The gap between reports at which each region is best cut, in single precision.

    :param region: starts and ends, of shape (m,).
    :param place: their reports, two at least of each.
    :returns: the report after the gap; whether the part before the gap is denser, so that the cut belongs to the
        beginning of the gap, not to its end; the log likelihood, -inf where no cut is possible. All of shape (m,).
    """
    start, (first, stop) = region[0], place
    counts = stop - first
    reports, row, heads = spread(first, counts), np.arange(len(counts)).repeat(counts), counts.cumsum() - counts
    gap_end = (addr[reports] - start[row]).astype(np.float32)
    # A gap begins after the page before it; the first gap begins with the region.
    gap_start = np.empty_like(gap_end)
    gap_start[1:] = gap_end[:-1] + np.float32(unit)
    gap_start[heads] = 0
    size, n = (region[1] - start).astype(np.float32)[row], (upto[stop] - upto[first]).astype(np.float32)[row]
    left = (upto[reports] - upto[first][row]).astype(np.float32)
    middle = (gap_start + gap_end) / np.float32(2)
    left_dense = left * (size - middle) > (n - left) * middle
    cut = np.where(left_dense, gap_start, gap_end)
    found = _cut_likelihood(left, n, cut, size, left_dense)
    found[(gap_start > gap_end) | (cut <= 0) | (cut >= size)] = -np.inf
    best = np.maximum.reduceat(found, heads)
    where = np.nonzero(found == best[row])[0]
    where = where[np.searchsorted(row[where], np.arange(len(counts)))]  # the first one of each region
    return reports[where], left_dense[where], best


def _cut_likelihood(left: Any, n: Any, cut: Any, size: Any, left_dense: Mask) -> Any:
    """Log likelihood of ``left`` of ``n`` reports in the first ``cut`` of ``size``, without the one at the cut."""
    one = left.dtype.type(1)
    left = np.maximum(left - left_dense, 0, dtype=left.dtype)
    right = np.maximum(n - one - left, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return log_likelihood(left, cut) + log_likelihood(right, size - cut)


# Merges.


def _merge(ctx: damon_ctx, held: list[F64Array], sz_limit: int) -> None:
    """Merge neighbours of all targets that do not differ, and those that differ least while there are too many.

    :param held: for each target the number of independent reports of its regions.
    """
    parts = []
    for t, n in zip(ctx.adaptive_targets, held, strict=True):
        regions, memory = t.regions, _history(t)
        scale = memory.scale()
        size = regions.sizes().astype(np.float64)
        touching = np.zeros(len(regions))
        touching[:-1] = regions.start[1:] == regions.end[:-1]
        parts.append(np.array([n, size * _intervals(memory, regions), size, touching, np.full(len(regions), scale)]))
    n, exposure, size, touching, scale = np.concatenate(parts, axis=1)
    heads, n, exposure = merge_least_different(
        n, exposure, size, touching > 0, max_nr_regions=ctx.attrs.max_nr_regions, sz_limit=float(sz_limit)
    )
    density = n * scale[heads] / exposure * (_USEC_PER_SEC / ctx.attrs.aggr_interval)
    before = 0
    for t in ctx.adaptive_targets:
        mine = slice(*np.searchsorted(heads, (before, before + len(t.regions))))
        before += len(t.regions)
        if len(t.regions):
            merge_runs(t.regions, heads[mine] - (before - len(t.regions)))
        t.regions.density = density[mine]


def merge_least_different(
    n: F64Array, exposure: F64Array, size: F64Array, touching: Mask, *, max_nr_regions: int, sz_limit: float
) -> tuple[Indexes, F64Array, F64Array]:
    """Choose which neighbours to merge.

    Each round merges pairs that differ less than the pairs on both their sides do.

    :param n: reports of each region, shape (m,).
    :param exposure: size times intervals in which they were made.
    :param size: size.
    :param touching: whether the next region begins where this one ends, and is of the same target.
    :returns: rows that the runs of merged regions begin with, and reports and exposure of each run.
    """
    heads = np.arange(len(n))
    while len(n) > 1:
        loss = log_likelihood(n[:-1], exposure[:-1]) + log_likelihood(n[1:], exposure[1:])
        loss -= log_likelihood(n[:-1] + n[1:], exposure[:-1] + exposure[1:])
        loss[~touching[:-1] | (size[:-1] + size[1:] > sz_limit)] = np.inf
        excess = len(n) - max_nr_regions
        limit = KEEP_RATIO
        if excess > 0:
            nth = min(excess, len(loss)) - 1
            limit = max(limit, float(np.partition(loss, nth)[nth]))
        around = np.concatenate(([np.inf], loss, [np.inf]))
        lowest = (loss < around[:-2]) & (loss <= around[2:]) & (loss <= limit)
        left = np.nonzero(lowest)[0]
        # Of neighbours that differ, merge only as many as exceed the limit.
        left = left[np.argsort(loss[left], kind="stable")]
        left = left[: max(int((loss[left] <= KEEP_RATIO).sum()), min(len(left), max(excess, 0)))]
        if not len(left):
            break
        for column in (n, exposure, size):
            column[left] += column[left + 1]
        touching[left] = touching[left + 1]
        kept = np.ones(len(n), np.bool_)
        kept[left + 1] = False
        n, exposure, size, touching, heads = n[kept], exposure[kept], size[kept], touching[kept], heads[kept]
    return heads, n, exposure


# Counts.


def _accessed_size(memory: ReportHistory, regions: Regions, accesses: F64Array, unit: int) -> float:
    """How much memory was accessed in an aggregation interval, core address units.

    Reports that are a sample of 1 in k show in k intervals as many distinct pages as all accesses in one. Where fewer
    intervals are remembered, the number of pages that are in use at all is estimated from how often reports are of
    the same page, and from that how many of them are accessed.

    :param accesses: expected accesses of each region in an interval.
    """
    assert regions.density_since is not None
    run = min(memory.runs, key=lambda run: abs(run.last - run.first + 1 - memory.scale()))
    pages = regions.sizes().astype(np.float64) / unit
    n, distinct = _seen(run, regions)
    young = regions.density_since > run.last
    if young.any():
        n_now, distinct_now = _seen(memory.runs[0], regions)
        n, distinct = np.where(young, n_now, n), np.where(young, distinct_now, distinct)
    by_chance = n + pages * np.expm1(-n / pages)
    # Pages are reported as often as in a region whose pages are all alike, unless repetitions are clearly more.
    alike = n - distinct <= by_chance + 3 * np.sqrt(by_chance) + 3
    each = np.interp(-distinct / np.maximum(n, 1), -_DISTINCT_SHARE, _REPORTS_PER_PAGE)
    used = np.where(alike, pages, np.clip(n / each, 1e-9, pages))
    return float((used * -np.expm1(-accesses / used)).sum()) * unit


def _seen(run: ReportRun, regions: Regions) -> tuple[F64Array, F64Array]:
    """Number of reports of each region and of distinct pages among them, both of shape (n,)."""
    first, stop = place = run.place(regions.start, regions.end)
    return (stop - first).astype(np.float64), run.distinct(place)


#: Reports of a page in use, and how many distinct pages a report then stands for.
_REPORTS_PER_PAGE = np.logspace(-4, 4, 400)
_DISTINCT_SHARE = -np.expm1(-_REPORTS_PER_PAGE) / _REPORTS_PER_PAGE


def _count(ctx: damon_ctx, memory: ReportHistory, regions: Regions) -> None:
    """Set nr_accesses: at least 1 for the densest regions that make up what was accessed, 0 for the others.

    Above that it is the number of samples that would find a page of the region accessed. It replaces the count from
    accessed bits, which is about one page of the region only.
    """
    if not len(regions):
        return
    assert regions.density is not None
    per_interval = regions.density * (ctx.attrs.aggr_interval / _USEC_PER_SEC)
    size = regions.sizes().astype(np.float64)
    accessed = _accessed_size(memory, regions, per_interval * size, ctx.min_region_sz)
    densest = np.argsort(-regions.density, kind="stable")
    upto = np.concatenate(([0.0], np.cumsum(size[densest])))
    # The nearest, but not nothing where a good part of the densest region was accessed.
    nr_marked = max(int(np.abs(upto - accessed).argmin()), int(accessed >= upto[1] / 4))
    marked = np.zeros(len(regions), np.bool_)
    marked[densest[:nr_marked]] = True
    marked &= regions.density > 0
    samples = damon_nr_samples_per_aggr(ctx.attrs)
    found = samples * -np.expm1(-per_interval * ctx.min_region_sz / samples)
    regions.nr_accesses = np.where(marked, np.clip(np.rint(found), 1, samples), 0).astype(np.uint32)
