# SPDX-License-Identifier: GPL-2.0-only
"""Writes snapshots as lines of JSON while monitoring goes on, for a reader that may be slow or end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kdamon_tools.history import nr_rows
from kdamon_tools.reporters.json_object import render_aggregation
from kdamon_tools.snapshot import Snapshot

if TYPE_CHECKING:
    from kdamon.names.table import NameTable

__all__ = ["LineStream"]

#: Maximum number of aggregations that wait for a slow reader, and of their regions together.
_MOST_WAITING: Final = 64
_MOST_ROWS: Final = 1 << 18


class LineStream:
    """Writes a line for each aggregation, in its own thread: monitoring never waits for the reader.

    A reader that is too slow misses aggregations, the oldest first, and each line counts them.

    :param write: writes a part of the output; it may block.
    :param failed: returns the reason why writing has failed for good; None while it works.
    """

    def __init__(self, write: Callable[[str], None], failed: Callable[[], OSError | None]) -> None:
        self._write = write
        self._failed = failed
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, Snapshot, NameTable | None]] = deque()
        self._rows = 0
        self._end: Callable[[int, int], str] | None = None
        self._error: OSError | None = None
        self._by = ""
        self._thread = threading.Thread()
        #: Aggregations so far, and those of them that were written.
        self.taken = self.written = 0

    def begin(self, header: str, since: float, by: str = "") -> None:
        """Write the first line, and then those of aggregations.

        :param since: CLOCK_MONOTONIC seconds from which times are counted.
        :param by: the property by which accesses are grouped, if they are.
        """
        self._by = by
        self._thread = threading.Thread(target=self._run, args=(header, since), name="kdamon-lines", daemon=True)
        self._thread.start()

    def add(self, snapshot: Snapshot, names: NameTable | None = None) -> None:
        """Queue a line for ``snapshot``; it is dropped if the reader is too slow.

        :param names: what lies at the addresses; None: that is not known.
        """
        with self._changed:
            self._waiting.append((self.taken, snapshot, names))
            self._rows += nr_rows(snapshot)
            self.taken += 1
            while len(self._waiting) > _MOST_WAITING or (self._rows > _MOST_ROWS and len(self._waiting) > 1):
                self._take()
            self._changed.notify()

    def _take(self) -> tuple[int, Snapshot, NameTable | None]:
        taken = self._waiting.popleft()
        self._rows -= nr_rows(taken[1])
        return taken

    @property
    def ended(self) -> bool:
        """Whether writing has ended."""
        return not self._thread.is_alive()

    @property
    def dropped(self) -> int:
        """Aggregations without a line, once :meth:`finish` returned."""
        return self.taken - self.written

    def error(self) -> OSError | None:
        """The error that ended writing, None without one; BrokenPipeError: the reader ended."""
        return self._error or self._failed()

    def finish(self, end: Callable[[int, int], str], seconds: float) -> None:
        """Write the queued lines and the last line.

        :param end: makes the last line from the numbers of all and of dropped aggregations.
        :param seconds: time limit for the queued lines, after which the rest is dropped; and again for the last line.
            See :attr:`ended` and :meth:`error`.
        """
        with self._changed:
            self._end = end
            self._changed.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            with self._changed:
                self._waiting.clear()
            self._thread.join(seconds)

    def _run(self, header: str, since: float) -> None:
        try:
            self._write(header + "\n")
            while (line := self._next(since)) is not None:
                self._write(line + "\n")
            if self._end is not None:
                self._write(self._end(self.taken, self.dropped) + "\n")
        except OSError as error:
            self._error = error

    def _next(self, since: float) -> str | None:
        """The line of the next aggregation; None after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._end)
            if not self._waiting:
                return None
            index, snapshot, names = self._take()
            before = index - self.written
            self.written += 1
        return render_aggregation(snapshot, since, index, before, self._by, names=names)
