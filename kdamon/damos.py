# SPDX-License-Identifier: GPL-2.0-only
"""DAMON-based operation schemes: the ``damos_*`` half of ``mm/damon/core.c``."""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt
from attrs import evolve

from kdamon.damon import (
    damon_ctx,
    damon_nr_accesses_mvsum,
    damon_region_sz_limit,
    damon_target,
    damos,
    damos_action,
    damos_walk_control,
)
from kdamon.kernel import time_after_eq
from kdamon.regions import damon_regions

__all__ = [
    "damon_commit_schemes",
    "damos_set_next_apply_sis",
    "damos_walk",
    "damos_walk_cancel",
    "kdamond_apply_schemes",
]

Mask = npt.NDArray[np.bool_]
U32Array = npt.NDArray[np.uint32]


def damos_set_next_apply_sis(s: damos, ctx: damon_ctx) -> None:
    """Plan the next application of ``s`` one apply interval from now."""
    interval = s.apply_interval_us or ctx.attrs.aggr_interval
    s.next_apply_sis = ctx.passed_sample_intervals + interval // (ctx.attrs.sample_interval or 1)


def damon_commit_schemes(dst: damon_ctx, src: damon_ctx) -> None:
    """Make the schemes of ``dst`` those of ``src``, place by place; statistics of a place survive."""
    kept = dst.schemes[: len(src.schemes)]
    for mine, theirs in zip(kept, src.schemes, strict=False):
        _damos_commit(mine, theirs)
    for theirs in src.schemes[len(kept) :]:
        new = damos()
        _damos_commit(new, theirs)
        damos_set_next_apply_sis(new, dst)
        kept.append(new)
    dst.schemes = kept


def _damos_commit(dst: damos, src: damos) -> None:
    dst.pattern = evolve(src.pattern)
    dst.action = src.action
    dst.apply_interval_us = src.apply_interval_us
    dst.max_nr_snapshots = src.max_nr_snapshots


def _damos_valid_target(regions: damon_regions, nr_accesses: U32Array, s: damos) -> Mask:
    """Which regions the scheme's access pattern wants, shape (n,)."""
    pattern = s.pattern
    sizes = regions.sizes()
    mask: Mask = (sizes >= np.uint64(pattern.min_sz_region)) & (sizes <= np.uint64(pattern.max_sz_region))
    mask &= (nr_accesses >= pattern.min_nr_accesses) & (nr_accesses <= pattern.max_nr_accesses)
    mask &= (regions.age >= pattern.min_age_region) & (regions.age <= pattern.max_age_region)
    return mask


def _damos_apply_scheme(ctx: damon_ctx, t: damon_target, s: damos, nr_accesses: U32Array) -> None:
    """Apply ``s`` to every region of ``t`` that it wants, and hand them to the installed walk."""
    rows = np.nonzero(_damos_valid_target(t.regions, nr_accesses, s))[0]
    if not len(rows):
        return
    sizes = t.regions.sizes()[rows]
    passed = np.zeros(len(rows), np.uint64)
    if s.action is not damos_action.DAMOS_STAT and ctx.ops is not None and ctx.ops.apply_scheme is not None:
        applied = 0
        for i, row in enumerate(rows.tolist()):
            sz_applied, sz_passed = ctx.ops.apply_scheme(ctx, t, row, s)
            applied += bool(sz_applied)
            s.stat.sz_applied += sz_applied
            passed[i] = sz_passed
        s.stat.nr_applied += applied
        s.stat.sz_ops_filter_passed += int(passed.sum())
    control = ctx.walk_control
    if control is not None and not s.walk_completed:
        for row, sz_passed in zip(rows.tolist(), passed.tolist(), strict=True):
            region = t.regions.region(row)
            region.nr_accesses = int(nr_accesses[row])
            control.walk_fn(control.data, ctx, t, region, s, sz_passed)
    if s.action is not damos_action.DAMOS_STAT:
        t.regions.age[rows] = 0
    s.stat.nr_tried += len(rows)
    s.stat.sz_tried += int(sizes.sum())


def kdamond_apply_schemes(ctx: damon_ctx) -> None:
    """Apply every scheme that is due to the regions that it wants.

    Kernel: region by region, every scheme on each. Here: scheme by scheme, all regions of a target at once, because no
    scheme changes regions that a later one looks at before the next pass.
    """
    due = [s for s in ctx.schemes if time_after_eq(ctx.passed_sample_intervals, s.next_apply_sis)]
    if not due:
        return
    max_region_sz = damon_region_sz_limit(ctx)
    with ctx.walk_control_lock:
        for t in ctx.adaptive_targets:
            if ctx.ops is not None and ctx.ops.target_valid is not None and not ctx.ops.target_valid(t):
                continue
            if not len(t.regions):
                continue
            nr_accesses = damon_nr_accesses_mvsum(t.regions, ctx)
            for s in due:
                if s.max_nr_snapshots and s.max_nr_snapshots <= s.stat.nr_snapshots:
                    continue
                _damos_apply_scheme(ctx, t, s, nr_accesses)
                s.stat.nr_snapshots += 1
            t.regions.merge_equal(max_region_sz)
        for s in due:
            _damos_walk_complete(ctx, s)
            damos_set_next_apply_sis(s, ctx)


def damos_walk(ctx: damon_ctx, control: damos_walk_control) -> None:
    """Call ``control.walk_fn`` for each region that the schemes try in their next application, and wait for it.

    :raises OSError: ECANCELED the kdamond does not run, ended, is paused or has no scheme; EBUSY another walk goes on.
    """
    control.completion.clear()
    control.canceled = False
    with ctx.walk_control_lock:
        if ctx.walk_control_obsolete:
            raise OSError(errno.ECANCELED, "the kdamond does not run, so no regions can be walked")
        if ctx.walk_control is not None:
            raise OSError(errno.EBUSY, "another walk of the regions is still going on")
        ctx.walk_control = control
    control.completion.wait()
    if control.canceled:
        raise OSError(errno.ECANCELED, "the walk was canceled: no scheme, paused, or the kdamond ended")


def _damos_walk_complete(ctx: damon_ctx, s: damos) -> None:
    control = ctx.walk_control
    if control is None:
        return
    s.walk_completed = True
    if not all(scheme.walk_completed for scheme in ctx.schemes):
        return
    for scheme in ctx.schemes:
        scheme.walk_completed = False
    ctx.walk_control = None
    control.completion.set()


def damos_walk_cancel(ctx: damon_ctx) -> None:
    """Cancel the walk that is installed, if any."""
    with ctx.walk_control_lock:
        control = ctx.walk_control
        if control is None:
            return
        ctx.walk_control = None
        # Kernel: damos_walk_cancel() leaves the marks, so that the next walk misses schemes that had completed.
        # Here: they are cleared, because a walk that was canceled says nothing about the next one.
        for s in ctx.schemes:
            s.walk_completed = False
    control.canceled = True
    control.completion.set()
