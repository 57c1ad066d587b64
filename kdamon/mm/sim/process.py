# SPDX-License-Identifier: GPL-2.0-only
"""A simulated process, its script of accesses, and what is done to its memory."""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence

import numpy as np
from attrs import define, field

from kdamon.arrays import Indexes, Mask, U64Array
from kdamon.kernel import HPAGE_PMD_SIZE, PAGE_SIZE, VirtualClock
from kdamon.mm import FAULT_DTYPE, OLD, UNKNOWN, YOUNG, Answers, Faults, PageFilter, Primitive
from kdamon.mm.ranges import NO_RANGES, blocks, inside, intersect, overlaps, subtract, union

__all__ = ["SimAccess", "SimPlace", "SimProcess"]


@define(slots=True, frozen=True)
class SimAccess:
    """A piece of a script: every page of [start, end) is accessed at random moments.

    The bounds should be multiples of the page size: the script knows addresses only.

    :ivar start: first address, bytes.
    :ivar end: end (exclusive).
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
    :ivar ended_threads: threads that it does not have; it has any other one.
    :ivar birth: its place among all processes of its machine, from the first one on.
    """

    pid: int
    clock: VirtualClock
    rng: np.random.Generator
    _vmas: U64Array
    script: list[SimAccess] = field(factory=list)
    unknown: list[tuple[int, int]] = field(factory=list)
    alive: bool = True
    primitive: str = Primitive.PAGE_TABLE
    ended_threads: set[int] = field(factory=set)
    placed: list[SimPlace] = field(factory=list)
    birth: int = 0
    _sample: _Sample | None = None
    _paged_out: U64Array = field(factory=NO_RANGES.copy)
    _huge: U64Array = field(factory=NO_RANGES.copy)
    _marked: dict[tuple[str, int], U64Array] = field(factory=dict)
    _paged_out_at: int = 0
    _young_since: int = 0

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

    def mark(self, kind: str, ranges: Sequence[tuple[int, int]], memcg_id: int = 0) -> None:
        """Let filters of a type match the memory in ``ranges`` (bytes, in address order), and no other.

        Without it all memory is anonymous, and none is active or of a memory control group.

        :param kind: ``anon``, ``active`` or ``memcg``.
        :param memcg_id: the control group.
        """
        self._marked[kind, memcg_id] = np.array(ranges, np.uint64).reshape(-1, 2)

    def resident(self) -> U64Array:
        """The memory that is not paged out, as ranges; what the script is expected to have accessed since came back."""
        if len(self._paged_out):
            self._paged_out = subtract(self._paged_out, self._touched(self._paged_out_at))
        return subtract(self._vmas, self._paged_out)

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

    def put(self) -> None:
        """Nothing is held."""

    @property
    def physical(self) -> None:
        """It is a process, see :meth:`kdamon.mm.Task.physical`."""

    # AddressSpace.

    def vmas(self) -> U64Array:
        """The mappings, shape (n, 2)."""
        return self._vmas

    def populated(self, ranges: U64Array) -> U64Array:
        """The mapped parts of ``ranges``: simulated memory is always populated."""
        return intersect(ranges, self._vmas)

    def begin_sample(self, addrs: U64Array) -> None:
        """See :meth:`kdamon.mm.Samples.begin_sample`."""
        now = self.clock.now()
        if self.primitive == Primitive.PAGE_FAULT:
            can = inside(self._vmas, addrs)
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
            answers = self._accessed(sample.addrs, sample.time / 1e9, self.clock.now() / 1e9)
        mapped = inside(self._vmas, sample.addrs)
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
        """Page memory out or in, or make it huge pages; what the script accesses comes back by itself."""
        if action in {"hugepage", "nohugepage"}:
            raise OSError(errno.EOPNOTSUPP, "simulated memory becomes huge when it is asked to; use collapse")
        here = self.resident()
        mapped = intersect(union(ranges, NO_RANGES), self._vmas)
        if action == "pageout":
            changed = intersect(mapped, here)
            self._paged_out_at = self.clock.now()
            self._paged_out = union(self._paged_out, changed)
            self._huge = subtract(self._huge, changed)
        elif action == "willneed":
            changed = intersect(mapped, self._paged_out)
            self._paged_out = subtract(self._paged_out, changed)
        elif action == "collapse":
            pieces = intersect(mapped, blocks(mapped, HPAGE_PMD_SIZE))
            changed = subtract(pieces[pieces[:, 1] - pieces[:, 0] == HPAGE_PMD_SIZE], self._huge)
            self._huge = union(self._huge, changed)
            self._paged_out = subtract(self._paged_out, changed)
        else:
            changed = intersect(mapped, here)
        return overlaps(ranges, changed)

    def migrate(self, ranges: U64Array, dests: Sequence[tuple[int, int]]) -> U64Array:
        """All memory is on node 0."""
        if any(node for node, _ in dests):
            raise OSError(errno.EINVAL, "simulated memory has NUMA node 0 only; name that")
        return np.zeros(len(ranges), np.uint64)

    def page_filter(self, ranges: U64Array, filters: Sequence[PageFilter], default_reject: bool) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.page_filter`; all memory that is not paged out is mapped."""
        left = intersect(ranges, self.resident())
        passed = NO_RANGES
        for one in filters:
            matching = self._matching(one)
            hit = intersect(left, matching) if one.matching else subtract(left, matching)
            passed = union(passed, hit) if one.allow else passed
            left = subtract(left, hit)
        return passed if default_reject else union(passed, left)

    def page_match(self, addrs: U64Array, filters: Sequence[PageFilter], answers: Answers | None = None) -> Mask:
        """See :meth:`kdamon.mm.Samples.page_match`; all memory that is not paged out is mapped."""
        mapped = inside(self.resident(), addrs)
        found = np.zeros((len(filters), len(addrs)), np.bool_)
        for row, one in zip(found, filters, strict=True):
            if one.type not in {"young", "idle"}:
                row[:] = mapped & inside(self._matching(one), addrs)
            elif answers is not None:
                row[:] = mapped & (answers == (YOUNG if one.type == "young" else OLD))
        return found

    def _matching(self, one: PageFilter) -> U64Array:
        if one.type == "young":
            since, self._young_since = self._young_since, self.clock.now()
            return self._touched(since)
        if one.type == "hugepage_size":
            found = self._huge if one.min_size <= HPAGE_PMD_SIZE <= one.max_size else NO_RANGES
            small = one.min_size <= PAGE_SIZE <= one.max_size
            return union(found, subtract(self._vmas, self._huge)) if small else found
        everything = self._vmas if one.type == "anon" else NO_RANGES
        return self._marked.get((one.type, one.memcg_id), everything)

    def _touched(self, since: int) -> U64Array:
        """The memory that the script is expected to have accessed from ``since`` (nanoseconds) to now."""
        touched = NO_RANGES
        for piece in self.script:
            overlap = min(self.clock.now() / 1e9, piece.until) - max(since / 1e9, piece.begin)
            if overlap > 0 and piece.rate * overlap >= 1:
                touched = union(touched, np.array([[piece.start, piece.end]], np.uint64))
        return touched

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
        drawn = self.rng.random(len(addrs))
        firsts = _firsts(addrs)
        if not firsts.all():
            # One page is drawn once.
            _, first, page = np.unique(addrs // np.uint64(PAGE_SIZE), return_index=True, return_inverse=True)
            drawn = drawn[first[page]]
        answers[drawn < -np.expm1(-expected)] = YOUNG
        answers[~inside(self._vmas, addrs)] = OLD
        return answers

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
