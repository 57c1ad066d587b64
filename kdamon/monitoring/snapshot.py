# SPDX-License-Identifier: GPL-2.0-only
"""The results of monitoring as plain values.

Nothing here refers to a running monitor, so a test writes a snapshot as a literal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from attrs import field, frozen

from kdamon.arrays import F64Array, Records
from kdamon.regions import Regions

__all__ = ["REGION", "Counters", "RegionTable", "Snapshot", "region_table"]

#: One region: bytes, accesses and unknown samples per aggregation interval, age in aggregation intervals. The
#: counters are fractions only where several aggregations were merged into one snapshot.
REGION: Final = np.dtype(
    [("start", "<u8"), ("end", "<u8"), ("nr_accesses", "<f4"), ("age", "<u4"), ("nr_unknown", "<f4")]
)
RegionTable = Records


@frozen
class Counters:
    """How well monitoring went.

    :ivar missed_intervals: sampling intervals that were over before the kdamond came to them.
    :ivar samples: samples taken or tried.
    :ivar unknown: samples among them that could not be taken.
    :ivar cpu_s: CPU time of monitoring, seconds; None: it was not measured.
    :ivar reports: what became of access reports, see :class:`kdamon.damon.ReportCounters`.
    :ivar faults_lost: page faults that the kernel had no room to report.
    :ivar sparse: bytes that the regions cover, and bytes that are populated in them, if that is so little that hardly
        any access is found; else None.
    :ivar never_mapped: bytes of the given ranges that were not mapped at any look, or that are no memory;
        None: no ranges were given, or their mappings could not be read.
    :ivar suspended_s: how long the machine was suspended meanwhile, seconds, which are no part of CLOCK_MONOTONIC;
        None: unknown, as of a recording.
    :ivar faults_of_reads: whether faults show reads of mapped memory, see :attr:`kdamon.mm.Machine.faults_of_reads`;
        None: no faults were sampled.
    :ivar lost_snapshots: snapshots that the consumer did not take in time.
    """

    missed_intervals: int = 0
    samples: int = 0
    unknown: int = 0
    cpu_s: float | None = None
    reports: dict[str, int] = field(factory=dict)
    faults_lost: int = 0
    sparse: tuple[int, int] | None = None
    never_mapped: int | None = None
    suspended_s: float | None = None
    lost_snapshots: int = 0
    faults_of_reads: bool | None = None


@frozen(eq=False)
class Snapshot:
    """The regions at the end of an aggregation interval, or the mean of several neighbouring ones.

    Samples were taken from ``began`` to ``time``, without a pause unless several aggregations were merged.

    :ivar began: CLOCK_MONOTONIC seconds of the begin, as :func:`time.monotonic` has them.
    :ivar time: the same of the end.
    :ivar regions: rows of :data:`REGION`, in address order and disjoint, shape (n,): ``regions["start"]`` and
        ``regions["end"]`` in bytes (end exclusive), ``regions["nr_accesses"]`` and ``regions["nr_unknown"]`` in samples
        of an aggregation interval, ``regions["age"]`` in aggregation intervals.
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
    def sizes(self) -> F64Array:
        """Size of each region in bytes, shape (n,)."""
        return (self.regions["end"] - self.regions["start"]).astype(np.float64)

    def working_set(self, nr_accesses: float = 1) -> int:
        """Bytes of the regions with at least ``nr_accesses`` accesses in the aggregation interval."""
        return int(self.sizes[self.regions["nr_accesses"] >= nr_accesses].sum())


def region_table(regions: Regions) -> RegionTable:
    """The columns of ``regions`` that a snapshot keeps, shape (n,)."""
    table = np.empty(len(regions), dtype=REGION)
    for name in REGION.names or ():
        table[name] = getattr(regions, name)
    return table
