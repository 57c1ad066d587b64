# SPDX-License-Identifier: GPL-2.0-only
"""What operations sets have in common (``mm/damon/ops-common.c``): sampling one address of each region."""

from __future__ import annotations

import numpy as np

from kdamon.core import damon_rand, damon_update_region_access_rate
from kdamon.damon import damon_ctx, damon_target
from kdamon.mm import UNKNOWN, YOUNG, Answers, U64Array

__all__ = ["damon_count_samples", "damon_pick_samples"]


def damon_pick_samples(ctx: damon_ctx, t: damon_target) -> U64Array:
    """Choose a random address in each region of ``t``; returns them, shape (n,)."""
    regions = t.regions
    regions.sampling_addr = damon_rand(ctx, regions.start, regions.sizes(), regions.wide())
    return regions.sampling_addr


def damon_count_samples(ctx: damon_ctx, t: damon_target, answers: Answers) -> None:
    """Count what the samples of ``t`` saw.

    :param answers: one for each region, shape (n,).
    """
    regions = t.regions
    young = answers == YOUNG
    damon_update_region_access_rate(regions, young)
    ctx.nr_samples += len(regions)
    # What is neither old nor young is unknown; mostly nothing is, and counting is cheaper than comparing.
    nr_unknown = int(np.count_nonzero(answers)) - int(np.count_nonzero(young))
    if nr_unknown:
        regions.nr_unknown += answers == UNKNOWN
        ctx.nr_unknown += nr_unknown
