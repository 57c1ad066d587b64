# SPDX-License-Identifier: GPL-2.0-only
"""One object for the whole process, such as a BPF program with the memory that it shares with us."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Shared"]

Made = TypeVar("Made")


class Shared(Generic[Made]):
    """Makes it when it is first asked for; any thread may ask.

    A child of fork() makes its own: parent and child would overwrite each other's words, because they share the memory.

    :param make: what it raises is not remembered: the next call tries again.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # Another thread of the parent may hold the lock.
        self._lock = threading.Lock()
        self._made: list[Made] = []

    def get(self) -> Made:
        """Return it; raises what making it does."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    def made(self) -> Made | None:
        """Return it if it was made before; takes no lock."""
        made = self._made
        return made[0] if made else None
