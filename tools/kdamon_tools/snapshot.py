# SPDX-License-Identifier: GPL-2.0-only
"""The results of monitoring as plain values, the only input of reporters and comparisons.

They do not refer to a running monitor, so a test can write a snapshot as a literal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import field, frozen

import kdamon
from kdamon.monitoring.config import Range
from kdamon.monitoring.snapshot import REGION, RegionTable, Snapshot
from kdamon.monitoring.use import LOOK
from kdamon_tools.origin import Origin

if TYPE_CHECKING:
    from kdamon.arrays import F64Array, Records
    from kdamon.names.table import NameTable
    from kdamon_tools.groups import GroupLog
    from kdamon_tools.mapping_history import MappingLog

__all__ = [
    "KEPT_LOOKS_S",
    "REGION",
    "Config",
    "Counters",
    "Range",
    "Recording",
    "RegionTable",
    "Resident",
    "Snapshot",
]

#: Seconds for which looks at watched pages count for the end of a recording.
KEPT_LOOKS_S: Final = 12.0


@frozen
class Config(kdamon.Config):
    """The monitoring request of a recording, see :class:`kdamon.Config`.

    :ivar command: the command that was started for it, empty for a process that already ran.
    """

    command: tuple[str, ...] = ()


@frozen
class Counters(kdamon.Counters):
    """The quality of the monitoring, see :class:`kdamon.Counters`, and counts of received and recorded reports.

    :ivar producers: the counters of other processes' rings, by name; empty if none were served.
    :ivar recorded: the numbers of reports ``written`` to a file and ``lost``; empty without a recording.
    """

    producers: dict[str, int] = field(factory=dict)
    recorded: dict[str, int] = field(factory=dict)


@frozen(eq=False)
class Resident:
    """How much of a process was in memory, at several times; a number that is not known is NaN.

    :ivar times: CLOCK_MONOTONIC seconds, ascending, shape (n,).
    :ivar sizes: bytes in memory, shape (n,).
    :ivar swapped: bytes in swap, shape (n,).
    """

    times: F64Array
    sizes: F64Array
    swapped: F64Array


@frozen(eq=False)
class Recording:
    """The data of one run.

    :ivar started: CLOCK_MONOTONIC seconds when monitoring began.
    :ivar ended: the same for its end.
    :ivar note: the reason for its end, a sentence without capital and full stop.
    :ivar remarks: further remarks for the user, in the same form.
    :ivar origin: the machine and the wall clock, as far as they are known.
    :ivar mappings: of the process; None where they were not read.
    :ivar groups: which CPUs, threads or nodes made the accesses; None where that was not asked for.
    :ivar names: what lies, or lay last, at each address; None where that is not known.
    :ivar resident: bytes of the process that were in memory; None where that was not recorded.
    :ivar looks: the looks at watched pages whose windows ended in the last :data:`KEPT_LOOKS_S`, rows of
        :data:`kdamon.LOOK`; none where no pages were watched.
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
    groups: GroupLog | None = None
    names: NameTable | None = None
    resident: Resident | None = None
    looks: Records = field(factory=lambda: np.empty(0, LOOK))

    @property
    def seconds(self) -> float:
        """The duration of monitoring, seconds."""
        return max(0.0, self.ended - self.started)

    def pauses(self) -> list[tuple[float, float]]:
        """Begin and end of the pauses that no snapshot covers, CLOCK_MONOTONIC seconds, in order.

        They may be very short: a run begins and ends within an aggregation interval.
        """
        begins = [self.started, *(snapshot.time for snapshot in self.snapshots)]
        ends = [*(snapshot.began for snapshot in self.snapshots), self.ended]
        return [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]
