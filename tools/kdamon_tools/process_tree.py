# SPDX-License-Identifier: GPL-2.0-only
"""The descendants of processes and their CPU time, from ``/proc/PID/stat``."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from attrs import frozen

from kdamon.lib.process_status import stat_fields, stat_name
from kdamon_tools.output.readable import readable

__all__ = ["ProcessStat", "descendants", "family_of", "read_stat", "read_stats"]

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
#: Number of processes to read in a row, about a millisecond, and the pause after them.
_AT_ONCE: Final = 64
_PAUSE_S: Final = 0.0005
#: Bytes of a stat file at most: 52 numbers and a name.
_LONGEST: Final = 4096


@frozen
class ProcessStat:
    """The state of a process at one time.

    :ivar name: its command's name, of 15 bytes at most, escaped for output.
    :ivar state: a letter; Z and X: it ended.
    :ivar started: start time in clock ticks since boot; together with the number it identifies the process.
    :ivar cpu_s: its CPU time, seconds.
    :ivar ended_children_cpu_s: CPU time of its descendants that ended and were reaped, seconds.
    """

    pid: int
    name: str
    state: str
    parent: int
    session: int
    started: int
    cpu_s: float
    ended_children_cpu_s: float

    @property
    def identity(self) -> tuple[int, int]:
        """The unique identity of the process: its number and its start time."""
        return self.pid, self.started

    @property
    def ended(self) -> bool:
        """Whether it ended, and its parent has not reaped it yet."""
        return self.state in "ZX"


def read_stat(pid: int) -> ProcessStat | None:
    """The present state of process ``pid``; None if there is none."""
    try:
        # Without a buffer: there are many processes.
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            content = file.read(_LONGEST)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = stat_fields(content)
    user, system, children_user, children_system = (int(fields[at]) / _TICKS_A_SECOND for at in range(11, 15))
    return ProcessStat(
        pid=pid,
        name=readable(os.fsdecode(stat_name(content))),
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        cpu_s=user + system,
        ended_children_cpu_s=children_user + children_system,
    )


def read_stats() -> dict[int, ProcessStat]:
    """All visible processes, by number."""
    stats = {}
    for n, name in enumerate(filter(str.isdecimal, os.listdir("/proc")), 1):
        if (stat := read_stat(int(name))) is not None:
            stats[stat.pid] = stat
        if n % _AT_ONCE == 0:
            # A kdamond of this process may be waiting for the interpreter, and its samples would be late.
            time.sleep(_PAUSE_S)
    return stats


def descendants(stats: dict[int, ProcessStat], pids: Iterable[int]) -> Iterator[ProcessStat]:
    """The processes ``pids`` that are in ``stats``, and their descendants, parents first."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in stats.values():
        children[stat.parent].append(stat.pid)
    left = list(pids)
    seen: set[int] = set()
    for pid in left:
        if pid in stats and pid not in seen:
            seen.add(pid)
            yield stats[pid]
            left += children[pid]


def family_of(pid: int) -> list[ProcessStat]:
    """Process ``pid`` and its present descendants, except this process (``pid`` may be its shell) and its own."""
    stats = read_stats()
    stats.pop(os.getpid(), None)
    return list(descendants(stats, [pid]))
