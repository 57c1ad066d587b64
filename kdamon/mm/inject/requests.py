# SPDX-License-Identifier: GPL-2.0-only
"""Takes a userfaultfd from a running process or from a new command, and makes a process call madvise(2).

userfaultfd(2) and, for some advice, madvise(2) work on the calling process only. So a short-lived helper process stops
a thread of the target, which runs the call for kdamon (:mod:`kdamon.mm.inject.helper` explains why that is safe). All
checks that need no stopped thread are made here first, and so are the refusals.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import platform
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeVar

from kdamon.lib.helpers import LostHelpers, python, start_helper
from kdamon.lib.rights import needs_linux
from kdamon.mm.inject.budget import HOLD, StopBudget
from kdamon.mm.inject.target import Momentary, Target
from kdamon.mm.proc.pid_namespace import in_first_pid_namespace

__all__ = ["Launched", "inject_madvise", "launch", "take_userfaultfd"]

_HELPER: Final = Path(__file__).with_name("helper.py")

#: Seconds after which kdamon gives the helper up; its own timer ended it long before, unless it waits for the file
#: system of a process's program or memory.
_PATIENCE: Final = 10.0
#: Seconds that a killed process may need to end.
_DYING: Final = 1.0
#: Ranges that are advised at one stop: together about as long as the stop itself takes.
_AT_ONCE: Final = 8
#: Seconds for which a process runs between two stops.
_BETWEEN: Final = 0.005
#: An answer begins with this, and not with the byte that the helper sends before it stops a thread.
_OBJECT: Final = b"{"
#: Seconds that a helper may take to end.
_END: Final = 0.5
#: Seconds between two attempts, at first; each pause is twice as long as the last one, up to the second number.
_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.64

#: How SCM_RIGHTS gives a file descriptor.
_FD: Final = struct.Struct("i")
_PIDFD_THREAD: Final = os.O_EXCL
_KILLED: Final = "the helper process was killed, perhaps by its own timer since the machine is busy"
_INSTEAD: Final = "monitor it by page_table instead"
_OTHERWISE: Final = "use another action"

_Result = TypeVar("_Result")
#: Errno and reason for each thread that cannot be used.
_Unsuitable = dict[int, tuple[int, str]]


#: The stops of all processes by this one.
_budget: Final = StopBudget()


def take_userfaultfd(pid: int, timeout: float = 5.0, valid: Callable[[], bool] = lambda: True) -> int:
    """Take a userfaultfd of the present address space of process ``pid``.

    It is O_CLOEXEC, O_NONBLOCK, UFFD_USER_MODE_ONLY, and has its API chosen: with asynchronous write protection, and
    with asynchronous read-write protection where the kernel has that (Linux 7.3). It is one of that address space,
    whatever the process does meanwhile; the process keeps none, and it is gone when the last copy of ours is closed.
    One thread of the process stands still for about half a millisecond; whatever happens to us meanwhile, it goes on
    within a quarter of a second, or on a slow machine within up to two.

    :param timeout: seconds after which a process whose threads cannot be stopped right now is given up. What does not
        change meanwhile is not waited for.
    :param valid: whether the process that is meant still has the number, asked once what is stopped cannot be another.
    :raises OSError: ESRCH it ended or has no memory; EPERM no right to trace it, or it filters its system calls or
        changes those that it is to make; EBUSY it is traced, stopped, frozen, out of memory, none of its threads can be
        stopped, or was for long enough, or its program cannot be read in time; EOPNOTSUPP the kernel is too old, or it
        is no x86-64 program, a Go program or one with a shadow stack; EAGAIN it may not have another thread.
    """
    return _patiently(pid, timeout, functools.partial(_take, pid, valid))


def inject_madvise(
    pid: int, ranges: Sequence[tuple[int, int]], advice: int, valid: Callable[[], bool], timeout: float = 0.5
) -> int:
    """Make process ``pid`` call madvise(2) for ranges of its own memory.

    One thread of it stands still for about a millisecond for every 8 ranges. A change of the program in the middle is
    no error: the remaining calls are not made.

    :param ranges: (start, end) of each, page-aligned bytes.
    :param advice: a MADV_ constant; only such that never wait for a disk.
    :param valid: whether the process still has the memory that ``ranges`` are about, asked once it cannot be mistaken
        for another one any more.
    :param timeout: as for :func:`take_userfaultfd`.
    :returns: how many of ``ranges`` were taken.
    :raises OSError: as for :func:`take_userfaultfd`; EOPNOTSUPP the kernel does not know the advice.
    """
    left = list(ranges)
    taken: list[int] = []

    def advise(unsuitable: _Unsuitable) -> None:
        _advise(pid, left, taken, advice, valid, unsuitable=unsuitable)

    while left:
        try:
            _patiently(pid, timeout, advise)
        except OSError as error:
            what, semicolon, remedy = str(error.strerror).partition("; ")
            remedy = _OTHERWISE if "page_table" in remedy else remedy
            raise OSError(error.errno, f"{what}{semicolon}{remedy}") from error
    return sum(taken)


def _patiently(pid: int, timeout: float, attempt: Callable[[_Unsuitable], _Result]) -> _Result:
    """Try until it works, it cannot work, or ``timeout`` seconds have passed."""
    _check_machine()
    if pid == os.getpid():
        raise OSError(errno.EOPNOTSUPP, "kdamon cannot stop itself to work on its own memory; name another process")
    # In a container it is a process like others.
    if pid == 1 and in_first_pid_namespace():
        raise OSError(errno.EPERM, "process 1 keeps the system alive and is never stopped; name another process")
    deadline = time.monotonic() + timeout
    pause = _PAUSE
    unsuitable: _Unsuitable = {}
    why = ""
    while True:
        _budget.check(pid, why)
        try:
            return attempt(unsuitable)
        except Momentary as error:
            refusal: OSError = error
            pause = _PAUSE
        except _Again as error:
            why = str(error)
            refusal = OSError(errno.EBUSY, f"process {pid} cannot be stopped safely ({why}); try again later")
            if error.unsuitable:
                unsuitable |= error.unsuitable
                # Where there is no other thread, nothing is to be waited for.
                with contextlib.suppress(Momentary), contextlib.ExitStack() as stack:
                    _target(pid, stack, unsuitable)
        if time.monotonic() >= deadline:
            raise refusal
        time.sleep(pause)
        # Each attempt may begin a timeout of the process anew.
        pause = min(2 * pause, _LONGEST_PAUSE)


class _Again(Exception):
    """The attempt failed; another one may succeed.

    :param unsuitable: threads that make no sense to be tried again.
    """

    def __init__(self, why: str, unsuitable: _Unsuitable | None = None) -> None:
        super().__init__(why)
        self.unsuitable = unsuitable or {}


def _target(pid: int, stack: contextlib.ExitStack, unsuitable: _Unsuitable) -> Target:
    """The refusal of a process of which some threads were tried in vain."""
    target = Target(pid, stack, unsuitable)
    if not target.tids:
        number, why = next(iter(unsuitable.values()))
        which = f"thread {next(iter(unsuitable))}: {why}"
        more = f"; {len(unsuitable) - 1} more" if len(unsuitable) > 1 else ""
        raise OSError(number, f"process {pid} cannot be stopped safely ({which}{more}); {_INSTEAD}")
    return target


def _check_machine() -> None:
    if platform.machine() != "x86_64" or sys.maxsize < 1 << 32:
        raise OSError(errno.EOPNOTSUPP, f"other processes can be made to run system calls on x86-64 only; {_INSTEAD}")
    try:
        os.close(os.pidfd_open(os.getpid(), _PIDFD_THREAD))
    except OSError as error:
        raise OSError(
            errno.EOPNOTSUPP, f"the kernel has no file descriptors for threads; {needs_linux('6.9')}, or {_INSTEAD}"
        ) from error


def _take(pid: int, valid: Callable[[], bool], unsuitable: _Unsuitable) -> int:
    with contextlib.ExitStack() as stack:
        target = _target(pid, stack, unsuitable)
        if not valid():
            raise OSError(errno.ESRCH, f"process {pid} ended")
        channel, _ = stack.enter_context(_helper("take"))
        # The job is worked out while it starts.
        _give(channel, target.job(), target.memory, target.directory)
        answer, fd = _stopping_answer(channel, pid)
    _check_answer(pid, answer)
    assert fd is not None
    return fd


def _advise(
    pid: int,
    left: list[tuple[int, int]],
    taken: list[int],
    advice: int,
    valid: Callable[[], bool],
    *,
    unsuitable: _Unsuitable,
) -> None:
    """Have ranges advised, until all are or something changed that must be known of the process.

    :param left: the ranges; those that were dealt with are removed.
    :param taken: how many of them were taken at each stop is appended.
    """
    with contextlib.ExitStack() as stack:
        target = _target(pid, stack, unsuitable)
        job = target.job()
        kept = True
        while left and kept:
            _budget.check(pid)
            if not valid():
                raise OSError(errno.ESRCH, f"process {pid} ended or began another program; nothing is left to advise")
            answer = _ask_adviser(job | {"ranges": left[:_AT_ONCE], "advice": advice}, target)
            _check_answer(pid, answer)
            job["code"] = answer["code"]
            if not answer["taken"] and answer["refusal"] == errno.EINVAL:
                raise OSError(errno.EOPNOTSUPP, f"this kernel does not support that advice; {_OTHERWISE}")
            taken.append(answer["taken"])
            del left[:_AT_ONCE]
            kept = answer["kept"]
            if left:
                time.sleep(_BETWEEN)


class _Adviser:
    """A helper process that advises and can be reused: starting one takes far longer than a job."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            self.channel, self._pid = stack.enter_context(_helper("advise"))
            threading.Thread(target=self._bury, name="kdamon-helper", daemon=True).start()
            #: Ends it.
            self.end = stack.pop_all()

    def _bury(self) -> None:
        """Leave nothing of it when it ended because no job came for some time."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        # Only the thread that takes it from the list may use it.
        with contextlib.suppress(ValueError):
            _idle.remove(self)
            self.end.close()


#: Those that have no job.
_idle: Final[list[_Adviser]] = []
# A child process has its own, as otherwise it would get our answers.
os.register_at_fork(after_in_child=_idle.clear)


def _ask_adviser(job: dict[str, Any], target: Target) -> dict[str, Any]:
    """Have a helper process advise; it is kept for another job if it may get one."""
    try:
        adviser = _idle.pop()
    except IndexError:
        adviser = _Adviser()
    with contextlib.ExitStack() as stack:
        stack.push(adviser.end)
        _give(adviser.channel, job, target.memory, target.directory)
        answer, _ = _stopping_answer(adviser.channel, job["pid"])
        if answer.get("kept"):
            stack.pop_all()
            _idle.append(adviser)
    return answer


def _check_answer(pid: int, answer: dict[str, Any]) -> None:
    if answer.get("again"):
        unsuitable = answer["unsuitable"].items()
        raise _Again(answer["why"], {int(tid): (number, why) for tid, (number, why) in unsuitable})
    if answer["errno"]:
        raise OSError(answer["errno"], f"process {pid}: {answer['why']}")


class Launched(subprocess.Popen[bytes]):
    """A command that :func:`launch` started: a child as any other, and the userfaultfd of its first program."""

    #: The userfaultfd, the caller's to close; None when it was refused.
    fd: int | None = None
    #: Why it was refused; the command runs nevertheless.
    refusal: OSError | None = None


def launch(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
) -> Launched:
    """Start a command and take its userfaultfd before its first instruction.

    Another program that it calls exec() for (a wrapper script, env) has another address space:
    :func:`take_userfaultfd` is for that.

    :param argv: program, looked up in PATH of ``env``, and arguments.
    :param env: environment, ours when None.
    :param stdin, stdout, stderr: as for :class:`subprocess.Popen`.
    :raises OSError: what exec() of it failed with, as :class:`subprocess.Popen`.
    """
    order = _Order(
        list(argv), dict(os.environ if env is None else env), {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    )
    try:
        _check_machine()
        _check_privileges(order)
    except OSError as refusal:
        return order.start_untraced(refusal)
    ours, its = socket.socketpair()
    with ours:
        with _helper("launch") as (helper, tracer):
            with its:
                words = python(str(_HELPER), "exec", str(its.fileno()), str(tracer))
                command = Launched(words, pass_fds=(its.fileno(),), **order.streams)
            command.args = order.argv
            try:
                _start_traced(command, ours, helper, order)
                return command
            except _Again as error:
                failure = OSError(errno.EAGAIN, f"{argv[0]}: {error}; take it from the running command")
        # The helper is dead by now, and so is a command that it held: that has not begun. Any other one runs.
        command.refusal = failure
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(_DYING)
        return order.start_untraced(failure) if command.returncode == -signal.SIGKILL else command


class _Order(NamedTuple):
    """The command to start."""

    argv: list[str]
    env: dict[str, str]
    streams: dict[str, Any]

    def start_untraced(self, refusal: OSError) -> Launched:
        command = Launched(self.argv, env=self.env, **self.streams)
        command.refusal = refusal
        return command


def _start_traced(command: Launched, channel: socket.socket, helper: socket.socket, order: _Order) -> None:
    """Let ``command``, which waits for that by ``channel``, start while the helper looks on."""
    try:
        if channel.recv(1) != b"r":
            raise _Again("the command could not be prepared")
        _give(helper, {"pid": command.pid})
        answer, _ = _answer(helper)
    except _Again:
        command.kill()
        raise
    _give(channel, {"argv": order.argv, "env": order.env})
    # It is closed by exec.
    failure = channel.recv(1 << 16)
    if failure:
        command.wait()
        number = json.loads(failure)["errno"]
        raise OSError(number, os.strerror(number), order.argv[0])
    if answer["errno"] == 0:
        answer, command.fd = _answer(helper)
    if command.fd is None:
        command.refusal = OSError(answer["errno"], f"{order.argv[0]}: {answer['why']}")


def _check_privileges(order: _Order) -> None:
    """Refuse a program that gains privileges by exec(): it would not gain them while an unprivileged process traces."""
    path = shutil.which(order.argv[0], path=os.pathsep.join(os.get_exec_path(order.env)))
    if path is None or os.geteuid() == 0:
        return
    if os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID) or "security.capability" in os.listxattr(path):
        raise OSError(errno.EPERM, f"{order.argv[0]} runs with other rights than ours; run as root")


@contextlib.contextmanager
def _helper(verb: str) -> Iterator[tuple[socket.socket, int]]:
    """A helper process: the socket to it and its pid; it is gone afterwards.

    It has a session of its own: what a terminal sends to us (Ctrl-C, Ctrl-Z) is not for it.
    """
    ours, its = socket.socketpair()
    with ours:
        with its:
            process = _start(verb, its.fileno())
        ours.settimeout(_PATIENCE)
        try:
            yield ours, process.pid
        except _Again as error:
            raise _not_run(process) or error from None
        finally:
            # Killed in the middle it is as safe as anywhere else.
            process.kill()
            try:
                process.wait(_END)
            except subprocess.TimeoutExpired:
                # The process that it was to read decides when its wait ends.
                _lost.add(process)


#: Those that were killed and did not end.
_lost: Final = LostHelpers()


def _start(verb: str, channel: int) -> subprocess.Popen[bytes]:
    if _lost.full():
        raise OSError(
            errno.EBUSY,
            f"{len(_lost)} helper processes still wait for memory of processes that should be monitored, as on a file "
            "system that does not answer; end those processes first",
        )
    try:
        return start_helper(python(str(_HELPER), verb, str(channel)), channel)
    except (FileNotFoundError, PermissionError) as error:
        why = f"this user cannot run {sys.executable}, which the helper program needs"
        raise OSError(error.errno, f"{why}; let this user run it, or install Python where every user can") from error


def _not_run(process: subprocess.Popen[bytes]) -> OSError | None:
    """The reason why a helper that did not answer never will, None where it was killed."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END)
    if not process.returncode or process.returncode < 0:
        return None
    return OSError(errno.EIO, f"the helper program {_HELPER} failed; let this user read it and {sys.executable}")


def _give(channel: socket.socket, job: dict[str, Any], *fds: int) -> None:
    try:
        # A byte alone is never sent in part.
        socket.send_fds(channel, [b" "], fds)
        channel.sendall(json.dumps(job).encode() + b"\n")
    except OSError:
        raise _Again(_KILLED) from None


def _stopping_answer(channel: socket.socket, pid: int) -> tuple[dict[str, Any], int | None]:
    """As :func:`_answer` for a job that has threads of process ``pid`` stopped; the time is counted."""
    try:
        begun = channel.recv(1)
    except TimeoutError:
        raise OSError(
            errno.EBUSY,
            f"the program of process {pid} could not be read in {_PATIENCE:.0f} s: the machine is busy, or it is "
            f"on a file system that does not answer; {_INSTEAD}",
        ) from None
    except ConnectionError:
        begun = b""
    if begun in {b"", _OBJECT}:
        return _answer(channel, begun)
    with _budget.spending(pid, HOLD * begun[0]) as stop:
        answer, fd = _answer(channel)
        stop.in_vain = bool(answer["errno"])
        return answer, fd


def _answer(channel: socket.socket, begun: bytes = b"") -> tuple[dict[str, Any], int | None]:
    """The answer of the helper, and the file descriptor that came with it.

    :param begun: the beginning of the answer, which was read already.
    """
    try:
        data, ancillary, flags, _ = channel.recvmsg(1 << 16, socket.CMSG_LEN(_FD.size), socket.MSG_CMSG_CLOEXEC)
    except (TimeoutError, ConnectionError):
        data = b""
    if not data:
        raise _Again(_KILLED)
    if flags & socket.MSG_CTRUNC:
        # The kernel found no room for the file descriptor.
        return {"errno": errno.EMFILE, "why": os.strerror(errno.EMFILE).lower()}, None
    return json.loads(begun + data), _FD.unpack(ancillary[0][2])[0] if ancillary else None
