# SPDX-License-Identifier: GPL-2.0-only
"""Where a process is stopped, nothing of its memory changes, whatever its threads have for stacks.

Frames are written into a thread's own stack where nothing ever was, or the thread is left alone.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdamon.mm.inject import requests as inject
from kdamon.mm.inject.budget import HOLD, StopBudget
from kdamon.mm.inject.requests import inject_madvise, take_userfaultfd
from kdamon.mm.mman import MADV_NOHUGEPAGE
from tests.support.capabilities import needs_root
from tests.support.inject_attempts import attempt, check
from tests.support.inject_targets import SOAK, Suspicious, build, mapping_of, memory_file
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


#: Threads on their own stacks: also in handlers and coroutines on arrays in them; given by the program, but never used;
#: and first threads that used more than ever before, or nearly all that they may have.
TAKEN = (
    *("on_main", "signal_own", "thread_coroutine", "thread_signal", "thread_plain"),
    *("threads_fresh", "threads_arena", "main_deep", "main_full"),
)
#: Coroutines and handlers on memory of all sorts; stacks given by the program that hold something where a frame would
#: be, or are used up; and one in pause() on a stack that does not grow.
REFUSED = (
    *("on_pool", "on_heap", "on_bss", "signal_heap", "signal_bss"),
    *("threads_marked", "threads_deep", "thread_pause"),
)


def stacks(directory: Path, kind: str) -> Suspicious:
    return Suspicious(build(directory, "inject_stacks", "-Wl,-z,now"), kind)


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_beside_a_stack_stays_as_it_is(directory: Path, kind: str) -> None:
    with stacks(directory, kind) as process:
        for _ in range(SOAK or 3):
            os.close(take_userfaultfd(process.pid, 60))
            assert 1 == inject_madvise(process.pid, [mapping_of(process.pid)], MADV_NOHUGEPAGE, lambda: True, 60)


def test_the_stack_may_grow_as_the_process_may_and_not_as_we_may(directory: Path) -> None:
    """Our soft limit is as small as can be; so the helper begins with it."""
    with stacks(directory, "main_deep") as process:
        soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, hard))
        try:
            os.close(take_userfaultfd(process.pid, 60))
        finally:
            resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


@pytest.mark.parametrize("kind", ["signal_own", "thread_plain", "main_deep"])
def test_also_if_the_helper_dies(directory: Path, kind: str, ending_helper: Callable[..., None]) -> None:
    """No attempt takes memory that one before it could have used."""
    with stacks(directory, kind) as process:
        ending_helper(1000, signal.SIGKILL)
        os.close(take_userfaultfd(process.pid, 60))
        before = written(process.pid)
        step = random.randrange(3)
        ending_helper(step, signal.SIGKILL)
        while not attempt(process):
            check(process)
            step += 1 if SOAK else 3
            ending_helper(step, signal.SIGKILL)
        assert written(process.pid) == before


def written(pid: int) -> int:
    """KiB of pages that a process wrote to, in memory or swapped out.

    Not Private_Dirty: pages of a program's file count there until the kernel has written that file to disk.
    """
    lines = memory_file(pid, "smaps").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Anonymous:", "Swap:")))


@pytest.fixture(name="stops")
def _stops(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the helper answered to each job for which it may stop threads; nothing where it was killed."""
    seen: list[dict[str, Any]] = []
    ask = inject._stopping_answer

    def noted(channel: socket.socket, pid: int) -> tuple[dict[str, Any], int | None]:
        seen.append({})
        answer, fd = ask(channel, pid)
        seen[-1].update(answer)
        return answer, fd

    monkeypatch.setattr(inject, "_stopping_answer", noted)
    return seen


@pytest.mark.parametrize("kind", REFUSED)
def test_a_thread_that_has_no_such_place_is_refused(directory: Path, kind: str, stops: list[dict[str, Any]]) -> None:
    """After one stop of each thread, however long there is time: it does not change."""
    with stacks(directory, kind) as process:
        with pytest.raises(OSError, match=r"cannot be stopped safely .*; monitor it by page_table") as info:
            take_userfaultfd(process.pid, 1e6)
        assert errno.EBUSY == info.value.errno
        unsuitable = [tid for answer in stops for tid in answer.get("unsuitable", ())]
        assert len(unsuitable) == len(set(unsuitable)) > 0


@needs_root("a userfaultfd for faults of the kernel needs root")
def test_nobody_waits_for_a_page_that_somebody_else_is_to_fill(directory: Path, stops: list[dict[str, Any]]) -> None:
    """As where CRIU brings a process's memory after it: there may be contents for what is not there."""
    with stacks(directory, "threads_lazy") as process:
        with pytest.raises(OSError, match=r"has no room\); monitor it by page_table"):
            take_userfaultfd(process.pid, 60)
        # Each answered, also where one of the threads ended meanwhile: no timer ended it.
        assert stops and all(stops)


def test_one_thread_that_has_a_place_is_enough(directory: Path, stops: list[dict[str, Any]]) -> None:
    """However many have none; none of those is tried twice."""
    with stacks(directory, "threads_many") as process:
        os.close(take_userfaultfd(process.pid, 60))
        unsuitable = [tid for answer in stops for tid in answer.get("unsuitable", ())]
        assert len(unsuitable) == len(set(unsuitable))


@pytest.mark.parametrize("compiler", ["cc", "musl-gcc"])
def test_a_static_program_has_the_same_stacks(directory: Path, compiler: str) -> None:
    """What describes its first thread is elsewhere than in other programs: in its data, or its heap."""
    program = build(directory, f"inject_stacks_{compiler}", "-static", compiler=compiler)
    for kind, taken in (("signal_bss", False), ("signal_heap", False), ("signal_own", True), ("thread_plain", True)):
        with Suspicious(program, kind) as process:
            if taken:
                os.close(take_userfaultfd(process.pid, 60))
            else:
                with pytest.raises(OSError, match=r"cannot be stopped safely .*; monitor it by page_table"):
                    take_userfaultfd(process.pid, 60)


def test_a_process_stands_still_for_half_a_second_a_minute_at_most(
    directory: Path,
    stops: list[dict[str, Any]],
    ending_helper: Callable[..., None],
    budget: StopBudget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is asked of it, and however often; here by helpers that hang until their timer ends them."""
    monkeypatch.setattr(inject, "_budget", budget)
    with stacks(directory, "main_deep") as process:
        ending_helper(8, signal.SIGSTOP)
        with pytest.raises(OSError, match=r"was stopped for \d\.\d s in the last minute") as info:
            take_userfaultfd(process.pid, 1e6)
        assert errno.EBUSY == info.value.errno
        assert len(stops) >= budget.seconds / HOLD
        stops.clear()
        with pytest.raises(OSError, match="in the last minute"):
            inject_madvise(process.pid, [mapping_of(process.pid)], MADV_NOHUGEPAGE, lambda: True, 1e6)
        assert [] == stops
        # It is not about others.
        with stacks(directory, "thread_plain") as other:
            ending_helper(1000, signal.SIGKILL)
            os.close(take_userfaultfd(other.pid, 60))


def test_stops_in_vain_come_to_an_end(
    directory: Path, stops: list[dict[str, Any]], budget: StopBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short each of them is: they may begin a timeout anew. The reason is said."""
    budget.seconds = 1e9
    monkeypatch.setattr(inject, "_budget", budget)
    with stacks(directory, "on_pool") as process:
        refusals = []
        for _ in range(30):
            with pytest.raises(OSError, match="stop") as info:
                inject_madvise(process.pid, [mapping_of(process.pid)], MADV_NOHUGEPAGE, lambda: True, 0)
            refusals.append(str(info.value))
        assert budget.in_vain == len(stops)
        assert "was stopped 10 times in vain in the last minute" in refusals[-1]
        # A busy machine may have the helper's timer end some of them.
        assert any("cannot be stopped safely (thread" in refusal for refusal in refusals)


def test_a_handler_has_the_room_that_it_had(directory: Path) -> None:
    """The first thread stays on our frames in pause(); its stack grows below them."""
    with Suspicious(build(directory, "inject_stacks", "-Wl,-z,now"), "main_pause") as process:
        assert process.process.stdout is not None
        starts = []
        for _ in range(5):
            assert eventually(lambda: Path(f"/proc/{process.pid}/syscall").read_text().startswith("34 "))
            os.close(take_userfaultfd(process.pid, 60))
            os.kill(process.pid, signal.SIGUSR1)
            assert "got it\n" == process.process.stdout.readline()
            lines = memory_file(process.pid, "maps").splitlines()
            starts += [line.partition("-")[0] for line in lines if line.endswith("[stack]")]
        # It does not grow each time.
        assert 5 == len(starts)
        assert starts[1:] == starts[1:2] * 4


def test_a_child_that_leaves_its_parents_memory_meanwhile(
    directory: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A child of vfork() calls exec() after its parent's memory was looked at: nothing is written into that."""
    give = inject._give
    with subprocess.Popen(
        [build(directory, "inject_vfork", "-Wl,-z,now")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = int.from_bytes(parent.stdout.read(4), sys.byteorder)
        request.addfinalizer(lambda: os.kill(child, signal.SIGKILL))

        def sleeps() -> bool:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            return b"sleeping" in words and Path(f"/proc/{child}/status").read_text().count("State:\tS") == 1

        def give_late(*words: Any) -> None:
            assert parent.stdin is not None
            parent.stdin.write(b"x")
            assert eventually(sleeps)
            give(*words)

        monkeypatch.setattr(inject, "_give", give_late)
        with pytest.raises(inject._Again, match="it began another program"):
            os.close(inject._take(child, lambda: True, {}))
        parent.stdin.write(b"x")
        assert b"good\n" == parent.stdout.readline()
