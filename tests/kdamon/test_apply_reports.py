# SPDX-License-Identifier: GPL-2.0-only
"""Access reports: none is lost silently, none counts twice, and each counter says what it says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from attrs import asdict

from kdamon.core import (
    damon_add_scheme,
    damon_start,
    damon_stop,
    report_counters,
    run_ctx,
    validate_ctx,
)
from kdamon.damon import (
    ReportCounters,
    damon_access_report,
    damon_call_control,
    damon_ctx,
    damon_target,
    damos,
    damos_watermarks,
    damos_wmark_metric,
)
from kdamon.mm.sim.machine import SimMachine
from kdamon.regions import Regions
from kdamon.reports import deliver as reports_module
from kdamon.reports.deliver import damon_report_access, report_accesses
from kdamon.reports.record import REPORT_DTYPE, report_array
from kdamon.vaddr import damon_va_eligible_report
from tests.support.contexts import (
    MS,
    SteppedClock,
    WorkClock,
    first,
    plain_ctx,
    recorded,
    report_ops,
    sim_ctx,
    stepped,
    stopped,
)
from tests.support.waiting import eventually

Reporter = Callable[[damon_access_report], None]


def as_batch(report: damon_access_report) -> None:
    """Report one access by the batch form."""
    report_accesses(np.array([tuple(asdict(report).values())], REPORT_DTYPE))


def report(addr: int, size: int = 1, pid: int = 0, **more: Any) -> damon_access_report:
    return damon_access_report(pid=pid, addr=addr, size=size, **more)


def counted(ctx: damon_ctx) -> dict[str, int]:
    """The counters that are not zero."""
    counters: ReportCounters = report_counters(ctx)
    assert counters.accepted == sum(asdict(counters).values()) - counters.accepted - counters.dropped
    return {name: n for name, n in asdict(counters).items() if n}


def scripted(
    script: dict[int, list[damon_access_report]],
    send: Reporter = damon_report_access,
    ranges: tuple[tuple[int, int], ...] = ((0, 1000), (1000, 2000), (5000, 6000)),
    ticks: int = 10,
    **more: Any,
) -> tuple[damon_ctx, list[list[int]]]:
    """Report ``script[i]`` in sampling interval ``i``; returns the nr_accesses after each."""
    seen: list[list[int]] = []

    def prepare(ctx: damon_ctx) -> None:
        if ctx.passed_sample_intervals:
            seen.append(first(ctx).regions.nr_accesses.tolist())
        for r in script.get(ctx.passed_sample_intervals, []):
            send(r)

    ops = more.pop("ops", {})
    counts = more.pop("report_counts", False)
    ctx = plain_ctx(*ranges, ops=report_ops(prepare_access_checks=prepare, **ops), aggr_interval=50_000, **more)
    ctx.clock = WorkClock()
    ctx.report_counts = counts
    run_ctx(ctx, ticks / 1000)
    return ctx, seen


both_forms = pytest.mark.parametrize("send", [damon_report_access, as_batch])


@both_forms
def test_a_report_counts_for_the_region_that_contains_it(send: Reporter) -> None:
    """From its first byte to its last one; nothing but reports is needed to monitor."""
    script = {0: [report(0), report(1999)], 1: [report(1000, 1000), report(5999)], 3: [report(1500)]}
    ctx, seen = scripted(script, send)
    assert [[1, 1, 0], [1, 2, 1], [1, 2, 1], [1, 3, 1]] == seen[:4]
    assert {"accepted": 5, "applied": 5} == counted(ctx)


@both_forms
def test_a_region_counts_once_in_a_sampling_interval(send: Reporter) -> None:
    """However many reports there are, and however often they say the access was made."""
    ctx, seen = scripted({0: [report(5), report(6, nr_accesses=7), report(5)], 1: [report(5)]}, send)
    assert [[1, 0, 0], [2, 0, 0]] == seen[:2]
    assert {"accepted": 4, "applied": 4} == counted(ctx)


@both_forms
@pytest.mark.parametrize(
    ("addr", "size", "fate"),
    [
        (999, 2, "straddling"),
        (0, 1001, "straddling"),
        (1999, 2, "straddling"),
        (4999, 2, "straddling"),
        (3000, 5000, "straddling"),
        (1000, 10**6, "straddling"),
        (2000, 1, "outside"),
        (4999, 1, "outside"),
        (6000, 1, "outside"),
        (2**64 - 1, 1, "outside"),
        # These end after the last address.
        (2**64 - 1, 10, "outside"),
        (1500, 2**64 - 1, "straddling"),
        (1500, 2**64 - 1400, "straddling"),
        (3000, 2**64 - 2900, "straddling"),
    ],
)
def test_what_no_region_contains_is_counted_as_such(send: Reporter, addr: int, size: int, fate: str) -> None:
    """Also what wraps around: the kernel's sum could find it inside a region."""
    ctx, seen = scripted({0: [report(addr, size)]}, send)
    assert {"accepted": 1, fate: 1} == counted(ctx)
    assert [0, 0, 0] == seen[-1]


@both_forms
def test_reports_about_processes_are_not_for_physical_memory(send: Reporter) -> None:
    ctx, seen = scripted({0: [report(5, pid=1), report(5, pid=-1), report(1005, pid=0)]}, send)
    assert {"accepted": 3, "applied": 1, "ineligible": 2} == counted(ctx)
    assert [0, 1, 0] == seen[0]


@both_forms
def test_an_operations_set_says_which_reports_it_may_use(send: Reporter) -> None:
    """For one target or the other; by any field of a report."""

    def eligible(report: Any, t: damon_target) -> Any:
        return (report.write == (t.pid == 1)) & (report.node_id == 3) & (report.cpu < 2)

    seen: list[list[int]] = []

    def prepare(ctx: damon_ctx) -> None:
        seen.append([int(t.regions.nr_accesses[0]) for t in ctx.adaptive_targets])
        if ctx.passed_sample_intervals == 0:
            send(report(5, write=True, node_id=3, cpu=1))
        if ctx.passed_sample_intervals == 1:
            send(report(5, write=False, node_id=3, cpu=1))
            send(report(5, write=False, node_id=3, cpu=2))
            send(report(5, write=True, node_id=0))

    ctx = plain_ctx((0, 1000), ops=report_ops(prepare_access_checks=prepare, eligible_report=eligible))
    ctx.adaptive_targets.append(damon_target(pid=1, regions=Regions([0], [1000])))
    ctx.clock = WorkClock()
    run_ctx(ctx, 0.004)
    assert [[0, 0], [0, 1], [1, 1], [1, 1]] == seen
    assert {"accepted": 4, "applied": 2, "ineligible": 2} == counted(ctx)


def test_a_report_that_two_targets_contain_is_applied_once() -> None:
    """It counts for both, and as one report."""
    seen: list[list[int]] = []

    def prepare(ctx: damon_ctx) -> None:
        seen.append([t.regions.nr_accesses.tolist()[0] for t in ctx.adaptive_targets])
        if not ctx.passed_sample_intervals:
            damon_report_access(report(50))
            damon_report_access(report(150, size=2))

    ctx = plain_ctx((0, 100), ops=report_ops(prepare_access_checks=prepare))
    ctx.adaptive_targets.append(damon_target(regions=Regions([0], [1000])))
    ctx.adaptive_targets.append(damon_target(regions=Regions([140], [151])))
    # The edge of a region goes through the second report here.
    ctx.adaptive_targets.append(damon_target(regions=Regions([151], [160])))
    ctx.clock = WorkClock()
    run_ctx(ctx, 0.002)
    assert [1, 1, 0, 0] == seen[1]
    assert {"accepted": 2, "applied": 2} == counted(ctx)


def test_a_target_without_regions_has_everything_outside() -> None:
    ctx, _ = scripted({0: [report(5)]}, ranges=())
    assert {"accepted": 1, "outside": 1} == counted(ctx)


@both_forms
def test_the_first_versions_rule_adds_up_what_was_reported(send: Reporter) -> None:
    """With report_counts; never above the samples of an aggregation interval, never downwards."""
    script = {
        0: [report(5, nr_accesses=3), report(6, nr_accesses=4), report(1005, nr_accesses=-9)],
        1: [report(5, nr_accesses=42), report(1005, nr_accesses=50), report(5005, nr_accesses=51)],
        2: [report(5, nr_accesses=2**31 - 1)] * 3,
    }
    ctx, seen = scripted(script, send, report_counts=True)
    assert [[7, 0, 0], [49, 50, 50], [50, 50, 50]] == seen[:3]
    assert {"accepted": 9, "applied": 9} == counted(ctx)


@pytest.mark.parametrize("report_counts", [False, True])
def test_a_report_and_a_sample_of_one_access_are_one(report_counts: bool) -> None:
    """In one sampling interval; in another one the sample counts again. The samples stay the limit."""

    def check(ctx: damon_ctx) -> None:
        from kdamon.core import damon_update_region_access_rate

        damon_update_region_access_rate(first(ctx).regions, np.array([True, True, False]))
        validate_after.append(ctx.passed_sample_intervals)

    validate_after: list[int] = []
    ctx, seen = scripted(
        {0: [report(5)], 1: [report(5), report(5005)]}, ops={"check_accesses": check}, report_counts=report_counts
    )
    assert [[1, 1, 0], [2, 2, 1], [3, 3, 1]] == seen[:3]
    assert {"accepted": 3, "applied": 3} == counted(ctx)


@pytest.mark.parametrize("early", [0, 30])
def test_counts_and_samples_together_stay_within_the_samples(early: int) -> None:
    """A report of as many accesses as there are samples leaves no room for those of the samples that follow."""

    def check(ctx: damon_ctx) -> None:
        from kdamon.core import damon_update_region_access_rate

        damon_update_region_access_rate(first(ctx).regions, np.ones(len(first(ctx).regions), np.bool_))

    script = {early: [report(5, nr_accesses=1000)]}

    def prepare(ctx: damon_ctx) -> None:
        validate_ctx(ctx)
        for r in script.get(ctx.passed_sample_intervals, []):
            damon_report_access(r)

    ctx = plain_ctx((0, 10), ops=report_ops(prepare_access_checks=prepare, check_accesses=check), aggr_interval=50_000)
    ctx.report_counts = True
    ctx.clock = WorkClock()
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.100)
    assert [50, 50] == [int(s.regions.nr_accesses.max()) for s in recorder.snapshots]


# When.


def test_a_kdamond_that_comes_late_counts_what_it_finds() -> None:
    """Its sampling interval lasted until then; each region gets one access for it, as for any other."""
    ctx = plain_ctx((0, 1000))
    with stepped(ctx) as clock:
        damon_report_access(report(1))
        report_accesses(report_array(3, addr=[5, 6, 7]))
        clock.work(10_000 * MS)
        damon_report_access(report(2))
        clock.step()
        assert {"accepted": 5, "applied": 5} == counted(ctx)
        assert 1 == int(first(ctx).regions.nr_accesses[0])
        assert ctx.missed_intervals > 9000


def test_reports_of_a_pause_are_late() -> None:
    ctx = plain_ctx((0, 1000))
    with stepped(ctx) as clock:
        ctx.pause = True
        clock.step()
        damon_report_access(report(1))
        clock.step()
        assert {"accepted": 1, "late": 1} == counted(ctx)
        damon_report_access(report(2))
        ctx.pause = False
        clock.step()
        damon_report_access(report(3))
        clock.step()
        assert {"accepted": 3, "late": 2, "applied": 1} == counted(ctx)


def test_reports_after_the_call_that_ends_a_pause_count() -> None:
    """What a caller does once its call was made is after the pause."""
    ctx = plain_ctx((0, 1000))

    def go_on(_: object) -> None:
        ctx.pause = False
        damon_report_access(report(1))

    with stepped(ctx) as clock:
        ctx.pause = True
        clock.step()
        ctx.call_controls.append(damon_call_control(go_on))
        clock.step()
        clock.step()
        assert {"accepted": 1, "applied": 1} == counted(ctx)


def test_reports_while_all_schemes_are_inactive_are_late() -> None:
    """Nothing is monitored then; the first interval after it counts again."""
    machine = SimMachine()
    ctx = plain_ctx((0, 1000))
    damon_add_scheme(ctx, damos(wmarks=damos_watermarks(damos_wmark_metric.DAMOS_WMARK_FREE_MEM_RATE, 50_000, 2, 2, 0)))
    ctx.machine = machine
    clock = SteppedClock()
    ctx.clock = clock
    with stopped(ctx):
        machine.metrics["free_mem_rate"] = 1
        damon_start([ctx], exclusive=False)
        clock.wait_asleep()
        damon_report_access(report(1))
        machine.metrics["free_mem_rate"] = 1000
        clock.step()
        assert {"accepted": 1, "applied": 1} == counted(ctx)
        damon_report_access(report(2))
        clock.step()
        damon_report_access(report(3))
        machine.metrics["free_mem_rate"] = 1
        clock.step()
        assert {"accepted": 3, "applied": 1, "late": 2} == counted(ctx)
        damon_report_access(report(4))
        clock.step()
        assert {"accepted": 4, "applied": 2, "late": 2} == counted(ctx)


def test_only_running_contexts_receive_reports() -> None:
    """Neither before the start nor after the end; a new run counts from zero."""
    ctx = plain_ctx((0, 1000))
    assert {} == counted(ctx)
    clock = SteppedClock()
    ctx.clock = clock
    damon_report_access(report(1))
    with stepped(ctx):
        assert {} == counted(ctx)
        damon_report_access(report(1))
        clock.step()
        assert {"accepted": 1, "applied": 1} == counted(ctx)
        damon_report_access(report(1))
    damon_report_access(report(1))
    assert {"accepted": 2, "applied": 1, "pending": 1} == counted(ctx)
    ctx.clock = WorkClock()
    run_ctx(ctx, 0.001)
    assert {} == counted(ctx)


def test_each_context_sees_each_report_exactly_once() -> None:
    """At its own pace: one samples five times as often as the other."""
    ctxs = [plain_ctx((0, 1000), sample_interval=us, aggr_interval=10**9) for us in (1000, 5000)]
    clocks = [SteppedClock(), SteppedClock()]
    for ctx, clock in zip(ctxs, clocks, strict=True):
        ctx.clock = clock
    with stopped(*ctxs):
        damon_start(ctxs, exclusive=False)
        for clock in clocks:
            clock.wait_asleep()
        for i in range(20):
            damon_report_access(report(i))
            report_accesses(report_array(2, addr=[i, 10**6]))
            clocks[0].step()
            if i % 5 == 4:
                clocks[1].step()
        for ctx in ctxs:
            assert {"accepted": 60, "applied": 40, "outside": 20} == counted(ctx)
        assert [20, 4] == [int(first(ctx).regions.nr_accesses[0]) for ctx in ctxs]


# Virtual address spaces.


def test_vaddr_uses_the_reports_about_its_process() -> None:
    """One report or a batch of them; not those of physical memory, nor of other processes."""
    t = damon_target(pid=7)
    assert damon_va_eligible_report(report(0, pid=7), t)
    assert not damon_va_eligible_report(report(0, pid=8), t)
    batch = report_array(4, pid=[7, 0, 8, 7]).view(np.recarray)
    assert [True, False, False, True] == damon_va_eligible_report(batch, t).tolist()


def test_vaddr_counts_samples_and_reports_together() -> None:
    """What the samples see at the page table, and what was reported, each once in a sampling interval."""
    machine = SimMachine()
    process = machine.spawn([(0x1000, 0x9000), (0x100000, 0x180000), (0x700000, 0x708000)], pid=42)
    process.access(0x100000, 0x140000)
    ctx = sim_ctx(process, machine)

    assert ctx.ops is not None
    prepare = ctx.ops.prepare_access_checks
    assert prepare is not None

    def prepare_and_report(ctx: damon_ctx) -> None:
        prepare(ctx)
        for addr, pid in ((0x100800, 42), (0x700800, 42), (0x1800, 0), (0x1800, 43)):
            damon_report_access(report(addr, pid=pid))

    with patch.object(ctx.ops, "prepare_access_checks", prepare_and_report), recorded(ctx) as recorder:
        run_ctx(ctx, 1)
    for snapshot in recorder.snapshots[1:]:
        regions = snapshot.regions
        by_start = {regions.region(i).start: regions.region(i) for i in range(len(regions))}
        assert 0 == by_start[0x1000].nr_accesses
        assert 20 == by_start[0x100000].nr_accesses
        assert 20 == by_start[0x700000].nr_accesses
    assert {"accepted": 800, "applied": 400, "ineligible": 400} == counted(ctx)


# Nothing is lost.


def test_what_does_not_fit_is_counted_as_dropped() -> None:
    """The newest go; of a batch the first ones that fit are taken; room comes back with the next sampling interval."""
    with patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", 10):
        ctx = plain_ctx((0, 1000))
        with stepped(ctx) as clock:
            for i in range(6):
                damon_report_access(report(i))
            report_accesses(report_array(8, addr=[100] * 4 + [10**6] * 4))
            assert {"accepted": 10, "dropped": 4, "pending": 10} == counted(ctx)
            damon_report_access(report(1))
            report_accesses(report_array(2))
            assert {"accepted": 10, "dropped": 7, "pending": 10} == counted(ctx)
            clock.step()
            assert {"accepted": 10, "applied": 10, "dropped": 7} == counted(ctx)
            damon_report_access(report(1))
            clock.step()
            assert {"accepted": 11, "applied": 11, "dropped": 7} == counted(ctx)


def test_each_thread_has_its_own_room() -> None:
    with patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", 5):
        ctx = plain_ctx((0, 1000))
        with stepped(ctx) as clock:
            threads = [
                threading.Thread(target=lambda n=n: [damon_report_access(report(1)) for _ in range(n)])
                for n in (3, 5, 8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert {"accepted": 13, "dropped": 3, "pending": 13} == counted(ctx)
            clock.step()
            # The threads are gone, what they reported is not.
            clock.step()
            clock.step()
            assert () == ctx.reports._lanes
            assert {"accepted": 13, "applied": 13, "dropped": 3} == counted(ctx)


def test_nothing_is_lost_from_many_threads_at_once() -> None:
    """Single reports and batches from threads that come and go, into two contexts that work meanwhile."""
    ctxs = [plain_ctx((0, 1000), (2000, 3000), sample_interval=500, aggr_interval=5000) for _ in range(2)]
    per_thread, threads_at_once, generations = 300, 4, 15
    inconsistent: list[ReportCounters] = []
    done = threading.Event()

    def produce(seed: int) -> None:
        rng = np.random.default_rng(seed)
        sent = 0
        while sent < per_thread:
            if rng.random() < 0.5:
                damon_report_access(report(int(rng.integers(0, 4000)), size=int(rng.integers(1, 100))))
                sent += 1
            else:
                n = min(int(rng.integers(1, 50)), per_thread - sent)
                report_accesses(report_array(n, addr=rng.integers(0, 4000, n), pid=rng.integers(0, 2, n)))
                sent += n

    def look() -> None:
        before = [0, 0]
        while not done.is_set():
            for i, ctx in enumerate(ctxs):
                counters = report_counters(ctx)
                if counters.accepted < before[i] or counters.pending < 0:
                    inconsistent.append(counters)
                before[i] = counters.accepted

    with stopped(*ctxs), patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", 200):
        damon_start(ctxs, exclusive=False)
        watcher = threading.Thread(target=look)
        watcher.start()
        for generation in range(generations):
            threads = [threading.Thread(target=produce, args=(10 * generation + i,)) for i in range(threads_at_once)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for ctx in ctxs:
            eventually(lambda ctx=ctx: report_counters(ctx).pending == 0, "the last report")
        done.set()
        watcher.join()
        for ctx in ctxs:
            counters = report_counters(ctx)
            assert per_thread * threads_at_once * generations == counters.accepted + counters.dropped
            assert counters.applied and counters.ineligible and counters.straddling and counters.outside
        assert [] == inconsistent


def test_counters_are_right_at_the_moment_when_a_threads_queue_is_removed() -> None:
    """A reader at that moment sees its reports exactly once."""
    ctx = plain_ctx((0, 1000))
    clock = SteppedClock()
    ctx.clock = clock
    seen: list[int] = []

    class Gone:
        """The counters of removed queues; looks at the sum whenever they are about to change."""

        dropped = ineligible = 0
        _accepted = 0

        @property
        def accepted(self) -> int:
            return self._accepted

        @accepted.setter
        def accepted(self, value: int) -> None:
            looker = threading.Thread(target=lambda: seen.append(report_counters(ctx).accepted))
            lookers.append(looker)
            looker.start()
            looker.join(0.1)
            self._accepted = value

    lookers: list[threading.Thread] = []
    with stepped(ctx):
        ctx.reports._gone = Gone()
        producer = threading.Thread(target=lambda: damon_report_access(report(1)))
        producer.start()
        producer.join()
        clock.step()
        clock.step()
        for looker in lookers:
            looker.join()
    assert [1] == seen


def test_batch_and_singles_are_the_same() -> None:
    """The same reports, one by one, all at once, and mixed: the same counters and the same regions."""
    rng = np.random.default_rng(4)
    n = 400
    batch = report_array(
        n,
        pid=rng.integers(0, 2, n),
        addr=rng.integers(0, 7000, n).astype(np.uint64),
        size=rng.choice([1, 64, 700], n),
        nr_accesses=rng.integers(0, 5, n),
    )
    singles = [damon_access_report(*row) for row in batch.tolist()]

    def one_by_one() -> None:
        for r in singles:
            damon_report_access(r)

    def mixed() -> None:
        report_accesses(batch[:100])
        for r in singles[100:200]:
            damon_report_access(r)
        report_accesses(batch[200:])

    results = []
    for send in (one_by_one, mixed, lambda: report_accesses(batch)):
        for counts in (False, True):
            ctx, seen = scripted({0: [None]}, send=lambda _, send=send: send(), report_counts=counts)  # type: ignore[list-item]
            results.append((counts, counted(ctx), seen))
    for counts in (False, True):
        assert 1 == len({str(r) for r in results if r[0] == counts})
    assert {"accepted", "applied", "ineligible", "straddling", "outside"} == set(results[0][1])


@pytest.mark.parametrize(
    "bad", [np.zeros(3), np.zeros(3, np.uint64), np.zeros((2, 2), REPORT_DTYPE), np.zeros(3, REPORT_DTYPE[["pid"]])]
)
def test_a_batch_has_the_reports_dtype(bad: Any) -> None:
    with pytest.raises(TypeError):
        report_accesses(bad)


def test_an_empty_batch_is_nothing() -> None:
    ctx, _ = scripted({0: [None]}, send=lambda _: report_accesses(report_array(0)))  # type: ignore[list-item]
    assert {} == counted(ctx)


def test_report_array_has_the_defaults_of_a_report() -> None:
    default = damon_access_report(pid=0, addr=0, size=1)
    assert [tuple(asdict(default).values())] * 2 == report_array(2).tolist()
    assert list(asdict(default)) == list(REPORT_DTYPE.names or ())


def test_reporting_without_anybody_who_listens_is_harmless() -> None:
    damon_report_access(report(1))
    report_accesses(report_array(3))
    damon_stop([])


@pytest.mark.parametrize(
    "bad", [report(-1), report(1 << 64), report(5, size=-1), report(5, pid=1 << 40), report("here")]
)
def test_a_report_that_no_field_can_hold_is_ineligible(bad: damon_access_report) -> None:
    """A producer's mistake must not end the monitoring, nor hide the good reports of the same interval."""
    ctx, seen = scripted({1: [report(5), bad, report(1005)]})
    assert ctx.kdamond_error is None
    assert {"accepted": 3, "applied": 2, "ineligible": 1} == counted(ctx)
    assert [1, 1, 0] == seen[1]
    ctx, _ = scripted({1: [bad]})
    assert {"accepted": 1, "ineligible": 1} == counted(ctx)
