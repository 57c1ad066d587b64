# SPDX-License-Identifier: GPL-2.0-only
"""The structures of ``include/linux/damon.h`` under their own names.

Differences that run through the port: regions are the columns of one table (:mod:`kdamon.regions`), a
:class:`damon_region` is a value for callers; lists are Python lists; a function that returns an errno in C raises
:class:`OSError` here. Times are microseconds and counters of sampling intervals (``*_sis``) as in the kernel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, Protocol

import numpy as np
from attrs import define, field

from kdamon.access import (
    PrimitivesEnabled,
    ReportCounters,
    damon_access_report,
    damon_filter,
    damon_filter_type,
    damon_prep,
    damon_prep_action,
    damon_probe,
    damon_sample_control,
    damon_sample_filter,
    damon_sample_filter_type,
)
from kdamon.arrays import I64Array, Indexes, Mask, U32Array, U64Array
from kdamon.kernel import PAGE_SIZE, UINT_MAX, Clock, RealClock, kthread, mult_frac, rnd_state, time_after_eq
from kdamon.mm import AddressSpace, Answers, IntervalSampler, Machine, Placement, Task
from kdamon.regions import DAMON_MAX_PROBES, Regions, damon_addr_range, damon_region, mostly_unknown
from kdamon.reports.groups import GroupedReports
from kdamon.reports.history import ReportHistory
from kdamon.reports.lookup import RegionLookup
from kdamon.reports.queue import ReportQueue
from kdamon.sample_threads import FilteredThreads
from kdamon.schemes import (
    DAMOS_MAX_SCORE,
    damon_size_range,
    damos,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_migrate_dests,
    damos_quota,
    damos_quota_goal,
    damos_quota_goal_metric,
    damos_quota_goal_tuner,
    damos_stat,
    damos_watermarks,
    damos_wmark_metric,
)

__all__ = [
    "DAMON_MAX_PROBES",
    "DAMON_MIN_REGION_SZ",
    "DAMOS_MAX_SCORE",
    "OPS_KEYWORDS",
    "PrimitivesEnabled",
    "ReportCounters",
    "damon_access_report",
    "damon_addr_range",
    "damon_attrs",
    "damon_call_control",
    "damon_ctx",
    "damon_filter",
    "damon_filter_type",
    "damon_intervals_goal",
    "damon_mvsum",
    "damon_nr_accesses_mvsum",
    "damon_nr_regions",
    "damon_nr_samples_per_aggr",
    "damon_operations",
    "damon_ops_id",
    "damon_prep",
    "damon_prep_action",
    "damon_probe",
    "damon_region",
    "damon_region_sz_limit",
    "damon_sample_control",
    "damon_sample_filter",
    "damon_sample_filter_type",
    "damon_size_range",
    "damon_target",
    "damon_target_has_pid",
    "damos",
    "damos_access_pattern",
    "damos_action",
    "damos_filter",
    "damos_filter_type",
    "damos_migrate_dests",
    "damos_quota",
    "damos_quota_goal",
    "damos_quota_goal_metric",
    "damos_quota_goal_tuner",
    "damos_stat",
    "damos_walk_control",
    "damos_watermarks",
    "damos_wmark_metric",
    "no_op",
    "nr_unknown_mvsum",
    "unknown_rows",
    "window_left_bp",
]

DAMON_MIN_REGION_SZ = PAGE_SIZE


@define(slots=True, eq=False)
class damon_target:
    """A monitored address space.

    :ivar pid: process number, 0 where the operations set needs none.
    :ivar regions: the target's region table.
    :ivar task: the process ``pid``, taken when monitoring starts (the kernel's ``pid`` is this reference).
    :ivar obsolete: in a commit's source: remove the target at this place (kernel: same).
    """

    pid: int = 0
    regions: Regions = field(factory=Regions)
    task: Task | None = None
    obsolete: bool = False
    #: The address space that was sampled last, to detect an exec (no kernel counterpart).
    mm: AddressSpace | None = None
    #: When it was last looked whether the process is still in it, clock nanoseconds; None: that is to be done next (no
    #: kernel counterpart).
    looked_at: int | None = None
    #: The answers of the last sample, for each region; None during a sample and before any (no kernel counterpart).
    answers: Answers | None = None
    #: The physical addresses of the sample under way, bytes; for virtual ones that is ``regions.sampling_addr``.
    sampled: U64Array | None = None
    #: The reports that are remembered for :mod:`kdamon.density`, None while none are.
    memory: ReportHistory | None = None
    #: How reports find its regions, None before the first one (no kernel counterpart).
    lookup: RegionLookup | None = None
    #: Which CPUs, threads or nodes its reports came from, None where that is not asked for (no kernel counterpart).
    groups: GroupedReports | None = None
    #: Bytes that the regions cover and bytes that are populated in them, if that is so little that hardly any access is
    #: found, and the time of the next check, clock nanoseconds (no kernel counterpart).
    sparse: tuple[int, int] | None = None
    next_sparse_look: int = 0
    #: The address space and its extent that the regions were set to, see :mod:`kdamon.mapped`, and the time until which
    #: that holds, clock nanoseconds (no kernel counterpart).
    mapped: object = None
    mapped_until: int = 0


class damon_ops_id(IntEnum):
    """Operations sets (``enum damon_ops_id``), and after the kernel's the one for reports alone."""

    DAMON_OPS_VADDR = 0
    DAMON_OPS_FVADDR = 1
    DAMON_OPS_PADDR = 2
    DAMON_OPS_REPORTS = 3


#: The operations sets by the tree's keywords, in the order in which ``avail_operations`` lists them.
OPS_KEYWORDS: Final = {
    "vaddr": damon_ops_id.DAMON_OPS_VADDR,
    "fvaddr": damon_ops_id.DAMON_OPS_FVADDR,
    "paddr": damon_ops_id.DAMON_OPS_PADDR,
    "reports": damon_ops_id.DAMON_OPS_REPORTS,
}


@define(slots=True)
class damon_intervals_goal:
    """Target of the intervals auto-tuning.

    :ivar access_bp: wanted share of observed accesses among the possible ones, in 1/10000.
    :ivar aggrs: aggregations between adjustments; 0 turns the tuning off.
    :ivar min_sample_us: lower bound of the tuned sampling interval.
    :ivar max_sample_us: upper bound of it.
    """

    access_bp: int = 0
    aggrs: int = 0
    min_sample_us: int = 0
    max_sample_us: int = 0


@define(slots=True)
class damon_attrs:
    """Monitoring attributes; intervals in microseconds.

    :ivar aggr_samples: aggregation over sampling interval, kept constant by the auto-tuning; 0 is filled in by
        :func:`kdamon.core.damon_set_attrs`.
    """

    sample_interval: int = 5000
    aggr_interval: int = 100_000
    ops_update_interval: int = 60_000_000
    intervals_goal: damon_intervals_goal = field(factory=damon_intervals_goal)
    min_nr_regions: int = 10
    max_nr_regions: int = 1000
    aggr_samples: int = 0


class ReportLike(Protocol):
    """One report or a batch of them: attributes are values or columns."""

    @property
    def pid(self) -> Any:
        """Process number or numbers."""
        ...


def no_op(*_: object) -> None:
    """A callback that an operations set does not have."""


def _every_report(_reports: ReportLike, _t: damon_target) -> bool:
    return True


class SamplingIntervals(Protocol):
    """The sampling intervals of a kdamond, for :attr:`damon_operations.sample_intervals`."""

    def passed(self) -> bool:
        """Sleep to the end of the present interval; returns whether it needs no more than to be followed by another."""
        ...

    def ahead(self, most: int) -> tuple[int, int, int]:
        """How many of the next ``most`` intervals may pass without this object, as the arguments of
        :meth:`kdamon.mm.IntervalSampler.follow`: their number, the end of the present one, and their length.
        """
        ...

    def took(self, samples: int, woken: bool) -> None:
        """Take note of what passed so: ``samples`` were begun, the first one at the end of the present interval.

        :param woken: the last one's interval was interrupted; :meth:`passed` sleeps the rest of it.
        """
        ...


@define(slots=True, kw_only=True)
class damon_operations:
    """An operations set: how one kind of address space is monitored.

    Every callback may be missing: then it does nothing, or there is none, where that means something else.

    :ivar id: under which the set is registered; None for a set that is handed to :func:`kdamon.monitor` itself.
    :ivar init: called once when the kdamond starts.
    :ivar update: called each ops update interval.
    :ivar prepare_access_checks: called at the start of each sampling interval.
    :ivar sample_intervals: called instead of ``prepare_access_checks`` where nothing but sampling happens in the next
        ``nr`` sampling intervals (its second argument): takes up to so many of them as a whole, and begins one more.
        Its third argument lets them pass, see :class:`SamplingIntervals`. Regions come out as by the other callbacks;
        vaddr's leaves the work to these where a set replaces one of them (no kernel counterpart).
        (docs/deviations.md#many-sampling-intervals-in-one-callback)
    :ivar check_accesses: called at its end; counts accesses. Kernel: returns the largest nr_accesses. Here: the core
        looks for it when an aggregation interval ends, because it is needed only then.
        (docs/deviations.md#the-largest-count-is-computed-per-aggregation)
    :ivar report_faults: called at its end instead, with ``page_fault``: reports the faults. Its argument says whether
        pages were sampled. Also called while nothing is monitored. Kernel: the fault handler reports each fault.
        (docs/deviations.md#faults-are-reported-in-batches)
    :ivar eligible_report: returns whether a report, or which reports of a batch, may be used for a target.
    :ivar prep_probes: called at the start of each sampling interval if probes have preps. Its argument says whether it
        has to choose the addresses to sample.
    :ivar apply_probes: called at its end if there are probes, with the same argument; counts their hits. Kernel:
        returns the largest weighted sum. Here: as ``check_accesses``.
    :ivar get_scheme_score: how much a region deserves a scheme's action, 0..DAMOS_MAX_SCORE.
    :ivar get_scheme_scores: the same of all regions of a table, shape (n,); used instead of ``get_scheme_score``.
    :ivar apply_scheme: applies an action to rows of a target's table, ascending, shape (n,); returns the bytes of each
        that it was applied to, and those that passed the operations set's filters, both shape (n,). Kernel: one region
        at a time. Here: many, because a system call for each would be slower.
        (docs/deviations.md#many-regions-in-one-call)
    :ivar action_sz: what actions affect as a whole or not at all, bytes, a power of two: where a quota of at least
        twice as much ends in the middle of a region, it ends at a multiple of that (no kernel counterpart).
    :ivar node_mem: how many bytes of rows of a target's table are on each NUMA node, by its number (no kernel
        counterpart: there the core reads the pages itself).
    :ivar target_valid: returns whether a target can still be monitored.
    :ivar cleanup_target: gives back what a target holds.
    :ivar target_has_pid: whether targets of this set have process numbers (``damon_target_has_pid()``).
    :ivar needs_task: whether these have to be processes that exist (no kernel counterpart: there they always have).
    """

    id: damon_ops_id | None = None
    init: Callable[[damon_ctx], None] = no_op
    update: Callable[[damon_ctx], None] = no_op
    prepare_access_checks: Callable[[damon_ctx], None] = no_op
    sample_intervals: Callable[[damon_ctx, int, SamplingIntervals], None] = no_op
    check_accesses: Callable[[damon_ctx], None] = no_op
    report_faults: Callable[[damon_ctx, bool], None] = no_op
    eligible_report: Callable[[ReportLike, damon_target], bool | Mask] = _every_report
    prep_probes: Callable[[damon_ctx, bool], None] = no_op
    apply_probes: Callable[[damon_ctx, bool], None] = no_op
    get_scheme_score: Callable[[damon_ctx, damon_region, damos], int] | None = None
    get_scheme_scores: Callable[[damon_ctx, Regions, damos], I64Array] | None = None
    apply_scheme: Callable[[damon_ctx, damon_target, Indexes, damos], tuple[U64Array, U64Array]] | None = None
    action_sz: int = 1
    node_mem: Callable[[damon_ctx, damon_target, Indexes], dict[int, int]] | None = None
    target_valid: Callable[[damon_target], bool] | None = None
    cleanup_target: Callable[[damon_target], None] = no_op
    target_has_pid: bool = False
    needs_task: bool = False

    def checks_accesses(self) -> bool:
        """Return whether it samples accesses itself."""
        return self.check_accesses is not no_op

    def has_faults(self) -> bool:
        """Return whether it can be driven by faults."""
        return self.report_faults is not no_op


@define(slots=True, eq=False)
class damon_call_control:
    """A function for the kdamond to call between two sampling intervals (:func:`kdamon.core.damon_call`).

    :ivar fn: called with ``data`` in the kdamond; an :class:`OSError` it raises is raised again for the caller.
    :ivar repeat: call it every iteration instead of once, without waiting for it.
    """

    fn: Callable[[Any], None]
    data: Any = None
    repeat: bool = False
    canceled: bool = False
    error: OSError | None = None
    completion: threading.Event = field(factory=threading.Event)


@define(slots=True, eq=False)
class damos_walk_control:
    """A function to call for each region that a scheme tries (:func:`kdamon.core.damos_walk`).

    :ivar walk_fn: called in the kdamond with data, context, target, region, scheme and the bytes of the region
        that passed the operations set's filters.
    """

    walk_fn: Callable[[Any, damon_ctx, damon_target, damon_region, damos, int], None]
    data: Any = None
    canceled: bool = False
    completion: threading.Event = field(factory=threading.Event)


@define(slots=True, eq=False)
class damon_ctx:
    """A monitoring context: the request, and the state of the monitoring.

    Public, to be set before :func:`kdamon.core.damon_start` or through :func:`kdamon.core.damon_commit_ctx`:

    :ivar attrs: set by :func:`kdamon.core.damon_set_attrs`.
    :ivar ops: selected by :func:`kdamon.core.damon_select_ops`.
    :ivar addr_unit: bytes of one core address unit.
    :ivar min_region_sz: smallest region, core address units, a power of two.
    :ivar pause: monitor nothing until a commit clears it.
    :ivar adaptive_targets: the targets.
    :ivar schemes: the schemes in their order.
    :ivar probes: the probes in their order, DAMON_MAX_PROBES at most.
    :ivar machine: where processes are found; None serves operations sets without processes.
    :ivar clock: the context's only source of time.
    :ivar sample_control: where accesses come from and which count.
    :ivar report_counts: add ``nr_accesses`` of reports (first version of the series) instead of at most one per
        region and sampling interval.
    :ivar density: estimate from reports how densely a region is accessed, see :mod:`kdamon.density`.
    :ivar ended: called in the kdamond when it has given everything back (no kernel counterpart).
    """

    attrs: damon_attrs = field(factory=damon_attrs)
    ops: damon_operations | None = None
    addr_unit: int = 1
    min_region_sz: int = DAMON_MIN_REGION_SZ
    pause: bool = False
    adaptive_targets: list[damon_target] = field(factory=list)
    schemes: list[damos] = field(factory=list)
    probes: list[damon_probe] = field(factory=list)
    machine: Machine | None = None
    clock: Clock = field(factory=RealClock)
    sample_control: damon_sample_control = field(factory=damon_sample_control)
    report_counts: bool = False
    density: bool = False
    ended: Callable[[], None] | None = None

    # Private, counted in sampling intervals since the kdamond started.
    passed_sample_intervals: int = 0
    next_aggregation_sis: int = 0
    next_ops_update_sis: int = 0
    next_intervals_tune_sis: int = 0
    #: Missed intervals: sampling intervals that were over before the kdamond came to them.
    missed_intervals: int = 0
    #: Samples that could not be taken, and all samples.
    nr_unknown: int = 0
    nr_samples: int = 0
    #: Faults that the machine had lost at the last sample.
    faults_lost: int = 0

    rnd: rnd_state = field(factory=rnd_state)
    #: Number of regions after the last split (kernel: one variable for all contexts).
    last_nr_regions: int = 0
    #: Where :func:`kdamon.core.damon_split_some_regions` continues (kernel: one variable for all contexts).
    split_rotation: int = 0
    maybe_corrupted: bool = False
    filtered_threads: FilteredThreads = field(factory=FilteredThreads)
    #: When the present sampling interval ends, nanoseconds of the clock.
    deadline: int = 0
    #: In a commit's source: the processes of removed targets, to be put with it (no kernel counterpart).
    replaced_tasks: list[Task] = field(factory=list)

    kdamond: kthread | None = None
    #: The exception that ended the last kdamond, None if it ended as meant.
    kdamond_error: BaseException | None = None
    kdamond_lock: threading.Lock = field(factory=threading.Lock)
    kdamond_started: threading.Event = field(factory=threading.Event)
    call_controls: list[damon_call_control] = field(factory=list)
    call_controls_obsolete: bool = True
    call_controls_lock: threading.Lock = field(factory=threading.Lock)
    walk_control: damos_walk_control | None = None
    walk_control_obsolete: bool = True
    walk_control_lock: threading.Lock = field(factory=threading.Lock)
    #: What samples several intervals at once, made when it is needed first (no kernel counterpart).
    interval_sampler: IntervalSampler | None = None
    #: Ends the sample of several intervals that is under way, None if there is none (:mod:`kdamon.intervals`).
    end_intervals: Callable[[], frozenset[int]] | None = None
    #: Where its kdamond samples by ``page_fault``, made when it is needed first (no kernel counterpart).
    placement: Placement | None = None
    #: Reports on their way to this context (:mod:`kdamon.reports`), made when the kdamond starts.
    reports: ReportQueue | None = None


def damon_nr_regions(t: damon_target) -> int:
    """Number of regions of ``t``."""
    return len(t.regions)


def damon_target_has_pid(ctx: damon_ctx) -> bool:
    """Return whether the targets of ``ctx`` are processes."""
    return ctx.ops is not None and ctx.ops.target_has_pid


def damon_nr_samples_per_aggr(attrs: damon_attrs) -> int:
    """How often a region is sampled in an aggregation interval; at least 1, at most UINT_MAX."""
    return min(attrs.aggr_interval // (attrs.sample_interval or 1), UINT_MAX) or 1


#: The largest number of initial regions that min_nr_regions can request.
_MOST_REGIONS: Final = 1 << 22


def damon_region_sz_limit(ctx: damon_ctx) -> int:
    """Largest size that leaves room for ``min_nr_regions`` regions, core address units.

    Kernel: for any number of them, be it more than memory has room for. Here: for four million at most, because the
    whole table is made at once, and takes the machine's memory with it.
    (docs/deviations.md#at-most-four-million-initial-regions)
    """
    total = sum(t.regions.total() for t in ctx.adaptive_targets)
    if ctx.attrs.min_nr_regions:
        total //= min(ctx.attrs.min_nr_regions, _MOST_REGIONS)
    return max(total, ctx.min_region_sz)


def damon_mvsum(current: U32Array, last: U32Array, left_bp: int) -> U32Array:
    """Estimate a full window's count from a started one: ``current + last * left_bp / 10000``, shape (n,).

    :param left_bp: share of the window that is still to come, 1/10000; all of it gives ``last``.
    """
    if left_bp == 10000:
        return last
    if left_bp == 0:
        return current
    # mult_frac() on columns.
    whole, part = np.divmod(last.astype(np.uint64), np.uint64(10000))
    share = np.uint64(left_bp)
    rest: U32Array = (whole * share + part * share // np.uint64(10000)).astype(np.uint32)
    return current + rest


def damon_nr_accesses_mvsum(regions: Regions, ctx: damon_ctx) -> U32Array:
    """Moving sum of nr_accesses over the last aggregation interval's time, shape (n,)."""
    return damon_mvsum(regions.nr_accesses, regions.last_nr_accesses, window_left_bp(ctx))


def nr_unknown_mvsum(regions: Regions, ctx: damon_ctx) -> U32Array:
    """As :func:`damon_nr_accesses_mvsum`, of the samples that could not be taken."""
    return damon_mvsum(regions.nr_unknown, regions.last_nr_unknown, window_left_bp(ctx))


def unknown_rows(regions: Regions, ctx: damon_ctx) -> Mask:
    """Return which regions are mostly unknown in the time that :func:`damon_nr_accesses_mvsum` is about, shape (n,).

    That is :func:`kdamon.regions.mostly_unknown`, of the samples there were when the first interval is not over.
    """
    nr_samples = damon_nr_samples_per_aggr(ctx.attrs)
    return mostly_unknown(nr_unknown_mvsum(regions, ctx), min(nr_samples, ctx.passed_sample_intervals or nr_samples))


def window_left_bp(ctx: damon_ctx) -> int:
    """Share of the present aggregation interval that is still to come, 1/10000."""
    left = 0
    if not time_after_eq(ctx.passed_sample_intervals, ctx.next_aggregation_sis):
        if any(t.regions.density is not None for t in ctx.adaptive_targets):
            return 10000  # reports are counted when the interval ends
        left = ctx.next_aggregation_sis - ctx.passed_sample_intervals
    return mult_frac(left, 10000, damon_nr_samples_per_aggr(ctx.attrs))
