# SPDX-License-Identifier: GPL-2.0-only
"""Monitoring by faults: who wrote to which sampled page, in real processes that never notice."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdamon.mm import OLD, UNKNOWN, AddressSpace, Answers, Faults, U64Array, page_fault
from kdamon.mm.inject import take_userfaultfd
from kdamon.mm.linux import LinuxMachine, LinuxTask, linux_machine
from tests.mm.workload import MONITOR_CPU, TARGET_CPU, Pages, Workload

PAGES = 1024
EVERY = np.arange(PAGES)
ROOT = Path(__file__).resolve().parents[2]
#: Of an entry of /proc/PID/pagemap: write-protected by a userfaultfd.
ARMED = np.uint64(1 << 57)

Act = Callable[[], object]


@pytest.fixture(name="faulting", scope="module")
def _faulting() -> Iterator[LinuxMachine]:
    """This machine, which monitors by faults."""
    found = linux_machine("page_fault")
    try:
        with subprocess.Popen(["sleep", "60"]) as child:
            try:
                found.get_task(child.pid, "page_fault").put()
            finally:
                child.kill()
    except OSError as error:
        lacks = "kernel lacks: " if error.errno == errno.EOPNOTSUPP else ""
        pytest.skip(f"{lacks}{error.strerror}")
    yield found
    found.close()


def _open_files() -> dict[str, str]:
    # The list holds its own descriptor, which is gone by now.
    names = [name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]
    return {name: os.readlink(f"/proc/self/fd/{name}") for name in names}


@contextmanager
def _task(machine: LinuxMachine, pid: int) -> Iterator[LinuxTask]:
    task = machine.get_task(pid, "page_fault")
    try:
        yield task
    finally:
        task.put()


def _mm(task: LinuxTask) -> AddressSpace:
    mm = task.get_mm()
    assert mm is not None
    return mm


def _of(work: Workload, faults: Faults) -> Faults:
    """Those in the workload's memory, by address."""
    inside = (faults["addr"] >= work.base) & (faults["addr"] < work.base + 4096 * work.pages)
    return np.sort(faults[inside], order="addr")


def _pages(work: Workload, faults: Faults) -> list[int]:
    found: list[int] = ((faults["addr"] - np.uint64(work.base)) >> np.uint64(12)).tolist()
    return found


def _sample(machine: LinuxMachine, mm: AddressSpace, work: Workload, pages: Pages, act: Act) -> tuple[Faults, Answers]:
    """What is told about ``pages`` while ``act`` is done."""
    addrs = work.addrs(pages)
    machine.faults()
    mm.mkold(addrs)
    act()
    faults = machine.faults()
    return _of(work, faults), mm.young(addrs)


def _armed(work: Workload) -> npt.NDArray[np.intp]:
    """Numbers of the workload's pages that are armed."""
    raw = Path(f"/proc/{work.pid}/pagemap")
    with raw.open("rb", buffering=0) as pagemap:
        entries: U64Array = np.frombuffer(os.pread(pagemap.fileno(), 8 * work.pages, work.base >> 9), dtype=np.uint64)
    return np.flatnonzero(entries & ARMED)


def _huge(work: Workload) -> int:
    lines = Path(f"/proc/{work.pid}/smaps").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["anon", "shmem", "file", "zero", "fork", "mlock"])
def test_every_write_is_told_and_no_read(faulting: LinuxMachine, program: Path, directory: Path, kind: str) -> None:
    """With address, process, thread, CPU and node, whatever the memory is; pages that were not written are OLD."""
    # Less than a huge page, which files may be mapped by.
    pages = np.arange(500)
    data = directory / "written"
    data.write_bytes(bytes(4096 * len(pages)))
    written = pages[::3]
    with Workload([program], kind, len(pages), str(data)) as work, _task(faulting, work.pid) as task:
        mm = _mm(task)
        faults, _ = _sample(faulting, mm, work, pages, lambda: work.order("r", pages))
        assert not len(faults)
        faults, answers = _sample(faulting, mm, work, pages, lambda: work.order("w", written))
        assert _pages(work, faults) == written.tolist()
        assert faults["write"].all()
        assert set(faults["pid"].tolist()) == set(faults["tid"].tolist()) == {work.pid}
        assert set(faults["cpu"].tolist()) == {TARGET_CPU}
        assert not (faults["node_id"] < 0).any()
        assert answers.tolist() == [OLD] * len(pages)
        assert work.spoilt(written) == 0
        assert not len(_armed(work))


def test_times_lie_within_the_interval(faulting: LinuxMachine, program: Path) -> None:
    """On the clock that the kernel calls CLOCK_MONOTONIC."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        before = time.monotonic_ns()
        faults, _ = _sample(faulting, _mm(task), work, EVERY, lambda: work.order("w", EVERY))
        assert before < faults["time"].min() < faults["time"].max() < time.monotonic_ns()


def test_first_touches_are_told_as_what_they_were(faulting: LinuxMachine, program: Path) -> None:
    """Reads and writes of pages that were not there."""
    with Workload([program], "untouched", PAGES) as work, _task(faulting, work.pid) as task:

        def act() -> None:
            work.order("r", range(100))
            work.order("w", range(200, 300))

        faults, answers = _sample(faulting, _mm(task), work, EVERY, act)
        assert _pages(work, faults) == [*range(100), *range(200, 300)]
        assert faults["write"].tolist() == [False] * 100 + [True] * 100
        assert answers.tolist() == [OLD] * PAGES


def test_threads_are_told_with_their_cpu(faulting: LinuxMachine, program: Path) -> None:
    """Where each of them ran when it wrote."""
    with Workload([program], "threads", PAGES) as work, _task(faulting, work.pid) as task:
        (tid,) = {int(name) for name in os.listdir(f"/proc/{work.pid}/task")} - {work.pid}
        for cpu in (TARGET_CPU, MONITOR_CPU, TARGET_CPU):
            os.sched_setaffinity(tid, {cpu})
            faults, _ = _sample(faulting, _mm(task), work, EVERY, lambda: work.order("w", EVERY))
            assert _pages(work, faults) == EVERY.tolist()
            assert set(zip(faults["tid"].tolist(), faults["cpu"].tolist(), strict=True)) == {(tid, cpu)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start another user's process")
def test_another_users_process_is_monitored(faulting: LinuxMachine, program: Path) -> None:
    """With the capabilities for it."""
    with Workload([program], "anon", PAGES, user=65534) as work, _task(faulting, work.pid) as task:
        faults, _ = _sample(faulting, _mm(task), work, EVERY, lambda: work.order("w", EVERY))
        assert _pages(work, faults) == EVERY.tolist()


def test_a_python_process_is_monitored(faulting: LinuxMachine) -> None:
    """Whose memory is a Python object's."""
    script = Path(__file__).with_name("workload_script.py")
    with Workload([sys.executable, script], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        faults, _ = _sample(faulting, _mm(task), work, EVERY, lambda: work.order("w", EVERY[::2]))
        assert _pages(work, faults) == EVERY[::2].tolist()


def test_this_process_is_monitored_by_itself(faulting: LinuxMachine) -> None:
    """Its userfaultfd is its own."""
    memory = np.zeros(64 * 4096, dtype=np.uint8)
    memory[:] = 1
    first = memory.ctypes.data + -memory.ctypes.data % 4096
    with _task(faulting, os.getpid()) as task:
        mm = _mm(task)
        addrs: U64Array = np.uint64(first) + np.arange(8, dtype=np.uint64) * np.uint64(4096)
        faulting.faults()
        mm.mkold(addrs)
        memory[first - memory.ctypes.data + 4096 * 5] = 2
        faults = faulting.faults()
        mm.young(addrs)
        assert addrs[5] in faults["addr"]
        assert addrs[4] not in faults["addr"]


def test_a_thread_does_not_stand_for_its_process(faulting: LinuxMachine, program: Path) -> None:
    """Faults are told by the process's number: nobody would find them under the thread's."""
    with Workload([program], "threads", PAGES) as work:
        (tid,) = {int(name) for name in os.listdir(f"/proc/{work.pid}/task")} - {work.pid}
        with pytest.raises(OSError, match=f"{tid} is a thread of process {work.pid}") as caught:
            faulting.get_task(tid, "page_fault")
        assert caught.value.errno == errno.EINVAL


def test_the_kernels_writes_are_told(faulting: LinuxMachine, program: Path) -> None:
    """read(2) into an armed page succeeds, and the thread that called it is the writer."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        faults, _ = _sample(faulting, _mm(task), work, EVERY, lambda: work.order("k", EVERY))
        assert _pages(work, faults) == EVERY.tolist()
        assert faults["write"].all()
        assert set(faults["tid"].tolist()) == {work.pid}


def test_a_sample_is_one_interval(faulting: LinuxMachine, program: Path) -> None:
    """Writes after its end do not fault, nor do pages that were armed for a sample that nobody ended."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        mm = _mm(task)
        _sample(faulting, mm, work, EVERY, lambda: None)
        work.order("w", EVERY)
        assert not len(_of(work, faulting.faults()))
        mm.mkold(work.addrs(EVERY))
        assert len(_armed(work)) == PAGES
        mm.mkold(work.addrs(EVERY[:100]))
        assert _armed(work).tolist() == list(range(100))
        task.put()
        assert not len(_armed(work))


def test_a_page_may_be_sampled_twice_and_at_any_byte(faulting: LinuxMachine, program: Path) -> None:
    """Small regions share pages."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        twice = np.repeat(np.arange(10), 2)
        faults, answers = _sample(faulting, _mm(task), work, twice, lambda: work.order("w", [3]))
        assert _pages(work, faults) == [3]
        assert answers.tolist() == [OLD] * 20


def test_huge_pages_stay_whole_and_are_unknown(
    faulting: LinuxMachine, program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel would split an armed one when it is written; that is said once."""
    pages = 4 * 512
    with Workload([program], "thp", pages) as work, _task(faulting, work.pid) as task:
        huge = _huge(work)
        if not huge:
            pytest.skip("kernel lacks: transparent huge pages, or free ones")
        everything = np.arange(pages)
        for _ in range(2):
            _, answers = _sample(faulting, _mm(task), work, everything, lambda: work.order("w", everything))
            assert int((answers == UNKNOWN).sum()) * 4 == huge
        assert [record.getMessage() for record in caplog.records] == [
            f"process {work.pid}: samples of huge pages are unknown: page_fault would split them; use page_table for "
            "those"
        ]
        task.put()
        assert _huge(work) == huge
        assert work.spoilt(everything) == 0


def test_no_page_tables_are_made_for_pages_that_are_not_there(faulting: LinuxMachine, program: Path) -> None:
    """Sampling a sparse mapping over and over leaves it sparse."""
    pages = 1 << 16

    def tables() -> int:
        lines = Path(f"/proc/{work.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmPTE"))

    with Workload([program], "untouched", pages) as work, _task(faulting, work.pid) as task:
        before = tables()
        for _ in range(3):
            _, answers = _sample(faulting, _mm(task), work, np.arange(0, pages, 512), lambda: None)
        assert answers.tolist() == [OLD] * (pages // 512)
        assert tables() == before


def test_files_that_nobody_writes_are_left_alone(faulting: LinuxMachine, program: Path, directory: Path) -> None:
    """The kernel would not map their pages ahead any more; samples of them are OLD."""
    data = directory / "read"
    data.write_bytes(bytes(4096 * PAGES))

    def registered(base: int) -> bool:
        lines = iter(Path(f"/proc/{work.pid}/smaps").read_text(encoding="utf-8").splitlines())
        next(line for line in lines if line.startswith(f"{base:x}-"))
        return "uw" in next(line for line in lines if line.startswith("VmFlags")).split()

    with Workload([program], "readonly", PAGES, str(data)) as work, _task(faulting, work.pid) as task:
        faults, answers = _sample(faulting, _mm(task), work, EVERY, lambda: work.order("r", EVERY))
        assert not registered(work.base)
        assert not len(faults)
        assert answers.tolist() == [OLD] * PAGES
        work.base = int.from_bytes(work.order("n", answer=8), "little")
        _mm(task).vmas()
        assert registered(work.base)


def test_new_mappings_are_monitored_after_an_update(faulting: LinuxMachine, program: Path) -> None:
    """Reading the mappings is enough."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        mm = _mm(task)
        work.base = int.from_bytes(work.order("n", answer=8), "little")
        mm.vmas()
        faults, answers = _sample(faulting, mm, work, EVERY, lambda: work.order("w", EVERY))
        assert _pages(work, faults) == EVERY.tolist()
        assert answers.tolist() == [OLD] * PAGES


@pytest.mark.parametrize("order", ["n", "R"])
def test_a_mapping_that_is_not_monitored_yet_is_found_while_sampling(
    faulting: LinuxMachine, program: Path, order: str
) -> None:
    """A new one, or one that mremap() moved; until then, it is unknown."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        mm = _mm(task)
        _sample(faulting, mm, work, EVERY, lambda: None)
        work.base = int.from_bytes(work.order(order, answer=8), "little")
        seen = set()

        def monitored() -> bool:
            faults, answers = _sample(faulting, mm, work, EVERY, lambda: work.order("w", EVERY))
            seen.update(answers.tolist())
            return len(faults) == PAGES

        _wait_until(monitored)
        assert UNKNOWN in seen
        assert work.spoilt(EVERY) == 0


def test_what_goes_away_while_it_is_armed_is_harmless(faulting: LinuxMachine, program: Path) -> None:
    """Given back, unmapped, replaced or moved in the middle of a sample."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        mm = _mm(task)
        addrs = work.addrs(EVERY)
        for order in "dm":
            mm.mkold(addrs)
            work.order(order)
            work.order("w", EVERY)
            mm.young(addrs)
            assert work.spoilt(EVERY) == 0
        mm.vmas()
        mm.mkold(addrs)
        assert len(_armed(work)) == PAGES
        work.base = int.from_bytes(work.order("R", answer=8), "little")
        mm.young(addrs)
        work.order("w", EVERY)
        assert not len(_armed(work))
        assert work.spoilt(EVERY) == 0
        work.order("u")
        _, answers = _sample(faulting, mm, work, EVERY, lambda: None)
        assert answers.tolist() == [OLD] * PAGES


def test_a_child_is_neither_protected_nor_told(faulting: LinuxMachine, program: Path) -> None:
    """fork() copies armed pages; the child writes to its own, and so does the parent afterwards."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        mm = _mm(task)
        fine = []
        faults, _ = _sample(faulting, mm, work, EVERY, lambda: fine.append(work.order("f", EVERY)))
        assert fine == [b"\1"]
        assert not len(faults)
        faults, _ = _sample(faulting, mm, work, EVERY, lambda: work.order("w", EVERY))
        assert _pages(work, faults) == EVERY.tolist()


def test_exec_gives_another_address_space_that_is_monitored_too(faulting: LinuxMachine, program: Path) -> None:
    """It is asked again; the old program's userfaultfd is given back."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        before = len(_open_files())
        mm = _mm(task)
        work.send("x")
        work.greet()
        assert _mm(task) is not mm
        faults, _ = _sample(faulting, _mm(task), work, EVERY, lambda: work.order("w", EVERY))
        assert _pages(work, faults) == EVERY.tolist()
        assert len(_open_files()) == before


def test_what_cannot_be_monitored_after_exec_is_unknown(
    faulting: LinuxMachine, program: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is told once; it is tried again later."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        work.send("x")
        work.greet()

        def refuse(_: int) -> int:
            raise OSError(errno.EPERM, "it is not allowed")

        with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "kdamon"):
            patched.setattr(page_fault, "take_userfaultfd", refuse)
            patched.setattr(page_fault, "_ASK_AGAIN", 1)
            for _ in range(3):
                _, answers = _sample(faulting, _mm(task), work, EVERY, lambda: work.order("w", EVERY))
                assert answers.tolist() == [UNKNOWN] * PAGES
        assert [record.getMessage() for record in caplog.records] == [
            f"process {work.pid}: its memory is not sampled after an exec: it is not allowed"
        ]
        _wait_until(lambda: len(_sample(faulting, _mm(task), work, EVERY, lambda: work.order("w", EVERY))[0]) == PAGES)


def test_an_ended_process_has_no_memory(faulting: LinuxMachine, program: Path) -> None:
    """Nor is one found that never was."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as task:
        mm = _mm(task)
        mm.mkold(work.addrs(EVERY))
        work.process.kill()
        work.process.wait()
        mm.young(work.addrs(EVERY))
        mm.mkold(work.addrs(EVERY))
        assert task.get_mm() is None
    with pytest.raises(ProcessLookupError):
        faulting.get_task(1 << 22, "page_fault")


def test_several_monitors_of_a_process_share_its_protection(faulting: LinuxMachine, program: Path) -> None:
    """The one's end of a sample does not end the other's, nor does the one's end."""
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as first:
        with _task(faulting, work.pid) as second:
            assert _mm(first) is not _mm(second)
            one, other = work.addrs(EVERY[:600]), work.addrs(EVERY[400:])
            _mm(first).mkold(one)
            _mm(second).mkold(other)
            _mm(first).young(one)
            assert _armed(work).tolist() == list(range(400, PAGES))
            _mm(first).mkold(one)
        assert _armed(work).tolist() == list(range(600))
        faulting.faults()
        work.order("w", EVERY)
        assert _pages(work, _of(work, faulting.faults())) == list(range(600))


def test_many_processes_at_once(faulting: LinuxMachine, program: Path) -> None:
    """Each fault is its own process's."""
    works = [Workload([program], "anon", 64) for _ in range(8)]
    tasks = [faulting.get_task(work.pid, "page_fault") for work in works]
    try:
        faulting.faults()
        for task, work in zip(tasks, works, strict=True):
            _mm(task).mkold(work.addrs(range(64)))
        for number, work in enumerate(works):
            work.order("w", range(number + 1))
        faults = faulting.faults()
        for number, work in enumerate(works):
            theirs = _of(work, faults[faults["pid"] == work.pid])
            assert _pages(work, theirs) == list(range(number + 1))
    finally:
        for task, work in zip(tasks, works, strict=True):
            task.put()
            work.__exit__()


def test_a_process_that_uses_a_userfaultfd_itself_keeps_it(faulting: LinuxMachine, program: Path) -> None:
    """What it protected stays so; its memory is unknown to us, the rest is monitored."""
    with Workload([program], "anon", PAGES) as work:
        work.order("U", range(0, PAGES, 2))
        with _task(faulting, work.pid) as task:
            faults, answers = _sample(faulting, _mm(task), work, EVERY, lambda: work.order("r", EVERY))
            assert answers.tolist() == [UNKNOWN] * PAGES
            assert not len(faults)
            assert _armed(work).tolist() == list(range(0, PAGES, 2))
        assert _armed(work).tolist() == list(range(0, PAGES, 2))


def test_a_userfaultfd_that_was_taken_before_is_used(
    faulting: LinuxMachine, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is taken once more."""
    with Workload([program], "anon", PAGES) as work:
        faulting.adopt_userfaultfd(work.pid, take_userfaultfd(work.pid))
        monkeypatch.delattr(page_fault, "take_userfaultfd")
        with _task(faulting, work.pid) as task:
            faults, _ = _sample(faulting, _mm(task), work, EVERY, lambda: work.order("w", EVERY))
            assert _pages(work, faults) == EVERY.tolist()


def test_accessed_bits_and_faults_may_be_used_side_by_side(
    faulting: LinuxMachine, machine: LinuxMachine, program: Path
) -> None:
    """Each task says by what it goes."""
    assert machine.primitive == "page_table"
    with Workload([program], "anon", PAGES) as work, _task(faulting, work.pid) as by_fault:
        by_bits = faulting.get_task(work.pid)
        assert (by_fault.primitive, by_bits.primitive) == ("page_fault", "page_table")
        addrs = work.addrs(EVERY)
        _mm(by_bits).mkold(addrs)
        faults, _ = _sample(faulting, _mm(by_fault), work, EVERY, lambda: work.order("w", EVERY[::2]))
        answers = _mm(by_bits).young(addrs)
        assert _pages(work, faults) == EVERY[::2].tolist()
        assert int((answers[::2] == 1).sum()) > 0.8 * PAGES / 2
        by_bits.put()


def test_an_unknown_primitive_is_refused(faulting: LinuxMachine) -> None:
    """With those that there are."""
    with pytest.raises(OSError, match="use page_table or page_fault") as caught:
        faulting.get_task(os.getpid(), "page_faults")
    assert caught.value.errno == errno.EINVAL


def test_nothing_is_open_when_nobody_is_monitored(faulting: LinuxMachine, program: Path) -> None:
    """No file, no program on the tracepoints; a refusal leaves nothing either."""
    before = _open_files()
    assert faulting.faults_tell_who
    assert _open_files() == before
    with Workload([program], "anon", PAGES) as work:
        started = _open_files()
        with _task(faulting, work.pid):
            assert len(_open_files()) > len(started)
        assert _open_files() == started
        assert not len(faulting.faults())
    with pytest.raises(PermissionError):
        faulting.get_task(1, "page_fault")
    assert _open_files() == before


MONITOR = """
    import sys
    import numpy as np
    from kdamon.mm.linux import linux_machine
    base, pages, pid = map(int, sys.argv[1:])
    machine = linux_machine("page_fault")
    mm = machine.get_task(pid, "page_fault").get_mm()
    addrs = np.uint64(base) + np.arange(pages, dtype=np.uint64) * np.uint64(4096)
    rounds = 0
    while True:
        mm.mkold(addrs)
        machine.faults()
        rounds += 1
        if rounds == 3:
            print("sampling", flush=True)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_monitor_that_dies_or_stands_still_leaves_the_process_unharmed(program: Path, end: signal.Signals) -> None:
    """In the middle of sampling: the process runs on, its data are right; what is armed goes with the monitor."""
    with Workload([program], "anon", PAGES) as work:
        work.order("w", EVERY)
        for _ in range(int(os.environ.get("KDAMON_SOAK", "2"))):
            monitor = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(MONITOR), *map(str, (work.base, PAGES, work.pid))],
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
            assert monitor.stdout is not None
            assert monitor.stdout.readline() == b"sampling\n"
            for _ in range(5):
                work.order("w", EVERY)
            monitor.send_signal(end)
            work.order("w", EVERY)
            assert work.spoilt(EVERY) == 0
            monitor.kill()
            assert monitor.wait() == -signal.SIGKILL
            monitor.stdout.close()
            assert not len(_armed(work))
            work.order("w", EVERY)
            assert work.spoilt(EVERY) == 0
            status = Path(f"/proc/{work.pid}/status").read_text(encoding="utf-8")
            assert "TracerPid:\t0\n" in status


WITHOUT_RIGHTS = """
    import logging, sys
    import numpy as np
    from pathlib import Path
    from kdamon.mm.linux import linux_machine
    from tests.mm.workload import Workload
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    machine = linux_machine("page_fault")
    print(machine.faults_tell_who, machine.faults_tell_who)
    every = np.arange(512)
    with Workload([Path(sys.argv[1])], "anon", 512) as work:
        task = machine.get_task(work.pid, "page_fault")
        mm = task.get_mm()
        addrs = work.addrs(every)
        mm.mkold(addrs)
        work.order("r", every)
        print(len(machine.faults()))
        work.order("w", range(7))
        faults = machine.faults()
        print(np.array_equal(faults["addr"], addrs[:7] & ~np.uint64(4095)), len(machine.faults()))
        print(set(faults[["pid", "node_id", "write", "cpu", "tid"]].tolist()) == {(work.pid, -1, True, -1, 0)})
        print(mm.young(addrs).any())
        work.order("w", every)
        print(len(machine.faults()))
        mm.mkold(addrs)
        work.order("d")
        work.order("r", [1])
        work.order("w", [2])
        print(machine.faults()["write"].tolist())
        try:
            machine.get_task(work.pid)
        except OSError as error:
            print(error.strerror)
        task.put()
"""


def test_without_rights_addresses_are_told(program: Path) -> None:
    """A user without capabilities monitors a process of his own; that nothing else is known is said once."""
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c"]
    done = subprocess.run(
        [*command, textwrap.dedent(WITHOUT_RIGHTS), str(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "who causes a page fault is not known, only where: recording who causes page faults needs CAP_BPF and "
        "CAP_PERFMON; run as root or give these capabilities",
        "False False",
        "0",
        "True 0",
        "True",
        "False",
        "0",
        "[False, True]",
        "reading page tables needs CAP_BPF and CAP_PERFMON; run as root or give these capabilities",
    ], done.stderr
