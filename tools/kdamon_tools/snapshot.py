# SPDX-License-Identifier: GPL-2.0-only
"""What monitoring saw, as plain values: the only thing that reporters and comparisons know.

Nothing here refers to a running monitor, so a test writes a snapshot as a literal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

import kdamon
from kdamon.monitoring.config import Range
from kdamon.monitoring.snapshot import REGION, RegionTable, Snapshot
from kdamon_tools.origin import Origin

if TYPE_CHECKING:
    from kdamon_tools.mapping_history import MappingLog

__all__ = ["REGION", "Config", "Counters", "Range", "Recording", "RegionTable", "Snapshot"]


@frozen
class Config(kdamon.Config):
    """How a recording was made, see :class:`kdamon.Config`.

    :ivar command: the command that was started for it, empty if the process was there before.
    """

    command: tuple[str, ...] = ()


@frozen
class Counters(kdamon.Counters):
    """How well the monitoring went, see :class:`kdamon.Counters`, and its reports from and to others.

    :ivar producers: what went through the rings of other processes, by name; empty if none were served.
    :ivar recorded: how many reports were ``written`` to a file and how many were ``lost``; empty if none was asked for.
    """

    producers: dict[str, int] = field(factory=dict)
    recorded: dict[str, int] = field(factory=dict)


@frozen(eq=False)
class Recording:
    """Everything that one run gathered.

    :ivar started: CLOCK_MONOTONIC seconds when monitoring began.
    :ivar ended: the same for its end.
    :ivar note: why it ended, as a sentence without capital and full stop.
    :ivar remarks: what else a person should know about it, as such sentences.
    :ivar origin: the machine and the wall clock, as far as they are known.
    :ivar mappings: of the process; None where they were not read.
    """

    config: Config
    snapshots: list[Snapshot]
    counters: Counters
    started: float
    ended: float
    note: str = ""
    remarks: tuple[str, ...] = ()
    origin: Origin = field(factory=Origin)
    mappings: MappingLog | None = None

    @property
    def seconds(self) -> float:
        """How long was monitored."""
        return max(0.0, self.ended - self.started)

    def pauses(self) -> list[tuple[float, float]]:
        """From when to when no snapshot tells of anything, CLOCK_MONOTONIC seconds, in order.

        They may be very short: a run begins and ends within an aggregation interval.
        """
        begins = [self.started, *(snapshot.time for snapshot in self.snapshots)]
        ends = [*(snapshot.began for snapshot in self.snapshots), self.ended]
        return [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]
