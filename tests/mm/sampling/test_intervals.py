# SPDX-License-Identifier: GPL-2.0-only
"""Whole sampling intervals of real address spaces: several at once, and what ends in the middle of one."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kdamon.mm import OLD, YOUNG, AddressSpace, IntervalTarget
from kdamon.mm.bpf.interval_memory import IntervalWord
from kdamon.mm.bpf.program import Helper
from kdamon.mm.bpf.walker import Walker, shared_walker
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.sampling import intervals
from kdamon.mm.sampling.intervals import LinuxIntervals
from tests.support.capabilities import needs_root
from tests.support.cli import ENVIRONMENT
from tests.support.process_memory import space_of
from tests.support.sampling import open_files
from tests.support.waiting import eventually
from tests.support.workload import MONITOR_CPU, TARGET_CPU, Workload

pytestmark = pytest.mark.real

PAGES = 64


@pytest.fixture(name="sampler", params=["machine code", "Python"])
def _sampler(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, machine: LinuxMachine
) -> Iterator[LinuxIntervals]:
    if request.param == "Python":
        monkeypatch.setattr(intervals, "runner", lambda: None)
    with closing(LinuxIntervals(shared_walker())) as sampler:
        yield sampler


def each_page(mm: AddressSpace, work: Workload) -> IntervalTarget:
    """A region for each page of ``work``."""
    starts = work.addrs(range(PAGES)) & ~np.uint64(4095)
    return IntervalTarget(mm, starts, np.full(PAGES, 4096, np.uint64), wide=False)


def numbers(samples: int, rows: int) -> np.ndarray:
    """Random numbers of 32 bits."""
    return (np.random.PCG64(1).random_raw(samples * rows) >> np.uint64(32)).reshape(samples, rows)


def test_several_targets_are_counted_apart(machine: LinuxMachine, program: Path, sampler: LinuxIntervals) -> None:
    """Each page that was touched, of the process that touched it."""
    with (
        Workload([program], "anon", PAGES) as one,
        Workload([program], "anon", PAGES) as other,
        space_of(machine, one.pid) as first,
        space_of(machine, other.pid) as second,
    ):
        assert sampler.begin([each_page(first, one), each_page(second, other)], numbers(4, 2 * PAGES))
        for _ in range(3):
            one.order("w", [1, 5, 63])
            other.order("r", [0, 5])
            assert sampler.follow()
        other.order("w", [7])
        answers = sampler.end()
    expected = np.zeros(2 * PAGES, int)
    expected[[1, 5, 63, PAGES, PAGES + 5]] = 3
    # The last pages that a program touched first are in its CPU's batch, where they cannot be made old.
    known = sampler.unknown == 0
    assert known.sum() >= PAGES
    assert expected[known].tolist() == sampler.accessed[known].tolist()
    last = np.zeros(2 * PAGES, bool)
    last[PAGES + 7] = True
    assert np.where(last, YOUNG, OLD)[known].tolist() == answers[known].tolist()


def test_a_process_that_ends_ends_the_intervals(machine: LinuxMachine, program: Path, sampler: LinuxIntervals) -> None:
    """At the next sample, and none can be begun."""
    with (
        Workload([program], "anon", PAGES) as one,
        Workload([program], "anon", PAGES) as other,
        space_of(machine, one.pid) as first,
        space_of(machine, other.pid) as second,
    ):
        targets = [each_page(first, one), each_page(second, other)]
        assert sampler.begin(targets, numbers(4, 2 * PAGES))
        one.order("w", range(PAGES))
        assert sampler.follow()
        other.process.kill()
        other.process.wait()
        assert not sampler.follow()
        assert not sampler.begin(targets, numbers(4, 2 * PAGES))
        assert sampler.begin(targets[:1], numbers(4, PAGES))
        sampler.end()


def test_an_exec_ends_the_intervals(machine: LinuxMachine, program: Path, sampler: LinuxIntervals) -> None:
    """The old program's memory is gone with it."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        assert sampler.begin([each_page(mm, work)], numbers(50, PAGES))
        assert sampler.follow()
        work.send("x", [PAGES])
        eventually(lambda: not sampler.follow(), "the end of the address space")
        work.greet()


def test_nothing_is_left_of_closed_intervals(machine: LinuxMachine, program: Path) -> None:
    """Neither file descriptors nor another CPU or priority."""
    before = set(os.listdir("/proc/self/fd")), os.sched_getaffinity(0), os.sched_getscheduler(0)
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        sampler = LinuxIntervals(shared_walker())
        assert sampler.begin([each_page(mm, work)], numbers(4, PAGES))
        assert sampler.follow()
        sampler.close()
        # The shared memory goes with its last view.
        del sampler
    assert before == (set(os.listdir("/proc/self/fd")), os.sched_getaffinity(0), os.sched_getscheduler(0))


#: Nanoseconds of an interval that is short, and of one that no test waits for.
SHORT, LONG = 2_000_000, 10**12


@pytest.fixture(name="alone")
def _alone(machine: LinuxMachine) -> Iterator[LinuxIntervals]:
    with closing(LinuxIntervals(shared_walker())) as sampler:
        yield sampler


def begun(sampler: LinuxIntervals, mm: AddressSpace, work: Workload, samples: int) -> None:
    """Begin the first sample, with random numbers for as many, until whatever the kernel does at first is done."""
    assert sampler.begin([each_page(mm, work)], numbers(samples, PAGES))
    eventually(lambda: not sampler._reading or not sampler.follow(), "all mappings")


def follow_in_time(sampler: LinuxIntervals, most: int, interval: int = SHORT) -> bool:
    """Let ``most`` samples follow, an interval apart, as often as a busy machine ends that."""
    left, deadline = most, time.monotonic_ns()
    while left:
        time.sleep(max(deadline - time.monotonic_ns(), 0) / 1e9)
        if not sampler.follow(left, deadline, interval):
            return False
        assert 0 < sampler.taken <= left
        assert not sampler.woken
        left -= sampler.taken
        deadline = max(deadline + sampler.taken * interval, time.monotonic_ns())
    return True


def test_samples_follow_one_another_by_themselves(machine: LinuxMachine, program: Path, alone: LinuxIntervals) -> None:
    """Each takes its time, is counted once, and chooses by numbers of its own."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        begun(alone, mm, work, 200)
        work.order("w", [3])
        before = time.monotonic_ns()
        assert follow_in_time(alone, 20)
        assert time.monotonic_ns() - before >= 17 * SHORT
        first = alone.addrs
        assert follow_in_time(alone, 1)
        assert (alone.addrs != first).all()
        known = alone.unknown == 0
        expected = np.zeros(PAGES, int)
        expected[3] = 1
        assert known.sum() >= PAGES // 2
        assert expected[known].tolist() == alone.accessed[known].tolist()


def _counted(calls: list[object], work: Callable[[], object]) -> None:
    calls.append(work)
    work()


@pytest.mark.parametrize("together", [512, 64, 63, 5])
def test_what_is_accessed_all_the_time_is_found_each_time(
    machine: LinuxMachine, alone: LinuxIntervals, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """Pages are cleared by the calls between runs of the program, ``together`` in each, without Python."""
    for limit in ("_MOST_HERE", "_MOST_ELSEWHERE"):
        monkeypatch.setattr(intervals, limit, together)
    by_python: list[object] = []
    for way in ("_clear", "_clear_rest"):
        monkeypatch.setattr(alone, way, partial(_counted, by_python, getattr(alone, way)))
    busy = """
import mmap, os
memory = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
import ctypes
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
parent = os.getppid()
while os.getppid() == parent:
    for place in range(0, len(memory), 4096):
        memory[place] = 1
"""
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            start = int(process.stdout.readline())
            with space_of(machine, process.pid) as mm:
                starts = np.arange(PAGES, dtype=np.uint64) * np.uint64(4096) + np.uint64(start)
                target = IntervalTarget(mm, starts, np.full(PAGES, 4096, np.uint64), wide=False)
                assert alone.begin([target], numbers(300, PAGES))
                # The CPU to follow, and mappings, are decided about at first.
                assert follow_in_time(alone, 40)
                alone.end()

                def most_of_them() -> bool:
                    """Unless the process had no CPU; no sample counts twice."""
                    by_python.clear()
                    assert alone.begin([target], numbers(20, PAGES))
                    assert follow_in_time(alone, 19, 20 * SHORT)
                    found = int(alone.accessed.sum())
                    alone.end()
                    assert found <= 19 * PAGES
                    return found > 10 * PAGES and len(by_python) < 5

                eventually(most_of_them, "memory that is accessed all the time")
        finally:
            process.kill()


def test_in_a_time_namespace_samples_are_taken_one_by_one(program: Path) -> None:
    """Where the kernel's clock is another one."""
    script = """
import sys, time
import numpy as np
from kdamon.mm import IntervalTarget
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.linux.machine import linux_machine
from kdamon.mm.sampling.intervals import LinuxIntervals
machine = linux_machine("page_table")
mm = machine.get_task(int(sys.argv[1]), "page_table").get_mm()
sampler = LinuxIntervals(shared_walker())
one = np.array([4096], np.uint64)
taken = []
for _ in range(20):
    assert sampler.begin([IntervalTarget(mm, one, one, wide=False)], np.zeros((9, 1), np.uint64))
    for _ in range(3):
        sampler.follow(2, time.monotonic_ns(), 10_000_000)
        taken.append(sampler.taken)
print(max(taken))
"""
    with Workload([program], "anon", PAGES) as work:
        for offset, expected in (("0", "2\n"), ("100000", "1\n"), ("-5", "1\n")):
            there = ["unshare", "--time", "--fork", "--monotonic", offset]
            result = subprocess.run(
                [*there, sys.executable, "-c", script, str(work.pid)],
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                check=False,
            )
            if "unshare failed" in result.stderr:
                pytest.skip("kernel lacks: time namespaces")
            assert (expected, "") == (result.stdout, result.stderr), offset


def test_a_late_sample_is_left_to_the_caller(machine: LinuxMachine, program: Path, alone: LinuxIntervals) -> None:
    """It decides what was missed; so does the end of an interval that has less than half of it left."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        begun(alone, mm, work, 200)
        assert alone.follow(10, time.monotonic_ns() - SHORT, SHORT)
        assert (1, False) == (alone.taken, alone.woken)
        assert alone.follow(10, time.monotonic_ns() - LONG // 2 - SHORT, LONG)
        assert (1, False) == (alone.taken, alone.woken)


@contextmanager
def repeated(work: Callable[[], object], pause: float = 0.02) -> Iterator[None]:
    """Do ``work`` in another thread, with pauses of so many seconds."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(pause):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_an_interrupt_ends_the_sleep(machine: LinuxMachine, program: Path, alone: LinuxIntervals) -> None:
    """In the middle of an interval; if it comes before, in the next one. The sample stays under way."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        begun(alone, mm, work, 900)

        def interrupted() -> bool:
            """Unless there was something to be done first."""
            assert alone.follow(100, time.monotonic_ns(), LONG)
            assert 1 == alone.taken
            return alone.woken

        with repeated(alone.interrupt):
            eventually(interrupted, "an interrupt")

        def interrupted_before() -> bool:
            alone.interrupt()
            return interrupted()

        eventually(interrupted_before, "an interrupt that came before")
        work.order("w", [9])
        answers = alone.end()
        assert YOUNG == answers[9]


def test_a_signal_does_not_end_the_sleep(machine: LinuxMachine, program: Path, alone: LinuxIntervals) -> None:
    """The interval lasts to its end."""
    arrived: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: arrived.append(number))
    thread = threading.get_ident()
    try:
        with (
            Workload([program], "anon", PAGES) as work,
            space_of(machine, work.pid) as mm,
            repeated(lambda: signal.pthread_kill(thread, signal.SIGUSR1)),
        ):
            begun(alone, mm, work, 900)

            def two_samples() -> bool:
                """Unless there was something to be done after the first one."""
                before = len(arrived)
                began = time.monotonic_ns()
                assert alone.follow(2, began, 300_000_000)
                assert not alone.woken
                if alone.taken == 2:
                    assert time.monotonic_ns() - began >= 300_000_000
                return alone.taken == 2 and len(arrived) > before

            eventually(two_samples, "an interval with a signal in it")
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_sample_that_too_many_signals_disturb_stays_under_way(
    machine: LinuxMachine, program: Path, alone: LinuxIntervals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cleared in the middle of it; the caller sleeps the rest."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    thread = threading.get_ident()
    try:
        with (
            Workload([program], "anon", PAGES) as work,
            space_of(machine, work.pid) as mm,
            repeated(lambda: signal.pthread_kill(thread, signal.SIGUSR1), 0.0005),
        ):
            begun(alone, mm, work, 900)
            cleared: list[object] = []

            def disturbed() -> bool:
                """Unless there was something to be done after the first one."""
                work.order("w", range(PAGES))
                assert alone.follow(2, time.monotonic_ns(), LONG)
                assert 1 == alone.taken
                return alone.woken

            eventually(disturbed, "a sleep that was given up")
            monkeypatch.setattr(alone, "_clear", lambda: cleared.append(alone))
            eventually(disturbed, "another one")
            assert [] == cleared
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_process_that_ends_while_samples_follow_one_another_ends_them(
    machine: LinuxMachine, program: Path, alone: LinuxIntervals
) -> None:
    """Its last sample is not counted."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        killer = threading.Timer(0.05, work.process.kill)
        killer.start()

        def ended() -> bool:
            if not alone.begin([each_page(mm, work)], numbers(300, PAGES)):
                return True
            return not follow_in_time(alone, 299)

        eventually(ended, "the end of the process")
        killer.join()
        work.process.wait()


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """This process can open ``count`` more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.open(os.devnull, os.O_RDONLY)
    os.close(first_free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + count, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_files_for_it_no_intervals_are_begun(
    machine: LinuxMachine, program: Path, sampler: LinuxIntervals
) -> None:
    """One by one there are samples as before; no file stays open, and the next one can be begun."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        before = open_files()
        for left in (0, 1):
            with files_left(left):
                assert not sampler.begin([each_page(mm, work)], numbers(4, PAGES))
            assert before == open_files()
        assert sampler.begin([each_page(mm, work)], numbers(4, PAGES))
        sampler.end()


@pytest.mark.usefixtures("machine")
def test_a_kernel_that_cannot_run_the_program_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verifier would refuse the program in each sampling interval; a shortage of files passes."""
    asked: list[object] = []

    def counted(walker: Walker) -> LinuxIntervals:
        asked.append(walker)
        return LinuxIntervals(walker)

    with closing(linux_machine("page_table")) as here:
        monkeypatch.setattr("kdamon.mm.linux.machine.LinuxIntervals", counted)
        with files_left(0):
            assert [None, None] == [here.interval_sampler(), here.interval_sampler()]
        assert 2 == len(asked)
        # As before Linux 5.17: there is no such function.
        monkeypatch.setattr(Helper, "LOOP", 1 << 20)
        assert [None, None] == [here.interval_sampler(), here.interval_sampler()]
        assert 3 == len(asked)


@pytest.mark.skipif(TARGET_CPU == MONITOR_CPU, reason="kernel lacks: a second CPU")
@needs_root("gives another process real-time priority")
def test_a_thread_of_real_time_priority_is_not_followed(machine: LinuxMachine) -> None:
    """Beside one that never sleeps this thread would never run: it counts as one that runs on several CPUs."""
    busy = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as process, closing(LinuxIntervals(shared_walker())) as sampler:
        try:
            with space_of(machine, process.pid) as mm:
                nothing = IntervalTarget(mm, np.array([4096], np.uint64), np.array([4096], np.uint64), wide=False)
                assert sampler.begin([nothing], numbers(60000, 1))

                def cpus() -> int:
                    assert sampler.follow()
                    return sampler._program.words[IntervalWord.CPUS]

                os.sched_setaffinity(process.pid, {TARGET_CPU})
                eventually(lambda: cpus() == 1 << TARGET_CPU, "a thread that runs")
                try:
                    os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(1))
                except OSError:
                    pytest.skip("kernel lacks: real-time priority for this control group")
                eventually(lambda: cpus() == (1 << 64) - 1, "a thread that is not followed")
        finally:
            process.kill()


def test_more_than_there_is_room_for_is_refused(machine: LinuxMachine, program: Path, sampler: LinuxIntervals) -> None:
    """It can be sampled one by one."""
    assert 0 == sampler.at_once(1 << 20)
    assert 0 == sampler.at_once(0)
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        assert not sampler.begin([], numbers(1, 1))
        assert not sampler.begin([each_page(mm, work)] * 2000, numbers(1, 2000 * PAGES))
