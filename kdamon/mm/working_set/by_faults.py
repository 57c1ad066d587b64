# SPDX-License-Identifier: GPL-2.0-only
"""The pages that a process writes in a window: all that are in memory are write-protected once, by a userfaultfd.

The kernel takes the protection off a page at the first write to it, so each armed page costs one fault at most, and
the process waits for no other one (:mod:`kdamon.mm.sampling.page_fault`). Huge pages are not armed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import numpy as np
from attrs import evolve

from kdamon.arrays import U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.mm.linux.machine import make_ready
from kdamon.mm.linux.task import LinuxTask
from kdamon.mm.proc.maps import Mappings
from kdamon.mm.proc.pagemap import Pagemap
from kdamon.mm.ranges import NO_RANGES, intersect, joined, subtract, total, union
from kdamon.mm.sampling.page_fault import PageFault, PageFaultSpace
from kdamon.mm.sampling.uffd import HUGE, PRESENT, SWAPPED, WPALLOWED, WRITTEN
from kdamon.mm.working_set.observation import Cost, named_mappings, space_of
from kdamon.mm.working_set.runs import NO_RUNS, Runs, Scanner, having
from kdamon.mm.working_set.sets import Begin, End, WorkingSet, count, ranges_of

__all__ = ["FaultObservation"]


class FaultObservation:
    """See :class:`kdamon.mm.working_set.observation.Observation`."""

    reads = False

    def __init__(self, pid: int, birth: int | None = None) -> None:
        self._source = PageFault(recorded=False)
        self._task = LinuxTask(self._source, pid, birth)
        try:
            self._task.check_process()
            self._space = space_of(self._task, PageFaultSpace)
        except BaseException:
            self._task.put()
            raise
        self._scanner = Scanner(self._space.pagemap)
        self._begin: Begin | None = None
        self._unwritable = NO_RANGES

    def __enter__(self) -> FaultObservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._task.put()
        self._source.close()

    @property
    def pidfd(self) -> int:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        return self._space.pidfd

    def alive(self) -> bool:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        return self._space.alive()

    def cost(self, stop: Callable[[], bool]) -> Cost:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        mappings = self._mappings()
        runs = self._runs(mappings.ranges, stop)
        present, huge = having(runs, PRESENT), having(runs, PRESENT | HUGE)
        armed = intersect(subtract(present, huge), joined(_registered(mappings)))
        unwritable = intersect(subtract(present, armed), mappings.ranges[~mappings.writable])
        unknown = subtract(subtract(present, armed), unwritable)
        return Cost(total(present), total(armed), total(unknown), total(armed) // PAGE_SIZE)

    def begin(self, stop: Callable[[], bool]) -> None:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        make_ready(self._task)
        self._space = space_of(self._task, PageFaultSpace)
        self._scanner = Scanner(self._space.pagemap)
        mappings = self._mappings()
        armed, runs = [NO_RANGES], [NO_RUNS]
        for blocks in Pagemap(self._space.pagemap).groups(joined(mappings.ranges)):
            if stop():
                return
            # In this order: a page that comes in between is unknown, not idle.
            armed.append(self._scanner.arm(blocks))
            runs.append(self._scanner.look(blocks))
        found = np.concatenate(runs)
        present = having(found, PRESENT)
        self._unwritable = mappings.ranges[~mappings.writable]
        self._begin = Begin(
            joined(mappings.ranges),
            joined(present),
            NO_RANGES,
            joined(intersect(np.concatenate(armed), self._space.protection.registered)),
            having(found, PRESENT | HUGE),
        )

    def look(self) -> None:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        protection = self._space.protection
        protection.look_for_another()
        protection.check()

    def end(self) -> WorkingSet:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        begin = self._begin
        assert begin is not None
        names = named_mappings(self._space.files)
        runs = self._runs(ranges_of(names), lambda: False)
        unwritable = ranges_of([mapping for mapping in names if "w" not in mapping.permissions])
        # Without protection, but also without the right to write.
        never = subtract(intersect(begin.present, intersect(self._unwritable, unwritable)), begin.observed_writes)
        allowed = having(runs, WPALLOWED)
        pages = union(having(runs, PRESENT), having(runs, SWAPPED))
        end = End(
            names,
            having(runs, PRESENT),
            having(runs, SWAPPED, PRESENT),
            union(allowed, never),
            subtract(having(runs, WPALLOWED | WRITTEN), never),
            subtract(intersect(pages, self._space.protection.registered), allowed),
        )
        observed = union(begin.observed_writes, never)
        return count(evolve(begin, observed_writes=observed), end, reads=self.reads)

    def _mappings(self) -> Mappings:
        return self._space.files.mappings.now()

    def _runs(self, ranges: U64Array, stop: Callable[[], bool]) -> Runs:
        parts = [NO_RUNS]
        for blocks in Pagemap(self._space.pagemap).groups(joined(ranges)):
            if stop():
                break
            parts.append(self._scanner.look(blocks))
        return np.concatenate(parts)


def _registered(mappings: Mappings) -> U64Array:
    """Those of ``mappings`` that :class:`kdamon.mm.sampling.protection.Protection` registers."""
    return mappings.ranges[mappings.writable | ~mappings.files]
