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
    damon_run(ctx, seconds=60)
"""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from attrs import define, field

from kdamon.kernel import VirtualClock
from kdamon.mm import FAULT_DTYPE, OLD, UNKNOWN, YOUNG, Answers, Faults, U64Array

__all__ = ["SimAccess", "SimMachine", "SimProcess"]


@define(slots=True, frozen=True)
class SimAccess:
    """A piece of a script: every page of [start, end) is accessed at random moments.

    The bounds should be multiples of the page size: the script knows addresses only.

    :ivar start: first address, bytes.
    :ivar end: the address behind the last one.
    :ivar rate: mean accesses per page and second; infinity means always.
    :ivar begin: when it begins, seconds of the virtual clock.
    :ivar until: when it ends.
    :ivar write: whether the accesses are writes; only those fault where pages are armed.
    :ivar cpu: the CPU that makes them.
    :ivar tid: the thread that makes them, 0 the process's first.
    """

    start: int
    end: int
    rate: float = math.inf
    begin: float = 0.0
    until: float = math.inf
    write: bool = True
    cpu: int = 0
    tid: int = 0


@define(slots=True, eq=False)
class _Sample:
    """What :meth:`SimProcess.mkold` left for :meth:`SimProcess.young`.

    :ivar armed: rows whose pages did not fault yet, ascending; None where pages are not armed.
    :ivar seen: until when faults were collected, nanoseconds.
    """

    time: int
    addrs: U64Array
    armed: npt.NDArray[np.intp] | None = None
    seen: int = 0


@define(slots=True, eq=False)
class SimProcess:
    """A simulated process; implements :class:`kdamon.mm.Task` and :class:`kdamon.mm.AddressSpace`.

    :ivar pid: its number.
    :ivar unknown: ranges whose accessed bits cannot be cleared, or that cannot be armed: samples there are unknown.
    :ivar primitive: how accesses are told, by the last :meth:`SimMachine.get_task`.
    """

    pid: int
    clock: VirtualClock
    rng: np.random.Generator
    _vmas: U64Array
    script: list[SimAccess] = field(factory=list)
    unknown: list[tuple[int, int]] = field(factory=list)
    alive: bool = True
    primitive: str = "page_table"
    _sample: _Sample | None = None

    def access(
        self,
        start: int,
        end: int,
        rate: float = math.inf,
        begin: float = 0.0,
        until: float = math.inf,
        *,
        write: bool = True,
        cpu: int = 0,
        tid: int = 0,
    ) -> None:
        """Add to the script: see :class:`SimAccess`."""
        self.script.append(SimAccess(start, end, rate, begin, until, write, cpu, tid))

    def mmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Replace the mappings by ``ranges`` of bytes, in address order."""
        self._vmas = np.array(ranges, np.uint64).reshape(-1, 2)

    def exit(self) -> None:
        """End the process."""
        self.alive = False

    # Task.

    def valid(self) -> bool:
        """Tell whether it did not exit."""
        return self.alive

    def get_mm(self) -> SimProcess | None:
        """Its address space: itself."""
        return self if self.alive else None

    def put(self) -> None:
        """Nothing is held."""

    # AddressSpace.

    def vmas(self) -> U64Array:
        """The mappings, shape (n, 2)."""
        return self._vmas

    def mkold(self, addrs: U64Array) -> None:
        """Begin a sample of the pages at ``addrs``."""
        now = self.clock.now()
        if self.primitive == "page_fault":
            can = self._mapped(addrs)
            for start, end in self.unknown:
                can &= (addrs < start) | (addrs >= end)
            self._sample = _Sample(now, addrs, can.nonzero()[0], now)
        else:
            self._sample = _Sample(now, addrs)

    def young(self, addrs: U64Array) -> Answers:
        """Tell which pages the script accessed since :meth:`mkold`; without one before, nothing is known."""
        sample = self._sample
        if sample is None or sample.addrs is not addrs:
            return np.full(len(addrs), UNKNOWN, np.uint8)
        if sample.armed is None:
            answers = self._accessed(addrs, sample.time / 1e9, self.clock.now() / 1e9)
        else:
            answers = np.full(len(addrs), OLD, np.uint8)
            sample.armed = sample.armed[:0]
        for start, end in self.unknown:
            answers[(addrs >= start) & (addrs < end)] = UNKNOWN
        return answers

    def _accessed(self, addrs: U64Array, begin: float, until: float) -> Answers:
        """Draw for each page whether at least one access fell between two times (seconds)."""
        answers = np.full(len(addrs), OLD, np.uint8)
        if not len(self._vmas):
            return answers
        expected = np.zeros(len(addrs))
        for piece in self.script:
            overlap = min(until, piece.until) - max(begin, piece.begin)
            if overlap > 0:
                expected[(addrs >= piece.start) & (addrs < piece.end)] += piece.rate * overlap
        answers[self.rng.random(len(addrs)) < -np.expm1(-expected)] = YOUNG
        answers[~self._mapped(addrs)] = OLD
        return answers

    def _mapped(self, addrs: U64Array) -> npt.NDArray[np.bool_]:
        if not len(self._vmas):
            return np.zeros(len(addrs), np.bool_)
        vma = np.searchsorted(self._vmas[:, 0], addrs, "right") - 1
        mapped: npt.NDArray[np.bool_] = (vma >= 0) & (addrs < self._vmas[vma, 1])
        return mapped

    def faults(self) -> Faults:
        """The first write to each page that is armed, since it was or since this was called before."""
        sample = self._sample
        if sample is None or sample.armed is None or not len(sample.armed):
            return np.empty(0, FAULT_DTYPE)
        since, now = sample.seen / 1e9, self.clock.now() / 1e9
        sample.seen = self.clock.now()
        addrs = sample.addrs[sample.armed]
        first = np.full(len(addrs), np.inf)
        who = np.zeros(len(addrs), np.intp)
        for i, piece in enumerate(self.script):
            begin, until = max(since, piece.begin), min(now, piece.until)
            if not piece.write or until <= begin:
                continue
            rows = ((addrs >= piece.start) & (addrs < piece.end)).nonzero()[0]
            when = begin + self.rng.exponential(1 / piece.rate if piece.rate else math.inf, len(rows))
            sooner = (when < until) & (when < first[rows])
            first[rows[sooner]] = when[sooner]
            who[rows[sooner]] = i
        hit = np.isfinite(first)
        faults = np.zeros(int(hit.sum()), FAULT_DTYPE)
        faults["time"], faults["addr"], faults["pid"] = first[hit] * 1e9, addrs[hit], self.pid
        faults["write"] = True
        faults["cpu"] = np.array([piece.cpu for piece in self.script], np.int32)[who[hit]]
        faults["tid"] = np.array([piece.tid or self.pid for piece in self.script], np.int32)[who[hit]]
        faults["node_id"] = 0
        sample.armed = sample.armed[~hit]
        return faults[np.argsort(faults["time"], kind="stable")]


class SimMachine:
    """A machine of simulated processes; implements :class:`kdamon.mm.Machine`.

    :param seed: makes everything random on it repeatable.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.clock = VirtualClock()
        self.processes: dict[int, SimProcess] = {}

    def spawn(self, ranges: Sequence[tuple[int, int]], pid: int | None = None) -> SimProcess:
        """Start a process with the mappings ``ranges`` (bytes, in address order)."""
        number = pid if pid is not None else 1000 + len(self.processes)
        rng = np.random.default_rng((self.seed, number))
        vmas = np.array(ranges, np.uint64).reshape(-1, 2)
        process = self.processes[number] = SimProcess(number, self.clock, rng, vmas)
        return process

    faults_tell_who = True
    faults_lost = 0

    def get_task(self, pid: int, primitive: str = "page_table") -> SimProcess:
        """Find a process.

        :raises OSError: ESRCH there is none; EINVAL an unknown primitive.
        """
        process = self.processes.get(pid)
        if process is None or not process.alive:
            raise OSError(errno.ESRCH, f"there is no simulated process {pid}")
        if primitive not in ("page_table", "page_fault"):
            raise OSError(errno.EINVAL, f"there is no primitive {primitive}")
        process.primitive = primitive
        return process

    def faults(self) -> Faults:
        """The faults of all processes since the last call, in the order of their times."""
        faults = np.concatenate([np.empty(0, FAULT_DTYPE), *(p.faults() for p in self.processes.values())])
        return faults[np.argsort(faults["time"], kind="stable")]
