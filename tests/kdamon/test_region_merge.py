# SPDX-License-Identifier: GPL-2.0-only
"""Merges keep the sums of accesses, beside the kernel's integers, which round down."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.core import kdamond_merge_regions
from kdamon.region_merge import merge_equal, merge_similar
from kdamon.regions import Regions
from tests.support.tables import ctx_of, effort

SAMPLES = 20


@st.composite
def tables(draw: st.DrawFn) -> Regions:
    """Regions side by side or apart, of any sizes of pages, with any counts."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(1, 1 << 20), st.integers(0, SAMPLES)), min_size=1, max_size=40
        )
    )
    starts, ends, at = [], [], 1 << 20
    for gap, size, _ in rows:
        starts.append(at := at + 4096 * (gap // 3))
        ends.append(at := at + 4096 * size)
    table = Regions(starts, ends)
    table.nr_accesses = np.array([accesses for _, _, accesses in rows], np.uint32)
    return table


def seen(table: Regions) -> float:
    """Bytes times accesses of all regions."""
    return float((table.sizes().astype(np.float64) * table.exact_accesses()).sum())


@effort(300)
@given(tables(), st.integers(0, SAMPLES), st.integers(1, 1 << 34))
def test_merging_keeps_the_sum_of_accesses(table: Regions, threshold: int, limit: int) -> None:
    """Whatever is merged, bytes times accesses stay what they were; each mean rounded down is the kernel's at least."""
    before = seen(table)
    for step in (0, threshold, SAMPLES):
        merge_similar(table, step, limit)
        assert pytest.approx(before, rel=1e-12) == seen(table)
        assert (table.exact_accesses() >= table.nr_accesses).all()


@effort(100)
@given(tables(), st.integers(1, 1 << 34))
def test_merging_equal_neighbours_keeps_it_too(table: Regions, limit: int) -> None:
    before = seen(table)
    merge_similar(table, SAMPLES // 10, limit)
    merge_equal(table, limit)
    assert pytest.approx(before, rel=1e-12) == seen(table)


@effort(100)
@given(tables(), st.lists(st.integers(1, 9), max_size=5))
def test_cutting_what_was_merged_keeps_the_mean_of_each_part(table: Regions, cuts: list[int]) -> None:
    merge_similar(table, SAMPLES, 1 << 40)
    before = seen(table)
    for tenths in cuts:
        row = int(table.sizes().argmax())
        size = int(table.sizes()[row]) * tenths // 10 // 4096 * 4096
        if size:
            table.split_at(row, size)
    assert pytest.approx(before, rel=1e-12) == seen(table)


def test_rare_accesses_survive() -> None:
    """Of a hundred regions of a page one was accessed once: the kernel's mean is 0, the exact one a hundredth."""
    table = Regions([4096 * i for i in range(1, 101)], [4096 * i for i in range(2, 102)])
    table.nr_accesses[50] = 1
    ctx = ctx_of(table)
    kdamond_merge_regions(ctx, 1, 1 << 40)
    assert 1 == len(table)
    assert 0 == table.nr_accesses[0]
    assert 0.01 == pytest.approx(table.exact_accesses()[0])
    table.reset_aggregated()
    assert [0.0] == table.exact_accesses().tolist()
