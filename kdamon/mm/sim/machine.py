# SPDX-License-Identifier: GPL-2.0-only
"""Simulated memory with scripted accesses on a virtual clock: exact, repeatable, of any size.

A :class:`SimProcess` has mappings and a script: ranges that are accessed at given rates from one time to another. No
page exists anywhere; whether a sampled page was accessed is computed when it is asked for, so that a terabyte costs
no more than a megabyte and a minute as little as its computations::

    machine = SimMachine(seed=1)
    process = machine.spawn([(0x10000, 0x10000 + (1 << 40))])
    process.access(0x10000, 0x10000 + (1 << 30), rate=200)
    ctx = damon_new_ctx(seed=1)
    ctx.machine, ctx.clock = machine, machine.clock
    ...
    run_ctx(ctx, seconds=60)
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Sequence

import numpy as np

from kdamon.arrays import Mask, U8Array, U64Array
from kdamon.kernel import PAGE_SIZE, VirtualClock
from kdamon.mm import FAULT_DTYPE, Answers, Faults, FrameKind, PageFilter, Primitive
from kdamon.mm.ranges import NO_RANGES, inside, total, union
from kdamon.mm.sampling.physical import Physical
from kdamon.mm.sim.actions import SimPages
from kdamon.mm.sim.intervals import SimIntervals
from kdamon.mm.sim.process import SimPlace, SimProcess

__all__ = ["SimMachine"]


class SimFrames:
    """The page frames of a simulated machine; implements :class:`kdamon.mm.sampling.physical.Frames`."""

    def __init__(self, machine: SimMachine) -> None:
        self._machine = machine

    def runs(self) -> Generator[tuple[int, U64Array, int]]:
        """Every place of a process that did not exit."""
        for place in self._machine.placed:
            if place.process.alive:
                row = (place.start, place.physical // PAGE_SIZE, place.size // PAGE_SIZE)
                yield place.process.pid, np.array([row], np.uint64), row[2]

    def task(self, pid: int) -> SimProcess:
        """A process."""
        return self._machine.get_task(pid)

    def zones(self) -> list[tuple[int, int, int]]:
        """Node 1 begins at the machine's ``second_node``."""
        border = self._machine.second_node // PAGE_SIZE
        return [(0, 0, border), (1, border, 1 << 51)]

    def ram(self) -> U64Array:
        """All places and the page cache."""
        places = [(place.physical, place.physical + place.size) for place in self._machine.placed]
        return union(np.array(sorted(places), np.uint64).reshape(-1, 2), self._machine.cached)

    def unreachable(self, pfns: U64Array) -> Mask:
        """Which are in no place of a process, and no page cache."""
        used = inside(self._machine.cached, pfns * np.uint64(PAGE_SIZE))
        for place in self._machine.placed:
            if place.process.alive:
                used |= place.holds(pfns)
        return ~used

    def kinds(self, pfns: U64Array) -> U8Array:
        """Nothing: the processes know, and :meth:`unreachable`."""
        return np.full(len(pfns), FrameKind.UNKNOWN, np.uint8)

    def page_match(self, pfns: U64Array, filters: Sequence[PageFilter], answers: Answers | None) -> Mask:
        """The answers of the processes for the placed pages."""
        found = np.zeros((len(filters), len(pfns)), np.bool_)
        for place in self._machine.placed:
            here = place.holds(pfns)
            if not place.process.alive or not here.any():
                continue
            first = np.uint64(place.physical // PAGE_SIZE)
            addrs = (pfns[here] - first) * np.uint64(PAGE_SIZE) + np.uint64(place.start)
            for row, one in zip(found, filters, strict=True):
                of_these = None if answers is None else answers[here]
                row[here] |= place.process.page_match(addrs, [one], of_these)[0]
        return found

    def reachable(self) -> int:
        """The sum of all places and of the page cache."""
        return total(self._machine.cached) + sum(p.size for p in self._machine.placed if p.process.alive)

    def close(self) -> None:
        """Nothing is held."""


class SimMachine:
    """A machine of simulated processes; implements :class:`kdamon.mm.Machine`.

    :param seed: makes everything random on it repeatable.
    :ivar metrics: the values of :meth:`metric`, for node 0 and every memory cgroup; to be changed at will.
    :ivar memcgs: the memory cgroups and their numbers.
    :ivar placed: which memory of processes is where in physical memory, see :meth:`place`; all other memory is free.
    :ivar cached: physical memory that is page cache and not mapped, bytes in address order, shape (n, 2).
    :ivar second_node: where physical memory of node 1 begins, bytes; without it all is of node 0.
    :ivar cgroups: the control groups of the second version and the numbers of their processes.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.clock = VirtualClock()
        self.processes: dict[int, SimProcess] = {}
        self._births = 0
        self.metrics = {
            "some_mem_psi_us": 0,
            "node_mem_used_bp": 6000,
            "node_mem_free_bp": 4000,
            "node_memcg_used_bp": 1000,
            "node_memcg_free_bp": 9000,
            "active_mem_bp": 3000,
            "inactive_mem_bp": 7000,
            "hugepage_mem_bp": 500,
            "free_mem_rate": 400,
        }
        self.memcgs = {"/": 1}
        self.placed: list[SimPlace] = []
        self.cached = NO_RANGES
        self.second_node = 1 << 63
        self.cgroups: dict[str, tuple[int, ...]] = {}
        self.whole_intervals = False

    def spawn(self, ranges: Sequence[tuple[int, int]], pid: int | None = None) -> SimProcess:
        """Start a process with the mappings ``ranges`` (bytes, in address order); ``pid`` may have been another's."""
        number = pid if pid is not None else 1000 + len(self.processes)
        self._births += 1
        rng = np.random.default_rng((self.seed, number))
        vmas = np.array(ranges, np.uint64).reshape(-1, 2)
        process = SimProcess(
            number, self.clock, rng, SimPages(self.clock, vmas), placed=self.placed, birth=self._births
        )
        self.processes[number] = process
        return process

    def place(self, process: SimProcess, start: int, end: int, physical: int) -> None:
        """Let memory [start, end) of ``process`` be at the address ``physical``, as may that of others; whole pages."""
        self.placed.append(SimPlace(process, start, physical, end - start))

    def interval_sampler(self) -> SimIntervals | None:
        """See :meth:`kdamon.mm.Machine.interval_sampler`; only with :attr:`whole_intervals`."""
        return SimIntervals() if self.whole_intervals else None

    def placement(self) -> None:
        """See :meth:`kdamon.mm.Machine.placement`."""

    def physical_memory(self) -> Physical:
        """See :meth:`kdamon.mm.Machine.physical_memory`."""
        return Physical(SimFrames(self))

    attributes_faults = True
    faults_of_reads = False
    faults_lost = 0

    def birth(self, pid: int) -> int:
        """See :meth:`kdamon.mm.Machine.birth`."""
        process = self.processes.get(pid)
        if process is None or not process.alive:
            raise OSError(errno.ESRCH, f"there is no simulated process {pid}")
        return process.birth

    def get_task(self, pid: int, primitive: str = Primitive.PAGE_TABLE, birth: int | None = None) -> SimProcess:
        """Find a process.

        :raises OSError: ESRCH there is none, or another one; EINVAL an unknown primitive.
        """
        if self.birth(pid) != (birth or self.processes[pid].birth):
            raise OSError(errno.ESRCH, f"process {pid} ended, and another one has its number now")
        process = self.processes[pid]
        if primitive not in (Primitive.PAGE_TABLE, Primitive.PAGE_FAULT, Primitive.PAGE_FAULT_WRITES):
            raise OSError(errno.EINVAL, f"there is no primitive {primitive}")
        process.primitive = primitive
        process.reads_fault = self.faults_of_reads
        return process

    def faults(self) -> Faults:
        """The faults of all processes since the last call, in the order of their times."""
        faults = np.concatenate([np.empty(0, FAULT_DTYPE), *(p.faults() for p in self.processes.values())])
        return faults[np.argsort(faults["time"], kind="stable")]

    def metric(self, name: str, *, nid: int = 0, memcg: str = "") -> int:
        """The value in :attr:`metrics`; a node or cgroup that does not exist is free."""
        if name not in self.metrics:
            raise OSError(errno.EINVAL, f"there is no metric {name}")
        absent = nid != 0 or ("memcg" in name and memcg not in self.memcgs)
        if name.startswith("node_") and absent:
            return 10000 if name.endswith("_free_bp") else 0
        return self.metrics[name]

    def memcg_id(self, path: str) -> int:
        """The number of a memory cgroup.

        :raises OSError: ENOENT there is none.
        """
        if path not in self.memcgs:
            raise OSError(errno.ENOENT, f"there is no memory cgroup {path!r}")
        return self.memcgs[path]

    def cgroup_processes(self, path: str) -> tuple[int, ...]:
        """The processes of a control group.

        :raises OSError: ENOENT there is none.
        """
        if path not in self.cgroups:
            raise OSError(errno.ENOENT, f"there is no control group {path!r}")
        return self.cgroups[path]
