# SPDX-License-Identifier: GPL-2.0-only
"""A terminal to write a full screen to, which can be given up: its reader may be gone, or never read again."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

__all__ = ["ScreenFile"]

#: Seconds between two checks whether to give up, and for which the end of the screen may wait for the terminal.
_LOOK_S: Final = 0.1
_END_S: Final = 2.0


class ScreenFile:
    """Writes to the terminal of a file descriptor; a context manager.

    Other processes keep their way to write to it: it is opened anew, so that only this one never blocks.

    :param descriptor: of the terminal.
    :param over: whether the screen is to end: what the terminal does not take for two seconds is dropped then.
    :ivar gone: whether the terminal is gone.
    """

    def __init__(self, descriptor: int, over: Callable[[], object]) -> None:
        self._over = over
        self._over_since: float | None = None
        self.gone = False
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            self._file = os.open(f"/proc/self/fd/{descriptor}", flags)
        except OSError:
            # Another user's, as after su.
            self._file = os.dup(descriptor)

    def __enter__(self) -> ScreenFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        os.close(self._file)

    def write(self, text: str) -> int:
        """Write ``text``, or drop it where the terminal is gone or given up."""
        rest = text.encode(errors="replace")
        while rest and not self.gone and not self._given_up():
            try:
                rest = rest[os.write(self._file, rest) :]
            except BlockingIOError:
                select.select([], [self._file], [], _LOOK_S)
            except OSError:
                self.gone = True
        return len(text)

    def _given_up(self) -> bool:
        if not self._over():
            return False
        if self._over_since is None:
            self._over_since = time.monotonic()
        return time.monotonic() - self._over_since > _END_S

    def flush(self) -> None:
        """Nothing is kept back."""

    def fileno(self) -> int:
        """Its file descriptor."""
        return self._file

    def isatty(self) -> bool:
        """It is a terminal."""
        return True
