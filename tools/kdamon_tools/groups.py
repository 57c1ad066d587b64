# SPDX-License-Identifier: GPL-2.0-only
"""Adds up over a run which CPUs, threads or nodes accessed memory, and which of them write the same."""

from __future__ import annotations

import os
import time
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.reports.groups import UNKNOWN_GROUP, GroupTable
from kdamon_tools.shared_writes import SharedRange, SharedWrites

__all__ = ["Group", "GroupLog", "Grouping", "ThreadNames", "known_number", "raw_number"]

#: Seconds between two looks at the names of threads, which programs set after threads began.
_NAMES_S: Final = 1.0
#: Threads that are looked at in one go.
_AT_ONCE: Final = 256


@frozen
class Group:
    """A CPU, a thread or a node, and the reports of its accesses that were counted.

    :ivar number: None: it is not known which one.
    :ivar name: of a thread, as it was seen last, None unknown.
    """

    number: int | None
    name: str | None
    nr_reports: int
    nr_writes: int


@frozen
class GroupLog:
    """The groups of a run.

    :ivar by: ``cpu``, ``thread`` or ``node``.
    :ivar groups: those with most reports first.
    :ivar nr_missing: reports that were counted for regions, but are in no table: of an interval that did not end, or of
        a snapshot that was lost.
    :ivar shared: ranges that several of them write, those with most writes by others than the main writer first.
    """

    by: str
    groups: tuple[Group, ...] = ()
    shared: tuple[SharedRange, ...] = ()
    nr_missing: int = 0

    @property
    def nr_reports(self) -> int:
        """Reports of all groups."""
        return sum(group.nr_reports for group in self.groups)

    def group(self, number: int | None) -> Group:
        """The group ``number``."""
        return next(group for group in self.groups if group.number == number)


class ThreadNames:
    """The names of a process's threads, from ``/proc/PID/task/TID/comm``.

    :param pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self._path = f"/proc/{pid}/task"
        self._names: dict[int, str] = {}
        self._looked_at: dict[int, float] = {}

    def look(self, tids: list[int]) -> None:
        """Look at some threads that are active now, unless that was done in the last second."""
        now = time.monotonic()
        due = [tid for tid in tids if tid > 0 and now - self._looked_at.get(tid, -_NAMES_S) >= _NAMES_S]
        for tid in due[:_AT_ONCE]:
            self._looked_at[tid] = now
            try:
                with open(f"{self._path}/{tid}/comm", "rb") as file:
                    self._names[tid] = os.fsdecode(file.read(64).removesuffix(b"\n"))
            except OSError:
                # It ended; the name that it had stays.
                continue

    def all(self) -> dict[int, str]:
        """The names of all threads that were looked at."""
        return self._names

    def name(self, tid: int) -> str | None:
        """The name of thread ``tid`` when it was looked at last."""
        return self._names.get(tid)


class Grouping:
    """Adds up tables of groups.

    :param by: ``cpu``, ``thread`` or ``node``.
    :param names: of the threads, None where they are of another machine or time.
    """

    def __init__(self, by: str, names: ThreadNames | None = None) -> None:
        self._by = by
        self._names = names if by == "thread" else None
        #: The numbers of reports and of writes.
        self._sums: dict[int, tuple[int, int]] = {}
        self._shared = SharedWrites()

    def add(self, table: GroupTable) -> None:
        """Add the table of one aggregation interval."""
        rows = table.regions
        if not len(rows):
            return
        first = np.flatnonzero(np.concatenate(([True], rows["group"][1:] != rows["group"][:-1])))
        numbers = rows["group"][first].tolist()
        sums = [np.add.reduceat(rows[name], first, dtype=np.int64).tolist() for name in ("nr_reports", "nr_writes")]
        for number, reports, writes in zip(numbers, *sums, strict=True):
            before = self._sums.get(number, (0, 0))
            self._sums[number] = before[0] + reports, before[1] + writes
        if self._names is not None:
            self._names.look(numbers)
        self._shared.add(table)

    def thread_names(self) -> dict[int, str]:
        """The names of the threads so far; empty where accesses are not grouped by thread."""
        return {} if self._names is None else self._names.all()

    def log(self, shared: bool = True) -> GroupLog:
        """All that was added.

        :param shared: with the shared ranges, which take some work to find.
        """
        groups = [
            Group(known_number(self._by, number), None if self._names is None else self._names.name(number), *sums)
            for number, sums in self._sums.items()
        ]
        groups.sort(key=lambda group: (-group.nr_reports, group.number is None, group.number))
        known = {number: known_number(self._by, number) for number in self._sums}
        return GroupLog(self._by, tuple(groups), self._shared.ranges(known) if shared else ())


def known_number(by: str, number: int) -> int | None:
    """The number of a group in tables; None where it stands for an unknown one."""
    return None if number == UNKNOWN_GROUP[by] else number


def raw_number(by: str, number: int | None) -> int:
    """The reverse of :func:`known_number`."""
    return UNKNOWN_GROUP[by] if number is None else number
