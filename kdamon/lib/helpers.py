# SPDX-License-Identifier: GPL-2.0-only
"""Helper processes: they make calls that may never return, for example on a file system that does not answer.

The kernel lets a process wait for such a file system without a limit, and then not even SIGKILL ends it. kdamon
continues without that helper; a few helpers may be lost at a time.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

__all__ = ["LostHelpers", "python", "start_helper"]


def python(*words: str) -> list[str]:
    """The command of a Python program that uses the standard library alone, so that it starts fast."""
    return [sys.executable, "-I", "-S", *words]


def start_helper(command: Sequence[str], *descriptors: int, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start a process that keeps no resource of this one in use, and that signals of its terminal do not reach.

    :param descriptors: what it inherits, besides ``stdin``.
    :raises OSError: as :class:`subprocess.Popen`.
    """
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        # A reader of kdamon's standard error must not wait for a process that is lost.
        stderr=subprocess.DEVNULL,
        cwd="/",
        pass_fds=descriptors,
        start_new_session=True,
    )


class LostHelpers:
    """Processes that should have ended but may not have; any thread may use it.

    :param most: how many there may be before no others are started.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of processes that did not end yet."""
        with self._lock:
            self._processes = [process for process in self._processes if process.poll() is None]
            return len(self._processes)

    def full(self) -> bool:
        """Return whether no others may be started."""
        return len(self) >= self._most

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """Count ``process`` until it ends."""
        with self._lock:
            self._processes.append(process)

    def wait(self, seconds: float) -> None:
        """Wait until all ended, or ``seconds`` passed."""
        give_up = time.monotonic() + seconds
        with self._lock:
            processes = list(self._processes)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(give_up - time.monotonic(), 0))
