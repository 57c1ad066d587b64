# SPDX-License-Identifier: GPL-2.0-only
"""Estimates of the memory in use from looks at pages: shares, intervals of confidence, and what is unknown."""

from __future__ import annotations

import numpy as np
import pytest

from kdamon.arrays import Records
from kdamon.monitoring.use import (
    ABSENT,
    ACCESSED,
    ANON,
    CAME,
    FILE,
    GONE,
    IDLE,
    LOOK,
    UNKNOWN,
    LookCounts,
    WindowUse,
    estimate,
    wilson,
)

MIB = 1 << 20


def looks(states: list[int], kinds: list[int] | None = None, total: float = 100 * MIB) -> Records:
    table = np.zeros(len(states), LOOK)
    table["state"] = states
    table["kind"] = kinds or 0
    table["weight"] = total / len(states)
    return table


def test_shares_apply_to_what_is_in_memory() -> None:
    """What left memory, or never was there, is no part of it; what came there was used."""
    states = [ACCESSED] * 2 + [CAME] + [IDLE] * 6 + [UNKNOWN] + [GONE] * 3 + [ABSENT] * 7
    kinds = [0] * 3 + [ANON, ANON, ANON, FILE, 0, 0] + [0] * 11
    found = estimate([LookCounts.of(looks(states, kinds))], 10.0, resident=200 * MIB)
    assert found is not None
    assert (60 * MIB, 120 * MIB, 20 * MIB, 10) == (found.accessed, found.idle, found.unknown, found.pages)
    assert (90 * MIB, 30 * MIB) == (found.idle_anon, found.idle_file)
    assert found.low < 60 * MIB < found.high


def test_without_an_exact_size_it_is_estimated_too() -> None:
    found = estimate([LookCounts.of(looks([ACCESSED] * 5 + [ABSENT] * 5))], 1.0)
    assert found is not None
    assert (50 * MIB, 0) == (found.accessed, found.idle)


def test_cohorts_count_by_the_memory_that_they_stand_for() -> None:
    """Not by their pages: the estimate is the mean of two times. Together they are what ``plus`` makes of them."""
    few, many = LookCounts.of(looks([ACCESSED] * 10)), LookCounts.of(looks([IDLE] * 30, total=60 * MIB))
    found = estimate([few, many], 1.0)
    assert found is not None
    assert (50 * MIB, 40, 80 * MIB) == (found.accessed, found.pages, found.accessed + found.idle)
    assert found == estimate([few.plus(many)], 1.0)


def test_a_small_cohort_of_several_widens_the_bounds() -> None:
    """As many pages say less if some of them stand for more memory than others."""
    half = [ACCESSED, IDLE]
    even = estimate([LookCounts.of(looks(half * 50))] * 2, 1.0)
    uneven = estimate([LookCounts.of(looks(half * 95)), LookCounts.of(looks(half * 5))], 1.0)
    assert even is not None
    assert uneven is not None
    assert (pytest.approx(even.accessed), even.pages) == (uneven.accessed, uneven.pages)
    assert uneven.high - uneven.low > 2 * (even.high - even.low)


@pytest.mark.parametrize("states", [[], [ABSENT] * 3, [GONE]])
def test_nothing_in_memory_is_no_estimate(states: list[int]) -> None:
    assert estimate([LookCounts.of(looks(states))] if states else [], 1.0) is None


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """95 of 100 times, for small and large shares, with a seed."""
    rng = np.random.default_rng(1)
    for share in (0.01, 0.08, 0.35, 0.9):
        hits = rng.binomial(1000, share, 2000)
        inside = [low <= share <= high for low, high in (wilson(int(n), 1000) for n in hits)]
        assert 0.93 <= np.mean(inside) <= 0.97


def test_an_interval_is_never_empty() -> None:
    assert (0.0, 1.0) == wilson(0, 0)
    assert 0 == wilson(0, 100)[0] < wilson(0, 100)[1] < 0.05
    assert 1 == pytest.approx(wilson(100, 100)[1])


def test_all_in_memory_is_used_idle_or_unknown() -> None:
    states = np.random.default_rng(1).choice([ACCESSED, IDLE, UNKNOWN, CAME, GONE, ABSENT], 500).tolist()
    found = estimate([LookCounts.of(looks(states))], 60.0, resident=1 << 40)
    assert isinstance(found, WindowUse)
    assert pytest.approx(1 << 40) == found.accessed + found.idle + found.unknown
