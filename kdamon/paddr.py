# SPDX-License-Identifier: GPL-2.0-only
"""The operations set for the physical address space (``mm/damon/paddr.c``), as far as user space can monitor it.

Addresses are those of the machine's memory. Regions have to be given, usually the ranges of System RAM in /proc/iomem.
:mod:`kdamon.mm.sampling.physical` lists the accesses that can be observed; all other samples are unknown.
"""

from __future__ import annotations

import logging

import numpy as np

from kdamon.arrays import Indexes, Mask, U64Array
from kdamon.damon import (
    ReportLike,
    damon_ctx,
    damon_operations,
    damon_ops_id,
    damon_target,
    damos,
    damos_action,
)
from kdamon.kernel import HPAGE_PMD_SIZE
from kdamon.lib.once import warn_once
from kdamon.mm import UNKNOWN, Answers, Owner, PageFilter, PhysicalMemory
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

__all__ = [
    "OPERATIONS",
    "damon_pa_apply_probes",
    "damon_pa_apply_scheme",
    "damon_pa_check_accesses",
    "damon_pa_mkold",
    "damon_pa_phys_addr",
    "damon_pa_prepare_access_checks",
    "damon_pa_young",
    "pa_eligible_report",
    "pa_init",
    "pa_node_mem",
    "pa_prep_probes",
    "pa_update",
]

log = logging.getLogger("kdamon")

#: Actions as address spaces know them. Kernel: each is applied to all page frames. Here: to those whose only process is
#: known, by that process. (docs/deviations.md#physical-memory-of-one-process-each)
_ADVICE = {damos_action.DAMOS_PAGEOUT: "pageout", damos_action.DAMOS_LRU_DEPRIO: "cold"}

#: Actions without effect although the kernel's paddr has them, and why.
_NOT_APPLIED = {
    damos_action.DAMOS_LRU_PRIO: "user space cannot move a page to the active list without accessing it",
}
_MIGRATIONS = {damos_action.DAMOS_MIGRATE_HOT, damos_action.DAMOS_MIGRATE_COLD}


def damon_pa_phys_addr(ctx: damon_ctx, addrs: U64Array) -> U64Array:
    """Core addresses as physical ones, bytes, shape (n,)."""
    return addrs if ctx.addr_unit == 1 else addrs * np.uint64(ctx.addr_unit)


def _memory(t: damon_target, ctx: damon_ctx) -> PhysicalMemory | None:
    """The memory that ``t`` is in; None where the context has no machine or the machine shows none."""
    if t.task is not None and t.task.physical is not None:
        return t.task.physical
    if ctx.machine is None:
        return None
    if t.task is not None:
        # A commit turned a process into this.
        t.task.put()
        t.task = t.mm = None
    try:
        t.task = memory = ctx.machine.physical_memory()
    except OSError as error:
        warn_once(f"physical addresses cannot be monitored: {error.strerror}")
        return None
    return memory


def pa_init(ctx: damon_ctx) -> None:
    """Read the mappings of the machine's memory. Kernel: paddr has no init, as reverse mappings are always there.

    (docs/deviations.md#physical-memory-of-one-process-each)
    """
    for memory in _memories(ctx):
        memory.update()
        known, reachable = (size >> 20 for size in memory.known())
        log.warning(
            "physical addresses: of %d MiB that processes and files have, %d MiB are mapped by one process each, whose "
            "accesses can be observed; samples of the rest (shared, page cache, mapped later) are unknown",
            reachable,
            known,
        )


def pa_update(ctx: damon_ctx) -> None:
    """Begin to read the mappings anew, while monitoring continues. Kernel: paddr has no update.

    (docs/deviations.md#physical-memory-of-one-process-each)
    """
    for memory in _memories(ctx):
        memory.begin_update()


def _memories(ctx: damon_ctx) -> list[PhysicalMemory]:
    found = (_memory(t, ctx) for t in ctx.adaptive_targets)
    return [memory for memory in found if memory is not None]


def damon_pa_prepare_access_checks(ctx: damon_ctx) -> None:
    """Choose an address in each region, and forget that its page was accessed."""
    for t in ctx.adaptive_targets:
        if len(t.regions):
            pick_samples(ctx, t)
            damon_pa_mkold(ctx, t)


def damon_pa_mkold(ctx: damon_ctx, t: damon_target) -> None:
    """Begin a sample of the chosen pages of ``t``."""
    memory = _memory(t, ctx)
    if memory is not None:
        t.sampled = damon_pa_phys_addr(ctx, t.regions.sampling_addr)
        memory.begin_sample(t.sampled)


def damon_pa_young(ctx: damon_ctx, t: damon_target) -> Answers:
    """End the sample that :func:`damon_pa_mkold` began, unless it ended already; return its answers, shape (n,)."""
    if t.answers is None:
        memory = _memory(t, ctx)
        if memory is None or t.sampled is None:
            return np.full(len(t.regions), UNKNOWN, np.uint8)
        t.answers, t.sampled = memory.end_sample(t.sampled), None
    return t.answers


def damon_pa_check_accesses(ctx: damon_ctx) -> None:
    """Count the regions whose chosen page was accessed."""
    for t in ctx.adaptive_targets:
        if len(t.regions):
            count_samples(ctx, t, damon_pa_young(ctx, t))


def pa_prep_probes(ctx: damon_ctx, set_samples: bool) -> None:
    """Forget that the chosen pages were accessed, for the probes; see :func:`kdamon.vaddr.va_prep_probes`."""
    if set_samples:
        damon_pa_prepare_access_checks(ctx)


def damon_pa_apply_probes(ctx: damon_ctx, set_samples: bool) -> None:
    """Count the hits of the probes among the chosen pages.

    :param set_samples: they have to be chosen here.
    """
    filters = probe_page_filters(ctx)
    for t in ctx.adaptive_targets:
        memory = _memory(t, ctx)
        if memory is None or not len(t.regions):
            continue
        if set_samples:
            pick_samples(ctx, t)
        matches: Mask | None = None
        try:
            answers = damon_pa_young(ctx, t) if needs_answers(filters) else None
            matches = memory.page_match(damon_pa_phys_addr(ctx, t.regions.sampling_addr), filters, answers)
        except OSError as error:
            warn_once(f"probes hit nothing: {error.strerror}")
        count_probe_hits(ctx, t, matches)


def pa_eligible_report(report: ReportLike, t: damon_target) -> bool | Mask:
    """Return whether a report, or which reports of a batch, are about physical addresses: those of process 0."""
    return report.pid == 0


def damon_pa_apply_scheme(ctx: damon_ctx, t: damon_target, rows: Indexes, s: damos) -> tuple[U64Array, U64Array]:
    """Apply the action of ``s`` to regions ``rows`` of ``t``, as far as they are memory whose only process is known.

    :returns: core address units of each region that it was applied to, see :mod:`kdamon.mm.actions.advice`, and that
        passed the filters on pages, shape (n,); of ``stat`` without such filters none, as in the kernel.
    """
    applied, passed = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64)
    memory = _memory(t, ctx)
    if memory is None or (s.action is damos_action.DAMOS_STAT and not s.ops_filters):
        return applied, passed
    if s.action not in {*_ADVICE, *_MIGRATIONS, damos_action.DAMOS_STAT}:
        reason = _NOT_APPLIED.get(s.action, "the operations set for physical addresses does not have it")
        warn_once(f"{s.action.value} has no effect: {reason}")
        return applied, passed
    filters = _page_filters(s)
    edges = (damon_pa_phys_addr(ctx, column[rows]) for column in (t.regions.start, t.regions.end))
    for mm, wanted, region in memory.owners(np.column_stack(tuple(edges))):
        parts = wanted
        try:
            if filters:
                parts = intersect(wanted, mm.page_filter(wanted, filters, s.ops_filters_default_reject))
            np.add.at(passed, region, overlaps(wanted, parts))
            if s.action is not damos_action.DAMOS_STAT:
                of_part = region[np.searchsorted(wanted[:, 0], parts[:, 0], side="right") - 1]
                np.add.at(applied, of_part, _damon_pa_act(mm, s, parts))
        except OSError as error:
            warn_once(f"{s.action.value} leaves memory of a process out: {error.strerror}")
    return applied // np.uint64(ctx.addr_unit), passed // np.uint64(ctx.addr_unit)


# Deviation: docs/deviations.md#actions-on-folios-partly-in-a-region
def _damon_pa_act(mm: Owner, s: damos, parts: U64Array) -> U64Array:
    """Apply the action of ``s`` to ``parts`` of ``mm``; returns the bytes of each that it was applied to."""
    if s.action in _MIGRATIONS:
        # As in the kernel, destinations with weights are for virtual addresses.
        return mm.migrate(parts, [(s.target_nid, 1)])
    return mm.advise(_ADVICE[s.action], parts)


def _page_filters(s: damos) -> list[PageFilter]:
    """The conditions on pages; as in the kernel, what a filter of the core allowed has to meet none."""
    if s.core_filters_allowed:
        return []
    filters = [page_filter(f, f.type.value) for f in s.ops_filters]
    if s.action is damos_action.DAMOS_PAGEOUT and not any(f.type == "young" for f in filters):
        # As in the kernel: what is accessed by now stays.
        filters.append(PageFilter("young", matching=True, allow=False))
    return filters


def pa_node_mem(ctx: damon_ctx, t: damon_target, rows: Indexes) -> dict[int, int]:
    """Bytes of regions ``rows`` of ``t`` on each NUMA node, as far as it is memory whose only process is known."""
    # Deviation: docs/deviations.md#eligible-memory-of-known-processes
    memory = _memory(t, ctx)
    if memory is None:
        return {}
    columns = (damon_pa_phys_addr(ctx, column[rows]) for column in (t.regions.start, t.regions.end))
    return memory.node_mem(np.column_stack(tuple(columns)))


#: The operations sets of this module.
OPERATIONS = (
    damon_operations(
        id=damon_ops_id.DAMON_OPS_PADDR,
        init=pa_init,
        update=pa_update,
        prepare_access_checks=damon_pa_prepare_access_checks,
        check_accesses=damon_pa_check_accesses,
        eligible_report=pa_eligible_report,
        prep_probes=pa_prep_probes,
        apply_probes=damon_pa_apply_probes,
        get_scheme_score=scheme_score,
        get_scheme_scores=scheme_scores,
        apply_scheme=damon_pa_apply_scheme,
        action_sz=HPAGE_PMD_SIZE,
        node_mem=pa_node_mem,
    ),
)
