# SPDX-License-Identifier: GPL-2.0-only
"""The results of monitoring as plain values.

Nothing here refers to a running monitor, so a test writes a snapshot as a literal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from attrs import evolve, field, frozen

from kdamon.arrays import F64Array, Records
from kdamon.mm import Observed
from kdamon.monitoring.residency import Residency
from kdamon.monitoring.use import MemoryUse
from kdamon.regions import Regions
from kdamon.reports.groups import GROUP_REGION, GroupedInterval, GroupTable

__all__ = ["REGION", "Collected", "Counters", "RegionTable", "Snapshot", "region_table", "snapshot_of"]

#: One region: bytes, accesses and unknown samples per aggregation interval, age in aggregation intervals. The
#: counters are fractions only where several aggregations were merged into one snapshot. mean_accesses is nr_accesses,
#: but not rounded down where regions were merged.
REGION: Final = np.dtype(
    [
        ("start", "<u8"),
        ("end", "<u8"),
        ("nr_accesses", "<f4"),
        ("age", "<u4"),
        ("nr_unknown", "<f4"),
        ("mean_accesses", "<f8"),
    ]
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
    :ivar observed: of how many bytes faults showed which accesses; None: no faults were sampled.
    :ivar watching_cpu_s: CPU time of watching pages, seconds, besides; None: none were watched.
    :ivar use: how much memory was in use, the mean of the whole time; None: no pages were watched.
    :ivar sample_us: the sampling interval at the end, microseconds; None where intervals are fixed.
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
    observed: Observed | None = None
    watching_cpu_s: float | None = None
    use: MemoryUse | None = None
    sample_us: int | None = None


@frozen(eq=False)
class Snapshot:
    """The regions at the end of an aggregation interval, or the mean of several neighbouring ones.

    Samples were taken from ``began`` to ``time``, without a pause unless several aggregations were merged.

    :ivar began: CLOCK_MONOTONIC seconds of the begin, as :func:`time.monotonic` has them.
    :ivar time: the same of the end.
    :ivar regions: rows of :data:`REGION`, in address order and disjoint, shape (n,): ``regions["start"]`` and
        ``regions["end"]`` in bytes (end exclusive), ``regions["nr_accesses"]`` and ``regions["nr_unknown"]`` in samples
        of an aggregation interval, ``regions["age"]`` in aggregation intervals. ``regions["mean_accesses"]`` is
        ``nr_accesses`` as it would be if nothing was rounded down when regions were merged.
    :ivar merged: of how many aggregations this is the mean.
    :ivar groups: which CPU, thread or node made the accesses, where that was asked for; else None.
    :ivar aggr_us: the aggregation interval that ages count, microseconds; 0: that of the configuration. It changes
        where intervals are tuned; the number of samples in it does not.
    :ivar use: how much memory was in use by then, where pages are watched for that; else None.
    :ivar residency: what was in memory, by addresses, as it was seen last, a second before or more in a large process;
        None where that is not known.
    """

    began: float
    time: float
    regions: RegionTable
    merged: int = 1
    groups: GroupTable | None = None
    aggr_us: int = 0
    use: MemoryUse | None = None
    residency: Residency | None = None

    @classmethod
    def of(
        cls,
        time: float,
        rows: Iterable[tuple[int, int, float, int, float]],
        merged: int = 1,
        seconds: float = 0.1,
    ) -> Snapshot:
        """Make a snapshot of ``seconds`` until ``time`` from rows (start, end, nr_accesses, age, nr_unknown)."""
        return cls(time - seconds, time, np.array([(*row, row[2]) for row in rows], dtype=REGION), merged)

    @property
    def sizes(self) -> F64Array:
        """Size of each region in bytes, shape (n,)."""
        return (self.regions["end"] - self.regions["start"]).astype(np.float64)

    def of_groups(self, numbers: Iterable[int]) -> Snapshot:
        """This snapshot as if only the accesses of some groups counted.

        Its regions are smaller: each is a part of one of this snapshot and of one before neighbours were merged.

        :param numbers: the groups: CPUs, thread ids or nodes; their accesses are added up.
        """
        whole = self.regions
        found = np.empty(0, GROUP_REGION) if self.groups is None else self.groups.regions
        rows = found[np.isin(found["group"], np.fromiter(numbers, np.int64))]
        edges = np.unique(np.concatenate([rows["start"], rows["end"], whole["start"], whole["end"]]))
        at = np.searchsorted(whole["start"], edges[:-1], side="right") - 1
        steps = np.zeros(len(edges))
        np.add.at(steps, np.searchsorted(edges, rows["start"]), rows["nr_accesses"])
        np.subtract.at(steps, np.searchsorted(edges, rows["end"]), rows["nr_accesses"])
        inside = (at >= 0) & (edges[:-1] < whole["end"][np.maximum(at, 0)]) if len(whole) else np.zeros(0, np.bool_)
        table = whole[at[inside]]
        table["start"], table["end"] = edges[:-1][inside], edges[1:][inside]
        # The rest of a sum of floats is no access.
        table["nr_accesses"] = table["mean_accesses"] = np.cumsum(steps)[:-1][inside].round(3)
        return evolve(self, regions=table, groups=None)

    def working_set(self, nr_accesses: float = 1) -> int:
        """Bytes of the regions with at least ``nr_accesses`` accesses in the aggregation interval."""
        return int(self.sizes[self.regions["nr_accesses"] >= nr_accesses].sum())


def region_table(regions: Regions) -> RegionTable:
    """The columns of ``regions`` that a snapshot keeps, shape (n,)."""
    table = np.empty(len(regions), dtype=REGION)
    for name in REGION.names or ():
        table[name] = regions.exact_accesses() if name == "mean_accesses" else getattr(regions, name)
    return table


#: Begin and end of sampling, clock nanoseconds; regions, groups of reports; the aggregation interval, microseconds; how
#: much memory was in use; what was in memory.
Collected = tuple[int, int, Regions, GroupedInterval | GroupTable | None, int, MemoryUse | None, Residency | None]


def snapshot_of(  # noqa: PLR0917 -- what the kdamond collected
    began: int,
    ended: int,
    regions: Regions,
    groups: GroupedInterval | GroupTable | None,
    aggr_us: int,
    use: MemoryUse | None,
    residency: Residency | None,
) -> Snapshot:
    """The snapshot of what the kdamond collected, fields of :data:`Collected`."""
    if isinstance(groups, GroupedInterval):
        groups = groups.table()
    table = region_table(regions)
    return Snapshot(began / 1e9, ended / 1e9, table, groups=groups, aggr_us=aggr_us, use=use, residency=residency)
