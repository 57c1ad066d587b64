# SPDX-License-Identifier: GPL-2.0-only
"""How many bytes of each name are hot, warm, cold or unknown: of what is in memory where that is known."""

from __future__ import annotations

from typing import Final

import numpy as np
from attrs import define, field

from kdamon.arrays import F64Array, I64Array
from kdamon.names.table import NameTable
from kdamon.records.tables import NamesOverTime
from kdamon_tools.output.readable import readable
from kdamon_tools.recorded.recording import config_of
from kdamon_tools.recorded.selection import Selection
from kdamon_tools.snapshot import Snapshot
from kdamon_tools.views.regions import Named, kinds_of
from kdamon_tools.views.resident import SWAPPED, UNKNOWN, ResidentNames

__all__ = ["HEAT", "HeatSum", "Heats", "split_name"]

#: The kinds of memory, in the order of :func:`kdamon_tools.views.regions.kinds_of`.
HEAT: Final = ("hot", "warm", "cold", "unknown")


class Heats:
    """Adds up the memory in snapshots of ``selection``, which ascend in time, by name and heat.

    In a record that says what was in memory, a snapshot before that was known is unknown.
    """

    def __init__(self, selection: Selection) -> None:
        self._config = config_of(selection.record.run)
        self._names = NamesOverTime(selection.record.name_tables())
        self._table: NameTable | None = None
        self._named = Named(None)
        self._resident = ResidentNames(None)
        self._in_memory = next(selection.record.residencies(), None) is not None

    def of(self, snapshot: Snapshot) -> tuple[list[str], I64Array]:
        """The names in a snapshot, and bytes of each by :data:`HEAT`, shape (names, 4)."""
        table = self._names.at(snapshot.time)
        if table is not self._table:
            self._table, self._named, self._resident = table, Named(table), ResidentNames(table)
        sums = self._sums(snapshot).T.round().astype(np.int64)
        used = np.flatnonzero(sums.any(axis=1)).tolist()
        return [readable(self._named.names[number]) for number in used], sums[used]

    def resident(self, snapshot: Snapshot) -> dict[str, I64Array]:
        """By name, anonymous bytes in memory, those of files, and bytes in swap; after :meth:`of`."""
        if snapshot.residency is None:
            return {}
        sums = self._resident.sums(snapshot, np.ones((1, len(snapshot.regions))))[0, :UNKNOWN].T
        names = map(readable, self._resident.names)
        return dict(zip(names, sums.round().astype(np.int64), strict=True))

    def _sums(self, snapshot: Snapshot) -> F64Array:
        """By kind and name."""
        kinds = kinds_of(snapshot, self._config)
        if not self._in_memory:
            return self._named.sums(snapshot, kinds)
        if snapshot.residency is None:
            kinds = np.zeros_like(kinds)
            kinds[-1] = 1
            return self._named.sums(snapshot, kinds)
        sums = self._resident.sums(snapshot, kinds)
        heats: F64Array = sums[:, :SWAPPED].sum(axis=1)
        heats[-1] += sums[:, UNKNOWN].sum(axis=0)
        return heats


@define
class HeatSum:
    """Bytes by name and heat over time.

    :ivar byte_seconds: by name, a value for each of :data:`HEAT`.
    :ivar seconds: that the snapshots cover.
    """

    byte_seconds: dict[str, F64Array] = field(factory=dict)
    seconds: float = 0.0

    def add(self, selection: Selection, *, part: float = 1.0) -> None:
        """Add the snapshots of ``selection``, which is ``part`` of the work."""
        heats = Heats(selection)
        for snapshot in selection.snapshots(part=part):
            length = snapshot.time - snapshot.began
            self.seconds += length
            for name, sizes in zip(*heats.of(snapshot), strict=True):
                before = self.byte_seconds.get(name)
                self.byte_seconds[name] = sizes * length + (0.0 if before is None else before)


def split_name(name: str) -> list[str]:
    """The file and the section of a name such as ``libc.so.6 .text``; or the name alone."""
    file, _, section = name.rpartition(" ")
    return [file, section] if file and section.startswith((".", "__libc_")) else [name]
