# SPDX-License-Identifier: GPL-2.0-only
"""The terminal: its size and colours, and output that is redrawn in place."""

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

#: A colour sequence, or a character.
_PIECE: Final = re.compile(r"\x1b\[[0-9;]*m|.", re.DOTALL)


class Stream(Protocol):
    """A stream that may be a terminal."""

    def isatty(self) -> bool: ...


def terminal_size(stream: TextIO | None = None) -> tuple[int, int]:
    """Columns and lines of the terminal ``stream``, by default standard output.

    COLUMNS and LINES, or 80 x 24, if it is not a terminal or does not know its size.
    """
    size = os.terminal_size((0, 0))
    # It may not be a terminal, be closed, or not be a file at all.
    with suppress(OSError, ValueError, AttributeError):
        size = os.get_terminal_size((stream or sys.stdout).fileno())
    return size.columns or _from_environment("COLUMNS", 80), size.lines or _from_environment("LINES", 24)


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if re.fullmatch("[1-9][0-9]{0,4}", value) else default


def use_colour(when: str, stream: Stream) -> bool:
    """Return whether to colour output to ``stream``.

    :param when: ``always``, ``never``, or ``auto``: not if NO_COLOR is set, else if FORCE_COLOR is, else on a terminal
        that is not dumb; as Python does it.
    """
    if when != "auto":
        return when == "always"
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def cut(text: str, width: int) -> str:
    """The part of a line ``text`` that fits into ``width`` columns of a terminal.

    Colours take no column, East Asian characters two; unprintable characters would move the cursor and become ``?``.
    """
    room = width
    kept = []
    for piece in _PIECE.findall(text):
        if len(piece) == 1:
            piece = piece if piece.isprintable() or _columns(piece) == 0 else "?"  # noqa: PLW2901
            # Nothing after a character that does not fit may be shown.
            room -= _columns(piece) if room >= 0 else 0
            if room < 0:
                continue
        kept.append(piece)
    return "".join(kept)


def _columns(character: str) -> int:
    """The number of columns of a character."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


class LiveView(logging.Handler):
    """Shows a changing text: redrawn in place on a terminal, line after line elsewhere.

    It never erases other output: after a log message, after the process was stopped and continued, and after it was in
    the background, the next drawing begins at the cursor.

    :param stream: the stream to write to.
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
        """The columns and lines available, at least 1: the cursor needs its own line."""
        columns, lines = terminal_size(self._stream)
        return columns, max(1, lines - 1)

    def show(self, text: str) -> None:
        """Show ``text`` in place of the previous text, as much of it as fits the terminal."""
        # Erase and draw in one write: between two writes the terminal would be empty, and flicker.
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
        """Erase the shown text."""
        erased = self._leave()
        if erased:
            self._write(erased)

    def _leave(self) -> str:
        """The escape sequence that erases the shown text; empty after other output, or in the background."""
        if not self._drawn:
            return ""
        erased = f"\x1b[{self._drawn}F\x1b[J" if self._in_foreground() and not self._disturbed else ""
        self._drawn = 0
        self._watch_others_no_more()
        return erased

    def _in_foreground(self) -> bool:
        """Whether this process may draw on the terminal: it is in its foreground job, if the terminal has jobs."""
        try:
            return os.tcgetpgrp(self._stream.fileno()) == os.getpgrp()
        except (OSError, ValueError):
            return True

    def _watch_others(self) -> None:
        """Detect, while a text is shown, that the cursor may have moved."""
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
        """Note that a message was written below the drawing."""
        self._disturbed = True

    def _write(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # Monitoring matters more than the display.
            self._broken = True
            self.in_place = False
