# SPDX-License-Identifier: GPL-2.0-only
"""DAMON-based operation schemes (the ``damos_*`` half of ``mm/damon/core.c``): apply pass, walks and commit.

Quotas are in :mod:`kdamon.damos_quota`, filters in :mod:`kdamon.damos_filters`, watermarks in
:mod:`kdamon.damos_wmarks`.
"""

from __future__ import annotations

import errno

import numpy as np
from attrs import evolve

from kdamon import trace
from kdamon.arrays import Indexes, U32Array
from kdamon.damon import (
    damon_ctx,
    damon_nr_accesses_mvsum,
    damon_region,
    damon_region_sz_limit,
    damon_target,
    damos,
    damos_action,
    damos_migrate_dests,
    damos_walk_control,
    nr_unknown_mvsum,
    unknown_rows,
)
from kdamon.damos_filters import (
    core_filter_candidates,
    damos_commit_filters,
    damos_core_filter_out,
    damos_set_filters_default_reject,
    for_each_part,
    known_rows,
    pattern_rows,
    wanted_rows,
)
from kdamon.damos_quota import (
    damos_adjust_quota,
    damos_charge_quota,
    damos_commit_quota,
    damos_quota_is_full,
    damos_quota_is_set,
    damos_skip_charged_region,
    forget_charged_target,
    largest_charge,
    region_scores,
)
from kdamon.damos_wmarks import commit_watermarks
from kdamon.intervals import interrupt
from kdamon.kernel import ALIGN_DOWN, time_after_eq
from kdamon.region_merge import merge_equal
from kdamon.regions import Regions
from kdamon.wait_limits import held_up_error, wait_for_kdamond

__all__ = [
    "SchemeBatch",
    "damon_commit_schemes",
    "damos_set_next_apply_sis",
    "damos_walk",
    "damos_walk_cancel",
    "init_scheme",
    "is_due",
    "kdamond_apply_schemes",
]


def damos_set_next_apply_sis(s: damos, ctx: damon_ctx) -> None:
    """Plan the next application of ``s`` one apply interval from now."""
    interval = s.apply_interval_us or ctx.attrs.aggr_interval
    s.next_apply_sis = ctx.passed_sample_intervals + interval // (ctx.attrs.sample_interval or 1)


def init_scheme(s: damos, ctx: damon_ctx) -> None:
    """Make ``s`` ready for a kdamond that begins."""
    damos_set_next_apply_sis(s, ctx)
    damos_set_filters_default_reject(s)


# Commit.


def damon_commit_schemes(dst: damon_ctx, src: damon_ctx) -> None:
    """Make the schemes of ``dst`` those of ``src``, place by place; statistics and quota state of a place survive.

    :raises OSError: EINVAL a range of a filter ends before it starts, or a goal has the target value 0.
    """
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
    damos_commit_quota(dst.quota, src.quota)
    commit_watermarks(dst.wmarks, src.wmarks)
    dst.target_nid = src.target_nid
    dests = src.migrate_dests
    dst.migrate_dests = damos_migrate_dests(list(dests.node_id_arr), list(dests.weight_arr))
    damos_commit_filters(dst, src)
    dst.max_nr_snapshots = src.max_nr_snapshots


# The apply pass.


def _asks_ops(s: damos) -> bool:
    """Return whether applying ``s`` needs the operations set: ``stat`` does nothing, but its filters may count."""
    return s.action is not damos_action.DAMOS_STAT or bool(s.ops_filters)


def _damos_apply_rows(ctx: damon_ctx, t: damon_target, rows: Indexes, s: damos, nr_accesses: U32Array) -> None:
    """Apply ``s`` to whole regions ``rows`` of ``t``; charge its quota, count, and call the installed walk.

    Kernel: one region after another. Here: the operations set gets all of them at once.
    (docs/deviations.md#many-regions-in-one-call)

    :param nr_accesses: moving sums of these regions, shape (len(rows),).
    """
    if not len(rows):
        return
    quota, regions = s.quota, t.regions
    sizes = regions.sizes()[rows]
    applied = passed = np.zeros(len(rows), np.uint64)
    begin = ctx.clock.now()
    if trace.damos_before_apply.enabled():
        for row in rows.tolist():
            trace.damos_before_apply(ctx, t, row, s)
    # Kernel: without an apply_scheme callback neither filters, charges nor walks. Here: as with one that applies to
    # nothing, because a scheme on reports alone wants to select regions too.
    # (docs/deviations.md#schemes-without-an-apply-callback)
    if ctx.ops is not None and ctx.ops.apply_scheme is not None and _asks_ops(s):
        applied, passed = ctx.ops.apply_scheme(ctx, t, rows, s)
    if ctx.walk_control is not None and not s.walk_completed:
        nr_unknown = nr_unknown_mvsum(regions, ctx)[rows]
        columns = (column.tolist() for column in (rows, nr_accesses, nr_unknown, passed))
        for row, accesses, unknown, sz_passed in zip(*columns, strict=True):
            _damos_walk_call_walk(
                ctx, t, s, evolve(regions.region(row), nr_accesses=accesses, nr_unknown=unknown), sz_passed
            )
    # Deviation: docs/deviations.md#schemes-without-a-quota-are-not-charged
    if damos_quota_is_set(quota):
        # Deviation: docs/deviations.md#action-time-is-measured-exactly
        quota.total_charged_ns += ctx.clock.now() - begin
        for size, sz_applied in zip(sizes.tolist(), applied.tolist(), strict=True):
            damos_charge_quota(quota, size, sz_applied)
        if damos_quota_is_full(quota, ctx.min_region_sz):
            quota.charge_target_from = t
            quota.charge_addr_from = int(regions.end[rows[-1]])
    if s.action is not damos_action.DAMOS_STAT:
        regions.age[rows] = regions.unknown_age[rows] = 0
    stat = s.stat
    stat.nr_tried += len(rows)
    stat.sz_tried += int(sizes.sum())
    stat.nr_applied += int(np.count_nonzero(applied))
    stat.sz_applied += int(applied.sum())
    stat.sz_ops_filter_passed += int(passed.sum())


def _damos_is_over(s: damos) -> bool:
    """Return whether ``s`` has seen its maximum number of snapshots."""
    return bool(s.max_nr_snapshots) and s.max_nr_snapshots <= s.stat.nr_snapshots


def _damos_count_unknown(ctx: damon_ctx, t: damon_target, s: damos, nr_accesses: U32Array) -> None:
    """Count the memory of ``t`` that has the access pattern of ``s`` but is mostly unknown."""
    unknown = unknown_rows(t.regions, ctx)
    if unknown.any() and not _damos_is_over(s):
        unknown &= pattern_rows(t.regions, nr_accesses, s)
        s.stat.sz_unknown += int(t.regions.sizes()[unknown].sum())


def _damos_apply_to_all(ctx: damon_ctx, t: damon_target, s: damos, nr_accesses: U32Array) -> None:
    """Apply ``s``, which has neither quota nor core filters, to every region of ``t`` that it wants."""
    if _damos_is_over(s):
        return
    s.stat.nr_snapshots += 1
    s.core_filters_allowed = False
    rows = wanted_rows(ctx, t.regions, nr_accesses, s).nonzero()[0]
    _damos_apply_rows(ctx, t, rows, s, nr_accesses[rows])


class SchemeBatch:
    """Regions of a target that a scheme will be applied to together: its quota has room for all of them for sure.

    Their rows in the table do not change, because only later regions are cut.
    """

    def __init__(self, ctx: damon_ctx, t: damon_target, s: damos) -> None:
        self._ctx, self._t, self._s = ctx, t, s
        self._rows: list[int] = []
        self._nr_accesses: list[int] = []
        self._allowed = False
        self._charge = 0

    def damos_apply_scheme(self, row: int, nr_accesses: int) -> None:
        """Add a region, as far as the scheme's core filters and its quota allow.

        The region is cut where a filter begins or ends and where the quota ends; ``row`` is the part that was added.

        :param nr_accesses: the region's moving sum.
        """
        # Kernel: cuts by the quota first, so that memory which the filters reject is cut into pieces of the quota's
        # size. Here: filters first, because there may be a million of those pieces.
        # (docs/deviations.md#core-filters-come-before-the-quota)
        if damos_core_filter_out(self._ctx, self._t, row, self._s):
            return
        quota, regions = self._s.quota, self._t.regions
        limited = damos_quota_is_set(quota)
        size = int(regions.end[row]) - int(regions.start[row])
        allowed = self._s.core_filters_allowed
        if allowed != self._allowed or (limited and quota.charged_sz + self._charge + size > quota.esz):
            self.apply()
        if limited and quota.charged_sz + size > quota.esz:
            size = ALIGN_DOWN(max(quota.esz - quota.charged_sz, 0), self._ctx.min_region_sz)
            if not size:
                self._s.stat.nr_tried += 1
                return
            size = self._usable(int(regions.start[row]), size)
            if not size:
                quota.sz_unusable = quota.esz - quota.charged_sz
                quota.charge_target_from, quota.charge_addr_from = self._t, int(regions.start[row])
                return
            regions.split_at(row, size)
        self._rows.append(row)
        self._nr_accesses.append(nr_accesses)
        self._allowed = allowed
        self._charge += largest_charge(quota, size)
        if limited and quota.esz - quota.charged_sz - self._charge < max(self._ctx.min_region_sz, 1):
            # Charging shows whether the quota is full now.
            self.apply()

    def _usable(self, start: int, size: int) -> int:
        """How much of ``size`` from ``start`` on the operations set can use."""
        # Kernel: cuts wherever the quota ends, be it in the middle of a huge page. Here: between such pages, because
        # some actions cannot be applied to a part of one, and what was tried has to grow old again before the rest.
        # (docs/deviations.md#quotas-end-between-huge-pages)
        ctx = self._ctx
        whole = 1 if ctx.ops is None else ctx.ops.action_sz // ctx.addr_unit
        if whole <= 1 or self._s.quota.esz < 2 * whole or self._s.action is damos_action.DAMOS_STAT:
            return size
        return max(ALIGN_DOWN(start + size, whole) - start, 0)

    def apply(self) -> None:
        """Apply the scheme to all regions that were added since the last time."""
        rows, nr_accesses = np.array(self._rows, np.intp), np.array(self._nr_accesses, np.uint32)
        self._rows, self._nr_accesses, self._charge = [], [], 0
        self._s.core_filters_allowed = self._allowed
        _damos_apply_rows(self._ctx, self._t, rows, self._s, nr_accesses)


def _damos_has_pattern(regions: Regions, row: int, nr_accesses: int, s: damos) -> bool:
    """:func:`kdamon.damos_filters.pattern_rows` of one region."""
    pattern = s.pattern
    return (
        pattern.min_sz_region <= int(regions.end[row]) - int(regions.start[row]) <= pattern.max_sz_region
        and pattern.min_nr_accesses <= nr_accesses <= pattern.max_nr_accesses
        and pattern.min_age_region <= int(regions.age[row]) <= pattern.max_age_region
    )


def _damos_apply_by_region(ctx: damon_ctx, t: damon_target, s: damos, nr_accesses: U32Array) -> None:
    """Apply ``s`` to the regions of ``t`` one after another (``damon_do_apply_schemes()`` for one scheme)."""
    regions, quota = t.regions, s.quota
    scores = region_scores(ctx, t, s) if damos_quota_is_set(quota) else None
    worth = known_rows(ctx, regions, s)
    if scores is not None:
        worth &= scores >= quota.min_score
    visit = pattern_rows(regions, nr_accesses, s) & worth
    if s.core_filters:
        visit &= core_filter_candidates(ctx, t, s)
    if quota.charge_target_from is not None:
        charged_to = np.uint64(quota.charge_addr_from)
        visit |= (regions.start < charged_to) & (charged_to < regions.end)
    visit[-1] = True
    enough = len(regions) + ctx.attrs.max_nr_regions
    batch = SchemeBatch(ctx, t, s)
    for first, row in for_each_part(regions, visit.nonzero()[0].tolist()):
        if damos_quota_is_full(quota, ctx.min_region_sz):
            break
        if damos_skip_charged_region(t, row, s, ctx.min_region_sz):
            continue
        if _damos_is_over(s):
            continue
        accesses = int(nr_accesses[first])
        if worth[first] and _damos_has_pattern(regions, row, accesses, s):
            batch.damos_apply_scheme(row, accesses)
        if row == len(regions) - 1:
            s.stat.nr_snapshots += 1
        elif len(regions) > enough:
            # Kernel: goes on, be it for a million parts that the action cannot be applied to and that are charged with
            # next to nothing. Here: the next pass goes on, so that this one comes to an end.
            # (docs/deviations.md#a-pass-cuts-off-a-limited-number-of-parts)
            batch.apply()
            quota.charge_target_from = t
            quota.charge_addr_from = int(regions.end[row])
            return
    batch.apply()


def _damos_apply_target(ctx: damon_ctx, t: damon_target, active: list[damos], max_region_sz: int) -> None:
    valid = ctx.ops is None or ctx.ops.target_valid is None or ctx.ops.target_valid(t)
    if not valid or not len(t.regions):
        for s in active:
            # Kernel: only for targets that are not valid. Here: also where nothing is mapped, because the scheme would
            # wait for the last region of that target for ever. (docs/deviations.md#gaps-are-not-advised)
            forget_charged_target(s, t)
        return
    for s in active:
        nr_accesses = damon_nr_accesses_mvsum(t.regions, ctx)
        _damos_count_unknown(ctx, t, s, nr_accesses)
        if s.core_filters or damos_quota_is_set(s.quota):
            _damos_apply_by_region(ctx, t, s, nr_accesses)
        else:
            _damos_apply_to_all(ctx, t, s, nr_accesses)
    merge_equal(t.regions, max_region_sz)


def is_due(ctx: damon_ctx, s: damos) -> bool:
    """Return whether ``s`` is to be applied now, if it is active."""
    return time_after_eq(ctx.passed_sample_intervals, s.next_apply_sis)


def kdamond_apply_schemes(ctx: damon_ctx) -> None:
    """Apply every scheme that is due to the regions that it wants.

    Kernel: region by region, every scheme on each; a part that a later scheme cuts off is shown to the earlier ones
    once more, and counted twice. Here: scheme by scheme, all regions of a target each.
    (docs/deviations.md#scheme-by-scheme)
    """
    due = [s for s in ctx.schemes if is_due(ctx, s)]
    active = [s for s in due if s.wmarks.activated]
    if not active:
        if not any(s.wmarks.activated for s in ctx.schemes):
            # Kernel: a walk waits until a scheme is activated, for ever if need be. Here: it is canceled, as it is
            # where the watermarks are checked in intervals. (docs/deviations.md#waiting-for-watermarks)
            damos_walk_cancel(ctx)
        return
    for s in active:
        damos_adjust_quota(ctx, s)
    max_region_sz = damon_region_sz_limit(ctx)
    with ctx.walk_control_lock:
        for t in ctx.adaptive_targets:
            _damos_apply_target(ctx, t, active, max_region_sz)
        for s in due:
            _damos_walk_complete(ctx, s)
            damos_set_next_apply_sis(s, ctx)
            if trace.damos_stat_after_apply_interval.enabled():
                trace.damos_stat_after_apply_interval(ctx, s)


# Walks.


def _damos_walk_call_walk(ctx: damon_ctx, t: damon_target, s: damos, region: damon_region, sz_passed: int) -> None:
    control = ctx.walk_control
    assert control is not None
    if not control.canceled:
        control.walk_fn(control.data, ctx, t, region, s, sz_passed)


def damos_walk(ctx: damon_ctx, control: damos_walk_control) -> None:
    """Call ``control.walk_fn`` for each region that the schemes try in their next application, and wait for it.

    :raises OSError: ECANCELED the kdamond does not run, ended, is paused or has no scheme; EBUSY another walk goes on,
        or the kdamond is blocked.
    """
    control.completion.clear()
    control.canceled = False
    # It is held while schemes are applied.
    if not wait_for_kdamond(ctx, lambda seconds: ctx.walk_control_lock.acquire(timeout=seconds)):
        raise held_up_error(ctx)
    try:
        if ctx.walk_control_obsolete:
            raise OSError(errno.ECANCELED, "the kdamond does not run, so no regions can be walked")
        if ctx.walk_control is not None:
            raise OSError(errno.EBUSY, "another walk of the regions is still under way")
        ctx.walk_control = control
    finally:
        ctx.walk_control_lock.release()
    interrupt(ctx)
    if not wait_for_kdamond(ctx, control.completion.wait):
        # The kdamond holds the lock, and completes the walk when it continues.
        control.canceled = True
        raise held_up_error(ctx)
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
        # (docs/deviations.md#a-canceled-walk-leaves-no-marks)
        for s in ctx.schemes:
            s.walk_completed = False
    control.canceled = True
    control.completion.set()
