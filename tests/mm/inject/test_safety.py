# SPDX-License-Identifier: GPL-2.0-only
"""A process that a userfaultfd is taken from never notices, whatever becomes of the helper and kdamon.

KDAMON_SOAK raises the number of attempts of the tests that kill and stop in the middle.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kdamon.mm.inject import requests as inject
from tests.support.inject_attempts import attempt, check, target
from tests.support.inject_targets import KINDS, SOAK, Suspicious
from tests.support.paths import ROOT
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


CALLER = """
import os, sys
from kdamon.mm.inject.requests import take_userfaultfd
while True:
    os.close(take_userfaultfd(int(sys.argv[1])))
    print("taken", flush=True)
"""


@pytest.mark.parametrize("kind", [*KINDS, "static", "python"])
def test_nothing_shows(directory: Path, kind: str) -> None:
    """Taking many userfaultfds changes no register, memory, mask or result of a system call."""
    with target(directory, kind) as process:
        for _ in range(SOAK or 8):
            os.close(inject.take_userfaultfd(process.pid))
        check(process)


#: The kinds that cannot notice even the helper's death. Others call what returns EINTR on any stop: they see that if
#: the helper dies right after the stop, before it can say otherwise.
UNAWARE = ("spin", "sleep", "select", "signal", "futex", "pipe", "threads", "static", "python")


@pytest.mark.parametrize("kind", UNAWARE)
def test_the_helper_dies_at_each_step(directory: Path, kind: str, ending_helper: Callable[[int, int], None]) -> None:
    """Killed before any of its calls of ptrace(), the helper leaves a process that goes on as if nothing had been."""
    with target(directory, kind) as process:
        for _ in range(1 + SOAK // 25):
            stride = 1 if SOAK else 2
            step = random.randrange(stride)
            ending_helper(step, signal.SIGKILL)
            while not attempt(process):
                check(process)
                step += stride
                ending_helper(step, signal.SIGKILL)
            assert step > 20


WAITING = """
import ctypes, signal, sys
libc, nothing = ctypes.CDLL(None), ctypes.create_string_buffer(128)
signal.signal(signal.SIGUSR1, lambda *_: None)
if sys.argv[1] == "sigsuspend":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("ready", flush=True)
for _ in sys.stdin:
    libc.pause() if sys.argv[1] == "pause" else libc.sigsuspend(nothing)
    print("got it", flush=True)
print("good")
"""


@pytest.mark.parametrize(("call", "number"), [("pause", 34), ("sigsuspend", 130)])
def test_a_signal_that_comes_just_before_the_helper_dies_is_not_lost(
    call: str, number: int, ending_helper: Callable[..., None]
) -> None:
    """Its waiting parent returns, at whichever step that happens once the thread stands still."""
    with Suspicious(sys.executable, "-c", WAITING, call) as process:

        def waits() -> bool:
            return Path(f"/proc/{process.pid}/syscall").read_text().startswith(f"{number} ")

        assert process.process.stdin is not None
        assert process.process.stdout is not None
        done, step = False, 2
        while not done:
            process.process.stdin.write("wait\n")
            process.process.stdin.flush()
            assert eventually(waits)
            ending_helper(step, signal.SIGKILL, signal.SIGUSR1)
            done = attempt(process)
            check(process)
            if done:
                os.kill(process.pid, signal.SIGUSR1)
            assert eventually(lambda: not waits()), f"the signal was lost at step {step}"
            assert "got it\n" == process.process.stdout.readline()
            step += 1
        assert step > 20


def test_the_helper_is_stopped_at_each_step(directory: Path, ending_helper: Callable[[int, int], None]) -> None:
    """Stopped before any of its calls of ptrace(), the helper is killed by its timer, and the process goes on."""
    with target(directory, "threads") as process:
        for step in range(0, 26, 1 if SOAK else 4):
            ending_helper(step, signal.SIGSTOP)
            begin = time.monotonic()
            assert not attempt(process)
            assert time.monotonic() - begin < inject._PATIENCE
            check(process)


def test_a_launched_command_runs_once_whenever_the_helper_dies(ending_helper: Callable[[int, int], None]) -> None:
    """A command whose helper is killed has not begun, and is started again without; it runs once and wholly."""
    for step in range(30):
        ending_helper(step, signal.SIGKILL)
        command = inject.launch(["sh", "-c", "echo once; exit 3"], stdout=subprocess.PIPE)
        assert (b"once\n", 3) == (command.communicate()[0], command.returncode)
        if command.fd is not None:
            os.close(command.fd)
            break
        assert command.refusal is not None
        assert errno.EAGAIN == command.refusal.errno
    assert step > 10


def helpers(mark: str) -> list[int]:
    """Helper processes that run with ``mark`` in their environment: others on this machine are not ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(inject._HELPER) in words and mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


def disturb(pid: int, number: signal.Signals, delay: float, done: threading.Event, *, to_tracer: bool = True) -> bool:
    """Send a signal to the tracer of a process, or to the process, ``delay`` seconds after it began to be traced.

    :param done: it will not be traced any more.
    :returns: whether the signal was sent.
    """
    status = Path(f"/proc/{pid}/status")
    while not done.is_set():
        tracer = int(status.read_text().partition("TracerPid:")[2].split()[0])
        if tracer:
            end = time.perf_counter() + delay
            while time.perf_counter() < end:
                pass
            with contextlib.suppress(ProcessLookupError):
                os.kill(tracer if to_tracer else pid, number)
            return True
        # Polling without a pause can keep the helper from the CPU.
        time.sleep(5e-5)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("kind", UNAWARE)
def test_a_disturbed_helper_lets_go(directory: Path, kind: str, number: signal.Signals) -> None:
    """Killed or stopped at any instant, the helper leaves a process that goes on as if nothing had been."""
    survived = 0
    with target(directory, kind) as process:
        for _ in range(SOAK or 1):
            done = threading.Event()
            thread = threading.Thread(target=disturb, args=(process.pid, number, random.uniform(0, 1e-3), done))
            thread.start()
            survived += attempt(process)
            done.set()
            thread.join()
            check(process)
    print(f"{kind} {number.name}: {survived} of {SOAK or 1} attempts were over before")


@pytest.mark.parametrize("kind", ["spin", "sleep", "threads"])
def test_a_process_that_is_stopped_meanwhile_stays_so(directory: Path, kind: str) -> None:
    """By SIGSTOP, at any instant, until SIGCONT comes."""
    with target(directory, kind) as process:
        status = Path(f"/proc/{process.pid}/status")
        stops = 0
        for _ in range(SOAK or 10):
            done = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                words = (process.pid, signal.SIGSTOP, random.uniform(0, 1e-3), done)
                stopped = pool.submit(disturb, *words, to_tracer=False)
                attempt(process)
                done.set()
            if stopped.result():
                stops += 1
                assert eventually(lambda: "\nState:\tT (stopped)" in status.read_text())
                os.kill(process.pid, signal.SIGCONT)
            check(process)
        assert stops


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_disturbed_caller_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Killed or stopped at any instant, the caller leaves no tracer, no stopped process and no file descriptor."""
    mark = f"caller-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("KDAMON_TEST_MARK", mark)
    with inject._helper("take") as (_, pid):
        assert eventually(lambda: [pid] == helpers(mark))
    with target(directory, "threads") as process:
        for _ in range(SOAK or 3):
            words = [sys.executable, "-c", CALLER, str(process.pid)]
            with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as caller:
                assert caller.stdout is not None
                caller.stdout.readline()
                time.sleep(random.uniform(0, 0.06))
                caller.send_signal(number)
                check(process)
                caller.kill()
            check(process)
            assert eventually(lambda: not helpers(mark)), helpers(mark)
