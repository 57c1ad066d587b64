# SPDX-License-Identifier: GPL-2.0-only
"""A userfaultfd of another process: taken from a running one, or at exec from a command of ours.

userfaultfd(2) has no argument that names a process: each makes its own. So a thread of the process is stopped and runs
the call for us, by a short-lived helper process (:mod:`kdamon.mm.inject_helper`, which tells how that is safe). What
can be found out beforehand is found out here, before anything is stopped, and so are the refusals.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kdamon.mm.inject_target import Target

__all__ = ["take_userfaultfd"]

_HELPER: Final = Path(__file__).with_name("inject_helper.py")

#: Seconds after which the helper is not waited for any more; its own timer ended it long before.
_PATIENCE: Final = 5.0
#: Seconds between attempts.
_PAUSE: Final = 0.01

_PIDFD_THREAD: Final = os.O_EXCL
_INSTEAD: Final = "monitor it by page_table instead"


def take_userfaultfd(pid: int, timeout: float = 5.0) -> int:
    """Take a userfaultfd of the present address space of process ``pid``.

    It is as userfaultfd(2) returns it (no UFFDIO_API yet): O_CLOEXEC, O_NONBLOCK, UFFD_USER_MODE_ONLY. The process
    keeps none, and it is gone when the last copy of ours is closed. One thread of the process stands still for less
    than a millisecond; whatever happens to us meanwhile, it goes on within a quarter of a second.

    :param timeout: seconds after which a process whose threads cannot be stopped right now is given up.
    :raises OSError: ESRCH it ended or has no memory; EPERM no right to trace it, or it filters its system calls;
        EBUSY it is traced, stopped or none of its threads can be stopped; EOPNOTSUPP the kernel is too old, or it is
        no x86-64 program, a Go program or one with a shadow stack; EAGAIN it may not have another thread.
    """
    _check_machine()
    if pid == os.getpid():
        raise OSError(errno.EOPNOTSUPP, "kdamon cannot take its own memory this way; name another process")
    if pid == 1:
        raise OSError(errno.EPERM, "process 1 keeps the system alive and is never stopped; name another process")
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _attempt(pid)
        except _Again as error:
            if time.monotonic() >= deadline:
                raise OSError(
                    errno.EBUSY, f"process {pid} cannot be stopped safely ({error}); try again later"
                ) from None
            time.sleep(_PAUSE)


class _Again(Exception):
    """It did not work this time."""


def _check_machine() -> None:
    if platform.machine() != "x86_64" or sys.maxsize < 1 << 32:
        raise OSError(errno.EOPNOTSUPP, f"page faults of processes are known on x86-64 only; {_INSTEAD}")
    try:
        os.close(os.pidfd_open(os.getpid(), _PIDFD_THREAD))
    except OSError as error:
        raise OSError(
            errno.EOPNOTSUPP, f"the kernel has no file descriptors for threads; use Linux 6.9 or later, or {_INSTEAD}"
        ) from error


def _attempt(pid: int) -> int:
    with contextlib.ExitStack() as stack:
        target = Target(pid, stack)
        channel = stack.enter_context(_helper(str(target.memory), pass_fds=(target.memory,)))
        # The job is worked out while it starts.
        answer, fd = _ask(channel, target.job())
    if fd is not None:
        return fd
    if answer.get("again"):
        raise _Again(answer["why"])
    raise OSError(answer["errno"], f"process {pid}: {answer['why']}")


@contextlib.contextmanager
def _helper(*arguments: str, pass_fds: tuple[int, ...] = ()) -> Iterator[socket.socket]:
    """A helper process and the socket to it; it is gone afterwards.

    It has a session of its own: what a terminal sends to us (Ctrl-C, Ctrl-Z) is not for it.
    """
    ours, its = socket.socketpair()
    with ours:
        with its:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", _HELPER, str(its.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(its.fileno(), *pass_fds),
                start_new_session=True,
            )
        ours.settimeout(_PATIENCE)
        try:
            yield ours
        finally:
            # Killed in the middle it is as safe as anywhere else.
            process.kill()
            process.wait()


def _ask(channel: socket.socket, job: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Have the helper do its work.

    :returns: what it answers, and the file descriptor that came with it.
    """
    try:
        channel.sendall(json.dumps(job).encode())
        channel.shutdown(socket.SHUT_WR)
        data, fds, _, _ = socket.recv_fds(channel, 1 << 16, 1, socket.MSG_CMSG_CLOEXEC)
    except (TimeoutError, ConnectionError):
        data, fds = b"", []
    if not data:
        raise _Again("the helper process was killed, perhaps by its own timer since the machine is busy")
    return json.loads(data), fds[0] if fds else None
