# SPDX-License-Identifier: GPL-2.0-only
"""What operations sets have in common (``mm/damon/ops-common.c``): sampling one address of each region."""

from __future__ import annotations

from kdamon.core import damon_rand, damon_update_region_access_rate
from kdamon.damon import damon_ctx, damon_target
from kdamon.mm import UNKNOWN, YOUNG, Answers, U64Array

__all__ = ["damon_count_samples", "damon_pick_samples"]


def damon_pick_samples(ctx: damon_ctx, t: damon_target) -> U64Array:
    """Choose a random address in each region of ``t``; returns them, shape (n,)."""
    regions = t.regions
    regions.sampling_addr = damon_rand(ctx, regions.start, regions.end, len(regions))
    return regions.sampling_addr


def damon_count_samples(ctx: damon_ctx, t: damon_target, answers: Answers | None) -> int:
    """Count what the samples of ``t`` saw.

    :param answers: one for each region, shape (n,); None counts all as not accessed.
    :returns: the largest nr_accesses of the target.
    """
    regions = t.regions
    if answers is not None:
        damon_update_region_access_rate(regions, answers == YOUNG)
        ctx.nr_samples += len(regions)
        unknown = answers == UNKNOWN
        if unknown.any():
            regions.nr_unknown += unknown
            ctx.nr_unknown += int(unknown.sum())
    return int(regions.nr_accesses.max(initial=0))
