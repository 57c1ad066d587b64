# SPDX-License-Identifier: GPL-2.0-only
"""Counts what the begin and the end of a window show of a process's pages; see docs/wss.md for the classes of pages.

Sets of pages are ranges (:mod:`kdamon.mm.ranges`). What is in memory at the begin is observed, or unknown. An observed
page whose place holds nothing at the end that shows its accesses left, and is unknown, too. What is in memory at the
end only is new, or its addresses were mapped since.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import frozen

from kdamon.arrays import U64Array
from kdamon.mm.proc.maps import NamedMapping
from kdamon.mm.ranges import NO_RANGES, intersect, overlaps, subtract, total, union

__all__ = ["Begin", "Counts", "End", "MappingCounts", "WorkingSet", "count", "ranges_of"]


@frozen(eq=False)
class Begin:
    """The pages at the begin of the window, as ranges.

    :ivar mapped: all mappings.
    :ivar present: pages in memory.
    :ivar observed: those whose reads and writes show at the end.
    :ivar observed_writes: those whose writes alone do.
    :ivar huge: pages in memory that are a part of a huge page.
    """

    mapped: U64Array
    present: U64Array
    observed: U64Array
    observed_writes: U64Array
    huge: U64Array


@frozen(eq=False)
class End:
    """The pages at the end of the window, as ranges.

    :ivar mappings: all mappings, ascending.
    :ivar present: pages in memory.
    :ivar swapped: pages in swap.
    :ivar kept: what still shows the accesses of the pages at the same addresses at the begin.
    :ivar accessed: those of ``kept`` that were accessed, or written where writes alone are observed.
    :ivar replaced: pages of mappings that took the place of others.
    """

    mappings: tuple[NamedMapping, ...]
    present: U64Array
    swapped: U64Array
    kept: U64Array
    accessed: U64Array
    replaced: U64Array


@frozen
class Counts:
    """Numbers of bytes.

    :ivar resident: in memory at the end.
    :ivar swapped: in swap at the end.
    :ivar observed: in memory at the begin, and observed until the end.
    :ivar touched: of these read or written; None: only writes are observed.
    :ivar written: of these written; None: reads and writes are observed alike.
    :ivar new: came into memory, in mappings of the begin.
    :ivar mapped_since: in memory at the end, at addresses that were mapped, or mapped again, since the begin.
    :ivar unknown_huge: in memory at the begin as huge pages that are not observed.
    :ivar unknown_other: in memory at the begin, and not observed for other reasons.
    :ivar unknown_reads: not written, and reads are not observed there, though elsewhere.
    :ivar unknown_left: observed, but gone from memory without a sign of whether they were accessed.
    """

    resident: int
    swapped: int
    observed: int
    touched: int | None
    written: int | None
    new: int
    mapped_since: int
    unknown_huge: int
    unknown_other: int
    unknown_reads: int
    unknown_left: int

    @property
    def unknown(self) -> int:
        """Bytes whose accesses are not known."""
        return self.unknown_huge + self.unknown_other + self.unknown_reads + self.unknown_left

    @property
    def used(self) -> int:
        """Bytes that are known to be in use: touched or written ones, and those that came into memory."""
        return (self.touched or 0) + (self.written or 0) + self.new + self.mapped_since


@frozen
class MappingCounts:
    """The counts of one mapping of the end; ``unknown_left`` is of pages at addresses that are still mapped."""

    mapping: NamedMapping
    counts: Counts


@frozen
class WorkingSet:
    """The result of a window.

    :ivar resident_before: bytes in memory at the begin.
    :ivar total: of the whole process; pages whose addresses are not mapped any more are among ``unknown_left``.
    :ivar mappings: in address order.
    """

    resident_before: int
    total: Counts
    mappings: tuple[MappingCounts, ...]


def ranges_of(mappings: Sequence[NamedMapping]) -> U64Array:
    """The addresses of ``mappings``."""
    if not mappings:
        return NO_RANGES
    return np.array([(mapping.start, mapping.end) for mapping in mappings], dtype=np.uint64)


def count(begin: Begin, end: End, *, reads: bool) -> WorkingSet:
    """Count each class of pages, in all and for each mapping.

    :param reads: whether reads are observed where they can be; else ``begin.observed`` is empty.
    """
    old = subtract(intersect(end.present, begin.mapped), end.replaced)
    kept = subtract(end.kept, end.replaced)
    by_any, by_writes = (intersect(observed, kept) for observed in (begin.observed, begin.observed_writes))
    all_observed = union(begin.observed, begin.observed_writes)
    unknown = subtract(begin.present, all_observed)
    sets = {
        "resident": end.present,
        "swapped": end.swapped,
        "observed": union(by_any, by_writes),
        "touched": intersect(by_any, end.accessed),
        "written": intersect(by_writes, end.accessed),
        "new": subtract(old, begin.present),
        "mapped_since": subtract(end.present, old),
        "unknown_huge": intersect(unknown, begin.huge),
        "unknown_other": subtract(unknown, begin.huge),
        "unknown_reads": subtract(by_writes, end.accessed) if reads else NO_RANGES,
        "unknown_left": subtract(all_observed, kept),
    }
    bounds = ranges_of(end.mappings)
    columns = {name: overlaps(bounds, pages).tolist() for name, pages in sets.items()}
    # A mapping is observed in one of the two ways.
    of_writes = overlaps(bounds, begin.observed_writes) > 0
    rows = []
    for at, mapping in enumerate(end.mappings):
        row = {name: column[at] for name, column in columns.items()}
        row["written" if reads and not of_writes[at] else "touched"] = None
        rows.append(MappingCounts(mapping, Counts(**row)))
    whole: dict[str, int | None] = {name: total(pages) for name, pages in sets.items()}
    if not reads:
        whole["touched"] = None
    elif not len(begin.observed_writes):
        whole["written"] = None
    return WorkingSet(total(begin.present), Counts(**whole), tuple(rows))  # type: ignore[arg-type]
