# SPDX-License-Identifier: GPL-2.0-only
"""Calls on another process's memory that may wait for a file system: a helper process makes them.

Writes fault missing pages in, and MADV_WILLNEED and MADV_COLLAPSE read files that a process maps. If such a file is on
a FUSE file system that does not answer, which any user can set up, the call never returns, and not even SIGKILL ends
the calling thread (``fs/fuse/dev.c: request_wait_answer()``). So a helper process makes the call, and kdamon waits for
it with a time limit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kdamon.lib.helpers import LostHelpers, python, start_helper
from kdamon.lib.syscalls import NR_PROCESS_MADVISE, NR_PROCESS_VM_WRITEV

__all__ = ["advise_apart", "fault_apart"]


_HELPER: Final = Path(__file__).with_name("madvise_helper.py")

#: Seconds that a call may take.
_PATIENCE: Final = 10.0


class _Helper:
    """A helper process."""

    def __init__(self) -> None:
        self.channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self.process = start_helper(python(str(_HELPER), str(its.fileno())), its.fileno())
        # It ends when no request comes for some time, and leaves nothing then.
        threading.Thread(target=self.process.wait, name="kdamon-helper", daemon=True).start()

    def ask(self, request: bytes, descriptors: Sequence[int]) -> int | None:
        """The result of the call, or a negative errno; None: the helper ended before the request."""
        self.channel.settimeout(_PATIENCE)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self.channel, [request], descriptors)
            answer = self.channel.recv(8)
            if answer:
                return int(struct.unpack("<q", answer)[0])
        return None


#: Idle helpers.
_idle: Final[list[_Helper]] = []
#: Helpers that did not answer, and did not end yet.
_lost: Final = LostHelpers()
# A child process has its own, as otherwise it would get our answers.
os.register_at_fork(after_in_child=_idle.clear)


def advise_apart(pidfd: int, ranges: bytes, advice: int) -> int:
    """Make one call of process_madvise(2).

    :param pidfd: the process; stays the caller's.
    :param ranges: pairs of address and size, 8 bytes each.
    :returns: how many bytes were advised, or a negative errno.
    :raises OSError: EBUSY it does not return.
    """
    return _call_apart(struct.pack("<QQ", NR_PROCESS_MADVISE, advice) + ranges, [pidfd])


def fault_apart(pid: int, ranges: bytes) -> bool:
    """Make the kernel fault pages in for writing, by process_vm_writev(2), without writing to them.

    :param pid: the process.
    :param ranges: pairs of address and size, 8 bytes each.
    :returns: False where the kernel refuses that.
    :raises OSError: EBUSY it does not return.
    """
    return _call_apart(struct.pack("<QQ", NR_PROCESS_VM_WRITEV, pid) + ranges, []) == -errno.EFAULT


def _call_apart(request: bytes, descriptors: Sequence[int]) -> int:
    while True:
        try:
            helper, new = _idle.pop(), False
        except IndexError:
            helper, new = _started(), True
        with contextlib.ExitStack() as stack:
            stack.push(helper.channel)
            try:
                result = helper.ask(request, descriptors)
            except TimeoutError:
                helper.process.kill()
                _lost.add(helper.process)
                raise OSError(
                    errno.EBUSY, "it maps a file on a file system that does not answer; end the process"
                ) from None
            if result is not None:
                stack.pop_all()
                _idle.append(helper)
                return result
            if new:
                raise OSError(errno.EIO, f"the helper program {_HELPER} failed; let this user read it")


def _started() -> _Helper:
    if _lost.full():
        raise OSError(
            errno.EBUSY,
            f"{len(_lost)} helper processes still wait for file systems that do not answer; end the processes that "
            "map files on them",
        )
    return _Helper()
