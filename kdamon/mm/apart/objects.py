# SPDX-License-Identifier: GPL-2.0-only
"""Reads processes that may be hostile in a helper process, which kdamon can give up.

To show most information about a process, the kernel takes a lock of that process (mmap_lock, exec_update_lock). A
process can hold the lock for as long as it likes: it reads its own memory by /proc/self/mem at an address that maps a
file on a FUSE file system which does not answer, and then maps something. A reader that takes the lock waits as long,
in some calls (process_madvise(2)) even after SIGKILL. No check before the call helps, as the process may take the lock
right after the check.

So a helper process reads, records which process it reads, and is killed if it waits for too long.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pickle
import select
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any, Final

from kdamon.kernel import PAGE_SIZE
from kdamon.lib.helpers import LostHelpers, start_helper
from kdamon.lib.process_status import stat_fields
from kdamon.mm.apart.looked_at import Looks

__all__ = ["Apart", "HeldUpError"]

log = logging.getLogger("kdamon")

_START: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from kdamon.mm.apart.helper import main
main()
"""
#: Seconds that one read may wait in the kernel, and seconds between two checks of that.
_PATIENCE: Final = 1.0
_STEP: Final = 0.05
#: Helpers that were killed, and may wait for ever nevertheless.
_lost: Final = LostHelpers(16)


class HeldUpError(Exception):
    """A process blocked the helper that read it; the helper is gone.

    :ivar pid: the process.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} blocks every read of its memory")
        self.pid = pid


class Apart:
    """An object in a helper process, which is started at once.

    :param module: where its class is.
    :param name: of the class.
    :param arguments: it is made with.
    :ivar cpu_s: CPU time of the helper, seconds.
    :raises OSError: as the class; EBUSY too many helpers are blocked.
    :raises HeldUpError: as :meth:`call`.
    """

    def __init__(self, module: str, name: str, *arguments: Any) -> None:
        self.cpu_s = 0.0
        _check_room()
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            here, there = socket.socketpair()
            theirs.enter_context(there)
            self._connection = ours.enter_context(Connection(here.detach()))
            # Connection.poll() makes such an object each time.
            self._answered = select.poll()
            self._answered.register(self._connection.fileno(), select.POLLIN)
            life, self._life = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, life)
            ours.callback(os.close, self._life)
            shared = os.memfd_create("kdamon-looks", os.MFD_CLOEXEC)
            theirs.callback(os.close, shared)
            os.truncate(shared, PAGE_SIZE)
            self._looks = ours.enter_context(contextlib.closing(Looks(shared)))
            self._process = _started((there.fileno(), life, shared))
            ours.pop_all()
        threading.Thread(target=self._process.wait, name="kdamon-helper", daemon=True).start()
        try:
            self._exchange((module, name, arguments))
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object.

        :raises OSError: as the method; EIO the helper ended.
        :raises HeldUpError: the process that it reads blocks it; the helper is closed then.
        """
        return self._exchange((method, arguments))

    def _exchange(self, request: tuple[Any, ...]) -> Any:
        try:
            self._connection.send_bytes(pickle.dumps(request, pickle.HIGHEST_PROTOCOL))
            self._wait()
            kind, value, said, self.cpu_s = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError, BrokenPipeError) as error:
            self.close()
            raise OSError(
                errno.EIO, f"a helper process that runs {sys.executable} ended unexpectedly; let this user read it"
            ) from error
        for level, message in said:
            log.log(level, "%s", message)
        if kind == "error":
            raise OSError(*value)
        return value

    def _wait(self) -> None:
        """Wait for an answer, as long as the helper proceeds from one process to the next."""
        looks, waits = self._looks.last(), 0.0
        while not self._answered.poll(1000 * _STEP):
            now = self._looks.last()
            # One that just gets no CPU, or works, is in no such state.
            waits = waits + _STEP if now == looks and self._state() == b"D" else 0.0
            looks = now
            if waits >= _PATIENCE:
                self.close()
                raise HeldUpError(looks[1])

    def _state(self) -> bytes:
        with open(f"/proc/{self._process.pid}/stat", "rb") as file:
            return stat_fields(file.read())[0]

    @property
    def closed(self) -> bool:
        """Whether it cannot be used any more."""
        return self._connection.closed

    def close(self) -> None:
        """End the helper, without waiting for that; may be repeated."""
        if self.closed:
            return
        self._connection.close()
        self._process.kill()
        os.close(self._life)
        self._looks.close()
        _lost.add(self._process)


def _started(fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    # Of relative ones others decide what they stand for.
    path = [place for place in sys.path if os.path.isabs(place)]
    words = map(str, (*fds, log.getEffectiveLevel()))
    return start_helper([sys.executable, "-I", "-c", _START, json.dumps(path), *words], *fds)


def _check_room() -> None:
    """OSError EBUSY too many helpers did not end."""
    if _lost.full():
        raise OSError(
            errno.EBUSY,
            f"{len(_lost)} helper processes still wait for processes that hold the lock of their own memory; end those "
            "whose stack (/proc/PID/task/*/stack) shows fuse",
        )
