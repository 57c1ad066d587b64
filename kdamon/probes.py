# SPDX-License-Identifier: GPL-2.0-only
"""Probes: properties of the sampled pages, counted besides accesses or instead of them (``mm/damon/core.c``).

Each probe has filters, which decide whether a page is a hit, a counter in each region, and a weight. With weights
accesses are not checked, and regions are merged, split and aged by the weighted sum of the hits. The operations set
determines the properties of pages; the columns of hits are made when the first probe is applied.
"""

from __future__ import annotations

import errno

import numpy as np
from attrs import evolve

from kdamon.arrays import Mask, U32Array
from kdamon.damon import (
    damon_ctx,
    damon_filter,
    damon_filter_type,
    damon_mvsum,
    damon_nr_samples_per_aggr,
    damon_prep,
    damon_prep_action,
    damon_probe,
    damon_region,
    damon_target,
    window_left_bp,
)
from kdamon.kernel import UINT_MAX, mult_frac
from kdamon.regions import DAMON_MAX_PROBES, Regions

__all__ = [
    "count_probe_hits",
    "damon_add_filter",
    "damon_add_prep",
    "damon_add_probe",
    "damon_commit_filter",
    "damon_commit_probes",
    "damon_has_probe_weights",
    "damon_new_filter",
    "damon_new_prep",
    "damon_new_probe",
    "damon_probe_hits_mvsum",
    "damon_probe_hits_wsum",
    "damon_valid_probe_params",
    "has_prep",
    "probe_filters",
    "probe_weights",
]

U8_MAX = 255


_OF_ACCESSES = (damon_filter_type.DAMON_FILTER_TYPE_PGIDLE_UNSET, damon_filter_type.DAMON_FILTER_TYPE_PGIDLE_SET)


# Making probes.


def damon_new_prep(action: damon_prep_action) -> damon_prep:
    """A way to prepare pages."""
    return damon_prep(action)


def damon_add_prep(probe: damon_probe, prep: damon_prep) -> None:
    """Append ``prep`` to the preps of ``probe``."""
    probe.preps.append(prep)


def damon_new_filter(filter_type: damon_filter_type, matching: bool, allow: bool) -> damon_filter:
    """A filter whose parameters, if the type has any, are to be set."""
    return damon_filter(filter_type, matching, allow)


def damon_add_filter(probe: damon_probe, f: damon_filter) -> None:
    """Append ``f`` to the filters of ``probe``."""
    probe.filters.append(f)


def damon_new_probe() -> damon_probe:
    """A probe without weight that every sample hits."""
    return damon_probe()


def damon_add_probe(ctx: damon_ctx, probe: damon_probe) -> None:
    """Append ``probe`` to the probes of ``ctx``."""
    ctx.probes.append(probe)


# Requirements of a context's probes.


def has_prep(ctx: damon_ctx) -> bool:
    """Return whether pages are to be prepared for any probe."""
    return any(probe.preps for probe in ctx.probes)


def damon_has_probe_weights(ctx: damon_ctx) -> bool:
    """Return whether any probe has a weight: then accesses are not checked."""
    return any(probe.weight for probe in ctx.probes)


def probe_weights(ctx: damon_ctx) -> U32Array | None:
    """The weights of the probes, shape (DAMON_MAX_PROBES,), 0 for those that are not there; None if all are 0."""
    if not damon_has_probe_weights(ctx):
        return None
    weights = np.zeros(DAMON_MAX_PROBES, np.uint32)
    weights[: len(ctx.probes)] = [probe.weight for probe in ctx.probes]
    return weights


def probe_filters(ctx: damon_ctx) -> list[damon_filter]:
    """All filters of all probes in their order: the operations set matches each sampled page against them."""
    return [f for probe in ctx.probes for f in probe.filters]


def damon_valid_probe_params(ctx: damon_ctx) -> None:
    """Check the probes of ``ctx`` against its intervals.

    :raises OSError: EINVAL too many probes, or more hits than the 8-bit counters or the 32-bit weighted sum can hold;
        weights together with density, which both decide about regions; EOPNOTSUPP probes of accesses where pages are
        sampled by faults.
    """
    if len(ctx.probes) > DAMON_MAX_PROBES:
        raise OSError(errno.EINVAL, f"there are more than {DAMON_MAX_PROBES} probes, the most that a region can count")
    of_accesses = has_prep(ctx) or any(f.type in _OF_ACCESSES for f in probe_filters(ctx))
    # Deviation: docs/deviations.md#idle-flags-are-accessed-bits
    if of_accesses and ctx.sample_control.primitives_enabled.page_fault:
        raise OSError(
            errno.EOPNOTSUPP,
            "preps, and filters of the types pgidle_unset and pgidle_set, need accessed bits; turn page_fault off",
        )
    if not damon_has_probe_weights(ctx):
        return
    # Deviation: docs/deviations.md#weights-exclude-density
    if ctx.density:
        raise OSError(
            errno.EINVAL,
            "weights of probes and density exclude each other: both decide how regions merge; turn one of them off",
        )
    samples = ctx.attrs.aggr_interval // (ctx.attrs.sample_interval or 1)
    if samples > U8_MAX:
        raise OSError(
            errno.EINVAL,
            f"{samples} samples in an aggregation interval are too many for weights of probes; {U8_MAX} is the most",
        )
    largest = sum(probe.weight for probe in ctx.probes) * damon_nr_samples_per_aggr(ctx.attrs)
    if largest > UINT_MAX:
        raise OSError(
            errno.EINVAL, f"the weighted sum of probe hits could be {largest}, more than 32 bits; use smaller weights"
        )


# Commit.


def damon_commit_filter(dst: damon_filter, src: damon_filter) -> None:
    """Make ``dst`` what ``src`` is; they share nothing afterwards.

    :raises OSError: EINVAL a range of sizes ends before it starts.
    """
    if src.type is damon_filter_type.DAMON_FILTER_TYPE_HUGEPAGE_SIZE and src.sz_range.min > src.sz_range.max:
        raise OSError(errno.EINVAL, f"a filter's minimum size, {src.sz_range.min}, exceeds its maximum")
    dst.type, dst.matching, dst.allow = src.type, src.matching, src.allow
    dst.memcg_id, dst.sz_range = src.memcg_id, evolve(src.sz_range)


def _damon_commit_probe(src: damon_probe) -> damon_probe:
    new = damon_probe(src.weight, [evolve(prep) for prep in src.preps])
    for theirs in src.filters:
        mine = damon_new_filter(theirs.type, theirs.matching, theirs.allow)
        damon_commit_filter(mine, theirs)
        damon_add_filter(new, mine)
    return new


def damon_commit_probes(dst: damon_ctx, src: damon_ctx) -> None:
    """Make the probes of ``dst`` those of ``src``, place by place; hits that were counted at a place stay there.

    :raises OSError: EINVAL as :func:`damon_commit_filter`.
    """
    dst.probes = [_damon_commit_probe(probe) for probe in src.probes]
    if not dst.probes:
        for t in dst.adaptive_targets:
            t.regions.probe_hits = t.regions.last_probe_hits = None


# Counting.


def _passes(probe: damon_probe, matches: Mask) -> Mask:
    """Which pages are hits of ``probe``: the first matching filter decides, else the opposite of the last filter.

    :param matches: whether the pages are of the type of each filter, shape (number of filters, n).
    """
    undecided = np.ones(matches.shape[1], np.bool_)
    passed = np.full(matches.shape[1], not (probe.filters and probe.filters[-1].allow))
    for f, of_type in zip(probe.filters, matches, strict=True):
        hit = undecided & (of_type == f.matching)
        passed[hit] = f.allow
        undecided &= ~hit
    return passed


def count_probe_hits(ctx: damon_ctx, t: damon_target, matches: Mask | None) -> None:
    """Count the hits among the sampled pages of ``t``.

    As in the kernel a counter has 8 bits: with more samples in an aggregation interval and no weights it wraps around.

    :param matches: whether the page of each region is of the type of each filter, in the order of
        :func:`probe_filters`, shape (number of filters, n); None where that cannot be known.
    """
    regions = t.regions
    if damon_has_probe_weights(ctx):
        # No other function counts the samples then.
        ctx.nr_samples += len(regions)
        if matches is None:
            ctx.nr_unknown += len(regions)
            regions.nr_unknown += np.uint32(1)
    if matches is None:
        return
    regions.use_probes()
    assert regions.probe_hits is not None
    first = 0
    for i, probe in enumerate(ctx.probes):
        stop = first + len(probe.filters)
        regions.probe_hits[:, i] += _passes(probe, matches[first:stop])
        first = stop


# Reading.


def damon_probe_hits_mvsum(probe_idx: int, r: damon_region, ctx: damon_ctx) -> int:
    """Moving sum of the hits of probe ``probe_idx`` in ``r`` over the last aggregation interval's time, 8 bits."""
    left_bp = window_left_bp(ctx)
    current, last = r.probe_hits[probe_idx], r.last_probe_hits[probe_idx]
    return last if left_bp == 10000 else (current + mult_frac(last, left_bp, 10000)) & U8_MAX


def damon_probe_hits_wsum(regions: Regions, ctx: damon_ctx, rows: slice = slice(None)) -> U32Array:
    """Weighted sums of the moving sums of probe hits in ``rows`` of ``regions``, shape (n,).

    The kernel's also sums the counters themselves: that is :meth:`kdamon.regions.Regions.merge_scores`.
    """
    weights = probe_weights(ctx)
    if weights is None or regions.probe_hits is None or regions.last_probe_hits is None:
        return np.zeros(len(regions), np.uint32)[rows]
    current, last = regions.probe_hits[rows].astype(np.uint32), regions.last_probe_hits[rows].astype(np.uint32)
    moving = damon_mvsum(current, last, window_left_bp(ctx))
    # Each is an 8-bit number in the kernel.
    return (moving & np.uint32(U8_MAX)) @ weights
