# SPDX-License-Identifier: GPL-2.0-only
"""The protocol of watches of single pages, one of :mod:`kdamon.mm`'s, which has them all."""

from __future__ import annotations

from typing import Protocol

from kdamon.arrays import Indexes, Mask, U8Array, U64Array
from kdamon.mm.values import Watched

__all__ = ["PageWatch"]


class PageWatch(Protocol):
    """Observes accesses to single pages over seconds, whatever else samples them meanwhile.

    Each page that is watched has a number, below :attr:`size`. Only one thread at a time may use it.
    """

    @property
    def size(self) -> int:
        """How many numbers there are."""
        ...

    def begin(self, pages: U64Array) -> Watched:
        """Make ``pages`` old, and watch them from the end of this call on.

        :param pages: addresses, multiples of the page size, any order, shape (n,).
        """
        ...

    def look(self, pages: U64Array, places: Indexes) -> tuple[Mask, Mask]:
        """Look at watched pages: which are in memory, and which were accessed since they were made old or looked at.

        A page that was accessed may be so again at the next look.

        :param pages: addresses, shape (n,).
        :param places: the numbers that :meth:`begin` gave them, -1 for none.
        """
        ...

    def kinds(self, pages: U64Array) -> U8Array:
        """The kinds of pages: 0 not in memory or not known, 1 anonymous, 2 of a file or shared memory, shape (n,)."""
        ...

    def end(self, places: Indexes) -> None:
        """Watch the pages with the numbers ``places``, all different, no more."""
        ...

    def close(self) -> None:
        """Watch no page any more."""
        ...
