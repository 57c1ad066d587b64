# SPDX-License-Identifier: GPL-2.0-only
"""Processes of another user that hold the lock of their memory for ever, see ``lock_holder.py``."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LockHolder", "lock_holder"]

_NOBODY = 65534
_SCRIPT = Path(__file__).with_name("lock_holder.py")
#: Where its threads wait once it holds the lock.
_WAITS = ("request_wait_answer", "munmap")


class LockHolder:
    """Such a process.

    :ivar pid: its number.
    """

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdout is not None
        self.pid = int(server.stdout.readline())
        self._server = server

    def _waits(self) -> set[str]:
        """Where in the kernel its threads wait."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return {(thread / "wchan").read_text() for thread in Path(f"/proc/{self.pid}/task").iterdir()}
        return set()

    def hold(self) -> None:
        """Let it hold the lock from now on."""
        assert self._server.stdin is not None
        self._server.stdin.write("\n")
        self._server.stdin.flush()
        end = time.monotonic() + 60
        while not all(any(place in wait for wait in self._waits()) for place in _WAITS):
            assert time.monotonic() < end, self._waits()
            time.sleep(0.01)

    def let_go(self) -> None:
        """End it, and with it every wait for it."""
        # The last one that has the file system's device.
        self._server.kill()


@contextlib.contextmanager
def lock_holder() -> Iterator[LockHolder]:
    """Such a process, which is gone in the end, and with it all that waits for it."""
    with tempfile.TemporaryDirectory(prefix="kdamon-test-", ignore_cleanup_errors=True) as directory:
        words = [sys.executable, str(_SCRIPT), directory, str(_NOBODY)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            try:
                yield LockHolder(server)
            finally:
                server.kill()
