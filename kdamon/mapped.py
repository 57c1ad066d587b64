# SPDX-License-Identifier: GPL-2.0-only
"""Regions that cover the populated memory of a process, where the kernel's vaddr leaves out two gaps only.

Kernel: the three regions of ``__damon_va_three_regions()`` may cover terabytes, of which a program like Node.js or one
with AddressSanitizer uses scattered megabytes; sampled addresses hardly ever hit these. Here: gaps between mappings are
left out, and so are parts of mappings without populated pages, as far as the number of regions allows.
(docs/deviations.md#sparse-regions-are-reported)
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
from attrs import evolve

from kdamon.arrays import U64Array
from kdamon.core import damon_set_regions
from kdamon.damon import damon_addr_range, damon_ctx, damon_target
from kdamon.kernel import PMD_SIZE
from kdamon.mm import AddressSpace
from kdamon.mm.ranges import NO_RANGES, joined, subtract, total
from kdamon.regions import Regions

__all__ = ["follow_mappings", "mapped_ranges", "note_sparse_regions", "without_smallest_gaps"]

log = logging.getLogger("kdamon")

#: Regions are too large to find accesses if they cover so many times the populated memory in them.
_SPARSE: Final = 100
#: Nanoseconds between two checks of that.
_LOOK: Final = 60_000_000_000
#: Nanoseconds after which regions are set anew although the extent of the address space is the same.
_HOLDS: Final = 10_000_000_000
#: How many times the gaps that may be left out are considered.
_MOST: Final = 8


def mapped_ranges(vmas: U64Array, nr_max: int, populated: U64Array | None = None) -> list[damon_addr_range]:
    """The mapped address space as at most ``nr_max`` ranges: the gaps that are left out are the biggest ones.

    :param vmas: start and end of every mapping in address order, shape (n, 2), bytes.
    :param populated: the parts of ``vmas`` that hold pages, ascending and disjoint, bytes. Other parts are left out
        too, the biggest first, until no more than half of what remains is such; and so many of the smallest gaps stay,
        because each range costs samples. None: nothing is known about that.
    """
    parts = joined(vmas)
    spare = 0
    if populated is not None and len(populated):
        holes = subtract(parts, populated)
        sizes = holes[:, 1] - holes[:, 0]
        ascending = np.argsort(sizes, kind="stable")
        left_out = ascending[np.cumsum(sizes[ascending]) > np.uint64(total(populated))]
        parts = subtract(parts, holes[np.sort(left_out)])
        spare = 2 * total(populated) - total(parts)
    if not len(parts):
        return []
    gaps = parts[1:, 0] - parts[:-1, 1]
    ascending = np.argsort(gaps, kind="stable")
    nr_joined = max(int((np.cumsum(gaps[ascending]) <= np.uint64(spare)).sum()), len(gaps) - max(nr_max, 1) + 1)
    apart = np.sort(ascending[nr_joined:])
    starts = np.concatenate([parts[:1, 0], parts[apart + 1, 0]])
    ends = np.concatenate([parts[apart, 1], parts[-1:, 1]])
    return [damon_addr_range(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def follow_mappings(ctx: damon_ctx) -> None:
    """Let ``ctx``, whose operations set is vaddr, cover the populated memory of its processes from now on."""
    assert ctx.ops is not None
    ctx.ops = evolve(ctx.ops, init=_update, update=_update)


def _update(ctx: damon_ctx) -> None:
    """Set the regions of every target to its mapped memory, see :func:`mapped_ranges`."""
    # A program that just began maps most of its memory at once: update sooner at first, at doubling intervals.
    passed = ctx.passed_sample_intervals
    ctx.next_ops_update_sis = min(ctx.next_ops_update_sis, passed + max(passed, ctx.attrs.aggr_samples))
    # All targets together leave room to split the ranges; each has three at least, as with vaddr.
    nr_ranges = max(ctx.attrs.max_nr_regions // 4 // max(len(ctx.adaptive_targets), 1), 3)
    now = ctx.clock.now()
    for t in ctx.adaptive_targets:
        mm = None if t.task is None else t.task.get_mm()
        extent = None if mm is None else mm.extent()
        # Deviation: docs/deviations.md#unchanged-mappings-are-not-read
        if extent is not None and t.mapped == (mm, extent, nr_ranges) and now < t.mapped_until and len(t.regions):
            continue
        vmas = NO_RANGES if mm is None else without_smallest_gaps(joined(mm.vmas()), _MOST * nr_ranges)
        # Before populated memory is looked for: what is populated meanwhile makes another extent.
        extent = None if mm is None else mm.extent()
        t.mapped, t.mapped_until = None if extent is None else (mm, extent, nr_ranges), now + _HOLDS
        ranges = [] if mm is None else mapped_ranges(vmas, nr_ranges, mm.populated(vmas))
        if ranges:
            damon_set_regions(t, ranges, ctx.min_region_sz)
            note_sparse_regions(ctx, t, mm, vmas, "raise the maximum number of regions: its memory is scattered")
        else:
            t.regions = Regions()  # it ended, and is not reaped yet


def without_smallest_gaps(parts: U64Array, most: int) -> U64Array:
    """``parts`` as at most ``most`` ranges: the gaps between them are the biggest ones.

    The smaller ones would stay within the regions anyway, and tens of thousands take longer than a sampling interval.

    :param parts: ascending, with a gap after each, shape (n, 2), bytes.
    :param most: at least 2.
    """
    if len(parts) <= most:
        return parts
    gaps = parts[1:, 0] - parts[:-1, 1]
    limit = np.partition(gaps, len(gaps) - most + 1)[len(gaps) - most + 1]
    bigger, equal = np.flatnonzero(gaps > limit), np.flatnonzero(gaps == limit)
    apart = np.sort(np.append(bigger, equal[: most - 1 - len(bigger)]))
    return np.stack((np.append(parts[0, 0], parts[apart + 1, 0]), np.append(parts[apart, 1], parts[-1, 1])), axis=1)


def note_sparse_regions(ctx: damon_ctx, t: damon_target, mm: AddressSpace | None, vmas: U64Array, remedy: str) -> None:
    """Warn once if the regions of ``t`` are too large to find accesses, and keep the sizes in ``t.sparse``.

    :param mm: its address space, ``vmas`` all of its mappings.
    :param remedy: what can be done about it, as a clause.
    """
    covered = int(t.regions.sizes().sum())
    now = ctx.clock.now()
    if mm is None or covered < PMD_SIZE * ctx.attrs.max_nr_regions or t.sparse or now < t.next_sparse_look:
        return
    t.next_sparse_look = now + _LOOK
    populated = total(mm.populated(vmas))
    if populated and covered >= _SPARSE * populated:
        t.sparse = (covered, populated)
        log.warning(
            "process %d: its regions cover %.1f GiB, of which %d MiB are populated, so that hardly any access is "
            "found; %s",
            t.pid,
            covered / (1 << 30),
            -(-populated >> 20),
            remedy,
        )
