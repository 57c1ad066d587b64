# SPDX-License-Identifier: GPL-2.0-only
"""Simulated workloads whose truth is known, a sampled source of reports of them, and what a snapshot is worth.

A workload is ranges of memory, each accessed at a rate: a page is accessed in a time dt with probability
1 - exp(-rate dt). The source reports one access in every ``period``, as a hardware sampler does, and says so in
``nr_accesses``. No page exists: truth is computed from the rates, for each aggregation interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdamon import trace
from kdamon.core import damon_add_target, damon_new_ctx, damon_new_target, damon_set_attrs, run_ctx, validate_ctx
from kdamon.damon import damon_attrs, damon_ctx, damon_operations, damon_ops_id
from kdamon.kernel import VirtualClock
from kdamon.regions import Regions
from kdamon.reports.deliver import report_accesses
from kdamon.reports.record import report_array

__all__ = ["AGGREGATION", "BASE", "WORKLOADS", "Bucket", "Phase", "Quality", "Source", "Workload", "buckets", "context"]

PAGE = 4096
MB, GB, TB = 1 << 20, 1 << 30, 1 << 40
#: Where the memory of a workload begins.
BASE = 1 << 32
SAMPLE, AGGREGATION = 0.005, 0.1

F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]


@dataclass(slots=True)
class Phase:
    """The rates of a time: ``rate[i]`` accesses per page and second in [edge[i], edge[i + 1]), bytes from the start."""

    edge: F64
    rate: F64

    @property
    def sizes(self) -> F64:
        return np.diff(self.edge)

    def accesses(self) -> F64:
        """Accesses per second to each range."""
        return self.rate * self.sizes / PAGE

    def hot(self) -> tuple[float, npt.NDArray[np.bool_]]:
        """The hot set: how many bytes hold 90 % of the accesses at least, and which ranges they can be of.

        Where ranges of one rate are needed only in part, any part is as good.
        """
        order = np.argsort(-self.rate, kind="stable")
        accesses = np.cumsum(self.accesses()[order])
        wanted = 0.9 * accesses[-1]
        last = int(np.searchsorted(accesses, wanted))
        before = accesses[last - 1] if last else 0.0
        part = (wanted - before) / self.rate[order[last]] * PAGE
        return float(self.sizes[order[:last]].sum() + part), self.rate >= self.rate[order[last]]

    def touched(self, seconds: float) -> float:
        """Bytes that are accessed in ``seconds``, expected."""
        return float((self.sizes * -np.expm1(-self.rate * seconds)).sum())


@dataclass(slots=True)
class Workload:
    """``phase(seed, number)`` makes the rates of each phase of ``seconds``."""

    name: str
    size: int
    phase: Callable[[int, int], Phase]
    seconds: float = float("inf")

    def number(self, at: float) -> int:
        """Number of the phase at ``at`` seconds."""
        return int(at / self.seconds + 1e-9)


def _ranges(size: int, cold: float, *hot: tuple[int, int, float]) -> Phase:
    """Hot (start, end, rate) ranges, ascending, in ``size`` bytes that are at ``cold``."""
    edge, rate = [0], []
    for start, end, each in hot:
        if start > edge[-1]:
            rate.append(cold)
            edge.append(start)
        rate.append(each)
        edge.append(end)
    if edge[-1] < size:
        rate.append(cold)
        edge.append(size)
    return Phase(np.array(edge, np.float64), np.array(rate, np.float64))


def _stairs(seed: int, number: int) -> Phase:
    at = number % 10 * 10 * MB
    return _ranges(100 * MB, 0.0, (at, at + 10 * MB, 200.0))


def _zipf(seed: int, number: int) -> Phase:
    blocks = 4 * GB // (2 * MB)
    share = 1 / np.arange(1, blocks + 1) ** 0.99
    share = np.random.default_rng(seed).permutation(share / share.sum())
    return Phase(np.arange(blocks + 1) * (2.0 * MB), 2e6 * share / (2 * MB / PAGE))


def _moving(seed: int, number: int) -> Phase:
    at = int(np.random.default_rng((seed, number)).integers((16 * GB - 256 * MB) // PAGE)) * PAGE
    return _ranges(16 * GB, 0.01, (at, at + 256 * MB, 200.0))


def _scattered(seed: int, number: int) -> Phase:
    pages = GB // PAGE
    hot = np.sort(np.random.default_rng(seed).choice(pages, pages // 100, replace=False)) * PAGE
    return _ranges(GB, 0.05, *((int(at), int(at) + PAGE, 100.0) for at in hot))


def _needle(hot: int, size: int) -> Callable[[int, int], Phase]:
    def phase(seed: int, number: int) -> Phase:
        at = int(np.random.default_rng(seed).integers((size - hot) // PAGE)) * PAGE
        return _ranges(size, 0.0001, (at, at + hot, 200.0))

    return phase


WORKLOADS = (
    Workload("zipf", 4 * GB, _zipf),
    Workload("needle 10 GB in 100 TB", 100 * TB, _needle(10 * GB, 100 * TB)),
    Workload("needle 200 MB in 160 GB", 160 * GB, _needle(200 * MB, 160 * GB)),
    Workload("stairs", 100 * MB, _stairs, 2.0),
    Workload("moving", 16 * GB, _moving, 2.0),
    Workload("scattered", GB, _scattered),
)


class Source:
    """Samples the accesses of a workload: at most ``rate`` reports per second, each for ``period`` accesses."""

    def __init__(self, workload: Workload, seed: int, rate: float = 100_000) -> None:
        self.workload, self.seed, self.rate = workload, seed, rate
        self._rng = np.random.default_rng((seed, 1))
        self._number = -1

    def _enter(self, number: int) -> None:
        self._number = number
        self.phase = self.workload.phase(self.seed, number)
        accesses = self.phase.accesses()
        self.period = max(1, int(np.ceil(accesses.sum() / self.rate)))
        self._upto = np.cumsum(accesses)

    def reports(self, at: float, seconds: float) -> U64:
        """Addresses of the pages that are reported in ``seconds`` from ``at`` on, shape (n,)."""
        number = self.workload.number(at)
        if number != self._number:
            self._enter(number)
        n = self._rng.poisson(self._upto[-1] * seconds / self.period)
        row = np.searchsorted(self._upto, self._rng.random(n) * self._upto[-1], "right")
        pages = (self.phase.sizes[row] / PAGE).astype(np.uint64)
        inside = (self._rng.random(n) * pages).astype(np.uint64)
        return np.uint64(BASE) + self.phase.edge[row].astype(np.uint64) + inside * np.uint64(PAGE)


@dataclass(slots=True)
class Quality:
    """What a snapshot is worth.

    :ivar f1: share of the hot set among the first as many bytes by the monitor's own rank order.
    :ivar chance: the same of a random order.
    :ivar c1: share of the accesses that the first 1 % of the bytes capture.
    :ivar best_c1: the same of a perfect order.
    :ivar ws_error: error of the working-set size, as a share of the true one.
    """

    f1: float
    chance: float
    c1: float
    best_c1: float
    ws_error: float


def judge(phase: Phase, regions: Regions) -> Quality:
    """Compare a snapshot with the truth of its aggregation interval.

    :param regions: what the monitor found, in an aggregation interval of ``phase``.
    """
    order = rank(regions)
    left, right = regions.start[order] - np.uint64(BASE), regions.end[order] - np.uint64(BASE)
    left, right = left.astype(np.float64), right.astype(np.float64)
    sizes = right - left
    before = np.cumsum(sizes) - sizes
    budget, hot = phase.hot()
    total = phase.edge[-1]

    def first(bytes_: float, weight: F64) -> float:
        """Sum of ``weight`` (per byte of each range) over the first bytes; a part of a region has its mean."""
        upto = np.concatenate(([0.0], np.cumsum(weight * phase.sizes)))
        held = np.interp(right, phase.edge, upto) - np.interp(left, phase.edge, upto)
        return float((held * np.clip((bytes_ - before) / sizes, 0, 1)).sum())

    f1 = min(1.0, first(budget, hot.astype(np.float64)) / budget)
    accesses = phase.accesses()
    best = np.argsort(-phase.rate, kind="stable")
    held = np.interp(0.01 * total, *(np.append(0.0, np.cumsum(column[best])) for column in (phase.sizes, accesses)))
    c1 = first(0.01 * total, phase.rate / PAGE)
    truth = phase.touched(AGGREGATION)
    accessed = float(regions.sizes()[regions.nr_accesses > 0].sum())
    return Quality(f1, budget / total, c1 / accesses.sum(), held / accesses.sum(), abs(accessed - truth) / truth)


def rank(regions: Regions) -> npt.NDArray[np.intp]:
    """The monitor's own order of its regions, the hottest first.

    By density where there is one; else by nr_accesses, then by age: older first among accessed, younger first among
    others.
    """
    age = regions.age.astype(np.int64)
    if regions.density is not None:
        return np.lexsort((-age, -regions.density))
    counts = regions.nr_accesses.astype(np.int64)
    return np.lexsort((np.where(counts > 0, -age, age), -counts))


@dataclass(slots=True)
class Bucket:
    """One aggregation interval: its end in seconds, its snapshot's quality and number of regions."""

    at: float
    phase: int
    quality: Quality
    nr_regions: int


def context(workload: Workload, seed: int, density: bool, rate: float = 100_000) -> damon_ctx:
    """A context of default attributes that monitors ``workload`` by reports alone, on a virtual clock."""
    source = Source(workload, seed, rate)

    def prepare(ctx: damon_ctx) -> None:
        addr = source.reports(ctx.clock.now() / 1e9, SAMPLE)
        report_accesses(report_array(len(addr), addr=addr, size=1, nr_accesses=source.period))

    ctx = damon_new_ctx(seed)
    ctx.ops = damon_operations(id=damon_ops_id.DAMON_OPS_PADDR, prepare_access_checks=prepare)
    ctx.density = density
    ctx.clock = VirtualClock()
    damon_set_attrs(ctx, damon_attrs())
    t = damon_new_target()
    t.regions = Regions([BASE], [BASE + workload.size])
    damon_add_target(ctx, t)
    return ctx


def buckets(workload: Workload, seed: int, density: bool, seconds: float) -> list[Bucket]:
    """Monitor ``workload`` for ``seconds`` of simulated time and judge each snapshot."""
    ctx = context(workload, seed, density)
    seen: list[Bucket] = []

    def aggregated(of: damon_ctx, target: int, regions: Regions) -> None:
        if of is not ctx:
            return
        validate_ctx(ctx)
        assert len(regions) <= ctx.attrs.max_nr_regions
        assert regions.total() == workload.size
        at = ctx.clock.now() / 1e9
        number = workload.number(at - AGGREGATION)
        quality = judge(workload.phase(seed, number), regions)
        seen.append(Bucket(at, number, quality, len(regions)))

    trace.damon_aggregated.register(aggregated)
    try:
        run_ctx(ctx, seconds)
    finally:
        trace.damon_aggregated.unregister(aggregated)
    return seen
