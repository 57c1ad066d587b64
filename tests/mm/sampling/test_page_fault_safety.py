# SPDX-License-Identifier: GPL-2.0-only
"""Processes that are monitored by faults never notice: nothing of theirs changes, whatever happens to the monitor."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from kdamon.mm import OLD, UNKNOWN
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.sampling import page_fault, protection
from tests.support.capabilities import needs_write_faults_alone
from tests.support.paths import ROOT
from tests.support.sampling import armed, mm_of, open_files, pages_of, sample, task_of, wait_until
from tests.support.workload import Workload

pytestmark = pytest.mark.real


PAGES = 1024
EVERY = np.arange(PAGES)


def _huge(work: Workload) -> int:
    lines = Path(f"/proc/{work.pid}/smaps").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


@needs_write_faults_alone
def test_huge_pages_stay_whole_and_are_unknown(
    faulting: LinuxMachine, program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel would split an armed one when it is written; that is said once."""
    pages = 4 * 512
    with Workload([program], "thp", pages) as work, task_of(faulting, work.pid) as task:
        huge = _huge(work)
        if not huge:
            pytest.skip("kernel lacks: transparent huge pages, or free ones")
        everything = np.arange(pages)
        for _ in range(2):
            _, answers = sample(faulting, mm_of(task), work, everything, lambda: work.order("w", everything))
            assert int((answers == UNKNOWN).sum()) * 4 == huge
        assert [record.getMessage() for record in caplog.records] == [
            f"process {work.pid}: huge pages are neither sampled nor paged out: page_fault would split them; use "
            "page_table for those"
        ]
        task.put()
        assert _huge(work) == huge
        assert 0 == work.spoilt(everything)


def test_no_page_tables_are_made_for_pages_that_are_not_there(faulting: LinuxMachine, program: Path) -> None:
    """Sampling a sparse mapping over and over leaves it sparse."""
    pages = 1 << 16

    def tables() -> int:
        lines = Path(f"/proc/{work.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmPTE"))

    with Workload([program], "untouched", pages) as work, task_of(faulting, work.pid) as task:
        before = tables()
        for _ in range(3):
            _, answers = sample(faulting, mm_of(task), work, np.arange(0, pages, 512), lambda: None)
        assert answers.tolist() == [OLD] * (pages // 512)
        assert tables() == before


def test_what_goes_away_while_it_is_armed_is_harmless(faulting: LinuxMachine, program: Path) -> None:
    """Given back, unmapped, replaced or moved in the middle of a sample."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        addrs = work.addrs(EVERY)
        for order in "dm":
            mm.begin_sample(addrs)
            work.order(order)
            work.order("w", EVERY)
            mm.end_sample(addrs)
            assert 0 == work.spoilt(EVERY)
        mm.vmas()
        mm.begin_sample(addrs)
        assert PAGES == len(armed(work))
        work.base = int.from_bytes(work.order("R", answer=8), "little")
        mm.end_sample(addrs)
        work.order("w", EVERY)
        assert not len(armed(work))
        assert 0 == work.spoilt(EVERY)
        work.order("u")
        _, answers = sample(faulting, mm, work, EVERY, lambda: None)
        assert [OLD] * PAGES == answers.tolist()


def test_a_child_is_neither_protected_nor_told(faulting: LinuxMachine, program: Path) -> None:
    """fork() copies armed pages; the child writes to its own, and so does the parent afterwards."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        fine = []
        faults, _ = sample(faulting, mm, work, EVERY, lambda: fine.append(work.order("f", EVERY)))
        assert [b"\1"] == fine
        assert not len(faults)
        faults, _ = sample(faulting, mm, work, EVERY, lambda: work.order("w", EVERY))
        assert sorted(set(pages_of(work, faults))) == EVERY.tolist()


def test_a_process_that_uses_a_userfaultfd_itself_is_refused(faulting: LinuxMachine, program: Path) -> None:
    """What it protected stays so, and it can register more: memory has room for one userfaultfd."""
    with Workload([program], "anon", PAGES) as work:
        before = open_files()
        work.order("U", range(0, PAGES, 2))
        with pytest.raises(OSError, match=r"uses a userfaultfd of its own.*page_table") as refused:
            faulting.get_task(work.pid, "page_fault")
        assert errno.EBUSY == refused.value.errno
        assert armed(work).tolist() == list(range(0, PAGES, 2))
        assert open_files() == before


def test_a_process_that_makes_a_userfaultfd_later_is_let_go(
    faulting: LinuxMachine, program: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its memory is unknown from then on, and free for it; the reason is logged once."""
    monkeypatch.setattr(protection, "_LOOK_RARELY", 0)
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        mm.begin_sample(work.addrs(EVERY))
        assert PAGES == len(armed(work))
        work.order("T")
        with caplog.at_level(logging.WARNING, "kdamon"):
            mm.vmas()
            mm.end_sample(work.addrs(EVERY))
            assert not len(armed(work))
            work.order("U", range(0, PAGES, 2))
            for _ in range(3):
                mm.vmas()
                _, answers = sample(faulting, mm, work, EVERY, lambda: work.order("r", EVERY))
                assert [UNKNOWN] * PAGES == answers.tolist()
        assert armed(work).tolist() == list(range(0, PAGES, 2))
        assert [record.getMessage() for record in caplog.records] == [
            f"process {work.pid}: its memory is no longer sampled: it uses a userfaultfd of its own; use page_table"
        ]
        with pytest.raises(OSError, match="of its own"):
            faulting.get_task(work.pid, "page_fault")


def test_a_userfaultfd_among_many_open_files_is_found(
    faulting: LinuxMachine, program: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at a few with each sample."""
    monkeypatch.setattr(protection, "_LOOK_RARELY", 0)
    monkeypatch.setattr(protection, "_DESCRIPTORS", 1)
    monkeypatch.setattr(page_fault, "_AT_ONCE", 1)
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        work.order("T")
        mm.vmas()
        assert "is no longer sampled" not in caplog.text

        def let_go() -> bool:
            _, answers = sample(faulting, mm, work, EVERY, lambda: None)
            return set(answers.tolist()) == {UNKNOWN}

        wait_until(let_go)
        assert "is no longer sampled" in caplog.text


def test_who_else_monitors_a_process_is_in_the_way(faulting: LinuxMachine, program: Path) -> None:
    """Another kdamon gets a reason, not half of the memory; the first one goes on."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        other = linux_machine("page_fault")
        before = open_files()
        with pytest.raises(OSError, match="another kdamon; end that one first") as refused:
            other.get_task(work.pid, "page_fault")
        assert errno.EBUSY == refused.value.errno
        assert open_files() == before
        other.close()
        faults, _ = sample(faulting, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))
        assert pages_of(work, faults) == EVERY.tolist()


def test_nothing_is_open_when_nobody_is_monitored(faulting: LinuxMachine, program: Path) -> None:
    """No file, no program on the tracepoints; a refusal leaves nothing either."""
    before = open_files()
    assert faulting.attributes_faults
    assert open_files() == before
    with Workload([program], "anon", PAGES) as work:
        started = open_files()
        with task_of(faulting, work.pid):
            assert len(open_files()) > len(started)
        assert open_files() == started
        assert not len(faulting.faults())
    with pytest.raises(PermissionError):
        faulting.get_task(1, "page_fault")
    assert open_files() == before


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
            assert b"sampling\n" == monitor.stdout.readline()
            for _ in range(5):
                work.order("w", EVERY)
            monitor.send_signal(end)
            work.order("w", EVERY)
            assert 0 == work.spoilt(EVERY)
            monitor.kill()
            assert -signal.SIGKILL == monitor.wait()
            monitor.stdout.close()
            assert not len(armed(work))
            work.order("w", EVERY)
            assert 0 == work.spoilt(EVERY)
            status = Path(f"/proc/{work.pid}/status").read_text(encoding="utf-8")
            assert "TracerPid:\t0\n" in status


WITHOUT_RIGHTS = """
    import logging, sys
    import numpy as np
    from pathlib import Path
    from kdamon.mm.linux.machine import linux_machine
    from tests.support.workload import Workload
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    machine = linux_machine("page_fault")
    print(machine.attributes_faults, machine.attributes_faults)
    every = np.arange(512)
    with Workload([Path(sys.argv[1])], "anon", 512) as work:
        task = machine.get_task(work.pid, "page_fault")
        mm = task.get_mm()
        addrs = work.addrs(every)
        mm.begin_sample(addrs)
        work.order("r", every)
        print(len(machine.faults()))
        work.order("w", range(7))
        faults = machine.faults()
        print(np.array_equal(faults["addr"], addrs[:7] & ~np.uint64(4095)), len(machine.faults()))
        print(set(faults[["pid", "node_id", "write", "cpu", "tid"]].tolist()) == {(work.pid, -1, True, -1, 0)})
        print(mm.end_sample(addrs).any())
        work.order("w", every)
        print(len(machine.faults()))
        mm.begin_sample(addrs)
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


@needs_write_faults_alone
def test_without_rights_addresses_are_told(program: Path) -> None:
    """A user without capabilities monitors a process of his own; that nothing else is known is said once."""
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c"]
    done = subprocess.run(
        [*command, textwrap.dedent(WITHOUT_RIGHTS), str(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert [
        "page faults are recorded without thread and CPU: recording page faults with thread and CPU needs CAP_BPF and "
        "CAP_PERFMON, which root lacks here; start kdamon with these capabilities, as by a container's --cap-add",
        "False False",
        "0",
        "True 0",
        "True",
        "False",
        "0",
        "[False, True]",
        "reading page tables needs CAP_BPF and CAP_PERFMON, which root lacks here; start kdamon with these "
        "capabilities, as by a container's --cap-add, or use page_fault, which sees writes",
    ] == done.stdout.splitlines(), done.stderr
