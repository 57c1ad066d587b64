# SPDX-License-Identifier: GPL-2.0-only
"""What a process can do that is made to call the kernel, and means harm: nothing but be refused.

Each attack is a real one, by a process of another user.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kdamon.lib.helpers import LostHelpers
from kdamon.mm.inject import helper as inject_helper
from kdamon.mm.inject import requests as inject
from kdamon.mm.inject.requests import inject_madvise, take_userfaultfd
from kdamon.mm.linux import machine as linux
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.mman import MADV_HUGEPAGE
from tests.support.inject_targets import build, leftovers
from tests.support.paths import SUPPORT
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


NOBODY = 65534
#: Seconds for an attacker to be fast enough once: on a busy machine it seldom is.
PATIENCE_S = 150
#: Seconds after which another attacker may have better luck with its processor.
ANOTHER_S = 20
USERFAULTFD = "anon_inode:[userfaultfd]"


@contextlib.contextmanager
def as_nobody(*command: str | Path, cwd: Path, wanted: int = NOBODY) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """A process of another user in a directory of its own, and what it says first; it is killed in the end."""
    with subprocess.Popen(
        command, user=wanted, group=wanted, extra_groups=[], cwd=cwd, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


class Hostile:
    """A running ``inject_hostile``.

    :param start: starts one more, and returns its pid.
    :param hits: the file in which it counts how often it answered in place of the kernel.
    """

    def __init__(self, start: Callable[[], int], hits: Path) -> None:
        self._start = start
        self._hits = hits
        self.pid = start()

    def hits(self) -> int:
        return int.from_bytes(self._hits.read_bytes()[:4], "little")

    def provoke(self, attempt: Callable[[int], None]) -> OSError:
        """Try ``attempt`` on it until it answered in place of the kernel; returns how that was refused."""
        refusal: OSError | None = None
        give_up = time.monotonic() + PATIENCE_S
        again = time.monotonic() + ANOTHER_S
        while time.monotonic() < give_up:
            if time.monotonic() > again:
                again += ANOTHER_S
                self.pid = self._start()
            before = self.hits()
            refusal = None
            try:
                attempt(self.pid)
            except OSError as error:
                refusal = error
            if self.hits() == before:
                late = refusal is not None and "filters its system calls" in str(refusal)
                if late or (refusal is not None and refusal.errno == errno.ESRCH):
                    # There is no way back from that; or it ended by what it does.
                    self.pid = self._start()
                continue
            assert refusal is not None, "it answered, and was believed"
            return refusal
        raise AssertionError(f"it never answered; the last attempt: {refusal}")


@pytest.fixture
def hostile(directory: Path) -> Iterator[Callable[[str, str], Hostile]]:
    """Starts ``inject_hostile``."""
    program = build(directory, "inject_hostile", "-no-pie")
    own = Path(tempfile.mkdtemp(dir=directory))
    os.chown(own, NOBODY, NOBODY)
    with contextlib.ExitStack() as stack:

        def start(how: str, what: str) -> int:
            process, line = stack.enter_context(as_nobody(program, how, what, cwd=own))
            assert line, f"it ended: {process.wait()}"
            return int(line)

        yield lambda how, what: Hostile(lambda: start(how, what), own / "hits")


def take(pid: int) -> None:
    """Take a userfaultfd, which must be none but that."""
    fd = take_userfaultfd(pid, 0.2)
    # Not closed where it is none: that may take an hour.
    assert USERFAULTFD == os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)


@pytest.mark.parametrize(("how", "what"), [("text", "socket"), ("text", "other"), ("seccomp", "socket")])
def test_another_file_is_not_taken_for_a_userfaultfd(
    hostile: Callable[[str, str], Hostile], how: str, what: str
) -> None:
    """Neither a socket whose close() waits for an hour nor the userfaultfd of another process."""
    process = hostile(how, what)
    refusal = process.provoke(take)
    assert errno.EPERM == refusal.errno
    assert "it interferes with injected system calls; monitor it by page_table instead" in str(refusal)
    own = [USERFAULTFD] if what == "other" else []
    assert eventually(lambda: own == leftovers(process.pid))


def test_an_errno_that_the_kernel_does_not_have_is_not_passed_on(hostile: Callable[[str, str], Hostile]) -> None:
    """No answer of the tree may have one: a mount drops such answers, and the caller would wait for ever."""
    process = hostile("seccomp", "errno")
    assert errno.EPERM == process.provoke(take).errno


def test_advice_is_not_taken_by_another_call(hostile: Callable[[str, str], Hostile]) -> None:
    """What a process makes of madvise() is no advice."""
    process = hostile("text", "socket")
    refusal = process.provoke(
        lambda pid: inject_madvise(pid, [(0x400000, 0x401000)], MADV_HUGEPAGE, lambda: True) and None
    )
    assert errno.EPERM == refusal.errno
    assert "it interferes with injected system calls; use another action" in str(refusal)


def test_an_address_that_is_none_is_not_the_helpers_failure(hostile: Callable[[str, str], Hostile]) -> None:
    """A process may say anything of where it is; the helper does not end of that."""
    try:
        take(hostile("rseq", "socket").pid)
    except OSError as error:
        # It may also end, of its own doing.
        assert "the helper program" not in str(error)


def test_it_cannot_be_monitored_by_page_fault(
    hostile: Callable[[str, str], Hostile], faulting: LinuxMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as the tree and ``kdamon run`` see it, and what was open for it is closed again."""
    # It is not asked a second time, as a program is that may just be loaded.
    monkeypatch.setattr(linux, "_EXECS", 0)
    process = hostile("text", "socket")
    before = set(os.listdir("/proc/self/fd"))

    def refused() -> bool:
        try:
            faulting.get_task(process.pid, "page_fault").put()
        except OSError as error:
            assert errno.EPERM == error.errno
            return True
        return False

    assert eventually(refused)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_what_is_no_userfaultfd_is_not_asked_for_its_api() -> None:
    """The helper looks at a file's name first: what an ioctl does to a file that is another's is not known."""
    with open(os.devnull, "rb") as file, pytest.raises(inject_helper._Changed):
        inject_helper._with_api(file.fileno())


@pytest.mark.parametrize("call", ["take", "advise"])
def test_code_that_is_never_read_is_not_waited_for(directory: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Code on a FUSE file system that never answers holds a helper, which is lost, and not kdamon."""
    monkeypatch.setattr(inject, "_PATIENCE", 2.0)
    lost = LostHelpers()
    monkeypatch.setattr(inject, "_lost", lost)
    script = SUPPORT / "silent_fuse.py"
    mounted = tempfile.mkdtemp(dir=directory)
    with as_nobody(sys.executable, script, mounted, str(NOBODY), cwd=directory, wanted=0) as (process, line):
        assert b"ready\n" == line
        with pytest.raises(OSError, match=r"could not be read in .* on a file system that does not answer") as info:
            if call == "take":
                take(process.pid)
            else:
                inject_madvise(process.pid, [(0x400000, 0x401000)], MADV_HUGEPAGE, lambda: True)
        assert errno.EBUSY == info.value.errno
        assert 1 == len(lost)
    # Its end frees the helper.
    assert eventually(lambda: not lost)


def waits_for_a_file_system() -> bool:
    """Return whether a helper of this process does."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The names of other processes may be any bytes.
            parent = (process / "stat").read_bytes().rpartition(b")")[2].split()[1]
            if int(parent) == os.getpid() and (process / "wchan").read_text() == "request_wait_answer":
                return True
    return False


def test_a_process_that_is_waited_for_holds_up_no_other(
    directory: Path, faulting: LinuxMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is begun and ended with while the helper still waits for the first one's code."""
    monkeypatch.setattr(inject, "_PATIENCE", 3600)
    script = SUPPORT / "silent_fuse.py"
    mounted = tempfile.mkdtemp(dir=directory)
    with (
        ThreadPoolExecutor() as threads,
        as_nobody(sys.executable, script, mounted, str(NOBODY), cwd=directory, wanted=0) as (process, line),
    ):
        assert b"ready\n" == line
        waiting = threads.submit(lambda: faulting.get_task(process.pid, "page_fault").put())
        assert eventually(waits_for_a_file_system)
        with subprocess.Popen(["sleep", "60"]) as other:
            faulting.get_task(other.pid, "page_fault").put()
            other.kill()
        assert not waiting.done()
        process.kill()
        assert eventually(waiting.done)


def test_not_many_helpers_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once some wait for what never comes, no more are started, and it is said what to do."""
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as target:
        lost = LostHelpers(1)
        lost.add(one)
        monkeypatch.setattr(inject, "_lost", lost)
        with pytest.raises(OSError, match=r"helper processes still wait .*; end those processes first") as info:
            take(target.pid)
        assert errno.EBUSY == info.value.errno
        one.kill()
        one.wait()
        take(target.pid)
        target.kill()
