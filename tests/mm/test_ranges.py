# SPDX-License-Identifier: GPL-2.0-only
"""Ranges of addresses against plain sets."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdamon.arrays import U64Array
from kdamon.mm import ranges
from tests.support.tables import effort


def array(*pairs: tuple[int, int]) -> U64Array:
    return np.array(pairs, np.uint64).reshape(-1, 2)


@st.composite
def disjoint(draw: st.DrawFn) -> U64Array:
    """Ascending ranges within [0, 60), some of which touch."""
    edges = sorted(draw(st.sets(st.integers(0, 60), max_size=16)))
    pairs = list(itertools.pairwise(edges))
    return array(*(pair for pair in pairs if draw(st.booleans())))


def numbers(found: U64Array) -> set[int]:
    assert (found[:, 0] < found[:, 1]).all()
    assert (found[1:, 0] >= found[:-1, 1]).all()
    return {n for start, end in found.tolist() for n in range(start, end)}


@effort(100)
@given(disjoint(), disjoint())
def test_they_behave_as_sets(left: U64Array, right: U64Array) -> None:
    """Intersection, difference and union hold the numbers that sets of numbers would."""
    assert numbers(ranges.intersect(left, right)) == numbers(left) & numbers(right)
    assert numbers(ranges.subtract(left, right)) == numbers(left) - numbers(right)
    assert numbers(ranges.union(left, right)) == numbers(left) | numbers(right)
    assert ranges.total(left) == len(numbers(left))
    assert ranges.inside(left, np.arange(61, dtype=np.uint64)).tolist() == [n in numbers(left) for n in range(61)]


@effort(100)
@given(disjoint(), disjoint())
def test_an_intersection_is_cut_at_the_edges_of_both(left: U64Array, right: U64Array) -> None:
    """A range of the result is within one range of each side."""
    for start, end in ranges.intersect(left, right).tolist():
        assert any(a <= start and end <= b for a, b in left.tolist())
        assert any(a <= start and end <= b for a, b in right.tolist())


@effort(100)
@given(disjoint(), disjoint())
def test_overlaps_are_counted_for_each_range(left: U64Array, right: U64Array) -> None:
    expected = [len(set(range(start, end)) & numbers(right)) for start, end in left.tolist()]
    assert expected == ranges.overlaps(left, right).tolist()


@effort(100)
@given(disjoint(), st.integers(1, 9))
def test_blocks_are_those_that_are_touched(found: U64Array, size: int) -> None:
    """Each aligned block with an address of the ranges, once."""
    expected = sorted({n // size for n in numbers(found)})
    assert ranges.blocks(found, size).tolist() == [[n * size, (n + 1) * size] for n in expected]


def test_neighbouring_pages_are_one_range() -> None:
    pages = np.array([0x1000, 0x2000, 0x4000, 0x5000, 0x6000, 0x9000], np.uint64)
    assert [[0x1000, 0x3000], [0x4000, 0x7000], [0x9000, 0xA000]] == ranges.of_pages(pages).tolist()
    assert [] == ranges.of_pages(pages[:0]).tolist()


@given(disjoint())
def test_neighbours_become_one(ranges_: U64Array) -> None:
    """Of the same addresses."""
    found = ranges.joined(ranges_)
    assert numbers(ranges_) == numbers(found)
    assert (found[1:, 0] > found[:-1, 1]).all()
