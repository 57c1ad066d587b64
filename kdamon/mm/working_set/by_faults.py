# SPDX-License-Identifier: GPL-2.0-only
"""The pages that a process accesses in a window: all that are in memory are armed once, by a userfaultfd.

Where the kernel has RWP (Linux 7.3) and the mapping allows it, the first read or write of an armed page faults;
elsewhere the first write. The kernel takes the protection off in the fault, so each page costs one fault at most, and
the process waits for no other one (:mod:`kdamon.mm.sampling.page_fault`). Huge pages are armed as a whole or, where
that would split them, not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final

import numpy as np
from attrs import evolve

from kdamon.arrays import U64Array
from kdamon.kernel import PAGE_SIZE, PMD_SIZE
from kdamon.mm.linux.machine import make_ready
from kdamon.mm.linux.task import LinuxTask
from kdamon.mm.proc.maps import Mappings, NamedMapping
from kdamon.mm.proc.pagemap import Pagemap, entries_at, tracked
from kdamon.mm.ranges import NO_RANGES, intersect, joined, overlaps, subtract, total, union
from kdamon.mm.sampling.page_fault import PageFault, PageFaultSpace
from kdamon.mm.sampling.protection import Protection
from kdamon.mm.sampling.uffd import ACCESSED, HUGE, PRESENT, SWAPPED, WPALLOWED, WRITTEN
from kdamon.mm.working_set.observation import Cost, named_mappings, space_of
from kdamon.mm.working_set.runs import NO_RUNS, Runs, Scanner, having
from kdamon.mm.working_set.sets import Begin, End, WorkingSet, count, ranges_of

__all__ = ["FaultObservation"]

#: Mappings that are registered at once.
_AT_ONCE: Final = 1024


class FaultObservation:
    """See :class:`kdamon.mm.working_set.observation.Observation`; its userfaultfd is taken at once.

    :raises OSError: see :func:`kdamon.mm.inject.requests.take_userfaultfd`; EBUSY the process has one of its own.
    """

    def __init__(self, pid: int, birth: int | None = None) -> None:
        self._source = PageFault(recorded=False)
        self._task = LinuxTask(self._source, pid, birth)
        try:
            self._task.check_process()
            # The reason why there is no memory, if so.
            space_of(self._task, PageFaultSpace)
            make_ready(self._task)
            self._space = space_of(self._task, PageFaultSpace)
        except BaseException:
            self._task.put()
            raise
        self._protection: Protection = self._space.protection
        #: Whether reads are observed, too.
        self.reads = self._protection.reads
        self._pagemap = Pagemap(self._space.pagemap)
        self._scanner = Scanner(self._space.pagemap, reads=self.reads)
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
        by_any, by_writes = self._observable(present, huge)
        unknown = subtract(subtract(present, by_any), by_writes)
        if not self.reads:
            unknown = subtract(unknown, joined(mappings.ranges[~mappings.writable]))
        whole = total(intersect(by_any, huge))
        observed = total(by_any) + total(by_writes)
        return Cost(total(present), observed, total(unknown), (observed - whole) // PAGE_SIZE + whole // PMD_SIZE)

    def begin(self, stop: Callable[[], bool]) -> None:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        mappings = self._mappings()
        # Those that came since the userfaultfd was taken.
        self._protection.follow(mappings)
        while self._protection.register(_AT_ONCE):
            pass
        by_any, by_writes, runs = [NO_RANGES], [NO_RANGES], [NO_RUNS]
        for blocks in self._pagemap.groups(joined(mappings.ranges)):
            if stop():
                return
            # In this order: a page that comes in between is unknown or accessed, not idle.
            by_any.append(self._arm(blocks))
            by_writes.append(self._scanner.arm(blocks))
            runs.append(self._scanner.look(blocks))
        found = np.concatenate(runs)
        present, huge = joined(having(found, PRESENT)), having(found, PRESENT | HUGE)
        observable, _ = self._observable(present, huge)
        self._unwritable = mappings.ranges[~mappings.writable]
        self._begin = Begin(
            joined(mappings.ranges),
            present,
            joined(intersect(observable, np.concatenate(by_any))),
            joined(intersect(np.concatenate(by_writes), self._protection.registered)),
            huge,
        )

    def look(self) -> None:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        self._protection.look_for_another()
        self._protection.check()

    def end(self) -> WorkingSet:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        begin = self._begin
        assert begin is not None
        names = named_mappings(self._space.files)
        runs = self._runs(ranges_of(names), lambda: False)
        never = subtract(self._never_written(begin, names), union(begin.observed, begin.observed_writes))
        pages = union(having(runs, PRESENT), having(runs, SWAPPED))
        accessed, allowed = having(runs, ACCESSED), having(runs, WPALLOWED)
        kept = union(union(accessed, self._guarded(runs, names)), allowed)
        registered = union(self._protection.registered, self._protection.registered_reads[0])
        end = End(
            names,
            having(runs, PRESENT),
            having(runs, SWAPPED, PRESENT),
            union(kept, never),
            union(accessed, subtract(having(runs, WPALLOWED | WRITTEN), never)),
            subtract(intersect(pages, registered), kept),
        )
        observed = union(begin.observed_writes, never)
        return count(evolve(begin, observed_writes=observed), end, reads=self.reads)

    def _arm(self, blocks: U64Array) -> U64Array:
        """Arm the pages in ``blocks`` whose reads can fault; returns the parts of blocks that are armed, as ranges."""
        mappings, _ = self._protection.registered_reads
        parts = intersect(blocks, mappings)
        if not len(parts):
            return NO_RANGES
        # Right before they are armed: this would split them.
        huge = having(self._scanner.look(blocks), PRESENT | HUGE)
        parts = parts[overlaps(parts, intersect(huge, self._without_huge())) == 0]
        return parts[self._protection.protect(parts)]

    def _observable(self, present: U64Array, huge: U64Array) -> tuple[U64Array, U64Array]:
        """Which of the ``present`` pages can be armed so that reads and writes fault, and which so that writes do."""
        reading, _ = self._protection.registered_reads
        by_any = subtract(intersect(present, reading), intersect(huge, self._without_huge()))
        return by_any, subtract(intersect(present, self._protection.registered), huge)

    def _without_huge(self) -> U64Array:
        """The mappings where reads fault, but not of huge pages."""
        reading, whole = self._protection.registered_reads
        return reading[~whole]

    def _never_written(self, begin: Begin, names: tuple[NamedMapping, ...]) -> U64Array:
        """The pages that the process may not write, neither at the begin nor at the end."""
        unwritable = ranges_of([mapping for mapping in names if "w" not in mapping.permissions])
        return intersect(begin.present, intersect(self._unwritable, unwritable))

    def _guarded(self, runs: Runs, names: tuple[NamedMapping, ...]) -> U64Array:
        """The pages that still are armed against reads, of ``runs``.

        A page of a mapping that took the place of another looks the same there, but for its entry. All pages of a
        mapping are alike in this, so one of each part of a run is asked.
        """
        reading, _ = self._protection.registered_reads
        pages = union(having(runs, PRESENT, ACCESSED), having(runs, SWAPPED, ACCESSED))
        parts = intersect(intersect(pages, reading), ranges_of(names))
        return joined(parts[tracked(entries_at(self._space.pagemap, parts[:, 0]))])

    def _mappings(self) -> Mappings:
        return self._space.files.mappings.now()

    def _runs(self, ranges: U64Array, stop: Callable[[], bool]) -> Runs:
        parts = [NO_RUNS]
        for blocks in self._pagemap.groups(joined(ranges)):
            if stop():
                break
            parts.append(self._scanner.look(blocks))
        return np.concatenate(parts)
