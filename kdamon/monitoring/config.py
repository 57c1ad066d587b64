# SPDX-License-Identifier: GPL-2.0-only
"""How to monitor: plain values that need no numpy, and the check that they make sense together."""

from __future__ import annotations

import errno
from typing import Final

from attrs import frozen

from kdamon.mm import Primitive
from kdamon.monitoring.defaults import AGGR_US, LONGEST_SAMPLE_US, MAX_REGIONS, MIN_REGIONS, SAMPLE_US, UPDATE_US
from kdamon.reports.groups import COLUMNS

__all__ = ["Config", "Range", "check_config", "check_intervals"]

#: Start and end (exclusive) of addresses in bytes.
Range = tuple[int, int]

#: The largest interval, an unsigned long.
_LONGEST_US: Final = 2**64 - 1
_PRIMITIVES: Final = (Primitive.PAGE_TABLE, Primitive.PAGE_FAULT, "")


@frozen
class Config:
    """The monitored memory and the attributes of monitoring. Intervals are in microseconds, as in the kernel.

    :ivar pid: the monitored process; 0 for physical memory.
    :ivar ops: the operations set's keyword: vaddr, fvaddr, paddr, reports; or the name of one of your own.
    :ivar ranges: monitored ranges in bytes where they are given, else empty.
    :ivar sample_us: sampling interval.
    :ivar aggr_us: aggregation interval: a snapshot comes at the end of each.
    :ivar update_us: time between updates of the regions from the process's mappings.
    :ivar min_regions: smallest number of regions, 3 or more.
    :ivar max_regions: largest number of regions.
    :ivar vaddr_regions: the memory that vaddr monitors: ``mappings``, those parts that are populated; or ``kernel``,
        everything between the first and the last mapping except the two biggest gaps.
    :ivar primitive: how accesses are sampled: page_table (accessed bits) or page_fault (faults of sampled pages);
        empty: nothing is sampled, and only reports count.
    :ivar write_only: only writes count.
    :ivar read_only: only reads count.
    :ivar by: ``cpu``, ``thread`` or ``node``: snapshots also say which of these made the accesses; empty: they do not.
    :ivar cpus: only accesses by these CPUs count; empty is all.
    :ivar tids: only accesses by these threads count; empty is all.
    :ivar density: estimate from reports how densely each region is accessed.
    :ivar intervals: ``fixed``: they stay as they are; ``tuned``: the kernel's algorithm changes both so that 4 % of all
        possible accesses are found.
    :ivar longest_sample_us: tuned sampling intervals are between ``sample_us`` and this.
    :ivar watch: whether a random set of pages is watched to estimate how much memory is in use.
    """

    pid: int
    ops: str = "vaddr"
    sample_us: int = SAMPLE_US
    aggr_us: int = AGGR_US
    update_us: int = UPDATE_US
    min_regions: int = MIN_REGIONS
    max_regions: int = MAX_REGIONS
    ranges: tuple[Range, ...] = ()
    vaddr_regions: str = "mappings"
    primitive: str = Primitive.PAGE_TABLE
    write_only: bool = False
    cpus: tuple[int, ...] = ()
    tids: tuple[int, ...] = ()
    density: bool = False
    read_only: bool = False
    by: str = ""
    intervals: str = "fixed"
    watch: bool = False
    longest_sample_us: int = LONGEST_SAMPLE_US

    @property
    def filtered(self) -> bool:
        """Whether not all accesses count."""
        return self.write_only or self.read_only or bool(self.cpus or self.tids)

    @property
    def needs_faults(self) -> bool:
        """Whether accessed bits do not say enough about accesses."""
        return self.filtered or bool(self.by)

    def misses_reads(self, faults_of_reads: bool) -> bool:
        """Return whether reads stay unseen although the caller did not ask for that.

        :param faults_of_reads: see :attr:`kdamon.mm.Machine.faults_of_reads`.
        """
        return self.primitive == Primitive.PAGE_FAULT and not self.write_only and not faults_of_reads

    @property
    def max_nr_accesses(self) -> int:
        """The ``nr_accesses`` of a region that was accessed in each sampling interval of an aggregation interval."""
        return max(1, self.aggr_us // max(1, self.sample_us))


def check_intervals(config: Config) -> None:
    """Refuse intervals that no unsigned long holds: OSError EINVAL."""
    for name in ("sample_us", "aggr_us", "update_us", "longest_sample_us"):
        if not 0 <= getattr(config, name) <= _LONGEST_US:
            raise OSError(errno.EINVAL, f"{name} is in microseconds, from 0 to 2**64 - 1")


def check_config(config: Config) -> None:
    """Refuse values that do not fit together; the core checks the intervals and numbers of regions.

    :raises OSError: EINVAL with a sentence that names the argument.
    """
    check_intervals(config)
    for refused, sentence in (
        (
            config.ops == "vaddr" and config.ranges,
            "ops='vaddr' monitors the whole process; use ops='fvaddr' for ranges",
        ),
        (
            config.ops in {"fvaddr", "reports"} and not config.ranges,
            f"ops='{config.ops}' needs ranges=[(start, end), ...], the addresses to monitor",
        ),
        (
            config.ops in {"vaddr", "fvaddr"} and config.pid <= 0,
            f"ops='{config.ops}' monitors a process: give its number as pid",
        ),
        (
            config.ops == "paddr" and config.pid,
            "ops='paddr' monitors the memory of the machine, not a process: leave pid out",
        ),
        (
            config.ops == "reports" and config.primitive,
            "ops='reports' samples nothing: leave primitive out",
        ),
        (
            config.primitive not in _PRIMITIVES,
            f"there is no primitive {config.primitive!r}; use 'page_table', 'page_fault', or '' for reports alone",
        ),
        (
            config.ops == "paddr" and (config.needs_faults or config.primitive == Primitive.PAGE_FAULT),
            "ops='paddr' samples accessed bits, which do not identify writes, CPUs or threads: leave primitive, "
            "write_only, read_only, cpus, tids and by out",
        ),
        (
            config.primitive == Primitive.PAGE_TABLE and config.needs_faults,
            "accessed bits do not identify writes, CPUs or threads: use primitive='page_fault' with write_only, "
            "read_only, cpus, tids and by",
        ),
        (
            config.density and config.primitive == Primitive.PAGE_FAULT,
            "faults come from one page of each region and say nothing about density: leave density out",
        ),
        (config.by not in {"", *COLUMNS}, f"by is 'cpu', 'thread' or 'node', not {config.by!r}"),
        (
            config.density and bool(config.by),
            "the density of a region is an estimate that cannot be divided among CPUs, threads or nodes: leave density "
            "or by out",
        ),
        (config.write_only and config.read_only, "write_only and read_only exclude each other: leave one of them out"),
        (config.intervals not in {"fixed", "tuned"}, f"intervals is 'fixed' or 'tuned', not {config.intervals!r}"),
        (
            config.watch and (config.ops not in {"vaddr", "fvaddr"} or config.primitive != Primitive.PAGE_TABLE),
            "pages are watched by the accessed bits of a process: use ops='vaddr' or 'fvaddr' and "
            "primitive='page_table', or leave watch out",
        ),
        (
            config.vaddr_regions not in {"mappings", "kernel"},
            f"vaddr_regions is 'mappings' or 'kernel', not {config.vaddr_regions!r}",
        ),
    ):
        if refused:
            raise OSError(errno.EINVAL, sentence)
