# SPDX-License-Identifier: GPL-2.0-only
"""What schemes cost: a pass, the actions themselves, and the slow-down of a process whose cold memory is paged out.

A pass is compared with a plain loop over one object for each region, which does the same; actions on many regions at
once with the same ones region by region. The process is a child of this script's that reads the hot half of a file's
memory as fast as it can; runs with and without the scheme are paired (A B B A), and each pair's ratio counts.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from bench_page_fault import rate
from measure import arguments, interval, side_by_side, table

from kdamon.core import (
    damon_add_scheme,
    damon_add_target,
    damon_destroy_ctx,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_set_regions,
    damon_start,
    damon_stop,
)
from kdamon.damon import (
    DAMOS_MAX_SCORE,
    damon_addr_range,
    damon_attrs,
    damon_ctx,
    damon_operations,
    damon_ops_id,
    damon_target,
    damos,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_quota,
)
from kdamon.damos import kdamond_apply_schemes
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.ops_common import cold_scores, damon_cold_score
from kdamon.regions import Regions
from kdamon.vaddr import damon_va_apply_scheme

MIB = 1 << 20
SIZE = 256 * MIB
HOT = 128 * MIB
PAGE = mmap.PAGESIZE
REGION = 64 * PAGE


# A pass.


@dataclass(slots=True)
class Region:
    start: int
    end: int
    nr_accesses: int
    last_nr_accesses: int
    age: int
    unknown_age: int = 0


class Loop:
    """One scheme, region by region on objects."""

    def __init__(self, regions: list[Region], s: damos, ctx: damon_ctx) -> None:
        self.regions = regions
        self.s = s
        self.ctx = ctx
        self.tried = 0

    def score(self, r: Region) -> int:
        return damon_cold_score(self.ctx, r, self.s)  # type: ignore[arg-type]

    def matches(self, r: Region) -> bool:
        pattern = self.s.pattern
        return (
            pattern.min_sz_region <= r.end - r.start <= pattern.max_sz_region
            and pattern.min_nr_accesses <= r.nr_accesses <= pattern.max_nr_accesses
            and pattern.min_age_region <= r.age <= pattern.max_age_region
        )

    def run(self) -> None:
        """Score what matches where there is a quota, then go over all regions as far as the quota lets it."""
        quota = self.s.quota
        least = 0
        if quota.sz:
            histogram = [0] * (DAMOS_MAX_SCORE + 1)
            for r in self.regions:
                if self.matches(r):
                    histogram[self.score(r)] += r.end - r.start
            total = 0
            for least in range(DAMOS_MAX_SCORE, -1, -1):
                total += histogram[least]
                if total >= quota.sz:
                    break
        charged = 0
        for r in self.regions:
            if quota.sz and charged >= quota.sz:
                break
            if not self.matches(r):
                continue
            if quota.sz and self.score(r) < least:
                continue
            self.tried += 1
            charged += r.end - r.start
            r.age = 0


def prepared(count: int, s: damos) -> damon_ctx:
    """A context whose scheme is due; nothing is really done to memory."""
    ctx = damon_new_ctx(seed=1)
    ctx.ops = damon_operations(
        id=damon_ops_id.DAMON_OPS_VADDR,
        get_scheme_score=damon_cold_score,
        get_scheme_scores=cold_scores,
        apply_scheme=lambda _ctx, _t, rows, _s: (np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64)),
    )
    damon_set_attrs(ctx, damon_attrs(min_nr_regions=10, max_nr_regions=count))
    t = damon_new_target()
    # Every second page between them is a gap: they stay as many as they are.
    starts = np.arange(count, dtype=np.uint64) * np.uint64(REGION + PAGE)
    t.regions = Regions(starts, starts + np.uint64(REGION))
    rng = np.random.default_rng(1)
    t.regions.nr_accesses[:] = t.regions.last_nr_accesses[:] = rng.integers(0, 21, count)
    t.regions.age[:] = rng.integers(0, 100, count)
    damon_add_target(ctx, t)
    damon_add_scheme(ctx, s)
    s.next_apply_sis = ctx.passed_sample_intervals
    return ctx


def scheme(kind: str) -> damos:
    """What is measured: a pattern that nothing has, stat of everything, or pageout by a quota with scores."""
    if kind == "pageout, none matches":
        return damos(damos_access_pattern(min_age_region=1000), action=damos_action.DAMOS_PAGEOUT)
    if kind == "stat, all match":
        return damos(damos_access_pattern())
    quota = damos_quota(reset_interval=1, sz=20 * REGION, weight_nr_accesses=1, weight_age=1)
    return damos(damos_access_pattern(max_nr_accesses=10), action=damos_action.DAMOS_PAGEOUT, quota=quota)


def passes(counts: tuple[int, ...], turns: int) -> None:
    """Print the time of a pass beside that of the loop."""
    rows = []
    for count in counts:
        for kind in ("pageout, none matches", "stat, all match", "pageout, quota with scores"):

            def objects(count: int = count, kind: str = kind) -> Loop:
                ctx = prepared(count, scheme(kind))
                (regions,) = (t.regions for t in ctx.adaptive_targets)
                names = ("start", "end", "nr_accesses", "last_nr_accesses", "age")
                columns = [getattr(regions, name) for name in names]
                found = [Region(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
                return Loop(found, ctx.schemes[0], ctx)

            def arrays(count: int = count, kind: str = kind) -> damon_ctx:
                return prepared(count, scheme(kind))

            ours, loop = side_by_side(
                (arrays, kdamond_apply_schemes),  # type: ignore[arg-type]
                (objects, Loop.run),  # type: ignore[arg-type]
                turns=turns,
            )
            rows.append((kind, count, f"{ours * 1e6:.0f} us", f"{loop * 1e6:.0f} us", f"{loop / ours:.1f}x"))
    table(
        "A pass of kdamond_apply_schemes(); what the action itself takes is not in it",
        ("scheme", "regions", "kdamon", "loop", "ratio"),
        rows,
    )


# A real process.


@contextmanager
def reader() -> Iterator[tuple[int, int, mmap.mmap]]:
    """A process that reads the first half of a file's memory without end: its number, the address, what it counts."""
    shared = mmap.mmap(-1, PAGE)
    addresses, sending = os.pipe()
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        for _ in range(SIZE // (4 * MIB)):
            file.write(b"\1" * (4 * MIB))
        file.flush()
        os.fsync(file.fileno())
        pid = os.fork()
        if not pid:
            memory = mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE)
            array = np.frombuffer(memory, np.uint8)
            array[::PAGE].max()
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
            os.write(sending, struct.pack("<Q", ctypes.addressof(ctypes.c_char.from_buffer(memory))))
            counter = np.frombuffer(shared, np.uint64)
            hot = array[:HOT:PAGE]
            while os.getppid() != 1:
                hot.max()
                counter[0] += len(hot)
            os._exit(0)
        try:
            yield pid, struct.unpack("<Q", os.read(addresses, 8))[0], shared
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(addresses)
            os.close(sending)


def monitoring(machine: LinuxMachine, pid: int, start: int, s: damos | None) -> damon_ctx:
    """Monitor the process's memory, with the scheme if there is one."""
    ctx = damon_new_ctx(seed=1)
    ctx.machine = machine
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_FVADDR)
    damon_set_attrs(ctx, damon_attrs(5000, 100_000))
    t = damon_new_target()
    t.pid = pid
    damon_set_regions(t, [damon_addr_range(start, start + SIZE)], PAGE)
    t.task = machine.get_task(pid)
    damon_add_target(ctx, t)
    if s is not None:
        damon_add_scheme(ctx, s)
    return ctx


def actions(machine: LinuxMachine, counts: tuple[int, ...], turns: int) -> None:
    """Print what actions take when all regions are given at once, and when they are given one by one."""
    anon = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON, matching=True, allow=True)
    schemes = {
        "stat, filter anon": damos(ops_filters=[anon], ops_filters_default_reject=True),
        "cold": damos(action=damos_action.DAMOS_COLD),
        "pageout": damos(action=damos_action.DAMOS_PAGEOUT),
    }
    rows: list[tuple[object, ...]] = []
    with reader() as (pid, start, _):
        time.sleep(1)
        everything = resident(pid)

        def read_again() -> None:
            """Wait until what was paged out is there again."""
            while time.sleep(0.1) or resident(pid) < everything - MIB:
                pass

        for count in counts:
            ctx = monitoring(machine, pid, start, None)
            (t,) = ctx.adaptive_targets
            edges = np.linspace(start, start + HOT, count + 1).astype(np.uint64) // np.uint64(PAGE) * np.uint64(PAGE)
            t.regions = Regions(edges[:-1], edges[1:])
            for name, s in schemes.items():

                def apply(rows: np.ndarray, s: damos = s, ctx: damon_ctx = ctx, t: damon_target = t) -> None:
                    damon_va_apply_scheme(ctx, t, rows, s)

                def one_by_one(_: object, apply: Callable[[np.ndarray], None] = apply, count: int = count) -> None:
                    for row in range(count):
                        apply(np.array([row]))

                whole, single = side_by_side(
                    (lambda count=count: read_again() or np.arange(count), apply), (read_again, one_by_one), turns=turns
                )
                rows.append((name, count, f"{whole * 1e3:.1f} ms", f"{single * 1e3:.1f} ms", f"{single / whole:.1f}x"))
            damon_destroy_ctx(ctx)
    table(
        f"An action on all of {HOT // MIB} MiB that a process reads (CPU time)",
        ("action", "regions", "at once", "one by one", "ratio"),
        rows,
    )


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE


def slow_down(machine: LinuxMachine, seconds: float, pairs: int) -> None:
    """Print what monitoring alone and monitoring with pageout by a quota cost the process."""
    rows = []
    for name in ("monitored", "pageout, 16 MiB/s"):
        ratios, freed, quiet = [], [], 0.5
        for pair in range(pairs):
            rates = {}
            # A new one each time: what was paged out once is not there any more.
            with reader() as (pid, start, shared):
                for with_scheme in (True, False) if pair % 2 else (False, True):
                    if not with_scheme:
                        time.sleep(quiet)
                        rates[False] = rate(shared, seconds)
                        continue
                    quota = damos_quota(reset_interval=1000, sz=16 * MIB, weight_nr_accesses=1, weight_age=1)
                    pattern = damos_access_pattern(min_sz_region=PAGE, max_nr_accesses=0, min_age_region=10)
                    s = damos(pattern, action=damos_action.DAMOS_PAGEOUT, quota=quota)
                    ctx = monitoring(machine, pid, start, s if name != "monitored" else None)
                    before = resident(pid)
                    damon_start([ctx], exclusive=False)
                    try:
                        time.sleep(quiet)
                        rates[True] = rate(shared, seconds)
                    finally:
                        damon_stop([ctx])
                    freed.append(before - resident(pid))
            ratios.append(rates[False] / rates[True])
        low, high = interval(ratios)
        rows.append(
            (
                name,
                f"{median(freed) / MIB:.0f} MiB",
                f"{median(ratios) - 1:+.1%}",
                f"{low - 1:+.1%} .. {high - 1:+.1%}",
            )
        )
    table(
        f"A process that reads 128 of its 256 MiB, {pairs} pairs of {seconds} s",
        ("", "paged out", "slow-down", "95 %"),
        rows,
    )


def main() -> int:
    """Print the tables."""
    args = arguments(__doc__.splitlines()[0] if __doc__ else "")
    passes((1000,) if args.quick else (100, 1000, 10_000), 5 if args.quick else 31)
    machine = linux_machine()
    try:
        actions(machine, (100,) if args.quick else (10, 100, 1000), 3 if args.quick else 11)
        slow_down(machine, *((0.8, 3) if args.quick else (4.0, 8)))
    finally:
        machine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
