# SPDX-License-Identifier: GPL-2.0-only
"""Warns about threads that a sample filter names and that do not exist: without accesses memory would look cold.

No kernel counterpart: there a filter of threads that ended rejects everything without a message.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from kdamon.mm import Task

__all__ = ["FilteredThreads"]

log = logging.getLogger("kdamon")

#: Nanoseconds between two looks at the threads.
_LOOK_AGAIN: Final = 1_000_000_000


class FilteredThreads:
    """Warns once for each thread of a filter that it ended, or that it belongs to no monitored process."""

    def __init__(self) -> None:
        self._look_at = 0
        self._seen: set[int] = set()
        self._said: set[int] = set()

    def look(self, now: int, awaited: Sequence[int], monitored: Sequence[Task]) -> None:
        """Look at the threads, at most once a second.

        :param now: nanoseconds of the context's clock.
        :param awaited: the threads whose accesses alone count.
        :param monitored: the processes.
        """
        if not awaited or now < self._look_at:
            return
        self._look_at = now + _LOOK_AGAIN
        # With a process its threads end, which is no news.
        tasks = [task for task in monitored if task.get_mm() is not None]
        if not tasks:
            return
        there = {tid for tid in awaited if any(task.has_thread(tid) for task in tasks)}
        self._seen |= there
        for tid in awaited:
            if tid in there or tid in self._said:
                continue
            self._said.add(tid)
            if tid in self._seen:
                log.warning("thread %d ended: it makes no more accesses that the filter could count", tid)
            else:
                pids = ", ".join(str(task.pid) for task in tasks)
                log.warning(
                    "thread %d ended or is not in process %s: no access of it counts; /proc/%s/task lists the threads",
                    *(tid, pids, tasks[0].pid),
                )
