# SPDX-License-Identifier: GPL-2.0-only
"""What actions do to the memory of a simulated process, and which of its pages filters match."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import numpy as np
from attrs import define, field

from kdamon.arrays import Mask, Records, U64Array
from kdamon.kernel import HPAGE_PMD_SIZE, PAGE_SIZE, VirtualClock
from kdamon.mm import OLD, RESIDENT, YOUNG, Answers, PageFilter
from kdamon.mm.ranges import NO_RANGES, blocks, inside, intersect, overlaps, subtract, union
from kdamon.mm.sim.script import SimAccess, touched

__all__ = ["SimPages"]


@define(slots=True, eq=False)
class SimPages:
    """The pages of a simulated process: which are paged out, which are huge, and which filters match them.

    :ivar vmas: the mappings, shape (n, 2), in address order.
    :ivar script: the accesses of the process.
    """

    clock: VirtualClock
    vmas: U64Array
    script: list[SimAccess] = field(factory=list)
    _paged_out: U64Array = field(factory=NO_RANGES.copy)
    _huge: U64Array = field(factory=NO_RANGES.copy)
    _marked: dict[tuple[str, int], U64Array] = field(factory=dict)
    _paged_out_at: int = 0
    _young_since: int = 0

    def mark(self, kind: str, ranges: Sequence[tuple[int, int]], memcg_id: int) -> None:
        """Let filters of a type match the memory in ``ranges`` (bytes, in address order), and no other.

        Without it all memory is anonymous, and none is active or of a memory control group.

        :param kind: ``anon``, ``active`` or ``memcg``.
        :param memcg_id: the control group.
        """
        self._marked[kind, memcg_id] = np.array(ranges, np.uint64).reshape(-1, 2)

    def resident(self) -> U64Array:
        """The memory that is not paged out, as ranges; what the script is expected to have accessed since came back."""
        if len(self._paged_out):
            self._paged_out = subtract(self._paged_out, touched(self.script, self._paged_out_at, self.clock.now()))
        return subtract(self.vmas, self._paged_out)

    def by_kind(self) -> tuple[U64Array, U64Array, U64Array]:
        """The mappings as ranges: anonymous memory, that of files, and what is paged out."""
        here = self.resident()
        anon = self._marked.get(("anon", 0), here)
        return intersect(here, anon), subtract(here, anon), intersect(self._paged_out, self.vmas)

    def residency(self, wanted: U64Array) -> Records:
        """Rows of :data:`kdamon.mm.RESIDENT` in ``wanted``."""
        parts = [np.empty(0, RESIDENT)]
        for name, of_kind in zip(("anon", "file", "swapped"), self.by_kind(), strict=True):
            places = intersect(of_kind, wanted)
            part = np.zeros(len(places), RESIDENT)
            part["start"], part["end"] = places.T
            part[name] = places[:, 1] - places[:, 0]
            parts.append(part)
        rows = np.concatenate(parts)
        return rows[np.argsort(rows["start"])]

    def advise(self, action: str, ranges: U64Array) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.advise`; the script's later accesses bring memory back.

        :raises OSError: EOPNOTSUPP for ``hugepage`` and ``nohugepage``.
        """
        if action in {"hugepage", "nohugepage"}:
            raise OSError(errno.EOPNOTSUPP, "simulated memory becomes huge when it is asked to; use collapse")
        here = self.resident()
        mapped = intersect(union(ranges, NO_RANGES), self.vmas)
        if action == "pageout":
            changed = intersect(mapped, here)
            self._paged_out_at = self.clock.now()
            self._paged_out = union(self._paged_out, changed)
            self._huge = subtract(self._huge, changed)
        elif action == "willneed":
            changed = intersect(mapped, self._paged_out)
            self._paged_out = subtract(self._paged_out, changed)
        elif action == "collapse":
            pieces = intersect(mapped, blocks(mapped, HPAGE_PMD_SIZE))
            changed = subtract(pieces[pieces[:, 1] - pieces[:, 0] == HPAGE_PMD_SIZE], self._huge)
            self._huge = union(self._huge, changed)
            self._paged_out = subtract(self._paged_out, changed)
        else:
            changed = intersect(mapped, here)
        return overlaps(ranges, changed)

    def migrate(self, ranges: U64Array, dests: Sequence[tuple[int, int]]) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.migrate`: all memory is on node 0 already, so none moves.

        :raises OSError: EINVAL for another node.
        """
        if any(node for node, _ in dests):
            raise OSError(errno.EINVAL, "simulated memory has NUMA node 0 only; name that")
        return np.zeros(len(ranges), np.uint64)

    def filter(self, ranges: U64Array, filters: Sequence[PageFilter], default_reject: bool) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.page_filter`; all memory that is not paged out is mapped."""
        left = intersect(ranges, self.resident())
        passed = NO_RANGES
        for one in filters:
            matching = self._matching(one)
            hit = intersect(left, matching) if one.matching else subtract(left, matching)
            passed = union(passed, hit) if one.allow else passed
            left = subtract(left, hit)
        return passed if default_reject else union(passed, left)

    def match(self, addrs: U64Array, filters: Sequence[PageFilter], answers: Answers | None) -> Mask:
        """See :meth:`kdamon.mm.Samples.page_match`; all memory that is not paged out is mapped."""
        mapped = inside(self.resident(), addrs)
        found = np.zeros((len(filters), len(addrs)), np.bool_)
        for row, one in zip(found, filters, strict=True):
            if one.type not in {"young", "idle"}:
                row[:] = mapped & inside(self._matching(one), addrs)
            elif answers is not None:
                row[:] = mapped & (answers == (YOUNG if one.type == "young" else OLD))
        return found

    def _matching(self, one: PageFilter) -> U64Array:
        if one.type == "young":
            since, self._young_since = self._young_since, self.clock.now()
            return touched(self.script, since, self._young_since)
        if one.type == "hugepage_size":
            found = self._huge if one.min_size <= HPAGE_PMD_SIZE <= one.max_size else NO_RANGES
            small = one.min_size <= PAGE_SIZE <= one.max_size
            return union(found, subtract(self.vmas, self._huge)) if small else found
        everything = self.vmas if one.type == "anon" else NO_RANGES
        return self._marked.get((one.type, one.memcg_id), everything)
