# SPDX-License-Identifier: GPL-2.0-only
"""One scheme of the kernel, region by region on plain objects: what the arrays of the port are compared with.

Written from the description of ``kdamond_apply_schemes()`` and what it calls, not from the port; but filters come
before the quota, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kdamon.damon import damos_filter, damos_filter_type, damos_stat
from tests.kdamon.model import Region

__all__ = ["Scheme"]


@dataclass
class Scheme:
    """A scheme that applies ``action`` to each region it wants, by numbers only.

    :ivar score: how much a region deserves it.
    :ivar share: how much of a region it is applied to.
    """

    min_sz: int
    max_sz: int
    min_age: int
    sz: int
    window: int
    min_region_sz: int
    filters: list[damos_filter]
    score: Callable[[Region], int]
    share: float
    fail: tuple[int, int]
    resets_age: bool
    max_nr_snapshots: int = 0
    stat: damos_stat = field(default_factory=damos_stat)
    charged: int = 0
    since: int | None = None
    target_from: int | None = None
    addr_from: int = 0
    min_score: int = 0

    def wants(self, r: Region) -> bool:
        return self.min_sz <= r.end - r.start <= self.max_sz and r.age >= self.min_age

    def full(self) -> bool:
        return bool(self.sz) and (self.charged >= self.sz or self.sz - self.charged < self.min_region_sz)

    @staticmethod
    def split(regions: list[Region], i: int, size: int) -> None:
        r = regions[i]
        regions.insert(i + 1, replace(r.copy(), start=r.start + size))
        r.end = r.start + size

    def filtered_out(self, place: int, regions: list[Region], i: int) -> bool:
        r = regions[i]
        for f in self.filters:
            if f.type is damos_filter_type.DAMOS_FILTER_TYPE_TARGET:
                inside = place == f.target_idx
            else:
                start = f.addr_range.start // self.min_region_sz * self.min_region_sz
                end = f.addr_range.end // self.min_region_sz * self.min_region_sz
                if start <= r.start and r.end <= end:
                    inside = True
                elif r.end <= start or end <= r.start:
                    inside = False
                elif r.start < start:
                    self.split(regions, i, start - r.start)
                    inside = False
                else:
                    self.split(regions, i, end - r.start)
                    inside = True
            if inside == f.matching:
                return not f.allow
        return bool(self.filters) and self.filters[-1].allow

    def adjust(self, targets: list[list[Region]], now: int) -> None:
        if not self.sz:
            return
        if self.since is None:
            self.since = now
        if not self.since <= now < self.since + self.window:
            self.stat.qt_exceeds += self.full()
            self.since, self.charged = now, 0
        histogram = [0] * 100
        for place, regions in enumerate(targets):
            i = 0
            while i < len(regions):
                if self.wants(regions[i]) and not self.filtered_out(place, regions, i):
                    histogram[self.score(regions[i])] += regions[i].end - regions[i].start
                i += 1
        self.min_score = 99
        while self.min_score and sum(histogram[self.min_score :]) < self.sz:
            self.min_score -= 1

    def skip_charged(self, place: int, regions: list[Region], i: int) -> bool:
        if self.target_from is None:
            return False
        if self.target_from != place:
            return True
        r, addr_from = regions[i], self.addr_from
        if i == len(regions) - 1:
            self.target_from, self.addr_from = None, 0
        if addr_from and r.end <= addr_from:
            return True
        if r.start >= addr_from:
            return False
        size = (addr_from - r.start) // self.min_region_sz * self.min_region_sz
        if not size:
            if r.end - r.start <= self.min_region_sz:
                return True
            size = self.min_region_sz
        self.split(regions, i, size)
        return True

    def apply_to(self, place: int, regions: list[Region], i: int) -> None:
        if self.filtered_out(place, regions, i):
            return
        r = regions[i]
        size = r.end - r.start
        if self.sz and self.charged + size > self.sz:
            size = (self.sz - self.charged) // self.min_region_sz * self.min_region_sz
            if size < r.end - r.start:
                self.split(regions, i, size)
        applied = int(size * self.share)
        if self.sz:
            num, denom = self.fail
            rest = size - applied
            self.charged += applied + (rest // denom * num + rest % denom * num // denom) if denom else size
            if self.full():
                self.target_from, self.addr_from = place, r.end
        if self.resets_age:
            r.age = 0
        self.stat.nr_tried += 1
        self.stat.sz_tried += size
        if self.resets_age:
            self.stat.nr_applied += bool(applied)
            self.stat.sz_applied += applied

    def apply(self, targets: list[list[Region]], now: int, largest: int) -> None:
        """A pass at ``now``, and the merge behind it of up to ``largest``."""
        self.adjust(targets, now)
        for place, regions in enumerate(targets):
            if not regions and self.target_from == place:
                self.target_from, self.addr_from = None, 0
            i = 0
            while i < len(regions):
                self.visit(place, regions, i)
                i += 1
            merged: list[Region] = []
            for r in regions:
                last = merged[-1] if merged else None
                same = last is not None and last.end == r.start and replace(last, start=r.start, end=r.end) == r
                if last is not None and same and r.end - last.start <= largest:
                    last.end = r.end
                else:
                    merged.append(r)
            regions[:] = merged

    def visit(self, place: int, regions: list[Region], i: int) -> None:
        if self.full() or self.skip_charged(place, regions, i):
            return
        if self.max_nr_snapshots and self.max_nr_snapshots <= self.stat.nr_snapshots:
            return
        if self.wants(regions[i]) and (not self.sz or self.score(regions[i]) >= self.min_score):
            self.apply_to(place, regions, i)
        if i == len(regions) - 1:
            self.stat.nr_snapshots += 1
