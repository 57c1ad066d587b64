# SPDX-License-Identifier: GPL-2.0-only
"""Schemes of the kernel, region by region on plain objects: what the arrays of the port are compared with.

Written from the description of ``kdamond_apply_schemes()`` and what it calls, not from the port; but filters come
before the quota, and all regions of a target see one scheme before any sees the next, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kdamon.damon import damos_access_pattern, damos_filter, damos_filter_type, damos_stat
from tests.support.model import U64, ModelRegions, Region, align_down, mult_frac

__all__ = ["Quota", "Scheme", "apply_schemes"]

U64_MAX = U64 - 1


def feed_loop(last: int, score: int) -> int:
    """``damon_feed_loop_next_input()``."""
    if score == 10000:
        return last
    if score >= 20000:
        return 10000
    difference = abs(score - 10000)
    change = last * difference // 10000 if last < U64_MAX // difference else last // 10000 * difference
    return max(last - change, 10000) if score > 10000 else min(last + change, U64_MAX)


@dataclass
class Quota:
    """``struct damos_quota``.

    :ivar goals: current and target value of each.
    """

    sz: int = 0
    ms: int = 0
    window: int = 0
    goals: list[tuple[int, int]] = field(default_factory=list)
    temporal: bool = False
    fail: tuple[int, int] = (0, 0)
    min_region_sz: int = 16
    esz: int = 0
    esz_bp: int = 0
    charged: int = 0
    unusable: int = 0
    since: int | None = None
    total_sz: int = 0
    total_ns: int = 0
    target_from: ModelRegions | None = None
    addr_from: int = 0
    min_score: int = 0

    def is_set(self) -> bool:
        return bool(self.esz or self.sz or self.ms or self.goals)

    def full(self) -> bool:
        taken = self.charged + self.unusable
        return self.is_set() and (taken >= self.esz or self.esz - taken < self.min_region_sz)

    def tune(self) -> None:
        """``damos_set_effective_quota()``."""
        if not self.ms and not self.goals:
            self.esz = self.sz
            return
        self.esz = U64_MAX
        if self.goals:
            score = max(mult_frac(current, 10000, target) for current, target in self.goals)
            if not self.temporal:
                self.esz_bp = feed_loop(max(self.esz_bp, 10000), score)
            elif score >= 10000:
                self.esz_bp = 0
            else:
                self.esz_bp = self.sz * 10000 or U64_MAX
            self.esz = self.esz_bp // 10000
        if self.ms:
            throughput = mult_frac(self.total_sz, 1_000_000, self.total_ns) if self.total_ns else 4096 * 1024
            self.esz = min(self.esz, max(throughput * self.ms, self.min_region_sz))
        if self.sz:
            self.esz = min(self.esz, self.sz)

    def charge(self, size: int, applied: int) -> None:
        num, denom = self.fail
        self.charged += applied + mult_frac(size - applied, num, denom) if denom and applied <= size else size

    def commit(self, theirs: Quota) -> None:
        """What the user gave changes, the rest stays; without any limit it is as if there never had been one."""
        self.sz, self.ms, self.window, self.fail = theirs.sz, theirs.ms, theirs.window, theirs.fail
        self.goals, self.temporal = list(theirs.goals), theirs.temporal
        if not (self.sz or self.ms or self.goals):
            self.total_sz += self.charged
            self.esz = self.charged = self.unusable = self.addr_from = self.min_score = 0
            self.since = self.target_from = None


@dataclass
class Scheme:
    """A scheme that applies ``action`` to each region it wants, by numbers only.

    :ivar action: how much of a region it is applied to, and how many nanoseconds that takes; None for stat.
    :ivar action_sz: where a quota that ends in a region may end: the port's only, see ``damon_operations``.
    :ivar score: how much a region deserves it; None where all do.
    :ivar with_ops_filter: whether there is a filter on pages, too.
    :ivar applied: each region that it was applied to: start, end, whether a filter of the core allowed it.
    :ivar walked: the same regions: start, end, how much passed the filters on pages, which is a quarter.
    """

    pattern: damos_access_pattern
    quota: Quota
    filters: list[damos_filter]
    with_ops_filter: bool
    score: Callable[[Region], int] | None
    action: Callable[[int], tuple[int, int]] | None
    min_region_sz: int = 16
    action_sz: int = 1
    max_nr_snapshots: int = 0
    stat: damos_stat = field(default_factory=damos_stat)
    applied: list[tuple[int, int, bool]] = field(default_factory=list)
    walked: list[tuple[int, int, int]] = field(default_factory=list)

    def wants(self, r: Region) -> bool:
        p = self.pattern
        return (
            p.min_sz_region <= r.size <= p.max_sz_region
            and p.min_nr_accesses <= r.nr_accesses <= p.max_nr_accesses
            and p.min_age_region <= r.age <= p.max_age_region
        )

    @staticmethod
    def split(regions: ModelRegions, i: int, size: int) -> None:
        r = regions[i]
        regions.insert(i + 1, replace(r.copy(), start=r.start + size))
        r.end = r.start + size

    def matches(self, f: damos_filter, place: int, regions: ModelRegions, i: int) -> bool:
        r = regions[i]
        if f.type is damos_filter_type.DAMOS_FILTER_TYPE_TARGET:
            return (place == f.target_idx) == f.matching
        start, end = (align_down(edge, self.min_region_sz) for edge in (f.addr_range.start, f.addr_range.end))
        if start <= r.start and r.end <= end:
            return f.matching
        if r.end <= start or end <= r.start:
            return not f.matching
        if r.start < start:
            self.split(regions, i, start - r.start)
            return not f.matching
        self.split(regions, i, end - r.start)
        return f.matching

    def filtered_out(self, place: int, regions: ModelRegions, i: int) -> tuple[bool, bool]:
        """Whether the filters of the core reject a region, and whether one of them allows it."""
        for f in self.filters:
            if self.matches(f, place, regions, i):
                return not f.allow, f.allow
        return bool(self.filters) and self.filters[-1].allow and not self.with_ops_filter, False

    def adjust(self, targets: Sequence[ModelRegions], now: int) -> None:
        quota = self.quota
        if not (quota.sz or quota.ms or quota.goals):
            return
        if quota.since is None:
            quota.since = now
            quota.tune()
        if not quota.since <= now < quota.since + quota.window:
            self.stat.qt_exceeds += self.quota.full()
            quota.total_sz += quota.charged
            quota.since, quota.charged, quota.unusable = now, 0, 0
            quota.tune()
        if self.score is None or quota.full():
            return
        histogram = [0] * 100
        for place, regions in enumerate(targets):
            i = 0
            while i < len(regions):
                if self.wants(regions[i]) and not self.filtered_out(place, regions, i)[0]:
                    histogram[self.score(regions[i])] += regions[i].size
                i += 1
        quota.min_score = 99
        while quota.min_score and sum(histogram[quota.min_score :]) < quota.esz:
            quota.min_score -= 1

    def skip_charged(self, regions: ModelRegions, i: int) -> bool:
        quota = self.quota
        if quota.target_from is None:
            return False
        if quota.target_from is not regions:
            return True
        r, skip = regions[i], False
        if quota.addr_from and r.end <= quota.addr_from:
            skip = True
        elif quota.addr_from and r.start < quota.addr_from:
            skip = True
            size = align_down(quota.addr_from - r.start, self.min_region_sz)
            if size:
                self.split(regions, i, size)
            elif r.size > self.min_region_sz:
                self.split(regions, i, self.min_region_sz)
        if r is regions[-1]:
            quota.target_from, quota.addr_from = None, 0
        return skip

    def apply_to(self, place: int, regions: ModelRegions, i: int) -> None:
        quota = self.quota
        rejected, allowed = self.filtered_out(place, regions, i)
        if rejected:
            return
        r = regions[i]
        size = r.size
        if quota.is_set() and quota.charged + size > quota.esz:
            size = align_down(quota.esz - quota.charged, self.min_region_sz)
            if self.action and quota.esz >= 2 * self.action_sz:
                size = align_down(r.start + size, self.action_sz) - r.start
            if size <= 0:
                quota.unusable = quota.esz - quota.charged
                quota.target_from, quota.addr_from = regions, r.start
                return
            if size < r.size:
                self.split(regions, i, size)
        applied, ns = self.action(size) if self.action else (0, 0)
        passed = size // 4 if self.action or self.with_ops_filter else 0
        self.applied.append((r.start, r.end, allowed))
        self.walked.append((r.start, r.end, passed))
        if quota.is_set():
            quota.total_ns += ns
            quota.charge(size, applied)
            if self.quota.full():
                quota.target_from, quota.addr_from = regions, r.end
        if self.action:
            r.age = 0
        self.stat.nr_tried += 1
        self.stat.sz_tried += size
        self.stat.nr_applied += bool(applied)
        self.stat.sz_applied += applied
        self.stat.sz_ops_filter_passed += passed

    def visit(self, place: int, regions: ModelRegions, i: int) -> None:
        if self.quota.full() or self.skip_charged(regions, i):
            return
        if self.max_nr_snapshots and self.max_nr_snapshots <= self.stat.nr_snapshots:
            return
        r = regions[i]
        worth = self.score is None or not self.quota.is_set() or self.score(r) >= self.quota.min_score
        if self.wants(r) and worth:
            self.apply_to(place, regions, i)
        if r is regions[-1]:
            self.stat.nr_snapshots += 1


def apply_schemes(
    due: Sequence[Scheme], targets: Sequence[ModelRegions], gone: Sequence[int], now: int, most: int
) -> None:
    """A pass of schemes at ``now``, and the merge after it of up to ``most``.

    :param gone: places of targets that are not valid.
    """
    for s in due:
        s.adjust(targets, now)
    for place, regions in enumerate(targets):
        if place in gone or not regions:
            for s in due:
                if s.quota.target_from is regions:
                    s.quota.target_from, s.quota.addr_from = None, 0
            continue
        for s in due:
            i = 0
            while i < len(regions):
                s.visit(place, regions, i)
                i += 1
        merged: ModelRegions = []
        for r in regions:
            last = merged[-1] if merged else None
            same = last is not None and last.end == r.start and replace(last, start=r.start, end=r.end) == r
            if last is not None and same and r.end - last.start <= most:
                last.end = r.end
            else:
                merged.append(r)
        regions[:] = merged
