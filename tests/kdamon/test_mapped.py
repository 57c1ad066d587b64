# SPDX-License-Identifier: GPL-2.0-only
"""Regions that follow what is mapped and populated, and a word where regions are too large to find anything."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kdamon.arrays import U64Array
from kdamon.core import (
    damon_add_target,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    run_ctx,
)
from kdamon.damon import damon_attrs, damon_call_control, damon_ctx, damon_ops_id
from kdamon.mapped import follow_mappings, mapped_ranges, without_smallest_gaps
from kdamon.mm import ranges
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from tests.support.tables import effort

MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096


def of(*rows: tuple[int, int]) -> U64Array:
    return np.array(rows, np.uint64).reshape(-1, 2)


def bounds(vmas: U64Array, nr_max: int, populated: U64Array | None = None) -> list[tuple[int, int]]:
    return [(r.start, r.end) for r in mapped_ranges(vmas, nr_max, populated)]


def test_the_biggest_gaps_are_left_out() -> None:
    """As many as there is room for ranges; mappings that touch are one."""
    vmas = np.array([[10, 20], [20, 30], [31, 40], [50, 60], [62, 70]], np.uint64)
    bounds = {n: [(r.start, r.end) for r in mapped_ranges(vmas, n)] for n in (0, 1, 2, 3, 9)}
    assert bounds[0] == bounds[1] == [(10, 70)]
    assert [(10, 40), (50, 70)] == bounds[2]
    assert [(10, 40), (50, 60), (62, 70)] == bounds[3]
    assert [(10, 30), (31, 40), (50, 60), (62, 70)] == bounds[9]
    assert [] == mapped_ranges(vmas[:0], 5)


def test_what_is_not_populated_is_left_out() -> None:
    """As long as it is more than half; of 160 GiB that are reserved two MiB stay."""
    vmas = of((MIB, 3 * MIB), (GIB, 161 * GIB), (200 * GIB, 200 * GIB + MIB))
    populated = of((MIB, 3 * MIB), (50 * GIB, 50 * GIB + 2 * MIB), (200 * GIB, 200 * GIB + MIB))
    assert populated.tolist() == [list(one) for one in bounds(vmas, 250, populated)]


def test_memory_that_will_be_populated_soon_stays() -> None:
    """Holes that are no larger together than what is populated."""
    vmas = of((0, 100 * MIB), (GIB, GIB + 400 * MIB))
    populated = of((0, 90 * MIB), (GIB, GIB + 20 * MIB), (GIB + 60 * MIB, GIB + 70 * MIB))
    assert [(0, 100 * MIB), (GIB, GIB + 70 * MIB)] == bounds(vmas, 250, populated)


def test_small_gaps_stay() -> None:
    """Each range costs samples: many small mappings side by side are one."""
    vmas = of(*((number * 3 * MIB, number * 3 * MIB + 2 * MIB) for number in range(50)), (GIB, GIB + 2 * MIB))
    assert [(0, 149 * MIB), (GIB, GIB + 2 * MIB)] == bounds(vmas, 250, vmas)


def test_where_nothing_is_known_to_be_populated_all_is_taken() -> None:
    """As of a process that is just being started."""
    vmas = of((0, 100 * MIB), (GIB, GIB + 400 * MIB))
    assert [(0, 100 * MIB), (GIB, GIB + 400 * MIB)] == bounds(vmas, 250, of())


def test_only_the_largest_holes_are_left_out_where_there_is_no_room() -> None:
    """For more ranges: the smallest gaps are monitored too."""
    places = [(number * number * GIB, number * number * GIB + 2 * MIB) for number in range(1, 11)]
    found = bounds(of((0, 200 * GIB)), 4, of(*places))
    assert [(1 * GIB, 49 * GIB + 2 * MIB), places[7], places[8], places[9]] == found


blocks = st.lists(st.integers(0, 2000), unique=True, max_size=60).map(sorted)


@effort(100)
@given(st.lists(st.integers(1, 2000), min_size=2, max_size=40, unique=True).map(sorted), blocks, st.integers(0, 50))
def test_ranges_hold_what_is_populated(edges: list[int], numbers: list[int], nr_max: int) -> None:
    """All of it, at most so many, ascending and apart; nothing outside of the first and the last mapping."""
    edges = edges[: len(edges) // 2 * 2]
    vmas = of(*zip(edges[::2], edges[1::2], strict=True))
    populated = ranges.intersect(vmas, of(*((number, number + 1) for number in numbers)))
    found = of(*bounds(vmas, nr_max, populated))
    assert 1 <= len(found) <= max(nr_max, 1)
    assert (found[1:, 0] > found[:-1, 1]).all()
    assert [] == ranges.subtract(populated, found).tolist()
    assert vmas[0, 0] <= found[0, 0] < found[-1, 1] <= vmas[-1, 1]
    if nr_max >= 50:
        # With room for each of them, half of what is monitored is populated.
        assert 0 == len(populated) or ranges.total(found) <= 2 * ranges.total(populated)


@given(st.lists(st.integers(0, 400), min_size=2, max_size=60, unique=True).map(sorted), st.integers(2, 10))
def test_the_biggest_gaps_stay_where_there_are_too_many(edges: list[int], most: int) -> None:
    """The result is as small as that number of ranges can be, and holds all."""
    parts = ranges.joined(of(*zip(edges[: len(edges) // 2 * 2 : 2], edges[1::2], strict=True)))
    found = without_smallest_gaps(parts, most)
    gaps = sorted((parts[1:, 0] - parts[:-1, 1]).tolist())
    assert min(most, len(parts)) == len(found)
    assert [] == ranges.subtract(parts, found).tolist()
    assert ranges.total(found) == ranges.total(parts) + sum(gaps[: max(len(parts) - most, 0)])


# In a context.


def scattered(machine: SimMachine, count: int, size: int) -> SimProcess:
    """A process with ``count`` mappings of ``size`` at places all over 128 TiB."""
    return machine.spawn([((number + 1) << 39, ((number + 1) << 39) + size) for number in range(count)])


def context(machine: SimMachine, process: SimProcess, max_regions: int = 1000) -> damon_ctx:
    ctx = damon_new_ctx(seed=1)
    ctx.machine, ctx.clock = machine, machine.clock
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_VADDR)
    damon_set_attrs(ctx, damon_attrs(5000, 100_000, 1_000_000, max_nr_regions=max_regions))
    t = damon_new_target()
    t.pid, t.task = process.pid, machine.get_task(process.pid)
    damon_add_target(ctx, t)
    return ctx


def test_the_kernels_regions_are_too_large_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """With what the regions cover, what is populated, and what to do."""
    machine = SimMachine(seed=1)
    process = scattered(machine, 100, MIB)
    ctx = context(machine, process)
    (t,) = ctx.adaptive_targets
    with caplog.at_level(logging.WARNING, "kdamon"):
        run_ctx(ctx, 3)
    (record,) = caplog.records
    assert "its regions cover 49664.0 GiB" in record.getMessage()
    assert "of which 100 MiB are populated" in record.getMessage()
    assert "kdamon run" in record.getMessage()
    assert t.sparse is not None
    assert 100 * MIB == t.sparse[1]


def test_mappings_are_followed_and_what_is_accessed_is_found(caplog: pytest.LogCaptureFixture) -> None:
    """By as many regions as the kernel's way would have; nothing is to be said then."""
    machine = SimMachine(seed=1)
    process = scattered(machine, 100, MIB)
    hot = 40 << 39
    process.access(hot, hot + MIB)
    ctx = context(machine, process)
    follow_mappings(ctx)
    (t,) = ctx.adaptive_targets
    found: list[int] = []

    with caplog.at_level(logging.WARNING, "kdamon"):
        run_ctx(ctx, 3)
        sizes, counts = t.regions.sizes(), t.regions.last_nr_accesses
        found += [int(sizes[counts >= 10].sum()), int(sizes.sum())]
    assert [MIB, 100 * MIB] == found
    assert [] == caplog.records
    assert t.sparse is None


def test_a_program_that_just_began_is_looked_at_sooner() -> None:
    """Not after the whole update interval only, here ten seconds."""
    machine = SimMachine(seed=1)
    process = scattered(machine, 3, MIB)
    ctx = context(machine, process)
    ctx.attrs.ops_update_interval = 10_000_000
    follow_mappings(ctx)
    (t,) = ctx.adaptive_targets
    sizes: list[int] = []
    grown = [(1 << 39, (1 << 39) + 64 * MIB)]

    def grow(_data: None) -> None:
        sizes.append(int(t.regions.sizes().sum()))
        if machine.clock.now() >= 0.12e9:
            process.mmap(grown)

    ctx.call_controls.append(damon_call_control(fn=grow, repeat=True))
    assert ctx.ops is not None
    update, updates = ctx.ops.update, list[float]()

    def counted(ctx: damon_ctx) -> None:
        assert update is not None
        updates.append(machine.clock.now() / 1e9)
        update(ctx)

    ctx.ops = evolve(ctx.ops, update=counted)
    run_ctx(ctx, 30)
    assert {3 * MIB, 64 * MIB} == set(sizes)
    assert sizes.index(64 * MIB) <= 41
    assert pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 22.8], abs=0.02) == updates


def test_too_many_places_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Regions that no bound allows to be small enough."""
    machine = SimMachine(seed=1)
    process = scattered(machine, 200, MIB)
    ctx = context(machine, process, max_regions=20)
    follow_mappings(ctx)
    with caplog.at_level(logging.WARNING, "kdamon"):
        run_ctx(ctx, 1)
    (record,) = caplog.records
    assert "raise the maximum number of regions" in record.getMessage()
