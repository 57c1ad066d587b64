# SPDX-License-Identifier: GPL-2.0-only
"""The least that monitoring accessed bits can cost here: in each interval one BPF call and one process_madvise().

For each region the BPF program walks the page table for an address and counts it if it is young, chooses another one,
walks for that, and lists the young ones in the memory that process_madvise(MADV_COLD) then takes as its iovec. There
are no merges, no splits, no reports and no proof that a page was cleared. It follows the target to the only CPU in the
address space's mm_cpumask, where the advice has no other CPU to interrupt. Without regions it is a loop of sleeps.

    python tests/bench/floor.py PID START END REGIONS SAMPLE_US SECONDS

It prints ``ready``, and after SECONDS or on SIGINT one JSON object: intervals, those missed with their times, pages
cleared, accesses found in each region.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdamon.kernel import NSEC_PER_USEC, PAGE_SIZE
from kdamon.lib.syscalls import NR_PROCESS_MADVISE
from kdamon.mm.bpf.btf import vmlinux
from kdamon.mm.bpf.program import R0, R1, R2, R3, R4, R6, R7, R8, R9, Array, Assembler, Helper, Program
from kdamon.mm.bpf.walk_program import ACCESSED, CLEARABLE, HEADER_SIZE, Layout, PageWalk, Word
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.mman import MADV_COLD

__all__ = ["Floor", "command"]

#: The kernel takes at most so many ranges in one call (UIO_MAXIOV), and only whole calls are comparable.
CAPACITY = 1024
CLOCK_MONOTONIC, TIMER_ABSTIME = 1, 1
#: Words of the header that the walk does not use: the length of the list, the target's CPUs, the random number.
NR_RANGES, CPUMASK, SEED = 11, 12, 13
#: Arrays after the header, a word for each region: the sampled address, the region, how often it was accessed.
ADDRS = HEADER_SIZE
STARTS = ADDRS + 8 * CAPACITY
SPANS = STARTS + 8 * CAPACITY
COUNTS = SPANS + 8 * CAPACITY
#: Two words for each page to clear, as process_madvise() reads them.
RANGES = COUNTS + 8 * CAPACITY
SIZE = -(-(RANGES + 16 * CAPACITY) // PAGE_SIZE) * PAGE_SIZE


def command(pid: int, memory: tuple[int, int], regions: int, sample_us: int, seconds: int) -> list[str]:
    """The command line of a floor, at most for ``seconds``; without regions, of an empty loop."""
    return [sys.executable, str(Path(__file__)), *(str(one) for one in (pid, *memory, regions, sample_us, seconds))]


def cpumask() -> int | None:
    """Where the bits of the CPUs are in a ``struct mm_struct``; None: unknown."""
    for name in ("cpu_bitmap", "flexible_array"):
        try:
            return vmlinux().offset("mm_struct", name)
        except OSError:
            continue
    return None


def interval_program(layout: Layout, map_fd: int) -> Assembler:
    """A whole sampling interval. R9 is the shared memory, R6 the word of a region in the first array."""
    asm = Assembler()
    asm.load_map_value(R9, map_fd)
    asm.op("mov", R1, 0)
    asm.store(8, R9, 8 * NR_RANGES, R1)
    if (found := cpumask()) is not None:
        asm.load(R3, R9, 8 * Word.MM)
        asm.op("add", R3, found)
        asm.read_kernel(-8, "loop")
        asm.store(8, R9, 8 * CPUMASK, R1)
    asm.label("loop")
    asm.load(R1, R9, 8 * Word.COUNT)
    asm.load_function(R2, "each")
    asm.op("mov", R3, 0)
    asm.op("mov", R4, 0)
    asm.call(Helper.LOOP)
    asm.op("mov", R0, 0)
    asm.exit()

    asm.label("each")
    asm.op_reg("mov", R6, R1)
    asm.load_map_value(R9, map_fd)
    asm.jump_if("jgt", R6, CAPACITY - 1, "stop")
    asm.op("lsh", R6, 3)
    asm.op_reg("add", R6, R9)
    asm.load(R7, R6, ADDRS)
    asm.load(R8, R9, 8 * Word.PGD)
    PageWalk(layout).emit(asm, "end ", whole=False)
    asm.jump_if("jset", R2, ACCESSED, "young")
    asm.jump("choose")
    asm.label("young")
    asm.load(R1, R6, COUNTS)
    asm.op("add", R1, 1)
    asm.store(8, R6, COUNTS, R1)
    asm.label("choose")
    choose(asm)
    asm.load(R8, R9, 8 * Word.PGD)
    PageWalk(layout).emit(asm, "begin ", whole=True)
    asm.jump_if("jset", R2, CLEARABLE, "list")
    asm.jump("next")
    asm.label("list")
    append(asm)
    asm.label("next")
    asm.op("mov", R0, 0)
    asm.exit()
    asm.label("stop")
    asm.op("mov", R0, 1)
    asm.exit()
    return asm


def choose(asm: Assembler) -> None:
    """R7 = a random page of the region (Knuth's linear congruential generator, its upper half), which is stored."""
    asm.load(R1, R9, 8 * SEED)
    asm.load_number(R2, 6364136223846793005)
    asm.op_reg("mul", R1, R2)
    asm.op("add", R1, 1442695041)
    asm.store(8, R9, 8 * SEED, R1)
    asm.op("rsh", R1, 32)
    asm.load(R2, R6, SPANS)
    asm.op_reg("mul", R1, R2)
    asm.op("rsh", R1, 32)
    asm.load(R7, R6, STARTS)
    asm.op_reg("add", R7, R1)
    asm.op("and", R7, -PAGE_SIZE)
    asm.store(8, R6, ADDRS, R7)


def append(asm: Assembler) -> None:
    """Add the sampled page to the list."""
    asm.load(R7, R6, ADDRS)
    asm.load(R1, R9, 8 * NR_RANGES)
    asm.jump_if("jgt", R1, CAPACITY - 1, "stop")
    asm.op_reg("mov", R2, R1)
    asm.op("add", R2, 1)
    asm.store(8, R9, 8 * NR_RANGES, R2)
    asm.op("lsh", R1, 4)
    asm.op_reg("add", R1, R9)
    asm.op("add", R1, RANGES)
    asm.store(8, R1, 0, R7)
    asm.op("mov", R2, PAGE_SIZE)
    asm.store(8, R1, 8, R2)


class Floor:
    """Samples ``regions`` regions of equal size in memory from ``start`` to ``end`` (bytes) of process ``pid``."""

    def __init__(self, pid: int, start: int, end: int, regions: int) -> None:
        if not 0 < regions <= CAPACITY:
            raise SystemExit(f"a floor has 1 to {CAPACITY} regions, not {regions}")
        self._array = Array(SIZE)
        self._program = Program(interval_program(Layout(vmlinux()), self._array.fd), "kdamon_floor", ["each"])
        whole = np.frombuffer(self._array.memory, dtype=np.uint8)
        self._header = whole[:HEADER_SIZE].view(np.uint64)
        walker = shared_walker()
        self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        place = walker.page_directory(self._pagemap)
        # Where physical memory is mapped, the walker's calibration found out.
        self._header[:] = walker.header
        self._header[[Word.MM, Word.PGD]] = place
        self._header[Word.COUNT] = regions
        self._header[SEED] = 1
        edges = np.linspace(start, end, regions + 1).astype(np.uint64) // PAGE_SIZE * PAGE_SIZE
        for array, values in ((ADDRS, edges[:-1]), (STARTS, edges[:-1]), (SPANS, np.diff(edges))):
            whole[array : array + 8 * regions].view(np.uint64)[:] = values
        self._counts = whole[COUNTS : COUNTS + 8 * regions].view(np.uint64)
        self._words = (ctypes.c_uint64 * (HEADER_SIZE // 8)).from_buffer(self._array.memory)
        self._cpu = 0
        # Made once: conversions cost more than the call.
        self._advise = functools.partial(
            ctypes.CDLL(None).syscall,
            ctypes.c_long(NR_PROCESS_MADVISE),
            ctypes.c_long(os.pidfd_open(pid)),
            ctypes.c_void_p(whole[RANGES:].ctypes.data),
        )
        self._advice = ctypes.c_long(MADV_COLD), ctypes.c_long(0)
        self.cleared = 0

    def interval(self) -> None:
        """One sampling interval."""
        self._program.run()
        words = self._words
        if ranges := words[NR_RANGES]:
            self.cleared += ranges
            self._advise(ctypes.c_long(ranges), *self._advice)
        mask = words[CPUMASK]
        if mask != self._cpu and mask and not mask & (mask - 1):
            self._cpu = mask
            os.sched_setaffinity(0, {mask.bit_length() - 1})

    def nr_accesses(self) -> list[int]:
        """How many samples of each region were young."""
        found: list[int] = self._counts.tolist()
        return found


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def loop(work: Callable[[], object], sample_us: int, seconds: int) -> dict[str, Any]:
    """Do ``work`` at the end of each interval until SIGINT, or for ``seconds``; misses count as the kdamond's do."""
    nanosleep = ctypes.CDLL(None).clock_nanosleep
    until = _Timespec()
    place = ctypes.byref(until)
    interval = sample_us * NSEC_PER_USEC
    stops: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: stops.append(number))
    missed: list[tuple[int, int]] = []
    intervals = 0
    deadline = time.monotonic_ns()
    end = deadline + seconds * 10**9
    print("ready", flush=True)
    while not stops and deadline < end:
        now = time.monotonic_ns()
        deadline += interval
        if deadline - now < interval // 2:
            late = -(-(now + interval // 2 - deadline) // interval)
            missed.append((now, late))
            deadline += late * interval
        until.seconds, until.nanoseconds = divmod(deadline, 10**9)
        nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, place, None)
        work()
        intervals += 1
    return {"intervals": intervals, "missed": missed}


def main() -> int:
    """Run to the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name in ("pid", "start", "end", "regions", "sample_us", "seconds"):
        parser.add_argument(name, type=int)
    args = parser.parse_args()
    floor = Floor(args.pid, args.start, args.end, args.regions) if args.regions else None
    result = loop(floor.interval if floor else lambda: None, args.sample_us, args.seconds)
    if floor:
        result |= {"cleared": floor.cleared, "nr_accesses": floor.nr_accesses()}
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
