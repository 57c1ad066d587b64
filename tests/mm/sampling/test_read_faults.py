# SPDX-License-Identifier: GPL-2.0-only
"""Monitoring by faults where reads fault, too: in real processes, on kernels with userfaultfd RWP."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdamon.mm import OLD, UNKNOWN, Observed
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.sampling import protection
from kdamon.mm.sampling.uffd import Pages
from tests.support.capabilities import needs_anonymous_huge_pages, needs_free_hugetlb, needs_read_faults
from tests.support.paths import ROOT
from tests.support.process_memory import smaps
from tests.support.sampling import armed, mm_of, pages_of, sample, task_of, wait_until
from tests.support.workload import MONITOR_CPU, TARGET_CPU, Workload

pytestmark = [pytest.mark.real, needs_read_faults]


PAGES = 1024
EVERY = np.arange(PAGES)
IN_HUGE = 512
READ, WRITTEN = EVERY[:400:2], EVERY[500::3]


def _touch(work: Workload, write: str = "w") -> None:
    work.order("r", READ)
    work.order(write, WRITTEN)


@pytest.mark.parametrize("kind", ["anon", "shmem", "zero", "fork", "mlock", "tmpfs"])
def test_reads_and_writes_are_told_apart(faulting: LinuxMachine, program: Path, kind: str) -> None:
    """With address, process, thread, CPU and node; pages that were not accessed are OLD."""
    data = Path("/dev/shm", f"kdamon-test-{os.getpid()}")
    data.write_bytes(bytes(4096 * PAGES))
    try:
        with (
            Workload([program], "file" if kind == "tmpfs" else kind, PAGES, str(data)) as work,
            task_of(faulting, work.pid) as task,
        ):
            faults, answers = sample(faulting, mm_of(task), work, EVERY, lambda: _touch(work))
            assert sorted({*READ.tolist(), *WRITTEN.tolist()}) == sorted(set(pages_of(work, faults)))
            assert set(pages_of(work, faults[~faults["write"]])) == set(READ.tolist())
            assert set(pages_of(work, faults[faults["write"]])) == set(WRITTEN.tolist())
            assert set(faults["pid"].tolist()) == set(faults["tid"].tolist()) == {work.pid}
            assert {TARGET_CPU} == set(faults["cpu"].tolist())
            assert not (faults["node_id"] < 0).any()
            assert answers.tolist() == [OLD] * PAGES
            assert 0 == work.spoilt(WRITTEN)
            assert not len(armed(work))
    finally:
        data.unlink()


def test_readers_are_told_with_their_cpu(faulting: LinuxMachine, program: Path) -> None:
    """Where a thread ran when it read."""
    with Workload([program], "threads", PAGES) as work, task_of(faulting, work.pid) as task:
        (tid,) = {int(name) for name in os.listdir(f"/proc/{work.pid}/task")} - {work.pid}
        for cpu in (TARGET_CPU, MONITOR_CPU, TARGET_CPU):
            os.sched_setaffinity(tid, {cpu})
            faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("r", EVERY))
            assert pages_of(work, faults) == EVERY.tolist()
            assert set(zip(faults["tid"].tolist(), faults["cpu"].tolist(), strict=True)) == {(tid, cpu)}


@pytest.mark.parametrize("kind", ["anon", "shmem", "thp"])
def test_a_write_after_a_read_is_observed_where_writes_alone_are_wanted(
    faulting: LinuxMachine, program: Path, kind: str
) -> None:
    """As by x += 1, whose load would be the only fault if reads faulted; nothing else is reported."""
    with Workload([program], kind, PAGES) as work:
        with task_of(faulting, work.pid) as task:
            faults, _ = sample(faulting, mm_of(task), work, WRITTEN, lambda: work.order("a", WRITTEN))
            assert not faults["write"].any()
        small = np.setdiff1d(EVERY, _of_huge_pages(work))
        with task_of(faulting, work.pid, "page_fault_writes") as task:
            mm = mm_of(task)
            faults, answers = sample(faulting, mm, work, EVERY, lambda: _touch(work, "a"))
            assert np.intersect1d(WRITTEN, small).tolist() == pages_of(work, faults)
            assert faults["write"].all()
            assert [OLD if page in small else UNKNOWN for page in EVERY] == answers.tolist()
            observed = mm.observed()
            assert observed is not None
            assert 0 == observed.accesses
            assert not len(armed(work))


def _of_huge_pages(work: Workload) -> npt.NDArray[np.int64]:
    """Numbers of the workload's pages that huge ones hold."""
    with Path(f"/proc/{work.pid}/pagemap").open("rb") as pagemap:
        table = Pages(pagemap.fileno())
        blocks = np.arange(0, PAGES, IN_HUGE)
        huge = blocks[table.huge(np.uint64(work.base) + np.uint64(4096) * blocks.astype(np.uint64)) != 0]
        return (huge[:, None] + np.arange(IN_HUGE)).ravel()


def test_monitors_that_want_different_accesses_share_a_process(
    faulting: LinuxMachine, program: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads fault as long as one wants them; the one that wants writes misses some meanwhile, and says so."""
    monkeypatch.setattr(protection, "_LASTS", 0)
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid, "page_fault_writes") as task:
        mm = mm_of(task)
        addrs = work.addrs(EVERY)
        mm.begin_sample(addrs)
        with task_of(faulting, work.pid) as other:
            # The one's sample ended with the change; nothing of it is known.
            assert not len(armed(work))
            assert [UNKNOWN] * PAGES == mm.end_sample(addrs).tolist()
            faults, answers = sample(faulting, mm_of(other), work, EVERY, lambda: _touch(work))
            assert set(pages_of(work, faults)) == {*READ.tolist(), *WRITTEN.tolist()}
            assert [OLD] * PAGES == answers.tolist()
            assert not caplog.records
            for _ in range(2):
                faults, _ = sample(faulting, mm, work, EVERY, lambda: work.order("a", WRITTEN))
                assert not faults["write"].any()
            assert [record.getMessage() for record in caplog.records] == [
                f"process {work.pid}: writes that come right after a read of the same page are not counted as long as "
                "another monitor of this process counts reads"
            ]
            mm.begin_sample(addrs)
        assert [UNKNOWN] * PAGES == mm.end_sample(addrs).tolist()

        def complete() -> bool:
            faults, _ = sample(faulting, mm, work, EVERY, lambda: _touch(work, "a"))
            return pages_of(work, faults) == WRITTEN.tolist()

        wait_until(complete)
        assert not len(armed(work))
        assert 1 == len(caplog.records)


@pytest.mark.parametrize("kind", ["file", "private", "readonly"])
def test_of_ordinary_files_only_writes_are_told(
    faulting: LinuxMachine, program: Path, directory: Path, kind: str
) -> None:
    """The kernel lets their reads not fault; how much memory that is can be asked."""
    data = directory / "ordinary"
    data.write_bytes(bytes(4096 * 256))
    pages = np.arange(256)
    with Workload([program], kind, len(pages), str(data)) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        faults, _ = sample(faulting, mm, work, pages, lambda: work.order("r", pages))
        assert not len(faults)
        observed = mm.observed()
        assert observed is not None
        assert observed.writes >= 256 * 4096
        if kind != "readonly":
            faults, _ = sample(faulting, mm, work, pages, lambda: work.order("w", pages))
            assert pages_of(work, faults) == pages.tolist()
            assert faults["write"].all()


def test_how_much_is_observed_can_be_asked(faulting: LinuxMachine, program: Path) -> None:
    """Everything is one of three, and memory that may not be accessed is none."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        before = mm.observed()
        assert before is not None
        assert before.accesses >= 4096 * PAGES
        assert 0 < before.neither < before.accesses
        work.order("u")
        mm.vmas()
        after = Observed(before.accesses - 4096 * PAGES, before.writes, before.neither)
        assert mm.observed() == after
        task.put()
        assert mm.observed() == after


def test_a_sample_of_reads_is_one_interval(faulting: LinuxMachine, program: Path) -> None:
    """Reads after its end do not fault, nor do pages that were armed for a sample that was not ended."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        mm.begin_sample(work.addrs(EVERY))
        assert PAGES == len(armed(work))
        mm.begin_sample(work.addrs(EVERY[:100]))
        assert armed(work).tolist() == list(range(100))
        mm.end_sample(work.addrs(EVERY[:100]))
        assert not len(armed(work))
        faults, _ = sample(faulting, mm, work, EVERY[:0], lambda: work.order("r", EVERY))
        assert not len(faults)


def test_memory_that_comes_later_is_registered(faulting: LinuxMachine, program: Path) -> None:
    """Also what was mapped before without access, as allocators do it."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        for order in "nN":
            work.base = int.from_bytes(work.order(order, answer=8), "little")
            mm.vmas()
            if order == "N":
                work.order("P")
                mm.vmas()
            faults, answers = sample(faulting, mm, work, EVERY, lambda: work.order("r", EVERY))
            assert pages_of(work, faults) == EVERY.tolist()
            assert [OLD] * PAGES == answers.tolist()


@pytest.mark.parametrize("order", ["d", "m", "M", "R", "p"])
def test_what_changes_while_it_is_armed_is_harmless(faulting: LinuxMachine, program: Path, order: str) -> None:
    """Given back, replaced, moved or protected in the middle of a sample: nothing stays armed, no data are lost."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        addrs = work.addrs(EVERY)
        mm.begin_sample(addrs)
        assert PAGES == len(armed(work))
        answer = work.order(order, answer=8 if order == "R" else 1)
        work.base = int.from_bytes(answer, "little") if order == "R" else work.base
        work.order("r", EVERY[::2])
        mm.end_sample(addrs)
        assert not len(armed(work))
        if order != "p":
            work.order("w", EVERY)
            assert 0 == work.spoilt(EVERY)


def test_a_child_reads_its_memory_unseen(faulting: LinuxMachine, program: Path) -> None:
    """fork() copies armed pages; the child accesses its own, and the parent's reads are seen afterwards."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        faults, _ = sample(faulting, mm, work, EVERY, lambda: work.order("f", EVERY))
        assert not len(faults)
        faults, _ = sample(faulting, mm, work, EVERY, lambda: work.order("r", EVERY))
        assert pages_of(work, faults) == EVERY.tolist()
        assert not faults["write"].any()


# Huge pages.


@needs_anonymous_huge_pages
def test_huge_pages_are_sampled_and_stay_whole(
    faulting: LinuxMachine, program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An access anywhere in one is one to each sampled page of it."""
    pages = 8 * IN_HUGE
    with Workload([program], "thp", pages) as work, task_of(faulting, work.pid) as task:
        if smaps(work, "AnonHugePages") != pages * 4096:
            pytest.skip("kernel lacks: free huge pages")
        mm = mm_of(task)
        sampled = np.sort(np.concatenate([np.arange(7, pages, IN_HUGE), np.arange(300, pages, IN_HUGE)]))
        for kind in "rw":
            accessed = np.arange(0, pages, 2 * IN_HUGE) + 100
            faults, answers = sample(faulting, mm, work, sampled, lambda kind=kind, at=accessed: work.order(kind, at))
            assert pages_of(work, faults) == [page for page in sampled.tolist() if page // IN_HUGE % 2 == 0]
            assert (faults["write"] == (kind == "w")).all()
            assert [OLD] * len(sampled) == answers.tolist()
            assert not len(armed(work))
            assert pages * 4096 == smaps(work, "AnonHugePages")
        assert not caplog.records
        task.put()
        assert pages * 4096 == smaps(work, "AnonHugePages")
        work.order("w", range(pages))
        assert 0 == work.spoilt(range(pages))


@needs_anonymous_huge_pages
def test_a_huge_page_that_is_split_while_it_is_armed_is_released(faulting: LinuxMachine, program: Path) -> None:
    """All of it, though only one page of it was accessed."""
    pages = 2 * IN_HUGE
    with Workload([program], "thp", pages) as work, task_of(faulting, work.pid) as task:
        if smaps(work, "AnonHugePages") != pages * 4096:
            pytest.skip("kernel lacks: free huge pages")
        mm = mm_of(task)
        addrs = work.addrs([10, 20, IN_HUGE + 1])
        mm.begin_sample(addrs)
        assert pages == len(armed(work))
        work.order("s")
        assert smaps(work, "AnonHugePages") < pages * 4096
        work.order("r", [0])
        mm.end_sample(addrs)
        assert not len(armed(work))


@needs_anonymous_huge_pages
def test_huge_pages_are_paged_out_where_they_are_sampled(faulting: LinuxMachine, program: Path) -> None:
    """Nothing of them is unknown."""
    pages = 4 * IN_HUGE
    with Workload([program], "thp", pages) as work, task_of(faulting, work.pid) as task:
        if smaps(work, "AnonHugePages") != pages * 4096:
            pytest.skip("kernel lacks: free huge pages")
        (applied,) = mm_of(task).advise("cold", np.array([[work.base, work.base + pages * 4096]], np.uint64)).tolist()
        assert pages * 4096 == applied


def test_huge_pages_of_shared_memory_are_left_alone(
    faulting: LinuxMachine, program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel would split them, whatever is armed of them; that is said once."""
    pages = 4 * IN_HUGE
    with Workload([program], "hugeshmem", pages) as work, task_of(faulting, work.pid) as task:
        huge = smaps(work, "ShmemPmdMapped")
        if not huge:
            pytest.skip("kernel lacks: huge pages of shared memory, see shmem_enabled")
        every = np.arange(pages)
        for _ in range(2):
            _, answers = sample(faulting, mm_of(task), work, every, lambda: work.order("w", every))
            assert huge == 4096 * int((answers == UNKNOWN).sum())
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
            f"process {work.pid}: huge pages of shared memory and files are neither sampled nor paged out: page_fault "
            "would split them; use page_table for those"
        ]
        task.put()
        assert huge == smaps(work, "ShmemPmdMapped")


@needs_free_hugetlb(4)
def test_pages_of_hugetlbfs_are_sampled(faulting: LinuxMachine, program: Path) -> None:
    """Each as a whole."""
    pages = 4 * IN_HUGE
    with Workload([program], "hugetlb", pages) as work, task_of(faulting, work.pid) as task:
        sampled = np.arange(5, pages, IN_HUGE)
        for kind in "rw":
            faults, answers = sample(
                faulting, mm_of(task), work, sampled, lambda kind=kind: work.order(kind, [100, IN_HUGE])
            )
            # A write that makes a copy, too, faults once more.
            assert set(pages_of(work, faults)) == {5, IN_HUGE + 5}
            assert [OLD] * len(sampled) == answers.tolist()
            assert not len(armed(work))
        work.order("w", range(0, pages, 7))
        assert 0 == work.spoilt(range(0, pages, 7))


def test_what_is_not_sampled_does_not_fault(faulting: LinuxMachine, program: Path) -> None:
    """Only the sampled pages are armed."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        faults, _ = sample(faulting, mm_of(task), work, [3, 700], lambda: work.order("r", EVERY))
        assert [3, 700] == pages_of(work, faults)


MONITOR = """
    import sys
    import numpy as np
    from kdamon.mm.linux.machine import linux_machine
    base, pages, pid = map(int, sys.argv[1:])
    machine = linux_machine("page_fault")
    mm = machine.get_task(pid, "page_fault").get_mm()
    addrs = np.uint64(base) + np.arange(pages, dtype=np.uint64) * np.uint64(4096)
    rounds = 0
    while True:
        mm.begin_sample(addrs)
        machine.faults()
        rounds += 1
        if rounds == 3:
            print("sampling", flush=True)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("kind", ["anon", "shmem", "thp"])
def test_a_monitor_that_dies_or_stands_still_leaves_readers_unharmed(
    program: Path, kind: str, end: signal.Signals
) -> None:
    """In the middle of sampling: the process reads on; what is armed goes with the monitor."""
    with Workload([program], kind, PAGES) as work:
        work.order("w", EVERY)
        huge = smaps(work, "AnonHugePages")
        monitor = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(MONITOR), *map(str, (work.base, PAGES, work.pid))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert monitor.stdout is not None
        assert b"sampling\n" == monitor.stdout.readline()
        for _ in range(5):
            work.order("r", EVERY)
        monitor.send_signal(end)
        work.order("r", EVERY)
        assert 0 == work.spoilt(EVERY)
        monitor.kill()
        assert -signal.SIGKILL == monitor.wait()
        monitor.stdout.close()
        assert not len(armed(work))
        work.order("w", EVERY)
        assert 0 == work.spoilt(EVERY)
        assert huge == smaps(work, "AnonHugePages")


WITHOUT_RIGHTS = """
    import logging, sys
    import numpy as np
    from pathlib import Path
    from kdamon.mm.linux.machine import linux_machine
    from tests.support.workload import Workload
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    machine = linux_machine("page_fault")
    print(machine.attributes_faults, machine.faults_of_reads)
    every = np.arange(512)
    with Workload([Path(sys.argv[1])], "anon", 512) as work:
        task = machine.get_task(work.pid, "page_fault")
        mm = task.get_mm()
        addrs = work.addrs(every)
        mm.begin_sample(addrs)
        work.order("r", range(5))
        work.order("w", range(3, 7))
        faults = machine.faults()
        print(np.array_equal(faults["addr"], addrs[:7] & ~np.uint64(4095)), len(machine.faults()))
        print(set(faults[["pid", "node_id", "write", "cpu", "tid"]].tolist()) == {(work.pid, -1, False, -1, 0)})
        print(mm.end_sample(addrs).any())
        work.order("w", every)
        print(len(machine.faults()))
        try:
            machine.get_task(work.pid)
        except OSError as error:
            print(error.strerror)
        task.put()
"""


def test_without_rights_addresses_are_told(program: Path) -> None:
    """A user without capabilities monitors a process of his own: what was read or written, not which of both."""
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c"]
    done = subprocess.run(
        [*command, textwrap.dedent(WITHOUT_RIGHTS), str(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert [
        "page faults are recorded without thread and CPU: recording page faults with thread and CPU needs CAP_BPF and "
        "CAP_PERFMON, which root lacks here; start kdamon with these capabilities, as by a container's --cap-add",
        "False True",
        "True 0",
        "True",
        "False",
        "0",
        "reading page tables needs CAP_BPF and CAP_PERFMON, which root lacks here; start kdamon with these "
        "capabilities, as by a container's --cap-add, or use page_fault, which sees reads and writes",
    ] == done.stdout.splitlines(), done.stderr
