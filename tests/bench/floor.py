# SPDX-License-Identifier: GPL-2.0-only
"""The least that monitoring accessed bits can cost here: in each interval one BPF call and one process_madvise().

The BPF program walks the page table for one address in each region and counts the young ones, chooses other addresses,
walks for these, and lists the young ones in the memory that process_madvise(MADV_COLD) then takes as its iovec. There
are no merges, no splits, no reports and no proof that a page was cleared. It follows the target to the only CPU in the
address space's mm_cpumask, where the advice has no other CPU to interrupt. Without regions it is a loop of sleeps.

    python tests/bench/floor.py PID START END REGIONS SAMPLE_US SECONDS

It prints ``ready``, and after SECONDS or on SIGINT one JSON object: intervals, those missed with their times, pages
cleared, accesses found in each region.
"""

from __future__ import annotations

import argparse
import ctypes
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
from kdamon.lib.syscalls import NR_BPF, NR_PROCESS_MADVISE, checked
from kdamon.mm.bpf.btf import vmlinux
from kdamon.mm.bpf.program import R0, R1, R2, R3, R4, R6, R7, R8, R9, Array, Assembler, Helper, Program
from kdamon.mm.bpf.walk_program import ACCESSED, CLEARABLE, HEADER_SIZE, Layout, Source, Word
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.mman import MADV_COLD

__all__ = ["Floor", "command"]

CAPACITY = 2048
#: The kernel takes at most this many ranges in one call (UIO_MAXIOV), and only whole calls are comparable.
MOST_RANGES = 1024
GET_PRANDOM_U32 = 7
CLOCK_MONOTONIC, TIMER_ABSTIME = 1, 1
#: After the walk program's own arrays: its own words, then one array of words after the other.
OWN = HEADER_SIZE + 17 * CAPACITY
MODE, NR_RANGES, CPUMASK = OWN, OWN + 8, OWN + 16
STARTS = OWN + 64
SPANS = STARTS + 8 * CAPACITY
COUNTS = SPANS + 8 * CAPACITY
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


class Interval(Source):
    """A whole sampling interval: the walk program's walk, twice for each region, with what comes after it."""

    def assemble_interval(self) -> Assembler:
        """The whole program."""
        asm = Assembler()
        asm.load_map_value(R9, self._map_fd)
        self._find_pgd(asm)
        found = cpumask()
        if found is not None:
            asm.load(R3, R9, 8 * Word.MM)
            asm.op("add", R3, found)
            asm.read_kernel(-8, "failed")
            self._put(asm, CPUMASK, R1)
        asm.op("mov", R1, 0)
        self._put(asm, NR_RANGES, R1)
        for mode in (0, 1):
            asm.op("mov", R1, mode)
            self._put(asm, MODE, R1)
            asm.load(R1, R9, 8 * Word.COUNT)
            asm.load_function(R2, "each")
            asm.op("mov", R3, 0)
            asm.op("mov", R4, 0)
            asm.call(Helper.LOOP)
        asm.op("mov", R1, 0)
        asm.jump("leave")
        asm.label("failed")
        asm.op("mov", R1, 1)
        asm.label("leave")
        asm.store(8, R9, 8 * Word.FAILED, R1)
        asm.op("mov", R0, 0)
        asm.exit()
        self._each(asm)
        return asm

    def _each(self, asm: Assembler) -> None:
        asm.label("each")
        asm.op_reg("mov", R6, R1)
        asm.load_map_value(R9, self._map_fd)
        asm.jump_if("jgt", R6, CAPACITY - 1, "stop")
        self._one(asm)
        asm.op_reg("mov", R7, R2)
        asm.op_reg("mov", R8, R6)
        asm.op("lsh", R8, 3)
        asm.op_reg("add", R8, R9)
        self._get(asm, R1, MODE, R9)
        asm.jump_if("jne", R1, 0, "list")
        self._check_and_choose(asm)
        self._list(asm)
        asm.label("next")
        asm.op("mov", R0, 0)
        asm.exit()
        asm.label("stop")
        asm.op("mov", R0, 1)
        asm.exit()

    def _check_and_choose(self, asm: Assembler) -> None:
        """Count the sample if it is young, and choose another address in the region."""
        asm.jump_if("jset", R7, ACCESSED, "young")
        asm.jump("choose")
        asm.label("young")
        self._get(asm, R1, COUNTS, R8)
        asm.op("add", R1, 1)
        asm.store(8, R3, 0, R1)
        asm.label("choose")
        asm.call(GET_PRANDOM_U32)
        asm.op("lsh", R0, 32)
        asm.op("rsh", R0, 32)
        self._get(asm, R1, SPANS, R8)
        asm.op_reg("mul", R0, R1)
        asm.op("rsh", R0, 32)
        self._get(asm, R1, STARTS, R8)
        asm.op_reg("add", R1, R0)
        asm.op("and", R1, -PAGE_SIZE)
        asm.store(8, R8, HEADER_SIZE, R1)
        asm.jump("next")

    def _list(self, asm: Assembler) -> None:
        """Add the sample to the list of ranges if the advice clears it."""
        asm.label("list")
        asm.jump_if("jset", R7, CLEARABLE, "clear")
        asm.jump("next")
        asm.label("clear")
        asm.load(R7, R8, HEADER_SIZE)
        self._get(asm, R1, NR_RANGES, R9)
        asm.jump_if("jgt", R1, MOST_RANGES - 1, "stop")
        asm.op_reg("mov", R2, R1)
        asm.op("add", R2, 1)
        asm.store(8, R3, 0, R2)
        asm.op("lsh", R1, 4)
        asm.op_reg("add", R1, R9)
        asm.op("add", R1, RANGES)
        asm.store(8, R1, 0, R7)
        asm.op("mov", R2, PAGE_SIZE)
        asm.store(8, R1, 8, R2)

    @staticmethod
    def _get(asm: Assembler, to: int, offset: int, base: int) -> None:
        """``to`` = the word at ``offset`` from ``base``; R3 is its place."""
        asm.op_reg("mov", R3, base)
        asm.op("add", R3, offset)
        asm.load(to, R3, 0)

    @staticmethod
    def _put(asm: Assembler, offset: int, value: int) -> None:
        """The word at ``offset`` in the shared memory = ``value``; R3 is its place."""
        asm.op_reg("mov", R3, R9)
        asm.op("add", R3, offset)
        asm.store(8, R3, 0, value)


class Floor:
    """Samples ``regions`` regions of equal size in memory from ``start`` to ``end`` (bytes) of process ``pid``."""

    def __init__(self, pid: int, start: int, end: int, regions: int) -> None:
        if not 0 < regions <= MOST_RANGES:
            raise SystemExit(f"a floor has 1 to {MOST_RANGES} regions, not {regions}")
        self._array = Array(SIZE)
        self._program = Program(
            Interval(Layout(vmlinux()), self._array.fd, CAPACITY).assemble_interval(), "kdamon_floor", "each"
        )
        whole = np.frombuffer(self._array.memory, dtype=np.uint8)
        self._header = whole[:HEADER_SIZE].view(np.uint64)
        self._own = whole[OWN : OWN + 64].view(np.uint64)
        # Where physical memory is mapped, the calibration found out.
        self._header[:] = shared_walker()._header
        edges = np.linspace(start, end, regions + 1).astype(np.uint64) // PAGE_SIZE * PAGE_SIZE
        for place, values in ((HEADER_SIZE, edges[:-1]), (STARTS, edges[:-1]), (SPANS, np.diff(edges))):
            whole[place : place + 8 * regions].view(np.uint64)[:] = values
        self._counts = whole[COUNTS : COUNTS + 8 * regions].view(np.uint64)
        self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._pidfd = os.pidfd_open(pid)
        self._header[Word.FD] = self._pagemap
        self._header[Word.COUNT] = regions
        self._cpu = 1 << 64
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        # Made once: conversions cost more than the call.
        run = self._program._run_attr
        self._run = tuple(ctypes.c_long(one) for one in (NR_BPF, 10)), run, ctypes.c_long(len(run))
        self._advise = (ctypes.c_long(NR_PROCESS_MADVISE), ctypes.c_long(self._pidfd))
        self._ranges = ctypes.c_void_p(whole[RANGES:].ctypes.data)
        self._advice = (ctypes.c_long(MADV_COLD), ctypes.c_long(0))
        self.cleared = 0

    def interval(self) -> None:
        """One sampling interval."""
        (number, run), attr, size = self._run
        if self._call(number, run, attr, size) < 0:
            checked(-ctypes.get_errno(), "running the BPF program")
        _, ranges, mask = self._own[:3].tolist()
        if ranges:
            self.cleared += ranges
            self._call(*self._advise, self._ranges, ctypes.c_long(ranges), *self._advice)
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
