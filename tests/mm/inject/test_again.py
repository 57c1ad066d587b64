# SPDX-License-Identifier: GPL-2.0-only
"""Attempts that meet what an earlier one left in a process that has not run since.

A control group's freezer keeps the process from running; so does any load on a CPU that leaves none for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdamon.mm.inject import target as inject_target
from kdamon.mm.inject.requests import inject_madvise, take_userfaultfd
from kdamon.mm.mman import MADV_NOHUGEPAGE
from tests.support.capabilities import freezer_directory, needs_freezer
from tests.support.inject_attempts import attempt, check, target
from tests.support.inject_targets import SOAK, Suspicious, leftovers, mapping_of, running
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


#: One of each way on which a thread returns to what it did.
KINDS = ("spin", "sleep", "signal", "threads")


class Freezer:
    """A control group that freezes the processes in it."""

    def __init__(self, directory: Path, file: str) -> None:
        self.directory = directory
        self._file = directory / file
        self._words = ("0", "1") if file == "cgroup.freeze" else ("THAWED", "FROZEN")

    def take_in(self, pid: int) -> None:
        (self.directory / "cgroup.procs").write_text(str(pid))

    def freeze(self) -> None:
        self._file.write_text(self._words[1])
        if self._file.name == "cgroup.freeze":
            events = self.directory / "cgroup.events"
            assert eventually(lambda: "frozen 1" in events.read_text())
        else:
            assert eventually(lambda: self._file.read_text() == "FROZEN\n")

    def freezing(self) -> bool:
        return self._file.read_text().strip() != self._words[0]

    def thaw(self) -> None:
        self._file.write_text(self._words[0])


@contextlib.contextmanager
def _freezer(file: str) -> Iterator[Freezer]:
    mounted = freezer_directory(file)
    assert mounted is not None
    directory = mounted / f"kdamon-test-{os.getpid()}"
    directory.mkdir()
    made = Freezer(directory, file)
    try:
        yield made
    finally:
        made.thaw()
        with contextlib.suppress(OSError):
            assert eventually(lambda: not (directory / "cgroup.procs").read_text())
        directory.rmdir()


@pytest.fixture(name="freezer")
def _second_version() -> Iterator[Freezer]:
    with _freezer("cgroup.freeze") as made:
        yield made


@pytest.fixture(name="blind")
def _blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen process does not look like one, as one that gets no CPU does not."""
    monkeypatch.setattr(inject_target, "frozen", lambda contents: False)
    monkeypatch.setattr(inject_target, "_sleeps_frozen", lambda *_: False)


def advise(process: Suspicious) -> bool:
    """Have it advise a part of its memory."""
    try:
        return inject_madvise(process.pid, [mapping_of(process.pid)], MADV_NOHUGEPAGE, lambda: True, 0) == 1
    except OSError as error:
        assert errno.EBUSY == error.errno
        return False


def take(process: Suspicious) -> bool:
    """As a second kdamon would."""
    try:
        os.close(take_userfaultfd(process.pid, 0))
    except OSError as error:
        assert errno.EBUSY == error.errno
        return False
    return True


@needs_freezer("cgroup.freeze")
@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_an_attempt_left_another_one_does_no_harm(
    directory: Path, kind: str, freezer: Freezer, ending_helper: Callable[..., None]
) -> None:
    """The helper dies at each step; until the process runs again other attempts come, and die at any step or not."""
    with target(directory, kind) as process:
        freezer.take_in(process.pid)
        stride = 1 if SOAK else 3
        step, done = random.randrange(stride), False
        while not done:
            ending_helper(step, signal.SIGKILL, 0, freezer.directory)
            done = random.choice((attempt, advise))(process)
            # Otherwise it was over before that step.
            if freezer.freezing():
                for caller in (take, advise):
                    ending_helper(random.choice((random.randrange(20), 1000)), signal.SIGKILL)
                    assert not caller(process), f"a frozen process answered after step {step}"
                freezer.thaw()
                step += stride
            check(process)
        assert step > 15


@needs_freezer("cgroup.freeze")
@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("kind", ["spin", "sleep", "select", "threads"])
def test_a_process_that_is_frozen_meanwhile_is_left_as_it_was(
    directory: Path, kind: str, freezer: Freezer, ending_helper: Callable[..., None]
) -> None:
    """A helper that lives undoes what it did, unless the second thread is there already: both end by themselves.

    What waits in pause() is left to its frames, which lose no signal.
    """
    with target(directory, kind) as process:
        freezer.take_in(process.pid)
        for step in range(2, 24, 1 if SOAK else 3):
            ending_helper(step, 0, 0, freezer.directory)
            if not take(process) and len(os.listdir(f"/proc/{process.pid}/task")) == process.threads:
                assert [] == leftovers(process.pid)
            freezer.thaw()
            check(process)


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=needs_freezer(file)) for file in ("cgroup.freeze", "freezer.state")]
)
def test_a_frozen_process_is_refused_at_once(file: str) -> None:
    """By either version of control groups, also by one above its own; nothing of it is touched."""
    with _freezer(file) as freezer, running("sleep", "30") as pid:
        inner = freezer.directory / "inner"
        inner.mkdir()
        try:
            Freezer(inner, file).take_in(pid)
            freezer.freeze()
            for timeout in (0.0, 1e6):
                with pytest.raises(OSError, match="is frozen with its control group; thaw") as info:
                    take_userfaultfd(pid, timeout)
                assert errno.EBUSY == info.value.errno
                with pytest.raises(OSError, match="is frozen with its control group; thaw"):
                    inject_madvise(pid, [(0x10000, 0x11000)], MADV_NOHUGEPAGE, lambda: True, timeout)
            freezer.thaw()
            os.close(take_userfaultfd(pid))
            os.kill(pid, signal.SIGKILL)
            assert eventually(lambda: not (inner / "cgroup.procs").read_text())
        finally:
            freezer.thaw()
            inner.rmdir()


@needs_freezer("cgroup.freeze")
def test_a_frozen_process_is_known_without_its_control_group(freezer: Freezer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that does not see the groups of the machine."""
    monkeypatch.setattr(inject_target, "frozen", lambda contents: False)
    with running("sleep", "30") as pid:
        assert eventually(lambda: Path(f"/proc/{pid}/syscall").read_text().startswith("230 "))
        freezer.take_in(pid)
        freezer.freeze()
        with pytest.raises(OSError, match="is frozen with its control group"):
            take_userfaultfd(pid, 1e6)


#: Keeps a CPU busy; it ends by itself, should the test be killed.
LOAD = """
import os, sys, time
os.sched_setaffinity(0, [int(sys.argv[1])])
end = time.monotonic() + 170
while time.monotonic() < end:
    pass
"""


def test_a_process_that_gets_no_cpu_survives(directory: Path, ending_helper: Callable[..., None]) -> None:
    """One that has a CPU only where nothing else wants it, beside one that always does."""
    cpu = max(os.sched_getaffinity(0))
    with (
        target(directory, "threads") as process,
        subprocess.Popen([sys.executable, "-c", LOAD, str(cpu)]) as load,
    ):
        try:
            for tid in map(int, os.listdir(f"/proc/{process.pid}/task")):
                os.sched_setaffinity(tid, [cpu])
                os.sched_setscheduler(tid, os.SCHED_IDLE, os.sched_param(0))
            for _ in range(SOAK or 4):
                ending_helper(random.choice((random.randrange(20), 1000)), signal.SIGKILL)
                with contextlib.suppress(OSError):
                    os.close(take_userfaultfd(process.pid, 0))
        finally:
            load.kill()
        check(process)
