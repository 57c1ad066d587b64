# SPDX-License-Identifier: GPL-2.0-only
"""Threads that sample filters name and that are not there: that nothing counts then must not look like cold memory.

The kernel has nothing like it: there a filter of threads that ended rejects everything without a word.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kdamon.damon import damon_ctx, damon_sample_control

__all__ = ["FilteredThreads", "awaited_threads"]

log = logging.getLogger("kdamon")

#: Nanoseconds between two looks at the threads.
_LOOK_AGAIN: Final = 1_000_000_000


def awaited_threads(control: damon_sample_control) -> tuple[int, ...]:
    """The threads whose accesses alone count by ``control``, in its order."""
    # A filter that keeps the accesses of threads out misses nothing when these end.
    only = [f.tid_arr for f in control.sample_filters if f.tid_arr and f.matching == f.allow]
    return tuple(dict.fromkeys(tid for tids in only for tid in tids))


class FilteredThreads:
    """Says once of each thread that a filter waits for that it ended, or is of no process that is monitored."""

    def __init__(self) -> None:
        self._look_at = 0
        self._seen: set[int] = set()
        self._said: set[int] = set()

    def look(self, ctx: damon_ctx) -> None:
        """Look at the threads, at most once a second of the clock of ``ctx``."""
        if ctx.clock.now() < self._look_at:
            return
        self._look_at = ctx.clock.now() + _LOOK_AGAIN
        awaited = awaited_threads(ctx.sample_control)
        # With a process its threads end, which is no news.
        tasks = [t.task for t in ctx.adaptive_targets if t.task is not None and t.task.get_mm() is not None]
        if not awaited or not tasks:
            return
        there = {tid for tid in awaited if any(task.has_thread(tid) for task in tasks)}
        self._seen |= there
        for tid in awaited:
            if tid in there or tid in self._said:
                continue
            self._said.add(tid)
            if tid in self._seen:
                log.warning("thread %d ended: it accesses nothing any more that could count", tid)
            else:
                pids = ", ".join(str(task.pid) for task in tasks)
                log.warning(
                    "thread %d is none of process %s, or ended: nothing counts of it; /proc/%s/task has the numbers",
                    *(tid, pids, tasks[0].pid),
                )
