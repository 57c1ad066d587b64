# SPDX-License-Identifier: GPL-2.0-only
"""Collects the mappings of a process during a run, in bounded memory: the names of monitored addresses."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from attrs import frozen

from kdamon.mm.proc.maps import NamedMapping
from kdamon.mm.proc.process_files import ProcessFiles, birth_of_directory, no_such_process, open_directory
from kdamon.records.values import SeenMapping

__all__ = ["KERNEL_HALF", "MOST_MAPPINGS", "Changed", "MappingHistory", "MappingLog", "SeenMapping"]

#: Maximum number of mappings: twice Linux's default limit for a process (vm.max_map_count).
MOST_MAPPINGS: Final = 1 << 17
#: Seconds between the first two readings; the time between readings doubles up to :data:`_INTERVAL_S`.
_FIRST_S: Final = 0.1
_INTERVAL_S: Final = 1.0
#: The share of a CPU that reading the list may take.
_MOST_CPU: Final = 0.01
#: Addresses of the kernel begin here.
KERNEL_HALF: Final = 1 << 63

#: Receives the lines that are gone and those that are new, and the times of the readings before and now.
Changed = Callable[[list[bytes], list[bytes], float, float], None]


@frozen
class MappingLog:
    """The observed mappings of a process.

    :ivar seen: in the order of their start addresses. A changed mapping, such as a grown heap, is a new entry.
    :ivar nr_reads: how often the list was read.
    :ivar first_read: CLOCK_MONOTONIC seconds of the first reading, and ``last_read`` of the last one.
    :ivar nr_left_out: mappings for which there was no room.
    """

    seen: tuple[SeenMapping, ...]
    nr_reads: int
    first_read: float
    last_read: float
    nr_left_out: int = 0


class MappingHistory:
    """Reads the list of mappings from time to time; a context manager.

    A process can keep the list locked, so a separate thread reads it.

    :param pid: the process.
    :param birth: see :func:`kdamon.mm.proc.process_files.birth_of`; None: that of the process that has the number now.
    :param most: mappings to keep.
    :param changed: gets each change; mappings that are gone are not kept here then.
    :raises OSError: ESRCH there is no such process.
    """

    def __init__(
        self, pid: int, birth: int | None = None, most: int = MOST_MAPPINGS, changed: Changed | None = None
    ) -> None:
        self._directory = open_directory(pid)
        if birth is not None and birth_of_directory(self._directory) != birth:
            os.close(self._directory)
            raise no_such_process(pid)
        self._most = most
        self._changed = changed
        self._lock = threading.Lock()
        self._thread = threading.Thread()
        self._due = self._interval = 0.0
        #: CPU time of the last reading.
        self._cpu_s = 0.0
        #: The first observation of each line of the present list; and earlier entries.
        self._now: dict[bytes, float] = {}
        self._gone: list[tuple[bytes, float, float]] = []
        self._left_out = self._reads = 0
        self._first_read = self._last_read = 0.0

    def __enter__(self) -> MappingHistory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # A delayed thread still needs it.
        if not self._thread.is_alive():
            os.close(self._directory)

    def look(self, wait: float = 0.0) -> None:
        """Read the list, unless a reading is in progress.

        :param wait: seconds that the caller waits for it.
        """
        if not self._thread.is_alive():
            self._thread = threading.Thread(target=self._read, name="kdamon-mappings", daemon=True)
            self._thread.start()
        self._thread.join(wait)

    def look_when_due(self) -> None:
        """The same, if it is time for it: often at first, while a starting program maps its libraries."""
        now = time.monotonic()
        if now >= self._due:
            self._interval = max(min(_INTERVAL_S, 2 * self._interval or _FIRST_S), self._cpu_s / _MOST_CPU)
            self._due = now + self._interval
            self.look()

    def _read(self) -> None:
        try:
            # Reopened each time: an open file refers to the address space before an exec().
            files = ProcessFiles(self._directory)
        except OSError:
            return
        try:
            lines = files.lines()
        except OSError:
            return
        finally:
            files.close()
        if lines:
            self._note(lines, time.monotonic())
            self._cpu_s = time.thread_time()

    def _note(self, lines: list[bytes], now: float) -> None:
        with self._lock:
            present = set(lines)
            gone = [line for line in self._now if line not in present]
            new = [line for line in lines if line not in self._now]
            before = [(line, self._now.pop(line), self._last_read) for line in gone]
            if self._changed is None:
                self._gone += before
            room = max(0, self._most - len(self._now) - len(self._gone))
            self._left_out += max(0, len(new) - room)
            self._now |= dict.fromkeys(new[:room], now)
            if self._changed is not None and (gone or new):
                self._changed(gone, new[:room], self._last_read or now, now)
            self._reads += 1
            self._first_read = self._first_read or now
            self._last_read = now

    def found(self) -> MappingLog | None:
        """The mappings observed so far; None if the list was never read."""
        with self._lock:
            if not self._reads:
                return None
            lines = [*self._gone, *((line, first, self._last_read) for line, first in self._now.items())]
            reads, first_read, last_read, left_out = self._reads, self._first_read, self._last_read, self._left_out
        seen = [SeenMapping(NamedMapping.parse(line), first, last) for line, first, last in lines]
        # [vsyscall] is in every list, but is not a mapping of the process.
        seen = [one for one in seen if one.mapping.start < KERNEL_HALF]
        seen.sort(key=lambda one: (one.mapping.start, one.first_seen))
        return MappingLog(tuple(seen), reads, first_read, last_read, left_out)
