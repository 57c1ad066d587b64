# SPDX-License-Identifier: GPL-2.0-only
"""Programs in a terminal emulator."""

from __future__ import annotations

import os
import select
import signal
import termios
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyte

from tests.support.paths import PYTHONPATH

__all__ = ["ENVIRONMENT", "Emulator"]

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
ENVIRONMENT |= {"PYTHONPATH": PYTHONPATH, "TERM": "xterm-256color", "PS1": "$ ", "HISTFILE": "/dev/null"}
#: Generous: a busy machine is no mistake of the program.
PATIENCE_S = 90.0


class Emulator:
    """A terminal and what runs in it, from a line of another program's output on.

    :param reported: size that the terminal's driver reports; default: the true one.
    :param environment: further variables.
    :ivar screen: what can be seen, and what was scrolled away.
    :ivar output: what it wrote.
    :ivar status: exit status of the program, None: it was not asked for, see :meth:`end`.
    """

    def __init__(
        self,
        words: list[str],
        columns: int,
        lines: int,
        reported: tuple[int, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        # New lines are carriage returns too, as a terminal's driver has it.
        self._stream = pyte.ByteStream(self.screen)
        self._stream.feed(b"others' output\r\n")
        self.pid, self._master = os.forkpty()
        if not self.pid:
            if reported is None:
                termios.tcsetwinsize(2, (lines, columns))
            else:
                termios.tcsetwinsize(2, reported)
            os.execvpe(words[0], words, ENVIRONMENT | dict(environment or {}))
        self.status: int | None = None
        self.output = b""

    def type(self, text: str) -> None:
        """As at a keyboard."""
        os.write(self._master, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        """As one drags a corner of a window."""
        self.screen.resize(lines, columns)
        termios.tcsetwinsize(self._master, (lines, columns))

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Go on until ``condition`` holds."""
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up, f"{what} did not come:\n" + "\n".join(self.lines())
            if select.select([self._master], [], [], 0.1)[0] and not self._read():
                assert condition(), f"it ended before {what}:\n" + "\n".join(self.lines())
                return

    def lines(self) -> list[str]:
        """What can be seen, without blanks at the ends."""
        return [line.rstrip() for line in self.screen.display]

    def all_lines(self) -> list[str]:
        """The same, after what was scrolled away."""
        columns = range(self.screen.columns)
        gone = ["".join(line[at].data for at in columns).rstrip() for line in self.screen.history.top]
        return gone + self.lines()

    def settings(self) -> list[Any]:
        """How the terminal is set, as :func:`termios.tcgetattr` has it."""
        return termios.tcgetattr(self._master)

    def end(self) -> int:
        """Wait until it ends by itself, and return its exit status, minus the number of a signal that ended it."""
        give_up = time.monotonic() + PATIENCE_S
        while self.status is None:
            assert time.monotonic() < give_up, "it did not end:\n" + "\n".join(self.lines())
            if self._master < 0 or not self._read():
                time.sleep(0.02)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        while self._master >= 0 and self._read():
            pass
        return self.status

    def _read(self) -> bool:
        """Take what it wrote; return whether there may be more."""
        if not select.select([self._master], [], [], 0.1)[0]:
            return False
        try:
            read = os.read(self._master, 65536)
        except OSError:
            return False
        self.output += read
        self._stream.feed(read)
        return True

    def hang_up(self) -> None:
        """Close the terminal, as its window."""
        os.close(self._master)
        self._master = -1

    def close(self) -> None:
        """End it."""
        if self._master >= 0:
            os.close(self._master)
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
