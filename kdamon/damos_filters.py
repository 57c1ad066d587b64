# SPDX-License-Identifier: GPL-2.0-only
"""Selects the regions of a scheme by its access pattern and its core filters (the filters of ``mm/damon/core.c``).

The operations set handles filters on pages: it has to apply ``ops_filters``, ``core_filters_allowed`` and
``ops_filters_default_reject`` of the scheme.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
from attrs import evolve

from kdamon.arrays import Mask, U32Array
from kdamon.damon import damon_ctx, damon_target, damos, damos_filter, damos_filter_type, unknown_rows
from kdamon.kernel import ALIGN_DOWN
from kdamon.probes import damon_probe_hits_wsum
from kdamon.regions import Regions

__all__ = [
    "core_filter_candidates",
    "damos_add_filter",
    "damos_commit_filter",
    "damos_commit_filters",
    "damos_core_filter_out",
    "damos_filter_for_ops",
    "damos_filter_match",
    "damos_new_filter",
    "damos_set_filters_default_reject",
    "for_each_part",
    "known_rows",
    "pattern_rows",
    "wanted_rows",
]

_OF_CORE = (
    damos_filter_type.DAMOS_FILTER_TYPE_ADDR,
    damos_filter_type.DAMOS_FILTER_TYPE_TARGET,
    damos_filter_type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM,
)


# Access patterns.


def pattern_rows(regions: Regions, nr_accesses: U32Array, s: damos) -> Mask:
    """Return which regions have the access pattern of ``s`` (``__damos_valid_target()``), shape (n,).

    :param nr_accesses: moving sums of the regions, shape (n,).
    """
    pattern = s.pattern
    sizes = regions.sizes()
    mask: Mask = (sizes >= np.uint64(pattern.min_sz_region)) & (sizes <= np.uint64(pattern.max_sz_region))
    mask &= (nr_accesses >= pattern.min_nr_accesses) & (nr_accesses <= pattern.max_nr_accesses)
    mask &= (regions.age >= pattern.min_age_region) & (regions.age <= pattern.max_age_region)
    return mask


def known_rows(ctx: damon_ctx, regions: Regions, s: damos) -> Mask:
    """Return which regions are known well enough to get the action of ``s``, shape (n,).

    Those of an action that needs it are not mostly unknown, nor were so in the time for which they have to be stable.
    """
    if not s.needs_known:
        return np.ones(len(regions), np.bool_)
    return ~unknown_rows(regions, ctx) & (regions.known_age() >= s.pattern.min_age_region)


def wanted_rows(ctx: damon_ctx, regions: Regions, nr_accesses: U32Array, s: damos) -> Mask:
    """Return which regions ``s`` is for: those that have its access pattern and are known well enough, shape (n,).

    :param nr_accesses: moving sums of the regions, shape (n,).
    """
    return pattern_rows(regions, nr_accesses, s) & known_rows(ctx, regions, s)


def for_each_part(regions: Regions, rows: list[int]) -> Iterator[tuple[int, int]]:
    """Iterate over ``rows``, and over the parts that the caller cuts off from them meanwhile.

    :param rows: ascending places in the table as it is at the beginning.
    :returns: for each row or part: the row that it was at the beginning, and the one that it is now.
    """
    shift = 0
    for first in rows:
        row = first + shift
        stop = row + 1
        while row < stop:
            before = len(regions)
            yield first, row
            stop += len(regions) - before
            row += 1
        shift = stop - first - 1


# Making filters.


def damos_filter_for_ops(filter_type: damos_filter_type) -> bool:
    """Return whether the operations set handles filters of this type, not the core."""
    return filter_type not in _OF_CORE


def damos_new_filter(filter_type: damos_filter_type, matching: bool, allow: bool) -> damos_filter:
    """A filter whose parameters, if the type has any, are to be set."""
    return damos_filter(filter_type, matching, allow)


def damos_add_filter(s: damos, f: damos_filter) -> None:
    """Append ``f`` to the filters of ``s`` that are handled in the same place."""
    (s.ops_filters if damos_filter_for_ops(f.type) else s.core_filters).append(f)


def damos_set_filters_default_reject(s: damos) -> None:
    """Set the default for memory that no filter matches: the opposite of the last filter's ``allow``."""
    # Memory that no core filter matches is left to the filters on pages, if there are any.
    s.core_filters_default_reject = not s.ops_filters and bool(s.core_filters) and s.core_filters[-1].allow
    s.ops_filters_default_reject = bool(s.ops_filters) and s.ops_filters[-1].allow


def damos_commit_filter(dst: damos_filter, src: damos_filter) -> None:
    """Make ``dst`` what ``src`` is; they share nothing afterwards.

    :raises OSError: EINVAL a range ends before it starts.
    """
    if src.type is damos_filter_type.DAMOS_FILTER_TYPE_ADDR and src.addr_range.start > src.addr_range.end:
        raise OSError(
            errno.EINVAL,
            f"a filter's addresses {src.addr_range.start:#x} to {src.addr_range.end:#x} end before they start",
        )
    if src.type is damos_filter_type.DAMOS_FILTER_TYPE_HUGEPAGE_SIZE and src.sz_range.min > src.sz_range.max:
        raise OSError(errno.EINVAL, f"a filter's minimum size, {src.sz_range.min}, exceeds its maximum")
    if src.type is damos_filter_type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM and src.range_min > src.range_max:
        raise OSError(errno.EINVAL, f"a filter's smallest sum of probe hits, {src.range_min}, exceeds its largest")
    dst.type, dst.matching, dst.allow = src.type, src.matching, src.allow
    dst.memcg_id, dst.target_idx = src.memcg_id, src.target_idx
    dst.addr_range, dst.sz_range = evolve(src.addr_range), evolve(src.sz_range)
    dst.range_min, dst.range_max = src.range_min, src.range_max


def _damos_commit_filters_of(src: list[damos_filter]) -> list[damos_filter]:
    new = [damos_new_filter(f.type, f.matching, f.allow) for f in src]
    for mine, theirs in zip(new, src, strict=True):
        damos_commit_filter(mine, theirs)
    return new


def damos_commit_filters(dst: damos, src: damos) -> None:
    """Make the filters of ``dst`` those of ``src``.

    :raises OSError: EINVAL as :func:`damos_commit_filter`.
    """
    dst.core_filters = _damos_commit_filters_of(src.core_filters)
    dst.ops_filters = _damos_commit_filters_of(src.ops_filters)
    damos_set_filters_default_reject(dst)


# Filtering.


def damos_filter_match(ctx: damon_ctx, t: damon_target, row: int, f: damos_filter) -> bool:
    """Return whether the core filter ``f`` matches a region of ``t``.

    A region that reaches over an edge of the filter's addresses is cut there, and ``row`` is its first part then.
    """
    if f.type is damos_filter_type.DAMOS_FILTER_TYPE_TARGET:
        inside = ctx.adaptive_targets.index(t) == f.target_idx
    elif f.type is damos_filter_type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM:
        inside = f.range_min <= int(damon_probe_hits_wsum(t.regions, ctx, slice(row, row + 1))[0]) <= f.range_max
    else:
        inside = _within(ctx, t, row, f)
    return inside == f.matching


def _within(ctx: damon_ctx, t: damon_target, row: int, f: damos_filter) -> bool:
    regions = t.regions
    start = ALIGN_DOWN(f.addr_range.start, ctx.min_region_sz)
    end = ALIGN_DOWN(f.addr_range.end, ctx.min_region_sz)
    r_start, r_end = int(regions.start[row]), int(regions.end[row])
    if start <= r_start and r_end <= end:
        return True
    if r_end <= start or end <= r_start:
        return False
    if r_start < start:
        regions.split_at(row, start - r_start)
        return False
    regions.split_at(row, end - r_start)
    return True


def core_filter_candidates(ctx: damon_ctx, t: damon_target, s: damos) -> Mask:
    """Return which regions of ``t`` the core filters of ``s`` may let have its action, at least in part, shape (n,).

    They reject all others as a whole, even after cuts, so these need not be visited one by one.
    """
    regions = t.regions
    candidates = np.full(len(regions), not s.core_filters_default_reject)
    undecided = np.ones(len(regions), np.bool_)
    for f in s.core_filters:
        if f.type is damos_filter_type.DAMOS_FILTER_TYPE_TARGET:
            inside = np.full(len(regions), ctx.adaptive_targets.index(t) == f.target_idx)
            outside = ~inside
        elif f.type is damos_filter_type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM:
            sums = damon_probe_hits_wsum(regions, ctx)
            inside = (np.uint64(f.range_min) <= sums) & (sums <= np.uint64(f.range_max))
            outside = ~inside
        else:
            start = np.uint64(ALIGN_DOWN(f.addr_range.start, ctx.min_region_sz))
            end = np.uint64(ALIGN_DOWN(f.addr_range.end, ctx.min_region_sz))
            inside = (start <= regions.start) & (regions.end <= end)
            outside = (regions.end <= start) | (end <= regions.start)
        matches = undecided & (inside if f.matching else outside)
        candidates[matches] = f.allow
        # A region that crosses an edge is not rejected as a whole by this filter.
        across = undecided & ~(inside | outside)
        candidates[across] = True
        undecided &= ~(matches | across)
    return candidates


def damos_core_filter_out(ctx: damon_ctx, t: damon_target, row: int, s: damos) -> bool:
    """Return whether the core filters of ``s`` keep its action from a region of ``t``: the first that matches decides.

    The region may be cut, see :func:`damos_filter_match`.
    """
    s.core_filters_allowed = False
    for f in s.core_filters:
        if damos_filter_match(ctx, t, row, f):
            s.core_filters_allowed = f.allow
            return not f.allow
    return s.core_filters_default_reject
