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
from attrs import define, field

from kdamon.kernel import VirtualClock
from kdamon.mm import OLD, UNKNOWN, YOUNG, Answers, U64Array

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
    """

    start: int
    end: int
    rate: float = math.inf
    begin: float = 0.0
    until: float = math.inf


@define(slots=True, eq=False)
class _Sample:
    """What :meth:`SimProcess.mkold` left for :meth:`SimProcess.young`."""

    time: int
    addrs: U64Array


@define(slots=True, eq=False)
class SimProcess:
    """A simulated process; implements :class:`kdamon.mm.Task` and :class:`kdamon.mm.AddressSpace`.

    :ivar pid: its number.
    :ivar unknown: ranges whose accessed bits cannot be cleared: samples there are unknown.
    """

    pid: int
    clock: VirtualClock
    rng: np.random.Generator
    _vmas: U64Array
    script: list[SimAccess] = field(factory=list)
    unknown: list[tuple[int, int]] = field(factory=list)
    alive: bool = True
    _sample: _Sample | None = None

    def access(self, start: int, end: int, rate: float = math.inf, begin: float = 0.0, until: float = math.inf) -> None:
        """Add to the script: see :class:`SimAccess`."""
        self.script.append(SimAccess(start, end, rate, begin, until))

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
        self._sample = _Sample(self.clock.now(), addrs)

    def young(self, addrs: U64Array) -> Answers:
        """Tell which pages the script accessed since :meth:`mkold`; without one before, nothing is known."""
        sample = self._sample
        if sample is None or sample.addrs is not addrs:
            return np.full(len(addrs), UNKNOWN, np.uint8)
        answers = self._accessed(addrs, sample.time / 1e9, self.clock.now() / 1e9)
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
        vma = np.searchsorted(self._vmas[:, 0], addrs, "right") - 1
        answers[(vma < 0) | (addrs >= self._vmas[vma, 1])] = OLD
        return answers


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

    def get_task(self, pid: int) -> SimProcess:
        """Find a process.

        :raises OSError: ESRCH there is none.
        """
        process = self.processes.get(pid)
        if process is None or not process.alive:
            raise OSError(errno.ESRCH, f"there is no simulated process {pid}")
        return process
