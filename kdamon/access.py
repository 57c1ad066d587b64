# SPDX-License-Identifier: GPL-2.0-only
"""The structures of ``include/linux/damon.h`` about accesses: reports, sample control, probes.

:mod:`kdamon.damon` has all structures. Sample control and its filters are the series', preparations of probes those of
``damon/next``.
"""

from __future__ import annotations

from enum import Enum

from attrs import define, field

from kdamon.schemes import damon_size_range

__all__ = [
    "PrimitivesEnabled",
    "ReportCounters",
    "damon_access_report",
    "damon_filter",
    "damon_filter_type",
    "damon_prep",
    "damon_prep_action",
    "damon_probe",
    "damon_sample_control",
    "damon_sample_filter",
    "damon_sample_filter_type",
]


@define(slots=True)
class damon_access_report:
    """One access that a source saw (the series' ``struct damon_access_report``).

    :ivar pid: process that owns the virtual address; 0 for a physical address. Only compared, never looked up.
    :ivar addr: start of the reported range, bytes.
    :ivar size: its size, bytes.
    :ivar nr_accesses: how often it was accessed.
    :ivar node_id: NUMA node of the CPU that made the access, not of the memory.
    :ivar write: whether it was a write.
    :ivar cpu: the CPU that made it, -1 unknown.
    :ivar tid: the thread that made it, 0 unknown.
    """

    pid: int
    addr: int
    size: int
    nr_accesses: int = 1
    node_id: int = -1
    write: bool = False
    cpu: int = -1
    tid: int = 0


@define(slots=True)
class ReportCounters:
    """Counters of the reports that a context received, by their fate.

    ``accepted == applied + ineligible + filtered + straddling + outside + late + pending`` always; ``dropped`` reports
    were sent, too, but found no room.

    :ivar applied: lie in a region, which was counted.
    :ivar ineligible: are about no target, by the operations set.
    :ivar filtered: were discarded by the sample filters.
    :ivar straddling: lie across the edge of a region.
    :ivar outside: lie in no region.
    :ivar late: arrived while nothing was monitored: paused, or deactivated by watermarks.
    :ivar pending: were not counted yet.
    """

    accepted: int = 0
    applied: int = 0
    ineligible: int = 0
    filtered: int = 0
    straddling: int = 0
    outside: int = 0
    late: int = 0
    dropped: int = 0
    pending: int = 0


class damon_sample_filter_type(Enum):
    """The property that a sample filter compares; the value is the tree's keyword, the order the series'."""

    DAMON_FILTER_TYPE_CPUMASK = "cpumask"
    DAMON_FILTER_TYPE_THREADS = "threads"
    DAMON_FILTER_TYPE_WRITE = "write"


@define(slots=True)
class damon_sample_filter:
    """A condition on access reports (the series' third version).

    It matches a report whose property (made by a CPU of ``cpumask``, by a thread of ``tid_arr``, being a write) is as
    ``matching`` says. Its answer is ``allow`` for those that it matches, the opposite for others.

    :ivar cpumask: numbers of CPUs.
    :ivar tid_arr: numbers of threads.
    """

    type: damon_sample_filter_type
    matching: bool = False
    allow: bool = False
    cpumask: tuple[int, ...] = ()
    tid_arr: tuple[int, ...] = ()


@define(slots=True)
class PrimitivesEnabled:
    """The access sources of a context.

    :ivar page_table: accessed bits.
    :ivar page_fault: faults of the sampled pages, which are made to fault; has precedence over ``page_table``. With
        neither, only reports of others count.
    """

    page_table: bool = True
    page_fault: bool = False


@define(slots=True)
class damon_sample_control:
    """How accesses are sampled, and which reports of them count (the series' third version).

    :ivar sample_filters: a report has to pass all of them, in this order.
    """

    primitives_enabled: PrimitivesEnabled = field(factory=PrimitivesEnabled)
    sample_filters: list[damon_sample_filter] = field(factory=list)


class damon_filter_type(Enum):
    """The property that a filter of a probe compares; the value is the tree's keyword, the order the kernel's."""

    DAMON_FILTER_TYPE_ANON = "anon"
    DAMON_FILTER_TYPE_MEMCG = "memcg"
    #: Accessed since it was prepared (the kernel's idle flag is not set).
    DAMON_FILTER_TYPE_PGIDLE_UNSET = "pgidle_unset"
    #: Not accessed since.
    DAMON_FILTER_TYPE_PGIDLE_SET = "pgidle_set"
    DAMON_FILTER_TYPE_HUGEPAGE_SIZE = "hugepage_size"


@define(slots=True)
class damon_filter:
    """A condition on the sampled page: the first filter of a probe that matches decides, by ``allow``.

    :ivar matching: whether it matches pages of the type, or all other. Where no page is, none of any type is.
    :ivar allow: whether what it matches is a hit of the probe.
    :ivar memcg_id: of type memcg: the memory cgroup's number, as ``/proc/kpagecgroup`` shows it.
    :ivar sz_range: of type hugepage_size: of the folio (kernel: ``range_min`` and ``range_max``).
    """

    type: damon_filter_type
    matching: bool = False
    allow: bool = False
    memcg_id: int = 0
    sz_range: damon_size_range = field(factory=damon_size_range)


class damon_prep_action(Enum):
    """How a page is prepared for a probe; the value is the tree's keyword."""

    #: Forget that it was accessed.
    DAMON_PREP_SET_PGIDLE = "set_pgidle"


@define(slots=True)
class damon_prep:
    """How the page to be sampled is prepared at the start of each sampling interval."""

    action: damon_prep_action = damon_prep_action.DAMON_PREP_SET_PGIDLE


@define(slots=True)
class damon_probe:
    """A property of sampled pages to count besides accesses, see :mod:`kdamon.probes`.

    :ivar weight: of its hits in the weighted sum by which regions are merged and aged; if any probe of a context has
        a weight other than 0, accesses are not checked.
    :ivar preps: how pages are prepared.
    :ivar filters: which pages are hits; none lets all be.
    """

    weight: int = 0
    preps: list[damon_prep] = field(factory=list)
    filters: list[damon_filter] = field(factory=list)
