# SPDX-License-Identifier: GPL-2.0-only
"""The contract of :class:`kdamon.mm.Samples`, of whatever implements it on this machine."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdamon.arrays import U64Array
from kdamon.mm import OLD, UNKNOWN, YOUNG, AddressSpace, Answers, Faults, PageFilter, PhysicalMemory, Samples
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.proc.pagemap import entries_at, frames
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from tests.support.idle_pages import Memory, Space
from tests.support.sampling import mm_of
from tests.support.workload import Pages, Workload

pytestmark = pytest.mark.real


PAGES = 512
PAGE = 4096
BASE = 1 << 30
PHYSICAL = 1 << 34
EVERY = np.arange(PAGES)

Mask = npt.NDArray[np.bool_]


class Sampled(ABC):
    """Memory of PAGES pages, all there, that belongs to one process, and what samples it.

    :ivar samples: what is tested.
    :ivar known_share: the share of the pages of which something is known, at least.
    """

    samples: Samples
    known_share: float = 1.0

    @abstractmethod
    def addrs(self, pages: Pages) -> U64Array:
        """Addresses in ``pages``."""

    @abstractmethod
    def write(self, pages: Pages) -> None:
        """Let the process write to ``pages``."""

    @abstractmethod
    def unmap(self) -> None:
        """Let the process unmap all."""

    @abstractmethod
    def end(self) -> None:
        """End the process."""

    def faults(self) -> Faults | None:
        """The accesses since the last call, where the answers do not have them."""
        return None

    def accessed(self, addrs: U64Array, act: Callable[[], object] = lambda: None) -> tuple[Mask, Answers]:
        """End the sample of ``addrs`` after ``act``; return where it saw an access, and the answers."""
        act()
        faults = self.faults()
        answers = self.samples.end_sample(addrs)
        if faults is None:
            return answers == YOUNG, answers
        return np.isin(addrs >> np.uint64(12), faults["addr"] >> np.uint64(12)), answers


class Simulated(Sampled):
    """A simulated process, by a primitive."""

    def __init__(self, primitive: str) -> None:
        self.machine = SimMachine(seed=1)
        self.process: SimProcess = self.machine.spawn([(BASE, BASE + PAGES * PAGE)])
        self.samples = self.machine.get_task(self.process.pid, primitive)

    def addrs(self, pages: Pages) -> U64Array:
        return np.uint64(BASE) + np.asarray(pages, np.uint64) * np.uint64(PAGE) + np.uint64(17)

    def write(self, pages: Pages) -> None:
        clock = self.machine.clock
        begin = clock.now()
        for page in np.asarray(pages).tolist():
            place = BASE + page * PAGE
            self.process.access(place, place + PAGE, begin=begin / 1e9, until=begin / 1e9 + 0.001)
        clock.sleep_until(begin + 2_000_000, threading.Event())

    def unmap(self) -> None:
        self.process.mmap([])

    def end(self) -> None:
        self.process.exit()

    def faults(self) -> Faults | None:
        return self.machine.faults() if self.process.primitive == "page_fault" else None


class SimulatedFrames(Simulated):
    """The same by physical addresses."""

    def __init__(self) -> None:
        super().__init__("page_table")
        self.machine.place(self.process, BASE, BASE + PAGES * PAGE, PHYSICAL)
        self.samples = self.machine.physical_memory()

    def addrs(self, pages: Pages) -> U64Array:
        return super().addrs(pages) - np.uint64(BASE) + np.uint64(PHYSICAL)


class IdleBits(Sampled):
    """The idle page bitmap, on files that stand for the kernel's."""

    def __init__(self, memory: Memory, space: AddressSpace) -> None:
        self.memory = memory
        self.samples = space

    def addrs(self, pages: Pages) -> U64Array:
        return np.uint64(BASE) + np.asarray(pages, np.uint64) * np.uint64(PAGE) + np.uint64(17)

    def write(self, pages: Pages) -> None:
        for page in np.asarray(pages).tolist():
            self.memory.access(self.memory.pages[BASE // PAGE + page])

    def unmap(self) -> None:
        self.memory.pages.clear()

    def end(self) -> None:
        self.memory.pages.clear()


class Real(Sampled):
    """A workload."""

    def __init__(self, work: Workload, samples: Samples, faults: Callable[[], Faults] | None = None) -> None:
        self.work = work
        self.samples = samples
        self._faults = faults
        # Some may sit in a CPU's batch of pages, where their accessed bits cannot be cleared.
        self.known_share = 0.5

    def addrs(self, pages: Pages) -> U64Array:
        return self.work.addrs(pages)

    def write(self, pages: Pages) -> None:
        self.work.order("w", pages)

    def unmap(self) -> None:
        self.work.order("u")

    def end(self) -> None:
        self.work.process.kill()
        self.work.process.wait()

    def faults(self) -> Faults | None:
        return None if self._faults is None else self._faults()


class RealFrames(Real):
    """The same by physical addresses."""

    def __init__(self, work: Workload, samples: PhysicalMemory) -> None:
        super().__init__(work, samples)
        fd = os.open(f"/proc/{work.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._frames = frames(entries_at(fd, work.addrs(EVERY))) << np.uint64(12)
        finally:
            os.close(fd)

    def addrs(self, pages: Pages) -> U64Array:
        return self._frames[np.asarray(pages)] + np.uint64(17)


@contextmanager
def _by_process(machine: LinuxMachine, program: Path, primitive: str) -> Iterator[Sampled]:
    with Workload([program], "anon", PAGES) as work:
        task = machine.get_task(work.pid, primitive)
        try:
            yield Real(work, mm_of(task), machine.faults if primitive == "page_fault" else None)
        finally:
            task.put()


@contextmanager
def _by_frames(machine: LinuxMachine, program: Path, apart: bool) -> Iterator[Sampled]:
    with Workload([program], "anon", PAGES) as work:
        memory = machine.physical_memory() if apart else machine.physical_memory_here(lambda pid: pid != work.pid)
        try:
            memory.update()
            yield RealFrames(work, memory)
        finally:
            memory.put()


@contextmanager
def _by_idle_bits(directory: Path) -> Iterator[Sampled]:
    memory = Memory(directory)
    memory.pages = {BASE // PAGE + page: 64 + page for page in range(PAGES)}
    with Space(memory) as space:
        yield IdleBits(memory, space)


KINDS = (
    "simulated, page_table",
    "simulated, page_fault",
    "simulated, physical",
    "page_idle",
    "page_table",
    "page_fault",
    "physical",
    "physical, apart",
)


@pytest.fixture(name="memory", params=KINDS)
def _memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sampled]:
    kind: str = request.param
    if kind == "simulated, physical":
        yield SimulatedFrames()
    elif kind.startswith("simulated"):
        yield Simulated(kind.rpartition(" ")[2])
    else:
        found: AbstractContextManager[Sampled]
        if kind == "page_idle":
            found = _by_idle_bits(tmp_path)
        elif kind == "page_fault":
            found = _by_process(request.getfixturevalue("faulting"), request.getfixturevalue("program"), kind)
        elif kind == "page_table":
            found = _by_process(request.getfixturevalue("machine"), request.getfixturevalue("program"), kind)
        else:
            machine = request.getfixturevalue("machine")
            found = _by_frames(machine, request.getfixturevalue("program"), kind.endswith("apart"))
        with found as memory:
            yield memory


def right(memory: Sampled, addrs: U64Array, wrote: Pages, expected: Mask) -> None:
    """A sample of ``addrs``, which was begun, sees what the process writes."""
    accessed, answers = memory.accessed(addrs, lambda: memory.write(wrote))
    assert answers.shape == addrs.shape
    assert answers.dtype == np.uint8
    judge(memory, accessed, answers, expected)


def judge(memory: Sampled, accessed: Mask, answers: Answers, expected: Mask) -> None:
    """No access is invented, none is missed of what is simulated, and hardly any of real memory."""
    known = answers != UNKNOWN
    assert known.mean() >= memory.known_share
    assert not (accessed & ~expected & known).any()
    missed = (~accessed & expected & known).sum()
    assert missed <= (0.1 * expected.sum() if isinstance(memory, Real) else 0)


def test_each_address_is_answered_in_its_place(memory: Sampled) -> None:
    """Whatever their order is, and as often as a page is named."""
    pages = np.concatenate([np.random.default_rng(1).permutation(PAGES), [7, 7, 8]])
    addrs = memory.addrs(pages)
    for wrote in (EVERY[::2], EVERY[1::3], EVERY[:0]):
        memory.samples.begin_sample(addrs)
        right(memory, addrs, wrote, np.isin(pages, wrote))


def test_what_was_accessed_before_does_not_count(memory: Sampled) -> None:
    """Nor what is accessed after the end."""
    addrs = memory.addrs(EVERY)
    memory.write(EVERY[:100])
    memory.faults()
    memory.samples.begin_sample(addrs)
    right(memory, addrs, EVERY[50:200], (EVERY >= 50) & (EVERY < 200))
    memory.write(EVERY)
    memory.faults()
    memory.samples.begin_sample(addrs)
    right(memory, addrs, EVERY[:0], np.zeros(PAGES, np.bool_))


def unknown(memory: Sampled, addrs: U64Array) -> bool:
    """Return whether the end of a sample of ``addrs`` has no answers."""
    answers = memory.samples.end_sample(addrs)
    return answers.shape == addrs.shape and answers.dtype == np.uint8 and bool((answers == UNKNOWN).all())


def test_an_end_without_a_beginning_tells_nothing(memory: Sampled) -> None:
    """Before the first sample, and after one was ended."""
    addrs = memory.addrs(EVERY)
    assert unknown(memory, addrs)
    memory.samples.begin_sample(addrs)
    memory.samples.end_sample(addrs)
    assert unknown(memory, addrs)


def test_an_end_with_another_array_ends_the_sample_and_tells_nothing(memory: Sampled) -> None:
    """Be it of the same addresses, or a part of the array."""
    addrs = memory.addrs(EVERY)
    for other in (addrs.copy(), addrs[:], addrs[:10], memory.addrs(EVERY[:0])):
        memory.samples.begin_sample(addrs)
        memory.write(EVERY[:20])
        assert unknown(memory, other)
        assert unknown(memory, addrs)
    memory.faults()
    memory.samples.begin_sample(addrs)
    right(memory, addrs, EVERY[:20], EVERY < 20)


def test_a_second_beginning_gives_the_first_sample_up(memory: Sampled) -> None:
    """Its pages are not sampled any more, and its end has no answers."""
    first, second = memory.addrs(EVERY[:300]), memory.addrs(EVERY[200:])
    memory.samples.begin_sample(first)
    memory.samples.begin_sample(second)
    right(memory, second, EVERY[::2], EVERY[200:] % 2 == 0)
    assert unknown(memory, first)
    memory.samples.begin_sample(first)
    memory.samples.begin_sample(second)
    memory.write(EVERY[:200])
    faults = memory.faults()
    assert faults is None or not np.isin(first[:200] >> np.uint64(12), faults["addr"] >> np.uint64(12)).any()
    assert unknown(memory, first)


def test_an_empty_sample(memory: Sampled) -> None:
    """Its end has no answers either, and its beginning gives another one up."""
    addrs, nothing = memory.addrs(EVERY), memory.addrs(EVERY[:0])
    memory.samples.begin_sample(nothing)
    answers = memory.samples.end_sample(nothing)
    assert (answers.shape, answers.dtype) == ((0,), np.dtype(np.uint8))
    memory.samples.begin_sample(addrs)
    memory.samples.begin_sample(nothing)
    assert unknown(memory, addrs)


def test_an_array_that_changes_meanwhile_is_answered_as_it_was(memory: Sampled) -> None:
    """The caller may use its place for something else."""
    addrs = memory.addrs(EVERY)
    memory.samples.begin_sample(addrs)
    memory.write(EVERY[:100])
    faults = memory.faults()
    addrs[:] = addrs[::-1].copy()
    answers = memory.samples.end_sample(addrs)
    accessed = answers == YOUNG
    if faults is not None:
        accessed = np.isin(memory.addrs(EVERY) >> np.uint64(12), faults["addr"] >> np.uint64(12))
    judge(memory, accessed, answers, EVERY < 100)


def test_the_answers_are_the_callers(memory: Sampled) -> None:
    """They do not change with the next sample."""
    addrs = memory.addrs(EVERY)
    memory.samples.begin_sample(addrs)
    answers = memory.samples.end_sample(addrs)
    kept = answers.copy()
    answers[:] = 77
    memory.samples.begin_sample(addrs)
    again = memory.samples.end_sample(addrs)
    assert set(kept.tolist()) <= {OLD, UNKNOWN}
    assert set(again.tolist()) <= {OLD, UNKNOWN}
    assert (answers == 77).all()


@pytest.mark.parametrize("how", ["unmap", "end"])
def test_memory_that_goes_meanwhile_is_not_young(memory: Sampled, how: str) -> None:
    """It is old, be the process gone with it; of page frames it is not known if others have them by now."""
    addrs = memory.addrs(EVERY)
    memory.samples.begin_sample(addrs)
    getattr(memory, how)()
    answers = memory.samples.end_sample(addrs)
    assert YOUNG not in answers
    if not isinstance(memory, RealFrames | SimulatedFrames):
        known = answers != UNKNOWN
        assert known.mean() >= memory.known_share
    memory.samples.begin_sample(addrs)
    assert YOUNG not in memory.samples.end_sample(addrs)


@pytest.mark.parametrize("memory", [kind for kind in KINDS if kind != "page_idle"], indirect=True)
def test_pages_are_young_or_idle_as_the_answers_say(memory: Sampled) -> None:
    """Filters change nothing; without answers none is. The memory of the bitmap of idle pages is no process's here."""
    filters = [PageFilter("young", True, True), PageFilter("idle", True, True)]
    addrs = memory.addrs(EVERY)
    answers = np.where(EVERY < 300, OLD, np.where(EVERY < 400, YOUNG, UNKNOWN)).astype(np.uint8)
    young, idle = memory.samples.page_match(addrs, filters, answers)
    there = young | idle
    assert there[:400].mean() > 0.9
    assert not there[400:].any()
    assert not young[:300].any()
    assert not idle[300:].any()
    assert not memory.samples.page_match(addrs, filters).any()
