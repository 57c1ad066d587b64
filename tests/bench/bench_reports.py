# SPDX-License-Identifier: GPL-2.0-only
"""Access reports: how fast they are counted for regions, and how fast they can be sent.

Counting is measured from a queue of batches to the counted regions, as the kdamond does it in an aggregation interval
of 20 sampling intervals, against two loops over the reports: the linear scan of the regions that the series' first
version has, and a bisection.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import arguments, side_by_side, table

from kdamon.apply_reports import kdamond_apply_zero_access_report, kdamond_check_reported_accesses
from kdamon.core import damon_add_target, damon_new_ctx, damon_new_target
from kdamon.damon import damon_access_report, damon_ctx, damon_operations, damon_ops_id
from kdamon.kernel import VirtualClock
from kdamon.regions import Regions
from kdamon.reports.deliver import (
    DAMON_ACCESS_REPORTS_CAP,
    damon_report_access,
    report_accesses,
    subscribe_reports,
    unsubscribe_reports,
)
from kdamon.reports.queue import ReportQueue
from kdamon.reports.record import report_array
from kdamon.vaddr import damon_va_eligible_report

SIZE = 64 * 4096
SAMPLES = 20
PID = 7


@dataclass(slots=True)
class Region:
    start: int
    end: int
    nr_accesses: int = 0
    access_reported: bool = False


def linear_scan(regions: list[Region], reports: list[damon_access_report]) -> None:
    """kdamond_check_reported_accesses() and kdamond_apply_access_report() of the series, line by line."""
    for report in reports:
        if report.pid != PID:
            continue
        for r in regions:
            if report.addr < r.start:
                continue
            if r.end < report.addr + report.size:
                continue
            if not r.access_reported:
                r.nr_accesses += 1
                r.access_reported = True
    for r in regions:
        r.access_reported = False


def bisection(regions: list[Region], reports: list[damon_access_report]) -> None:
    """The same, with the region found by bisection."""
    starts = [r.start for r in regions]
    for report in reports:
        if report.pid != PID:
            continue
        at = bisect_right(starts, report.addr) - 1
        if at < 0:
            continue
        r = regions[at]
        if report.addr + report.size <= r.end and not r.access_reported:
            r.nr_accesses += 1
            r.access_reported = True
    for r in regions:
        r.access_reported = False


class Bench:
    """``nr_regions`` regions, and reports anywhere in them."""

    def __init__(self, nr_reports: int, nr_regions: int, scanned: int) -> None:
        rng = np.random.default_rng(nr_regions)
        self.borders = [SIZE * i for i in range(nr_regions + 1)]
        self.batch = report_array(
            nr_reports, pid=PID, addr=rng.integers(0, SIZE * nr_regions, nr_reports).astype(np.uint64)
        )
        self.reports = [damon_access_report(*row) for row in self.batch.tolist()]
        self.scanned = self.reports[:scanned]
        self.ctx: damon_ctx = damon_new_ctx(seed=1)
        self.ctx.clock = VirtualClock()
        self.ctx.ops = damon_operations(
            id=damon_ops_id.DAMON_OPS_VADDR, eligible_report=damon_va_eligible_report, target_has_pid=True
        )
        t = damon_new_target()
        t.pid = PID
        t.regions = Regions(self.borders[:-1], self.borders[1:])
        damon_add_target(self.ctx, t)

    def objects(self) -> list[Region]:
        return [Region(start, end) for start, end in zip(self.borders, self.borders[1:], strict=False)]

    def queued(self) -> damon_ctx:
        """The context with all reports in its queue, one by one."""
        self.ctx.reports = queue = ReportQueue(self.ctx.clock)
        for report in self.reports:
            queue.lane().push(0, report, 1, DAMON_ACCESS_REPORTS_CAP)
        return self.ctx

    def empty(self) -> damon_ctx:
        """The context at the beginning of an aggregation interval."""
        self.ctx.reports = ReportQueue(self.ctx.clock)
        return self.ctx


def count(ctx: Any) -> None:
    """What the kdamond does with the queue in one sampling interval."""
    kdamond_check_reported_accesses(ctx)
    kdamond_apply_zero_access_report(ctx)


def count_often(ctx: Any, batch: Any) -> None:
    """The same in an aggregation interval: the regions are the same in all of its sampling intervals."""
    for _ in range(SAMPLES):
        ctx.reports.lane().push(0, batch, len(batch), DAMON_ACCESS_REPORTS_CAP)
        count(ctx)


def counting(sizes: list[tuple[int, int]], turns: int) -> None:
    """Print how fast reports are counted."""
    rows = []
    for nr_reports, nr_regions in sizes:
        # The scan takes seconds for what the others do in a millisecond: it gets a share, and all is per report.
        scanned = max(1, min(nr_reports, 300_000 // nr_regions))
        bench = Bench(nr_reports, nr_regions, scanned)
        rivals: list[tuple[int, Callable[[], Any], Callable[[Any], object]]] = [
            (scanned, bench.objects, lambda regions, b=bench: linear_scan(regions, b.scanned)),
            (nr_reports, bench.objects, lambda regions, b=bench: bisection(regions, b.reports)),
            (nr_reports, bench.queued, count),
            (SAMPLES * nr_reports, bench.empty, lambda ctx, b=bench: count_often(ctx, b.batch)),
        ]
        times = side_by_side(*[(prepare, run) for _, prepare, run in rivals], turns=turns)
        scan, bisected, singles, batch = [seconds / n for seconds, (n, _, _) in zip(times, rivals, strict=True)]
        rates = [f"{1e-6 / each:.3g}" for each in (scan, bisected, singles, batch)]
        rows.append((nr_reports, nr_regions, *rates, f"{scan / batch:.0f}x", f"{bisected / batch:.0f}x"))
    table(
        "Counting reports, million/s (aims: 1000x the scan at 10000 regions, 25x bisection at 100000 reports)",
        (
            "reports",
            "regions",
            "scan",
            "bisection",
            "kdamon, singles",
            "kdamon, batch",
            "batch/scan",
            "batch/bisection",
        ),
        rows,
    )


def sending(nr_reports: int, turns: int) -> None:
    """Print how fast one thread can send reports to one context and to two."""
    report = damon_access_report(pid=PID, addr=SIZE, size=1)
    blocks = [report_array(4096, pid=PID) for _ in range(max(1, nr_reports // 4096))]
    nr_batched = 4096 * len(blocks)

    def subscribed(contexts: int) -> list[ReportQueue]:
        queues = [ReportQueue(VirtualClock()) for _ in range(contexts)]
        for queue in queues:
            subscribe_reports(queue)
        return queues

    def done(queues: Any) -> None:
        for queue in queues:
            unsubscribe_reports(queue)

    def singles(queues: Any) -> None:
        for _ in range(nr_reports):
            damon_report_access(report)
        done(queues)

    def batches(queues: Any) -> None:
        for block in blocks:
            report_accesses(block)
        done(queues)

    slots: list[damon_access_report] = []
    lock = threading.Lock()

    def series(_: object) -> None:
        # Its buffer: one array under a lock that is only tried; here without an end, so that nothing is lost.
        slots.clear()
        for _ in range(nr_reports):
            if lock.acquire(blocking=False):
                slots.append(report)
                lock.release()

    one = side_by_side(
        (lambda: None, series),
        (lambda: subscribed(1), singles),
        (lambda: subscribed(2), singles),
        (lambda: subscribed(1), batches),
        turns=turns,
    )
    names = ("a list behind a tried lock", "single reports", "single reports to two contexts", "batches of 4096")
    rows = [
        (name, f"{n / seconds / 1e6:.3g}", f"{seconds / n * 1e9:.3g}")
        for name, n, seconds in zip(names, (nr_reports, nr_reports, nr_reports, nr_batched), one, strict=True)
    ]
    table("Sending reports from one thread", ("how", "million/s", "ns each"), rows)


def main() -> int:
    """Print the tables."""
    args = arguments(__doc__.splitlines()[0] if __doc__ else "")
    sizes = [(10_000, 100), (10_000, 1000), (1000, 10_000), (100_000, 1000), (10_000, 10_000)]
    counting(sizes[2:] if args.quick else [*sizes, (1_000_000, 1000), (1_000_000, 10_000)], 5 if args.quick else 7)
    sending(20_000 if args.quick else 200_000, 5 if args.quick else 7)
    return 0


if __name__ == "__main__":
    sys.exit(main())
