# SPDX-License-Identifier: GPL-2.0-only
"""The operations sets for virtual address spaces (``mm/damon/vaddr.c``): vaddr, and fvaddr with fixed ranges.

They know memory through :mod:`kdamon.mm` only, so they monitor simulated processes as well as real ones.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
from attrs import evolve

from kdamon.arrays import Indexes, Mask, U64Array
from kdamon.core import damon_set_regions
from kdamon.damon import (
    ReportLike,
    SamplingIntervals,
    damon_addr_range,
    damon_ctx,
    damon_operations,
    damon_ops_id,
    damon_target,
    damos,
    damos_action,
    no_op,
)
from kdamon.intervals import begin_intervals, make_placement, make_sampler, rest, take_place
from kdamon.kernel import ALIGN, HPAGE_PMD_SIZE, NSEC_PER_USEC, PAGE_SIZE, ULONG_MAX
from kdamon.lib.once import warn_once
from kdamon.mapped import note_sparse_regions
from kdamon.mm import UNKNOWN, AddressSpace, Answers, Primitive
from kdamon.mm.ranges import intersect, overlaps
from kdamon.ops_common import (
    count_samples,
    needs_answers,
    page_filter,
    pick_samples,
    probe_page_filters,
    scheme_score,
    scheme_scores,
)
from kdamon.probes import count_probe_hits
from kdamon.reports.deliver import report_accesses
from kdamon.reports.record import report_array
from kdamon.sample_control import only_threads, sample_primitive

__all__ = [
    "OPERATIONS",
    "damon_va_apply_scheme",
    "damon_va_check_accesses",
    "damon_va_eligible_report",
    "damon_va_init",
    "damon_va_mkold",
    "damon_va_prepare_access_checks",
    "damon_va_target_valid",
    "damon_va_three_regions",
    "damon_va_update",
    "damon_va_young",
    "va_apply_probes",
    "va_prep_probes",
    "va_report_faults",
    "va_sample_intervals",
]

log = logging.getLogger("kdamon")

#: Actions as address spaces know them. Kernel: vaddr does nothing for lru_deprio. Here: MADV_COLD moves pages to the
#: inactive LRU list, which is what it asks for. (docs/deviations.md#lru_deprio-on-virtual-addresses)
_ADVICE = {
    damos_action.DAMOS_WILLNEED: "willneed",
    damos_action.DAMOS_COLD: "cold",
    damos_action.DAMOS_PAGEOUT: "pageout",
    damos_action.DAMOS_COLLAPSE: "collapse",
    damos_action.DAMOS_HUGEPAGE: "hugepage",
    damos_action.DAMOS_NOHUGEPAGE: "nohugepage",
    damos_action.DAMOS_LRU_DEPRIO: "cold",
}

#: The remedy where the three regions are too large.
_NARROW = "'kdamon run' without --vaddr-regions kernel leaves out unpopulated memory; or monitor ranges with fvaddr"

#: Nanoseconds, or sampling intervals if that is longer, between two looks whether a process is in another address
#: space; nanoseconds that the looks at many processes are apart.
_LOOK: Final = 100_000_000
_LOOK_INTERVALS: Final = 5
_LOOK_AT_ONE: Final = 40_000_000
#: Nanoseconds for which the look at the end of a sample counts for the next one.
_JUST_NOW: Final = 1_000_000

#: Actions without effect, and why.
_NOT_APPLIED = {
    # Deviation: docs/deviations.md#lru_prio-on-virtual-addresses
    damos_action.DAMOS_LRU_PRIO: "user space cannot move a page to the active list without accessing it",
}


def damon_va_three_regions(vmas: U64Array, min_region_sz: int) -> list[damon_addr_range]:
    """The mapped address space without its two biggest gaps (``__damon_va_three_regions()``).

    Three regions, because a usual address space has two big gaps: between heap and mmap area, and between mmap area
    and stack. Sampling in gaps is in vain; leaving out smaller gaps, too, would follow each change of the mappings.

    :param vmas: start and end of every mapping in address order, shape (n, 2), bytes.
    :raises OSError: EINVAL there are fewer than two gaps.
    """
    if len(vmas) < 3:
        raise OSError(errno.EINVAL, "the process has too few mappings to find the two gaps between them")
    gaps = vmas[1:, 0] - vmas[:-1, 1]
    # Of equal gaps the first counts as the bigger one, as in the kernel's strict comparison.
    biggest = np.argsort(np.uint64(ULONG_MAX) - gaps, kind="stable")[:2]
    if not gaps[biggest].all():
        raise OSError(errno.EINVAL, "the process's mappings have fewer than two gaps between them")
    low, high = sorted(biggest.tolist())
    cuts = [
        (vmas[0, 0], vmas[low, 1]),
        (vmas[low + 1, 0], vmas[high, 1]),
        (vmas[high + 1, 0], vmas[-1, 1]),
    ]
    return [damon_addr_range(ALIGN(int(a), min_region_sz), ALIGN(int(b), min_region_sz)) for a, b in cuts]


def _damon_get_mm(t: damon_target) -> AddressSpace | None:
    return None if t.task is None else t.task.get_mm()


def _damon_va_set_three_regions(t: damon_target, ctx: damon_ctx) -> bool:
    """Make ``t`` cover the process's address space; returns False where its mappings are not available now."""
    mm = _damon_get_mm(t)
    if mm is None:
        return False
    vmas = mm.vmas()
    try:
        damon_set_regions(t, damon_va_three_regions(vmas, ctx.min_region_sz), ctx.min_region_sz)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        log.debug("process %d keeps its regions: %s", t.pid, error.strerror)
        return False
    note_sparse_regions(ctx, t, mm, vmas, _NARROW)
    return True


def damon_va_init(ctx: damon_ctx) -> None:
    """Find the processes, and give regions to the targets that have none.

    A process in which no regions are found now is left without; the next update tries again.
    """
    for t in ctx.adaptive_targets:
        _take_task(t, ctx)
        if not len(t.regions):
            _damon_va_set_three_regions(t, ctx)
    _make_ready(ctx)


def fva_init(ctx: damon_ctx) -> None:
    """Find the processes; the regions stay what the user made them. Kernel: fvaddr has no init.

    (docs/deviations.md#initialization-finds-the-process)
    """
    for t in ctx.adaptive_targets:
        _take_task(t, ctx)
    _make_ready(ctx)


def _make_ready(ctx: damon_ctx) -> None:
    if any(t.task is not None for t in ctx.adaptive_targets):
        page_table = sample_primitive(ctx.sample_control) == Primitive.PAGE_TABLE
        (make_sampler if page_table else make_placement)(ctx)


def _take_task(t: damon_target, ctx: damon_ctx, birth: int | None = None) -> None:
    if t.task is None and ctx.machine is not None:
        try:
            t.task = ctx.machine.get_task(t.pid, sample_primitive(ctx.sample_control), birth)
        except OSError as error:
            log.warning("process %d cannot be monitored: %s", t.pid, error.strerror)


def _follow_primitive(t: damon_target, ctx: damon_ctx) -> None:
    """Open the same process again if a commit chose another primitive without opening it."""
    former = t.task
    if former is not None and former.primitive != sample_primitive(ctx.sample_control) and former.valid():
        t.task = t.mm = None
        # Before the other is put: they share the process's userfaultfd.
        _take_task(t, ctx, former.birth)
        former.put()


def damon_va_update(ctx: damon_ctx) -> None:
    """Follow the changes of the address spaces."""
    for t in ctx.adaptive_targets:
        _damon_va_set_three_regions(t, ctx)


def _damon_va_pick(t: damon_target, ctx: damon_ctx) -> AddressSpace | None:
    """Choose an address in each region of ``t``; returns the address space, None if there is nothing to sample."""
    mm = _damon_va_ready(t, ctx)
    if mm is None or not len(t.regions):
        return None
    pick_samples(ctx, t)
    return mm


def _damon_va_ready(t: damon_target, ctx: damon_ctx) -> AddressSpace | None:
    """The address space of ``t``, None if there is none; its regions are those of its present program."""
    _follow_primitive(t, ctx)
    if t.mm is not None and _just_seen(t, ctx):
        return t.mm
    mm = _look(t, ctx)
    if mm is not t.mm:
        # Kernel: after an exec the regions are the old program's until the next update, a minute by default. Here:
        # they follow at once, because samples of the old ones would only show that nothing is there.
        # (docs/deviations.md#regions-follow-an-exec)
        if t.mm is not None and mm is not None and ctx.ops is not None:
            rest(ctx)
            ctx.ops.update(ctx)
        t.mm = mm
    return mm


def _just_seen(t: damon_target, ctx: damon_ctx) -> bool:
    """Return whether the sample of ``t`` ended just now, in the address space where it began."""
    return t.looked_at is not None and ctx.clock.monotonic and ctx.clock.now() - t.looked_at < _JUST_NOW


def _look(t: damon_target, ctx: damon_ctx) -> AddressSpace | None:
    t.looked_at = ctx.clock.now()
    return _damon_get_mm(t)


def damon_va_prepare_access_checks(ctx: damon_ctx) -> None:
    """Choose an address in each region, and forget that its page was accessed or let the next write to it fault."""
    picked = [(t, mm) for t in ctx.adaptive_targets if (mm := _damon_va_pick(t, ctx)) is not None]
    if sample_primitive(ctx.sample_control) != Primitive.PAGE_TABLE:
        take_place(ctx, [mm for _, mm in picked], sum(len(t.regions) for t, _ in picked))
    for t, mm in picked:
        damon_va_mkold(mm, t)


def va_sample_intervals(ctx: damon_ctx, nr: int, passing: SamplingIntervals) -> None:
    """Sample up to ``nr`` intervals as a whole, and begin one more, see :class:`kdamon.damon.damon_operations`."""
    ops = ctx.ops
    assert ops is not None
    own = damon_va_prepare_access_checks, damon_va_check_accesses
    if (ops.prepare_access_checks, ops.check_accesses) != own:
        # A set that was made of this one, with callbacks of its own: these are called for each sampling interval.
        rest(ctx)
        ops.prepare_access_checks(ctx)
        return
    ready, absent = [], []
    looks = _Looks(ctx)
    for t in ctx.adaptive_targets:
        mm = _damon_va_ready(t, ctx) if t.mm is None or looks.is_due(t) else t.mm
        if mm is None:
            absent.append(t)
        elif len(t.regions):
            ready.append(t)
    intervals = begin_intervals(ctx, ready, nr)
    if intervals is None:
        rest(ctx)
        damon_va_prepare_access_checks(ctx)
        return
    followed = 0
    while intervals.left and passing.passed():
        lives = intervals.follow(passing, looks.left())
        followed += intervals.taken
        if not lives:
            intervals.give_up([t for t in ready if _damon_get_mm(t) is not t.mm])
            rest(ctx)
            damon_va_prepare_access_checks(ctx)
            break
        if not looks.find_same(ready):
            break
    for t in absent:
        t.regions.nr_unknown += np.uint32(followed)


class _Looks:
    """Looks whether processes are still in the address spaces in which they are sampled.

    That they ended is detected at once; this detects an exec() that left the address space to another process: within
    a tenth of a second or five sampling intervals, and where there are many processes within 40 ms for each of them.
    """

    def __init__(self, ctx: damon_ctx) -> None:
        self._ctx = ctx
        self._now = ctx.clock.now()
        self._interval = max(ctx.attrs.sample_interval, 1) * NSEC_PER_USEC
        self._between = max(_LOOK, _LOOK_INTERVALS * self._interval)
        self._every = max(self._between, _LOOK_AT_ONE * len(ctx.adaptive_targets))
        primitive = sample_primitive(ctx.sample_control)
        self._others = {id(t) for t in ctx.adaptive_targets if t.task is None or t.task.primitive != primitive}
        self._next = self._now + self._between

    def is_due(self, t: damon_target) -> bool:
        """Return whether it is time to look at ``t``."""
        return t.looked_at is None or self._now - t.looked_at >= self._every or id(t) in self._others

    def left(self) -> int:
        """How many sampling intervals there are until the next look, at least one."""
        return max(-(-(self._next - self._ctx.clock.now()) // self._interval), 1)

    def find_same(self, targets: Sequence[damon_target]) -> bool:
        """If it is time, look at those that are due; False: some process is elsewhere."""
        self._now = self._ctx.clock.now()
        if self._now < self._next:
            return True
        self._next = self._now + self._between
        elsewhere = [t for t in targets if self.is_due(t) and _look(t, self._ctx) is not t.mm]
        for t in elsewhere:
            t.looked_at = None
        return not elsewhere


def damon_va_mkold(mm: AddressSpace, t: damon_target) -> None:
    """Begin a sample of the chosen pages of ``t``, which are in ``mm``."""
    mm.begin_sample(t.regions.sampling_addr)


def damon_va_young(mm: AddressSpace, t: damon_target) -> Answers:
    """End the sample that :func:`damon_va_mkold` began, unless it ended already; return its answers, shape (n,)."""
    if t.answers is None:
        t.answers = mm.end_sample(t.regions.sampling_addr)
    return t.answers


def damon_va_check_accesses(ctx: damon_ctx) -> None:
    """Count the regions whose chosen page was accessed."""
    _end_samples(ctx, known=True)


def _end_samples(ctx: damon_ctx, known: bool) -> None:
    """Count the results of the samples of ``ctx``; without ``known`` they are unknown."""
    answered = ctx.end_intervals() if ctx.end_intervals is not None else frozenset()
    for t in ctx.adaptive_targets:
        mm = t.mm if id(t) in answered and t.looked_at is not None else _look(t, ctx)
        if mm is not t.mm:
            t.looked_at = None
        if mm is None:
            # Deviation: docs/deviations.md#samples-can-be-unknown
            t.regions.nr_unknown += np.uint32(1)  # its memory is out of reach, or it has none
            continue
        if not len(t.regions):
            continue
        # After an exec in between, no sample of this address space was begun.
        seen = damon_va_young(mm, t) if mm is t.mm else None
        if seen is None or not known:
            seen = np.full(len(t.regions), UNKNOWN, np.uint8)
        count_samples(ctx, t, seen)


def va_report_faults(ctx: damon_ctx, sampled: bool) -> None:
    """Report the faults of the processes that are monitored by ``page_fault``, and end the sample of each page.

    Every context that monitors the same process gets each report once, whichever kdamond collects it.

    :param sampled: there are such samples.
    """
    if ctx.sample_control.sample_filters and (awaited := only_threads(ctx.sample_control)):
        tasks = [t.task for t in ctx.adaptive_targets if t.task is not None]
        ctx.filtered_threads.look(ctx.clock.now(), awaited, tasks)
    if ctx.machine is not None:
        faults = ctx.machine.faults()
        if len(faults):
            columns = ("pid", "addr", "node_id", "write", "cpu", "tid")
            report_accesses(report_array(len(faults), **{name: faults[name] for name in columns}))
    if sampled:
        # No page is young by faults: this counts the samples, and those that could not be taken. Where faults were
        # lost, a page without any may be one that was accessed.
        lost = ctx.machine.faults_lost if ctx.machine is not None else 0
        _end_samples(ctx, known=lost <= ctx.faults_lost)
        ctx.faults_lost = lost


def va_prep_probes(ctx: damon_ctx, set_samples: bool) -> None:
    """Forget that the chosen pages were accessed, for the probes: they have no other way to be prepared.

    :param set_samples: they have to be chosen and made old here.
    """
    if set_samples:
        damon_va_prepare_access_checks(ctx)


def va_apply_probes(ctx: damon_ctx, set_samples: bool) -> None:
    """Count the hits of the probes among the chosen pages.

    Kernel: vaddr of 7.2 takes probes and counts no hits; DAMON's development tree counts them. Here: as that.
    (docs/deviations.md#probes-on-virtual-addresses)

    :param set_samples: they have to be chosen here.
    """
    filters = probe_page_filters(ctx)
    for t in ctx.adaptive_targets:
        mm = _damon_va_pick(t, ctx) if set_samples else _damon_get_mm(t)
        # After an exec in between, the addresses are of another address space.
        if mm is None or mm is not t.mm or not len(t.regions):
            continue
        matches: Mask | None = None
        try:
            answers = damon_va_young(mm, t) if needs_answers(filters) else None
            matches = mm.page_match(t.regions.sampling_addr, filters, answers)
        except OSError as error:
            warn_once(f"probes hit nothing: {error.strerror}")
        count_probe_hits(ctx, t, matches)


def damon_va_eligible_report(report: ReportLike, t: damon_target) -> bool | Mask:
    """Return whether a report, or which reports of a batch, are about the process of ``t``."""
    # Kernel: compares numbers. Here: of a process that ended nothing is reported, because its number may be another's.
    # (docs/deviations.md#reports-on-a-process-that-ended)
    return (report.pid == t.pid) & (t.task is None or t.task.valid())


def damon_va_target_valid(t: damon_target) -> bool:
    """Return whether the process of ``t`` exists; one that ended but was not reaped does."""
    return t.task is not None and t.task.valid()


def damon_va_apply_scheme(ctx: damon_ctx, t: damon_target, rows: Indexes, s: damos) -> tuple[U64Array, U64Array]:
    """Apply the action of ``s`` to regions ``rows`` of ``t``, as far as their pages pass the filters on pages.

    Kernel: filters on pages count for stat and the migrations only, and a region with a hole in it counts as not
    applied, all others as a whole. Here: they count for every action, and what counts as applied is what happened.
    (docs/deviations.md#page-filters-on-virtual-addresses) (docs/deviations.md#applied-bytes-are-measured)

    :returns: bytes of each region that it was applied to, see :mod:`kdamon.mm.actions.advice`, and bytes that passed
        the filters on pages, 0 without any; both shape (n,).
    """
    applied, passed = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64)
    mm = _damon_get_mm(t)
    if mm is None:
        return applied, passed
    if s.action in _NOT_APPLIED:
        warn_once(f"{s.action.value} has no effect: {_NOT_APPLIED[s.action]}")
        return applied, passed
    wanted = _whole_pages(t, rows)
    parts = wanted[wanted[:, 0] < wanted[:, 1]]
    try:
        if s.ops_filters and s.core_filters_allowed:
            # A core filter allowed the whole region: all mapped pages pass.
            passed = overlaps(wanted, mm.page_filter(parts, [], default_reject=False))
        elif s.ops_filters:
            filters = [page_filter(f, f.type.value) for f in s.ops_filters]
            parts = intersect(parts, mm.page_filter(parts, filters, s.ops_filters_default_reject))
            passed = overlaps(wanted, parts)
        if s.action is not damos_action.DAMOS_STAT:
            region = np.searchsorted(wanted[:, 0], parts[:, 0], side="right") - 1
            np.add.at(applied, region, _damon_va_act(mm, s, parts))
    except OSError as error:
        warn_once(f"{s.action.value} has no effect: {error.strerror}")
    return applied, passed


def _whole_pages(t: damon_target, rows: Indexes) -> U64Array:
    """Where regions ``rows`` of ``t`` begin and end, rounded up to pages, shape (n, 2)."""
    edges = np.stack((t.regions.start[rows], t.regions.end[rows]), axis=1)
    # No process can map the last page of the address space.
    edges = np.minimum(edges, np.uint64(ULONG_MAX - 2 * PAGE_SIZE))
    return (edges + np.uint64(PAGE_SIZE - 1)) & ~np.uint64(PAGE_SIZE - 1)


def _damon_va_act(mm: AddressSpace, s: damos, parts: U64Array) -> U64Array:
    """Apply the action of ``s`` to ``parts`` of ``mm``; returns the bytes of each that it was applied to."""
    if s.action in {damos_action.DAMOS_MIGRATE_HOT, damos_action.DAMOS_MIGRATE_COLD}:
        return mm.migrate(parts, _destinations(s))
    return mm.advise(_ADVICE[s.action], parts)


def _destinations(s: damos) -> list[tuple[int, int]]:
    dests = s.migrate_dests
    if not dests.node_id_arr:
        return [(s.target_nid, 1)]
    return list(zip(dests.node_id_arr, dests.weight_arr, strict=True))


_vaddr_ops = damon_operations(
    id=damon_ops_id.DAMON_OPS_VADDR,
    init=damon_va_init,
    update=damon_va_update,
    prepare_access_checks=damon_va_prepare_access_checks,
    sample_intervals=va_sample_intervals,
    check_accesses=damon_va_check_accesses,
    report_faults=va_report_faults,
    eligible_report=damon_va_eligible_report,
    prep_probes=va_prep_probes,
    apply_probes=va_apply_probes,
    get_scheme_score=scheme_score,
    get_scheme_scores=scheme_scores,
    apply_scheme=damon_va_apply_scheme,
    action_sz=HPAGE_PMD_SIZE,
    target_valid=damon_va_target_valid,
    target_has_pid=True,
    needs_task=True,
)
#: The operations sets of this module.
OPERATIONS = (
    _vaddr_ops,
    evolve(_vaddr_ops, id=damon_ops_id.DAMON_OPS_FVADDR, init=fva_init, update=no_op),
)
