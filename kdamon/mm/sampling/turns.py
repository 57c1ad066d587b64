# SPDX-License-Identifier: GPL-2.0-only
"""Work on one process at a time, while others are worked on beside it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["Turns"]


class _Turn:
    """A lock for the work on one process, with the number of its users.

    :ivar users: how many have the turn or wait for it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


class Turns:
    """A lock for each process, as long as a thread has it or waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[int, _Turn] = {}

    @contextlib.contextmanager
    def of(self, pid: int) -> Iterator[None]:
        """Allow one operation on process ``pid`` at a time; waiting for it delays no other process."""
        with self._lock:
            turn = self._turns.setdefault(pid, _Turn())
            turn.users += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.users -= 1
                if not turn.users:
                    del self._turns[pid]
