# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own unit tests of vaddr (``mm/damon/tests/vaddr-kunit.h``), with their names and numbers."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kdamon.core import damon_set_regions
from kdamon.regions import Regions
from kdamon.vaddr import damon_va_three_regions
from tests.support.tables import addr_ranges, ranges_of, target_of

OLD = [(10, 20), (20, 30), (50, 55), (55, 57), (57, 59), (70, 80), (80, 90), (90, 100)]


def vmas(*ranges: tuple[int, int]) -> np.ndarray:
    return np.array(ranges, np.uint64).reshape(-1, 2)


def three_regions(*ranges: tuple[int, int], min_region_sz: int = 1) -> list[tuple[int, int]]:
    return [(r.start, r.end) for r in damon_va_three_regions(vmas(*ranges), min_region_sz)]


def apply_three_regions(new: list[tuple[int, int]]) -> list[tuple[int, int]]:
    t = target_of(Regions([start for start, _ in OLD], [end for _, end in OLD]))
    damon_set_regions(t, addr_ranges(new), 1)
    return ranges_of(t.regions)


def test_three_regions_in_vmas() -> None:
    mappings = [(10, 20), (20, 25), (200, 210), (210, 220), (300, 305), (307, 330)]
    assert [(10, 25), (200, 220), (300, 330)] == three_regions(*mappings)


def test_apply_three_regions1() -> None:
    expected = [(5, 20), (20, 27), (45, 55), (73, 80), (80, 90), (90, 104)]
    assert expected == apply_three_regions([(5, 27), (45, 55), (73, 104)])


def test_apply_three_regions2() -> None:
    expected = [(5, 20), (20, 27), (56, 57), (65, 80), (80, 90), (90, 104)]
    assert expected == apply_three_regions([(5, 27), (56, 57), (65, 104)])


def test_apply_three_regions3() -> None:
    expected = [(5, 20), (20, 27), (61, 63), (65, 80), (80, 90), (90, 104)]
    assert expected == apply_three_regions([(5, 27), (61, 63), (65, 104)])


def test_apply_three_regions4() -> None:
    assert [(5, 7), (30, 32), (65, 68)] == apply_three_regions([(5, 7), (30, 32), (65, 68)])


@pytest.mark.parametrize(
    "mappings", [[], [(1, 2)], [(1, 2), (5, 6)], [(1, 2), (2, 3), (3, 4)], [(1, 2), (2, 3), (9, 10)]]
)
def test_fewer_than_two_gaps_are_refused(mappings: list[tuple[int, int]]) -> None:
    with pytest.raises(OSError) as error:
        three_regions(*mappings)
    assert errno.EINVAL == error.value.errno


def test_of_equal_gaps_the_first_ones_count() -> None:
    """A later gap displaces an earlier one only if it is really bigger."""
    assert [(0, 1), (11, 12), (22, 34)] == three_regions((0, 1), (11, 12), (22, 23), (33, 34))
    # The bigger gap is found last: the first of the equal ones goes on as the second biggest.
    assert [(0, 1), (11, 23), (53, 54)] == three_regions((0, 1), (11, 12), (22, 23), (53, 54))


def test_regions_are_rounded_up() -> None:
    """Both bounds go up to the next multiple of the smallest region, as the kernel's ALIGN() does."""
    mappings = [(5, 10), (33, 40), (101, 102)]
    assert [(16, 16), (48, 48), (112, 112)] == three_regions(*mappings, min_region_sz=16)
    mappings = [(0x1000, 0x5000), (0x9000, 0xB000), (0x10000, 0x12000)]
    assert mappings == three_regions(*mappings, min_region_sz=4096)
