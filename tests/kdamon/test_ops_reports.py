# SPDX-License-Identifier: GPL-2.0-only
"""The operations set for reports alone: a producer of reports is all that every feature of the core needs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attrs import asdict, evolve

from kdamon.core import (
    damon_add_scheme,
    damon_add_target,
    damon_call,
    damon_commit_ctx,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_set_regions,
    damon_start,
    damon_stop,
    damos_walk,
    report_counters,
    run_ctx,
    validate_ctx,
)
from kdamon.damon import (
    damon_addr_range,
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_intervals_goal,
    damon_ops_id,
    damon_region,
    damos,
    damos_access_pattern,
    damos_action,
    damos_quota,
    damos_walk_control,
)
from kdamon.kernel import VirtualClock
from kdamon.lib.once import warn_once
from kdamon.regions import Regions
from kdamon.reports.deliver import report_accesses
from kdamon.reports.record import report_array
from tests.support.contexts import MS, bytes_of, in_kdamond, recorded
from tests.support.waiting import eventually

MIB = 1 << 20
PID = 4_194_305  # more than any process has
BASE = 0x7F00_0000_0000
SPACE = (BASE, BASE + 1024 * MIB)
HOT = (BASE + 256 * MIB, BASE + 320 * MIB)


class ProducerClock(VirtualClock):
    """While the kdamond sleeps, accesses are made; ``produce`` gets the time of their end."""

    def __init__(self, produce: Callable[[int], None]) -> None:
        super().__init__()
        self._produce = produce

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        super().sleep_until(deadline, wake)
        self._produce(self.now())


class Producer:
    """Reports accesses to random pages of some range, so many at each call."""

    def __init__(self, pid: int = PID, where: tuple[int, int] = HOT, n: int = 500) -> None:
        self.pid, self.where, self.n = pid, where, n
        self._rng = np.random.default_rng(1)

    def __call__(self, now: int = 0) -> None:
        start, end = self.where
        pages = self._rng.integers(start // 4096, end // 4096, self.n, np.uint64)
        report_accesses(report_array(self.n, pid=self.pid, addr=pages * np.uint64(4096), size=8))


def reports_ctx(*targets: tuple[int, list[tuple[int, int]]], seed: int = 1, **attrs: Any) -> damon_ctx:
    """A context without machine; ``targets`` are numbers and ranges."""
    ctx = damon_new_ctx(seed)
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_REPORTS)
    damon_set_attrs(ctx, damon_attrs(**({"sample_interval": 1000, "aggr_interval": 20_000} | attrs)))
    for pid, ranges in targets or [(PID, [SPACE])]:
        t = damon_new_target()
        t.pid = pid
        damon_set_regions(t, [damon_addr_range(start, end) for start, end in ranges], ctx.min_region_sz)
        damon_add_target(ctx, t)
    return ctx


def hot_bytes(regions: Regions, where: tuple[int, int]) -> tuple[float, float]:
    """Which shares of ``where``, and of all the rest, have at least half of the possible accesses of 20."""
    hot = regions.nr_accesses >= 10
    size = regions.sizes().astype(np.float64)
    start, end = (np.clip(edge, *where).astype(np.float64) for edge in (regions.start, regions.end))
    inside = end - start
    total = where[1] - where[0]
    return inside[hot].sum() / total, (size - inside)[hot].sum() / (size.sum() - total)


def test_reports_alone_show_what_is_hot() -> None:
    """Of a process that does not exist; regions are merged and split to fit, get older, and stay within limits."""
    ctx = reports_ctx()
    ctx.clock = ProducerClock(Producer())
    with recorded(ctx) as recorder:
        run_ctx(ctx, 3)
    assert 150 == len(recorder.snapshots)
    for snapshot in recorder.snapshots:
        assert SPACE == (snapshot.regions.start[0], snapshot.regions.end[-1])
        assert SPACE[1] - SPACE[0] == snapshot.regions.total()
        assert 10 <= len(snapshot.regions) <= 1000
        found, wrong = hot_bytes(snapshot.regions, HOT)
        if snapshot.sis > 1000:
            assert found > 0.9
            assert wrong < 0.03
    assert int(recorder.snapshots[-1].regions.age.max()) > 50
    counters = report_counters(ctx)
    assert (1_500_000, 0, 0) == (counters.accepted, counters.late, counters.dropped)
    assert counters.applied + counters.straddling == counters.accepted


def test_the_same_reports_give_the_same_regions() -> None:
    """In simulated time with one seed, bit for bit; another seed splits elsewhere."""

    def run(seed: int) -> list[bytes]:
        ctx = reports_ctx(seed=seed)
        ctx.clock = ProducerClock(Producer())
        with recorded(ctx) as recorder:
            run_ctx(ctx, 0.5)
        return [bytes_of(snapshot.regions) for snapshot in recorder.snapshots]

    assert run(7) == run(7) != run(8)


def test_targets_are_told_apart_by_the_number_in_reports() -> None:
    """Two with the same addresses, and reports on a third number that is no target."""
    cold = (BASE + 512 * MIB, BASE + 576 * MIB)
    producers = [Producer(1, HOT), Producer(2, cold), Producer(3, SPACE)]
    ctx = reports_ctx((1, [SPACE]), (2, [SPACE]))
    ctx.clock = ProducerClock(lambda now: [producer(now) for producer in producers] and None)
    with recorded(ctx) as recorder:
        run_ctx(ctx, 2)
    one, two = ([s.regions for s in recorder.snapshots if s.target == target][-1] for target in range(2))
    for regions, where in ((one, HOT), (two, cold)):
        found, wrong = hot_bytes(regions, where)
        assert found > 0.9
        assert wrong < 0.03
    assert 2000 * 500 == report_counters(ctx).ineligible


def test_without_regions_every_report_is_outside() -> None:
    """They have to be given: only the user knows them."""
    ctx = reports_ctx((PID, []))
    ctx.clock = ProducerClock(Producer())
    run_ctx(ctx, 0.1)
    assert {"accepted": 50_000, "outside": 50_000} == {name: n for name, n in asdict(report_counters(ctx)).items() if n}


def test_a_scheme_counts_what_it_wants() -> None:
    """Of the hot memory, once it has been hot for a while."""
    ctx = reports_ctx()
    pattern = damos_access_pattern(min_nr_accesses=15, min_age_region=5)
    damon_add_scheme(ctx, damos(pattern))
    ctx.clock = ProducerClock(Producer())
    run_ctx(ctx, 2)
    stat = ctx.schemes[0].stat
    # Snapshots are applications that found something.
    assert stat.nr_snapshots > 50
    assert 40 * MIB < stat.sz_tried / stat.nr_snapshots < 100 * MIB


def test_a_quota_holds_and_a_walk_shows_what_it_lets_pass() -> None:
    """No more in a window than is allowed, and only of what reports made hot."""
    ctx = reports_ctx()
    allowed, window_ms = 8 * MIB, 100
    pattern = damos_access_pattern(min_nr_accesses=15)
    damon_add_scheme(ctx, damos(pattern, quota=damos_quota(sz=allowed, reset_interval=window_ms)))
    tried: list[list[damon_region]] = []

    def produce(now: int) -> None:
        producer(now)
        if now > 1000 * MS and ctx.walk_control is None:
            tried.append([])
            ctx.walk_control = damos_walk_control(lambda data, c, t, r, s, passed: data.append(r), tried[-1])

    producer = Producer()
    ctx.clock = ProducerClock(produce)
    run_ctx(ctx, 2)
    stat = ctx.schemes[0].stat
    assert 0 < stat.sz_tried <= (stat.qt_exceeds + 1) * allowed
    assert stat.qt_exceeds >= 8
    walked = [r for regions in tried for r in regions]
    assert walked
    assert all(r.nr_accesses >= 15 and HOT[0] - 4 * MIB < r.start < r.end < HOT[1] + 4 * MIB for r in walked)


def test_other_actions_are_applied_to_nothing_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Reports are about numbers, not about known processes. Regions are selected all the same."""
    ctx = reports_ctx()
    damon_add_scheme(ctx, damos(damos_access_pattern(max_nr_accesses=0), damos_action.DAMOS_PAGEOUT))
    ctx.clock = ProducerClock(Producer())
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        run_ctx(ctx, 0.5)
    stat = ctx.schemes[0].stat
    assert stat.nr_tried > 0 == stat.nr_applied == stat.sz_applied
    assert ["pageout has no effect"] == [record.getMessage().split(":")[0] for record in caplog.records]


def test_tuning_finds_intervals_for_the_wanted_share_of_accesses() -> None:
    """A sixteenth of the space is accessed: to observe less than that the intervals get as short as they may."""
    for access_bp, expected, seconds in ((5000, 50_000, 8), (50, 500, 1)):
        goal = damon_intervals_goal(access_bp, 3, 500, 50_000)
        ctx = reports_ctx(intervals_goal=goal)
        ctx.clock = ProducerClock(Producer())
        with recorded(ctx) as recorder:
            run_ctx(ctx, seconds)
        assert expected == recorder.tuned[-1]
        validate_ctx(ctx)


def test_a_commit_changes_everything_while_it_runs() -> None:
    """Intervals, ranges, and a second target; what is known of what stays is kept."""
    producer, second = Producer(), Producer(2, (HOT[0], HOT[0] + MIB))
    ctx = reports_ctx()
    commits: list[int] = []

    def commit(_data: object) -> None:
        if not commits:
            commits.append(ctx.passed_sample_intervals)
            ranges = [(BASE, BASE + 512 * MIB)]
            damon_commit_ctx(ctx, reports_ctx((PID, ranges), (2, [SPACE]), sample_interval=2000, aggr_interval=40_000))

    def produce(now: int) -> None:
        producer(now)
        second(now)
        if now == 1000 * MS:
            damon_call(ctx, damon_call_control(commit, repeat=True))

    ctx.clock = ProducerClock(produce)
    with recorded(ctx) as recorder:
        run_ctx(ctx, 3)
    assert [1000] == commits
    last = [[s for s in recorder.snapshots if s.target == target][-1] for target in range(2)]
    assert [2000, 2000] == [s.sample_us for s in last]
    assert (BASE, BASE + 512 * MIB) == (last[0].regions.start[0], last[0].regions.end[-1])
    assert SPACE == (last[1].regions.start[0], last[1].regions.end[-1])
    assert hot_bytes(last[0].regions, HOT)[0] > 0.9
    assert hot_bytes(last[1].regions, second.where)[0] > 0.5
    # Ages are counted in aggregation intervals, which are twice as long now.
    assert int(last[0].regions.age.max()) > 25


def test_reports_during_a_pause_are_late_afterwards() -> None:
    """Nothing is monitored then, and nothing of it counts when the pause is over."""
    producer = Producer()
    ctx = reports_ctx()
    kept: list[bytes] = []

    def produce(now: int) -> None:
        producer(now)
        if now == 500 * MS:
            ctx.pause = True
        if now in (510 * MS, 990 * MS):
            kept.append(bytes_of(ctx.adaptive_targets[0].regions))
        if now == 1000 * MS:
            ctx.pause = False

    ctx.clock = ProducerClock(produce)
    run_ctx(ctx, 1.5)
    counters = report_counters(ctx)
    assert kept[0] == kept[1]
    assert 500 * 500 == counters.late
    assert counters.accepted == counters.late + counters.applied + counters.straddling


@pytest.fixture
def live() -> Any:
    """A context that runs in real time, and its producer, a thread."""
    ctx = reports_ctx(sample_interval=2000, aggr_interval=40_000)
    producer, stop = Producer(n=200), threading.Event()

    def produce() -> None:
        while not stop.wait(0.001):
            producer()

    thread = threading.Thread(target=produce)
    damon_start([ctx], exclusive=False)
    thread.start()
    yield ctx
    stop.set()
    thread.join()
    damon_stop([ctx])


def test_in_real_time_walks_calls_and_commits_work(live: damon_ctx) -> None:
    """As for any other set: the tried regions are the hot ones, and it runs until it is stopped."""

    def commit_scheme() -> None:
        new = reports_ctx((PID, []), sample_interval=2000, aggr_interval=40_000)
        damon_add_scheme(new, damos(damos_access_pattern(min_nr_accesses=10)))
        damon_commit_ctx(live, new)

    in_kdamond(live, commit_scheme)

    def walk() -> list[damon_region]:
        tried: list[damon_region] = []
        damos_walk(live, damos_walk_control(lambda data, c, t, r, s, passed: data.append(r), tried))
        return tried

    def found() -> bool:
        size = sum(max(0, min(r.end, HOT[1]) - max(r.start, HOT[0])) for r in walk())
        return size > 0.8 * (HOT[1] - HOT[0])

    eventually(found, "the hot range in the tried regions")
    in_kdamond(live, lambda: damon_set_attrs(live, evolve(live.attrs, aggr_interval=80_000)))
    counters = report_counters(live)
    assert counters.applied > 0
    assert 0 == counters.dropped
