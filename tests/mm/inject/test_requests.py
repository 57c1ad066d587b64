# SPDX-License-Identifier: GPL-2.0-only
"""Taking a userfaultfd: the processes that give one, what it is, and those that are refused."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kdamon.mm.inject import gadgets, helper
from kdamon.mm.inject import requests as inject
from kdamon.mm.inject import target as inject_target
from kdamon.mm.inject.budget import StopBudget
from kdamon.mm.inject.requests import inject_madvise, launch, take_userfaultfd
from kdamon.mm.mman import MADV_HUGEPAGE, MADV_NOHUGEPAGE
from tests.support.capabilities import memory_limit, needs_memory_limit
from tests.support.inject_targets import FILTER, SECCOMP, Suspicious, build, leftovers, running, sockets
from tests.support.paths import ROOT
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


NOBODY = 65534

#: 70 threads, of which one does not filter its system calls, or none when there is no such number.
SECCOMP_BUT_ONE = (
    FILTER
    + """
ready = threading.Barrier(70)
def work(number):
    if number != int(sys.argv[1]):
        filter_calls()
    ready.wait()
    if number:
        threading.Event().wait()
def start(number):
    # Each by the one before, which has no filter yet.
    if number < 70:
        threading.Thread(target=lambda: (start(number + 1), work(number)), daemon=True).start()
start(1)
work(0)
print("ready", flush=True)
sys.stdin.read()
"""
)


def refused(number: int, pid: int, words: str, timeout: float = 0.2) -> None:
    """Taking from ``pid`` fails with errno ``number`` and a sentence that has ``words`` in it."""
    with pytest.raises(OSError, match=words) as info:
        take_userfaultfd(pid, timeout)
    assert info.value.errno == number
    assert os.strerror(number) != info.value.strerror


@pytest.fixture
def suspicious(directory: Path) -> Iterator[Suspicious]:
    """A process that checks itself."""
    with Suspicious(build(directory, "inject_target"), "threads") as process:
        yield process


def test_it_is_a_userfaultfd(suspicious: Suspicious) -> None:
    """What comes back is a userfaultfd of ours alone: close-on-exec, non-blocking, with its API chosen."""
    fd = take_userfaultfd(suspicious.pid)
    try:
        assert "anon_inode:[userfaultfd]" == os.readlink(f"/proc/self/fd/{fd}")
        assert not os.get_inheritable(fd)
        assert not os.get_blocking(fd)
        with pytest.raises(OSError) as info:
            os.read(fd, 32)
        assert errno.EAGAIN == info.value.errno
        assert [] == leftovers(suspicious.pid)
    finally:
        os.close(fd)


def test_no_file_descriptor_of_ours_stays(suspicious: Suspicious) -> None:
    """A taken userfaultfd is the only file descriptor more, a refusal leaves none."""
    before = os.listdir("/proc/self/fd")
    os.close(take_userfaultfd(suspicious.pid))
    refused(errno.ESRCH, 2, "kernel thread")
    assert set(os.listdir("/proc/self/fd")) <= set(before)


def test_the_first_thread_may_be_gone() -> None:
    """A process whose first thread ended is as good as any other."""
    script = """
import ctypes, sys, threading
threading.Thread(target=lambda: (print("ready", flush=True), sys.stdin.read())).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        assert eventually(lambda: "State:\tZ" in Path(f"/proc/{process.pid}/status").read_text())
        os.close(take_userfaultfd(process.pid))
        assert [] == leftovers(process.pid)
        process.kill()


def test_another_user_s_process() -> None:
    """A user without capabilities takes it from a process of the same user, and is refused another's.

    A helper program that this user may not read is reported at once, with what to do.
    """
    script = """
import os, sys
from pathlib import Path
from kdamon.mm.inject import requests as inject
from kdamon.mm.inject.budget import StopBudget
inject._HELPER = Path(sys.argv[2])
# The interpreter of these tests may be out of that user's reach.
sys.executable = "/usr/bin/python3"
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.close(inject.take_userfaultfd(int(sys.argv[1])))
"""
    # So may the checkout.
    with tempfile.TemporaryDirectory(prefix="kdamon-test-") as name:
        helper = Path(shutil.copy(inject._HELPER, name))
        for file in (helper, Path(shutil.copy(gadgets.__file__, name))):
            file.chmod(0o644)
        for owner, mode, expected in (
            (NOBODY, 0o755, ""),
            (0, 0o755, "CAP_SYS_PTRACE"),
            (NOBODY, 0o700, "helper.py failed; let this user read it"),
        ):
            Path(name).chmod(mode)
            with subprocess.Popen(["sleep", "30"], user=owner, group=owner, extra_groups=[]) as process:
                taken = subprocess.run(
                    [sys.executable, "-c", script, str(process.pid), str(helper)],
                    cwd=ROOT,
                    stderr=subprocess.PIPE,
                    text=True,
                    check=False,
                )
                process.kill()
            assert (not expected) == (taken.returncode == 0), taken.stderr
            assert expected in taken.stderr
            assert "can't open file" not in taken.stderr


def test_an_interpreter_that_cannot_be_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where it is in another user's home, and this user got there by dropping privileges."""
    python = tmp_path / "python3"
    python.touch(0o644)
    monkeypatch.setattr(sys, "executable", str(python))
    with running("sleep", "30") as pid:
        refused(
            errno.EACCES, pid, f"this user cannot run {python}, which the helper program needs; let this user run it"
        )


def test_refused_gone_and_kernel() -> None:
    """Ended processes, kernel threads, threads by themselves, process 1 and the caller have nothing to take."""
    with subprocess.Popen(["true"]) as process:
        assert eventually(lambda: "State:\tZ" in Path(f"/proc/{process.pid}/status").read_text())
        refused(errno.ESRCH, process.pid, "ended")
    refused(errno.ESRCH, process.pid, "ended")
    refused(errno.ESRCH, 2, "kernel thread")
    refused(errno.EPERM, 1, "process 1")
    refused(errno.EOPNOTSUPP, os.getpid(), "own memory")


def test_refused_a_thread(suspicious: Suspicious) -> None:
    """The number of a thread that is not the first one names no process."""
    tid = max(int(name) for name in os.listdir(f"/proc/{suspicious.pid}/task"))
    refused(errno.ESRCH, tid, f"thread of process {suspicious.pid}")


def test_refused_stopped() -> None:
    """A stopped process stays stopped, and can be taken from when it goes on."""
    with running("sleep", "30") as pid:
        os.kill(pid, signal.SIGSTOP)
        assert eventually(lambda: "State:\tT" in Path(f"/proc/{pid}/status").read_text())
        refused(errno.EBUSY, pid, "stopped")
        assert "State:\tT" in Path(f"/proc/{pid}/status").read_text()
        os.kill(pid, signal.SIGCONT)
        assert eventually(lambda: "State:\tS" in Path(f"/proc/{pid}/status").read_text())
        os.close(take_userfaultfd(pid))


def test_refused_another_thread() -> None:
    """A process that may not have a thread more, by its limit of tasks, gets that reason and goes on."""
    words = ["prlimit", "--nproc=0", "sleep", "30"]
    with subprocess.Popen(words, user=NOBODY, group=NOBODY, extra_groups=[]) as process:
        assert eventually(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        try:
            refused(errno.EAGAIN, process.pid, "one thread more")
            assert [] == leftovers(process.pid)
            assert eventually(lambda: "State:\tS" in Path(f"/proc/{process.pid}/status").read_text())
        finally:
            process.kill()


def test_refused_traced() -> None:
    """A process that another one traces is left to that one."""
    seize = "import ctypes, sys; print(ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), 0, 0), flush=True); input()"
    with running("sleep", "30") as pid:
        words = [sys.executable, "-c", seize, str(pid)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tracer:
            assert tracer.stdout is not None
            assert b"0\n" == tracer.stdout.readline()
            refused(errno.EBUSY, pid, f"traced by process {tracer.pid}")
            tracer.kill()


def test_several_at_once(suspicious: Suspicious) -> None:
    """A caller waits while another one is at work."""

    def take() -> None:
        for _ in range(4):
            os.close(take_userfaultfd(suspicious.pid, 20))

    def advise() -> None:
        for advice in (MADV_HUGEPAGE, MADV_NOHUGEPAGE) * 4:
            inject_madvise(suspicious.pid, [(0x10000, 0x11000)], advice, lambda: True, 20)

    before = sockets()
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(what) for what in (take, take, advise, advise)]:
            done.result()
    assert [] == leftovers(suspicious.pid)
    # Helpers for further advice end when none comes.
    assert eventually(lambda: sockets() <= before)


def test_refused_seccomp() -> None:
    """A process that filters its system calls might be killed for ours."""
    with subprocess.Popen([sys.executable, "-c", SECCOMP], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        refused(errno.EPERM, process.pid, "seccomp")


def test_refused_syscall_user_dispatch() -> None:
    """Where the program blocks system calls, as Wine does beside code for Windows, one more would be its end."""
    script = """
import ctypes, sys
selector = ctypes.c_char(0)
PR_SET_SYSCALL_USER_DISPATCH, ON = 59, 1
assert ctypes.CDLL(None).prctl(PR_SET_SYSCALL_USER_DISPATCH, ON, 0, 0, ctypes.byref(selector)) == 0
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        refused(errno.EPERM, process.pid, "dispatches system calls")
        assert [] == leftovers(process.pid)


@contextlib.contextmanager
def memory_group() -> Iterator[tuple[Path, str, str]]:
    """A control group that can limit memory: its directory, and its files for the limit and for what is used."""
    found = memory_limit()
    assert found is not None
    files, mounted = found
    directory = Path(mounted, f"kdamon-test-{os.getpid()}")
    directory.mkdir()
    try:
        yield directory, *files
    finally:
        assert eventually(lambda: not (directory / "cgroup.procs").read_text())
        directory.rmdir()


@needs_memory_limit
def test_refused_without_memory_for_a_thread() -> None:
    """The kernel would kill a process of its control group for the second thread."""
    script = "print('ready', flush=True); input(); kept = b'x' * (8 << 20); print('ready', flush=True); input()"
    with (
        memory_group() as (directory, limit, usage),
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert b"ready\n" == process.stdout.readline()
            (directory / "cgroup.procs").write_text(str(process.pid))
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert b"ready\n" == process.stdout.readline()
            (directory / limit).write_text(str(int((directory / usage).read_text()) + (64 << 10)))
            refused(errno.EBUSY, process.pid, "used up the memory of its control group")
            (directory / limit).write_text(str(1 << 30))
            os.close(take_userfaultfd(process.pid))
            assert [] == leftovers(process.pid)
        finally:
            process.kill()


@pytest.mark.parametrize("free", [0, 35, 69, 70])
def test_one_thread_without_a_filter_is_enough(free: int) -> None:
    """Wherever it is among the others."""
    with subprocess.Popen(
        [sys.executable, "-c", SECCOMP_BUT_ONE, str(free)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        if free == 70:
            refused(errno.EPERM, process.pid, "seccomp")
        else:
            os.close(take_userfaultfd(process.pid))
        assert [] == leftovers(process.pid)
        process.kill()


def test_a_process_whose_threads_end_at_once_has_not_ended(directory: Path) -> None:
    """It is tried again for the time that there is."""
    with Suspicious(build(directory, "inject_stacks", "-Wl,-z,now"), "threads_short") as process:
        for timeout in (0.0, 0.3):
            try:
                os.close(take_userfaultfd(process.pid, timeout))
            except OSError as error:
                assert errno.EBUSY == error.errno, error


def elf(bits: int, machine: int, code: bytes, base: int = 0x400000, note: bytes = b"") -> bytes:
    """A program of one segment that runs ``code``; ``note`` gets a segment header of its own."""
    wide = bits == 64
    size, entry_size, count = (64, 56, 2) if wide else (52, 32, 2)
    start = size + entry_size * count
    length = start + len(code) + len(note)
    head = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    address = "QQQ" if wide else "III"
    head += struct.pack(
        "<HHI" + address + "I6H", 2, machine, 1, base + start, size, 0, 0, size, entry_size, count, *(0, 0, 0)
    )
    at = start + len(code)
    if wide:
        head += struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, length, length, 4096)
        head += struct.pack("<IIQQQQQQ", 4, 4, at, base + at, base + at, len(note), len(note), 4)
    else:
        head += struct.pack("<8I", 1, 0, base, base, length, length, 5, 4096)
        head += struct.pack("<8I", 4, at, base + at, base + at, len(note), len(note), 4, 4)
    return head + code + note


#: pause() and again, for 64 and for 32 bits.
PAUSE_64 = b"\xb8\x22\0\0\0\x0f\x05\xeb\xf7"
PAUSE_32 = b"\xb8\x1d\0\0\0\xcd\x80\xeb\xf7"
GO_NOTE = struct.pack("<III4s8s", 4, 8, 4, b"Go\0\0", b"build-id")


def program_of(directory: Path, content: bytes) -> Path:
    """Make a program file."""
    path = directory / "made"
    path.write_bytes(content)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("number", "words", "content"),
    [
        (errno.EOPNOTSUPP, "64-bit", elf(32, 3, PAUSE_32)),
        (errno.EOPNOTSUPP, "Go program", elf(64, 62, PAUSE_64, note=GO_NOTE)),
        (errno.EOPNOTSUPP, "no code to return from signals", elf(64, 62, PAUSE_64)),
    ],
    ids=["32-bit", "Go", "bare"],
)
def test_refused_programs(tmp_path: Path, number: int, words: str, content: bytes) -> None:
    """32-bit programs, Go programs and those without any C library are left alone."""
    program = program_of(tmp_path, content)
    try:
        process = subprocess.Popen([program])
    except OSError as error:
        assert errno.ENOEXEC == error.errno
        pytest.skip("kernel lacks: programs of 32 bits")
    with process:
        try:
            refused(number, process.pid, words)
        finally:
            process.kill()


def test_go_is_known_by_its_build_information(tmp_path: Path) -> None:
    """What Go leaves in the data of stripped programs gives it away."""
    for code, go in ((PAUSE_64, False), (PAUSE_64 + b"\xff Go buildinf:", True)):
        # A segment that may be written.
        content = elf(64, 62, code).replace(struct.pack("<II", 1, 5), struct.pack("<II", 1, 7), 1)
        with program_of(tmp_path, content).open("rb") as file:
            assert gadgets.is_go(file.fileno(), content[:64]) == go


def test_refused_a_shadow_stack() -> None:
    """A thread with a shadow stack, as its status shows it, is left alone."""
    status = {"TracerPid": "0", "State": "S (sleeping)", "Seccomp": "0", "x86_Thread_features": "shstk wrss"}
    with pytest.raises(OSError, match="shadow stack"):
        inject_target._check_thread(1, status)


def test_refused_another_stack() -> None:
    """A thread on a stack of the program's making is left alone: something may live right below."""
    script = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
room = ctypes.create_string_buffer(1 << 16)
class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
assert libc.sigaltstack(ctypes.byref(Stack(ctypes.addressof(room), 0, len(room))), None) == 0
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: (print("ready", flush=True), sys.stdin.read()))
class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int)]
SA_ONSTACK = 0x08000000
action = Action(ctypes.cast(handler, ctypes.c_void_p), (ctypes.c_ulong * 16)(), SA_ONSTACK)
libc.sigaction(signal.SIGUSR1, ctypes.byref(action), None)
libc.kill(os.getpid(), signal.SIGUSR1)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        refused(errno.EBUSY, process.pid, "signal stack")
        assert [] == leftovers(process.pid)
        process.kill()


def test_refused_in_the_middle_of_a_write() -> None:
    """A write that waits for its reader would come back short; it is complete and the process is left alone."""
    script = "import os; os.write(1, b'x' * 200000) == 200000 or os._exit(1)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert eventually(lambda: Path(f"/proc/{process.pid}/syscall").read_text().startswith("1 "))
        refused(errno.EBUSY, process.pid, "in the middle of a transfer")
        assert process.stdout is not None
        assert 200000 == len(process.stdout.read())
    assert 0 == process.returncode


def test_launch_is_a_child_as_any_other(directory: Path) -> None:
    """A launched command has our streams, its environment, its exit status, and its userfaultfd is ours."""
    with launch(
        ["sh", "-c", "read a; echo $a $B; exit 3"], env={"B": "b"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as command:
        assert command.refusal is None
        assert command.fd is not None
        assert "anon_inode:[userfaultfd]" == os.readlink(f"/proc/self/fd/{command.fd}")
        assert eventually(lambda: leftovers(command.pid) == [])
        assert (b"a b\n", None) == command.communicate(b"a\n")
    os.close(command.fd)
    assert 3 == command.returncode


@pytest.mark.parametrize("flags", [(), ("-static",), ("-no-pie",)], ids=["dynamic", "static", "no-pie"])
def test_launch_programs(directory: Path, flags: tuple[str, ...]) -> None:
    """Every kind of program starts with nothing changed."""
    program = build(directory, "inject_target" + "".join(flags), *flags)
    command = launch([str(program), "spin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert command.refusal is None
    assert command.fd is not None
    os.close(command.fd)
    assert command.stdout is not None
    assert b"ready\n" == command.stdout.readline()
    assert b"good\n" == command.communicate()[0]
    assert 0 == command.returncode


def test_launch_starts_with_nothing_but_its_own(tmp_path: Path) -> None:
    """A script sees three file descriptors, default signals, no mask, and our process group as its own."""
    script = program_of(tmp_path, b"#!/bin/sh\ngrep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l\n")
    outputs = []
    for command in (launch([str(script)], stdout=subprocess.PIPE), subprocess.Popen([script], stdout=subprocess.PIPE)):
        assert os.getpgid(command.pid) == os.getpgid(0)
        outputs.append(command.communicate()[0])
        if fd := getattr(command, "fd", None):
            os.close(fd)
    assert outputs[0] == outputs[1] != b""


@pytest.mark.parametrize(("name", "kind"), [("no-such-command", FileNotFoundError), ("/etc/passwd", PermissionError)])
def test_launch_fails_as_popen(name: str, kind: type[OSError]) -> None:
    """The error is that of subprocess, and nothing is left."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(kind) as info:
        launch([name])
    assert info.value.filename == name
    # A helper of an earlier call may end meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= set(before)


def test_launch_refusals(tmp_path: Path) -> None:
    """A command that cannot be taken from runs nevertheless, and says why; a Go program can be."""
    command = launch([str(program_of(tmp_path, elf(64, 62, PAUSE_64, note=GO_NOTE)))])
    # It has no C library, but at exec [vdso] is enough.
    assert command.fd is not None
    os.close(command.fd)
    command.kill()
    command.wait()
    try:
        command = launch([str(program_of(tmp_path, elf(32, 3, PAUSE_32)))])
    except OSError as error:
        assert errno.ENOEXEC == error.errno
        pytest.skip("kernel lacks: programs of 32 bits")
    assert command.fd is None
    assert command.refusal is not None
    assert errno.EOPNOTSUPP == command.refusal.errno
    command.kill()
    assert -signal.SIGKILL == command.wait()


def test_no_room_for_the_file_descriptor_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this process ran out of files just before the helper sent it: EMFILE, after which it is tried again."""
    answer = inject._stopping_answer
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def answer_without_files(*words: Any) -> Any:
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            return answer(*words)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    monkeypatch.setattr(inject, "_stopping_answer", answer_without_files)
    with running("sleep", "60") as pid:
        with pytest.raises(OSError, match="too many open files") as info:
            take_userfaultfd(pid)
        assert errno.EMFILE == info.value.errno
        assert eventually(lambda: leftovers(pid) == [])


@pytest.mark.parametrize(
    ("cpu_seconds", "expected"), [(0.0, 1), (0.05, 1), (0.19, 1), (0.21, 2), (0.65, 6), (0.85, 8), (9.0, 8)]
)
def test_a_slow_machine_may_hold_a_thread_longer(cpu_seconds: float, expected: int) -> None:
    """In quarters of a second, by the CPU time that the helper takes to begin."""
    assert expected == helper._factor(cpu_seconds)


def test_time_on_a_slow_machine_counts() -> None:
    """As long as the helper may hold a thread there."""
    for most, refused in ((0.25, False), (0.5, True)):
        budget = StopBudget(seconds=0.3)
        with budget.spending(os.getpid(), most):
            time.sleep(0.35)
        if not refused:
            budget.check(os.getpid())
            continue
        with pytest.raises(OSError, match=r"was stopped for 0\.[34] s in the last minute") as caught:
            budget.check(os.getpid())
        assert errno.EBUSY == caught.value.errno
