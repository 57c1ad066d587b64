# SPDX-License-Identifier: GPL-2.0-only
"""Room for the reports of many producers of many users, in any order of what may happen: sums and limits."""

from __future__ import annotations

import threading
from unittest.mock import patch

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kdamon.kernel import RealClock
from kdamon.reports import deliver as reports_module
from kdamon.reports.deliver import report_accesses, subscribe_reports, unsubscribe_reports
from kdamon.reports.queue import _LEAST_ROOM, ReportQueue, ReportSource
from kdamon.reports.record import report_array
from tests.support.tables import effort
from tests.support.waiting import eventually

CAP = 400
PIDS = (7, 8, 9)
USERS = (None, 1, 2, 3)


class Machine(RuleBasedStateMachine):
    """Producers come, report, and go, while a context changes its targets and takes what there is now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = ReportQueue(RealClock())
        self.alive: list[ReportSource] = []
        self.seen: list[ReportSource] = []
        self.passed_on = 0
        self.ineligible = 0
        self.taken = 0
        self.most_at_a_time = 0

    @initialize()
    def begin(self) -> None:
        self.patched = patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", CAP)
        self.patched.start()
        subscribe_reports(self.queue)

    def teardown(self) -> None:
        unsubscribe_reports(self.queue)
        self.patched.stop()

    @rule(user=st.sampled_from(USERS))
    def come(self, user: int | None) -> None:
        source = ReportSource(user)
        self.alive.append(source)
        self.seen.append(source)
        self.most_at_a_time = max(self.most_at_a_time, len(self.alive))

    @precondition(lambda self: self.alive)
    @rule(which=st.randoms(use_true_random=False))
    def go(self, which: object) -> None:
        self.alive.pop(which.randrange(len(self.alive))).close()  # type: ignore[attr-defined]

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 10), n=st.integers(0, 500), pid=st.sampled_from(PIDS))
    def report(self, which: int, n: int, pid: int) -> None:
        source = self.alive[which % len(self.alive)]
        source.share = sum(other.user == source.user for other in self.alive) if source.user is not None else 1
        lost = source.lost
        report_accesses(report_array(n, pid=pid), source)
        self.passed_on += n
        if self.queue.pids is not None and pid not in self.queue.pids:
            self.ineligible += n
            assert lost == source.lost

    @rule(user=st.sampled_from(USERS), n=st.integers(CAP // 2, 2 * CAP))
    def visit(self, user: int | None, n: int) -> None:
        """Others go; one comes, reports, and goes."""
        while self.alive:
            self.alive.pop().close()
        self.come(user)
        self.report(0, n, PIDS[0])
        self.alive.pop().close()

    @rule(pids=st.sampled_from([None, frozenset({7}), frozenset({7, 8}), frozenset()]))
    def choose(self, pids: frozenset[int] | None) -> None:
        self.queue.pids = pids

    @rule()
    def take(self) -> None:
        taken = sum(len(entry) for _, entry in self.queue.take())  # type: ignore[arg-type]
        self.taken += taken
        self.queue.counters.applied += taken

    @invariant()
    def sums(self) -> None:
        """What was passed on was accepted or dropped; what was dropped is its producers' loss."""
        counters = self.queue.snapshot()
        lost = sum(source.lost for source in self.seen)
        assert (self.passed_on, lost) == (counters.accepted + counters.dropped, counters.dropped)
        assert (self.ineligible, self.taken) == (counters.ineligible, counters.applied)
        assert counters.pending == sum(len(entry) for lane in self.queue._lanes for _, entry in lane.entries)  # type: ignore[arg-type]

    @invariant()
    def limits(self) -> None:
        """Room is what the entries take, a user has its part at most, and all of them so much together."""
        used = dict.fromkeys(USERS, 0)
        for lane in self.queue._lanes:
            assert isinstance(lane.producer, ReportSource)
            used[lane.producer.user] += sum(max(len(entry), _LEAST_ROOM) for _, entry in lane.entries)  # type: ignore[arg-type]
        assert {user: each.room.used for user, each in self.queue._users.items()} == {
            user: used[user] for user in self.queue._users
        }
        del used[None]
        assert sum(used.values()) == self.queue._of_users.used <= 2 * CAP
        assert max(used.values()) <= CAP
        assert sum(lane.producer.user is not None for lane in self.queue._lanes) <= len(USERS) * self.most_at_a_time  # type: ignore[union-attr]

    @rule()
    def end(self) -> None:
        """Nothing is left of producers that ended once everything was taken."""
        while self.alive:
            self.alive.pop().close()
        self.take()
        self.take()
        assert ((), {}, {}) == (self.queue._lanes, self.queue._users, self.queue._of_sources)


Machine.TestCase.settings = effort(60, stateful_step_count=40)
TestRoom = Machine.TestCase


def test_a_kdamond_takes_while_producers_come_and_go() -> None:
    """Lanes are forgotten and handed on by two threads, and no report is counted twice or not at all."""
    queue = ReportQueue(RealClock())
    ended = threading.Event()
    taken = [0]

    def kdamond() -> None:
        while not ended.is_set() or queue._lanes:
            taken[0] += sum(len(entry) for _, entry in queue.take())  # type: ignore[arg-type]

    thread = threading.Thread(target=kdamond)
    subscribe_reports(queue)
    try:
        thread.start()
        sources = []
        for i in range(3000):
            source = ReportSource(i % 7 or None)
            sources.append(source)
            for _ in range(3):
                report_accesses(report_array(5), source)
            if i % 3:
                source.close()
        for source in sources:
            source.close()
        ended.set()
        eventually(lambda: not thread.is_alive(), "the end of all lanes")
    finally:
        ended.set()
        unsubscribe_reports(queue)
    lost = sum(source.lost for source in sources)
    assert (3000 * 15, taken[0]) == (taken[0] + lost, queue.snapshot().accepted)
    assert ({}, 0) == (queue._users, queue._of_users.used)
