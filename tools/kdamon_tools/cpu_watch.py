# SPDX-License-Identifier: GPL-2.0-only
"""Detects that unmonitored children do the work of the monitored process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from kdamon.lib.file_limit import files_ran_out
from kdamon_tools.process_tree import ProcessStat

__all__ = ["CpuWatch"]

#: Minimum CPU time of children to report, seconds.
_WORTH_A_WORD_S: Final = 0.2
#: Seconds between two readings: at first, and at most; and the maximum share of a CPU that readings may take.
_FIRST_S: Final = 0.1
_LONGEST_S: Final = 1.0
_COST: Final = 0.003


class CpuWatch:
    """Compares the CPU time of a process with that of its descendants.

    :param pid: the process.
    :param family: the process and its descendants, now.
    """

    def __init__(self, pid: int, family: Callable[[], list[ProcessStat]]) -> None:
        self._pid = pid
        self._family = family
        self._now = {stat.identity: stat for stat in family()}
        self._before = dict(self._now)
        #: The process itself; the CPU time of ended descendants; and the one of these that took most.
        self._process = self._find()
        self._gone_s = 0.0
        self._most: tuple[float, ProcessStat] | None = None
        self._said = False
        self._pause = _FIRST_S
        self._next = time.monotonic() + self._pause

    def _find(self) -> ProcessStat | None:
        return next((stat for stat in self._now.values() if stat.pid == self._pid), None)

    def look(self, *, at_once: bool = False) -> None:
        """Read the CPU times of the processes, if it is time to."""
        now = time.monotonic()
        if now < self._next and not at_once:
            return
        began_cpu = time.thread_time()
        try:
            family = self._family()
        except OSError as error:
            if not files_ran_out(error):
                raise
            # If that persists, monitoring ends, and the result explains it better.
            self._next = now + self._pause
            return
        earlier, self._now = self._now, {stat.identity: stat for stat in family}
        self._process = self._find() or self._process
        for identity, stat in earlier.items():
            if identity not in self._now and stat.pid != self._pid:
                took = self._took(stat)
                self._gone_s += took
                self._most = max(self._most or (took, stat), (took, stat), key=lambda most: most[0])
                self._before.pop(identity, None)
        self._pause = min(2 * self._pause, _LONGEST_S)
        self._next = time.monotonic() + max(self._pause, (time.thread_time() - began_cpu) / _COST)

    def sentence(self, *, lives_on: bool = True) -> str:
        """A sentence if children took more CPU time than the process; empty if they did not.

        :param lives_on: the processes outlive the monitoring, so that one of them can be monitored itself.
        """
        process = self._process
        if process is None:
            return ""
        children = [(self._took(stat), stat) for stat in self._now.values() if stat.pid != self._pid]
        before = self._before.get(process.identity)
        waited = process.ended_children_cpu_s - (before.ended_children_cpu_s if before is not None else 0.0)
        own, total = self._took(process), max(waited, self._gone_s + sum(took for took, _ in children))
        if total < _WORTH_A_WORD_S or total <= own:
            return ""
        took, child = max([*children, *filter(None, [self._most])], key=lambda most: most[0], default=(0.0, None))
        which, remedy = "", ""
        if child is not None and 2 * took >= total:
            which = f", most of it {child.pid} ({child.name})"
            if lives_on and child.identity in self._now and not child.ended:
                remedy = f"use --pid {child.pid} while it runs, or "
        return (
            f"the children of process {self._pid} ({process.name}) took {total:.1f} s of CPU time{which}; the process "
            f"itself took {own:.1f} s, and only the process is monitored: {remedy}start that program without a shell "
            "around it, or with exec in the script"
        )

    def sentence_once(self) -> str:
        """The same sentence, but only once; empty afterwards."""
        if self._said:
            return ""
        found = self.sentence()
        self._said = bool(found)
        return found

    def _took(self, stat: ProcessStat) -> float:
        before = self._before.get(stat.identity)
        return stat.cpu_s - (before.cpu_s if before is not None else 0.0)
