# SPDX-License-Identifier: GPL-2.0-only
"""How much memory is in use within a second, ten seconds and a minute: estimates from a random set of watched pages.

Each page of the set was made old, and looked at when the window was over. The set is chosen without regard to regions,
so the share of its pages that were accessed is an unbiased estimate of the share of the memory; docs/working-set.md.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import reduce
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import Records
from kdamon.mm import Resident

__all__ = [
    "ABSENT",
    "ACCESSED",
    "ANON",
    "CAME",
    "FILE",
    "GONE",
    "IDLE",
    "LOOK",
    "UNKNOWN",
    "WINDOWS",
    "LookCounts",
    "MemoryUse",
    "WindowUse",
    "estimate",
    "wilson",
]

#: The windows, seconds.
WINDOWS: Final = (1.0, 10.0, 60.0)

#: States of a page at the end of its window: it was not accessed; it was; it came into memory; it left memory; its
#: accesses cannot be observed; it was never in memory.
IDLE, ACCESSED, CAME, GONE, UNKNOWN, ABSENT = range(6)
#: The states of pages that are in memory.
_THERE: Final = (IDLE, ACCESSED, CAME, UNKNOWN)
#: Kinds of a page: not looked up; anonymous; of a file, or of shared memory.
ANON, FILE = 1, 2

#: One look at one page: its address; the bytes that it stands for, of all bytes at the time; when its window began
#: (CLOCK_MONOTONIC seconds), one value for all pages that were chosen together; the window (seconds); state; kind.
LOOK: Final = np.dtype(
    [("addr", "<u8"), ("weight", "<f4"), ("began", "<f8"), ("window", "<f4"), ("state", "u1"), ("kind", "u1")]
)

#: The standard normal distribution is below this in 97.5 % of all cases.
_Z: Final = 1.959964


@frozen
class WindowUse:
    """The memory of a process by accesses within a window; bytes that were in memory at its end.

    :ivar seconds: the window.
    :ivar accessed: accessed within it, or brought into memory: the working set.
    :ivar low: the true value is between ``low`` and ``high`` with a probability of 95 %, as far as chance goes.
    :ivar high: see ``low``.
    :ivar unknown: memory whose accesses cannot be observed: neither in ``accessed`` nor in ``idle``.
    :ivar idle: not accessed within it.
    :ivar idle_anon: of these anonymous memory.
    :ivar idle_file: of files, and shared memory.
    :ivar pages: how many watched pages this is based on.
    """

    seconds: float
    accessed: int
    low: int
    high: int
    unknown: int
    idle: int
    idle_anon: int
    idle_file: int
    pages: int


@frozen
class MemoryUse:
    """How much of a process's memory is in use.

    :ivar time: CLOCK_MONOTONIC seconds.
    :ivar resident: what is in memory; None where that is not known, or only ranges are monitored.
    :ivar windows: from the shortest to the longest; those that did not end yet are missing.
    """

    time: float
    resident: Resident | None = None
    windows: tuple[WindowUse, ...] = ()

    def window(self, seconds: float) -> WindowUse | None:
        """The estimate for a window of ``seconds``; None if there is none."""
        return next((window for window in self.windows if window.seconds == seconds), None)


def wilson(hits: float, tries: float) -> tuple[float, float]:
    """The interval in which a share lies with 95 % probability, of which ``tries`` found ``hits`` (Wilson 1927)."""
    if tries <= 0:
        return 0.0, 1.0
    share = hits / tries
    middle = share + _Z**2 / (2 * tries)
    spread = _Z * math.sqrt(share * (1 - share) / tries + _Z**2 / (4 * tries**2))
    whole = 1 + _Z**2 / tries
    return max(0.0, (middle - spread) / whole), min(1.0, (middle + spread) / whole)


@frozen
class LookCounts:
    """The looks at the pages of some cohorts at the end of one window, counted.

    :ivar began: CLOCK_MONOTONIC seconds, of the first cohort.
    :ivar states: how many pages are in each state, shape (6,).
    :ivar sizes: bytes that these stand for; each cohort stands for all memory that there was, shape (6,).
    :ivar idle_anon: how many of the idle ones are known to be anonymous.
    :ivar idle_file: how many are known to be of a file or shared memory.
    :ivar squares: the sum over the cohorts of the square of all their bytes, divided by the number of their pages.
    :ivar cohorts: how many.
    """

    began: float
    states: tuple[int, ...]
    sizes: tuple[float, ...]
    idle_anon: int
    idle_file: int
    squares: float
    cohorts: int = 1

    @classmethod
    def of(cls, looks: Records) -> LookCounts:
        """Count ``looks``, rows of :data:`LOOK` with one ``began``; at least one."""
        states = np.bincount(looks["state"], minlength=ABSENT + 1)
        sizes = np.bincount(looks["state"], looks["weight"].astype(np.float64), ABSENT + 1)
        kinds = np.bincount(looks["kind"][looks["state"] == IDLE], minlength=FILE + 1)
        return cls(
            began=float(looks["began"][0]),
            states=tuple(states.tolist()),
            sizes=tuple(sizes.tolist()),
            idle_anon=int(kinds[ANON]),
            idle_file=int(kinds[FILE]),
            squares=float(sizes.sum()) ** 2 / len(looks),
        )

    def plus(self, other: LookCounts) -> LookCounts:
        """These and ``other`` together."""
        return LookCounts(
            self.began,
            tuple(map(operator.add, self.states, other.states)),
            tuple(map(operator.add, self.sizes, other.sizes)),
            self.idle_anon + other.idle_anon,
            self.idle_file + other.idle_file,
            self.squares + other.squares,
            self.cohorts + other.cohorts,
        )


def estimate(looks: Sequence[LookCounts], seconds: float, resident: int | None = None) -> WindowUse | None:
    """Estimate from the looks at the end of windows of one length.

    Pages are drawn with replacement, each as likely as any other, so the number of those that were accessed has a
    binomial distribution, also where many of them are parts of one huge page. Each cohort counts as much as the memory
    that it stands for, so that the estimate is the mean of all times; a cohort of few pages makes it less certain.

    :param seconds: the window.
    :param resident: bytes in memory, to which the shares apply; None: those by the looks themselves.
    :returns: None without any page in memory.
    """
    if not looks:
        return None
    found = reduce(LookCounts.plus, looks)
    if not (pages := sum(found.states[state] for state in _THERE)):
        return None
    there = sum(found.sizes[state] for state in _THERE)
    in_memory = there / found.cohorts if resident is None else float(resident)
    shares = [size / there for size in found.sizes]
    used = shares[ACCESSED] + shares[CAME]
    # As many pages drawn at once would be as certain (Kish's effective sample size).
    tries = sum(found.sizes) * there / found.squares
    low, high = wilson(used * tries, tries)
    anon, file = found.idle_anon, found.idle_file
    idle = in_memory * shares[IDLE]
    idle_anon = idle * anon / (anon + file) if anon + file else 0.0
    return WindowUse(
        seconds,
        accessed=round(in_memory * used),
        low=round(in_memory * low),
        high=round(in_memory * high),
        unknown=round(in_memory * shares[UNKNOWN]),
        idle=round(idle),
        idle_anon=round(idle_anon),
        idle_file=round(idle - idle_anon) if anon + file else 0,
        pages=pages,
    )
