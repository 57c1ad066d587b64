# SPDX-License-Identifier: GPL-2.0-only
"""Whole sampling intervals of simulated memory: sample by sample, as an operations set would take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdamon.arrays import U32Array, U64Array
from kdamon.mm import UNKNOWN, YOUNG, Answers, IntervalTarget
from kdamon.mm.sim.process import SimProcess

__all__ = ["SimIntervals"]


class SimIntervals:
    """Implements :class:`kdamon.mm.IntervalSampler` by :class:`kdamon.mm.Samples` of the address spaces."""

    def __init__(self) -> None:
        self._targets: list[IntervalTarget] = []
        self._edges: list[int] = [0]
        self._parts: list[U64Array] = []
        self._random: U64Array = np.empty((0, 0), np.uint64)
        self._taken = 0
        self.taken = 0
        self.woken = False
        self.accessed: U32Array = np.empty(0, np.uint32)
        self.unknown: U32Array = np.empty(0, np.uint32)

    @property
    def addrs(self) -> U64Array:
        """See :class:`kdamon.mm.IntervalSampler`."""
        return np.concatenate(self._parts)

    @staticmethod
    def at_once(rows: int) -> int:
        """See :class:`kdamon.mm.IntervalSampler`; some thousand samples of any number of regions."""
        return max(1, (1 << 16) // rows)

    def begin(self, targets: Sequence[IntervalTarget], random: U64Array) -> bool:
        """See :class:`kdamon.mm.IntervalSampler`."""
        self._targets = list(targets)
        self._edges = np.cumsum([0, *(len(target.start) for target in targets)]).tolist()
        self._random, self._taken = random.copy(), 0
        self.accessed, self.unknown = np.zeros((2, self._edges[-1]), np.uint32)
        self._begin()
        return True

    def follow(self, most: int = 1, deadline: int = 0, interval: int = 0) -> bool:
        """See :class:`kdamon.mm.IntervalSampler`; one at a time, because only the clock makes simulated time pass."""
        self.taken = 1
        answers = self.end()
        lives = self.lives
        counted = np.repeat(lives, np.diff(self._edges))
        self.accessed += (answers == YOUNG) & counted
        self.unknown += (answers == UNKNOWN) & counted
        if not all(lives):
            return False
        self._begin()
        return True

    def end(self) -> Answers:
        """See :class:`kdamon.mm.IntervalSampler`."""
        answers = [target.mm.end_sample(addrs) for target, addrs in zip(self._targets, self._parts, strict=True)]
        return np.concatenate(answers)

    @property
    def lives(self) -> list[bool]:
        """See :class:`kdamon.mm.IntervalSampler`."""
        return [isinstance(target.mm, SimProcess) and target.mm.alive for target in self._targets]

    def interrupt(self) -> None:
        """It never sleeps."""

    def rest(self) -> None:
        """No thread is changed."""

    def close(self) -> None:
        """Nothing is held."""

    def _begin(self) -> None:
        numbers = self._random[self._taken]
        self._taken += 1
        self._parts = [
            _choose(target, numbers[first:end])
            for target, first, end in zip(self._targets, self._edges, self._edges[1:], strict=False)
        ]
        for target, addrs in zip(self._targets, self._parts, strict=True):
            target.mm.begin_sample(addrs)


def _choose(target: IntervalTarget, numbers: U64Array) -> U64Array:
    """An address in each region (``damon_rand()``)."""
    if not target.wide:
        return target.start + (numbers * target.size >> np.uint64(32))
    # Python's numbers are as wide as it takes.
    offsets = [number * size >> 64 for number, size in zip(numbers.tolist(), target.size.tolist(), strict=True)]
    return target.start + np.array(offsets, np.uint64)
