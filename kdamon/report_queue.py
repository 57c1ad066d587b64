# SPDX-License-Identifier: GPL-2.0-only
"""Access reports on their way to a context: a lane for each producer, which only it fills and only the kdamond empties.

Kernel (the series): one array for all producers and contexts, under a lock.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from attrs import evolve

from kdamon.damon import damon_access_report, damon_report_counters
from kdamon.kernel import Clock
from kdamon.report_lookup import region_lookup

if TYPE_CHECKING:
    from kdamon.damon import damon_target

__all__ = ["damon_report_queue", "damon_report_source"]

Batch = npt.NDArray[np.void]

#: What a batch of a source takes of its room at least: with fewer reports its bookkeeping is what takes memory.
_LEAST_ROOM: Final = 8


class damon_report_source:
    """A producer of reports that has a share of the room for itself, apart from the thread that speaks for it.

    :ivar share: it has one part in so many of the room for reports on their way to each context.
    :ivar lost: how many of its reports found no room, once for each context.
    """

    __slots__ = ("_alive", "lost", "share")

    def __init__(self) -> None:
        self.share = 1
        self.lost = 0
        self._alive = True

    def is_alive(self) -> bool:
        """Return whether it may still report."""
        return self._alive

    def close(self) -> None:
        """It reports no more."""
        self._alive = False


class _lane:
    """Reports of one producer on their way to one context: filled by its thread, emptied by the kdamond.

    Each counter has one writer, so that they need no lock and are never wrong.
    """

    __slots__ = ("_least", "_room_given", "_room_taken", "dropped", "entries", "ineligible", "producer", "pushed")

    def __init__(self, producer: threading.Thread | damon_report_source) -> None:
        self.entries: deque[tuple[int, damon_access_report | Batch]] = deque()
        self.producer = producer
        self.pushed = 0
        self.ineligible = 0
        self.dropped = 0
        self._least = _LEAST_ROOM if isinstance(producer, damon_report_source) else 0
        self._room_taken = 0
        self._room_given = 0

    def push(self, time: int, entry: damon_access_report | Batch, n: int, room: int) -> None:
        """Take ``n`` reports, or as many of them as there is room for.

        :param room: of the whole lane.
        """
        room -= self._room_taken - self._room_given
        need = max(n, self._least)
        if need > room:
            fits = room if room >= self._least and not isinstance(entry, damon_access_report) else 0
            fits = min(max(fits, 0), n)
            self.dropped += n - fits
            if not fits:
                return
            entry, n, need = entry[:fits], fits, max(fits, self._least)  # type: ignore[index]
        self.pushed += n
        self._room_taken += need
        self.entries.append((time, entry))

    def take(self) -> list[tuple[int, damon_access_report | Batch]]:
        """All that was pushed."""
        entries = [self.entries.popleft() for _ in range(len(self.entries))]
        self._room_given += sum(
            1 if isinstance(e, damon_access_report) else max(len(e), self._least) for _, e in entries
        )
        return entries


class damon_report_queue:
    """All reports on their way to one context.

    :param clock: the context's; reports are stamped with its time.
    :ivar pids: what reports may be about that the context can use; None is anything.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.pids: frozenset[int] | None = None
        self.counters = damon_report_counters()
        #: How the kdamond finds the regions of each target.
        self.lookups: dict[damon_target, region_lookup] = {}
        self._local = threading.local()
        self._of_sources: dict[damon_report_source, _lane] = {}
        self._lanes: tuple[_lane, ...] = ()
        self._lanes_lock = threading.Lock()
        self._gone = damon_report_counters()

    def lane(self, source: damon_report_source | None = None) -> _lane:
        """The lane of ``source``, or the calling thread's own."""
        if source is not None:
            return self._of_sources.get(source) or self._new_lane(source)
        try:
            lane: _lane = self._local.lane
        except AttributeError:
            lane = self._local.lane = self._new_lane(threading.current_thread())
        return lane

    def _new_lane(self, producer: threading.Thread | damon_report_source) -> _lane:
        lane = _lane(producer)
        # Once in a producer's life; nobody holds this lock while there is work to do on reports.
        with self._lanes_lock:
            self._lanes = (*self._lanes, lane)
            if isinstance(producer, damon_report_source):
                self._of_sources[producer] = lane
        return lane

    def take(self) -> list[tuple[int, damon_access_report | Batch]]:
        """Everything that was pushed so far, each lane in order; only the kdamond may call this."""
        taken: list[tuple[int, damon_access_report | Batch]] = []
        for lane in self._lanes:
            if lane.entries:
                taken += lane.take()
            elif not lane.producer.is_alive():
                self._retire(lane)
        return taken

    def _retire(self, lane: _lane) -> None:
        """Forget the empty lane of a producer that ended, but not its counters."""
        if lane.entries:
            return
        with self._lanes_lock:
            self._lanes = tuple(other for other in self._lanes if other is not lane)
            if isinstance(lane.producer, damon_report_source):
                del self._of_sources[lane.producer]
            self._gone.accepted += lane.pushed
            self._gone.ineligible += lane.ineligible
            self._gone.dropped += lane.dropped

    def snapshot(self) -> damon_report_counters:
        """The counters now; ``pending`` makes the sum right."""
        # First what became of reports, then how many there were: so none is pending less than not at all.
        now = evolve(self.counters)
        done = now.applied + now.ineligible + now.filtered + now.straddling + now.outside + now.late
        with self._lanes_lock:
            ineligible = self._gone.ineligible + sum(lane.ineligible for lane in self._lanes)
            now.accepted = self._gone.accepted + sum(lane.pushed for lane in self._lanes)
            now.dropped = self._gone.dropped + sum(lane.dropped for lane in self._lanes)
        now.pending = now.accepted - done
        now.accepted += ineligible
        now.ineligible += ineligible
        return now
