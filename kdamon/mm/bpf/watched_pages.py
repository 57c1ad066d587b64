# SPDX-License-Identifier: GPL-2.0-only
"""Pages that are looked at again later, and whether a sample of a region made one old meanwhile.

A page is made old once and looked at seconds later (:mod:`kdamon.mm.sampling.page_watch`). In between the sample of a
region may choose the same page: if it is young, it was accessed, and the sample makes it old, so that a later look
would not see the access. So whatever makes young pages old for a sample notes that here first: the BPF program of
:mod:`kdamon.mm.bpf.interval_program` and :class:`kdamon.mm.sampling.page_table.PageTableSpace`.

Each page has one place, by a hash of its address; where another page has it, it cannot be watched.
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np

from kdamon.arrays import Indexes, Mask, U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.mm.bpf.program import R1, R2, R3, Array, Assembler

__all__ = ["PLACES", "WatchedPages", "note_page"]

_SHIFT: Final = 15
#: How many places there are.
PLACES: Final = 1 << _SHIFT
#: Of the hash. One multiplication alone gives pages at certain distances the same place: how likely a page can be
#: watched would depend on where it is, and hot pages lie together.
_FACTOR: Final = 0x9E3779B97F4A7C15
_HALF: Final = 32
#: In the word of a page: a sample found it young, and made it old.
_SEEN: Final = 1
_PAGE: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF & -PAGE_SIZE)
#: Bytes of a place: the page with :data:`_SEEN`, and the page directory of its address space.
_SIZE_SHIFT: Final = 4


class WatchedPages:
    """The table, in memory that BPF programs share; all watches of this process use it.

    :raises OSError: EPERM without CAP_BPF.
    """

    def __init__(self) -> None:
        self._array = Array(PLACES << _SIZE_SHIFT)
        words = np.frombuffer(self._array.memory, dtype=np.uint64).reshape(-1, 2)
        self._pages: U64Array = words[:, 0]
        self._spaces: U64Array = words[:, 1]
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def fd(self) -> int:
        """The descriptor of the map, for programs."""
        return self._array.fd

    @property
    def in_use(self) -> bool:
        """Whether any page is watched."""
        return self._taken > 0

    def close(self) -> None:
        """Give the descriptor back."""
        self._array.close()

    @staticmethod
    def places(pages: U64Array) -> Indexes:
        """The place of each of ``pages``, shape (n,)."""
        mixed = pages * np.uint64(_FACTOR)
        mixed ^= mixed >> np.uint64(_HALF)
        mixed *= np.uint64(_FACTOR)
        return (mixed >> np.uint64(64 - _SHIFT)).astype(np.intp)

    def take(self, space: int, pages: U64Array, places: Indexes) -> Mask:
        """Watch ``pages`` of an address space from now on; returns which of them have their place now, shape (n,).

        :param space: its page directory.
        :param pages: leaves of its page tables, all different, shape (n,).
        :param places: of them; none is taken by the caller already.
        """
        with self._lock:
            free = self._spaces[places] == 0
            # Of several pages with one place the first one has it.
            first = np.zeros(len(places), dtype=np.bool_)
            first[np.unique(places, return_index=True)[1]] = True
            free &= first
            at = places[free]
            self._pages[at] = pages[free]
            self._spaces[at] = np.uint64(space)
            self._taken += len(at)
        return free

    def give_back(self, places: Indexes) -> None:
        """Watch the pages at ``places``, all different and taken, no more."""
        with self._lock:
            self._spaces[places] = 0
            self._pages[places] = 0
            self._taken -= len(places)

    def note(self, space: int, pages: U64Array) -> None:
        """Note those of ``pages`` that are watched: they are young, and are made old now."""
        places = self.places(pages)
        watched = (self._spaces[places] == np.uint64(space)) & (self._pages[places] & _PAGE == pages)
        if watched.any():
            self._pages[places[watched]] |= np.uint64(_SEEN)

    def seen(self, places: Indexes) -> Mask:
        """Which of the pages at ``places`` were noted since the last call, shape (n,)."""
        found: Mask = (self._pages[places] & np.uint64(_SEEN)) != 0
        if found.any():
            self._pages[places[found]] &= _PAGE
        return found


def note_page(asm: Assembler, fd: int, page: int, space: int) -> None:
    """As :meth:`WatchedPages.note`, of one page in a BPF program; R1 to R3 are lost.

    :param fd: of the table.
    :param page: the register that has its address, none of these.
    :param space: that has its page directory, likewise.
    """
    asm.op_reg("mov", R1, page)
    asm.load_number(R2, _FACTOR)
    asm.op_reg("mul", R1, R2)
    asm.op_reg("mov", R3, R1)
    asm.op("rsh", R3, _HALF)
    asm.op_reg("xor", R1, R3)
    asm.op_reg("mul", R1, R2)
    asm.op("rsh", R1, 64 - _SHIFT)
    asm.op("lsh", R1, _SIZE_SHIFT)
    asm.load_map_value(R2, fd)
    asm.op_reg("add", R2, R1)
    asm.load(R1, R2, 8)
    asm.jump_if_reg("jne", R1, space, "not watched")
    asm.load(R1, R2, 0)
    asm.op_reg("mov", R3, R1)
    asm.op("and", R3, -PAGE_SIZE)
    asm.jump_if_reg("jne", R3, page, "not watched")
    asm.op("or", R1, _SEEN)
    asm.store(8, R2, 0, R1)
    asm.label("not watched")
