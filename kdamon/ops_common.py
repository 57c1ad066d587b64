# SPDX-License-Identifier: GPL-2.0-only
"""The common part of operations sets (``mm/damon/ops-common.c``): sampling one address of each region, and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdamon.arrays import I64Array, U64Array
from kdamon.core import damon_rand, damon_update_region_access_rate
from kdamon.damon import (
    DAMOS_MAX_SCORE,
    damon_ctx,
    damon_filter,
    damon_filter_type,
    damon_nr_accesses_mvsum,
    damon_nr_samples_per_aggr,
    damon_region,
    damon_target,
    damos,
    damos_action,
    damos_filter,
    window_left_bp,
)
from kdamon.kernel import mult_frac, uint
from kdamon.mm import UNKNOWN, YOUNG, Answers, PageFilter
from kdamon.probes import probe_filters
from kdamon.regions import Regions

__all__ = [
    "cold_scores",
    "count_samples",
    "damon_cold_score",
    "damon_hot_score",
    "hot_scores",
    "needs_answers",
    "page_filter",
    "pick_samples",
    "probe_page_filters",
    "scheme_score",
    "scheme_scores",
]

DAMON_MAX_SUBSCORE = 100
DAMON_MAX_AGE_IN_LOG = 32


def pick_samples(ctx: damon_ctx, t: damon_target) -> U64Array:
    """Choose a random address in each region of ``t``; returns them, shape (n,)."""
    t.answers = t.sampled = None
    regions = t.regions
    regions.sampling_addr = damon_rand(ctx, regions.start, regions.sizes(), regions.wide())
    return regions.sampling_addr


def count_samples(ctx: damon_ctx, t: damon_target, answers: Answers) -> None:
    """Count the results of the samples of ``t``.

    :param answers: one for each region, shape (n,).
    """
    regions = t.regions
    ctx.nr_samples += len(regions)
    not_old = np.count_nonzero(answers)
    if not not_old:
        # All are old, as most are where many processes are monitored, and those of page_fault unless they are unknown.
        return
    young = answers == YOUNG
    damon_update_region_access_rate(regions, young)
    # Answers that are neither old nor young are unknown. Usually there are none; counting is cheaper than comparing.
    nr_unknown = int(not_old) - int(np.count_nonzero(young))
    if nr_unknown:
        regions.nr_unknown += answers == UNKNOWN
        ctx.nr_unknown += nr_unknown


#: Types of filters of probes as :meth:`kdamon.mm.Samples.page_match` knows them.
_PAGE_TYPES = {
    damon_filter_type.DAMON_FILTER_TYPE_ANON: "anon",
    damon_filter_type.DAMON_FILTER_TYPE_MEMCG: "memcg",
    damon_filter_type.DAMON_FILTER_TYPE_PGIDLE_UNSET: "young",
    damon_filter_type.DAMON_FILTER_TYPE_PGIDLE_SET: "idle",
    damon_filter_type.DAMON_FILTER_TYPE_HUGEPAGE_SIZE: "hugepage_size",
}


def page_filter(f: damon_filter | damos_filter, page_type: str) -> PageFilter:
    """The filter ``f`` of a probe or a scheme as the machine knows it.

    :param page_type: its type, as :meth:`kdamon.mm.Samples.page_match` knows it.
    """
    return PageFilter(page_type, f.matching, f.allow, f.memcg_id, f.sz_range.min, f.sz_range.max)


def probe_page_filters(ctx: damon_ctx) -> list[PageFilter]:
    """The filters of all probes of ``ctx`` as the machine knows them."""
    return [page_filter(f, _PAGE_TYPES[f.type]) for f in probe_filters(ctx)]


def needs_answers(filters: Sequence[PageFilter]) -> bool:
    """Return whether any of ``filters`` asks whether sampled pages were accessed."""
    return any(one.type in {"young", "idle"} for one in filters)


def damon_hot_score(ctx: damon_ctx, r: damon_region, s: damos) -> int:
    """How hot ``r`` is, 0 to DAMOS_MAX_SCORE: its access frequency and its age, by the weights of the scheme's quota.

    The age counts by its logarithm, because the difference between a second and a minute says more about the future
    than that between an hour and an hour and a minute. Without accesses a higher age makes the region colder.

    Kernel: products of large weights wrap around. Here: they do not, because a hot region would look cold.
    (docs/deviations.md#products-that-do-not-wrap)
    """
    left_bp = window_left_bp(ctx)
    nr_accesses = mult_frac(r.last_nr_accesses, left_bp, 10000) + (r.nr_accesses if left_bp != 10000 else 0)
    frequency = mult_frac(nr_accesses, DAMON_MAX_SUBSCORE, damon_nr_samples_per_aggr(ctx.attrs))
    age = r.age - r.unknown_age if s.needs_known else r.age
    seconds = uint(age * ctx.attrs.aggr_interval // 1_000_000)
    age_in_log = min(seconds.bit_length(), DAMON_MAX_AGE_IN_LOG)
    # The longer a region was not accessed, the colder it is.
    signed = age_in_log if frequency else -age_in_log
    subscore = (signed + DAMON_MAX_AGE_IN_LOG) * DAMON_MAX_SUBSCORE // DAMON_MAX_AGE_IN_LOG // 2
    weights = s.quota.weight_nr_accesses + s.quota.weight_age
    hotness = (s.quota.weight_nr_accesses * frequency + s.quota.weight_age * subscore) // (weights or 1)
    return min(hotness * DAMOS_MAX_SCORE // DAMON_MAX_SUBSCORE, DAMOS_MAX_SCORE)


def damon_cold_score(ctx: damon_ctx, r: damon_region, s: damos) -> int:
    """How cold ``r`` is, 0 to DAMOS_MAX_SCORE."""
    return DAMOS_MAX_SCORE - damon_hot_score(ctx, r, s)


def hot_scores(ctx: damon_ctx, regions: Regions, s: damos) -> I64Array:
    """:func:`damon_hot_score` of every region of a table, shape (n,)."""
    whole, part = np.divmod(
        damon_nr_accesses_mvsum(regions, ctx).astype(np.int64), damon_nr_samples_per_aggr(ctx.attrs)
    )
    frequency = whole * DAMON_MAX_SUBSCORE + part * DAMON_MAX_SUBSCORE // damon_nr_samples_per_aggr(ctx.attrs)
    age = regions.known_age() if s.needs_known else regions.age
    seconds = age.astype(np.uint64) * np.uint64(ctx.attrs.aggr_interval) // np.uint64(1_000_000)
    # The exponent of a floating point number is the number of its bits.
    age_in_log = np.frexp(seconds.astype(np.uint32).astype(np.float64))[1].astype(np.int64)
    signed = np.where(frequency != 0, age_in_log, -age_in_log)
    subscore = (signed + DAMON_MAX_AGE_IN_LOG) * DAMON_MAX_SUBSCORE // DAMON_MAX_AGE_IN_LOG // 2
    weights = s.quota.weight_nr_accesses + s.quota.weight_age
    hotness = (s.quota.weight_nr_accesses * frequency + s.quota.weight_age * subscore) // (weights or 1)
    return np.minimum(hotness * DAMOS_MAX_SCORE // DAMON_MAX_SUBSCORE, DAMOS_MAX_SCORE)


def cold_scores(ctx: damon_ctx, regions: Regions, s: damos) -> I64Array:
    """:func:`damon_cold_score` of every region of a table, shape (n,)."""
    return DAMOS_MAX_SCORE - hot_scores(ctx, regions, s)


#: Actions that the coldest and the hottest regions deserve most. Kernel: vaddr has no scores for sorting LRU lists,
#: because only paddr does that. Here: paddr's. (docs/deviations.md#lru_deprio-on-virtual-addresses)
_COLDEST_FIRST = {damos_action.DAMOS_PAGEOUT, damos_action.DAMOS_LRU_DEPRIO, damos_action.DAMOS_MIGRATE_COLD}
_HOTTEST_FIRST = {damos_action.DAMOS_LRU_PRIO, damos_action.DAMOS_MIGRATE_HOT}


def scheme_score(ctx: damon_ctx, r: damon_region, s: damos) -> int:
    """The score of ``r`` for the action of ``s``, 0 to DAMOS_MAX_SCORE (``damon_pa_scheme_score()`` and vaddr's)."""
    if s.action in _COLDEST_FIRST:
        return damon_cold_score(ctx, r, s)
    if s.action in _HOTTEST_FIRST:
        return damon_hot_score(ctx, r, s)
    return DAMOS_MAX_SCORE


def scheme_scores(ctx: damon_ctx, regions: Regions, s: damos) -> I64Array:
    """:func:`scheme_score` of every region of a table, shape (n,)."""
    if s.action in _COLDEST_FIRST:
        return cold_scores(ctx, regions, s)
    if s.action in _HOTTEST_FIRST:
        return hot_scores(ctx, regions, s)
    return np.full(len(regions), DAMOS_MAX_SCORE, np.int64)
