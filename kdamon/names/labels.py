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
from attrs import Factory, define

from kdamon.arrays import Records
from kdamon.names.table import NAMED_RANGE, NO_OFFSET
from kdamon.names.texts import NameList, label_text

__all__ = ["LONGEST", "MOST_OF_PROCESS", "Labels", "label_rows", "labels"]

#: Bytes of a name, as ``kdamon_report.h`` has it.
LONGEST: Final = 56
#: Areas of one process; processes and users with areas.
MOST_OF_PROCESS: Final = 256
_MOST_PROCESSES_OF_USER: Final = 64
_MOST_USERS: Final = 64
#: Names that a user may give in a second.
_PER_SECOND: Final = 1024

#: Start, end (exclusive), text.
_Area = tuple[int, int, str]


@define
class _Process:
    """The named areas of a process, in address order and disjoint, and how often they changed."""

    areas: list[_Area] = Factory(list)
    version: int = 0


@define
class _User:
    """Which processes a user named areas of, and how many names it may still give now."""

    pids: set[int] = Factory(set)
    left: float = _PER_SECOND
    at: float = Factory(time.monotonic)


class Labels:
    """The named areas of all processes; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: dict[int, _Process] = {}
        self._users: dict[int, _User] = {}

    def name(self, uid: int, pid: int, start: int, end: int, text: str) -> bool:
        """Name an area, in place of the names that parts of it had.

        :param uid: the user that gives the name, which may report on the process.
        :param pid: the process.
        :param start: bytes.
        :param end: bytes, exclusive; above ``start``.
        :param text: the name; empty: the area has none from now on.
        :returns: False: there is no room for another name.
        """
        with self._lock:
            user = self._user(uid)
            if user is None or not _may(user) or not self._admitted(user, pid):
                return False
            process = self._processes.setdefault(pid, _Process())
            areas = _replaced(process.areas, start, end, text)
            if len(areas) > MOST_OF_PROCESS:
                return False
            user.pids.add(pid)
            process.areas = areas
            process.version += 1
            return True

    def of(self, pid: int) -> tuple[int, list[_Area]]:
        """How often the areas of a process changed, and its areas: start, end (exclusive) and text of each."""
        with self._lock:
            process = self._processes.get(pid)
            return (0, []) if process is None else (process.version, process.areas)

    def forget(self, pid: int) -> None:
        """Forget the areas of a process, which ended or runs another program."""
        with self._lock:
            process = self._processes.get(pid)
            if process is not None:
                process.areas = []
                process.version += 1

    def _user(self, uid: int) -> _User | None:
        if uid not in self._users and len(self._users) >= _MOST_USERS:
            return None
        return self._users.setdefault(uid, _User())

    def _admitted(self, user: _User, pid: int) -> bool:
        """Whether a user may name areas of one more process; of those without areas any more the room is used again."""
        if pid in user.pids or len(user.pids) < _MOST_PROCESSES_OF_USER:
            return True
        for old in [old for old in user.pids if not self._processes[old].areas]:
            user.pids.remove(old)
            if not any(old in other.pids for other in self._users.values()):
                del self._processes[old]
        return len(user.pids) < _MOST_PROCESSES_OF_USER


def _may(user: _User) -> bool:
    now = time.monotonic()
    user.left = min(_PER_SECOND, user.left + (now - user.at) * _PER_SECOND)
    user.at = now
    if user.left < 1:
        return False
    user.left -= 1
    return True


def _replaced(areas: list[_Area], start: int, end: int, text: str) -> list[_Area]:
    """``areas`` with another name from ``start`` to ``end``."""
    first = bisect.bisect_right(areas, start, key=lambda area: area[1])
    last = bisect.bisect_left(areas, end, key=lambda area: area[0])
    cut = []
    if first < last:
        before, after = areas[first], areas[last - 1]
        cut += [(before[0], start, before[2])] if before[0] < start else []
        cut += [(start, end, text)] if text else []
        cut += [(end, after[1], after[2])] if end < after[1] else []
    elif text:
        cut = [(start, end, text)]
    return [*areas[:first], *cut, *areas[max(first, last) :]]


def label_rows(areas: list[_Area], names: NameList) -> Records:
    """Rows of :data:`kdamon.names.table.NAMED_RANGE` of named areas, shape (n,).

    :param names: takes the names.
    """
    return np.array(
        [(start, end, NO_OFFSET, names.number(label_text(text))) for start, end, text in areas], NAMED_RANGE
    )


#: Those of this process's :class:`kdamon.producers.server.ReportServer`.
labels: Final = Labels()
