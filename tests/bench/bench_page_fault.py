# SPDX-License-Identifier: GPL-2.0-only
"""What monitoring by faults costs: the monitor's CPU time, the target's slow-down, events decoded, latency.

The target is a process of this script's that writes to random bytes of 256 MiB as fast as it can. Runs with and
without monitoring are paired (A B B A), so that the machine's moods hit both; a ratio is the median of the pairs, with
a bootstrap interval of 95 percent. The page_table primitive is shown beside.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import numpy as np
from measure import arguments, interval, table

from kdamon.core import (
    damon_add_target,
    damon_call,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_set_regions,
    damon_start,
    damon_stop,
    report_counters,
)
from kdamon.damon import (
    PrimitivesEnabled,
    damon_access_report,
    damon_addr_range,
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_ops_id,
)
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.sampling.fault_recorder import FaultRecorder
from kdamon.reports.record import report_array

MIB = 1 << 20
SIZE = 256 * MIB
PAGE = mmap.PAGESIZE


def address(memory: mmap.mmap) -> int:
    """Where ``memory`` is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def write_at_random(memory: mmap.mmap, shared: mmap.mmap) -> None:
    """Write to random bytes for ever, and count in ``shared``."""
    array = np.frombuffer(memory, np.uint8)
    counter = np.frombuffer(shared, np.uint64)
    places = np.random.default_rng(1).integers(0, SIZE, 1 << 18)
    while os.getppid() != 1:
        array[places] = 1
        counter[0] += len(places)


def write_now_and_then(memory: mmap.mmap, shared: mmap.mmap) -> None:
    """Write to the first page every 37 ms, and note the time just before."""
    stamp = np.frombuffer(shared, np.uint64)
    while os.getppid() != 1:
        time.sleep(0.037)
        stamp[0] = time.monotonic_ns()
        memory[0] = 1


@contextmanager
def target(size: int, work: Callable[[mmap.mmap, mmap.mmap], None]) -> Iterator[tuple[int, int, mmap.mmap]]:
    """A process that does ``work``: its number, where its memory is, and what it shares with this one."""
    shared = mmap.mmap(-1, PAGE)
    ready, address_sent = os.pipe()
    pid = os.fork()
    if not pid:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        np.frombuffer(memory, np.uint8)[::PAGE] = 1
        os.sched_setaffinity(0, {1})
        os.write(address_sent, struct.pack("<Q", address(memory)))
        work(memory, shared)
        os._exit(0)
    try:
        assert select.select([ready], [], [], 60)[0], "the target did not begin"
        yield pid, struct.unpack("<Q", os.read(ready, 8))[0], shared
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(address_sent)


def context(
    machine: LinuxMachine, place: tuple[int, int, int], primitive: str, regions: int, sample_us: int
) -> damon_ctx:
    """Monitor ``place``, (process, start, size), by about ``regions`` regions."""
    pid, start, size = place
    ctx = damon_new_ctx(seed=1)
    ctx.machine = machine
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_FVADDR)
    ctx.sample_control.primitives_enabled = PrimitivesEnabled(primitive == "page_table", primitive == "page_fault")
    damon_set_attrs(
        ctx, damon_attrs(sample_us, 20 * sample_us, min_nr_regions=regions, max_nr_regions=regions + regions // 10)
    )
    t = damon_new_target()
    t.pid = pid
    damon_set_regions(t, [damon_addr_range(start, start + size)], PAGE)
    t.task = machine.get_task(pid, primitive)
    damon_add_target(ctx, t)
    return ctx


def rate(shared: mmap.mmap, seconds: float) -> float:
    """Writes per second of the target."""
    counter = np.frombuffer(shared, np.uint64)
    begin, before = time.monotonic(), int(counter[0])
    time.sleep(seconds)
    return (int(counter[0]) - before) / (time.monotonic() - begin)


def cost(machine: LinuxMachine, seconds: float, pairs: int, primitives: Sequence[str]) -> None:
    """Print the monitor's CPU share and the target's slow-down."""
    rows = []
    with target(SIZE, write_at_random) as (pid, start, shared):
        for primitive in primitives:
            for sample_us in (5000, 100_000):
                for regions in (100, 1000):
                    ratios, shares, seen, late = [], [], [], 0.0
                    for pair in range(pairs):
                        rates = {}
                        for monitored in (True, False) if pair % 2 else (False, True):
                            if not monitored:
                                rates[False] = rate(shared, seconds)
                                continue
                            ctx = context(machine, (pid, start, SIZE), primitive, regions, sample_us)
                            damon_start([ctx], exclusive=False)
                            try:
                                time.sleep(0.5)
                                cpu, wall = time.process_time(), time.monotonic()
                                rates[True] = rate(shared, seconds)
                                shares.append((time.process_time() - cpu) / (time.monotonic() - wall))
                                seen.append(report_counters(ctx).applied)
                                late += ctx.missed_intervals / max(
                                    1, ctx.passed_sample_intervals + ctx.missed_intervals
                                )
                            finally:
                                damon_stop([ctx])
                        ratios.append(rates[False] / rates[True])
                    low, high = interval(ratios)
                    rows.append(
                        (
                            primitive,
                            f"{sample_us // 1000} ms",
                            regions,
                            f"{median(shares):.1%}",
                            f"{median(ratios) - 1:+.1%}",
                            f"{low - 1:+.1%} .. {high - 1:+.1%}",
                            round(median(seen)),
                            f"{late / pairs:.0%}",
                        )
                    )
    table(
        f"A target that writes to random bytes of 256 MiB, {pairs} pairs of {seconds} s",
        ("primitive", "sample", "regions", "monitor CPU", "slow-down", "95 %", "reports", "missed"),
        rows,
    )


def latency(machine: LinuxMachine, seconds: float) -> None:
    """Print how long it takes from a write to its count."""
    took: list[int] = []
    with target(16 * PAGE, write_now_and_then) as (pid, start, shared):
        stamp = np.frombuffer(shared, np.uint64)
        ctx = context(machine, (pid, start, 16 * PAGE), "page_fault", 16, 5000)
        seen = [0, 0]

        def look(_: object) -> None:
            # Called in the kdamond right after it counted.
            now, written = int(ctx.adaptive_targets[0].regions.nr_accesses[0]), int(stamp[0])
            if now > seen[0] and written != seen[1]:
                took.append(time.monotonic_ns() - written)
                seen[1] = written
            seen[0] = now

        damon_start([ctx], exclusive=False)
        try:
            damon_call(ctx, damon_call_control(look, repeat=True))
            time.sleep(seconds)
        finally:
            damon_stop([ctx])
    ms = np.array(took) / 1e6
    p50, p95, worst = np.percentile(ms, [50, 95, 100]) if len(ms) else (float("nan"),) * 3
    table(
        "From a write to its count, at 5 ms (the wait for the interval's end is 2.5 ms in the mean)",
        ("writes", "p50", "p95", "worst"),
        [(len(ms), f"{p50:.1f} ms", f"{p95:.1f} ms", f"{worst:.1f} ms")],
    )


def touch_anew(memory: mmap.mmap, shared: mmap.mmap) -> None:
    """Touch all pages for the first time whenever the first word of ``shared`` is set; unset it then."""
    array = np.frombuffer(memory, np.uint8)
    go = np.frombuffer(shared, np.uint64)
    while os.getppid() != 1:
        if go[0]:
            memory.madvise(mmap.MADV_DONTNEED)
            array[::PAGE] = 1
            go[0] = 0
        time.sleep(0.001)


def decoding(pages: int, turns: int) -> None:
    """Print how fast records become reports, against a loop that unpacks one after the other."""
    layout = struct.Struct("<QiQi?ii")
    vectors, loops = [], []
    with target(pages * PAGE, touch_anew) as (pid, _, shared):
        go = np.frombuffer(shared, np.uint64)
        recorder = FaultRecorder()
        try:
            recorder.watch(pid)
            for _ in range(turns):
                go[0] = 1
                while go[0]:
                    time.sleep(0.001)
                begin = time.thread_time()
                found = recorder.read()
                columns = ("pid", "addr", "node_id", "write", "cpu", "tid")
                report_array(len(found), **{name: found[name] for name in columns})
                vectors.append(len(found) / (time.thread_time() - begin))
                raw = found.tobytes()
                begin = time.thread_time()
                reports = [
                    damon_access_report(pid, addr, 1, node_id=node, write=write, cpu=cpu, tid=tid)
                    for _, pid, addr, node, write, cpu, tid in layout.iter_unpack(raw)
                ]
                loops.append(len(reports) / (time.thread_time() - begin))
            lost = recorder.lost
        finally:
            recorder.close()
    table(
        f"From the rings to reports, {pages} faults at a time, {lost} lost",
        ("rings to a batch", "unpacked one by one", "ratio"),
        [
            (
                f"{median(vectors) / 1e6:.1f} M/s",
                f"{median(loops) / 1e6:.2f} M/s",
                f"{median(v / one for v, one in zip(vectors, loops, strict=True)):.0f}x",
            )
        ],
    )


def main() -> int:
    """Print the tables."""
    args = arguments(__doc__.splitlines()[0] if __doc__ else "")
    machine = linux_machine()
    try:
        if args.quick:
            cost(machine, 0.5, 3, ("page_fault",))
        else:
            cost(machine, 1.5, 8, ("page_table", "page_fault"))
        latency(machine, 3 if args.quick else 20)
        decoding(1 << 15, 5 if args.quick else 9)
    finally:
        machine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
