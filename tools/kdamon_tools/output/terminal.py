# SPDX-License-Identifier: GPL-2.0-only
"""What the terminal can show."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import unicodedata
from contextlib import suppress
from types import FrameType
from typing import Final, Protocol, TextIO

__all__ = ["LiveView", "cut", "terminal_size", "use_colour"]

#: A colour, or a character.
_PIECE: Final = re.compile(r"\x1b\[[0-9;]*m|.", re.DOTALL)


class Stream(Protocol):
    """Something that may be a terminal."""

    def isatty(self) -> bool: ...


def terminal_size(stream: TextIO | None = None) -> tuple[int, int]:
    """Columns and lines of the terminal that ``stream`` is, by default standard output.

    COLUMNS and LINES, or 80 x 24, where it is none or does not know its size.
    """
    size = os.terminal_size((0, 0))
    # It may be no terminal, closed, or no file at all.
    with suppress(OSError, ValueError, AttributeError):
        size = os.get_terminal_size((stream or sys.stdout).fileno())
    return size.columns or _from_environment("COLUMNS", 80), size.lines or _from_environment("LINES", 24)


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if re.fullmatch("[1-9][0-9]{0,4}", value) else default


def use_colour(when: str, stream: Stream) -> bool:
    """Return whether to colour what goes to ``stream``.

    :param when: ``always``, ``never``, or ``auto``: on a terminal that is not dumb, unless NO_COLOR is set.
    """
    if when != "auto":
        return when == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def cut(text: str, width: int) -> str:
    """What of a line ``text`` fits into ``width`` columns of a terminal.

    Colours take no column, East Asian characters two; what is not printable would move the cursor and becomes ``?``.
    """
    room = width
    kept = []
    for piece in _PIECE.findall(text):
        if len(piece) == 1:
            piece = piece if piece.isprintable() or _columns(piece) == 0 else "?"  # noqa: PLW2901
            # What comes after a character that does not fit does not fit either.
            room -= _columns(piece) if room >= 0 else 0
            if room < 0:
                continue
        kept.append(piece)
    return "".join(kept)


def _columns(character: str) -> int:
    """How many columns a character takes."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


class LiveView(logging.Handler):
    """Shows the present state of something: redrawn in place on a terminal, line after line elsewhere.

    What others wrote is never erased: after a log message, after the process was stopped and continued, and after it
    was in the background, the next drawing begins where the cursor is.

    :param stream: where to.
    :param in_place: whether earlier output may be overwritten.
    """

    def __init__(self, stream: TextIO, in_place: bool) -> None:
        super().__init__()
        self._stream = stream
        self.in_place = in_place
        self._drawn = 0
        self._broken = False
        self._disturbed = False
        self._continued_before: signal._HANDLER = None

    def size(self) -> tuple[int, int]:
        """Columns and lines that can be shown, at least 1: the cursor needs a line of its own."""
        columns, lines = terminal_size(self._stream)
        return columns, max(1, lines - 1)

    def show(self, text: str) -> None:
        """Show ``text`` in place of what was shown before, as much of it as fits the terminal."""
        # Together with what comes next: between two writes the terminal would be empty, and flicker.
        erased = self._leave()
        if not self.in_place:
            self._write(erased + text + "\n")
            return
        if not self._in_foreground():
            return
        columns, room = self.size()
        lines = [cut(line, columns) for line in text.splitlines()[:room]]
        self._watch_others()
        self._write(erased + "\n".join(lines) + "\n")
        self._drawn = len(lines)

    def clear(self) -> None:
        """Take what was shown in place away."""
        erased = self._leave()
        if erased:
            self._write(erased)

    def _leave(self) -> str:
        """What erases what was shown in place; empty where it is not there any more, or not ours to erase."""
        if not self._drawn:
            return ""
        erased = f"\x1b[{self._drawn}F\x1b[J" if self._in_foreground() and not self._disturbed else ""
        self._drawn = 0
        self._watch_others_no_more()
        return erased

    def _in_foreground(self) -> bool:
        """Whether the terminal is ours to draw on, as far as it knows of jobs."""
        try:
            return os.tcgetpgrp(self._stream.fileno()) == os.getpgrp()
        except (OSError, ValueError):
            return True

    def _watch_others(self) -> None:
        """Notice, while something is drawn, that the cursor may be elsewhere."""
        self._disturbed = False
        logging.getLogger().addHandler(self)
        if threading.current_thread() is threading.main_thread():
            self._continued_before = signal.signal(signal.SIGCONT, self._continued)

    def _watch_others_no_more(self) -> None:
        logging.getLogger().removeHandler(self)
        if self._continued_before is not None:
            signal.signal(signal.SIGCONT, self._continued_before)
        self._continued_before = None

    def _continued(self, _number: int, _frame: FrameType | None) -> None:
        self._disturbed = True

    def emit(self, _record: logging.LogRecord) -> None:
        """A message was written below what is drawn."""
        self._disturbed = True

    def _write(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # What is shown matters less than what goes on meanwhile.
            self._broken = True
            self.in_place = False
