# SPDX-License-Identifier: GPL-2.0-only
"""The core's work against one object for each region: what a straightforward port of core.c to Python would be.

The sampling pass chooses a random address in each region, tests the bit of its page and counts. The aggregation pass
merges, lets regions age, resets and splits. Twenty sampling passes and one aggregation pass are the work of one
aggregation interval with the default attributes. Both sides do the same to the same regions and pages.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import arguments, side_by_side, table

from kdamon.arrays import U64Array
from kdamon.core import (
    damon_add_target,
    damon_apply_min_nr_regions,
    damon_new_ctx,
    damon_new_target,
    damon_set_attrs,
    kdamond_merge_regions,
    kdamond_reset_aggregated,
    kdamond_split_regions,
)
from kdamon.damon import damon_attrs, damon_ctx
from kdamon.kernel import PAGE_SIZE
from kdamon.mm import Answers
from kdamon.regions import Regions
from kdamon.vaddr import damon_va_check_accesses, damon_va_prepare_access_checks

SAMPLES = 20
PAGES_PER_REGION = 64
SHIFT = PAGE_SIZE.bit_length() - 1


# One object for each region.


@dataclass(slots=True)
class Range:
    start: int
    end: int


@dataclass(slots=True)
class Region:
    ar: Range
    nr_accesses: int = 0
    last_nr_accesses: int = 0
    age: int = 0
    sampling_addr: int = 0


class Naive:
    """core.c and vaddr.c line by line: what is a function or a structure there is one here."""

    def __init__(self, regions: list[Region], bits: bytes, max_nr_regions: int) -> None:
        self.regions = regions
        self.bits = bits
        self.max_nr_regions = max_nr_regions

    def rand(self, left: int, right: int) -> int:
        span = right - left
        if span <= 0xFFFF_FFFF:
            return left + (random.getrandbits(32) * span >> 32)
        return left + (random.getrandbits(64) * span >> 64)

    def size(self, r: Region) -> int:
        return r.ar.end - r.ar.start

    def mkold(self, addr: int) -> None:
        pass

    def young(self, addr: int) -> bool:
        return self.bits[addr >> SHIFT] == 1

    def prepare_access_check(self, r: Region) -> None:
        r.sampling_addr = self.rand(r.ar.start, r.ar.end)
        self.mkold(r.sampling_addr)

    def update_access_rate(self, r: Region, accessed: bool) -> None:
        if accessed:
            r.nr_accesses += 1

    def check_access(self, r: Region) -> None:
        self.update_access_rate(r, self.young(r.sampling_addr))

    def sample(self) -> None:
        for r in self.regions:
            self.prepare_access_check(r)
        largest = 0
        for r in self.regions:
            self.check_access(r)
            largest = max(largest, r.nr_accesses)

    def merge_two(self, left: Region, right: Region) -> None:
        sz_l, sz_r = self.size(left), self.size(right)
        left.nr_accesses = (left.nr_accesses * sz_l + right.nr_accesses * sz_r) // (sz_l + sz_r)
        left.age = (left.age * sz_l + right.age * sz_r) // (sz_l + sz_r)
        left.ar.end = right.ar.end

    def merge(self, threshold: int, sz_limit: int) -> None:
        merged: list[Region] = []
        for r in self.regions:
            if abs(r.nr_accesses - r.last_nr_accesses) > threshold or (r.nr_accesses == 0) != (r.last_nr_accesses == 0):
                r.age = 0
            else:
                r.age += 1
            if (
                merged
                and merged[-1].ar.end == r.ar.start
                and abs(merged[-1].nr_accesses - r.nr_accesses) <= threshold
                and self.size(merged[-1]) + self.size(r) <= sz_limit
            ):
                self.merge_two(merged[-1], r)
            else:
                merged.append(r)
        self.regions = merged

    def split_at(self, r: Region, size: int) -> Region:
        new = Region(Range(r.ar.start + size, r.ar.end), r.nr_accesses, r.last_nr_accesses, r.age)
        r.ar.end = r.ar.start + size
        return new

    def split(self) -> None:
        split: list[Region] = []
        for r in self.regions:
            split.append(r)
            size = self.size(r)
            if size > 2 * PAGE_SIZE:
                sub = self.rand(1, 10) * size // 10 // PAGE_SIZE * PAGE_SIZE
                if 0 < sub < size:
                    split.append(self.split_at(r, sub))
        self.regions = split

    def aggregate(self) -> None:
        total = sum(self.size(r) for r in self.regions)
        largest = max(r.nr_accesses for r in self.regions)
        self.merge(largest // 10, total // 10)
        for r in self.regions:
            r.last_nr_accesses = r.nr_accesses
            r.nr_accesses = 0
        if len(self.regions) <= self.max_nr_regions // 2:
            self.split()

    def interval(self) -> None:
        for _ in range(SAMPLES):
            self.sample()
        self.aggregate()


class Inlined(Naive):
    """The same without any call in the loops: the best that plain objects can do."""

    def sample(self) -> None:
        bits = random.getrandbits
        for r in self.regions:
            ar = r.ar
            r.sampling_addr = ar.start + (bits(32) * (ar.end - ar.start) >> 32)
        young = self.bits
        for r in self.regions:
            if young[r.sampling_addr >> SHIFT]:
                r.nr_accesses += 1

    def merge(self, threshold: int, sz_limit: int) -> None:
        merged: list[Region] = []
        last = last_ar = None
        score = size = 0
        for r in self.regions:
            now, ar = r.nr_accesses, r.ar
            difference = now - r.last_nr_accesses
            if -threshold <= difference <= threshold and (now == 0) == (r.last_nr_accesses == 0):
                r.age += 1
            else:
                r.age = 0
            sz = ar.end - ar.start
            if last is not None and last_ar is not None and last_ar.end == ar.start:
                both = size + sz
                if -threshold <= now - score <= threshold and both <= sz_limit:
                    score = last.nr_accesses = (score * size + now * sz) // both
                    last.age = (last.age * size + r.age * sz) // both
                    last_ar.end = ar.end
                    size = both
                    continue
            merged.append(r)
            last, last_ar, score, size = r, ar, now, sz
        self.regions = merged


# The core, with page bits in an array in place of an address space.


class Bits:
    """An address space whose pages' accessed bits are fixed."""

    def __init__(self, bits: np.ndarray) -> None:
        self.bits = bits
        self.primitive = "page_table"

    def valid(self) -> bool:
        return True

    def get_mm(self) -> Bits:
        return self

    def begin_sample(self, addrs: U64Array) -> None:
        pass

    def end_sample(self, addrs: U64Array) -> Answers:
        answers: Answers = self.bits[addrs >> np.uint64(SHIFT)]
        return answers


def core_sample(ctx: damon_ctx) -> None:
    damon_va_prepare_access_checks(ctx)
    damon_va_check_accesses(ctx)


def core_aggregate(ctx: damon_ctx) -> None:
    regions = ctx.adaptive_targets[0].regions
    kdamond_merge_regions(ctx, int(regions.nr_accesses.max()) // 10, regions.total() // 10)
    damon_apply_min_nr_regions(ctx)
    kdamond_reset_aggregated(ctx)
    kdamond_split_regions(ctx)


def core_interval(ctx: damon_ctx) -> None:
    """One aggregation interval of the core."""
    for _ in range(SAMPLES):
        core_sample(ctx)
    core_aggregate(ctx)


class Bench:
    """``n`` regions in the middle of their life.

    As it was seen on simulated processes: a good half of all neighbours look alike, most of them the halves of what the
    last aggregation cut, so that half as many regions are left after a merge and as many after a split.
    """

    def __init__(self, n: int) -> None:
        rng = np.random.default_rng(n)
        self.n = n
        pages = n * PAGES_PER_REGION
        level = np.repeat(rng.choice([0, 4, 8, 12, 16, 20], n // 2 + 1), 2)[:n]
        chance = np.repeat(level / SAMPLES, PAGES_PER_REGION)
        self.bits = (rng.random(pages) < chance).astype(np.uint8)
        borders = np.arange(n + 1) * PAGES_PER_REGION
        borders[1:-1:2] += rng.integers(-20, 20, len(borders[1:-1:2]))
        self.borders = borders * PAGE_SIZE
        self.counts = np.clip(level + rng.integers(-1, 2, n), 0, SAMPLES)
        self.ages = rng.integers(0, 50, n)

    def objects(self, kind: type[Naive]) -> Naive:
        rows = zip(
            self.borders[:-1].tolist(), self.borders[1:].tolist(), self.counts.tolist(), self.ages.tolist(), strict=True
        )
        regions = [Region(Range(start, end), count, count, age) for start, end, count, age in rows]
        return kind(regions, self.bits.tobytes(), 3 * self.n)

    def core(self) -> damon_ctx:
        ctx = damon_new_ctx(seed=1)
        damon_set_attrs(ctx, damon_attrs(min_nr_regions=3, max_nr_regions=3 * self.n))
        t = damon_new_target()
        t.task = Bits(self.bits)  # type: ignore[assignment]
        t.mm = t.task  # type: ignore[assignment]
        t.regions = Regions(self.borders[:-1].tolist(), self.borders[1:].tolist())
        t.regions.nr_accesses = self.counts.astype(np.uint32)
        t.regions.last_nr_accesses = self.counts.astype(np.uint32)
        t.regions.age = self.ages.astype(np.uint32)
        damon_add_target(ctx, t)
        return ctx


def compare(
    bench: Bench, object_pass: Callable[[Naive], None], core_pass: Callable[[damon_ctx], None], **how: int
) -> list[float]:
    """Microseconds that one pass takes: naive objects, inlined objects, core.

    :param how: ``states``: regions to begin with anew in each of ``turns``, each used for ``repeat`` passes, so that
        code and data are as warm as in a running kdamond.
    """
    states, repeat, turns = how["states"], how["repeat"], how["turns"]

    def runner(one_pass: Callable[[Any], None]) -> Callable[[list[Any]], None]:
        def run(these: list[Any]) -> None:
            for state in these:
                for _ in range(repeat):
                    one_pass(state)

        return run

    times = side_by_side(
        (lambda: [bench.objects(Naive) for _ in range(states)], runner(object_pass)),
        (lambda: [bench.objects(Inlined) for _ in range(states)], runner(object_pass)),
        (lambda: [bench.core() for _ in range(states)], runner(core_pass)),
        turns=turns,
    )
    return [seconds * 1e6 / states / repeat for seconds in times]


def main() -> int:
    """Print the tables."""
    args = arguments(__doc__.splitlines()[0] if __doc__ else "")
    sizes = (10, 100, 1000) if args.quick else (10, 100, 1000, 10_000, 100_000)
    rows = []
    passes: list[tuple[str, Callable[[Any], None], Callable[[damon_ctx], None], int, int]] = [
        ("sampling", lambda objects: objects.sample(), core_sample, 1, 200),
        ("aggregation", lambda objects: objects.aggregate(), core_aggregate, 40, 1),
        (f"{SAMPLES} samplings + 1 aggregation", lambda objects: objects.interval(), core_interval, 1, 20),
    ]
    for what, object_pass, core_pass, states, repeat in passes:
        for n in sizes:
            # Large tables are their own repetitions.
            shrink = max(1, n // 500)
            how = {
                "states": max(1, states // shrink),
                "repeat": max(1, repeat // shrink),
                "turns": 5 if args.quick else 9,
            }
            naive, inlined, core = compare(Bench(n), object_pass, core_pass, **how)
            times = [f"{us:.1f}" for us in (naive, inlined, core)]
            rows.append((what, n, *times, f"{naive / core:.2f}x", f"{inlined / core:.2f}x"))
    table(
        "Core against one object for each region (aims: 30x at 1000 regions, never below 0.5x)",
        ("pass", "regions", "naive us", "inlined us", "core us", "naive/core", "inlined/core"),
        rows,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
