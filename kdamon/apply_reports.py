# SPDX-License-Identifier: GPL-2.0-only
"""Access reports are counted for regions: the seed series' part of ``mm/damon/core.c``.

Every context gets each report (:mod:`kdamon.reports.deliver`) once, at its next sampling interval's end, and counts it
for the region that contains it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from kdamon.arrays import Mask, Records, U64Array
from kdamon.damon import ReportCounters, damon_nr_samples_per_aggr, damon_target_has_pid
from kdamon.density.estimator import remember_reports, reports_are_random
from kdamon.reports.batch import ReportColumns, as_batches, count_reports, in_pieces
from kdamon.reports.lookup import RegionLookup
from kdamon.reports.queue import ReportQueue
from kdamon.sample_control import damon_sample_filter_out

if TYPE_CHECKING:
    from kdamon.damon import damon_ctx, damon_target

__all__ = [
    "choose_reports",
    "discard_reports",
    "kdamond_apply_zero_access_report",
    "kdamond_check_reported_accesses",
    "lookup_of",
    "report_counters",
]

#: The process number of reports about physical memory.
_PHYSICAL: Final = frozenset({0})


def report_counters(ctx: damon_ctx) -> ReportCounters:
    """The counters of the reports to ``ctx`` since its kdamond started; all zero if it never did."""
    if ctx.reports is None:
        return ReportCounters()
    return ctx.reports.snapshot()


def _queue(ctx: damon_ctx) -> ReportQueue:
    """The reports to ``ctx``, whose kdamond has started."""
    assert ctx.reports is not None
    return ctx.reports


def choose_reports(ctx: damon_ctx) -> None:
    """Let other processes' reports be queued from now on only if they are about the targets of ``ctx``.

    Kernel: an operations set sees every report. Here: what is about no target of a context takes no room on the way to
    it, so that no process fills that with what has to be thrown away.
    (docs/deviations.md#a-report-reaches-contexts-of-its-target)
    """
    queue = _queue(ctx)
    pids = frozenset([t.pid for t in ctx.adaptive_targets]) if damon_target_has_pid(ctx) else _PHYSICAL
    if pids != queue.pids:
        queue.pids = pids


def kdamond_check_reported_accesses(ctx: damon_ctx) -> bool:
    """Count the reports that arrived in the sampling interval that just ended; returns whether any was applied.

    Kernel: ignores those that are older than a sampling interval. Here: whatever arrived since the last look counts,
    because the interval has lasted until now, however late the kdamond came to end it.
    (docs/deviations.md#the-age-of-a-report)
    """
    for t in ctx.adaptive_targets:
        if t.groups is not None:
            t.groups.begin_interval()
    queue = _queue(ctx)
    entries = queue.take()
    if not entries:
        return False
    batches = as_batches(entries)
    queue.counters.ineligible += count_reports(entries) - sum(len(batch) for batch in batches)
    applied = queue.counters.applied
    for piece in in_pieces(batches):
        _kdamond_check_reports(piece, ctx, queue.counters)
    return queue.counters.applied != applied


def discard_reports(ctx: damon_ctx) -> None:
    """Count the reports that arrived while nothing was monitored as late: they belong to no sampling interval."""
    if ctx.sample_control.primitives_enabled.page_fault and ctx.ops is not None:
        # Other contexts that monitor the process need them now.
        ctx.ops.report_faults(ctx, False)
    queue = _queue(ctx)
    queue.counters.late += count_reports(queue.take())


def _kdamond_check_reports(reports: Records, ctx: damon_ctx, counters: ReportCounters) -> None:
    """Count ``reports``, shape (n,), for the regions of all targets, and their fate in ``counters``."""
    columns = ReportColumns(reports)
    wanted = np.ones(len(reports), np.bool_) if damon_target_has_pid(ctx) else columns.pid == 0
    out = damon_sample_filter_out(reports, ctx.sample_control) if ctx.sample_control.sample_filters else None
    used = np.zeros(len(reports), np.bool_)
    inside = np.zeros(len(reports), np.bool_)
    straddling = np.zeros(len(reports), np.bool_)
    for t in ctx.adaptive_targets:
        eligible = wanted
        if ctx.ops is not None:
            eligible = wanted & ctx.ops.eligible_report(columns, t)
        used |= eligible
        if out is not None:
            eligible = eligible & ~out
        if eligible.all():
            within, across = apply_access_reports(columns, t, ctx)
            inside |= within
            straddling |= across
            continue
        rows = eligible.nonzero()[0]
        if len(rows):
            within, across = apply_access_reports(ReportColumns(columns, rows), t, ctx)
            inside[rows] |= within
            straddling[rows] |= across
    applied = int(np.count_nonzero(inside))
    counters.applied += applied
    if applied == len(reports):
        return
    counters.ineligible += len(reports) - int(np.count_nonzero(used))
    if out is not None:
        # Deviation: docs/deviations.md#filtered-reports-are-counted
        out &= used
        counters.filtered += int(np.count_nonzero(out))
        used &= ~out
    counters.straddling += int(np.count_nonzero(straddling & ~inside))
    counters.outside += int(np.count_nonzero(used & ~inside & ~straddling))


def apply_access_reports(reports: Records | ReportColumns, t: damon_target, ctx: damon_ctx) -> tuple[Mask, Mask]:
    """Count eligible ``reports``, shape (n,), for the regions of ``t`` that contain them wholly.

    :returns: which reports lie in one region, and which only overlap some, both of shape (n,).
    """
    regions = t.regions
    addr, size = _core_range(reports, ctx)
    row, across = lookup_of(t).find(addr, size)
    within = row >= 0
    if t.groups is not None:
        t.groups.add((regions.start, regions.end), row, reports, addr)
    if across is None:
        across = np.zeros(len(reports), np.bool_)
    # Deviation: docs/deviations.md#density-of-reports
    if ctx.density and reports_are_random(ctx):
        remember_reports(t, ctx, addr[within], reports["nr_accesses"][within])
        return within, across
    if not ctx.report_counts and regions.access_reported is not None and regions.access_reported.all():
        return within, across
    # One row more than there are regions, for the reports in none.
    reported = np.zeros(len(regions) + 1, np.bool_)
    reported[row] = True
    reported = reported[:-1]
    if ctx.report_counts:
        # The series' first version adds report.nr_accesses; more than the samples of an interval mean nothing.
        extra = np.bincount(row[within], np.maximum(reports["nr_accesses"][within], 0), len(regions))
        room = damon_nr_samples_per_aggr(ctx.attrs) - regions.nr_accesses.astype(np.int64)
        regions.nr_accesses += np.minimum(extra.astype(np.int64), np.maximum(room, 0)).astype(np.uint32)
    elif regions.access_reported is None:
        regions.nr_accesses += reported
    else:
        # At most one per region and sampling interval, as a sample of the region would give.
        # (docs/deviations.md#what-a-report-adds)
        regions.nr_accesses += reported & ~regions.access_reported
    if regions.access_reported is None:
        regions.access_reported = reported
    else:
        regions.access_reported |= reported
    return within, across


def _core_range(reports: Records | ReportColumns, ctx: damon_ctx) -> tuple[U64Array, U64Array]:
    """Start and size of ``reports``, which are in bytes, in core address units."""
    addr, size = reports["addr"], reports["size"]
    if ctx.addr_unit == 1:
        return addr, size
    unit = np.uint64(ctx.addr_unit)
    return addr // unit, (addr % unit + size + unit - np.uint64(1)) // unit


def lookup_of(t: damon_target) -> RegionLookup:
    """The lookup for the regions of ``t``: kept as long as these are the same, an aggregation interval most often."""
    if t.lookup is None or not t.lookup.fits(t.regions):
        t.lookup = RegionLookup(t.regions)
    return t.lookup


def kdamond_apply_zero_access_report(ctx: damon_ctx) -> None:
    """End the sampling interval of every region, reported or not.

    Kernel (second version): also updates the moving sum of the regions that nothing was reported for, and returns the
    largest nr_accesses. Here: the moving sum is computed where it is read, as in mainline, and so is the largest.
    """
    samples = np.uint32(damon_nr_samples_per_aggr(ctx.attrs))
    for t in ctx.adaptive_targets:
        t.regions.access_reported = None
        if ctx.report_counts:
            # A count that reports fill up leaves no room for later samples.
            np.minimum(t.regions.nr_accesses, samples, out=t.regions.nr_accesses)
