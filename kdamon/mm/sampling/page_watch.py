# SPDX-License-Identifier: GPL-2.0-only
"""Watches single pages of a process by their accessed bits, beside the samples of regions.

The pages are made old once, as for a sample, and looked at later. Samples that make one of them old again note before
that it was young (:mod:`kdamon.mm.bpf.watched_pages`). Others do not: reclaim, a DAMON of the kernel, another kdamon.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np

from kdamon.arrays import Indexes, Mask, U8Array, U64Array
from kdamon.kernel import PMD_SIZE
from kdamon.mm import Watched
from kdamon.mm.bpf.walk_program import ACCESSED, LEVEL, PRESENT, SHARED
from kdamon.mm.bpf.walker import Walker
from kdamon.mm.bpf.watched_pages import PLACES
from kdamon.mm.mmap_lock import stays_locked
from kdamon.mm.proc.pagemap import anonymous, entries_at, present

__all__ = ["PageTableWatch"]

_PMD_MASK: Final = ~np.uint64(PMD_SIZE - 1)
#: Pages that are made old, and looked at, at once: a sample of regions may have to wait that long.
_MADE_OLD: Final = 64
_LOOKED_AT: Final = 512
#: Seconds for which others wait for the lock of the process's memory, before that counts as held for ever.
_LOCKED: Final = 0.02
_ANON, _FILE = 1, 2


class _Space(Protocol):
    """What it needs of :class:`kdamon.mm.sampling.page_table.PageTableSpace`."""

    @property
    def pagemap(self) -> int: ...

    def alive(self) -> bool: ...

    def clear_looked_at(self, pages: U64Array, flags: U8Array, entries: U64Array) -> Mask: ...


class PageTableWatch:
    """Implements :class:`kdamon.mm.PageWatch`.

    :param space: the address space; it stays the caller's.
    """

    size = PLACES

    def __init__(self, space: _Space, walker: Walker) -> None:
        self._space = space
        self._walker = walker
        self._directory = walker.page_directory(space.pagemap)[1]
        self._own = np.zeros(PLACES, dtype=np.bool_)
        #: The page of each place.
        self._leaves = np.zeros(PLACES, dtype=np.uint64)

    def begin(self, pages: U64Array) -> Watched:
        """See :class:`kdamon.mm.PageWatch`."""
        there, young, unknown = np.zeros((3, len(pages)), dtype=np.bool_)
        places = np.full(len(pages), -1, dtype=np.intp)
        if not self._space.alive():
            return Watched(places, there, young, unknown)
        for first in range(0, len(pages), _LOOKED_AT):
            part = slice(first, first + _LOOKED_AT)
            places[part], there[part], young[part], unknown[part] = self._begin(pages[part])
        return Watched(places, there, young, unknown)

    def _begin(self, pages: U64Array) -> tuple[Indexes, Mask, Mask, Mask]:
        flags, entries = self._walker.walk(self._space.pagemap, pages)
        there = (flags & PRESENT) != 0
        leaves = np.where(there & ((flags & LEVEL) == 2), pages & _PMD_MASK, pages)
        places = self._take(leaves)
        kept = places >= 0
        young = kept & ((flags & ACCESSED) != 0)
        # No advice makes a shared page old.
        shared = young & ((flags & SHARED) != 0)
        unknown = (flags == 0) | shared
        rows = np.flatnonzero(young & ~shared)
        if len(rows):
            # Each leaf once.
            rows = rows[np.unique(leaves[rows], return_index=True)[1]]
            failed = self._make_old(leaves[rows], flags[rows], entries[rows])
            unknown |= np.isin(leaves, leaves[rows[failed]])
        young[kept] |= self._walker.watched.seen(places[kept])
        return places, there, young, unknown

    def _take(self, leaves: U64Array) -> Indexes:
        """The places of ``leaves``; -1 where another page has it."""
        watched = self._walker.watched
        places = watched.places(leaves)
        new = np.flatnonzero(~self._own[places])
        new = new[np.unique(leaves[new], return_index=True)[1]]
        taken = new[watched.take(self._directory, leaves[new], places[new])]
        self._own[places[taken]] = True
        self._leaves[places[taken]] = leaves[taken]
        mine = self._own[places] & (self._leaves[places] == leaves)
        return np.where(mine, places, -1)

    def _make_old(self, leaves: U64Array, flags: U8Array, entries: U64Array) -> Mask:
        """Make young pages old, some at a time; returns which could not be, shape (n,)."""
        failed = np.ones(len(leaves), dtype=np.bool_)
        for first in range(0, len(leaves), _MADE_OLD):
            if stays_locked(self._space.pagemap, _LOCKED):
                break
            part = slice(first, first + _MADE_OLD)
            failed[part] = self._space.clear_looked_at(leaves[part], flags[part], entries[part])
        return failed

    def look(self, pages: U64Array, places: Indexes) -> tuple[Mask, Mask]:
        """See :class:`kdamon.mm.PageWatch`."""
        there, young = np.zeros((2, len(pages)), dtype=np.bool_)
        if not self._space.alive():
            return there, young
        for first in range(0, len(pages), _LOOKED_AT):
            part = slice(first, first + _LOOKED_AT)
            flags = self._walker.young(self._space.pagemap, pages[part])
            there[part] = (flags & PRESENT) != 0
            young[part] = (flags & ACCESSED) != 0
        kept = places >= 0
        young[kept] |= self._walker.watched.seen(places[kept])
        return there, young

    def kinds(self, pages: U64Array) -> U8Array:
        """See :class:`kdamon.mm.PageWatch`."""
        entries = entries_at(self._space.pagemap, pages)
        return np.where(anonymous(entries), _ANON, present(entries) * _FILE).astype(np.uint8)

    def end(self, places: Indexes) -> None:
        """See :class:`kdamon.mm.PageWatch`."""
        self._own[places] = False
        self._walker.watched.give_back(places)

    def close(self) -> None:
        """See :class:`kdamon.mm.PageWatch`."""
        self.end(np.flatnonzero(self._own))
