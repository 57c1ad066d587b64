# SPDX-License-Identifier: GPL-2.0-only
"""What monitoring physical addresses costs: a sample, an update, and sampling intervals that are missed.

Side by side with the way that asks files for each page frame: /proc/PID/pagemap whether it is still there and of one
process, /proc/kpageflags whether it is free; and with updates as a whole. On this machine, with its processes and one
of 1 GiB, a quarter of which is read all the time.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import numpy as np
from measure import arguments, side_by_side, table

from kdamon.arrays import U64Array
from kdamon.core import (
    damon_add_target,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_start,
    damon_stop,
)
from kdamon.damon import damon_attrs, damon_ops_id
from kdamon.mm import OLD, UNKNOWN, Answers
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.proc.kpageflags import shared_folios
from kdamon.mm.sampling.frames import LinuxFrames
from kdamon.mm.sampling.physical import Physical
from kdamon.regions import Regions

GIB = 1 << 30
PAGE = mmap.PAGESIZE


class ByFiles(Physical):
    """Asks for each page frame, and updates as a whole."""

    def begin_update(self) -> None:
        """At once."""
        self.update()

    def end_sample(self, addrs: U64Array) -> Answers:
        """One system call or more for each address."""
        answers = np.full(len(addrs), UNKNOWN, np.uint8)
        pfns = addrs // np.uint64(PAGE)
        left = np.ones(len(addrs), np.bool_)
        for _, mm, rows, there in self._sampled:
            result = mm.end_sample(there)
            same = mm.frames(there) == pfns[rows]
            answers[rows[same]] = result[same]
            left[rows[same]] = False
        answers[left] = np.where(shared_folios().unreachable(pfns[left]), OLD, UNKNOWN)
        return answers


def frames(machine: LinuxMachine) -> LinuxFrames:
    """The page frames of this machine."""
    return LinuxFrames(shared_walker(), machine.get_task)


@contextmanager
def reader(size: int) -> Iterator[int]:
    """A process of ``size`` bytes that reads a quarter of it all the time, on the second processor."""
    ready, release = os.pipe()
    pid = os.fork()
    if not pid:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        pages = np.frombuffer(memory, np.uint8)[::PAGE]
        pages[:] = 1
        os.write(release, b"1")
        while os.getppid() != 1:
            pages[: len(pages) // 4].sum()
            time.sleep(0.002)
        os._exit(0)
    try:
        os.read(ready, 1)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(release)


def anywhere(rng: np.random.Generator, ranges: U64Array, count: int) -> U64Array:
    """Addresses spread evenly over ``ranges``, ascending as those of regions are."""
    sizes = (ranges[:, 1] - ranges[:, 0]).astype(np.float64)
    which = rng.choice(len(ranges), count, p=sizes / sizes.sum())
    return np.sort(ranges[which, 0] + (rng.random(count) * sizes[which]).astype(np.uint64))


def known(rng: np.random.Generator, memory: Physical, count: int) -> U64Array:
    """Addresses of page frames that one process maps."""
    ranges = np.column_stack((memory._map._first, memory._map._last)) * np.uint64(PAGE)
    return anywhere(rng, ranges, count)


def samples(rivals: list[Physical], turns: int) -> None:
    """Both halves of a sample; the first one, which clears accessed bits, is the same."""
    rng = np.random.default_rng(1)
    ram = rivals[1].ram()
    # In a virtual machine what the kernel knows of a page may have to be fetched from the host, the first time.
    everywhere = np.concatenate([np.arange(start, end, 64 * PAGE, np.uint64) for start, end in ram])
    rivals[1].begin_sample(everywhere)
    rivals[1].end_sample(everywhere)
    places: dict[str, Callable[[Physical, int], U64Array]] = {
        "all memory": lambda _, count: anywhere(rng, ram, count),
        "known": lambda memory, count: known(rng, memory, count),
    }

    def begun(memory: Physical, addrs: U64Array) -> U64Array:
        memory.begin_sample(addrs)
        return addrs

    rows = []
    for where, choose in places.items():
        for count in (100, 1000):
            clear = [(partial(choose, memory, count), memory.begin_sample) for memory in rivals]
            read = [
                (
                    lambda memory=memory, choose=choose, count=count: begun(memory, choose(memory, count)),
                    memory.end_sample,
                )
                for memory in rivals
            ]
            first, second = (side_by_side(*halves, turns=turns) for halves in (clear, read))
            rows.append(
                (where, count, *(f"{1e3 * t:.2f}" for t in (first[1], *second)), f"{second[0] / second[1]:.1f}")
            )
    table("a sample, ms of CPU", ("where", "regions", "clear", "read by files", "read", "ratio"), rows)


def updates(rivals: list[Physical], turns: int) -> None:
    """How long sampling waits for an update at worst."""
    by_files, memory = rivals
    nowhere = np.empty(0, np.uint64)
    whole, worst, pieces = [], [], []
    for _ in range(turns):
        begin = time.thread_time()
        by_files.begin_update()
        whole.append(time.thread_time() - begin)
        memory.begin_update()
        times = []
        while memory._looking is not None:
            begin = time.thread_time()
            memory.begin_sample(nowhere)
            times.append(time.thread_time() - begin)
        worst.append(max(times))
        pieces.append((len(times), sum(times)))
    at_once, longest = median(whole), median(worst)
    count, total = (median(column) for column in zip(*pieces, strict=True))
    row = (
        by_files.known()[0] >> 20,
        f"{at_once * 1e3:.0f}",
        f"{total * 1e3:.0f}",
        f"{count:.0f}",
        f"{longest * 1e3:.1f}",
    )
    header = ("MiB known", "at once", "in pieces", "pieces", "the longest", "ratio")
    table("an update, ms of CPU", header, [(*row, f"{at_once / longest:.1f}")])


def missed(machine: LinuxMachine, seconds: float) -> None:
    """A kdamond with all memory in 1000 regions, 5 ms and an update each second: also what it is late for.

    That says more about the machine than about the kdamond when others work there, too.
    """
    rows = []
    for _ in range(2):
        for name, kind in (("by files", ByFiles), ("now", Physical)):
            ctx = damon_new_ctx(seed=1)
            ctx.machine = machine
            damon_select_ops(ctx, damon_ops_id.DAMON_OPS_PADDR)
            damon_set_attrs(ctx, damon_attrs(5000, 100_000, 1_000_000, min_nr_regions=1000, max_nr_regions=1100))
            t = damon_new_target()
            t.task = memory = kind(frames(machine))
            t.regions = Regions(*memory.ram().T)
            damon_add_target(ctx, t)
            damon_start([ctx], exclusive=False)
            begin = time.process_time()
            time.sleep(seconds)
            used = time.process_time() - begin
            damon_stop([ctx])
            passed = ctx.passed_sample_intervals
            share = ctx.missed_intervals / max(ctx.missed_intervals + passed, 1)
            unknown = ctx.nr_unknown / max(ctx.nr_samples, 1)
            rows.append((name, f"{1e3 * used / max(passed, 1):.1f}", f"{100 * share:.0f} %", f"{100 * unknown:.1f} %"))
    table("1000 regions, 5 ms", ("", "ms of CPU a sample", "missed", "unknown"), rows)


def main() -> int:
    """Run it."""
    quick = arguments(__doc__ or "").quick
    try:
        machine = linux_machine("page_table")
        machine.physical_memory().put()
    except OSError as error:
        print(f"skipped: {error.strerror}")
        return 0
    with reader(GIB // 4 if quick else GIB):
        rivals = [ByFiles(frames(machine)), Physical(frames(machine))]
        for memory in rivals:
            memory.update()
        updates(rivals, 3 if quick else 7)
        samples(rivals, 5 if quick else 40)
        for memory in rivals:
            memory.put()
        missed(machine, 3 if quick else 15)
    machine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
