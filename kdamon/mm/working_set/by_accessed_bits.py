# SPDX-License-Identifier: GPL-2.0-only
"""The pages that a process reads or writes in a window, by accessed bits: all young pages are made old once.

MADV_COLD does that, which also moves them to the inactive LRU list (:mod:`kdamon.mm.sampling.page_table`). Pages whose
bit cannot be cleared are not observed. Nothing is left in the process that would have to be undone.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U8Array, U64Array
from kdamon.kernel import PMD_SIZE
from kdamon.mm import Primitive
from kdamon.mm.bpf.walk_program import ACCESSED, LEVEL, PRESENT
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.linux.machine import linux_machine
from kdamon.mm.mmap_lock import stays_locked
from kdamon.mm.proc.pagemap import Pagemap, swapped
from kdamon.mm.ranges import NO_RANGES, joined, of_pages, subtract, total, union
from kdamon.mm.sampling.page_table import LOCKED, PageTableSpace
from kdamon.mm.working_set.observation import Cost, named_mappings, space_of
from kdamon.mm.working_set.sets import Begin, End, WorkingSet, count, ranges_of

__all__ = ["AccessedBitObservation"]

#: Page tables that are looked at together: 8192 entries.
_TABLES: Final = 16
#: Seconds after which the lock of a process's memory counts as held for ever.
_PATIENCE: Final = 5.0


class AccessedBitObservation:
    """See :class:`kdamon.mm.working_set.observation.Observation`."""

    reads = True

    def __init__(self, pid: int, birth: int | None = None) -> None:
        self._machine = linux_machine(Primitive.PAGE_TABLE)
        try:
            self._task = self._machine.get_task(pid, Primitive.PAGE_TABLE, birth)
        except BaseException:
            self._machine.close()
            raise
        try:
            self._space = space_of(self._task, PageTableSpace)
        except BaseException:
            self._task.put()
            self._machine.close()
            raise
        self._pagemap = Pagemap(self._space.pagemap)
        self._begin: Begin | None = None

    def __enter__(self) -> AccessedBitObservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._task.put()
        self._machine.close()

    @property
    def pidfd(self) -> int:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        return self._space.pidfd

    def alive(self) -> bool:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        return self._space.alive()

    def cost(self, stop: Callable[[], bool]) -> Cost:
        """See :class:`kdamon.mm.working_set.observation.Observation`; what cannot be made old shows later."""
        resident = young = 0
        for part in self._parts(self._space.vmas(), stop):
            resident += part.bytes(part.having(PRESENT))
            young += part.bytes(part.having(PRESENT | ACCESSED))
        return Cost(resident, young, 0, 0)

    def begin(self, stop: Callable[[], bool]) -> None:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        mapped = self._space.vmas()
        present, huge, unknown = [NO_RANGES], [NO_RANGES], [NO_RANGES]
        for part in self._parts(mapped, stop):
            there = part.having(PRESENT)
            present.append(part.ranges(there))
            huge.append(part.ranges(there & part.huge))
            unknown.append(part.ranges(part.still_young(self._space)))
        if stop():
            return
        everything = joined(np.concatenate(present))
        self._begin = Begin(
            joined(mapped),
            everything,
            subtract(everything, joined(np.concatenate(unknown))),
            NO_RANGES,
            joined(np.concatenate(huge)),
        )

    def look(self) -> None:
        """See :class:`kdamon.mm.working_set.observation.Observation`; nothing can get in the way."""

    def end(self) -> WorkingSet:
        """See :class:`kdamon.mm.working_set.observation.Observation`."""
        assert self._begin is not None
        names = named_mappings(self._space.files)
        present, accessed, in_swap = [NO_RANGES], [NO_RANGES], [NO_RANGES]
        for part in self._parts(ranges_of(names), lambda: False):
            present.append(part.ranges(part.having(PRESENT)))
            accessed.append(part.ranges(part.having(PRESENT | ACCESSED)))
            in_swap.append(of_pages(part.pages[~part.huge][swapped(self._pagemap.entries(part.tables))]))
        there = joined(np.concatenate(present))
        touched, swap = joined(np.concatenate(accessed)), joined(np.concatenate(in_swap))
        return count(self._begin, End(names, there, swap, there, touched, NO_RANGES), reads=True)

    def _parts(self, mapped: U64Array, stop: Callable[[], bool]) -> Iterator[_Part]:
        """The pages in ``mapped``, some page tables at a time."""
        for blocks in self._pagemap.groups(joined(mapped)):
            if stop():
                return
            for first in range(0, len(blocks), _TABLES):
                yield _Part(self._space.pagemap, blocks[first : first + _TABLES])


def _wait_for_lock(pagemap: int) -> None:
    """Wait until no thread waits for the lock of the process's memory: one that maps all the time holds it often.

    :raises OSError: EBUSY the lock seems to be held for ever.
    """
    end = time.monotonic() + _PATIENCE
    while stays_locked(pagemap, LOCKED):
        if time.monotonic() > end:
            raise OSError(
                errno.EBUSY,
                "the process holds the lock of its memory, so kdamon does not read it; end it, it seems to wait for a "
                "file system that does not answer",
            )
        time.sleep(LOCKED)


class _Part:
    """The pages in some blocks of 2 MiB, as the page tables show them now.

    :ivar tables: the blocks that a page table maps.
    :ivar pages: an address for each entry, ascending.
    :ivar huge: which entries are of a whole block, or of a part of a larger page.
    """

    def __init__(self, pagemap: int, blocks: U64Array) -> None:
        self._pagemap = pagemap
        walker = shared_walker()
        levels = walker.young(pagemap, blocks[:, 0]) & LEVEL
        self.tables = blocks[levels == 1]
        whole = blocks[levels > 1, 0]
        pages = np.concatenate((Pagemap.pages(self.tables), whole))
        order = pages.argsort(kind="stable")
        self.pages = pages[order]
        self.huge: Mask = order >= len(pages) - len(whole)
        self._flags: U8Array
        self._flags, self._entries = walker.walk(pagemap, self.pages)

    def having(self, flags: int) -> Mask:
        """Which entries have all of ``flags``, shape (n,)."""
        return (self._flags & flags) == flags

    def ranges(self, rows: Mask) -> U64Array:
        """The addresses that the entries in ``rows`` map."""
        whole = self.pages[rows & self.huge]
        return union(of_pages(self.pages[rows & ~self.huge]), np.stack((whole, whole + np.uint64(PMD_SIZE)), axis=1))

    def bytes(self, rows: Mask) -> int:
        """How many bytes the entries in ``rows`` map."""
        return total(self.ranges(rows))

    def still_young(self, space: PageTableSpace) -> Mask:
        """Make all young pages old; returns which could not be, shape (n,).

        :raises OSError: EBUSY the process holds the lock of its memory.
        """
        young = np.flatnonzero(self.having(PRESENT | ACCESSED))
        if len(young):
            _wait_for_lock(self._pagemap)
        rows = np.zeros(len(self.pages), dtype=np.bool_)
        rows[young] = space.clear_looked_at(
            self.pages[young], self._flags[young], self._entries[young], neighbours=True
        )
        return rows
