# SPDX-License-Identifier: GPL-2.0-only
"""What the terminal can show."""

from __future__ import annotations

import os
import shutil
from typing import TextIO

__all__ = ["LiveView", "terminal_size", "use_colour"]


def terminal_size() -> tuple[int, int]:
    """Columns and lines of the terminal, 80 x 24 where there is none; COLUMNS and LINES come first."""
    size = shutil.get_terminal_size((80, 24))
    return max(40, size.columns), max(10, size.lines)


def use_colour(when: str, stream: TextIO) -> bool:
    """Tell whether to colour what goes to ``stream``.

    :param when: ``always``, ``never``, or ``auto``: on a terminal that is not dumb, unless NO_COLOR is set.
    """
    if when != "auto":
        return when == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class LiveView:
    """Shows the present state of something: redrawn in place on a terminal, line after line elsewhere.

    :param stream: where to.
    :param in_place: whether earlier output may be overwritten.
    """

    def __init__(self, stream: TextIO, in_place: bool) -> None:
        self._stream = stream
        self.in_place = in_place
        self._drawn = 0
        self._broken = False

    def show(self, text: str) -> None:
        """Show ``text``, whose lines must fit the terminal, in place of what was shown before."""
        self.clear()
        self._write(text + "\n")
        self._drawn = text.count("\n") + 1 if self.in_place else 0

    def clear(self) -> None:
        """Take what was shown in place away."""
        if self._drawn:
            self._write(f"\x1b[{self._drawn}F\x1b[J")
        self._drawn = 0

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
