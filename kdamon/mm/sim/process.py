# SPDX-License-Identifier: GPL-2.0-only
"""A simulated process: a task, and the address space whose accesses its script makes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from attrs import define, field

from kdamon.arrays import Indexes, Mask, Records, U64Array
from kdamon.kernel import PAGE_SIZE, VirtualClock
from kdamon.mm import FAULT_DTYPE, OLD, UNKNOWN, YOUNG, Answers, Faults, PageFilter, Primitive, Resident
from kdamon.mm.ranges import NO_RANGES, inside, intersect, total
from kdamon.mm.sim.actions import SimPages
from kdamon.mm.sim.script import SimAccess
from kdamon.mm.sim.watch import SimWatch

__all__ = ["SimPlace", "SimProcess"]


@define(slots=True, eq=False)
class _Sample:
    """A sample under way.

    :ivar given: the array that it was begun with.
    :ivar addrs: what that contained.
    :ivar armed: rows whose pages did not fault yet, ascending; None where pages are not armed.
    :ivar seen: until when faults were collected, nanoseconds.
    """

    time: int
    given: U64Array
    addrs: U64Array
    armed: Indexes | None = None
    seen: int = 0


@define(slots=True, eq=False)
class SimProcess:
    """A simulated process; implements :class:`kdamon.mm.Task` and :class:`kdamon.mm.AddressSpace`.

    :ivar pid: its number.
    :ivar unknown: ranges whose accessed bits cannot be cleared, or that cannot be armed: samples there are unknown.
    :ivar primitive: how accesses are observed, by the last :meth:`SimMachine.get_task`.
    :ivar reads_fault: whether reads of an armed page fault as writes do with page_fault, by the same.
    :ivar ended_threads: threads that it does not have; it has any other one.
    :ivar birth: its place among all processes of its machine, from the first one on.
    """

    pid: int
    clock: VirtualClock
    rng: np.random.Generator
    _pages: SimPages
    unknown: list[tuple[int, int]] = field(factory=list)
    alive: bool = True
    primitive: str = Primitive.PAGE_TABLE
    reads_fault: bool = False
    ended_threads: set[int] = field(factory=set)
    placed: list[SimPlace] = field(factory=list)
    birth: int = 0
    _sample: _Sample | None = None

    @property
    def script(self) -> list[SimAccess]:
        """The pieces that :meth:`access` added."""
        return self._pages.script

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
        self._pages.vmas = np.array(ranges, np.uint64).reshape(-1, 2)

    def exit(self) -> None:
        """End the process."""
        self.alive = False

    def mark(self, kind: str, ranges: Sequence[tuple[int, int]], memcg_id: int = 0) -> None:
        """See :meth:`kdamon.mm.sim.actions.SimPages.mark`."""
        self._pages.mark(kind, ranges, memcg_id)

    def resident(self) -> U64Array:
        """See :meth:`kdamon.mm.sim.actions.SimPages.resident`."""
        return self._pages.resident()

    # Task.

    def valid(self) -> bool:
        """Return whether it did not exit."""
        return self.alive

    def ended(self) -> bool:
        """Return whether it exited."""
        return not self.alive

    def get_mm(self) -> SimProcess | None:
        """Its address space: itself."""
        return self if self.alive else None

    def has_thread(self, tid: int) -> bool:
        """Return whether it did not end."""
        return self.alive and tid not in self.ended_threads

    def memory(self) -> Resident:
        """See :meth:`kdamon.mm.Task.memory`: what is not paged out is in memory."""
        return Resident(*(total(part) for part in self._pages.by_kind()))

    def put(self) -> None:
        """Nothing is held."""

    @property
    def physical(self) -> None:
        """It is a process, see :meth:`kdamon.mm.Task.physical`."""

    # AddressSpace.

    def vmas(self) -> U64Array:
        """The mappings, shape (n, 2)."""
        return self._pages.vmas

    def watch(self) -> SimWatch:
        """See :meth:`kdamon.mm.AddressSpace.watch`."""
        return SimWatch(self)

    def observed(self) -> None:
        """See :meth:`kdamon.mm.AddressSpace.observed`; accesses are simulated, whatever the primitive."""

    def populated(self, ranges: U64Array) -> U64Array:
        """The mapped parts of ``ranges``: simulated memory is always populated."""
        return intersect(ranges, self.vmas())

    def residency(self, ranges: U64Array) -> Iterator[tuple[int, Records]]:
        """See :meth:`kdamon.mm.AddressSpace.residency`: a step for each range."""
        for one in ranges if self.alive else NO_RANGES:
            yield int(one[1]), self._pages.residency(one[None])

    def extent(self) -> None:
        """See :meth:`kdamon.mm.AddressSpace.extent`; not known."""

    def begin_sample(self, addrs: U64Array) -> None:
        """See :meth:`kdamon.mm.Samples.begin_sample`."""
        now = self.clock.now()
        if self.primitive != Primitive.PAGE_TABLE:
            can = inside(self.vmas(), addrs)
            for start, end in self.unknown:
                can &= (addrs < start) | (addrs >= end)
            # Each page faults once.
            can &= _firsts(addrs)
            self._sample = _Sample(now, addrs, addrs.copy(), can.nonzero()[0], now)
        else:
            self._sample = _Sample(now, addrs, addrs.copy())

    def end_sample(self, addrs: U64Array) -> Answers:
        """See :meth:`kdamon.mm.Samples.end_sample`: which pages the script accessed."""
        sample, self._sample = self._sample, None
        if sample is None or sample.given is not addrs:
            return np.full(len(addrs), UNKNOWN, np.uint8)
        answers = np.full(len(addrs), OLD, np.uint8)
        if not self.alive:
            return answers
        if sample.armed is None:
            answers = self.accessed(sample.addrs, sample.time / 1e9, self.clock.now() / 1e9)
        mapped = inside(self.vmas(), sample.addrs)
        for start, end in self.unknown:
            answers[mapped & (sample.addrs >= start) & (sample.addrs < end)] = UNKNOWN
        return answers

    def end_sample_frames(self, addrs: U64Array) -> tuple[Answers, U64Array]:
        """See :meth:`kdamon.mm.AddressSpace.end_sample_frames`."""
        return self.end_sample(addrs), self.frames(addrs)

    def frames(self, addrs: U64Array) -> U64Array:
        """The page frames at ``addrs`` that this process alone maps, 0 elsewhere; only placed memory has any."""
        found = np.zeros(len(addrs), np.uint64)
        if not self.alive:
            return found
        for place in self.placed:
            if place.process is self:
                here = (addrs >= place.start) & (addrs < place.start + place.size)
                physical = addrs[here] - np.uint64(place.start) + np.uint64(place.physical)
                found[here] = physical // np.uint64(PAGE_SIZE)
        for place in self.placed:
            if place.process is not self and place.process.alive:
                found[place.holds(found)] = 0
        return found

    def advise(self, action: str, ranges: U64Array) -> U64Array:
        """See :meth:`kdamon.mm.sim.actions.SimPages.advise`."""
        return self._pages.advise(action, ranges)

    def migrate(self, ranges: U64Array, dests: Sequence[tuple[int, int]]) -> U64Array:
        """See :meth:`kdamon.mm.sim.actions.SimPages.migrate`."""
        return self._pages.migrate(ranges, dests)

    def page_filter(self, ranges: U64Array, filters: Sequence[PageFilter], default_reject: bool) -> U64Array:
        """See :meth:`kdamon.mm.sim.actions.SimPages.filter`."""
        return self._pages.filter(ranges, filters, default_reject)

    def page_match(self, addrs: U64Array, filters: Sequence[PageFilter], answers: Answers | None = None) -> Mask:
        """See :meth:`kdamon.mm.sim.actions.SimPages.match`."""
        return self._pages.match(addrs, filters, answers)

    def accessed(self, addrs: U64Array, begin: float, until: float) -> Answers:
        """Draw for each page whether at least one access fell between two times (seconds)."""
        answers = np.full(len(addrs), OLD, np.uint8)
        if not len(self.vmas()):
            return answers
        expected = np.zeros(len(addrs))
        for piece in self.script:
            overlap = min(until, piece.until) - max(begin, piece.begin)
            if overlap > 0:
                expected[(addrs >= piece.start) & (addrs < piece.end)] += piece.rate * overlap
        drawn = self.rng.random(len(addrs))
        firsts = _firsts(addrs)
        if not firsts.all():
            # One page is drawn once.
            _, first, page = np.unique(addrs // np.uint64(PAGE_SIZE), return_index=True, return_inverse=True)
            drawn = drawn[first[page]]
        answers[drawn < -np.expm1(-expected)] = YOUNG
        answers[~inside(self.vmas(), addrs)] = OLD
        return answers

    def faults(self) -> Faults:
        """The first access that faults to each page that is armed, since it was or since this was called before."""
        sample = self._sample
        if sample is None or sample.armed is None or not len(sample.armed):
            return np.empty(0, FAULT_DTYPE)
        since, now = sample.seen / 1e9, self.clock.now() / 1e9
        reads = self.reads_fault and self.primitive == Primitive.PAGE_FAULT
        sample.seen = self.clock.now()
        addrs = sample.addrs[sample.armed]
        first = np.full(len(addrs), np.inf)
        maker = np.zeros(len(addrs), np.intp)
        for i, piece in enumerate(self.script):
            begin, until = max(since, piece.begin), min(now, piece.until)
            if not (piece.write or reads) or until <= begin:
                continue
            rows = ((addrs >= piece.start) & (addrs < piece.end)).nonzero()[0]
            when = begin + self.rng.exponential(1 / piece.rate if piece.rate else math.inf, len(rows))
            sooner = (when < until) & (when < first[rows])
            first[rows[sooner]] = when[sooner]
            maker[rows[sooner]] = i
        hit = np.isfinite(first)
        faults = np.zeros(int(hit.sum()), FAULT_DTYPE)
        faults["time"], faults["addr"], faults["pid"] = first[hit] * 1e9, addrs[hit], self.pid
        faults["write"] = np.array([piece.write for piece in self.script], np.bool_)[maker[hit]]
        faults["cpu"] = np.array([piece.cpu for piece in self.script], np.int32)[maker[hit]]
        faults["tid"] = np.array([piece.tid or self.pid for piece in self.script], np.int32)[maker[hit]]
        faults["node_id"] = 0
        sample.armed = sample.armed[~hit]
        return faults[np.argsort(faults["time"], kind="stable")]


def _firsts(addrs: U64Array) -> Mask:
    """Which of ``addrs`` are the first ones in their pages, shape (n,)."""
    found = np.zeros(len(addrs), np.bool_)
    found[np.unique(addrs // np.uint64(PAGE_SIZE), return_index=True)[1]] = True
    return found


@define(slots=True, frozen=True)
class SimPlace:
    """Where in physical memory a part of a process is.

    :ivar start: address in the process, bytes.
    :ivar physical: physical address, bytes, not 0.
    :ivar size: bytes.
    """

    process: SimProcess
    start: int
    physical: int
    size: int

    def holds(self, pfns: U64Array) -> Mask:
        """Which page frames are in it, shape (n,)."""
        first = self.physical // PAGE_SIZE
        return (pfns >= first) & (pfns < first + self.size // PAGE_SIZE)
