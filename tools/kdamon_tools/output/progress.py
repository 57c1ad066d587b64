# SPDX-License-Identifier: GPL-2.0-only
"""The progress of long work on a terminal; nothing elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Final

from kdamon_tools.output.terminal import LiveView
from kdamon_tools.units import format_seconds

__all__ = ["Progress"]

_REDRAW_S: Final = 0.2
#: Seconds until the time left can be estimated.
_FIRST_S: Final = 1.0


class Progress:
    """A line on standard error that is redrawn in place."""

    def __init__(self) -> None:
        shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._view = LiveView(sys.stderr, True) if shown else None
        self._began = self._shown_at = time.monotonic()

    def show(self, text: Callable[[], str]) -> None:
        """Show a text, which is only made where it is shown."""
        if self._view is not None and time.monotonic() - self._shown_at >= _REDRAW_S:
            self._view.show(text())
            self._shown_at = time.monotonic()

    def restart(self) -> None:
        """Begin with other work, for the estimate of the time left."""
        self._began = time.monotonic()

    def show_last(self, what: str) -> None:
        """Show that the rest is under way, of which the share that is done is not known."""
        if self._view is not None and self._shown_at > self._began:
            self._view.show(what)

    def show_share(self, share: float, what: str) -> None:
        """Show which share of the work is done, 0 to 1, and how long the rest takes.

        :param what: the file.
        """
        # A narrow terminal cuts a long name rather than the time.
        self.show(lambda: f"{share:4.0%}{self.left(share)}: {what}")

    def left(self, share: float) -> str:
        """How long the rest takes, in words after a comma; empty until that can be estimated."""
        taken = time.monotonic() - self._began
        if taken < _FIRST_S or share <= 0:
            return ""
        return f", {format_seconds(max(1.0, round(taken * (1 - share) / share)))} left"

    def clear(self) -> None:
        """Erase it."""
        if self._view is not None:
            self._view.clear()
