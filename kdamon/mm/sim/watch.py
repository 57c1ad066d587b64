# SPDX-License-Identifier: GPL-2.0-only
"""Watches single pages of a simulated process."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np

from kdamon.arrays import Indexes, Mask, U8Array, U64Array
from kdamon.kernel import VirtualClock
from kdamon.mm import YOUNG, Answers, Watched
from kdamon.mm.ranges import inside

__all__ = ["SimWatch"]

_SHIFT: Final = 15
_FACTOR: Final = 0x9E3779B97F4A7C15


class _Process(Protocol):
    """What it needs of :class:`kdamon.mm.sim.process.SimProcess`."""

    clock: VirtualClock
    unknown: list[tuple[int, int]]
    alive: bool

    def vmas(self) -> U64Array: ...

    def accessed(self, addrs: U64Array, begin: float, until: float) -> Answers: ...


class SimWatch:
    """Implements :class:`kdamon.mm.PageWatch`: accesses since the last look are drawn at each look.

    :param process: the process; it stays the caller's.
    """

    size = 1 << _SHIFT

    def __init__(self, process: _Process) -> None:
        self._process = process
        #: The page of each place, 0 for none; since when its accesses were not drawn, seconds; whether it is young.
        self._pages = np.zeros(self.size, np.uint64)
        self._since = np.zeros(self.size)
        self._young = np.zeros(self.size, np.bool_)

    def begin(self, pages: U64Array) -> Watched:
        """See :class:`kdamon.mm.PageWatch`."""
        # As in kdamon.mm.bpf.watched_pages: which pages have the same place must not depend on where they are.
        mixed = pages * np.uint64(_FACTOR)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(_FACTOR)
        places = (mixed >> np.uint64(64 - _SHIFT)).astype(np.intp)
        free = self._pages[places] == 0
        self._pages[places[free]] = pages[free]
        places[self._pages[places] != pages] = -1
        new = places[free & (places >= 0)]
        self._since[new], self._young[new] = self._now(), False
        kept = places[places >= 0]
        self._draw(np.unique(kept))
        unknown = np.zeros(len(pages), np.bool_)
        for start, end in self._process.unknown:
            unknown |= (pages >= start) & (pages < end)
        young = np.zeros(len(pages), np.bool_)
        young[places >= 0] = self._young[kept]
        self._young[kept] = False
        return Watched(places, self._there(pages), young, unknown)

    def look(self, pages: U64Array, places: Indexes) -> tuple[Mask, Mask]:
        """See :class:`kdamon.mm.PageWatch`."""
        self._draw(np.unique(places))
        there = self._there(pages)
        return there, self._young[places] & there

    def kinds(self, pages: U64Array) -> U8Array:
        """See :class:`kdamon.mm.PageWatch`; all is anonymous."""
        return self._there(pages).astype(np.uint8)

    def end(self, places: Indexes) -> None:
        """See :class:`kdamon.mm.PageWatch`."""
        self._pages[places] = 0

    def close(self) -> None:
        """See :class:`kdamon.mm.PageWatch`."""
        self._pages[:] = 0

    def _now(self) -> float:
        return self._process.clock.now() / 1e9

    def _there(self, pages: U64Array) -> Mask:
        return inside(self._process.vmas(), pages) & self._process.alive

    def _draw(self, places: Indexes) -> None:
        """Draw what was accessed since it was drawn last."""
        now = self._now()
        for since in np.unique(self._since[places]):
            of_one = places[self._since[places] == since]
            self._young[of_one] |= self._process.accessed(self._pages[of_one], float(since), now) == YOUNG
        self._since[places] = now
