# SPDX-License-Identifier: GPL-2.0-only
"""Accesses of real processes, each of them known: answers must be true."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdamon.arrays import U8Array, U64Array
from kdamon.mm import OLD, UNKNOWN, YOUNG, AddressSpace, Answers, IntervalTarget
from kdamon.mm.actions.madvise import drain_lru
from kdamon.mm.bpf.walk_program import LEVEL, PRESENT, Word
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.sampling.intervals import LinuxIntervals
from kdamon.mm.sampling.page_table import PageTableSpace
from tests.support.capabilities import needs_root
from tests.support.paths import SUPPORT
from tests.support.workload import Pages, Workload, build

pytestmark = pytest.mark.real


PAGES = 4096
SAMPLES = 500
ROUNDS = 20
HUGE_PAGES = 512
NOBODY = 65534

#: Memory whose accesses are seen, and memory in which nothing can be made old.
SEEN = ["anon", "threads", "shmem", "thp", "file"]
UNCLEARABLE = ["fork", "zero", "mlock"]


@pytest.fixture(name="data", scope="module")
def _data(directory: Path) -> Path:
    """A file that is not in the page cache, so that reading it makes folios as large as the kernel likes."""
    path = directory / "data"
    with path.open("wb") as file:
        for _ in range(PAGES):
            file.write(b"\1" * 4096)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def _leaf_touched(pid: int, addrs: U64Array, sampled: Pages, touched: Pages) -> npt.NDArray[np.bool_]:
    """The truth: whether the page, or the 2 MiB page, at each address was touched."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags, _ = shared_walker().walk(fd, addrs & ~np.uint64(4095))
    finally:
        os.close(fd)
    numbers = np.asarray(sampled)
    huge = (flags & LEVEL) == 2
    base = int(addrs[0]) // 4096 - int(numbers[0])
    whole = np.isin((base + numbers) // HUGE_PAGES, (base + np.asarray(touched)) // HUGE_PAGES)
    truth: npt.NDArray[np.bool_] = np.where(huge, whole, np.isin(numbers, touched))
    return truth


class _OneByOne:
    """Samples taken by the two halves of each."""

    def __init__(self, mm: AddressSpace, work: Workload, rounds: Sequence[Pages]) -> None:
        self._mm = mm
        self._rounds = iter([work.addrs(sampled) for sampled in rounds])
        self._begin()

    def _begin(self) -> None:
        self.addrs = next(self._rounds, np.empty(0, np.uint64))
        self._mm.begin_sample(self.addrs)

    def answers(self) -> Answers:
        """Those of the present sample; the next one begins."""
        answers = self._mm.end_sample(self.addrs)
        self._begin()
        return answers

    def close(self) -> None:
        """Nothing is held."""


class _WholeIntervals:
    """The same, taken as whole sampling intervals: each row is a region of all the workload's memory."""

    def __init__(self, mm: AddressSpace, work: Workload, rounds: Sequence[Pages]) -> None:
        n, size = len(rounds[0]), work.pages * 4096
        target = IntervalTarget(mm, np.full(n, work.base, np.uint64), np.full(n, size, np.uint64), wide=False)
        # By these numbers the middle of each page is chosen.
        numbers = [(np.asarray(sampled).astype(np.uint64) * np.uint64(4096) + np.uint64(2048)) for sampled in rounds]
        numbers = [(offsets << np.uint64(32)) // np.uint64(size) + np.uint64(1) for offsets in numbers]
        self._sampler = LinuxIntervals(shared_walker())
        assert self._sampler.begin([target], np.array([*numbers, numbers[-1]]))
        self._counted = np.zeros((2, n), np.int64)

    @property
    def addrs(self) -> U64Array:
        return self._sampler.addrs

    def answers(self) -> Answers:
        assert self._sampler.follow()
        counted = np.array([self._sampler.accessed, self._sampler.unknown]).astype(np.int64)
        accessed, unknown = counted - self._counted
        self._counted = counted
        assert (accessed + unknown <= 1).all()
        return np.where(unknown, UNKNOWN, np.where(accessed, YOUNG, OLD)).astype(np.uint8)

    def close(self) -> None:
        self._sampler.end()
        self._sampler.close()


How = type[_OneByOne] | type[_WholeIntervals]


def _sample(
    machine: LinuxMachine, work: Workload, mode: str, how: How = _OneByOne, *, rounds: int = ROUNDS, pid: int = 0
) -> Counter[str]:
    """Sample ``work`` some times and count the answers that are right, wrong, and not given."""
    rng = np.random.default_rng(7)
    outcome: Counter[str] = Counter()
    missed = []
    task = machine.get_task(pid or work.pid)
    try:
        mm = task.get_mm()
        assert mm is not None
        samples = [rng.integers(0, work.pages, SAMPLES) for _ in range(rounds)]
        with closing(how(mm, work, samples)) as sampling:
            for sampled in samples:
                # Few 2 MiB pages, or else all of them would be touched each time.
                within = rng.integers(0, work.pages // HUGE_PAGES, 2) if work.pages >= HUGE_PAGES else np.zeros(1, int)
                near = sampled[np.isin(sampled // HUGE_PAGES, within)]
                touched = rng.choice(near, max(1, len(near) // 2))
                addrs = work.addrs(sampled)
                assert np.array_equal(addrs & ~np.uint64(4095), sampling.addrs & ~np.uint64(4095))
                work.order(mode, touched)
                answers = sampling.answers()
                truth = _leaf_touched(task.pid, addrs, sampled, touched)
                outcome["accesses"] += int(truth.sum())
                missed.append(int(((answers == OLD) & truth).sum()))
                outcome["invented"] += int(((answers == YOUNG) & ~truth).sum())
                outcome["seen"] += int(((answers == YOUNG) & truth).sum())
                outcome["unknown"] += int((answers == UNKNOWN).sum())
                outcome["samples"] += len(sampled)
    finally:
        task.put()
    # Where the kernel's own DAMON runs, it clears the accessed bits of all large pages at a time, now and then.
    outcome["missed"] = sum(sorted(missed)[:-2])
    return outcome


def _assert_true(outcome: Counter[str]) -> None:
    """No access is invented; hardly any is missed or unknown, apart from two rounds."""
    assert 0 == outcome["invented"]
    assert outcome["accesses"] > 0
    assert outcome["missed"] <= 0.02 * outcome["accesses"]
    assert outcome["seen"] >= 0.75 * outcome["accesses"]


#: Both ways to take samples.
both_ways = pytest.mark.parametrize("how", [_OneByOne, _WholeIntervals])


@both_ways
@pytest.mark.parametrize(("kind", "mode"), [*((kind, mode) for kind in SEEN for mode in "rw"), ("readonly", "r")])
def test_accesses_are_seen_and_none_is_invented(  # noqa: PLR0917 -- fixtures
    machine: LinuxMachine, program: Path, data: Path, kind: str, mode: str, how: How
) -> None:
    """Reads and writes alike, of private, shared and file memory, in 4 KiB and 2 MiB pages, by any thread."""
    with Workload([program], kind, PAGES, str(data)) as work:
        _assert_true(_sample(machine, work, mode, how))


@both_ways
@pytest.mark.parametrize("kind", ["anon", "thp", "file"])
def test_accesses_are_seen_where_struct_page_is_not_known(
    machine: LinuxMachine, program: Path, data: Path, kind: str, how: How
) -> None:
    """/proc/kpageflags and /proc/kpagecount show then what may be cleared."""
    header = shared_walker().header
    known = header[Word.VMEMMAP]
    header[Word.VMEMMAP] = 0
    try:
        with Workload([program], kind, PAGES, str(data)) as work:
            _assert_true(_sample(machine, work, "w", how))
    finally:
        header[Word.VMEMMAP] = known


@pytest.mark.parametrize("kind", ["anon", "thp", "fork", "zero"])
def test_most_memory_needs_no_python(
    machine: LinuxMachine, program: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the program lists is cleared, or left alone, without looking at it page by page."""
    if kind == "thp" and (shared_walker().layout.page is None or shared_walker().layout.page.large_mapcount is None):
        pytest.skip("kernel lacks: _large_mapcount, which came with Linux 6.10")
    looked_at = []
    clear = PageTableSpace.clear_looked_at

    def spy(self: PageTableSpace, pages: U64Array, flags: U8Array, entries: U64Array) -> npt.NDArray[np.bool_]:
        looked_at.append(len(pages))
        return clear(self, pages, flags, entries)

    monkeypatch.setattr(PageTableSpace, "clear_looked_at", spy)
    with Workload([program], kind, PAGES) as work:
        outcome = _sample(machine, work, "r", _WholeIntervals)
    # A page may be in a CPU's batch just now.
    assert sum(looked_at) <= 0.01 * outcome["samples"]


@both_ways
@pytest.mark.parametrize("kind", UNCLEARABLE)
def test_what_cannot_be_made_old_is_unknown(machine: LinuxMachine, program: Path, kind: str, how: How) -> None:
    """Pages shared with another process, the zero page and locked pages: nothing is claimed about them."""
    with Workload([program], kind, PAGES) as work:
        outcome = _sample(machine, work, "r", how)
    assert 0 == outcome["invented"]
    assert outcome["unknown"] >= 0.9 * outcome["samples"]


def test_written_pages_of_a_forked_process_are_its_own_again(machine: LinuxMachine, program: Path) -> None:
    """A write takes a shared page's copy, whose accesses are seen from then on."""
    with Workload([program], "fork", PAGES) as work:
        work.order("w", np.arange(PAGES))
        _assert_true(_sample(machine, work, "r"))


def test_first_accesses_of_memory_are_seen(machine: LinuxMachine, program: Path) -> None:
    """A page that was not there when it was made old, and is now, was accessed."""
    with Workload([program], "untouched", PAGES) as work:
        _assert_true(_sample(machine, work, "w"))


def test_a_statically_linked_process_is_seen(machine: LinuxMachine, directory: Path) -> None:
    """Nothing is asked of the target's libraries."""
    (directory / "static").mkdir()
    with Workload([build(directory / "static", "-static")], "anon", PAGES) as work:
        _assert_true(_sample(machine, work, "r"))


def test_a_python_process_is_seen(machine: LinuxMachine) -> None:
    """Nor of its language."""
    script = SUPPORT / "workload_script.py"
    with Workload([sys.executable, script], "anon", PAGES) as work:
        _assert_true(_sample(machine, work, "r", rounds=10))


@needs_root("only root can start another user's process")
def test_another_users_process_is_seen(machine: LinuxMachine, program: Path) -> None:
    """Root monitors everybody."""
    with Workload([program], "anon", PAGES, user=NOBODY) as work:
        _assert_true(_sample(machine, work, "r"))


def test_a_thread_stands_for_its_process(machine: LinuxMachine, program: Path) -> None:
    """The number of any thread finds the memory that all of them share."""
    with Workload([program], "threads", PAGES) as work:
        threads = sorted(int(name) for name in os.listdir(f"/proc/{work.pid}/task"))
        assert 2 == len(threads)
        (other,) = set(threads) - {work.pid}
        _assert_true(_sample(machine, work, "r", pid=other))


def test_pages_in_heavy_use_are_young(machine: LinuxMachine, program: Path) -> None:
    """A page that is accessed again before its clearing was checked is not taken for one that was not cleared."""
    hot, cold = np.arange(0, 100), np.arange(1000, 1100)
    outcome: Counter[int] = Counter()
    with Workload([program], "anon", PAGES) as work:
        work.order("h", hot)
        task = machine.get_task(work.pid)
        try:
            mm = task.get_mm()
            assert mm is not None
            addrs = work.addrs(np.concatenate([hot, cold]))
            for _ in range(ROUNDS):
                mm.begin_sample(addrs)
                # The target may have to wait for its processor.
                until = _nanoseconds_run(work.pid) + 1_000_000
                while _nanoseconds_run(work.pid) < until:
                    time.sleep(0.001)
                answers = mm.end_sample(addrs)
                assert YOUNG not in answers[100:]
                outcome.update(answers[:100].tolist())
        finally:
            task.put()
    assert outcome[YOUNG] >= 0.95 * 100 * ROUNDS


def _nanoseconds_run(pid: int) -> int:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text(encoding="ascii").split()[0]) for thread in threads)


class _OwnPages:
    """Touched pages of this process."""

    def __init__(self, pages: int = 64) -> None:
        self.memory = mmap.mmap(-1, pages * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_NOHUGEPAGE)
        anchor = np.frombuffer(self.memory, dtype=np.uint8)
        self.addrs: U64Array = np.uint64(anchor.ctypes.data) + np.arange(pages, dtype=np.uint64) * np.uint64(4096)
        del anchor
        self.touch(range(pages))
        drain_lru()

    def touch(self, pages: range | list[int]) -> None:
        for page in pages:
            self.memory[page * 4096] = 1

    def __enter__(self) -> _OwnPages:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.close()


def _answers(machine: LinuxMachine, addrs: U64Array, own: _OwnPages, touched: list[int]) -> Answers:
    """The highest answer of three samples: something else may hide an access, but nothing may invent one."""
    highest: Answers = np.zeros(len(addrs), dtype=np.uint8)
    task = machine.get_task(os.getpid())
    try:
        mm = task.get_mm()
        assert mm is not None
        for _ in range(3):
            mm.begin_sample(addrs)
            own.touch(touched)
            highest = np.maximum(highest, mm.end_sample(addrs))
    finally:
        task.put()
    return highest


def test_the_same_page_may_be_sampled_twice(machine: LinuxMachine) -> None:
    """Every sample of a page gets the page's answer, wherever in it the address is, in whatever order."""
    with _OwnPages() as own:
        addrs = np.concatenate([own.addrs[::-1], own.addrs + np.uint64(4095), own.addrs])
        answers = _answers(machine, addrs, own, list(range(0, 64, 2)))
    for third in (answers[:64][::-1], answers[64:128], answers[128:]):
        assert [YOUNG, OLD] * 32 == third.tolist()


class _WatchedPages(_OwnPages):
    """As NUMA balancing watches them: their entries forbid all access, and the next access makes them plain."""

    def touch(self, pages: range | list[int]) -> None:
        self._protect(mmap.PROT_READ | mmap.PROT_WRITE)
        super().touch(pages)
        self._protect(0)

    def _protect(self, allowed: int) -> None:
        base = ctypes.addressof(anchor := ctypes.c_char.from_buffer(self.memory))
        del anchor
        assert 0 == ctypes.CDLL(None).mprotect(ctypes.c_void_p(base), ctypes.c_size_t(len(self.memory)), allowed)


def test_pages_that_numa_balancing_watches_are_made_old(machine: LinuxMachine) -> None:
    """A machine with two NUMA nodes watches pages all the time; their entries have no page frame in plain form."""
    with _WatchedPages() as own:
        answers = _answers(machine, own.addrs, own, list(range(0, 64, 2)))
    assert [YOUNG, OLD] * 32 == answers.tolist()


def test_addresses_outside_of_mappings_are_old(machine: LinuxMachine) -> None:
    """Also those that no process can have, and the kernel's."""
    with _OwnPages() as own:
        outside = np.array([0, 4096, 1 << 47, (1 << 47) - 1, 1 << 63, 0xFFFF_8880_0000_1000, (1 << 64) - 1], np.uint64)
        answers = _answers(machine, np.concatenate([outside, own.addrs]), own, [0])
    assert answers[: len(outside)].tolist() == [OLD] * len(outside)
    assert YOUNG == answers[len(outside)]


def test_no_addresses_have_no_answers(machine: LinuxMachine) -> None:
    """A target without regions is sampled too."""
    with _OwnPages() as own:
        assert (0,) == _answers(machine, np.empty(0, dtype=np.uint64), own, []).shape


def test_a_batch_larger_than_the_walkers_memory_is_cut(machine: LinuxMachine) -> None:
    """More addresses than one run of the program takes are several runs."""
    with _OwnPages() as own:
        many = np.tile(own.addrs, shared_walker().capacity // 64 + 2)
        answers = _answers(machine, many, own, list(range(0, 64, 2)))
    assert answers.tolist() == [YOUNG, OLD] * (len(many) // 2)


def test_huge_pages_stay_whole(machine: LinuxMachine, program: Path) -> None:
    """Sampling a part of a 2 MiB page does not make the kernel split it."""
    with Workload([program], "thp", PAGES) as work:
        before = _huge_kilobytes(work.pid)
        assert before > 0
        _sample(machine, work, "r", rounds=3)
        assert _huge_kilobytes(work.pid) == before


def _huge_kilobytes(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("AnonHugePages:"))


def test_a_file_that_is_mapped_in_part_is_left_alone(machine: LinuxMachine, data: Path) -> None:
    """Clearing a part of a folio would unmap its neighbours: what is mapped stays mapped, no access is invented."""
    data.read_bytes()
    with data.open("r+b") as file:
        maps = [mmap.mmap(file.fileno(), 5 * 4096, offset=first * 4096) for first in range(1, PAGES, 97)]
    bases = [np.frombuffer(part, dtype=np.uint8).ctypes.data for part in maps]
    addrs = np.concatenate([np.uint64(base) + np.arange(5, dtype=np.uint64) * np.uint64(4096) for base in bases])
    assert all(part[page * 4096] == 1 for part in maps for page in range(5))
    task = machine.get_task(os.getpid())
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        mm = task.get_mm()
        assert mm is not None
        for _ in range(3):
            mm.begin_sample(addrs)
            flags, _ = shared_walker().walk(fd, addrs)
            assert ((flags & PRESENT) != 0).all()
            assert YOUNG not in mm.end_sample(addrs)
    finally:
        os.close(fd)
        task.put()
