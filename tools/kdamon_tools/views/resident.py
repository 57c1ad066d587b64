# SPDX-License-Identifier: GPL-2.0-only
"""How much of what lies in regions is in memory, and in swap, by name."""

from __future__ import annotations

from typing import Final

import numpy as np

from kdamon.arrays import F64Array, Indexes, Records, U64Array
from kdamon.mm.ranges import NO_RANGES, in_order, intersect, subtract
from kdamon.monitoring.residency import Residency
from kdamon.names.table import NameTable
from kdamon_tools.snapshot import Recording, Snapshot
from kdamon_tools.views.grid import bytes_in
from kdamon_tools.views.regions import NO_NAME

__all__ = ["ANON", "FILE", "KINDS", "SWAPPED", "UNKNOWN", "ResidentNames", "known_snapshots"]

#: What memory is: rows of :meth:`ResidentNames.sums`.
KINDS: Final = ("anon", "file", "swapped", "unknown")
ANON, FILE, SWAPPED, UNKNOWN = range(4)
_EVERYTHING: Final = np.array([[0, (1 << 64) - 1]], np.uint64)


def known_snapshots(recording: Recording) -> list[Snapshot]:
    """The snapshots of which it is known what was in memory."""
    return [snapshot for snapshot in recording.snapshots if snapshot.residency is not None]


class ResidentNames:
    """Adds up what is in memory, by name.

    :param table: None: nothing has a name.
    :ivar names: all names, raw; the last one is :data:`NO_NAME`.
    """

    def __init__(self, table: NameTable | None) -> None:
        rows = np.empty(0, [("start", "<u8"), ("end", "<u8"), ("name", "<i4")]) if table is None else table.rows
        used, which = np.unique(rows["name"], return_inverse=True)
        self.names = [*([] if table is None else (table.names[number] for number in used)), NO_NAME]
        named: U64Array = np.stack([rows["start"], rows["end"]], axis=1)
        #: All addresses, those without a name, too, and the places of their names.
        self._ranges = in_order(named, subtract(_EVERYTHING, named) if len(named) else _EVERYTHING)
        self._which = np.full(len(self._ranges), len(self.names) - 1)
        self._which[np.searchsorted(self._ranges[:, 0], named[:, 0])] = which
        self._of: Residency | None = None
        self._places, self._shares, self._of_place = NO_RANGES, np.zeros((4, 0)), np.empty(0, np.intp)

    def sums(self, snapshot: Snapshot, factors: F64Array) -> F64Array:
        """Bytes of the regions in memory, in swap and unknown, each times its region's factor.

        :param snapshot: with ``residency``.
        :param factors: shape (k, number of regions).
        :returns: shape (k, 4, number of names), by :data:`KINDS`.
        """
        assert snapshot.residency is not None
        sums = np.zeros((len(factors), len(KINDS), len(self.names)))
        self._divide(snapshot.residency)
        if not len(snapshot.regions) or not len(self._places):
            return sums
        for found, factor in zip(sums, factors, strict=True):
            sizes = bytes_in(snapshot, self._places, factor)
            for kind, shares in enumerate(self._shares):
                found[kind] = np.bincount(self._of_place, sizes * shares, len(self.names))
        # What is left of a sum of doubles is no byte.
        return np.where(sums < 0.5, 0.0, sums)

    def _divide(self, residency: Residency) -> None:
        """Cut what is in memory where another name begins; snapshots of a second have the same."""
        if residency is self._of:
            return
        self._of, rows = residency, residency.rows
        bounds: U64Array = np.stack([rows["start"], rows["end"]], axis=1)
        self._places = intersect(bounds, self._ranges)
        row = rows[np.searchsorted(rows["end"], self._places[:, 0], side="right")]
        sizes = (row["end"] - row["start"]).astype(np.float64)
        self._shares = np.stack([row[name] / sizes for name in KINDS])
        self._of_place = self._which[np.searchsorted(self._ranges[:, 1], self._places[:, 0], side="right")]

    def names_at(self, addresses: U64Array) -> Indexes:
        """The places in :attr:`names` of what lies at addresses, shape (n,)."""
        found: Indexes = self._which[np.searchsorted(self._ranges[:, 1], addresses, side="right")]
        return found

    def looks(self, looks: Records, state: int) -> F64Array:
        """How many of ``looks``, rows of :data:`kdamon.LOOK`, found a state, by name."""
        return np.bincount(self.names_at(looks["addr"][looks["state"] == state]), minlength=len(self.names)).astype(
            np.float64
        )
