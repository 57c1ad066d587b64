# SPDX-License-Identifier: GPL-2.0-only
"""Faults of huge pages as faults of the sampled pages in them."""

from __future__ import annotations

import numpy as np

from kdamon.arrays import U64Array
from kdamon.mm import FAULT_DTYPE, Faults
from kdamon.mm.sampling.huge_faults import spread

HUGE = 1 << 21


def _faults(*rows: tuple[int, int]) -> Faults:
    """Faults of (process, address), each by another CPU."""
    faults = np.zeros(len(rows), FAULT_DTYPE)
    for at, (pid, addr) in enumerate(rows):
        faults[at]["pid"], faults[at]["addr"], faults[at]["cpu"] = pid, addr, at
    return faults


def _whole(*rows: tuple[int, int]) -> U64Array:
    """Huge pages, by their number, and a sampled page in each."""
    return np.array([(at * HUGE, (at + 1) * HUGE, page) for at, page in rows], np.uint64)


def _seen(faults: Faults) -> list[tuple[int, int, int]]:
    return sorted(zip(faults["pid"].tolist(), faults["addr"].tolist(), faults["cpu"].tolist(), strict=True))


def test_a_fault_counts_for_each_sampled_page_of_its_huge_page() -> None:
    """With thread, CPU and kind of the access; its own address is none of a region that sampled the page."""
    sampled = [_whole((4, 4 * HUGE + 4096), (4, 4 * HUGE + 8192), (6, 6 * HUGE))]
    faults = spread(_faults((7, 4 * HUGE + 12345), (7, 7 * HUGE - 1)), 7, sampled)
    assert [(7, 4 * HUGE + 4096, 0), (7, 4 * HUGE + 8192, 0), (7, 6 * HUGE, 1)] == _seen(faults)


def test_other_faults_are_what_they_were() -> None:
    """Those before, between and after the huge pages, and another process's."""
    others = _faults((7, 4 * HUGE - 1), (7, 5 * HUGE), (7, 9 * HUGE), (8, 4 * HUGE))
    assert _seen(others) == _seen(spread(others, 7, [_whole((4, 4 * HUGE), (6, 6 * HUGE))]))


def test_what_two_monitors_sample_counts_once() -> None:
    """In one huge page, of the present sample or of the one before."""
    sampled = [_whole((4, 4 * HUGE), (4, 4 * HUGE + 4096)), _whole((4, 4 * HUGE), (5, 5 * HUGE))]
    faults = spread(_faults((7, 4 * HUGE + 99)), 7, sampled)
    assert [(7, 4 * HUGE, 0), (7, 4 * HUGE + 4096, 0)] == _seen(faults)


def test_without_huge_pages_nothing_changes() -> None:
    """Nor without faults."""
    faults = _faults((7, 4096))
    assert spread(faults, 7, []) is faults
    assert not len(spread(_faults(), 7, [_whole((4, 4 * HUGE))]))
