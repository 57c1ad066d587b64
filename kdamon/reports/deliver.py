# SPDX-License-Identifier: GPL-2.0-only
"""The way of access reports from a producer to every context that is being monitored (the series' ``core.c``).

A producer pushes reports with :func:`damon_report_access` or :func:`report_accesses`, from any thread and whenever it
likes. It never blocks or waits: each has a queue of its own to each context, a lane, which only it fills and only the
kdamond empties. A thread is a producer, and so is a :class:`kdamon.reports.queue.ReportSource` that a thread speaks
for, as for another process. Of these, reports about no target of a context take no room on the way to it.
"""

from __future__ import annotations

import threading

from kdamon.access import damon_access_report
from kdamon.arrays import Records
from kdamon.reports.queue import ReportQueue, ReportSource
from kdamon.reports.record import REPORT_DTYPE, reports_about

__all__ = [
    "DAMON_ACCESS_REPORTS_CAP",
    "damon_report_access",
    "report_accesses",
    "reported_pids",
    "subscribe_reports",
    "unsubscribe_reports",
]


#: Reports that one producer, or those of one user together, can have under way to one context. Kernel: 1000 for all,
#: and the 1000th drops all of them. (docs/deviations.md#a-queue-per-producer)
DAMON_ACCESS_REPORTS_CAP = 1 << 20


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
        queue.lane().push(queue.now(), report, 1, DAMON_ACCESS_REPORTS_CAP)


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
            queue.lane().push(queue.now(), reports, len(reports), DAMON_ACCESS_REPORTS_CAP)
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
        lane.push(queue.now(), chosen, len(chosen), *queue.room(source, DAMON_ACCESS_REPORTS_CAP))
        source.lost += lane.dropped - dropped


def reported_pids() -> frozenset[int] | None:
    """The process numbers in reports that any context can use; None is any."""
    chosen: frozenset[int] = frozenset()
    for queue in _subscribers:
        if queue.pids is None:
            return None
        chosen = chosen | queue.pids if chosen else queue.pids
    return chosen
