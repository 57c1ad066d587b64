# SPDX-License-Identifier: GPL-2.0-only
"""Memory that several groups write at the same time is found, and nothing else."""

from __future__ import annotations

import pytest

from kdamon_tools.shared_writes import MOST_RANGES, SharedRange, SharedWrites, Writer
from tests.support.groups import group_table

MIB = 1 << 20
PAGE = 4096
NUMBERS = {number: number for number in range(2000)}

Written = tuple[int, int, int, int, int, int]


def found(*intervals: list[Written], addresses: list[tuple[int, int, int]] | None = None) -> tuple[SharedRange, ...]:
    """What is shared after aggregation intervals of rows (group, start, end, writes, first, last)."""
    shared = SharedWrites()
    for rows in intervals:
        shared.add(
            group_table(
                [(group, start, end, 20, n, n, first, last) for group, start, end, n, first, last in rows],
                addresses or (),
            )
        )
    return shared.ranges(NUMBERS)


def test_a_page_that_two_groups_write() -> None:
    """Its writers with their writes, those with most first."""
    rows = [(1, 0x1000, 0x2000, 6, 0x1000, 0x1008), (2, 0x1000, 0x2000, 14, 0x1000, 0x1FF8)]
    expected = SharedRange(0x1000, 0x2000, 40, (Writer(2, 28), Writer(1, 12)))
    assert (expected,) == found(rows, rows)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(1, 0, MIB, 20, 0, MIB - 8)], id="one group"),
        pytest.param([(1, 0, MIB, 9, 0, 8000), (2, 0, MIB, 9, 8192, 9000)], id="two parts of a region"),
        pytest.param([(1, 0, MIB, 9, 0, 5000), (2, 0, MIB, 0, 0, 0)], id="the other only reads"),
        pytest.param([(1, 0, MIB, 9, 0, 5000), (2, MIB, 2 * MIB, 9, MIB, MIB + 8)], id="two regions"),
        pytest.param([(1, 0, MIB, 9, 0, 5000), (2, 0, MIB, 1, 8, 8)], id="a single write"),
        pytest.param([], id="nothing"),
    ],
)
def test_what_is_not_shared(rows: list[Written]) -> None:
    """No range for it."""
    assert () == found(rows)


def test_one_after_the_other_is_not_shared() -> None:
    """Memory that another thread takes over."""
    assert () == found([(1, 0, MIB, 20, 0, MIB - 8)], [(2, 0, MIB, 20, 0, MIB - 8)])


def test_different_places_of_a_page_are_shared() -> None:
    """Two counters side by side: false sharing."""
    rows = [(1, 0x1000, 0x2000, 10, 0x1000, 0x1000), (2, 0x1000, 0x2000, 10, 0x1008, 0x1008)]
    [shared] = found(rows, addresses=[(0x1000, 1, 10), (0x1008, 2, 10)])
    assert (0x1000, 0x2000, 1, 1, 1) == (shared.start, shared.end, shared.lines, shared.shared_lines, shared.apart)


def test_of_a_region_the_part_where_the_writes_of_groups_overlap() -> None:
    """To an eighth of its size; a group that writes elsewhere in it is no writer."""
    rows = [
        (1, 0, 64 * MIB, 10, 0, 20 * MIB),
        (2, 0, 64 * MIB, 10, 16 * MIB, 32 * MIB - 8),
        (3, 0, 64 * MIB, 10, 40 * MIB, 41 * MIB),
    ]
    [shared] = found(rows)
    assert (16 * MIB, (Writer(1, 10), Writer(2, 10))) == (shared.start, shared.writers)
    assert 20 * MIB < shared.end <= 21 * MIB


def test_the_hot_page_in_a_large_range_is_a_range_of_its_own() -> None:
    """Where regions were still large, the same page was in one with others that are shared less."""
    large = [(1, 0, 8 * MIB, 40, 0, 8 * MIB - 8), (2, 0, 8 * MIB, 40, 0, 8 * MIB - 8)]
    small = [(1, MIB, MIB + PAGE, 10, MIB, MIB + 8), (2, MIB, MIB + PAGE, 10, MIB, MIB + 8)]
    ranges = found(large, *[small] * 5)
    assert (MIB, MIB + PAGE, 100) == (ranges[0].start, ranges[0].end, ranges[0].nr_writes)
    assert [(0, MIB), (MIB + PAGE, 8 * MIB)] == sorted((shared.start, shared.end) for shared in ranges[1:])


def test_most_writes_by_others_come_first() -> None:
    """Many writes of one thread and a few of another matter less than two that take turns."""
    rows = [(1, 0, PAGE, 100, 0, 8), (2, 0, PAGE, 5, 0, 8)]
    rows += [(1, MIB, MIB + PAGE, 20, MIB, MIB + 8), (2, MIB, MIB + PAGE, 10, MIB, MIB + 8)]
    assert [MIB, 0] == [shared.start for shared in found(rows)]


def test_cache_lines_of_a_page() -> None:
    """Which were written, by several groups, and by these at different places only."""
    rows = [(group, 0, PAGE, 20, 0, 512) for group in (1, 2)]
    # Two groups in the first line at different places, in the third at the same one; one group in the second.
    addresses = [(0, 1, 5), (8, 2, 5), (64, 1, 5), (128, 1, 5), (132, 2, 5)]
    [shared] = found(rows, addresses=addresses)
    assert (3, 2, 1) == (shared.lines, shared.shared_lines, shared.apart)
    [shared] = found(rows)
    assert (None, None, None) == (shared.lines, shared.shared_lines, shared.apart)


def test_many_ranges_and_groups_take_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strongest evidence stays, and the most shared ranges are kept."""
    monkeypatch.setattr("kdamon_tools.shared_writes._MOST_ROWS", 3000)
    shared = SharedWrites()
    for interval in range(10):
        rows = [
            (group, at * 2 * PAGE, at * 2 * PAGE + PAGE, 20, n, n, at * 2 * PAGE, at * 2 * PAGE + 8)
            for at in range(400)
            for group, n in ((interval, 3 + (at == 77) * 10), (1000 + at, 3))
        ]
        shared.add(group_table(rows, [(row[6], row[0], 1) for row in rows]))
    assert max(len(shared._evidence), len(shared._addresses)) <= 3000
    ranges = shared.ranges(NUMBERS)
    assert MOST_RANGES == len(ranges)
    assert 77 * 2 * PAGE == ranges[0].start
