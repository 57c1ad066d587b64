# SPDX-License-Identifier: GPL-2.0-only
"""How many bytes of each name are hot, warm, cold or unknown."""

from __future__ import annotations

import numpy as np
from attrs import define, field

from kdamon.arrays import F64Array, I64Array
from kdamon.monitoring.config import Config
from kdamon_tools.exports.selection import HEAT, UNNAMED, NamesOverTime, Selection, heat_of, named_parts
from kdamon_tools.output.readable import readable
from kdamon_tools.snapshot import Snapshot

__all__ = ["HeatSum", "heats", "split_name"]


def heats(snapshot: Snapshot, names: NamesOverTime, config: Config) -> tuple[list[str], I64Array]:
    """The names in a snapshot, and bytes of each by :data:`HEAT`, shape (names, 4)."""
    table = names.at(snapshot.time)
    parts = named_parts(snapshot.regions, table)
    heat = heat_of(snapshot.regions, config)[parts.region]
    numbers, which = np.unique(parts.name, return_inverse=True)
    sizes = np.bincount(which * len(HEAT) + heat, parts.size, len(numbers) * len(HEAT))
    texts = [UNNAMED if number < 0 else readable(table.names[number]) for number in numbers.tolist()]
    return texts, sizes.reshape(-1, len(HEAT)).astype(np.int64)


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
        config, names = selection.record.run.config, NamesOverTime(selection.record)
        for snapshot in selection.snapshots(part=part):
            length = snapshot.time - snapshot.began
            self.seconds += length
            for name, sizes in zip(*heats(snapshot, names, config), strict=True):
                before = self.byte_seconds.get(name)
                self.byte_seconds[name] = sizes * length + (0.0 if before is None else before)


def split_name(name: str) -> list[str]:
    """The file and the section of a name such as ``libc.so.6 .text``; or the name alone."""
    file, _, section = name.rpartition(" ")
    return [file, section] if file and section.startswith((".", "__libc_")) else [name]
