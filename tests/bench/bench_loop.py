# SPDX-License-Identifier: GPL-2.0-only
"""CPU time of a kdamond at 1000 regions and 5 ms, against a loop that only keeps the deadlines.

Both are threads of this process on its real clock; they take turns. The kdamond monitors a simulated address space
whose answers are as cheap as can be; what they cost is shown beside, because on real memory something else is paid.

The last line is the same kdamond without sleeping, on a virtual clock: the work itself. What is missing between it and
the kdamond on the real clock is what the machine takes for waking up, with caches that others used meanwhile.
"""

from __future__ import annotations

import sys
import threading
import time
from statistics import median

import numpy as np
from measure import arguments, table

from kdamon.arrays import U64Array
from kdamon.core import (
    damon_add_target,
    damon_call,
    damon_new_ctx,
    damon_new_target,
    damon_set_attrs,
    damon_start,
    damon_stop,
    run_ctx,
)
from kdamon.damon import damon_attrs, damon_call_control, damon_ctx
from kdamon.kernel import NSEC_PER_USEC, RealClock, VirtualClock
from kdamon.mm import Answers
from kdamon.regions import Regions
from kdamon.vaddr import _vaddr_ops

SAMPLE_US = 5000
START = 1 << 40
BLOCK = 4 << 20


class Memory:
    """An address space in blocks of 4 MB, each as hot as ever; a process and its machine, too."""

    def __init__(self, blocks: int) -> None:
        rng = np.random.default_rng(0)
        # A thousand samples in a row for each block.
        heat = rng.choice([0.0, 0.1, 0.3, 0.7, 1.0], blocks)
        self.samples = (rng.random((1000, blocks)) < heat).astype(np.uint8)
        self.turn = 0
        self.pid = 1
        self.primitive = "page_table"

    def valid(self) -> bool:
        return True

    def get_mm(self) -> Memory:
        return self

    def put(self) -> None:
        pass

    def begin_sample(self, addrs: U64Array) -> None:
        self.turn = (self.turn + 1) % 1000

    def end_sample(self, addrs: U64Array) -> Answers:
        answers: Answers = self.samples[self.turn].take((addrs - np.uint64(START)) // np.uint64(BLOCK))
        return answers


class Kdamond:
    """A kdamond at about 1000 regions."""

    def __init__(self) -> None:
        blocks = 1000
        self.memory = Memory(blocks)
        self.ctx: damon_ctx = damon_new_ctx(seed=1)
        self.ctx.ops = _vaddr_ops
        damon_set_attrs(self.ctx, damon_attrs(SAMPLE_US, 20 * SAMPLE_US, min_nr_regions=400, max_nr_regions=1200))
        t = damon_new_target()
        t.task = t.mm = self.memory  # type: ignore[assignment]
        t.regions = Regions([START], [START + blocks * BLOCK])
        damon_add_target(self.ctx, t)
        self.nr_regions: list[int] = []

    def _now(self) -> tuple[int, int]:
        seen: list[tuple[int, int]] = []
        damon_call(self.ctx, damon_call_control(lambda _: seen.append((time.thread_time_ns(), time.monotonic_ns()))))
        return seen[0]

    def share(self, seconds: float) -> float:
        """CPU time over wall time."""
        damon_start([self.ctx], exclusive=False)
        try:
            time.sleep(0.5)
            cpu, wall = self._now()
            samples, sis = self.ctx.nr_samples, self.ctx.passed_sample_intervals
            time.sleep(seconds)
            cpu_end, wall_end = self._now()
            self.nr_regions.append(round((self.ctx.nr_samples - samples) / (self.ctx.passed_sample_intervals - sis)))
        finally:
            damon_stop([self.ctx])
        return (cpu_end - cpu) / (wall_end - wall)

    def young_share(self) -> float:
        """What the simulated answers alone cost, as a share of the sampling interval."""
        n = round(median(self.nr_regions))
        addrs = np.sort(np.random.default_rng(1).integers(START, START + 1000 * BLOCK, n).astype(np.uint64))
        times = []
        for _ in range(300):
            begin = time.thread_time_ns()
            self.memory.begin_sample(addrs)
            self.memory.end_sample(addrs)
            times.append(time.thread_time_ns() - begin)
        return median(times) / (SAMPLE_US * NSEC_PER_USEC)

    def warm_share(self, seconds: float) -> float:
        """The same without sleeping: CPU time of the work in simulated time."""
        self.ctx.clock = VirtualClock()
        begin = time.thread_time()
        run_ctx(self.ctx, seconds)
        return (time.thread_time() - begin) / seconds


def empty_share(seconds: float) -> float:
    """The same for a thread that sleeps from deadline to deadline."""
    result: list[float] = []

    def loop() -> None:
        clock, wake = RealClock(), threading.Event()
        interval = SAMPLE_US * NSEC_PER_USEC
        begin = deadline = clock.now()
        cpu = time.thread_time_ns()
        while deadline - begin < seconds * 1e9:
            deadline += interval
            clock.sleep_until(deadline, wake)
        result.append((time.thread_time_ns() - cpu) / (clock.now() - begin))

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    return result[0]


def main() -> int:
    """Print the table."""
    args = arguments(__doc__.splitlines()[0] if __doc__ else "")
    seconds, turns = (0.6, 5) if args.quick else (4.0, 5)
    empty, monitored, difference, regions, missed = [], [], [], [], 0
    for _ in range(turns):
        kdamond = Kdamond()
        empty.append(empty_share(seconds))
        monitored.append(kdamond.share(seconds))
        difference.append(monitored[-1] - empty[-1])
        regions.append(round(median(kdamond.nr_regions)))
        missed += kdamond.ctx.missed_intervals
    young = kdamond.young_share()
    warm = median(Kdamond().warm_share(4 * seconds) for _ in range(turns))
    rows = [
        ("deadlines only", "-", f"{median(empty):.2%}", "-"),
        ("kdamond", round(median(regions)), f"{median(monitored):.2%}", f"+{median(difference) * 100:.2f} points"),
        ("the simulated answers, warm", round(median(regions)), f"{young:.2%}", "-"),
        ("kdamond without sleeping", round(median(regions)), f"{warm:.2%}", f"+{warm * 100:.2f} points"),
    ]
    table(
        f"CPU share of a thread at {SAMPLE_US} us (aim: +0.5 points), {turns} x {seconds} s, {missed} intervals missed",
        ("thread", "regions", "CPU", "more"),
        rows,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
