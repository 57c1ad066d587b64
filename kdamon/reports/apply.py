# SPDX-License-Identifier: GPL-2.0-only
"""Access reports: the seed series' part of ``mm/damon/core.c``.

A source of access information pushes reports with :func:`damon_report_access`, one or a batch, from any thread and
whenever it likes. Every context that is being monitored gets each report once, at its next sampling interval's end,
and counts it for the region that contains it.

No producer ever blocks or waits: each has a queue of its own to each context, a lane, which only it fills and only the
kdamond empties. A thread is a producer, and so is a :class:`kdamon.reports.queue.ReportSource` that a thread
speaks for, as for another process. Of these, what is about no target of a context takes no room on the way to it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from kdamon.arrays import I32Array, Indexes, Mask, Records, U64Array
from kdamon.damon import ReportCounters, damon_access_report, damon_nr_samples_per_aggr, damon_target_has_pid
from kdamon.density.estimator import remember_reports, reports_are_random
from kdamon.reports.lookup import RegionLookup
from kdamon.reports.queue import ReportQueue, ReportSource
from kdamon.sample_control import damon_sample_filter_out

if TYPE_CHECKING:
    from kdamon.damon import damon_ctx, damon_target

__all__ = [
    "DAMON_ACCESS_REPORTS_CAP",
    "REPORT_DTYPE",
    "ReportColumns",
    "ReportQueue",
    "ReportSource",
    "choose_reports",
    "damon_report_access",
    "discard_reports",
    "kdamond_apply_zero_access_report",
    "kdamond_check_reported_accesses",
    "pick_reports",
    "report_accesses",
    "report_array",
    "report_counters",
    "reported_pids",
    "reports_about",
    "subscribe_reports",
    "unsubscribe_reports",
]

#: Reports that one producer, or those of one user together, can have under way to one context. Kernel: 1000 for all,
#: and the 1000th drops all of them. (docs/deviations.md#a-queue-per-producer)
DAMON_ACCESS_REPORTS_CAP = 1 << 20

#: Deviation: docs/deviations.md#fields-of-a-report
#: One report in a batch: the fields of :class:`kdamon.damon.damon_access_report` in their order, each where a C
#: compiler puts it.
REPORT_DTYPE = np.dtype(
    [
        ("pid", np.int32),
        ("addr", np.uint64),
        ("size", np.uint64),
        ("nr_accesses", np.int32),
        ("node_id", np.int32),
        ("write", np.bool_),
        ("cpu", np.int32),
        ("tid", np.int32),
    ],
    align=True,
)

#: A batch is counted in pieces of so many reports: a piece and what is computed of it stay in the processor's cache.
_PIECE: Final = 16384


#: What is reported about physical memory.
_PHYSICAL: Final = frozenset({0})
_subscribers: tuple[ReportQueue, ...] = ()
_subscribers_lock = threading.Lock()


# Deviation: docs/deviations.md#producers-never-wait
def subscribe_reports(queue: ReportQueue) -> None:
    """Let ``queue`` receive the reports from now on."""
    global _subscribers  # noqa: PLW0603 (the kernel's static array of reports)
    with _subscribers_lock:
        _subscribers = (*_subscribers, queue)


def unsubscribe_reports(queue: ReportQueue) -> None:
    """Let ``queue`` receive no further reports."""
    global _subscribers  # noqa: PLW0603
    with _subscribers_lock:
        _subscribers = tuple(q for q in _subscribers if q is not queue)


def damon_report_access(report: damon_access_report) -> None:
    """Report one access to every context that is being monitored (the series' ``damon_report_access()``).

    From any thread; never blocks. The report must not be changed afterwards.
    """
    for queue in _subscribers:
        queue.lane().push(queue.clock.now(), report, 1, DAMON_ACCESS_REPORTS_CAP)


def report_accesses(reports: Records, source: ReportSource | None = None, about: frozenset[int] | None = None) -> None:
    """Report a batch of accesses, a structured array of :data:`REPORT_DTYPE`, shape (n,).

    From any thread; never blocks. The array must not be changed afterwards.

    :param source: the producer, where that is not the calling thread itself; always for the same thread. What is about
        no target of a context takes no room on the way to it.
    :param about: processes that all of the reports are about, as far as that is known.
    :raises TypeError: the array has another dtype or shape.
    """
    if reports.dtype != REPORT_DTYPE or reports.ndim != 1:
        raise TypeError("a batch of reports must be a one-dimensional array of REPORT_DTYPE")
    if not len(reports):
        return
    for queue in _subscribers:
        if source is None:
            queue.lane().push(queue.clock.now(), reports, len(reports), DAMON_ACCESS_REPORTS_CAP)
        else:
            _report_for(source, reports, about, queue)


def _report_for(source: ReportSource, reports: Records, about: frozenset[int] | None, queue: ReportQueue) -> None:
    lane = queue.lane(source)
    chosen = reports
    if queue.pids is not None and about is not queue.pids and (about is None or not about <= queue.pids):
        pids = reports["pid"]
        chosen = reports_about(reports, pids[:1] if (pids == pids[0]).all() else pids, queue.pids)
        lane.ineligible += len(reports) - len(chosen)
    if len(chosen):
        dropped = lane.dropped
        lane.push(queue.clock.now(), chosen, len(chosen), *queue.room(source, DAMON_ACCESS_REPORTS_CAP))
        source.lost += lane.dropped - dropped


def reported_pids() -> frozenset[int] | None:
    """What reports may be about that any context can use; None is anything."""
    chosen: frozenset[int] = frozenset()
    for queue in _subscribers:
        if queue.pids is None:
            return None
        chosen = chosen | queue.pids if chosen else queue.pids
    return chosen


def reports_about(reports: Records, pids: I32Array, chosen: frozenset[int]) -> Records:
    """Those of ``reports`` that are about any of ``chosen``.

    :param pids: what of each, shape (n,); or of all of them, shape (1,).
    """
    if len(pids) == 1:
        return reports if int(pids[0]) in chosen else reports[:0]
    return pick_reports(reports, np.isin(pids, list(chosen)))


def pick_reports(reports: Records, mask: Mask) -> Records:
    """The reports where ``mask`` is true: as a whole, not field by field."""
    if mask.all():
        return reports
    opaque = reports.view(f"V{REPORT_DTYPE.itemsize}")
    return opaque[mask].view(REPORT_DTYPE)


def report_counters(ctx: damon_ctx) -> ReportCounters:
    """What became of the reports to ``ctx`` since its kdamond started; all zero if it never did."""
    if ctx.reports is None:
        return ReportCounters()
    return ctx.reports.snapshot()


def _fits(single: tuple[Any, ...]) -> bool:
    """Return whether the fields of a batch can hold the values of one report."""
    try:
        np.array(single, REPORT_DTYPE)
    except (OverflowError, TypeError, ValueError):
        return False
    return True


def _batches(entries: list[tuple[int, damon_access_report | Records]]) -> list[Records]:
    """The batches among the entries, and one of all single reports but those that its fields cannot hold."""
    batches = [e for _, e in entries if not isinstance(e, damon_access_report)]
    singles = [
        (r.pid, r.addr, r.size, r.nr_accesses, r.node_id, r.write, r.cpu, r.tid)
        for _, r in entries
        if isinstance(r, damon_access_report)
    ]
    if singles:
        try:
            batches.append(np.array(singles, REPORT_DTYPE))
        except (OverflowError, TypeError, ValueError):
            batches.append(np.array([single for single in singles if _fits(single)], REPORT_DTYPE))
    return batches


def _pieces(batches: list[Records]) -> Iterator[Records]:
    """All reports of ``batches`` in arrays of a size that is best to work on."""
    parts: list[Records] = []
    n = 0
    for batch in batches:
        for at in range(0, len(batch), _PIECE):
            part = batch[at : at + _PIECE]
            if n + len(part) > _PIECE:
                yield _joined(parts)
                parts, n = [], 0
            parts.append(part)
            n += len(part)
    if parts:
        yield _joined(parts)


def _joined(parts: list[Records]) -> Records:
    if len(parts) == 1:
        return parts[0]
    # A record as a whole is copied twenty times as fast as one field after the other.
    return np.concatenate([part.view(f"V{REPORT_DTYPE.itemsize}") for part in parts]).view(REPORT_DTYPE)


def _count(entries: list[tuple[int, damon_access_report | Records]]) -> int:
    return sum(1 if isinstance(e, damon_access_report) else len(e) for _, e in entries)


class ReportColumns:
    """Reports as columns: each is copied out of its batch when it is first asked for, because the copy is contiguous.

    :param source: a batch or other columns.
    :param rows: which reports of it; None for all.
    """

    #: Columns are attributes and items; those that are named here some operations set needs.
    pid: I32Array

    __slots__ = ("_columns", "_rows", "_source")

    def __init__(self, source: Records | ReportColumns, rows: Indexes | None = None) -> None:
        self._source = source
        self._rows = rows
        self._columns: dict[str, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self._source) if self._rows is None else len(self._rows)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        column = self._columns.get(name)
        if column is None:
            whole: npt.NDArray[Any] = self._source[name]
            column = self._columns[name] = whole.copy() if self._rows is None else whole.take(self._rows)
        return column

    def __getattr__(self, name: str) -> npt.NDArray[Any]:
        if name in (REPORT_DTYPE.names or ()):
            return self[name]
        raise AttributeError(f"reports have no {name}")


def choose_reports(ctx: damon_ctx) -> None:
    """Let other processes' reports be queued from now on only if they are about the targets of ``ctx``.

    Kernel: an operations set sees every report. Here: what is about no target of a context takes no room on the way to
    it, so that no process fills that with what has to be thrown away.
    (docs/deviations.md#a-report-reaches-contexts-of-its-target)
    """
    queue: ReportQueue = ctx.reports
    pids = frozenset([t.pid for t in ctx.adaptive_targets]) if damon_target_has_pid(ctx) else _PHYSICAL
    if pids != queue.pids:
        queue.pids = pids


def kdamond_check_reported_accesses(ctx: damon_ctx) -> bool:
    """Count the reports that arrived in the sampling interval that just ended; returns whether any was applied.

    Kernel: ignores those that are older than a sampling interval. Here: whatever arrived since the last look counts,
    because the interval has lasted until now, however late the kdamond came to end it.
    (docs/deviations.md#the-age-of-a-report)
    """
    queue: ReportQueue = ctx.reports
    entries = queue.take()
    if not entries:
        return False
    batches = _batches(entries)
    queue.counters.ineligible += _count(entries) - sum(len(batch) for batch in batches)
    applied = queue.counters.applied
    for piece in _pieces(batches):
        _kdamond_check_reports(piece, ctx, queue.counters)
    return queue.counters.applied != applied


def discard_reports(ctx: damon_ctx) -> None:
    """Count the reports that arrived while nothing was monitored as late: they belong to no sampling interval."""
    if ctx.sample_control.primitives_enabled.page_fault and ctx.ops is not None:
        # Whoever else monitors the process wants them now.
        ctx.ops.report_faults(ctx, False)
    queue: ReportQueue = ctx.reports
    queue.counters.late += _count(queue.take())


def _kdamond_check_reports(reports: Records, ctx: damon_ctx, counters: ReportCounters) -> None:
    """Count ``reports``, shape (n,), for the regions of all targets, and what became of them in ``counters``."""
    columns = ReportColumns(reports)
    wanted = np.ones(len(reports), np.bool_)
    if not damon_target_has_pid(ctx):
        wanted = columns.pid == 0
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
    counters.ineligible += len(reports) - int(np.count_nonzero(used))
    if out is not None:
        # Deviation: docs/deviations.md#filtered-reports-are-counted
        out &= used
        counters.filtered += int(np.count_nonzero(out))
        used &= ~out
    counters.applied += int(np.count_nonzero(inside))
    counters.straddling += int(np.count_nonzero(straddling & ~inside))
    counters.outside += int(np.count_nonzero(used & ~inside & ~straddling))


def apply_access_reports(reports: Records | ReportColumns, t: damon_target, ctx: damon_ctx) -> tuple[Mask, Mask]:
    """Count eligible ``reports``, shape (n,), for the regions of ``t`` that contain them wholly.

    :returns: which reports lie in one region, and which only overlap some, both of shape (n,).
    """
    regions = t.regions
    addr, size = _core_range(reports, ctx)
    row, across = _lookup(t, ctx).find(addr, size)
    within = row >= 0
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
    """Where ``reports``, which tell bytes, begin and how large they are, core address units."""
    addr, size = reports["addr"], reports["size"]
    if ctx.addr_unit == 1:
        return addr, size
    unit = np.uint64(ctx.addr_unit)
    return addr // unit, (addr % unit + size + unit - np.uint64(1)) // unit


def _lookup(t: damon_target, ctx: damon_ctx) -> RegionLookup:
    """What finds regions of ``t``: kept as long as its regions are the same, an aggregation interval most often."""
    lookups: dict[damon_target, RegionLookup] = {} if ctx.reports is None else ctx.reports.lookups
    lookup = lookups.get(t)
    if lookup is None or not lookup.fits(t.regions):
        if lookup is None:
            for gone in lookups.keys() - set(ctx.adaptive_targets):
                del lookups[gone]
        lookup = lookups[t] = RegionLookup(t.regions)
    return lookup


def kdamond_apply_zero_access_report(ctx: damon_ctx) -> None:
    """End the sampling interval of every region, reported or not.

    Kernel (second version): also updates the moving sum of the regions that nothing was reported for, and returns the
    largest nr_accesses. Here: the moving sum is computed where it is read, as in mainline, and so is the largest.
    """
    samples = np.uint32(damon_nr_samples_per_aggr(ctx.attrs))
    for t in ctx.adaptive_targets:
        t.regions.access_reported = None
        if ctx.report_counts:
            # Reports leave no room for the samples of later intervals to count.
            np.minimum(t.regions.nr_accesses, samples, out=t.regions.nr_accesses)


def report_array(n: int = 0, **columns: Any) -> Records:
    """A batch of ``n`` reports with the defaults of one, and ``columns`` (numbers or shape (n,)) set."""
    reports = np.zeros(n, REPORT_DTYPE)
    reports["nr_accesses"] = 1
    reports["size"] = 1
    reports["node_id"] = reports["cpu"] = -1
    for name, column in columns.items():
        reports[name] = column
    return reports
