# SPDX-License-Identifier: GPL-2.0-only
"""What the begin and the end of a window show is counted, each page in one class."""

from __future__ import annotations

import numpy as np
from attrs import evolve

from kdamon.arrays import U64Array
from kdamon.mm.proc.maps import NamedMapping
from kdamon.mm.ranges import NO_RANGES
from kdamon.mm.working_set.sets import Begin, Counts, End, count

PAGE = 4096
HEAP = NamedMapping(0, 100 * PAGE, "rw-p", 0, 0, "[heap]")
FILE = NamedMapping(200 * PAGE, 300 * PAGE, "rw-p", 0, 7, "/file")
NOTHING = Counts(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def pages(*ranges: tuple[int, int]) -> U64Array:
    """Ranges in pages."""
    return np.array(ranges, dtype=np.uint64).reshape(-1, 2) * np.uint64(PAGE)


def sized(counts: Counts, **numbers: int | None) -> Counts:
    """``counts`` with numbers of pages."""
    return evolve(counts, **{name: number and number * PAGE for name, number in numbers.items()})


#: Of ten pages in memory all are observed, seven of them until the end, and of these two were accessed.
BEGIN = Begin(pages((0, 100)), pages((10, 20)), pages((10, 20)), NO_RANGES, NO_RANGES)
END = End((HEAP,), pages((10, 17)), NO_RANGES, pages((10, 17)), pages((11, 13)), NO_RANGES)


def test_observed_pages() -> None:
    """Accessed, not accessed, and gone: it is not known whether those were accessed."""
    found = count(BEGIN, END, reads=True)
    expected = sized(evolve(NOTHING, written=None), resident=7, observed=7, touched=2, unknown_left=3)
    assert (10 * PAGE, expected) == (found.resident_before, found.total)
    assert [(HEAP, expected)] == [(row.mapping, row.counts) for row in found.mappings]
    assert (3 * PAGE, 2 * PAGE) == (expected.unknown, expected.used)


def test_where_writes_alone_are_observed() -> None:
    """Nothing is said of reads."""
    begin = evolve(BEGIN, observed=NO_RANGES, observed_writes=BEGIN.observed)
    (row,) = count(begin, END, reads=False).mappings
    assert sized(evolve(NOTHING, touched=None), resident=7, observed=7, written=2, unknown_left=3) == row.counts


def test_a_page_that_came_into_memory_is_new() -> None:
    """Accessed or not; what is in swap is in none of the classes."""
    end = evolve(END, present=pages((10, 25)), accessed=pages((10, 25)), kept=pages((10, 20)), swapped=pages((30, 36)))
    (row,) = count(BEGIN, end, reads=True).mappings
    assert sized(evolve(NOTHING, written=None), resident=15, observed=10, touched=10, new=5, swapped=6) == row.counts


def test_pages_that_are_not_observed_are_unknown() -> None:
    """With the reason, also if they are gone, or accessed ever since."""
    begin = evolve(BEGIN, observed=pages((10, 12)), huge=pages((14, 20)))
    (row,) = count(begin, END, reads=True).mappings
    expected = sized(evolve(NOTHING, written=None), resident=7, observed=2, touched=1, unknown_huge=6, unknown_other=2)
    assert expected == row.counts


def test_mappings_that_came_since() -> None:
    """At other addresses, or in place of an earlier one: what was there is gone, and nothing of it is known."""
    both = evolve(END, mappings=(HEAP, FILE), present=pages((10, 20), (210, 214)), replaced=pages((10, 20)))
    found = count(BEGIN, both, reads=True)
    unseen = evolve(NOTHING, written=None)
    assert [
        sized(unseen, resident=10, mapped_since=10, unknown_left=10),
        sized(unseen, resident=4, mapped_since=4),
    ] == [row.counts for row in found.mappings]
    assert sized(unseen, resident=14, mapped_since=14, unknown_left=10) == found.total


def test_pages_that_were_unmapped_count_in_the_sum_alone() -> None:
    """No mapping is theirs."""
    found = count(BEGIN, End((FILE,), *[NO_RANGES] * 5), reads=True)
    assert [evolve(NOTHING, written=None)] == [row.counts for row in found.mappings]
    assert sized(evolve(NOTHING, written=None), unknown_left=10) == found.total


def test_mappings_may_be_observed_in_different_ways() -> None:
    """Reads and writes of one, writes of another."""
    begin = evolve(BEGIN, mapped=pages((0, 100), (200, 300)), observed_writes=pages((210, 220)))
    begin = evolve(begin, present=pages((10, 20), (210, 220)))
    seen = pages((10, 17), (210, 220))
    end = End((HEAP, FILE), seen, NO_RANGES, seen, pages((11, 13), (210, 211)), NO_RANGES)
    found = count(begin, end, reads=True)
    assert [(2 * PAGE, None), (None, PAGE)] == [(row.counts.touched, row.counts.written) for row in found.mappings]
    assert (2 * PAGE, PAGE, 3 * PAGE) == (found.total.touched, found.total.written, found.total.used)
    # Those that were not written may have been read.
    assert [0, 9 * PAGE] == [row.counts.unknown_reads for row in found.mappings]


def test_no_memory_at_all() -> None:
    """It is no error."""
    found = count(Begin(*[NO_RANGES] * 5), End((), *[NO_RANGES] * 5), reads=True)
    assert (evolve(NOTHING, written=None), ()) == (found.total, found.mappings)
