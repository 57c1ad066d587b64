# SPDX-License-Identifier: GPL-2.0-only
"""Which memory of a process is in memory and in swap, page by page, looked at in small steps beside monitoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from attrs import frozen

from kdamon.arrays import F64Array, Records, U64Array
from kdamon.kernel import PMD_SIZE
from kdamon.mm import RESIDENT, AddressSpace
from kdamon.mm.ranges import NO_RANGES, intersect, subtract, total, union

__all__ = ["NO_RESIDENCY", "RESIDENT_BYTES", "Residency", "ResidencyReader", "cut", "merged_blocks"]

#: Columns of :data:`kdamon.mm.RESIDENT` that are bytes of memory.
RESIDENT_BYTES: Final = ("anon", "file", "swapped", "unknown")
#: Seconds between the begins of two passes, at least, and between two results of one.
_PASS_S: Final = 1.0
#: Seconds of one step, and the share of a CPU that all take.
_STEP_S: Final = 0.002
_SHARE: Final = 0.003
#: Seconds that the first pass may take without a pause, and how long the pause after it is at most.
_FIRST_S: Final = 0.05
_FIRST_PAUSE_S: Final = 1.0
#: A part of so many bytes, or more, is looked at only where it is populated: reserved addresses cost time, too.
_MUCH: Final = 8 << 30
#: Rows of a block of 2 MiB beyond which they become one: in each call, and once there are so many rows in all.
_FINE: Final = 64
_MOST_ROWS: Final = 1 << 17
#: Above all user space addresses.
_EVERYTHING: Final = 1 << 63
NO_RESIDENCY: Final[Records] = np.empty(0, RESIDENT)


@frozen(eq=False)
class Residency:
    """What a process had in memory.

    :ivar time: CLOCK_MONOTONIC seconds when it was looked at last.
    :ivar rows: of :data:`kdamon.mm.RESIDENT`, in address order and disjoint, shape (n,): runs of pages that are alike;
        in a block of 2 MiB with very many of them, one row with the bytes of each kind. What is in none is neither in
        memory nor in swap.
    """

    time: float
    rows: Records

    @property
    def unknown_share(self) -> float:
        """How much of what is or may be in memory was not looked at yet, 0 to 1."""
        anon, file, unknown = (float(self.rows[name].sum()) for name in ("anon", "file", "unknown"))
        return unknown / max(1.0, anon + file + unknown)

    def sums(self, ranges: Any) -> Records:
        """How much of each range is in memory, in swap and unknown.

        :param ranges: start and end, bytes, shape (n, 2); or rows with the fields ``start`` and ``end``, as of a
            snapshot's regions.
        :returns: rows of :data:`kdamon.mm.RESIDENT`, shape (n,).
        """
        if isinstance(ranges, np.ndarray) and ranges.dtype.names:
            ranges = np.stack([ranges["start"], ranges["end"]], axis=1)
        bounds: U64Array = np.asarray(ranges, np.uint64).reshape(-1, 2)
        found = np.zeros(len(bounds), RESIDENT)
        found["start"], found["end"] = bounds.T
        if len(self.rows):
            for name in RESIDENT_BYTES:
                below = self._below(bounds.ravel(), name).reshape(-1, 2)
                found[name] = np.rint(below[:, 1] - below[:, 0])
        return found

    def _below(self, edges: U64Array, name: str) -> F64Array:
        """Bytes of a kind below each of ``edges``."""
        rows = self.rows
        values = rows[name].astype(np.float64)
        at = np.maximum(np.searchsorted(rows["start"], edges, side="right") - 1, 0)
        row = rows[at]
        within = np.minimum(np.maximum(edges, row["start"]), row["end"]) - row["start"]
        part = within.astype(np.float64) / (row["end"] - row["start"])
        below: F64Array = (np.cumsum(values) - values)[at] + values[at] * part
        return below


def cut(rows: Records, ranges: U64Array) -> Records:
    """The parts of ``rows`` in ``ranges``; a row that is cut keeps its share of each kind."""
    places = intersect(np.stack([rows["start"], rows["end"]], axis=1), ranges)
    found = rows[np.searchsorted(rows["end"], places[:, 0], side="right")]
    sizes = (found["end"] - found["start"]).astype(np.float64)
    share = (places[:, 1] - places[:, 0]) / sizes
    found["start"], found["end"] = places.T
    for name in RESIDENT_BYTES:
        found[name] = np.rint(found[name] * share)
    return found


def merged_blocks(rows: Records) -> Records:
    """The same bytes with a row for each block of 2 MiB, and one for each run that reaches beyond a block."""
    size = np.uint64(PMD_SIZE)
    first, last = rows["start"] // size, (rows["end"] - np.uint64(1)) // size
    alone = first != last
    begins = np.flatnonzero(np.concatenate([[True], (first[1:] != first[:-1]) | alone[1:] | alone[:-1]])[: len(rows)])
    ends = np.append(begins[1:], len(rows)) - 1
    found = rows[begins]
    if len(found):
        found["end"] = rows["end"][ends]
        for name in RESIDENT_BYTES:
            found[name] = np.add.reduceat(rows[name], begins)
    return found


def _with_unknown(rows: Records, ranges: U64Array) -> Records:
    """``rows``, and ``ranges``, which none of them is in, as unknown."""
    unknown = np.zeros(len(ranges), RESIDENT)
    unknown["start"], unknown["end"] = ranges.T
    unknown["unknown"] = ranges[:, 1] - ranges[:, 0]
    every = np.concatenate([rows, unknown])
    return every[np.argsort(every["start"], kind="stable")]


class ResidencyReader:
    """Looks at all monitored memory again and again: a pass in a second at most, and a small share of a CPU.

    :param clock: CLOCK_MONOTONIC seconds.
    :param spent: seconds of CPU time of the present thread.
    :ivar latest: the newest result; None before the first one.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, spent: Callable[[], float] = time.thread_time
    ) -> None:
        self.latest: Residency | None = None
        self._clock = clock
        self._spent = spent
        self._steps: Iterator[tuple[int, Records]] | None = None
        self._parts: list[Records] = []
        self._nr_rows = 0
        #: What this pass is about, up to where it looked, and where it would end; what was looked at before.
        self._wanted, self._reached, self._last, self._seen = NO_RANGES, 0, 0, NO_RANGES
        #: What was mapped since this pass began.
        self._new = NO_RANGES
        self._began = self._shown = self._marked = float("-inf")
        #: Seconds that steps took in all, and those that no pause followed yet.
        self._at_once = self._waits = 0.0
        #: When the next step is due.
        self.due = 0.0

    def reset(self) -> None:
        """The process has another address space: what was seen says nothing."""
        self.latest = self._steps = None
        self._seen, self._new, self._at_once = NO_RANGES, NO_RANGES, 0.0
        self._shown = self._marked = float("-inf")

    def step(self, mm: AddressSpace, ranges: U64Array | None) -> None:
        """Look at some memory; a step is over after some milliseconds.

        :param ranges: what is monitored, see :meth:`kdamon.mm.AddressSpace.residency`; None: all mappings.
        :raises OSError: ENOTTY this kernel cannot say.
        """
        before = self._spent()
        steps = self._steps or self._begin(mm, ranges)
        until = before + _STEP_S
        for reached, rows in steps:
            self._take(reached, rows)
            if self._spent() >= until:
                break
        else:
            self._end()
        now = self._clock()
        if self._steps is not None and now >= self._shown + _PASS_S:
            self._show(now)
        self._mark_new(mm, ranges, now)
        # The next pass begins a second after this one did.
        begin = 0.0 if self._steps is not None else self._began + _PASS_S
        took = self._spent() - before
        # The first pass may take some time at once, which the next step waits for.
        self._at_once += took
        if self._at_once < _FIRST_S and self._steps is not None and not len(self._seen):
            self.due, self._waits = now, self._waits + took
        else:
            pause = (self._waits + took) / _SHARE
            if self._waits:
                pause = min(pause, _FIRST_PAUSE_S)
            self.due, self._waits = max(now + pause, begin), 0.0

    def _begin(self, mm: AddressSpace, ranges: U64Array | None) -> Iterator[tuple[int, Records]]:
        mapped = mm.vmas()
        self._wanted = mapped if ranges is None else intersect(mapped, ranges)
        places = mm.populated(self._wanted) if total(self._wanted) >= _MUCH else self._wanted
        self._began = self._clock()
        self._parts, self._nr_rows, self._reached, self._new = [], 0, 0, NO_RANGES
        self._last = int(places[-1, 1]) if len(places) else 0
        self._steps = mm.residency(places)
        return self._steps

    def _mark_new(self, mm: AddressSpace, ranges: U64Array | None, now: float) -> None:
        """What was mapped since this pass began is unknown, not empty."""
        if self.latest is None or now < self._marked + _PASS_S:
            return
        self._marked = now
        mapped = mm.vmas()
        new = subtract(mapped if ranges is None else intersect(mapped, ranges), union(self._wanted, self._new))
        if len(new):
            self._new = union(self._new, new)
            self.latest = Residency(now, _with_unknown(self.latest.rows, new))

    def _take(self, reached: int, rows: Records) -> None:
        blocks = 1 + np.count_nonzero(np.diff(rows["start"] // np.uint64(PMD_SIZE)))
        if len(rows) > _FINE * blocks or self._nr_rows >= _MOST_ROWS:
            rows = merged_blocks(rows)
        self._parts.append(rows)
        self._nr_rows += len(rows)
        self._reached = reached

    def _end(self) -> None:
        """The pass is over, be it that the process does not answer."""
        self._steps = None
        if self._reached >= self._last:
            self._reached = self._last = _EVERYTHING
        elif not self._reached:
            return
        self._show(self._clock())
        below = np.array([[0, self._reached]], np.uint64)
        self._seen = union(intersect(self._wanted, below), subtract(self._seen, below))

    def _show(self, now: float) -> None:
        """What is known now: of this pass, and above that of those before."""
        rows = np.concatenate([NO_RESIDENCY, *self._parts])
        above = subtract(self._wanted, np.array([[0, self._reached]], np.uint64)) if self._reached else self._wanted
        if len(above):
            before = NO_RESIDENCY if self.latest is None else cut(self.latest.rows, intersect(above, self._seen))
            rows = np.concatenate([rows, _with_unknown(before, subtract(above, self._seen))])
        rows = _with_unknown(rows, self._new) if len(self._new) else rows
        self.latest, self._shown = Residency(now, rows), now
