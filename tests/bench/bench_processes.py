# SPDX-License-Identifier: GPL-2.0-only
"""What it costs to monitor many processes by one kdamond, beside one process with as many regions, and a mere sleep.

The processes sleep; each has 12 regions. The three take turns; CPU time is that of the kdamond's thread.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from measure import arguments, compiled, machine_name, table

from kdamon.core import (
    damon_add_target,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_set_regions,
    damon_start,
    damon_stop,
)
from kdamon.damon import damon_addr_range, damon_attrs, damon_ctx, damon_ops_id
from kdamon.kernel import NSEC_PER_USEC, PAGE_SIZE, RealClock
from kdamon.mm.linux.machine import LinuxMachine, linux_machine

HERE = Path(__file__).parent
REGIONS = 12
MIB_EACH = 16
#: Processes, and microseconds of a sampling interval.
CASES = (20, 5_000), (100, 100_000)

#: A process and where its memory is: start and end, bytes.
Place = tuple[int, int, int]


@contextmanager
def sleeping(writer: Path, count: int, mib: int) -> Iterator[list[Place]]:
    """``count`` processes that sleep, with ``mib`` MiB of memory each."""
    with ExitStack() as stack:
        places = []
        for _ in range(count):
            words = (str(writer), "idle", "1", str(mib), "600")
            process = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            start, end = (int(word) for word in process.stdout.readline().split())
            places.append((process.pid, start, end))
        yield places


def context(machine: LinuxMachine, places: Sequence[Place], regions: int, sample_us: int) -> damon_ctx:
    """Monitor ``places`` by ``regions`` regions each."""
    ctx = damon_new_ctx(seed=1)
    ctx.machine = machine
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_FVADDR)
    samples = 20 if sample_us < 100_000 else 5
    most = regions * len(places)
    damon_set_attrs(ctx, damon_attrs(sample_us, samples * sample_us, min_nr_regions=most, max_nr_regions=most))
    for pid, start, end in places:
        t = damon_new_target()
        t.pid = pid
        edges = [start + (end - start) // PAGE_SIZE * i // regions * PAGE_SIZE for i in range(regions)] + [end]
        damon_set_regions(t, [damon_addr_range(*edge) for edge in itertools.pairwise(edges)], PAGE_SIZE)
        t.task = machine.get_task(pid, "page_table")
        damon_add_target(ctx, t)
    return ctx


def cpu_of(tid: int) -> int:
    """CPU time of a thread of this process, nanoseconds."""
    return int(Path(f"/proc/self/task/{tid}/schedstat").read_text(encoding="utf-8").split()[0])


def monitored(ctx: damon_ctx, seconds: float) -> tuple[float, float, float]:
    """CPU share of the kdamond, microseconds of a sampling interval, and the share of missed ones."""
    damon_start([ctx], exclusive=False)
    try:
        time.sleep(0.5)
        assert ctx.kdamond is not None
        tid = ctx.kdamond.pid
        passed, missed, cpu, begin = ctx.passed_sample_intervals, ctx.missed_intervals, cpu_of(tid), time.monotonic_ns()
        time.sleep(seconds)
        cpu, elapsed = cpu_of(tid) - cpu, time.monotonic_ns() - begin
        missed = ctx.missed_intervals - missed
        took = elapsed / (ctx.attrs.sample_interval * NSEC_PER_USEC) - missed
        assert ctx.passed_sample_intervals > passed
    finally:
        damon_stop([ctx])
    return cpu / elapsed, cpu / took / 1e3, missed / (took + missed)


def slept(sample_us: int, seconds: float) -> tuple[float, float, float]:
    """The same of a thread that only sleeps."""
    clock, never = RealClock(), threading.Event()
    cpu, begin = time.thread_time_ns(), clock.now()
    count = round(seconds * 1e6 / sample_us)
    for i in range(1, count + 1):
        clock.sleep_until(begin + i * sample_us * NSEC_PER_USEC, never)
    cpu, elapsed = time.thread_time_ns() - cpu, clock.now() - begin
    return cpu / elapsed, cpu / count / 1e3, 0.0


def measure(machine: LinuxMachine, writer: Path, turns: int, seconds: float) -> list[tuple[object, ...]]:
    """A row for each case and rival."""
    rows: list[tuple[object, ...]] = []
    for count, sample_us in CASES:
        with sleeping(writer, count, MIB_EACH) as many, sleeping(writer, 1, MIB_EACH * count) as one:
            rivals: dict[str, Callable[[], tuple[float, float, float]]] = {
                f"{count} processes": lambda many=many, us=sample_us: monitored(  # type: ignore[misc]
                    context(machine, many, REGIONS, us), seconds
                ),
                "one process": lambda one=one, us=sample_us, count=count: monitored(  # type: ignore[misc]
                    context(machine, one, REGIONS * count, us), seconds
                ),
                "only sleep": lambda us=sample_us: slept(us, seconds),  # type: ignore[misc]
            }
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in rivals}
            for turn in range(turns):
                for name, run in reversed(rivals.items()) if turn % 2 else rivals.items():
                    found[name].append(run())
        first = median(us for _, us, _ in found[f"{count} processes"])
        for name, turns_of in found.items():
            share, us, missed = (median(column) for column in zip(*turns_of, strict=True))
            regions = 0 if name == "only sleep" else REGIONS * count
            ratio = f"{first / us:.2f}x" if us != first else ""
            rows.append(
                (f"{sample_us / 1000:g} ms", name, regions, f"{share:.2%}", f"{us:.0f}", f"{missed:.1%}", ratio)
            )
    return rows


def main() -> int:
    """Print the table."""
    args = arguments(__doc__.splitlines()[0] if __doc__ else "")
    turns, seconds = (3, 1.0) if args.quick else (5, 5.0)
    with tempfile.TemporaryDirectory(prefix="kdamon-bench-", dir="/var/tmp") as directory, ExitStack() as stack:
        machine = linux_machine()
        stack.callback(machine.close)
        rows = measure(machine, compiled(HERE / "writer.c", Path(directory)), turns, seconds)
    print(f"{machine_name()}; median of {turns} turns of {seconds:g} s; us: CPU time of a sampling interval")
    table("Many processes", ("interval", "", "regions", "CPU", "us", "missed", "many / this"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
