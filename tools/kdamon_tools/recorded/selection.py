# SPDX-License-Identifier: GPL-2.0-only
"""A part of a record, and what lies where in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from attrs import evolve, frozen

from kdamon import Record
from kdamon.arrays import Records
from kdamon.monitoring.config import Range
from kdamon_tools.snapshot import Snapshot

__all__ = ["Selection", "clipped", "select"]


@frozen(eq=False)
class Selection:
    """A part of a record.

    :ivar since: CLOCK_MONOTONIC seconds; None: from its begin.
    :ivar until: the same, exclusive; None: to its end.
    :ivar ranges: start and end of memory, bytes, disjoint and ascending; empty: all of it.
    :ivar progress: gets the share that is done, 0 to 1.
    """

    record: Record
    since: float | None = None
    until: float | None = None
    ranges: Sequence[Range] = ()
    progress: Callable[[float], None] = lambda _: None

    @property
    def span(self) -> tuple[float, float]:
        """Begin and end, CLOCK_MONOTONIC seconds."""
        run = self.record.run
        since = run.started if self.since is None else max(run.started, self.since)
        return since, max(since, run.ended if self.until is None else min(run.ended, self.until))

    def snapshots(self, extra: Sequence[str] = (), *, part: float = 1.0, done: float = 0.0) -> Iterator[Snapshot]:
        """The snapshots, with the regions that lie in the ranges, or the parts of them that do.

        :param extra: further columns, see :meth:`kdamon.Record.snapshots`.
        :param part: the share of the work that it is to read them once, and ``done`` that before it.
        """
        run = self.record.run
        begin = run.started if self.since is None else self.since
        length = (run.ended if self.until is None else self.until) - begin
        for snapshot in self.record.snapshots(self.since, self.until, extra):
            share = (snapshot.time - begin) / length if length > 0 else 1.0
            self.progress(done + part * min(1.0, max(0.0, share)))
            if self.ranges:
                groups = snapshot.groups
                if groups is not None:
                    groups = evolve(groups, regions=_touching(groups.regions, self.ranges))
                yield evolve(snapshot, regions=clipped(snapshot.regions, self.ranges), groups=groups)
            else:
                yield snapshot


def select(
    record: Record,
    span: tuple[float | None, float | None] | None,
    ranges: Sequence[Range],
    progress: Callable[[float], None] = lambda _: None,
) -> Selection:
    """What a command line asks for.

    :param span: begin and end, seconds since the start; None where there is no bound.
    :param ranges: those that overlap become one.
    """
    started = record.run.started
    since, until = (None if one is None else started + one for one in span or (None, None))
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return Selection(record, since, until, joined, progress)


def clipped(regions: Records, ranges: Sequence[Range]) -> Records:
    """The parts of ``regions`` that lie in ``ranges``, in address order."""
    parts = []
    for start, end in ranges:
        part = regions[(regions["end"] > start) & (regions["start"] < end)].copy()
        part["start"], part["end"] = np.maximum(part["start"], start), np.minimum(part["end"], end)
        parts.append(part)
    return np.concatenate(parts)


def _touching(rows: Records, ranges: Sequence[Range]) -> Records:
    """The regions of groups that have a part in ``ranges``: how their reports are divided is not known."""
    bounds = np.array(ranges, np.uint64)
    first = np.searchsorted(bounds[:, 1], rows["start"], side="right")
    return rows[first < np.searchsorted(bounds[:, 0], rows["end"], side="left")]
