# SPDX-License-Identifier: GPL-2.0-only
"""Monitoring by faults: which thread wrote to which sampled page, in real processes."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.mm import OLD, UNKNOWN
from kdamon.mm.inject.requests import take_userfaultfd
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.sampling import page_fault
from tests.support.capabilities import needs_free_hugetlb, needs_root
from tests.support.paths import SUPPORT
from tests.support.sampling import armed, mm_of, open_files, pages_of, sample, task_of, wait_until, within
from tests.support.workload import MONITOR_CPU, TARGET_CPU, Workload

pytestmark = pytest.mark.real


PAGES = 1024
EVERY = np.arange(PAGES)


@pytest.mark.parametrize("kind", ["anon", "shmem", "file", "zero", "fork", "mlock"])
def test_every_write_is_told(faulting: LinuxMachine, program: Path, directory: Path, kind: str) -> None:
    """With address, process, thread, CPU and node, whatever the memory is; pages that were not written are OLD.

    Reads are reported where they fault: not of files.
    """
    # Less than a huge page, which files may be mapped by.
    pages = np.arange(500)
    data = directory / "written"
    data.write_bytes(bytes(4096 * len(pages)))
    written = pages[::3]
    with Workload([program], kind, len(pages), str(data)) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        faults, _ = sample(faulting, mm, work, pages, lambda: work.order("r", pages))
        reads = faulting.faults_of_reads and kind != "file"
        assert pages_of(work, faults) == (pages.tolist() if reads else [])
        assert not faults["write"].any()
        faults, answers = sample(faulting, mm, work, pages, lambda: work.order("w", written))
        # A write that makes a copy, too, faults once more where reads fault.
        assert sorted(set(pages_of(work, faults))) == written.tolist()
        assert faults["write"].all()
        assert set(faults["pid"].tolist()) == set(faults["tid"].tolist()) == {work.pid}
        assert {TARGET_CPU} == set(faults["cpu"].tolist())
        assert not (faults["node_id"] < 0).any()
        assert answers.tolist() == [OLD] * len(pages)
        assert 0 == work.spoilt(written)
        assert not len(armed(work))


def test_times_lie_within_the_interval(faulting: LinuxMachine, program: Path) -> None:
    """On the clock that the kernel calls CLOCK_MONOTONIC."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        before = time.monotonic_ns()
        faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))
        assert before < faults["time"].min() < faults["time"].max() < time.monotonic_ns()


def test_first_touches_are_told_as_what_they_were(faulting: LinuxMachine, program: Path) -> None:
    """Reads and writes of pages that were not there."""
    with Workload([program], "untouched", PAGES) as work, task_of(faulting, work.pid) as task:

        def act() -> None:
            work.order("r", range(100))
            work.order("w", range(200, 300))

        faults, answers = sample(faulting, mm_of(task), work, EVERY, act)
        assert pages_of(work, faults) == [*range(100), *range(200, 300)]
        assert [False] * 100 + [True] * 100 == faults["write"].tolist()
        assert [OLD] * PAGES == answers.tolist()


def test_threads_are_told_with_their_cpu(faulting: LinuxMachine, program: Path) -> None:
    """Where each of them ran when it wrote."""
    with Workload([program], "threads", PAGES) as work, task_of(faulting, work.pid) as task:
        (tid,) = {int(name) for name in os.listdir(f"/proc/{work.pid}/task")} - {work.pid}
        for cpu in (TARGET_CPU, MONITOR_CPU, TARGET_CPU):
            os.sched_setaffinity(tid, {cpu})
            faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))
            assert pages_of(work, faults) == EVERY.tolist()
            assert set(zip(faults["tid"].tolist(), faults["cpu"].tolist(), strict=True)) == {(tid, cpu)}


@needs_root("only root can start another user's process")
def test_another_users_process_is_monitored(faulting: LinuxMachine, program: Path) -> None:
    """With the capabilities for it."""
    with Workload([program], "anon", PAGES, user=65534) as work, task_of(faulting, work.pid) as task:
        faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))
        assert pages_of(work, faults) == EVERY.tolist()


def test_a_python_process_is_monitored(faulting: LinuxMachine) -> None:
    """Whose memory is a Python object's."""
    script = SUPPORT / "workload_script.py"
    with Workload([sys.executable, script], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY[::2]))
        assert pages_of(work, faults) == EVERY[::2].tolist()


def test_this_process_is_monitored_by_itself(faulting: LinuxMachine) -> None:
    """Its userfaultfd is its own."""
    # Not from the heap: that may have huge pages, which are not sampled.
    pages = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    memory = np.frombuffer(pages, dtype=np.uint8)
    memory[:] = 1
    first = memory.ctypes.data
    with task_of(faulting, os.getpid()) as task:
        mm = mm_of(task)
        addrs: U64Array = np.uint64(first) + np.arange(8, dtype=np.uint64) * np.uint64(4096)
        faulting.faults()
        mm.begin_sample(addrs)
        memory[4096 * 5] = 2
        faults = faulting.faults()
        mm.end_sample(addrs)
        assert addrs[5] in faults["addr"]
        assert addrs[4] not in faults["addr"]


def test_a_thread_does_not_stand_for_its_process(faulting: LinuxMachine, program: Path) -> None:
    """Faults carry the process's number: under the thread's they would match no target."""
    with Workload([program], "threads", PAGES) as work:
        (tid,) = {int(name) for name in os.listdir(f"/proc/{work.pid}/task")} - {work.pid}
        with pytest.raises(OSError, match=f"{tid} is a thread of process {work.pid}") as caught:
            faulting.get_task(tid, "page_fault")
        assert errno.EINVAL == caught.value.errno


def test_the_kernels_writes_are_told(faulting: LinuxMachine, program: Path) -> None:
    """read(2) into an armed page succeeds, and the thread that called it is the writer."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("k", EVERY))
        assert pages_of(work, faults) == EVERY.tolist()
        assert faults["write"].all()
        assert set(faults["tid"].tolist()) == {work.pid}


def test_a_sample_is_one_interval(faulting: LinuxMachine, program: Path) -> None:
    """Writes after its end do not fault, nor do pages that were armed for a sample that was not ended."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        sample(faulting, mm, work, EVERY, lambda: None)
        work.order("w", EVERY)
        assert not len(within(work, faulting.faults()))
        mm.begin_sample(work.addrs(EVERY))
        assert PAGES == len(armed(work))
        mm.begin_sample(work.addrs(EVERY[:100]))
        assert armed(work).tolist() == list(range(100))
        task.put()
        assert not len(armed(work))


def test_a_page_may_be_sampled_twice_and_at_any_byte(faulting: LinuxMachine, program: Path) -> None:
    """Small regions share pages."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        twice = np.repeat(np.arange(10), 2)
        faults, answers = sample(faulting, mm_of(task), work, twice, lambda: work.order("w", [3]))
        assert [3] == pages_of(work, faults)
        assert [OLD] * 20 == answers.tolist()


def test_files_that_nobody_writes_are_left_alone(faulting: LinuxMachine, program: Path, directory: Path) -> None:
    """The kernel would not map their pages ahead any more; samples of them are OLD."""
    data = directory / "read"
    data.write_bytes(bytes(4096 * PAGES))

    def registered(base: int) -> bool:
        lines = iter(Path(f"/proc/{work.pid}/smaps").read_text(encoding="utf-8").splitlines())
        next(line for line in lines if line.startswith(f"{base:x}-"))
        return not {"uw", "ur"}.isdisjoint(next(line for line in lines if line.startswith("VmFlags")).split())

    with Workload([program], "readonly", PAGES, str(data)) as work, task_of(faulting, work.pid) as task:
        faults, answers = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("r", EVERY))
        assert not registered(work.base)
        assert not len(faults)
        assert [OLD] * PAGES == answers.tolist()
        work.base = int.from_bytes(work.order("n", answer=8), "little")
        mm_of(task).vmas()
        assert registered(work.base)


def test_a_file_that_becomes_writable_is_monitored(faulting: LinuxMachine, program: Path, directory: Path) -> None:
    """It was not registered, or tried in vain, while nothing could be written to it."""
    data = directory / "becomes"
    data.write_bytes(bytes(4096 * PAGES))
    with Workload([program], "readonly", PAGES, str(data)) as work, task_of(faulting, work.pid) as task:
        work.order("P")
        mm_of(task).vmas()
        faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))
        assert pages_of(work, faults) == EVERY.tolist()
        assert faults["write"].all()


def test_new_mappings_are_monitored_after_an_update(faulting: LinuxMachine, program: Path) -> None:
    """Reading the mappings is enough."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        work.base = int.from_bytes(work.order("n", answer=8), "little")
        mm.vmas()
        faults, answers = sample(faulting, mm, work, EVERY, lambda: work.order("w", EVERY))
        assert pages_of(work, faults) == EVERY.tolist()
        assert [OLD] * PAGES == answers.tolist()


@pytest.mark.parametrize("order", ["n", "R"])
def test_a_mapping_that_is_not_monitored_yet_is_found_while_sampling(
    faulting: LinuxMachine, program: Path, order: str
) -> None:
    """A new one, or one that mremap() moved; until then, it is unknown."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        sample(faulting, mm, work, EVERY, lambda: None)
        work.base = int.from_bytes(work.order(order, answer=8), "little")
        seen = set()

        def monitored() -> bool:
            faults, answers = sample(faulting, mm, work, EVERY, lambda: work.order("w", EVERY))
            seen.update(answers.tolist())
            return len(faults) == PAGES

        wait_until(monitored)
        assert UNKNOWN in seen
        assert 0 == work.spoilt(EVERY)


def test_exec_gives_another_address_space_that_is_monitored_too(faulting: LinuxMachine, program: Path) -> None:
    """It is asked again; the old program's userfaultfd is given back."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        before = len(open_files())
        mm = mm_of(task)
        work.send("x")
        work.greet()
        assert mm_of(task) is not mm
        faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))
        assert pages_of(work, faults) == EVERY.tolist()
        assert len(open_files()) == before


def test_exec_while_a_process_is_asked_is_no_refusal(
    faulting: LinuxMachine, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it looks like when the memory goes: the next program is asked."""
    with Workload([program], "anon", PAGES) as work:
        refusals = []

        def take_during_exec(pid: int, **how: Any) -> int:
            if not refusals:
                refusals.append(OSError(errno.EOPNOTSUPP, "there is no code"))
                work.send("x")
                work.greet()
                raise refusals[0]
            return take_userfaultfd(pid, **how)

        monkeypatch.setattr(page_fault, "take_userfaultfd", take_during_exec)
        with task_of(faulting, work.pid) as task:
            faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))
            assert pages_of(work, faults) == EVERY.tolist()
        assert refusals


def test_what_cannot_be_monitored_after_exec_is_unknown(
    faulting: LinuxMachine, program: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged once; it is tried again later."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        work.send("x")
        work.greet()

        def refuse(_: int, **_how: Any) -> int:
            raise OSError(errno.EPERM, "it is not allowed")

        with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "kdamon"):
            patched.setattr(page_fault, "take_userfaultfd", refuse)
            patched.setattr(page_fault, "_ASK_AGAIN", 1)
            for _ in range(3):
                _, answers = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))
                assert [UNKNOWN] * PAGES == answers.tolist()
        assert [record.getMessage() for record in caplog.records] == [
            f"process {work.pid}: its memory is not sampled after an exec: it is not allowed"
        ]
        wait_until(lambda: len(sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))[0]) == PAGES)


def test_an_ended_process_has_no_memory(faulting: LinuxMachine, program: Path) -> None:
    """Nor is one found that never was."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        mm.begin_sample(work.addrs(EVERY))
        work.process.kill()
        work.process.wait()
        mm.end_sample(work.addrs(EVERY))
        mm.begin_sample(work.addrs(EVERY))
        assert task.get_mm() is None
    with pytest.raises(ProcessLookupError):
        faulting.get_task(1 << 22, "page_fault")


def test_several_monitors_of_a_process_share_its_protection(faulting: LinuxMachine, program: Path) -> None:
    """The one's end of a sample does not end the other's, nor does the one's end."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as first:
        with task_of(faulting, work.pid) as second:
            assert mm_of(first) is not mm_of(second)
            one, other = work.addrs(EVERY[:600]), work.addrs(EVERY[400:])
            mm_of(first).begin_sample(one)
            mm_of(second).begin_sample(other)
            mm_of(first).end_sample(one)
            assert armed(work).tolist() == list(range(400, PAGES))
            mm_of(first).begin_sample(one)
        assert armed(work).tolist() == list(range(600))
        faulting.faults()
        work.order("w", EVERY)
        assert pages_of(work, within(work, faulting.faults())) == list(range(600))


def test_many_processes_at_once(faulting: LinuxMachine, program: Path) -> None:
    """Each fault is its own process's."""
    works = [Workload([program], "anon", 64) for _ in range(8)]
    tasks = [faulting.get_task(work.pid, "page_fault") for work in works]
    try:
        faulting.faults()
        for task, work in zip(tasks, works, strict=True):
            mm_of(task).begin_sample(work.addrs(range(64)))
        for number, work in enumerate(works):
            work.order("w", range(number + 1))
        faults = faulting.faults()
        for number, work in enumerate(works):
            theirs = within(work, faults[faults["pid"] == work.pid])
            assert pages_of(work, theirs) == list(range(number + 1))
    finally:
        for task, work in zip(tasks, works, strict=True):
            task.put()
            work.__exit__()


def test_a_userfaultfd_that_was_taken_before_is_used(
    faulting: LinuxMachine, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is taken once more."""
    with Workload([program], "anon", PAGES) as work:
        faulting.adopt_userfaultfd(work.pid, take_userfaultfd(work.pid))
        monkeypatch.delattr(page_fault, "take_userfaultfd")
        with task_of(faulting, work.pid) as task:
            faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))
            assert pages_of(work, faults) == EVERY.tolist()


def test_accessed_bits_and_faults_may_be_used_side_by_side(
    faulting: LinuxMachine, machine: LinuxMachine, program: Path
) -> None:
    """Each task says by what it goes."""
    assert "page_table" == machine.primitive
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as by_fault:
        by_bits = faulting.get_task(work.pid)
        assert ("page_fault", "page_table") == (by_fault.primitive, by_bits.primitive)
        addrs = work.addrs(EVERY)
        mm_of(by_bits).begin_sample(addrs)
        faults, _ = sample(faulting, mm_of(by_fault), work, EVERY, lambda: work.order("w", EVERY[::2]))
        answers = mm_of(by_bits).end_sample(addrs)
        assert pages_of(work, faults) == EVERY[::2].tolist()
        assert int((answers[::2] == 1).sum()) > 0.8 * PAGES / 2
        by_bits.put()


@pytest.mark.parametrize("primitive", ["page_fault", "page_fault_writes"])
@pytest.mark.parametrize("kind", ["anon", "shmem", "thp", pytest.param("hugetlb", marks=needs_free_hugetlb(4))])
def test_mappings_are_whole_afterwards(faulting: LinuxMachine, program: Path, kind: str, primitive: str) -> None:
    """They are let go in steps, which the kernel joins again except for those of hugetlbfs."""
    pages = 4 * 512
    with Workload([program], kind, pages) as work:
        before = _mappings(work)
        with task_of(faulting, work.pid, primitive) as task:
            sample(faulting, mm_of(task), work, range(0, pages, 100), lambda: work.order("w", range(0, pages, 7)))
        assert before == _mappings(work)


def _mappings(work: Workload) -> list[str]:
    """Addresses of those that the workload's memory is in."""
    lines = Path(f"/proc/{work.pid}/maps").read_text(encoding="utf-8").splitlines()
    ranges = [line.split()[0] for line in lines]
    begin, end = work.base, work.base + 4096 * work.pages
    return [each for each in ranges if int(each.split("-")[0], 16) < end and int(each.split("-")[1], 16) > begin]


def test_an_unknown_primitive_is_refused(faulting: LinuxMachine) -> None:
    """With those that there are."""
    with pytest.raises(OSError, match="use page_table or page_fault") as caught:
        faulting.get_task(os.getpid(), "page_faults")
    assert errno.EINVAL == caught.value.errno
