# SPDX-License-Identifier: GPL-2.0-only
"""Names that programs give to areas of their own memory, by ``kdamon_name()``, and their limits.

A name arrives from another process, by the rings of :mod:`kdamon.producers`, which ask whether it may report on the
process that it names. Each process has a limited number of them, and so has each user.
"""

from __future__ import annotations

import bisect
import threading
import time
from typing import Final

import numpy as np
from attrs import Factory, define, frozen

from kdamon.arrays import Records
from kdamon.mm.proc.process_files import birth_of
from kdamon.names.table import NAMED_RANGE, NO_OFFSET
from kdamon.names.texts import NameList, label_text

__all__ = ["LONGEST", "MOST_OF_PROCESS", "Area", "Labels", "label_rows", "labels"]

#: Bytes of a name, as ``kdamon_report.h`` has it.
LONGEST: Final = 56
#: Areas of one process; processes of one user, and users, with areas.
MOST_OF_PROCESS: Final = 256
_MOST_PROCESSES_OF_USER: Final = 64
_MOST_USERS: Final = 64
#: Seconds between two looks at which processes ended.
_LOOK_S: Final = 1.0
#: Names that a user may give in a second.
_PER_SECOND: Final = 1024


@frozen
class Area:
    """A named area.

    :ivar start: bytes.
    :ivar end: bytes, exclusive.
    :ivar text: the name, of any characters.
    :ivar time: CLOCK_MONOTONIC seconds when it was named.
    """

    start: int
    end: int
    text: str
    time: float = 0.0


@define
class _Process:
    """The named areas of a process, in address order and disjoint.

    :ivar birth: when it began; None where there was no such process.
    """

    birth: int | None
    areas: list[Area] = Factory(list)


@define
class _User:
    """Which processes a user named areas of, and how many names it may still give now."""

    pids: set[int] = Factory(set)
    left: float = _PER_SECOND
    at: float = Factory(time.monotonic)
    #: When it may be looked again which of the processes ended.
    look_at: float = 0.0


class Labels:
    """The named areas of all processes; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: dict[int, _Process] = {}
        self._users: dict[int, _User] = {}

    def name(self, uid: int, pid: int, birth: int | None, area: Area) -> bool:
        """Name an area, in place of the names that parts of it had.

        :param uid: the user that gives the name, which may report on the process.
        :param pid: the process.
        :param birth: when it began, see :func:`kdamon.mm.proc.process_files.birth_of`.
        :param area: with an empty text, it has no name from now on.
        :returns: False: there is no room for another name.
        """
        with self._lock:
            user = self._user(uid)
            if user is None or not _may(user) or not self._admitted(user, pid):
                return False
            process = self._processes.get(pid)
            if process is None or process.birth != birth:
                process = _Process(birth)
            areas = _replaced(process.areas, area)
            if len(areas) > MOST_OF_PROCESS:
                return False
            user.pids.add(pid)
            self._processes[pid] = process
            process.areas = areas
            return True

    def of(self, pid: int, birth: int | None) -> list[Area]:
        """The areas of a process; another list whenever they changed."""
        with self._lock:
            process = self._processes.get(pid)
            return _NONE if process is None or process.birth != birth else process.areas

    def forget(self, pid: int, before: float) -> None:
        """Forget the areas of a process that were named before a time, because it runs another program."""
        with self._lock:
            process = self._processes.get(pid)
            if process is not None:
                process.areas = [area for area in process.areas if area.time >= before]

    def _ended(self, pid: int) -> bool:
        birth = self._processes[pid].birth
        try:
            return birth is not None and birth_of(pid) != birth
        except OSError:
            return True

    def _user(self, uid: int) -> _User | None:
        if uid not in self._users and len(self._users) >= _MOST_USERS:
            return None
        return self._users.setdefault(uid, _User())

    def _admitted(self, user: _User, pid: int) -> bool:
        """Whether a user may name areas of one more process.

        The room of those that ended, or have no areas any more, is used again.
        """
        if pid in user.pids or len(user.pids) < _MOST_PROCESSES_OF_USER:
            return True
        now = time.monotonic()
        look = now >= user.look_at
        if look:
            user.look_at = now + _LOOK_S
        for old in [old for old in user.pids if not self._processes[old].areas or (look and self._ended(old))]:
            user.pids.remove(old)
            if not any(old in other.pids for other in self._users.values()):
                del self._processes[old]
        return len(user.pids) < _MOST_PROCESSES_OF_USER


_NONE: Final[list[Area]] = []


def _may(user: _User) -> bool:
    now = time.monotonic()
    user.left = min(_PER_SECOND, user.left + (now - user.at) * _PER_SECOND)
    user.at = now
    if user.left < 1:
        return False
    user.left -= 1
    return True


def _replaced(areas: list[Area], new: Area) -> list[Area]:
    """``areas`` with another name where ``new`` is."""
    first = bisect.bisect_right(areas, new.start, key=lambda area: area.end)
    last = bisect.bisect_left(areas, new.end, key=lambda area: area.start)
    middle = [new] if new.text else []
    if first < last:
        before, after = areas[first], areas[last - 1]
        if before.start < new.start:
            middle.insert(0, Area(before.start, new.start, before.text, before.time))
        if new.end < after.end:
            middle.append(Area(new.end, after.end, after.text, after.time))
    return [*areas[:first], *middle, *areas[max(first, last) :]]


def label_rows(areas: list[Area], mapped: Records, names: NameList) -> Records:
    """Rows of :data:`kdamon.names.table.NAMED_RANGE` of named areas, shape (n,).

    :param mapped: the mappings, rows in address order; of an area the part counts that is mapped.
    :param names: takes the names.
    """
    rows = []
    for area in areas:
        first = int(np.searchsorted(mapped["end"], np.uint64(area.start), side="right"))
        stop = int(np.searchsorted(mapped["start"], np.uint64(area.end), side="left"))
        if first < stop:
            start, end = int(mapped["start"][first]), int(mapped["end"][stop - 1])
            number = names.number(label_text(area.text))
            rows.append((max(start, area.start), min(end, area.end), NO_OFFSET, number))
    return np.array(rows, NAMED_RANGE)


#: Those of this process's :class:`kdamon.producers.server.ReportServer`.
labels: Final = Labels()
