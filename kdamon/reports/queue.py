# SPDX-License-Identifier: GPL-2.0-only
"""Access reports on their way to a context: a lane for each producer, which only it fills and only the kdamond empties.

Kernel (the series): one array for all producers and contexts, under a lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import evolve

from kdamon.access import ReportCounters, damon_access_report
from kdamon.arrays import Records
from kdamon.kernel import Clock

__all__ = ["ReportQueue", "ReportSource"]


#: The room that a batch of a source takes at least: for fewer reports the bookkeeping takes more memory than they.
_LEAST_ROOM: Final = 8


class ReportSource:
    """A producer of reports with a share of the room for itself, separate from the thread that reports for it.

    :param user: sources with the same one, whether they still report or not, have a share together, and all sources
        with any have limited room together: they all report from one thread. None: this source is not limited so.
    :ivar share: it has one part in so many of its user's room for reports on their way to each context.
    :ivar lost: how many of its reports found no room, once for each context.
    """

    __slots__ = ("_alive", "lost", "share", "user")

    def __init__(self, user: int | None = None) -> None:
        self.user = user
        self.share = 1
        self.lost = 0
        self._alive = True

    def is_alive(self) -> bool:
        """Return whether it may still report."""
        return self._alive

    def close(self) -> None:
        """Mark it as ended: it reports no more."""
        self._alive = False


class _room:
    """Room for reports: one thread takes, and the kdamond gives back."""

    __slots__ = ("given", "taken")

    def __init__(self) -> None:
        self.taken = 0
        self.given = 0

    @property
    def used(self) -> int:
        return self.taken - self.given


class _user:
    """The lanes of one user's sources, and the room that they take."""

    __slots__ = ("lanes", "room")

    def __init__(self) -> None:
        self.lanes: list[_lane] = []
        self.room = _room()


class _lane:
    """Reports of one producer on their way to one context: filled by its thread, emptied by the kdamond.

    Each counter has one writer, so that they need no lock and are never wrong.
    """

    __slots__ = ("_least", "_rooms", "dropped", "entries", "ineligible", "producer", "pushed")

    def __init__(self, producer: threading.Thread | ReportSource, *shared: _room) -> None:
        self.entries: deque[tuple[int, damon_access_report | Records]] = deque()
        self.producer = producer
        self.pushed = 0
        self.ineligible = 0
        self.dropped = 0
        self._least = _LEAST_ROOM if isinstance(producer, ReportSource) else 0
        self._rooms = (_room(), *shared)

    def push(self, time: int, entry: damon_access_report | Records, n: int, room: int, rest: int | None = None) -> None:
        """Take ``n`` reports, or as many of them as there is room for.

        :param room: of the whole lane.
        :param rest: what there is besides that, None for any.
        """
        room -= self._rooms[0].used
        if rest is not None:
            room = min(room, rest)
        need = max(n, self._least)
        if need > room:
            fits = room if room >= self._least and not isinstance(entry, damon_access_report) else 0
            fits = min(max(fits, 0), n)
            self.dropped += n - fits
            if not fits:
                return
            # A copy: what did not fit is not to stay with it.
            entry, n, need = entry[:fits].copy(), fits, max(fits, self._least)  # type: ignore[index]
        self.pushed += n
        for taken in self._rooms:
            taken.taken += need
        self.entries.append((time, entry))

    def take(self) -> list[tuple[int, damon_access_report | Records]]:
        """All that was pushed."""
        entries = [self.entries.popleft() for _ in range(len(self.entries))]
        n = sum(1 if isinstance(e, damon_access_report) else max(len(e), self._least) for _, e in entries)
        for given in self._rooms:
            given.given += n
        return entries


class ReportQueue:
    """All reports on their way to one context.

    :param clock: reports are stamped with its time, for what records them; without one, with 0.
    :param on_lane: called when a producer is about to report for the first time, in its thread.
    :ivar pids: what reports may be about that the context can use; None is anything.
    """

    def __init__(self, clock: Clock | None = None, on_lane: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._on_lane = on_lane
        self.pids: frozenset[int] | None = None
        self.counters = ReportCounters()
        self._local = threading.local()
        self._of_sources: dict[ReportSource, _lane] = {}
        self._users: dict[int, _user] = {}
        self._of_users = _room()
        self._lanes: tuple[_lane, ...] = ()
        self._lanes_lock = threading.Lock()
        self._gone = ReportCounters()

    def now(self) -> int:
        """The time with which a report is stamped, nanoseconds."""
        return 0 if self._clock is None else self._clock.now()

    def lane(self, source: ReportSource | None = None) -> _lane:
        """The lane of ``source``, or the calling thread's own."""
        if source is not None:
            return self._of_sources.get(source) or self._new_lane(source)
        try:
            lane: _lane = self._local.lane
        except AttributeError:
            lane = self._local.lane = self._new_lane(threading.current_thread())
        return lane

    def room(self, source: ReportSource, cap: int) -> tuple[int, int | None]:
        """How much the lane of ``source``, which exists, may hold; and what its user has left, None for any.

        ``cap`` is divided by the users that have lanes here: those that may report on what is monitored, and did. All
        of them together have twice as much, and none has more than what is left to others.
        """
        if source.user is None:
            return cap // source.share, None
        of_user = cap // max(len(self._users), 1)
        used = self._users[source.user].room.used
        return of_user // source.share, min(of_user - used, (2 * cap - self._of_users.used - used) // 2)

    def _new_lane(self, producer: threading.Thread | ReportSource) -> _lane:
        # Once in a producer's life; no thread holds this lock while there is work to do on reports.
        with self._lanes_lock:
            if not isinstance(producer, ReportSource):
                lane = _lane(producer)
            else:
                lane = self._new_lane_of_source(producer)
                self._of_sources[producer] = lane
            if lane not in self._lanes:
                self._lanes = (*self._lanes, lane)
        self._on_lane()
        return lane

    def _new_lane_of_source(self, source: ReportSource) -> _lane:
        if source.user is None:
            return _lane(source)
        user = self._users.get(source.user)
        if user is None:
            # Forget lanes that are empty and whose producer ended, even if no kdamond takes reports.
            for lane in self._lanes:
                self._forget(lane)
            user = self._users[source.user] = _user()
        for lane in user.lanes:
            # A user that connects again and again has only as many lanes as producers at a time.
            if not lane.producer.is_alive():
                assert isinstance(lane.producer, ReportSource)
                del self._of_sources[lane.producer]
                lane.producer = source
                return lane
        user.lanes.append(_lane(source, user.room, self._of_users))
        return user.lanes[-1]

    @property
    def has_lanes(self) -> bool:
        """Whether there is any producer that reported, and may report again."""
        return bool(self._lanes)

    def pending(self) -> bool:
        """Return whether there is anything to :meth:`take`."""
        for lane in self._lanes:  # noqa: SIM110 -- in each sampling interval
            if lane.entries:
                return True
        return False

    def take(self) -> list[tuple[int, damon_access_report | Records]]:
        """Everything that was pushed so far, each lane in order; only the kdamond may call this."""
        taken: list[tuple[int, damon_access_report | Records]] = []
        for lane in self._lanes:
            if lane.entries:
                taken += lane.take()
            elif not lane.producer.is_alive():
                self._retire(lane)
        return taken

    def _retire(self, lane: _lane) -> None:
        with self._lanes_lock:
            self._forget(lane)

    def _forget(self, lane: _lane) -> None:
        """Forget the lane of a producer that ended, if it is empty, but not its counters."""
        source = lane.producer
        # An ended producer pushes no more; so check for its end first, then for an empty lane.
        if source.is_alive() or lane.entries or lane not in self._lanes:
            return
        self._lanes = tuple(other for other in self._lanes if other is not lane)
        if isinstance(source, ReportSource):
            del self._of_sources[source]
            if source.user is not None:
                user = self._users[source.user]
                user.lanes.remove(lane)
                if not user.lanes:
                    del self._users[source.user]
        self._gone.accepted += lane.pushed
        self._gone.ineligible += lane.ineligible
        self._gone.dropped += lane.dropped

    def snapshot(self) -> ReportCounters:
        """The counters now; ``pending`` makes the sum right."""
        # Read the counters of fates first, the total last: so ``pending`` is never negative.
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
