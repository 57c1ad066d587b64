# SPDX-License-Identifier: GPL-2.0-only
"""The data access monitor's core (``mm/damon/core.c``): contexts, kdamond, regions adjustment, attributes, calls."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from attrs import evolve

from kdamon import trace
from kdamon.apply_reports import (
    choose_reports,
    discard_reports,
    kdamond_apply_zero_access_report,
    kdamond_check_reported_accesses,
    report_counters,
)
from kdamon.arrays import Indexes, Mask, U32Array, U64Array
from kdamon.damon import (
    damon_addr_range,
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_nr_samples_per_aggr,
    damon_operations,
    damon_ops_id,
    damon_region,
    damon_region_sz_limit,
    damon_target,
    damos,
    damos_access_pattern,
    damos_action,
    damos_quota,
    damos_watermarks,
    no_op,
)
from kdamon.damos import (
    damon_commit_schemes,
    damos_set_next_apply_sis,
    damos_walk,
    damos_walk_cancel,
    init_scheme,
    is_due,
    kdamond_apply_schemes,
)
from kdamon.damos_quota import check_goals, damon_feed_loop_next_input, forget_charged_target
from kdamon.damos_wmarks import damos_wmark_wait_us
from kdamon.density.estimator import adjust_regions_by_density, forget_density
from kdamon.intervals import interrupt, is_wanted, quiet_intervals, rest
from kdamon.kernel import (
    ALIGN,
    ALIGN_DOWN,
    NSEC_PER_USEC,
    UINT_MAX,
    VirtualClock,
    VirtualKthread,
    is_power_of_2,
    kthread,
    kthread_stop,
    mult_frac,
    rnd_state,
    time_after_eq,
    ulong,
)
from kdamon.lib.file_limit import files_ran_out, too_many_files
from kdamon.probes import (
    damon_commit_probes,
    damon_has_probe_weights,
    damon_valid_probe_params,
    has_prep,
    probe_weights,
)
from kdamon.region_merge import merge_similar
from kdamon.regions import COLUMNS, Regions, mostly_unknown
from kdamon.reports.deliver import subscribe_reports, unsubscribe_reports
from kdamon.reports.queue import ReportQueue
from kdamon.sample_control import damon_commit_sample_control
from kdamon.wait_limits import held_up_error, wait_for_kdamond

__all__ = [
    "damon_add_region",
    "damon_add_scheme",
    "damon_add_target",
    "damon_apply_min_nr_regions",
    "damon_call",
    "damon_commit_ctx",
    "damon_commit_target_regions",
    "damon_destroy_ctx",
    "damon_destroy_target",
    "damon_feed_loop_next_input",
    "damon_is_registered_ops",
    "damon_is_running",
    "damon_kdamond_pid",
    "damon_merge_regions_of",
    "damon_new_ctx",
    "damon_new_region",
    "damon_new_scheme",
    "damon_new_target",
    "damon_rand",
    "damon_register_ops",
    "damon_select_ops",
    "damon_set_attrs",
    "damon_set_regions",
    "damon_set_schemes",
    "damon_start",
    "damon_stop",
    "damon_update_region_access_rate",
    "damos_walk",
    "kdamond_fn",
    "kdamond_merge_regions",
    "kdamond_reset_aggregated",
    "kdamond_split_regions",
    "load_operations",
    "report_counters",
    "run_ctx",
    "validate_ctx",
    "validate_regions",
    "wait_end",
]

log = logging.getLogger("kdamon")


damon_lock = threading.Lock()
#: The number of running kdamonds (nr_ctxs), and whether they run exclusively.
#: Deviation: docs/deviations.md#exclusive-within-one-kdamon
_running: dict[str, int] = {"nr_ctxs": 0, "exclusive": False}

damon_ops_lock = threading.Lock()
damon_registered_ops: dict[damon_ops_id, damon_operations] = {}
#: Modules of operations sets that were not imported yet. Kernel: each registers its sets when it is initialized.
#: Here: it has them as OPERATIONS and is imported, and these are registered, when one of them is selected.
#: (docs/deviations.md#operations-sets-register-when-selected)
_ops_modules: dict[damon_ops_id, str] = {
    damon_ops_id.DAMON_OPS_VADDR: "kdamon.vaddr",
    damon_ops_id.DAMON_OPS_FVADDR: "kdamon.vaddr",
    damon_ops_id.DAMON_OPS_PADDR: "kdamon.paddr",
    damon_ops_id.DAMON_OPS_REPORTS: "kdamon.ops_reports",
}


#: Seconds that kdamonds may take to end.
_END: Final = 20.0


# Operations sets.


def damon_is_registered_ops(ops_id: damon_ops_id) -> bool:
    """Return whether the operations set ``ops_id`` can be selected."""
    with damon_ops_lock:
        return ops_id in damon_registered_ops or ops_id in _ops_modules


def load_operations() -> None:
    """Register the operations sets of this package now, for a process that gives up the right to read its modules."""
    with damon_ops_lock:
        for ops_id in list(_ops_modules):
            _load_ops(ops_id)


def _load_ops(ops_id: damon_ops_id) -> None:
    """Register the operations sets of the module that has ``ops_id``; the caller holds damon_ops_lock."""
    name = _ops_modules.get(ops_id)
    if name is None:
        return
    for ops in importlib.import_module(name).OPERATIONS:
        damon_registered_ops[ops.id] = ops
        del _ops_modules[ops.id]


def damon_register_ops(ops: damon_operations) -> None:
    """Make ``ops`` selectable under its id.

    :raises OSError: EINVAL the id is unknown or taken.
    """
    with damon_ops_lock:
        if ops.id not in list(damon_ops_id) or ops.id in damon_registered_ops or ops.id in _ops_modules:
            raise OSError(errno.EINVAL, f"operations set {ops.id!r} is unknown or registered already")
        damon_registered_ops[ops.id] = ops


def damon_select_ops(ctx: damon_ctx, ops_id: damon_ops_id) -> None:
    """Let ``ctx`` be monitored by the operations set ``ops_id``.

    :raises OSError: EINVAL there is no such set.
    """
    with damon_ops_lock:
        _load_ops(ops_id)
        ops = damon_registered_ops.get(ops_id)
    if ops is None:
        raise OSError(errno.EINVAL, f"operations set {ops_id!r} is not registered")
    ctx.ops = ops


# Random numbers.


_32 = np.uint64(32)
_LOW_32 = np.uint64(UINT_MAX)


def damon_rand(ctx: damon_ctx, left: U64Array, span: U64Array, wide: bool) -> U64Array:
    """One random number in [left, left + span) for each row, shape (n,).

    The multiply-shift method of the kernel: 32 random bits for spans of up to 32 bits, 64 for wider ones. The kernel
    takes the upper bound; the table has the size at hand.

    :param left: lower bounds, shape (n,) or one number.
    :param span: how many numbers there are to choose from, shape (n,).
    :param wide: whether any span exceeds 32 bits.
    """
    n = len(span)
    if not wide:
        narrow: U64Array = ctx.rnd.u32(n) * span
        narrow >>= _32
        narrow += left
        return narrow
    # The upper half of a 64 by 64 bit product, from 32-bit halves.
    raw = ctx.rnd.u64(n)
    high, low, span_high, span_low = raw >> _32, raw & _LOW_32, span >> _32, span & _LOW_32
    middle = high * span_low + (low * span_low >> _32)
    carry = (middle & _LOW_32) + low * span_high
    return left + high * span_high + (middle >> _32) + (carry >> _32)


# Regions, targets, contexts.


def damon_new_region(start: int, end: int) -> damon_region:
    """A region [start, end) without any results."""
    return damon_region(damon_addr_range(start, end))


def damon_add_region(r: damon_region, t: damon_target) -> None:
    """Append ``r`` to the regions of ``t``."""
    t.regions.append(r)


def damon_set_regions(t: damon_target, ranges: Sequence[damon_addr_range], min_region_sz: int) -> None:
    """Make ``t`` cover exactly ``ranges``; memory that stays covered keeps its results.

    :param ranges: ascending, disjoint after rounding outwards to ``min_region_sz``.
    :raises OSError: EINVAL a range is empty, or overlaps or precedes the one before; nothing is changed then.
    """
    aligned = _aligned_ranges(ranges, min_region_sz)
    regions = t.regions
    if len(regions):
        # Step 1: remove the regions that no range touches.
        starts = np.array([r.start for r in ranges], np.uint64)
        ends = np.array([r.end for r in ranges], np.uint64)
        touched = np.searchsorted(ends, regions.start, "right") < np.searchsorted(starts, regions.end, "left")
        regions.keep(touched)
    if not len(regions):
        t.regions = Regions([a for a, _ in aligned], [b for _, b in aligned])
        return

    # Step 2: fit the rest to the ranges, fill the holes.
    parts: list[tuple[Indexes, U64Array, U64Array]] = []
    at = 0
    for r, (start, end) in zip(ranges, aligned, strict=True):
        first = max(at, int(np.searchsorted(regions.end, np.uint64(r.start), "right")))
        at = max(first, int(np.searchsorted(regions.start, np.uint64(r.end), "left")))
        parts.append(_fit_regions(regions, first, at, start, end))
    rows, starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    regions.rebuild(rows, starts, ends)


def _aligned_ranges(ranges: Sequence[damon_addr_range], min_region_sz: int) -> list[tuple[int, int]]:
    """``ranges``, rounded outwards to ``min_region_sz``.

    :raises OSError: EINVAL as :func:`damon_set_regions`.
    """
    aligned: list[tuple[int, int]] = []
    for r in ranges:
        start, end = ALIGN_DOWN(r.start, min_region_sz), ulong(ALIGN(r.end, min_region_sz))
        if start >= end:
            raise OSError(errno.EINVAL, f"region {r.start:#x}-{r.end:#x} is empty in units of {min_region_sz} bytes")
        if aligned and aligned[-1][1] > start:
            raise OSError(errno.EINVAL, f"region {r.start:#x}-{r.end:#x} overlaps or precedes the one before")
        aligned.append((start, end))
    return aligned


def _fit_regions(regions: Regions, first: int, stop: int, start: int, end: int) -> tuple[Indexes, U64Array, U64Array]:
    """Fit the rows from ``first`` to before ``stop`` to [start, end), with a new region in each hole.

    :returns: for each region its row, -1 for a new one, its start and its end, as for :meth:`Regions.rebuild`.
    """
    if first == stop:
        return np.array([-1], np.intp), np.array([start], np.uint64), np.array([end], np.uint64)
    rows = np.arange(first, stop, dtype=np.intp)
    starts, ends = regions.start[first:stop].copy(), regions.end[first:stop].copy()
    starts[0], ends[-1] = start, end
    holes = np.nonzero(ends[:-1] != starts[1:])[0]
    if len(holes):
        hole_start, hole_end = ends[holes], starts[holes + 1]
        rows = np.insert(rows, holes + 1, -1)
        starts = np.insert(starts, holes + 1, hole_start)
        ends = np.insert(ends, holes + 1, hole_end)
    return rows, starts, ends


def damon_new_target() -> damon_target:
    """A target without a process and without regions."""
    return damon_target()


def damon_add_target(ctx: damon_ctx, t: damon_target) -> None:
    """Append ``t`` to the targets of ``ctx``."""
    ctx.adaptive_targets.append(t)


def damon_destroy_target(t: damon_target, ctx: damon_ctx | None) -> None:
    """Remove ``t`` from ``ctx`` (None: it is in none) and release its resources."""
    if ctx is not None:
        ctx.adaptive_targets.remove(t)
        for s in ctx.schemes:
            forget_charged_target(s, t)
        if ctx.ops is not None:
            ctx.ops.cleanup_target(t)
    _put_task(t)


def _put_task(t: damon_target) -> None:
    if t.task is not None:
        t.task.put()
        t.task = None


def damon_new_ctx(seed: int | None = None) -> damon_ctx:
    """A context with the default attributes: 5 ms, 100 ms, 60 s, 10 to 1000 regions.

    :param seed: makes everything random in the context repeatable.
    """
    return damon_ctx(rnd=rnd_state(seed))


def damon_destroy_ctx(ctx: damon_ctx) -> None:
    """Release the resources of the targets and schemes of ``ctx``, which must not run."""
    for t in list(ctx.adaptive_targets):
        damon_destroy_target(t, ctx)
    while ctx.replaced_tasks:
        ctx.replaced_tasks.pop().put()
    ctx.schemes = []


def damon_new_scheme(
    pattern: damos_access_pattern,
    action: damos_action,
    *,
    apply_interval_us: int = 0,
    quota: damos_quota | None = None,
    wmarks: damos_watermarks | None = None,
    target_nid: int = -1,
) -> damos:
    """A scheme: apply ``action`` to regions with the access pattern ``pattern``.

    :param apply_interval_us: time between applications, microseconds; 0 is the aggregation interval.
    :param quota: limits of what it does; default is none.
    :param wmarks: when it is active; default is always.
    :param target_nid: NUMA node that ``migrate_*`` move memory to.
    """
    return damos(
        pattern=pattern,
        action=action,
        apply_interval_us=apply_interval_us,
        quota=damos_quota() if quota is None else quota,
        wmarks=damos_watermarks() if wmarks is None else wmarks,
        target_nid=target_nid,
    )


def damon_add_scheme(ctx: damon_ctx, s: damos) -> None:
    """Append ``s`` to the schemes of ``ctx``."""
    ctx.schemes.append(s)
    init_scheme(s, ctx)


def damon_set_schemes(ctx: damon_ctx, schemes: Sequence[damos]) -> None:
    """Replace the schemes of ``ctx``."""
    ctx.schemes = []
    for s in schemes:
        damon_add_scheme(ctx, s)


# Attributes.


def _convert(counts: npt.NDArray[Any], old: int, new: int) -> U32Array:
    """Convert counts of ``old`` samples to counts of ``new`` samples, through 1/10000 as in the kernel."""
    whole, part = np.divmod(counts.astype(np.uint64), np.uint64(old))
    bp = whole * np.uint64(10000) + part * np.uint64(10000) // np.uint64(old)
    return (bp * np.uint64(new) // np.uint64(10000)).astype(np.uint32)


def damon_update_monitoring_results(ctx: damon_ctx, new: damon_attrs, aggregating: bool) -> None:
    """Convert the results under ``ctx.attrs`` to the intervals of ``new``.

    A count means little without its maximum, the samples of an aggregation interval, and an age counts intervals: both
    would be wrong by the ratio of the intervals. Counts of an unfinished interval mix both lengths and are dropped.

    :param aggregating: an aggregation interval is under way.
    """
    old = ctx.attrs
    if not (old.sample_interval and old.aggr_interval and new.sample_interval and new.aggr_interval):
        return
    old_max, new_max = damon_nr_samples_per_aggr(old), damon_nr_samples_per_aggr(new)
    old_aggr, new_aggr = np.uint64(old.aggr_interval), np.uint64(new.aggr_interval)
    for t in ctx.adaptive_targets:
        regions = t.regions
        regions.last_nr_accesses = _convert(regions.last_nr_accesses, old_max, new_max)
        if regions.mean_accesses is not None:
            regions.mean_accesses = None if aggregating else regions.mean_accesses * (new_max / old_max)
        if aggregating:
            regions.nr_accesses = np.zeros(len(regions), np.uint32)
            regions.nr_unknown = np.zeros(len(regions), np.uint32)
        else:
            regions.nr_accesses = _convert(regions.nr_accesses, old_max, new_max)
            regions.nr_unknown = _convert(regions.nr_unknown, old_max, new_max)
        regions.last_nr_unknown = _convert(regions.last_nr_unknown, old_max, new_max)
        regions.age = (regions.age * old_aggr // new_aggr).astype(np.uint32)
        regions.unknown_age = (regions.unknown_age * old_aggr // new_aggr).astype(np.uint32)
        if regions.probe_hits is not None and regions.last_probe_hits is not None:
            # Kernel: hits of removed probes stay as they are. Here: they are converted, too, as they are never shown.
            # (docs/deviations.md#hits-of-removed-probes)
            regions.last_probe_hits = _convert(regions.last_probe_hits, old_max, new_max).astype(np.uint8)
            now = np.zeros_like(regions.probe_hits) if aggregating else _convert(regions.probe_hits, old_max, new_max)
            regions.probe_hits = now.astype(np.uint8)


def _damon_valid_intervals_goal(attrs: damon_attrs) -> bool:
    goal = attrs.intervals_goal
    if not goal.aggrs:
        return True
    return goal.min_sample_us <= attrs.sample_interval <= goal.max_sample_us


def damon_set_attrs(ctx: damon_ctx, attrs: damon_attrs) -> None:
    """Set the monitoring attributes; results found so far are converted to the new intervals.

    To be called while ``ctx`` does not run, or in its kdamond. ``attrs.aggr_samples`` is filled in if it is 0.

    :raises OSError: EINVAL the sampling interval is outside of the intervals goal's bounds, fewer than 3 regions, more
        regions at least than at most, or a sampling interval longer than the aggregation interval.
    """
    aggregating = not time_after_eq(ctx.passed_sample_intervals, ctx.next_aggregation_sis)
    if not _damon_valid_intervals_goal(attrs):
        raise OSError(errno.EINVAL, "the sampling interval must lie between the intervals goal's min and max")
    if attrs.min_nr_regions < 3:
        raise OSError(errno.EINVAL, "the minimum number of regions must be at least 3")
    if attrs.min_nr_regions > attrs.max_nr_regions:
        raise OSError(errno.EINVAL, "the minimum number of regions must not exceed the maximum")
    if attrs.sample_interval > attrs.aggr_interval:
        raise OSError(errno.EINVAL, "the sampling interval must not exceed the aggregation interval")
    sample = attrs.sample_interval or 1
    if not attrs.aggr_samples:
        attrs.aggr_samples = attrs.aggr_interval // sample
    ctx.next_aggregation_sis = ctx.passed_sample_intervals + attrs.aggr_interval // sample
    ctx.next_ops_update_sis = ctx.passed_sample_intervals + attrs.ops_update_interval // sample
    damon_update_monitoring_results(ctx, attrs, aggregating)
    ctx.attrs = evolve(attrs, intervals_goal=evolve(attrs.intervals_goal))
    for s in ctx.schemes:
        damos_set_next_apply_sis(s, ctx)


# Commit.


def _damon_attrs_equals(a: damon_attrs, b: damon_attrs) -> bool:
    return evolve(a, aggr_samples=0) == evolve(b, aggr_samples=0)


def damon_commit_target_regions(dst: damon_target, src: damon_target, min_region_sz: int) -> None:
    """Make ``dst`` cover what ``src`` covers; a source without regions changes nothing.

    :raises OSError: EINVAL as :func:`damon_set_regions`.
    """
    regions = src.regions
    if not len(regions):
        return
    apart = regions.end[:-1] != regions.start[1:]
    starts = np.concatenate((regions.start[:1], regions.start[1:][apart]))
    ends = np.concatenate((regions.end[:-1][apart], regions.end[-1:]))
    ranges = [damon_addr_range(a, b) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    damon_set_regions(dst, ranges, min_region_sz)


def _damon_commit_target(dst: damon_target, src: damon_target, min_region_sz: int, dry_run: bool) -> None:
    damon_commit_target_regions(dst, src, min_region_sz)
    if not dry_run and src.task is not None:
        # The source gives its reference away instead of both holding one: it is destroyed after the commit.
        # (docs/deviations.md#a-commit-hands-over-process-references)
        dst.task, src.task = src.task, dst.task
        dst.looked_at = None
    dst.pid = src.pid


def _damon_commit_targets(dst: damon_ctx, src: damon_ctx, dry_run: bool) -> None:
    before = list(dst.adaptive_targets)
    for i, mine in enumerate(before):
        theirs = src.adaptive_targets[i] if i < len(src.adaptive_targets) else None
        if theirs is not None and not theirs.obsolete:
            _damon_commit_target(mine, theirs, src.min_region_sz, dry_run)
        else:
            if not dry_run and mine.task is not None:
                src.replaced_tasks.append(mine.task)
                mine.task = None
            damon_destroy_target(mine, dst)
    for theirs in src.adaptive_targets[len(before) :]:
        if theirs.obsolete:
            raise OSError(errno.EINVAL, "a target to remove has no counterpart among the monitored ones")
        new = damon_new_target()
        _damon_commit_target(new, theirs, src.min_region_sz, dry_run)
        damon_add_target(dst, new)


def _damon_commit_ctx(dst: damon_ctx, src: damon_ctx, dry_run: bool) -> None:
    dst.maybe_corrupted = True
    if not is_power_of_2(src.min_region_sz):
        raise OSError(errno.EINVAL, f"the smallest region, {src.min_region_sz}, is not a power of two")
    damon_valid_probe_params(src)
    damon_commit_schemes(dst, src)
    # Targets before attributes: damon_set_attrs() converts the results of the targets.
    _damon_commit_targets(dst, src, dry_run)
    if not _damon_attrs_equals(dst.attrs, src.attrs):
        damon_set_attrs(dst, src.attrs)
    dst.pause = src.pause
    dst.ops = src.ops
    damon_commit_probes(dst, src)
    dst.addr_unit = src.addr_unit
    dst.min_region_sz = src.min_region_sz
    dst.report_counts = src.report_counts
    if dst.density and not src.density:
        forget_density(dst)
    dst.density = src.density
    damon_commit_sample_control(dst.sample_control, src.sample_control)
    dst.maybe_corrupted = False


def _damon_new_test_ctx(dst: damon_ctx) -> damon_ctx:
    test = damon_new_ctx()
    _damon_commit_ctx(test, dst, dry_run=True)
    return test


def damon_commit_ctx(dst: damon_ctx, src: damon_ctx) -> None:
    """Make the parameters of ``dst`` those of ``src`` and keep its results; ``src`` is to be destroyed afterwards.

    Everything is tried on a copy first: when it fails, nothing was changed. To be called in the kdamond of a running
    ``dst`` (:func:`kdamon.commit.call_commit`).

    Kernel: puts the processes that ``dst`` monitors no more. Here: ``src`` gets them, and they are put when that is
    destroyed: to let a process go can take long, and the kdamond goes on sampling meanwhile.
    (docs/deviations.md#a-commit-hands-over-process-references)

    :raises OSError: EINVAL as :func:`damon_set_attrs` and :func:`damon_set_regions`; a removed target that is not
        there; a smallest region that is not a power of two; a goal that the operations set cannot measure; what
        :func:`kdamon.damos.damon_commit_schemes` and :func:`kdamon.probes.damon_valid_probe_params` raise.
    """
    # Not of dst, which may have got such a goal without the others: this commit may be the one that takes it back.
    check_goals(src)
    _damon_commit_ctx(_damon_new_test_ctx(dst), src, dry_run=True)
    _damon_commit_ctx(dst, src, dry_run=False)
    if dst.reports is not None:
        # Reports on a new target count as soon as the caller knows of the target.
        choose_reports(dst)


# Minimum number of regions.


def damon_apply_min_nr_regions(ctx: damon_ctx) -> int:
    """Cut regions that are too large for ``min_nr_regions`` of them; returns the size limit, core address units.

    The limit also holds for merges: otherwise an idle address space would become one region, and a small hot part of
    it would need many random cuts to appear again."""
    max_region_sz = ALIGN(damon_region_sz_limit(ctx), ctx.min_region_sz)
    for t in ctx.adaptive_targets:
        t.regions.split_max(max_region_sz)
    return max_region_sz


# Start and stop.


def _damon_start(ctx: damon_ctx) -> None:
    with ctx.kdamond_lock:
        if ctx.kdamond is not None:
            raise OSError(errno.EBUSY, "this context is monitored already")
        ctx.kdamond_started.clear()
        ctx.kdamond_error = None
        # Known before it runs: it looks at ctx.kdamond itself.
        ctx.kdamond = kthread(_kdamond_main, ctx, f"kdamond.{_running['nr_ctxs']}")
        try:
            ctx.kdamond.start()
        except OSError:
            ctx.kdamond = None
            raise
        ctx.kdamond_started.wait()


def _check_parameters(ctx: damon_ctx) -> None:
    """Raise what a commit of ``ctx`` to a new context raises."""
    check_goals(ctx)
    _damon_commit_ctx(damon_new_ctx(), ctx, dry_run=True)


def damon_start(ctxs: Sequence[damon_ctx], exclusive: bool) -> None:
    """Start a kdamond for each of ``ctxs``.

    :param exclusive: refuse if any kdamond runs, and let no other start while these run.
    :raises OSError: EBUSY exclusive use forbids it, or one of them runs; EINVAL as :func:`damon_commit_ctx`.
    """
    for ctx in ctxs:
        _check_parameters(ctx)
    started: list[damon_ctx] = []
    try:
        with damon_lock:
            if (exclusive and _running["nr_ctxs"]) or (not exclusive and _running["exclusive"]):
                raise OSError(
                    errno.EBUSY,
                    "another kdamond is running; stop it before you start an exclusive module (or the reverse)",
                )
            for ctx in ctxs:
                _damon_start(ctx)
                started.append(ctx)
                _running["nr_ctxs"] += 1
            if exclusive and _running["nr_ctxs"]:
                _running["exclusive"] = True
    except OSError:
        with contextlib.suppress(OSError):
            damon_stop(started)
        raise


def run_ctx(ctx: damon_ctx, seconds: float) -> None:
    """Monitor ``ctx`` in simulated time, in the calling thread, for ``seconds`` of it.

    :raises OSError: EBUSY it is monitored already; EINVAL its clock is not virtual, or as :func:`damon_commit_ctx`.
    """
    clock = ctx.clock
    if not isinstance(clock, VirtualClock):
        raise OSError(errno.EINVAL, "only a context with a virtual clock can run in simulated time")
    _check_parameters(ctx)
    clock.end = clock.now() + round(seconds * 1e9)
    with ctx.kdamond_lock:
        if ctx.kdamond is not None:
            raise OSError(errno.EBUSY, "this context is monitored already")
        ctx.kdamond_error = None
        ctx.kdamond = VirtualKthread(kdamond_fn, ctx, "kdamond", clock)
    ctx.kdamond.start()


def damon_stop(ctxs: Sequence[damon_ctx]) -> None:
    """Stop the kdamonds of ``ctxs`` and wait for their end.

    :raises OSError: EBUSY one of them does not end in time; it will end as soon as it can.
    """
    # Kernel: damon_stop() waits for as long as it takes. Here: for some seconds, because a kdamond may wait for the
    # process that it monitors, and that may be hostile. (docs/deviations.md#stopping-has-a-time-limit)
    kdamonds = []
    for ctx in ctxs:
        with ctx.kdamond_lock:
            if ctx.kdamond is not None:
                kdamonds.append(ctx.kdamond)
    if lingering := kthread_stop(kdamonds, _END):
        places = "; ".join(kdamond.where() for kdamond in lingering)
        names = " and ".join(kdamond.name for kdamond in lingering)
        raise OSError(
            errno.EBUSY, f"{names} did not end within {_END:g} seconds; it will end as soon as it can ({places})"
        )


def damon_is_running(ctx: damon_ctx) -> bool:
    """Return whether ``ctx`` has a kdamond."""
    with ctx.kdamond_lock:
        return ctx.kdamond is not None


def damon_kdamond_pid(ctx: damon_ctx) -> int:
    """Thread id of the kdamond of ``ctx``.

    :raises OSError: EINVAL it has none.
    """
    with ctx.kdamond_lock:
        if ctx.kdamond is None:
            raise OSError(errno.EINVAL, "this context is not being monitored")
        return ctx.kdamond.pid


# Calls.


def damon_call(ctx: damon_ctx | None, control: damon_call_control) -> None:
    """Let the kdamond of ``ctx`` call ``control.fn(control.data)`` between two sampling intervals.

    Waits for the call unless it is to be repeated.

    :raises OSError: EINVAL no context; ECANCELED its kdamond does not run (any more); EBUSY it is blocked, and calls
        ``fn`` no more unless it does so now; what ``fn`` raised.
    """
    if ctx is None:
        raise OSError(errno.EINVAL, "there is no context to call a function for")
    control.completion.clear()
    control.canceled = False
    control.error = None
    with ctx.call_controls_lock:
        obsolete = ctx.call_controls_obsolete
        if not obsolete:
            ctx.call_controls.append(control)
    if not obsolete:
        if control.repeat:
            return
        interrupt(ctx)
        if not wait_for_kdamond(ctx, control.completion.wait):
            with ctx.call_controls_lock:
                control.canceled = True
            raise held_up_error(ctx)
    if obsolete or control.canceled:
        wait_end(ctx)
        raise OSError(errno.ECANCELED, "the kdamond does not run")
    if control.error is not None:
        raise control.error


def wait_end(ctx: damon_ctx) -> None:
    """Wait until ``ctx``, whose kdamond is ending, has none, as a failed call promises, or its end is blocked."""
    with ctx.kdamond_lock:
        kdamond = ctx.kdamond
    if kdamond is not None:
        kdamond.join(_END)


def kdamond_call(ctx: damon_ctx, cancel: bool) -> None:
    """Make or cancel the requested calls."""
    if not ctx.call_controls:
        return
    rest(ctx)
    with ctx.call_controls_lock:
        controls, ctx.call_controls = ctx.call_controls, []
    keep: list[damon_call_control] = []
    for i, control in enumerate(controls):
        if ctx.maybe_corrupted and not cancel:
            keep += controls[i:]
            break
        if cancel:
            control.canceled = True
        elif not control.canceled:
            try:
                control.fn(control.data)
            except OSError as error:
                control.error = error
            except BaseException:
                # The kdamond ends by it: every waiting caller must wake up.
                with ctx.call_controls_lock:
                    ctx.call_controls = keep + controls[i:] + ctx.call_controls
                raise
            if control.repeat:
                keep.append(control)
        if not control.repeat or cancel:
            control.completion.set()
    with ctx.call_controls_lock:
        ctx.call_controls = keep + ctx.call_controls


# Aggregation.


def kdamond_reset_aggregated(ctx: damon_ctx) -> None:
    """Pass the complete counters to the tracepoint and start a new aggregation interval."""
    for i, t in enumerate(ctx.adaptive_targets):
        if trace.damon_aggregated.enabled():
            trace.damon_aggregated(ctx, i, t.regions)
        if ctx.probes and trace.damon_region_aggregated.enabled():
            trace.damon_region_aggregated(ctx, i, t.regions)
        t.regions.reset_aggregated()


def damon_get_intervals_score(ctx: damon_ctx) -> int:
    """Observed access events against the wanted ones, in 1/10000."""
    max_events = events = 0
    for t in ctx.adaptive_targets:
        sizes = t.regions.sizes()
        max_events += int(sizes.sum()) * ctx.attrs.aggr_samples
        events += int((sizes * t.regions.nr_accesses).sum())
    target_events = ulong(max_events) * ctx.attrs.intervals_goal.access_bp // 10000 or 1
    return mult_frac(ulong(events), 10000, target_events)


def damon_get_intervals_adaptation_bp(ctx: damon_ctx) -> int:
    """The factor by which the intervals should change, 5000 to 20000 in 1/10000."""
    adaptation = damon_feed_loop_next_input(100_000_000, damon_get_intervals_score(ctx)) // 10000
    return 5000 + adaptation // 2 if adaptation <= 10000 else adaptation


def kdamond_tune_intervals(ctx: damon_ctx) -> None:
    """Lengthen the intervals if too few accesses were observed, shorten them if too many.

    Too short intervals find no access in warm memory, too long ones find all memory equally hot: in between regions
    differ. The ratio of the intervals stays, so that the counts keep their resolution."""
    adaptation = damon_get_intervals_adaptation_bp(ctx)
    if adaptation == 10000:
        return
    goal = ctx.attrs.intervals_goal
    sample = min(goal.max_sample_us, ctx.attrs.sample_interval * adaptation // 10000)
    sample = max(goal.min_sample_us, sample)
    trace.damon_monitor_intervals_tune(ctx, sample)
    # Kernel: every tuning plans the next update of the operations set, and the next application of each scheme, a whole
    # interval of theirs ahead, so that they never come while tunings are more frequent. Here: they stay when they are,
    # because new mappings wait for the one and users for the other. A scheme without an interval of its own uses
    # the new aggregation interval. (docs/deviations.md#tuning-keeps-planned-updates)
    now, old_sample = ctx.passed_sample_intervals, ctx.attrs.sample_interval
    update_us = max(ctx.next_ops_update_sis - now, 0) * old_sample
    apply_us = [(s, max(s.next_apply_sis - now, 0) * old_sample) for s in ctx.schemes if s.apply_interval_us]
    damon_set_attrs(ctx, evolve(ctx.attrs, sample_interval=sample, aggr_interval=sample * ctx.attrs.aggr_samples))
    ctx.next_ops_update_sis = now + update_us // (sample or 1)
    for s, us in apply_us:
        s.next_apply_sis = now + us // (sample or 1)


# Merge and split.


def damon_merge_regions_of(
    t: damon_target,
    threshold: int,
    sz_limit: int,
    count_age: bool,
    weights: U32Array | None = None,
    *,
    nr_samples: int = UINT_MAX,
    unknown_apart: bool = True,
) -> None:
    """Merge neighbours of ``t`` with similar access frequencies, and let regions age.

    A region whose frequency changed begins a new age, because the age says for how long the pattern is stable. Counts
    and ages of merged regions are means weighted by size: small parts must not outweigh large ones.

    :param threshold: largest difference of nr_accesses to merge.
    :param sz_limit: largest region to make, core address units.
    :param weights: of the probes: compare their hits instead, see :meth:`kdamon.regions.Regions.merge_scores`.
    :param nr_samples: samples of each region in an aggregation interval, to find those that are mostly unknown.
    :param unknown_apart: merge these with each other only.
    """
    # Kernel: takes every sample. Here: regions of which most samples could not be taken do not become a part of others,
    # because they would be as cold as these. (docs/deviations.md#unknown-regions-merge-with-each-other)
    unknown = None
    # Cheaper than any(), of each target's few regions.
    if np.count_nonzero(t.regions.nr_unknown):
        rows = mostly_unknown(t.regions.nr_unknown, nr_samples)
        unknown = rows if np.count_nonzero(rows) else None
    if count_age:
        t.regions.count_age(threshold, weights, unknown)
    merge_similar(t.regions, threshold, sz_limit, weights, unknown, unknown_apart=unknown_apart)


def kdamond_merge_regions(ctx: damon_ctx, threshold: int, sz_limit: int) -> None:
    """Merge similar neighbours; with growing threshold if there are too many regions afterwards.

    The number of regions bounds the cost of monitoring, so ``max_nr_regions`` goes before accuracy."""
    weights = probe_weights(ctx)
    if ctx.density and weights is None and adjust_regions_by_density(ctx, sz_limit):
        return
    max_threshold = nr_samples = damon_nr_samples_per_aggr(ctx.attrs)
    if weights is not None:
        # Kernel: as for accesses, so that with large weights there stay more regions than max_nr_regions. Here: up to
        # the largest difference that there can be. (docs/deviations.md#the-merge-threshold-with-weights)
        max_threshold *= int(weights.sum(dtype=np.uint64))
    count_age = unknown_apart = True
    while True:
        for t in ctx.adaptive_targets:
            damon_merge_regions_of(
                t, threshold, sz_limit, count_age, weights, nr_samples=nr_samples, unknown_apart=unknown_apart
            )
        # There are too many: known regions may merge with unknown ones, too.
        count_age = unknown_apart = False
        nr_regions = sum(len(t.regions) for t in ctx.adaptive_targets)
        if nr_regions <= ctx.attrs.max_nr_regions or max_threshold <= threshold:
            break
        threshold = max(1, threshold * 2) if threshold < max_threshold // 2 else max_threshold


def damon_split_some_regions(ctx: damon_ctx, step: int) -> None:
    """Split one in every ``step`` regions, starting one region later each time.

    Close to the maximum there is no room to split all: rotation gives each region its turn."""
    offset = ctx.split_rotation % step
    ctx.split_rotation += 1
    before = 0
    for t in ctx.adaptive_targets:
        n = len(t.regions)
        among = np.arange(before, before + n) % step == offset
        t.regions.split_random(2, ctx.min_region_sz, ctx.rnd.u32, among)
        before += n


def kdamond_split_regions(ctx: damon_ctx) -> None:
    """Split regions at random places, so that the next interval can show differences between their parts.

    Parts that turn out alike merge again. The number of regions stays within the maximum."""
    if any(t.regions.density is not None for t in ctx.adaptive_targets):
        return  # done where the density of reports differs, together with the merge
    max_nr_regions = ctx.attrs.max_nr_regions
    nr_regions = sum(len(t.regions) for t in ctx.adaptive_targets)
    if nr_regions < max_nr_regions:
        if nr_regions > max_nr_regions // 2:
            damon_split_some_regions(ctx, max_nr_regions // (max_nr_regions - nr_regions))
        else:
            # Two parts do not find a different middle of a region: where splits into two changed nothing, try three.
            nr_subs = 3 if ctx.last_nr_regions == nr_regions and nr_regions < max_nr_regions // 3 else 2
            for t in ctx.adaptive_targets:
                t.regions.split_random(nr_subs, ctx.min_region_sz, ctx.rnd.u32)
    # Kernel: last_nr_regions and the rotation are static variables that all contexts share. Here: one per context,
    # because the number of regions of another context says nothing about this one.
    # (docs/deviations.md#split-state-per-context)
    ctx.last_nr_regions = nr_regions


# The kdamond.


def kdamond_need_stop(ctx: damon_ctx) -> bool:
    """Return whether to end: a stop was requested, or no target can be monitored any more."""
    if ctx.kdamond is not None and ctx.kdamond.should_stop():
        return True
    if ctx.ops is None or ctx.ops.target_valid is None:
        return False
    return not any(ctx.ops.target_valid(t) for t in ctx.adaptive_targets)


def kdamond_usleep(ctx: damon_ctx, usecs: int) -> None:
    """Sleep to the end of the present interval.

    Kernel: sleeps ``usecs`` from now, so that the work's time comes on top and every interval is late by it. Here:
    sleeps to the next multiple of the interval. When less than half of an interval is left, the work took too long:
    that interval is counted as missed and the sample lasts to the end of the next one, because a sample of a moment
    would see no access. (docs/deviations.md#deadlines-are-absolute) (docs/deviations.md#missed-intervals-are-counted)
    """
    interval = max(usecs, 1) * NSEC_PER_USEC
    now = ctx.clock.now()
    ctx.deadline += interval
    if ctx.deadline - now < interval // 2:
        missed = -(-(now + interval // 2 - ctx.deadline) // interval)
        ctx.missed_intervals += missed
        ctx.deadline += missed * interval
    assert ctx.kdamond is not None
    ctx.clock.sleep_until(ctx.deadline, ctx.kdamond.wake)


def kdamond_init_ctx(ctx: damon_ctx) -> None:
    """Set the counters of sampling intervals to the beginning."""
    sample = ctx.attrs.sample_interval or 1
    ctx.passed_sample_intervals = 0
    ctx.next_aggregation_sis = ctx.attrs.aggr_interval // sample
    ctx.next_ops_update_sis = ctx.attrs.ops_update_interval // sample
    ctx.next_intervals_tune_sis = ctx.next_aggregation_sis * ctx.attrs.intervals_goal.aggrs
    if not ctx.attrs.aggr_samples:
        ctx.attrs.aggr_samples = ctx.attrs.aggr_interval // sample
    for s in ctx.schemes:
        init_scheme(s, ctx)
    ctx.missed_intervals = ctx.nr_samples = ctx.nr_unknown = 0
    ctx.maybe_corrupted = False


def kdamond_fn(ctx: damon_ctx) -> None:
    """Monitor ``ctx`` until it is to be stopped: the kdamond."""
    with ctx.call_controls_lock:
        ctx.call_controls_obsolete = False
    with ctx.walk_control_lock:
        ctx.walk_control_obsolete = False
    wanted = partial(interrupt, ctx)
    ctx.reports = queue = ReportQueue(on_lane=wanted)
    assert ctx.kdamond is not None
    ctx.kdamond.interrupt = wanted
    try:
        kdamond_init_ctx(ctx)
        choose_reports(ctx)
        subscribe_reports(queue)
        ctx.kdamond_started.set()
        _kdamond_loop(ctx)
    except OSError as error:
        explained = too_many_files(error, "memory cannot be read") if files_ran_out(error) else error
        ctx.kdamond_error = explained
        if explained is error:
            raise
        raise explained from error
    # Deviation: docs/deviations.md#an-error-at-the-start-is-visible
    except BaseException as error:
        ctx.kdamond_error = error
        raise
    finally:
        ctx.kdamond_started.set()
        _kdamond_done(ctx)


def _kdamond_loop(ctx: damon_ctx) -> None:
    """Sample, aggregate and apply schemes, one sampling interval after another, until the kdamond has to end."""
    if ctx.ops is None:
        return
    ctx.ops.init(ctx)
    sz_limit = damon_apply_min_nr_regions(ctx)
    ctx.deadline = ctx.clock.now()
    while not kdamond_need_stop(ctx):
        if not kdamond_wait_activation(ctx):
            break
        ops = ctx.ops
        # A call may change the attributes: this iteration uses the values from its beginning.
        next_aggregation_sis = ctx.next_aggregation_sis
        next_ops_update_sis = ctx.next_ops_update_sis
        if not _kdamond_sample(ctx, ops):
            break
        aggregated = time_after_eq(ctx.passed_sample_intervals, next_aggregation_sis)
        if aggregated:
            sz_limit = _kdamond_merge_aggregated(ctx, sz_limit)
        if not _kdamond_serve(ctx):
            break
        if aggregated:
            _kdamond_aggregated(ctx, next_aggregation_sis)
        if time_after_eq(ctx.passed_sample_intervals, next_ops_update_sis):
            sample = ctx.attrs.sample_interval or 1
            ctx.next_ops_update_sis = next_ops_update_sis + ctx.attrs.ops_update_interval // sample
            rest(ctx)
            ops.update(ctx)


def _kdamond_sample(ctx: damon_ctx, ops: damon_operations) -> bool:
    """Sample the regions for one sampling interval, and count what was accessed and reported in it.

    :returns: False if the kdamond was woken before the interval was over: its samples do not count.
    """
    primitives = ctx.sample_control.primitives_enabled
    access_check_disabled = damon_has_probe_weights(ctx)
    sampling = (primitives.page_table or primitives.page_fault) and not access_check_disabled
    do_prep = ops.prep_probes is not no_op and has_prep(ctx)
    choose_reports(ctx)
    intervals = _Intervals(ctx)
    if sampling and not primitives.page_fault and (quiet := quiet_intervals(ctx, ops)):
        ops.sample_intervals(ctx, quiet, intervals)
    else:
        if not (sampling and primitives.page_fault):
            rest(ctx)
        if sampling:
            ops.prepare_access_checks(ctx)
    if do_prep:
        ops.prep_probes(ctx, not sampling)

    if not intervals.slept:
        kdamond_usleep(ctx, ctx.attrs.sample_interval)
    if ctx.kdamond is not None and ctx.kdamond.wake.is_set():
        return False
    ctx.passed_sample_intervals += 1

    if primitives.page_fault:
        ops.report_faults(ctx, sampling)
    reported = kdamond_check_reported_accesses(ctx)
    # Kernel: accessed bits are checked whenever page_fault is off. Here: not when page_table is off as well,
    # because then only reports of others are to count. (docs/deviations.md#neither-primitive-or-both)
    if sampling and not primitives.page_fault:
        ops.check_accesses(ctx)
    if ctx.probes:
        ops.apply_probes(ctx, not sampling and not do_prep)
    # Deviation: docs/deviations.md#reports-beside-checked-accesses
    if reported or ctx.report_counts:
        kdamond_apply_zero_access_report(ctx)
    return True


class _Intervals:
    """Sampling intervals that pass within :attr:`kdamon.damon.damon_operations.sample_intervals`.

    :ivar slept: the present interval is over, and the kdamond has to end it itself.
    """

    def __init__(self, ctx: damon_ctx) -> None:
        self.slept = False
        self._ctx = ctx
        self._interrupted = False

    def passed(self) -> bool:
        """See :class:`kdamon.damon.SamplingIntervals`."""
        ctx = self._ctx
        kdamond = ctx.kdamond
        assert kdamond is not None
        if self._interrupted:
            self._interrupted = False
            ctx.clock.sleep_until(ctx.deadline, kdamond.wake)
        else:
            kdamond_usleep(ctx, ctx.attrs.sample_interval)
        # That no target is valid any more shows by its address space, or at the end of the callback.
        if kdamond.wake.is_set() or kdamond.should_stop() or is_wanted(ctx):
            self.slept = True
            return False
        ctx.passed_sample_intervals += 1
        return True

    def ahead(self, most: int) -> tuple[int, int, int]:
        """See :class:`kdamon.damon.SamplingIntervals`; where there are producers, reports may come in each interval."""
        ctx = self._ctx
        if not ctx.clock.monotonic or (ctx.reports is not None and ctx.reports.has_lanes):
            most = 1
        return most, ctx.deadline, self._interval

    def took(self, samples: int, woken: bool) -> None:
        """See :class:`kdamon.damon.SamplingIntervals`."""
        ctx = self._ctx
        if samples > 1:
            ctx.passed_sample_intervals += samples - 1
            ctx.deadline += (samples - 1) * self._interval
            ctx.clock.kept(ctx.deadline)
        if woken:
            ctx.deadline += self._interval
            self._interrupted = True

    @property
    def _interval(self) -> int:
        return max(self._ctx.attrs.sample_interval, 1) * NSEC_PER_USEC


def _kdamond_merge_aggregated(ctx: damon_ctx, sz_limit: int) -> int:
    """Merge similar regions at the end of an aggregation interval; returns the largest size until the next one."""
    weights = probe_weights(ctx)
    scores = (t.regions.merge_scores(weights) for t in ctx.adaptive_targets)
    largest = max((int(of_target.max(initial=0)) for of_target in scores), default=0)
    kdamond_merge_regions(ctx, largest // 10, sz_limit)
    return damon_apply_min_nr_regions(ctx)


def _kdamond_serve(ctx: damon_ctx) -> bool:
    """Make the calls, wait while paused, and apply the schemes; returns False if the kdamond has to end."""
    if ctx.pause or any(is_due(ctx, s) for s in ctx.schemes):
        rest(ctx)
    kdamond_call(ctx, cancel=False)
    if ctx.maybe_corrupted:
        return False
    if ctx.pause and not _kdamond_paused(ctx):
        return False
    if ctx.schemes:
        kdamond_apply_schemes(ctx)
    else:
        damos_walk_cancel(ctx)
    return True


def kdamond_wait_activation(ctx: damon_ctx) -> bool:
    """Make calls only while the watermarks deactivate all schemes; returns False if the kdamond has to end."""
    while True:
        wait_us = min((damos_wmark_wait_us(ctx, s) for s in ctx.schemes), default=0)
        if not wait_us:
            return True
        assert ctx.kdamond is not None
        rest(ctx)
        ctx.deadline = ctx.clock.now() + wait_us * NSEC_PER_USEC
        ctx.clock.sleep_until(ctx.deadline, ctx.kdamond.wake)
        kdamond_call(ctx, cancel=False)
        damos_walk_cancel(ctx)
        if kdamond_need_stop(ctx) or ctx.maybe_corrupted:
            return False
        discard_reports(ctx)


def _kdamond_paused(ctx: damon_ctx) -> bool:
    """Make calls only until the pause is over; returns False if the kdamond has to end."""
    while ctx.pause:
        damos_walk_cancel(ctx)
        kdamond_usleep(ctx, ctx.attrs.sample_interval)
        # A call may end the pause, and what its caller reports then counts.
        discard_reports(ctx)
        kdamond_call(ctx, cancel=False)
        if kdamond_need_stop(ctx) or ctx.maybe_corrupted:
            return False
    return True


def _kdamond_aggregated(ctx: damon_ctx, next_aggregation_sis: int) -> None:
    """Finish an aggregation interval that began with ``next_aggregation_sis`` as its end."""
    goal = ctx.attrs.intervals_goal
    if goal.aggrs and time_after_eq(ctx.passed_sample_intervals, ctx.next_intervals_tune_sis):
        # A call may have moved it; damon_set_attrs() would take this for the middle of an aggregation interval.
        ctx.next_aggregation_sis = next_aggregation_sis
        ctx.next_intervals_tune_sis += ctx.attrs.aggr_samples * goal.aggrs
        kdamond_tune_intervals(ctx)
    sample = ctx.attrs.sample_interval or 1
    ctx.next_aggregation_sis = next_aggregation_sis + ctx.attrs.aggr_interval // sample
    kdamond_reset_aggregated(ctx)
    kdamond_split_regions(ctx)


def _kdamond_done(ctx: damon_ctx) -> None:
    """Release everything: targets, reports, calls and walks; whatever fails, no caller waits for this kdamond."""
    try:
        # A sample may be under way; a later kdamond of this context knows nothing of it.
        sampler, ctx.interval_sampler, ctx.end_intervals = ctx.interval_sampler, None, None
        rest(ctx)
        ctx.placement = None
        if sampler is not None:
            sampler.close()
        if ctx.reports is not None:
            unsubscribe_reports(ctx.reports)
        for t in list(ctx.adaptive_targets):
            damon_destroy_target(t, ctx)
    finally:
        with ctx.call_controls_lock:
            ctx.call_controls_obsolete = True
        kdamond_call(ctx, cancel=True)
        with ctx.walk_control_lock:
            ctx.walk_control_obsolete = True
        damos_walk_cancel(ctx)
        with ctx.kdamond_lock:
            ctx.kdamond = None
        if ctx.ended is not None:
            ctx.ended()


def _kdamond_main(ctx: damon_ctx) -> None:
    """The function of a kdamond's thread: monitor, then allow exclusive users again."""
    try:
        kdamond_fn(ctx)
    finally:
        with damon_lock:
            _running["nr_ctxs"] -= 1
            if not _running["nr_ctxs"]:
                _running["exclusive"] = False


def damon_update_region_access_rate(regions: Regions, accessed: Mask) -> None:
    """Count the regions where ``accessed`` (shape (n,)) is true, but none that a report was counted for."""
    if regions.access_reported is not None:
        accessed = accessed & ~regions.access_reported
    regions.nr_accesses += accessed


# Invariants.


def validate_regions(regions: Regions) -> None:
    """Check that regions are ascending, disjoint and not empty, and all columns as long (``damon_verify_ctx()``).

    :raises AssertionError: they are not.
    """
    assert (regions.start < regions.end).all(), "a region is empty"
    assert (regions.end[:-1] <= regions.start[1:]).all(), "regions overlap or are not in order"
    for name in COLUMNS:
        column = getattr(regions, name)
        assert column is None or len(column) == len(regions), f"column {name} has another length"


def validate_ctx(ctx: damon_ctx) -> None:
    """Check the invariants of ``ctx``: those of its regions, and no more accesses or hits of a probe than samples.

    :raises AssertionError: they do not hold.
    """
    samples = damon_nr_samples_per_aggr(ctx.attrs)
    for t in ctx.adaptive_targets:
        validate_regions(t.regions)
        for column in (t.regions.nr_accesses, t.regions.nr_unknown, t.regions.last_nr_unknown):
            assert int(column.max(initial=0)) <= samples, "a region was counted more often than it was sampled"
        if t.regions.probe_hits is not None:
            assert int(t.regions.probe_hits.max(initial=0)) <= samples, "a probe was hit more often than it was applied"
