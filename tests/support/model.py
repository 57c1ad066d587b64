# SPDX-License-Identifier: GPL-2.0-only
"""A plain model of what DAMON does to regions: one object for each region, one loop for each loop of ``core.c``.

It is slow and obvious, and it shares nothing with the region table but constants of C's integer types. Where the
port's functions are vectors, the tests compare them with this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

U32 = 1 << 32
U64 = 1 << 64
EINVAL = 22


@dataclass
class Region:
    """``struct damon_region``, with what the port keeps of unknown samples."""

    start: int
    end: int
    nr_accesses: int = 0
    last_nr_accesses: int = 0
    age: int = 0
    nr_unknown: int = 0
    probe_hits: list[int] = field(default_factory=lambda: [0] * 4)
    last_probe_hits: list[int] = field(default_factory=lambda: [0] * 4)
    last_nr_unknown: int = 0
    unknown_age: int = 0

    def mostly_unknown(self, samples: int) -> bool:
        return self.nr_unknown > 0 and 2 * self.nr_unknown >= samples

    @property
    def size(self) -> int:
        return self.end - self.start

    def copy(self) -> Region:
        return replace(self, probe_hits=list(self.probe_hits), last_probe_hits=list(self.last_probe_hits))


@dataclass
class Report:
    """What the model needs of an access report."""

    addr: int
    size: int
    nr_accesses: int = 1


ModelRegions = list[Region]
Ranges = Sequence[tuple[int, int]]


def align_down(value: int, unit: int) -> int:
    return value // unit * unit


def align_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def mult_frac(value: int, numerator: int, denominator: int) -> int:
    return value // denominator * numerator + value % denominator * numerator // denominator


# Split.


def split_at(regions: ModelRegions, at: int, size: int) -> None:
    """``damon_split_region_at()``."""
    left = regions[at]
    right = left.copy()
    right.start = left.end = left.start + size
    regions.insert(at + 1, right)


def split_max(regions: ModelRegions, size: int) -> None:
    """The loop of ``damon_apply_min_nr_regions()``."""
    at = 0
    while at < len(regions):
        if regions[at].size > size:
            split_at(regions, at, size)
        at += 1


#: Number in [1, 10) for the region with an index at the beginning, in a round of cuts.
Rand = Callable[[int, int], int]


def split_regions_of(regions: ModelRegions, nr_subs: int, min_size: int, rand: Rand) -> None:
    """``damon_split_regions_of()``: regions made by splitting are not split again."""
    at = 0
    for index in range(len(regions)):
        pieces = 1
        size = regions[at].size
        for attempt in range(nr_subs - 1):
            if size <= 2 * min_size:
                break
            sub = align_down(rand(index, attempt) * size % U64 // 10, min_size)
            if sub == 0 or sub >= size:
                continue
            split_at(regions, at, sub)
            pieces += 1
            size = sub
        at += pieces


def split_some_regions(targets: Sequence[ModelRegions], step: int, offset: int, min_size: int, rand: Rand) -> None:
    """``damon_split_some_regions()``; the draws are by index over all targets, attempt 0."""
    index = 0
    for regions in targets:
        at = 0
        for _ in range(len(regions)):
            size = regions[at].size
            if index % step == offset and size >= 2 * min_size:
                sub = align_down(rand(index, 0) * size % U64 // 10, min_size)
                if 0 < sub < size:
                    split_at(regions, at, sub)
                    at += 1
            index += 1
            at += 1


# Merge.


def merge_two(left: Region, right: Region) -> None:
    """``damon_merge_two_regions()`` with C's wrapping products; the caller removes ``right``."""
    sz_l, sz_r = left.size, right.size

    def mean(a: int, b: int) -> int:
        return (a * sz_l + b * sz_r) % U64 // (sz_l + sz_r)

    left.nr_accesses = mean(left.nr_accesses, right.nr_accesses)
    left.age = mean(left.age, right.age)
    left.unknown_age = mean(left.unknown_age, right.unknown_age)
    left.nr_unknown = mean(left.nr_unknown, right.nr_unknown)
    left.probe_hits = [mean(a, b) for a, b in zip(left.probe_hits, right.probe_hits, strict=True)]
    left.end = right.end


def merge_regions_of(  # noqa: PLR0917 -- the kernel's, and two of the port
    regions: ModelRegions,
    threshold: int,
    sz_limit: int,
    count_age: bool,
    samples: int = U32,
    unknown_apart: bool = True,
) -> None:
    """``damon_merge_regions_of()``, with regions apart that are mostly unknown: ``samples`` says which."""
    merged: ModelRegions = []
    unknown: list[list[int]] = []
    for r in regions:
        is_unknown = r.mostly_unknown(samples)
        if count_age:
            changed = abs(r.nr_accesses - r.last_nr_accesses) > threshold
            woke_or_slept = (r.nr_accesses == 0) != (r.last_nr_accesses == 0)
            if changed or woke_or_slept:
                r.age = r.unknown_age = 0
            else:
                r.age = (r.age + 1) % U32
            if is_unknown:
                r.unknown_age = r.age
        if (
            merged
            and (bool(unknown[-1]) == is_unknown or not unknown_apart)
            and merged[-1].end == r.start
            and abs(r.nr_accesses - merged[-1].nr_accesses) <= threshold
            and merged[-1].size + r.size <= sz_limit
        ):
            merge_two(merged[-1], r)
        else:
            merged.append(r)
            unknown.append([])
        unknown[-1] += [r.nr_unknown] if is_unknown else []
    for r, counts in zip(merged, unknown, strict=True):
        if counts and len(merged) < len(regions):
            r.nr_unknown, r.unknown_age = max(counts), r.age
    regions[:] = merged


def kdamond_merge_regions(
    targets: Sequence[ModelRegions], threshold: int, sz_limit: int, max_nr: int, samples: int
) -> None:
    """``kdamond_merge_regions()``: the threshold grows while there are too many regions."""
    count_age = True
    while True:
        for regions in targets:
            merge_regions_of(regions, threshold, sz_limit, count_age, samples, unknown_apart=count_age)
        count_age = False
        if sum(len(regions) for regions in targets) <= max_nr or samples <= threshold:
            return
        threshold = max(1, 2 * threshold) if threshold < samples // 2 else samples


def merge_equal(regions: ModelRegions, sz_limit: int) -> None:
    """What DAMOS does after a pass: neighbours that hold the same are one region again."""
    merged: ModelRegions = []
    for r in regions:
        if merged:
            left = merged[-1]
            both_same = replace(left, start=r.start, end=r.end) == r
            if left.end == r.start and both_same and left.size + r.size <= sz_limit:
                left.end = r.end
                continue
        merged.append(r)
    regions[:] = merged


# Regions of a target.


def intersect(r: Region, start: int, end: int) -> bool:
    """``damon_intersect()``."""
    return not (r.end <= start or end <= r.start)


def set_regions(regions: ModelRegions, ranges: Ranges, min_size: int) -> None:
    """``damon_set_regions()``; raises OSError(EINVAL) before it changes anything."""
    aligned = [(align_down(a, min_size), align_up(b, min_size)) for a, b in ranges]
    for i, (start, end) in enumerate(aligned):
        if start >= end or (i and aligned[i - 1][1] > start):
            raise OSError(EINVAL, "bad ranges")

    regions[:] = [r for r in regions if any(intersect(r, a, b) for a, b in ranges)]
    if not regions:
        regions[:] = [Region(a, b) for a, b in aligned]
        return

    at = 0
    for (range_start, range_end), (start, end) in zip(ranges, aligned, strict=True):
        first = last = -1
        while at < len(regions):
            if intersect(regions[at], range_start, range_end):
                if first < 0:
                    first = at
                last = at
            if regions[at].start >= range_end:
                break
            at += 1
        if first < 0:
            regions.insert(at, Region(start, end))
            at += 1
            continue
        regions[first].start = start
        regions[last].end = end
        for left in range(last - 1, first - 1, -1):
            if regions[left].end != regions[left + 1].start:
                regions.insert(left + 1, Region(regions[left].end, regions[left + 1].start))
                at += 1


def update_monitoring_results(
    regions: ModelRegions, old: tuple[int, int], new: tuple[int, int], aggregating: bool
) -> None:
    """``damon_update_monitoring_results()``; ``old`` and ``new`` are (sample, aggregation) intervals."""
    if 0 in (*old, *new):
        return

    def samples(intervals: tuple[int, int]) -> int:
        return max(1, min(intervals[1] // intervals[0], U32 - 1))

    def convert(count: int) -> int:
        return mult_frac(count, 10000, samples(old)) % U64 * samples(new) % U64 // 10000 % U32

    for r in regions:
        r.last_nr_accesses = convert(r.last_nr_accesses)
        r.nr_accesses = 0 if aggregating else convert(r.nr_accesses)
        r.nr_unknown = 0 if aggregating else convert(r.nr_unknown)
        r.last_nr_unknown = convert(r.last_nr_unknown)
        r.age = r.age * old[1] % U64 // new[1] % U32
        r.unknown_age = r.unknown_age * old[1] % U64 // new[1] % U32


# Reports.


def apply_reports(regions: ModelRegions, reports: Sequence[Report], cap: int | None = None) -> list[str]:
    """Count reports for the regions that contain them; returns what became of each.

    Each region gets one at most, or, with ``cap``, the sum of the reports' ``nr_accesses`` up to ``cap`` in all.
    """
    fates: list[tuple[str, int]] = []
    extra = [0] * len(regions)
    for report in reports:
        end = report.addr + report.size
        fate = ("outside", -1)
        for i, r in enumerate(regions):
            if r.start <= report.addr < r.end and end <= r.end and end < U64:
                fate = ("applied", i)
                extra[i] += max(report.nr_accesses, 0)
                break
            if report.addr < r.end and r.start < end:
                fate = ("straddling", i)
        fates.append(fate)
    for i in {row for fate, row in fates if fate == "applied"}:
        r = regions[i]
        if cap is None or extra[i]:
            r.nr_accesses += 1 if cap is None else min(extra[i], max(cap - r.nr_accesses, 0))
    return [fate for fate, _ in fates]
