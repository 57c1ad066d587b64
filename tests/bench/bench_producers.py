# SPDX-License-Identifier: GPL-2.0-only
"""Reports from another process, through shared memory to the regions of a kdamond.

First at a fixed rate, as long as ``--seconds`` says: what arrived, what was lost and where, and what it cost. Then as
fast as they can: the ring against what Python has for passing things from one process to another, which take turns.

A kdamond's queue is full when it gets no CPU for a fifth of a second at that rate, as on a machine that is busy with
other things: ``chrt -f 10 python tests/bench/bench_producers.py`` keeps them away.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measure import table

from kdamon.core import (
    damon_add_target,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_start,
    damon_stop,
    report_counters,
)
from kdamon.damon import damon_access_report, damon_attrs, damon_ctx, damon_ops_id
from kdamon.producers.client import ReportClient
from kdamon.producers.server import ReportServer
from kdamon.regions import Regions
from kdamon.reports.deliver import damon_report_access, report_accesses
from kdamon.reports.record import report_array

RATE = 5_000_000
#: Of a ring: a fifth of a second.
CAPACITY = 1 << 20
SPAN = 1 << 30
BATCH = 4096
HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "tools/kdamon_tools/include"


def addresses(n: int) -> Any:
    return np.random.default_rng(0).integers(0, SPAN, n).astype(np.uint64)


@contextmanager
def monitored(pid: int, sample_us: int = 5000) -> Iterator[damon_ctx]:
    """A kdamond that reports about ``pid`` drive, with some hundred regions."""
    ctx = damon_new_ctx(seed=1)
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_REPORTS)
    damon_set_attrs(ctx, damon_attrs(sample_us, 20 * sample_us, min_nr_regions=400, max_nr_regions=1200))
    t = damon_new_target()
    t.pid = pid
    t.regions = Regions([0], [SPAN])
    damon_add_target(ctx, t)
    damon_start([ctx], exclusive=False)
    try:
        yield ctx
    finally:
        damon_stop([ctx])


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def drained(server: ReportServer, ctx: damon_ctx) -> None:
    """Wait until everything that was sent was also counted for regions."""
    while server.counters().producers or report_counters(ctx).pending:
        time.sleep(0.01)


def python_producer(path: Path, rate: int, seconds: float) -> None:
    """Do what producer.c does."""
    with ReportClient(path, CAPACITY) as client:
        batch = report_array(BATCH, pid=client.pid, addr=addresses(BATCH))
        sys.stdin.readline()
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < seconds:
            if client.sent >= elapsed * rate:
                time.sleep(0.0002)
            else:
                client.report(batch)
        print(client.sent, client.dropped, round(elapsed * 1e9), time.process_time_ns())


def at_a_rate(program: Path | None, path: Path, seconds: float, sample_us: int) -> None:
    """Print what becomes of reports at :data:`RATE`."""
    hows: dict[str, list[Any]] = {
        "Python, batches of 4096": [sys.executable, __file__, "--produce", path, RATE, seconds],
    }
    if program is not None:
        hows = {
            "C, batches": [program, path, "batches", RATE, seconds, SPAN, CAPACITY],
            "C, one by one": [program, path, "singles", RATE, seconds, SPAN, CAPACITY],
        } | hows
    rows = []
    for name, command in hows.items():
        with ReportServer(path) as server:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            producer = subprocess.Popen(list(map(str, command)), text=True, **pipes)
            with monitored(producer.pid, sample_us) as ctx:
                cpu, begin = cpu_seconds(), time.monotonic()
                said, _ = producer.communicate("\n")
                cpu, wall = cpu_seconds() - cpu, time.monotonic() - begin
                drained(server, ctx)
                counters, served = report_counters(ctx), server.counters()
                regions = sum(len(t.regions) for t in ctx.adaptive_targets)
            sent, dropped, elapsed, producers_cpu = map(int, said.split())
        refused = served.malformed + served.ineligible + served.not_permitted
        lost = dropped + refused + counters.dropped + counters.late
        assert sent == dropped + refused + counters.accepted + counters.dropped
        rows.append(
            (
                name, f"{sent / elapsed * 1e3:.2f}", f"{counters.applied / elapsed * 1e3:.2f}", dropped,
                counters.dropped, counters.late, lost, regions, f"{cpu / wall:.1%}", f"{producers_cpu / elapsed:.1%}",
            )
        )  # fmt: skip
    table(
        f"{RATE / 1e6:.0f} million reports/s from another process for {seconds:g} s, sampled each "
        f"{sample_us / 1000:g} ms (aim: none lost)",
        (
            "producer", "sent M/s", "applied M/s", "ring full", "queue full", "late", "lost", "regions", "kdamon CPU",
            "producer CPU",
        ),
        rows,
    )  # fmt: skip


def through_ring(path: Path, nr_batches: int) -> None:
    with ReportClient(path) as client:
        batch = report_array(BATCH, pid=client.pid, addr=addresses(BATCH))
        for _ in range(nr_batches):
            while client.pending > client.capacity - BATCH:
                time.sleep(0.0002)
            client.report(batch)


def through_queue(queue: Any, nr_batches: int) -> None:
    batch = report_array(BATCH, pid=os.getpid(), addr=addresses(BATCH))
    for _ in range(nr_batches):
        queue.put(batch)


def through_pipe(pipe: Any, nr_batches: int, singles: bool) -> None:
    batch = report_array(BATCH, pid=os.getpid(), addr=addresses(BATCH))
    message: Any = [damon_access_report(*row) for row in batch.tolist()] if singles else batch
    for _ in range(nr_batches):
        pipe.send(message)


def from_ring(server: ReportServer, total: int) -> Iterator[int]:
    """Wait for reports that the server passes on; yields how many came."""
    before = server.counters().received
    begin, seen = before, before
    while seen < begin + total:
        time.sleep(0.0002)
        seen = server.counters().received
        if seen > before:
            yield seen - before
            before = seen


def from_rival(get: Callable[[], Any], nr_batches: int) -> Iterator[int]:
    """Receive messages and report what is in them; yields how many there were in each."""
    for _ in range(nr_batches):
        message = get()
        if isinstance(message, list):
            for report in message:
                damon_report_access(report)
        else:
            report_accesses(message)
        yield BATCH


def rate_of(process: Any, arrivals: Iterator[int]) -> float:
    """Million reports per second from the first arrival to the last, with a kdamond that counts them."""
    process.start()
    with monitored(process.pid):
        next(arrivals)
        begin = time.monotonic()
        n = sum(arrivals)
        elapsed = time.monotonic() - begin
    process.join()
    return n / elapsed / 1e6


def as_fast_as_they_can(path: Path, nr_batches: int, turns: int) -> None:
    """Print how many reports each way carries."""
    context = multiprocessing.get_context("spawn")
    rates: dict[str, list[float]] = {}
    few = max(nr_batches // 50, 3)
    for _ in range(turns):
        with ReportServer(path) as server:
            process: Any = context.Process(target=through_ring, args=(path, nr_batches))
            ring = rate_of(process, from_ring(server, nr_batches * BATCH))
        rates.setdefault("ring in shared memory", []).append(ring)
        queue = context.Queue(maxsize=16)
        process = context.Process(target=through_queue, args=(queue, nr_batches))
        rates.setdefault("multiprocessing.Queue of arrays", []).append(
            rate_of(process, from_rival(queue.get, nr_batches))
        )
        for name, n, singles in (("pipe of arrays", nr_batches, False), ("pipe of report objects", few, True)):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=through_pipe, args=(sender, n, singles))
            rates.setdefault(name, []).append(rate_of(process, from_rival(receiver.recv, n)))
    best = median(rates["ring in shared memory"])
    rows = [(name, f"{median(each):.3g}", f"{best / median(each):.1f}x") for name, each in rates.items()]
    table("From a Python process to a kdamond, in batches of 4096", ("way", "million/s", "the ring is"), rows)


def main() -> int:
    """Print the tables, or be the producer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="shorter: for a look, not for a figure")
    parser.add_argument("--seconds", type=float, help="how long reports come at a fixed rate")
    parser.add_argument("--sample-us", type=int, default=5000, help="sampling interval at a fixed rate")
    parser.add_argument("--produce", nargs=3, metavar=("PATH", "RATE", "SECONDS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.produce:
        python_producer(Path(args.produce[0]), int(args.produce[1]), float(args.produce[2]))
        return 0
    seconds = args.seconds or (1 if args.quick else 5)
    with tempfile.TemporaryDirectory(prefix="kdamon-bench-") as directory:
        program = None
        if compiler := shutil.which("cc"):
            program = Path(directory) / "producer"
            subprocess.run([compiler, "-O2", f"-I{INCLUDE}", "-o", program, HERE / "producer.c"], check=True)
        path = Path(directory) / "reports"
        at_a_rate(program, path, seconds, args.sample_us)
        as_fast_as_they_can(path, 100 if args.quick else 3000, 3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
