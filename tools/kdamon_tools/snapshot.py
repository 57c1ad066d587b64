# SPDX-License-Identifier: GPL-2.0-only
"""What monitoring saw, as plain values: the only thing that reporters and comparisons know.

Nothing here refers to a running monitor, so a test writes a snapshot as a literal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from kdamon_tools.defaults import AGGR_US, MAX_REGIONS, MIN_REGIONS, SAMPLE_US, UPDATE_US
from kdamon_tools.origin import Origin

if TYPE_CHECKING:
    from kdamon_tools.mapping_history import MappingLog

__all__ = ["REGION", "Config", "Counters", "Range", "Recording", "RegionTable", "Snapshot"]

#: One region: bytes, accesses and unknown samples per aggregation interval, age in aggregation intervals. The
#: counters are fractions only where several aggregations were merged into one snapshot.
REGION: Final = np.dtype(
    [("start", "<u8"), ("end", "<u8"), ("nr_accesses", "<f4"), ("age", "<u4"), ("nr_unknown", "<f4")]
)
RegionTable = npt.NDArray[np.void]
Range = tuple[int, int]


@frozen
class Config:
    """How a recording was made; intervals in microseconds.

    :ivar pid: the monitored process; 0 for physical memory.
    :ivar ops: the operations set's keyword.
    :ivar command: what was started for it, empty if the process was there before.
    :ivar ranges: monitored ranges in bytes where they were given, else empty.
    :ivar vaddr_regions: which memory vaddr monitors: what is populated in ``mappings``, or as the ``kernel`` does all
        between the first and the last mapping but the two biggest gaps.
    :ivar primitive: how accesses were sampled, page_table or page_fault; empty if reports of others alone counted.
    :ivar write_only: only writes counted.
    :ivar cpus: only accesses made by these CPUs counted; empty is all.
    :ivar tids: only accesses made by these threads counted; empty is all.
    :ivar density: how densely regions are accessed was estimated from reports.
    """

    pid: int
    ops: str = "vaddr"
    command: tuple[str, ...] = ()
    sample_us: int = SAMPLE_US
    aggr_us: int = AGGR_US
    update_us: int = UPDATE_US
    min_regions: int = MIN_REGIONS
    max_regions: int = MAX_REGIONS
    ranges: tuple[Range, ...] = ()
    vaddr_regions: str = "mappings"
    primitive: str = "page_table"
    write_only: bool = False
    cpus: tuple[int, ...] = ()
    tids: tuple[int, ...] = ()
    density: bool = False

    @property
    def filtered(self) -> bool:
        """Whether not all accesses counted."""
        return self.write_only or bool(self.cpus or self.tids)

    @property
    def sees_writes_only(self) -> bool:
        """Whether reads stay unseen although nobody said that they are not wanted."""
        return self.primitive == "page_fault" and not self.write_only

    @property
    def max_nr_accesses(self) -> int:
        """What a region that was accessed in each sampling interval of an aggregation interval counts."""
        return max(1, self.aggr_us // max(1, self.sample_us))


@frozen
class Counters:
    """How well the monitoring itself went.

    :ivar missed_intervals: sampling intervals that were over before the monitor came to them.
    :ivar samples: samples that should have been taken.
    :ivar unknown: those of them that could not be taken.
    :ivar cpu_s: CPU time of the monitoring thread, seconds; None: it was not measured.
    :ivar reports: what became of pushed access reports, by name; faults are such reports.
    :ivar faults_lost: faults that the monitor did not fetch in time.
    :ivar producers: what went through the rings of other processes, by name; empty if none were served.
    :ivar sparse: bytes that the regions covered, and bytes that were populated in them, if that was so little that
        hardly any access is found; else None.
    :ivar never_mapped: bytes of the given ranges in which nothing was mapped whenever that was looked at, or that are
        no memory; None: no ranges were given, or it could not be looked at.
    :ivar recorded: how many reports were ``written`` to a file and how many were ``lost``; empty if none was asked for.
    :ivar suspended_s: how long the machine was suspended meanwhile, seconds, which are no part of CLOCK_MONOTONIC;
        None: unknown, as of a recording.
    """

    missed_intervals: int = 0
    samples: int = 0
    unknown: int = 0
    cpu_s: float | None = None
    reports: dict[str, int] = field(factory=dict)
    faults_lost: int = 0
    producers: dict[str, int] = field(factory=dict)
    recorded: dict[str, int] = field(factory=dict)
    sparse: tuple[int, int] | None = None
    never_mapped: int | None = None
    suspended_s: float | None = None


@frozen(eq=False)
class Snapshot:
    """The regions at the end of an aggregation interval, or the mean of several neighbouring ones.

    Samples were taken from ``began`` to ``time``. In between are pauses at most if it is the mean of several.

    :ivar began: CLOCK_MONOTONIC seconds of the begin.
    :ivar time: the same of the end.
    :ivar regions: rows of :data:`REGION`, in address order and disjoint.
    :ivar merged: of how many aggregations this is the mean.
    """

    began: float
    time: float
    regions: RegionTable
    merged: int = 1

    @classmethod
    def of(
        cls,
        time: float,
        rows: Iterable[tuple[int, int, float, int, float]],
        merged: int = 1,
        seconds: float = 0.1,
    ) -> Snapshot:
        """Make a snapshot of ``seconds`` until ``time`` from rows (start, end, nr_accesses, age, nr_unknown)."""
        return cls(time - seconds, time, np.array(list(rows), dtype=REGION), merged)

    @property
    def sizes(self) -> npt.NDArray[np.float64]:
        """Size of each region in bytes, shape (n,)."""
        sizes: npt.NDArray[np.float64] = (self.regions["end"] - self.regions["start"]).astype(np.float64)
        return sizes

    def bytes_at_least(self, nr_accesses: float) -> int:
        """Bytes of the regions that count at least ``nr_accesses``."""
        return int(self.sizes[self.regions["nr_accesses"] >= nr_accesses].sum())


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
