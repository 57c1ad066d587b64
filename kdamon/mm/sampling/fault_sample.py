# SPDX-License-Identifier: GPL-2.0-only
"""One sample by faults, as PAGEMAP_SCAN shows it: for where the faults themselves cannot be recorded.

A page that is not write-protected is no sign of a write by itself: most never were, and protection also goes with the
mapping or with the page. So each page begins in a state, and only some ways out of it are an access.
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import Final

import numpy as np

from kdamon.arrays import U8Array, U64Array
from kdamon.mm import FAULT_DTYPE, Faults
from kdamon.mm.sampling.uffd import FILE, HUGE, PRESENT, WPALLOWED, WRITTEN, ZERO, Pages

__all__ = ["FaultSample", "State", "States"]

#: A :class:`State` for each page.
States = U8Array


class State(IntEnum):
    """A sampled page when its sample begins."""

    #: Write-protected: a write takes the protection off.
    ARMED = 0
    #: Nothing is there, in a mapping that is registered: what comes came by an access.
    EMPTY = 1
    #: In swap, or on its way: it comes by an access, but perhaps by a read.
    SWAPPED = 2
    #: Part of a huge page of a file in a private mapping: a write makes a copy.
    COPIED = 3
    #: In a mapping that nobody writes.
    SPARED = 4
    #: Nothing is there, in no registered mapping: what comes may have been moved there.
    BARE = 5
    #: Something is there that cannot be armed.
    UNKNOWN = 6


_ALL: Final = (1 << 64) - 1


def _table(*masks: int) -> U64Array:
    """Masks of categories by state."""
    return np.array(masks, dtype=np.uint64)


_COME: Final = PRESENT | WPALLOWED
_WRITTEN: Final = _COME | WRITTEN
#: By state: categories that a page has once it was accessed, those that it does not have, and those that it does not
#: have if it was written.
_ACCESSED: Final = _table(_WRITTEN, _COME, _COME, _WRITTEN, _ALL, _ALL)
_NOT_ACCESSED: Final = _table(HUGE, HUGE, HUGE, HUGE | FILE, 0, 0)
_NOT_WRITTEN: Final = _table(ZERO, ZERO | FILE, _ALL, ZERO, 0, 0)
#: By state: categories of a page of which nothing is known any more, and those that one has of which something is.
_LOST: Final = _table(HUGE, HUGE, HUGE, 0, 0, PRESENT)
_KEPT: Final = _table(WPALLOWED, WPALLOWED, WPALLOWED, WPALLOWED, 0, 0)


class FaultSample:
    """The pages of one sample.

    :param pages: their addresses, shape (n,).
    :param states: how they begin, shape (n,).
    """

    def __init__(self, pages: U64Array, states: States) -> None:
        unknown = states == State.UNKNOWN
        #: Pages of which nothing is known.
        self.unknown: U64Array = pages[unknown]
        self._pages, self._states = pages[~unknown], states[~unknown]

    def faults(self, table: Pages, pid: int) -> Faults:
        """Which pages were accessed since they were last asked about: each once, without who did it.

        :param table: the pages of the address space.
        :param pid: the process that is named.
        """
        if not len(self._pages):
            return np.empty(0, dtype=FAULT_DTYPE)
        categories = table.categories(self._pages)
        accessed = (~categories & _ACCESSED[self._states] == 0) & (categories & _NOT_ACCESSED[self._states] == 0)
        present = (categories & np.uint64(PRESENT)) != 0
        lost = present & ((categories & _LOST[self._states] != 0) | (~categories & _KEPT[self._states] != 0))
        faults = np.zeros(int(accessed.sum()), dtype=FAULT_DTYPE)
        faults["time"], faults["pid"] = time.monotonic_ns(), pid
        faults["cpu"] = faults["node_id"] = -1
        faults["addr"] = self._pages[accessed]
        faults["write"] = ((categories & _NOT_WRITTEN[self._states]) == 0)[accessed]
        self.unknown = np.append(self.unknown, self._pages[lost])
        rest = ~accessed & ~lost
        self._pages, self._states = self._pages[rest], self._states[rest]
        return faults

    def end(self) -> None:
        """Find no more accesses; what is unknown stays so."""
        self._pages, self._states = self._pages[:0], self._states[:0]
