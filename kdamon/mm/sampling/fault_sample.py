# SPDX-License-Identifier: GPL-2.0-only
"""One sample by faults, from PAGEMAP_SCAN: used where the faults themselves cannot be recorded.

A page without write protection alone is no sign of a write: most pages were never protected, and the protection also
disappears with the mapping or with the page. So each page begins in a state, and only some changes of it are accesses.
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import Final

import numpy as np

from kdamon.arrays import Indexes, Mask, U8Array, U64Array
from kdamon.mm import FAULT_DTYPE, Faults
from kdamon.mm.sampling.uffd import ACCESSED, FILE, HUGE, PRESENT, WPALLOWED, WRITTEN, ZERO, Pages

__all__ = ["FaultSample", "State", "States"]

#: A :class:`State` for each page.
States = U8Array


class State(IntEnum):
    """A sampled page when its sample begins."""

    #: Write-protected: a write takes the protection off.
    ARMED = 0
    #: No page, in a registered mapping: a page that appears was accessed.
    EMPTY = 1
    #: In swap, or on its way: an access, perhaps a read, brings it back.
    SWAPPED = 2
    #: Part of a huge page of a file in a private mapping: a write makes a copy.
    COPIED = 3
    #: In a mapping without write permission.
    SPARED = 4
    #: No page, in no registered mapping: a page that appears may have been moved there.
    BARE = 5
    #: A page that cannot be armed.
    UNKNOWN = 6
    #: Protected where reads fault: an access takes the protection off.
    GUARDED = 7
    #: As EMPTY, where reads fault.
    FREE = 8
    #: As SWAPPED, where reads fault.
    AWAY = 9


_ALL: Final = (1 << 64) - 1
_UNKNOWN: Final = np.uint8(State.UNKNOWN)
_NO_ROWS: Final[Indexes] = np.empty(0, dtype=np.intp)


def _table(*masks: int) -> U64Array:
    """Masks of categories by state."""
    return np.array(masks, dtype=np.uint64)


_COME: Final = PRESENT | WPALLOWED
_WRITTEN: Final = _COME | WRITTEN
_MAPPED: Final = PRESENT | ACCESSED
#: By state: categories that a page has once it was accessed, those that it does not have, and those that it does not
#: have if it was written.
_ACCESSED: Final = _table(_WRITTEN, _COME, _COME, _WRITTEN, _ALL, _ALL, _ALL, ACCESSED, _MAPPED, _MAPPED)
_NOT_ACCESSED: Final = _table(HUGE, HUGE, HUGE, HUGE | FILE, 0, 0, 0, 0, 0, 0)
_NOT_WRITTEN: Final = _table(ZERO, ZERO | FILE, _ALL, ZERO, 0, 0, 0, _ALL, ZERO | FILE | HUGE, _ALL)
#: By state: categories of a page whose state is unknown from then on, and those that a page with a known state has.
_LOST: Final = _table(HUGE, HUGE, HUGE, 0, 0, PRESENT, 0, 0, 0, 0)
_KEPT: Final = _table(WPALLOWED, WPALLOWED, WPALLOWED, WPALLOWED, 0, 0, 0, 0, ACCESSED, ACCESSED)


class FaultSample:
    """The pages of one sample.

    :param pages: their addresses, shape (n,).
    :param states: how they begin, shape (n,).
    """

    def __init__(self, pages: U64Array, states: States) -> None:
        #: Which pages' state is unknown, shape (n,).
        self.unknown: Mask = states == _UNKNOWN
        self._pages, self._states = pages, states
        #: Those that may be accessed yet; None: all whose state is not unknown.
        self._rows: Indexes | None = None

    def faults(self, table: Pages, pid: int) -> Faults:
        """The pages that were accessed since the last call: each once, without thread and CPU.

        :param table: the pages of the address space.
        :param pid: the process that is named.
        """
        rows = (~self.unknown).nonzero()[0] if self._rows is None else self._rows
        if not len(rows):
            return np.empty(0, dtype=FAULT_DTYPE)
        pages, states = self._pages[rows], self._states[rows]
        categories = table.categories(pages)
        accessed = (~categories & _ACCESSED[states] == 0) & (categories & _NOT_ACCESSED[states] == 0)
        present = (categories & np.uint64(PRESENT)) != 0
        lost = present & ((categories & _LOST[states] != 0) | (~categories & _KEPT[states] != 0))
        faults = np.zeros(int(accessed.sum()), dtype=FAULT_DTYPE)
        faults["time"], faults["pid"] = time.monotonic_ns(), pid
        faults["cpu"] = faults["node_id"] = -1
        faults["addr"] = pages[accessed]
        faults["write"] = ((categories & _NOT_WRITTEN[states]) == 0)[accessed]
        self.unknown[rows[lost]] = True
        self._rows = rows[~accessed & ~lost]
        return faults

    def end(self) -> None:
        """Find no more accesses; unknown pages stay unknown."""
        self._rows = _NO_ROWS
