# SPDX-License-Identifier: GPL-2.0-only
"""The history of a target's access reports, for :mod:`kdamon.density`.

Reports are kept in runs: sorted by address, each of some consecutive aggregation intervals. Runs of equal length are
joined as they grow old, so that there are few runs, recent reports stay separate from old ones, and no aggregation has
to touch the whole history.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from attrs import define, field

from kdamon.arrays import F64Array, Indexes, U64Array

if TYPE_CHECKING:
    from kdamon.kernel import rnd_state

__all__ = ["INTERVALS", "REPORTS", "REPORTS_PER_INTERVAL", "ReportHistory", "ReportRun", "spread"]

#: First report and end (exclusive) of the reports in each of some ranges.
Place = tuple[Indexes, Indexes]

#: Reports that are remembered at most; aggregation intervals (and what is in one run with them); reports that one
#: interval adds; those of one run.
REPORTS = 1 << 18
INTERVALS = 64
REPORTS_PER_INTERVAL = 1 << 15
_REPORTS_PER_RUN = 1 << 16


class ReportRun:
    """Reports of consecutive aggregation intervals.

    :ivar addr: reported pages, ascending, core address units, shape (n,).
    :ivar upto: accesses that the reports before each one stand for, and those of all, shape (n + 1,).
    :ivar first: number of the first interval.
    :ivar last: number of the last one.
    """

    __slots__ = ("_distinct", "addr", "first", "last", "squares", "upto")

    def __init__(self, addr: U64Array, weight: F64Array, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self._set(addr, weight)

    def _set(self, addr: U64Array, weight: F64Array) -> None:
        self.addr = addr
        self.upto = np.zeros(len(addr) + 1)
        np.cumsum(weight, out=self.upto[1:])
        self.squares = float((weight * weight).sum())
        self._distinct: F64Array | None = None

    def __len__(self) -> int:
        return len(self.addr)

    def place(self, start: U64Array, end: U64Array) -> Place:
        """The reports in each of the ascending [start, end): first one and end (exclusive)."""
        if (start[1:] == end[:-1]).all():
            edges = np.searchsorted(self.addr, np.append(start, end[-1:]))
            return edges[:-1], edges[1:]
        return np.searchsorted(self.addr, start), np.searchsorted(self.addr, end)

    def distinct(self, place: Place) -> F64Array:
        """Number of distinct pages among the reports at each place, shape (m,)."""
        if self._distinct is None:
            # How many pages there are before each report, and in all.
            self._distinct = np.zeros(len(self) + 1)
            self._distinct[1:2] = 1
            np.cumsum(self.addr[1:] != self.addr[:-1], out=self._distinct[2:])
            self._distinct[2:] += 1
        return self._distinct[place[1]] - self._distinct[place[0]]

    def drop(self, first: Indexes, stop: Indexes) -> None:
        """Forget the reports from each of ``first`` to ``stop`` (exclusive)."""
        kept = np.ones(len(self), np.bool_)
        kept[spread(first, stop - first)] = False
        self._set(self.addr[kept], np.diff(self.upto)[kept])

    def joined(self, newer: ReportRun) -> ReportRun:
        """Join this run and the one that follows it."""
        addr = np.concatenate((self.addr, newer.addr))
        order = np.argsort(addr, kind="stable")  # fast, because it finds the two sorted parts
        weight = np.concatenate((np.diff(self.upto), np.diff(newer.upto)))
        return ReportRun(addr[order], weight[order], self.first, newer.last)


@define(slots=True, eq=False)
class ReportHistory:
    """The remembered reports of one target.

    :ivar runs: the newest first; the first one is the interval that ended last.
    :ivar now: number of that interval; the first one is 1.
    :ivar interval: length of the intervals, microseconds.
    :ivar next_examined: address of the region that is examined next.
    """

    runs: list[ReportRun] = field(factory=list)
    now: int = 0
    interval: int = 0
    next_examined: int = 0
    #: Reports of the present interval: one in ``_share`` is taken.
    _arrived: list[tuple[U64Array, F64Array]] = field(factory=list)
    _nr_arrived: int = 0
    _share: int = 1

    def add(self, addr: U64Array, weight: F64Array, rnd: rnd_state) -> None:
        """Take reports of the present interval; of too many a random part, which then stands for all.

        :param addr: reported pages, core address units, shape (n,).
        :param weight: accesses that each stands for.
        """
        if self._share > 1:
            addr, weight = _thin(addr, weight, self._share, rnd)
        # Sorted parts are fast to sort when the interval ends.
        order = np.argsort(addr, kind="stable")
        self._arrived.append((addr[order], weight[order]))
        self._nr_arrived += len(addr)
        while self._nr_arrived > REPORTS_PER_INTERVAL:
            self._share *= 2
            addr, weight = _thin(*self._all_arrived(), 2, rnd)
            self._arrived = [(addr, weight)]
            self._nr_arrived = len(addr)

    def _all_arrived(self) -> tuple[U64Array, F64Array]:
        if not self._arrived:
            return np.empty(0, np.uint64), np.empty(0)
        return np.concatenate([addr for addr, _ in self._arrived]), np.concatenate([w for _, w in self._arrived])

    def learn(self, rnd: rnd_state) -> None:
        """End an interval: its reports become the newest run, the oldest are forgotten."""
        self.now += 1
        addr, weight = self._all_arrived()
        self._arrived, self._nr_arrived, self._share = [], 0, 1
        order = np.argsort(addr, kind="stable")
        self.runs.insert(0, ReportRun(addr[order], weight[order], self.now, self.now))
        # Of three runs of the same length the older two become one: so lengths grow with age.
        for i in range(len(self.runs) - 3, -1, -1):
            young, mid, old = self.runs[i : i + 3]
            same = young.last - young.first == mid.last - mid.first == old.last - old.first
            if same and len(mid) + len(old) <= _REPORTS_PER_RUN:
                self.runs[i + 1 : i + 3] = [old.joined(mid)]
        while sum(map(len, self.runs)) > REPORTS or self.runs[-1].last <= self.now - INTERVALS:
            self.runs.pop()

    def forget(self) -> None:
        """Forget everything but the reports of the present interval."""
        self.runs = []
        self.now = 0

    def holds_any(self) -> bool:
        """Return whether any report is remembered or arrived in the present interval."""
        return self._nr_arrived > 0 or any(map(len, self.runs))

    def scale(self) -> float:
        """How many accesses a report stands for: their dispersion, so that few large ones do not look like many."""
        total = sum(float(run.upto[-1]) for run in self.runs)
        return sum(run.squares for run in self.runs) / total if total else 1.0

    def places(self, start: U64Array, end: U64Array) -> list[Place]:
        """:meth:`ReportRun.place` of every run."""
        return [run.place(start, end) for run in self.runs]

    def held(self, places: list[Place]) -> F64Array:
        """Accesses that the reports at ``places`` stand for, shape (runs, m)."""
        return np.array([run.upto[stop] - run.upto[first] for run, (first, stop) in self._with(places)])

    def gather(self, places: list[Place], most: int) -> tuple[U64Array, F64Array]:
        """The reports at ``places`` in address order, and the accesses that they stand for.

        :param most: about how many of one range; of more every so many-th, which then stands for those between.
        """
        step = np.maximum(-(-sum(stop - first for first, stop in places) // most), 1)
        addrs, weights = [], []
        for run, (first, stop) in self._with(places):
            counts = -((first - stop) // step)
            steps = step.repeat(counts)
            taken = spread(first, counts, steps)
            addrs.append(run.addr[taken])
            weights.append(run.upto[np.minimum(taken + steps, stop.repeat(counts))] - run.upto[taken])
        addr = np.concatenate(addrs)
        order = np.argsort(addr, kind="stable")  # sorted parts again
        return addr[order], np.concatenate(weights)[order]

    def _with(self, places: list[Place]) -> Iterator[tuple[ReportRun, Place]]:
        return zip(self.runs, places, strict=True)


def spread(first: Indexes, counts: Indexes, steps: Indexes | int = 1) -> Indexes:
    """For each i ``counts[i]`` indices from ``first[i]`` on; ``steps`` (shape of the result) apart."""
    stop = counts.cumsum()
    nth = np.arange(int(stop[-1]) if len(stop) else 0) - (stop - counts).repeat(counts)
    return first.repeat(counts) + nth * steps


def _thin(addr: U64Array, weight: F64Array, share: int, rnd: rnd_state) -> tuple[U64Array, F64Array]:
    """One in ``share`` (a power of two) of the reports at random, which stand for all of them."""
    taken = np.nonzero(rnd.u32(len(addr)) % np.uint64(share) == 0)[0]
    return addr[taken], weight[taken] * share
