# SPDX-License-Identifier: GPL-2.0-only
"""The names of a process's memory while it runs."""

from __future__ import annotations

import logging
import os
import threading
import time
from types import TracebackType
from typing import Final

from kdamon.mm.bpf.walker import made_walker
from kdamon.mm.proc.process_files import ProcessFiles, birth_of_directory, no_such_process, open_directory
from kdamon.names.labels import Area, Labels, label_rows
from kdamon.names.labels import labels as all_labels
from kdamon.names.mappings import NamedMappings, read_names
from kdamon.names.sections import SectionCache, section_rows
from kdamon.names.stacks import ThreadStacks, stack_rows
from kdamon.names.table import AT_ONCE, NameTable, joined, overlaid
from kdamon.names.texts import NameList

__all__ = ["ProcessNames"]

log = logging.getLogger("kdamon")

#: Seconds between the first two looks, which double up to the usual ones: a starting program maps its libraries. And
#: how many times as long as a look takes they are at least.
_FIRST_S: Final = 0.1
_INTERVAL_S: Final = 1.0
_TIMES: Final = 30
#: Rows of the table of all addresses that ever had a name.
_MOST_ROWS: Final = 1 << 17


class ProcessNames:
    """Names the memory of a process; a context manager.

    A thread of its own reads ``/proc/PID/maps``, ELF headers and threads' stack pointers, when :meth:`look` asks for
    it: at most once a second, seldom where there are many mappings, and not where no mapping changed.

    :param pid: the process.
    :param birth: see :func:`kdamon.mm.proc.process_files.birth_of`; None: of the process that has the number now.
    :param labels: where its own names are; those of this process's server by default.
    :raises OSError: ESRCH there is no such process.
    """

    def __init__(self, pid: int, birth: int | None = None, labels: Labels = all_labels) -> None:
        self._pid = pid
        self._directory = open_directory(pid)
        try:
            self._birth = birth_of_directory(self._directory)
            if birth is not None and self._birth != birth:
                raise no_such_process(pid)
        except BaseException:
            os.close(self._directory)
            raise
        self._labels = labels
        self._thread = threading.Thread()
        self._due = self._interval = 0.0
        #: CPU time of the last look for what is read once.
        self._once = 0.0
        self._closed = False
        self._identity: bytes | None = None
        self._sequence: int | None = None
        self._areas: list[Area] = []
        self._same_at = 0.0
        self._names = NameList()
        self._sections = SectionCache(pid)
        self._stacks = ThreadStacks()
        self._mappings: NamedMappings | None = None
        self._table: NameTable | None = None
        self._whole: NameTable | None = None

    def __enter__(self) -> ProcessNames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def look(self, wait: float = 0.0) -> None:
        """Read the names in a thread, unless that is under way or was done lately.

        :param wait: seconds that the caller waits for the end of it.
        """
        if not self._thread.is_alive() and not self._closed and time.monotonic() >= self._due:
            self._thread = threading.Thread(target=self._look, name="kdamon-names", daemon=True)
            self._thread.start()
        if wait and self._thread.is_alive():
            self._thread.join(wait)

    def look_again(self, wait: float) -> None:
        """Read the names now, even if that was done lately; those of a process that ended stay as they are.

        :param wait: seconds that the caller waits for the end of it, and of a reading that is under way.
        """
        until = time.monotonic() + wait
        if self._thread.is_alive():
            self._thread.join(wait)
        self._due = 0.0
        self.look(max(0.0, until - time.monotonic()))

    def table(self) -> NameTable | None:
        """The names as they were read last; None before the first time."""
        return self._table

    def whole(self) -> NameTable | None:
        """The last name that each address had since the beginning, also of memory that is not mapped any more."""
        return self._whole

    def close(self) -> None:
        """Give the descriptors back; may be repeated."""
        self._closed = True
        # A thread that is held up, as by a slow disk, still needs it.
        if not self._thread.is_alive() and self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _look(self) -> None:
        began, self._once = time.thread_time(), 0.0
        try:
            # Opened each time: open files refer to the address space before an exec().
            files = ProcessFiles(self._directory)
            try:
                self._read(files)
            finally:
                files.close()
        except OSError as error:
            log.debug("the names of process %d cannot be read: %s", self._pid, error)
        self._interval = min(_INTERVAL_S, 2 * self._interval or _FIRST_S)
        again = time.thread_time() - began - self._once
        self._due = time.monotonic() + max(self._interval, _TIMES * again)

    def _read(self, files: ProcessFiles) -> None:
        another = self._identity is not None and self._identity != files.identity
        if another:
            # exec(): nothing is where it was.
            self._labels.forget(self._pid, self._same_at)
            self._stacks, self._whole = ThreadStacks(), None
        self._identity, self._same_at = files.identity, time.monotonic()
        walker = made_walker()
        sequence = None if walker is None else walker.changes(files.pagemap)
        changed = another or self._mappings is None or sequence is None or sequence != self._sequence
        mappings = self._mappings
        if changed or mappings is None:
            mappings = read_names(files.read_maps, self._names)
            if not len(mappings.rows):
                return
            self._mappings, self._sequence = mappings, sequence
        changed |= self._stacks.look(self._directory)
        areas = self._labels.of(self._pid, self._birth)
        if changed or areas is not self._areas:
            self._areas = areas
            before = time.thread_time()
            found = self._sections.look(mappings.files)
            self._once = time.thread_time() - before
            sections = section_rows(mappings, found, self._names)
            stacks = stack_rows(mappings, self._stacks.found(), self._stacks.largest, self._names)
            rows = overlaid(overlaid(joined(mappings.rows), sections), stacks)
            rows = overlaid(rows, label_rows(areas, mappings.rows, self._names))
            self._publish(NameTable(rows, self._names.all(), time.monotonic()))

    def _publish(self, table: NameTable) -> None:
        if self._table is not None and len(table) == len(self._table) and not _differ(self._table, table):
            return
        before = self._whole
        rows = table.rows if before is None else overlaid(before.rows, table.rows)
        rows = rows if len(rows) <= _MOST_ROWS else table.rows
        self._whole = NameTable(rows, table.names, table.time)
        self._table = table


def _differ(older: NameTable, newer: NameTable) -> bool:
    pieces = range(0, len(older), AT_ONCE)
    return any((older.rows[at : at + AT_ONCE] != newer.rows[at : at + AT_ONCE]).any() for at in pieces)
