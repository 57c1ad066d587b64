# SPDX-License-Identifier: GPL-2.0-only
"""Huge pages allowed and forbidden in real processes, which give that advice to themselves."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kdamon.mm import AddressSpace
from kdamon.mm.actions import huge_pages
from kdamon.mm.inject import requests as inject
from kdamon.mm.inject.requests import inject_madvise
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.mman import MADV_HUGEPAGE, MADV_NOHUGEPAGE
from tests.support.capabilities import needs_anonymous_huge_pages
from tests.support.inject_targets import SECCOMP, Suspicious, build, leftovers, sockets
from tests.support.process_memory import HUGE, PAGE, pages, smaps, space_of
from tests.support.waiting import eventually
from tests.support.workload import Workload

pytestmark = [pytest.mark.real, needs_anonymous_huge_pages]


PAGES = 4096
SIZE = PAGES * PAGE


@pytest.fixture(name="calls")
def _calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ranges each injection advised."""
    seen: list[int] = []

    def counted(pid: int, ranges: list[tuple[int, int]], *rest: object) -> int:
        seen.append(len(ranges))
        return inject_madvise(pid, ranges, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(huge_pages, "inject_madvise", counted)
    return seen


@pytest.fixture(name="space")
def _space(machine: LinuxMachine, program: Path) -> Iterator[tuple[Workload, AddressSpace]]:
    """A process with memory that it never touched and that must have no huge pages."""
    with Workload([program], "untouched", PAGES) as work, space_of(machine, work.pid) as mm:
        yield work, mm


def flagged(work: Workload, flag: str) -> int:
    """Bytes of the workload's memory whose mappings have a flag."""
    text = Path(f"/proc/{work.pid}/smaps").read_text(encoding="utf-8", errors="replace")
    found = 0
    for first, last, flags in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags:([^\n]*)$", text, re.S | re.M):
        start, end = max(int(first, 16), work.base), min(int(last, 16), work.base + SIZE)
        if flag in flags.split() and start < end:
            found += end - start
    return found


def heap_of(pid: int) -> tuple[int, int]:
    """Where a process's heap is."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    start, end = re.findall(r"^(\S+)-(\S+) .*\[heap\]$", maps, re.M)[0]
    return int(start, 16), int(end, 16)


def test_memory_becomes_huge_when_it_is_touched(space: tuple[Workload, AddressSpace]) -> None:
    """Exactly the advised half is allowed to; what is touched there is huge, elsewhere it is not."""
    work, mm = space
    half = PAGES // 2
    assert mm.advise("hugepage", pages(work, 0, half)).sum() == SIZE // 2 == flagged(work, "hg")
    work.order("w", range(PAGES))
    huge = smaps(work, "AnonHugePages")
    assert SIZE // 2 - 2 * HUGE <= huge <= SIZE // 2
    assert 0 == work.spoilt(range(PAGES))
    assert [] == leftovers(work.pid)


def test_memory_stays_small_where_huge_pages_are_forbidden(machine: LinuxMachine, program: Path) -> None:
    with Workload([program], "thp", PAGES) as work, space_of(machine, work.pid) as mm:
        assert mm.advise("nohugepage", pages(work, 0, PAGES)).sum() >= SIZE - HUGE
        assert SIZE == flagged(work, "nh")
        # It gives its pages back and touches them anew.
        work.order("d")
        work.order("w", range(PAGES))
        assert 0 == smaps(work, "AnonHugePages")


def test_what_is_allowed_is_not_advised_again(space: tuple[Workload, AddressSpace], calls: list[int]) -> None:
    """The process is stopped for a change only, and only for what changes."""
    work, mm = space
    assert 1024 * PAGE == mm.advise("hugepage", pages(work, 0, 1024)).sum()
    assert 0 == mm.advise("hugepage", pages(work, 0, 1024)).sum()
    assert [1] == calls
    assert 1024 * PAGE == mm.advise("hugepage", pages(work, 512, 2048)).sum()
    assert [1, 1] == calls
    assert 0 == mm.advise("nohugepage", pages(work, 2048, PAGES)).sum()
    assert [1, 1] == calls


def test_many_ranges_are_advised_at_several_stops(space: tuple[Workload, AddressSpace], calls: list[int]) -> None:
    work, mm = space
    starts = work.base + np.arange(0, PAGES, 64, dtype=np.uint64) * np.uint64(PAGE)
    wanted = np.stack((starts, starts + np.uint64(32 * PAGE)), axis=1)
    assert mm.advise("hugepage", wanted).sum() == SIZE // 2 == flagged(work, "hg")
    assert [64] == calls


def test_a_call_comes_to_an_end(space: tuple[Workload, AddressSpace], calls: list[int]) -> None:
    """What is too much for one goes on with the next one."""
    work, mm = space
    starts = work.base + np.arange(0, PAGES - 2, 3, dtype=np.uint64) * np.uint64(PAGE)
    wanted = np.stack((starts, starts + np.uint64(PAGE)), axis=1)
    first = mm.advise("hugepage", wanted).sum()
    assert first == flagged(work, "hg") <= 1024 * PAGE
    assert [1024] == calls
    if first < 1024 * PAGE:
        pytest.skip("the machine is too busy to stop a process that often")
    assert mm.advise("hugepage", wanted).sum() == (len(wanted) - 1024) * PAGE
    assert flagged(work, "hg") == len(wanted) * PAGE
    assert calls == [1024, len(wanted) - 1024]


def test_a_process_that_checks_itself_notices_nothing(directory: Path) -> None:
    with Suspicious(build(directory, "inject_target"), "threads") as process:
        for advice in (MADV_HUGEPAGE, MADV_NOHUGEPAGE) * 5:
            assert 20 == inject_madvise(process.pid, [heap_of(process.pid)] * 20, advice, lambda: True, 5)
        assert [] == leftovers(process.pid)
        assert len(os.listdir(f"/proc/{process.pid}/task")) == process.threads


def test_the_helper_dies_at_each_step(directory: Path, ending_helper: Callable[[int, int], None]) -> None:
    """Killed before any of its calls of ptrace(), the helper leaves a process that goes on as if nothing had been."""
    with Suspicious(build(directory, "inject_target"), "threads") as process:
        wanted = [heap_of(process.pid)] * 2
        step, done = random.randrange(3), False
        while not done:
            ending_helper(step, signal.SIGKILL)
            with contextlib.suppress(OSError):
                done = inject_madvise(process.pid, wanted, MADV_HUGEPAGE, lambda: True, 0) == 2
            # What the helper left, the thread leaves by itself as soon as it has a CPU.
            assert eventually(lambda: not leftovers(process.pid)), leftovers(process.pid)
            step += 3
        assert step > 20
        assert eventually(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == process.threads)


def test_a_thread_that_cannot_be_stopped_does_not_keep_the_others_from_it(program: Path) -> None:
    """One that waits for a child of vfork(), while another one is stopped several times."""
    with Workload([program], "threads", PAGES) as work:
        work.send("v")
        status = Path(f"/proc/{work.pid}/status")
        assert eventually(lambda: "State:\tD" in status.read_text(encoding="utf-8"))
        wanted = [(work.base + at * HUGE, work.base + (2 * at + 1) * HUGE // 2) for at in range(8)] * 4
        assert inject_madvise(work.pid, wanted, MADV_HUGEPAGE, lambda: True, 5) == len(wanted)
        os.kill(int.from_bytes(work.receive(4), "little"), signal.SIGKILL)
        assert eventually(lambda: not leftovers(work.pid)), leftovers(work.pid)


def test_one_helper_advises_many_times_and_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper without requests ends by itself, also when it is stopped; another one does the next job."""
    started: list[int] = []

    @contextlib.contextmanager
    def counted(verb: str) -> Iterator[tuple[socket.socket, int]]:
        with helper(verb) as (channel, pid):
            started.append(pid)
            yield channel, pid

    helper = inject._helper
    monkeypatch.setattr(inject, "_helper", counted)
    monkeypatch.setattr(inject, "_idle", [])
    before = sockets()
    with Suspicious(build(directory, "inject_target"), "threads") as process:
        for expected in (1, 2):
            for advice in (MADV_HUGEPAGE, MADV_NOHUGEPAGE) * 3:
                assert 1 == inject_madvise(process.pid, [heap_of(process.pid)], advice, lambda: True, 5)
            assert expected <= len(started) < 6 * expected
            assert [] == leftovers(process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(started[-1], signal.SIGSTOP)
            assert eventually(lambda: not os.path.exists(f"/proc/{started[-1]}"))
    assert eventually(lambda: sockets() <= before)


def test_what_was_done_before_a_refusal_counts(machine: LinuxMachine, program: Path) -> None:
    """And the next attempt says why there is no more."""
    with Workload([program], "untouched", PAGES) as work, space_of(machine, work.pid) as mm:
        starts = work.base + np.arange(0, PAGES, 4, dtype=np.uint64) * np.uint64(PAGE)
        wanted = np.stack((starts, starts + np.uint64(2 * PAGE)), axis=1)

        def stop() -> None:
            assert eventually(lambda: flagged(work, "hg"))
            os.kill(work.pid, signal.SIGSTOP)

        thread = threading.Thread(target=stop)
        thread.start()
        try:
            assert 0 < mm.advise("hugepage", wanted).sum() == flagged(work, "hg") < SIZE // 2
            with pytest.raises(OSError, match=r"is stopped; continue it|a signal stopped it") as info:
                mm.advise("hugepage", wanted)
            assert errno.EBUSY == info.value.errno
        finally:
            thread.join()
            os.kill(work.pid, signal.SIGCONT)


@pytest.mark.parametrize("action", ["hugepage", "nohugepage"])
@pytest.mark.parametrize("end", ["kill", "exec"])
def test_a_process_that_is_gone_is_no_error(machine: LinuxMachine, program: Path, action: str, end: str) -> None:
    """Whenever it goes: here between the look at its mappings and the advice."""
    with Workload([program], "untouched", PAGES) as work, space_of(machine, work.pid) as mm:
        other = "nohugepage" if action == "hugepage" else "hugepage"
        mm.advise(other, pages(work, 0, PAGES))
        mm.advise(action, pages(work, 0, 1))
        if end == "kill":
            work.process.kill()
            work.process.wait()
        else:
            work.send("x")
            work.greet()
        assert 0 == mm.advise(action, pages(work, 0, PAGES)).sum()


def test_a_process_that_may_not_be_stopped_is_refused_with_the_reason(machine: LinuxMachine, calls: list[int]) -> None:
    """And with a remedy that has to do with actions; the next region does not make it be tried again."""
    with subprocess.Popen(
        [sys.executable, "-c", SECCOMP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        with space_of(machine, process.pid) as mm:
            for _ in range(2):
                with pytest.raises(OSError, match=r"seccomp.*; use another action") as info:
                    mm.advise("hugepage", mm.vmas())
                assert errno.EPERM == info.value.errno
        assert 1 == len(calls)
        process.communicate(timeout=20)


def test_a_process_that_refuses_is_tried_less_and_less_often(
    machine: LinuxMachine, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt may begin a timeout of it anew, which would never be over otherwise."""
    now = 1_000_000_000_000
    monkeypatch.setattr(huge_pages, "time", SimpleNamespace(monotonic_ns=lambda: now))
    with subprocess.Popen(
        [sys.executable, "-c", SECCOMP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        with space_of(machine, process.pid) as mm:
            attempts = []
            for second in range(1300):
                tried = len(calls)
                if second % 10 == 0:
                    with pytest.raises(OSError, match="seccomp"):
                        mm.advise("hugepage", mm.vmas())
                attempts += [second] * (len(calls) - tried)
                now += 1_000_000_000
        assert [0, 10, 30, 70, 150, 310, 630, 1270] == attempts
        process.communicate(timeout=20)


def test_nothing_is_asked_of_another_program() -> None:
    """Ranges that were of a program that is gone are not advised in the next one."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with pytest.raises(ProcessLookupError, match="another program"):
                inject_madvise(process.pid, [(0x10000, 0x11000)], MADV_HUGEPAGE, lambda: False)
        finally:
            process.kill()


def test_advice_that_the_kernel_does_not_know(directory: Path) -> None:
    with Suspicious(build(directory, "inject_target"), "spin") as process:
        with pytest.raises(OSError, match="does not support that advice") as info:
            inject_madvise(process.pid, [(0x10000, 0x11000)], 12345, lambda: True, 60)
        assert errno.EOPNOTSUPP == info.value.errno


def test_one_range_changes_a_bounded_number_of_mappings() -> None:
    """Neighbours are joined, 64 at most: the process's mmap_lock is held for one of them."""
    start = np.arange(200, dtype=np.uint64) * np.uint64(PAGE)
    start[150:] += np.uint64(PAGE)
    joined = huge_pages._joined(np.stack((start, start + np.uint64(PAGE)), axis=1))
    edges = [[0, 64], [64, 128], [128, 150], [151, 201]]
    assert (np.array(edges) * PAGE).tolist() == joined.tolist()
    assert [] == huge_pages._joined(np.empty((0, 2), np.uint64)).tolist()
