# SPDX-License-Identifier: GPL-2.0-only
"""The kdamond's loop on simulated time: its order, its deadlines, what ends it, and that it is repeatable."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from attrs import evolve

from kdamon import core
from kdamon.core import damon_call, damon_commit_ctx, damon_is_running, damon_new_ctx, run_ctx, validate_ctx
from kdamon.damon import (
    damon_call_control,
    damon_ctx,
    damon_intervals_goal,
    damon_ops_id,
    damon_target,
    damos,
)
from kdamon.kernel import ULONG_MAX
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from tests.support.contexts import MS, Recorder, WorkClock, bytes_of, first, plain_ctx, recorded, report_ops, sim_ctx

GB = 1 << 30
TB = 1 << 40
#: Mappings with two gaps, as every process has them.
THREE = [(0x1000, 0x9000), (0x100000, 0x180000), (0x700000, 0x708000)]


# Order.


def traced_run(ms: int, **attrs: Any) -> list[str]:
    """What a kdamond with every callback does in ``ms`` milliseconds, in order."""
    log: list[str] = []

    def say(what: str) -> Callable[..., None]:
        return lambda *_: log.append(what)

    def init(ctx: damon_ctx) -> None:
        log.append("init")
        damon_call(ctx, damon_call_control(say("call"), repeat=True))

    class Clock(WorkClock):
        def sleep_until(self, deadline: int, wake: Any) -> None:
            log.append("sleep")
            super().sleep_until(deadline, wake)

    ops = report_ops(init=init, update=say("update"), prepare_access_checks=say("prepare"), check_accesses=say("check"))
    ctx = plain_ctx((0, 1000), ops=ops, **attrs)
    ctx.clock = Clock()
    ctx.schemes = [damos()]

    steps = {
        "kdamond_check_reported_accesses": "reports",
        "kdamond_merge_regions": "merge",
        "damon_apply_min_nr_regions": "min_nr_regions",
        "kdamond_apply_schemes": "schemes",
        "kdamond_tune_intervals": "tune",
        "kdamond_reset_aggregated": "reset",
        "kdamond_split_regions": "split",
    }
    patches = []
    for name, word in steps.items():
        original = getattr(core, name)

        def spy(*args: Any, _word: str = word, _original: Any = original, **more: Any) -> Any:
            log.append(_word)
            return _original(*args, **more)

        patches.append(patch.object(core, name, spy))
    for p in patches:
        p.start()
    try:
        run_ctx(ctx, ms / 1000)
    finally:
        for p in patches:
            p.stop()
    return log


def test_each_iteration_goes_in_the_kernels_order() -> None:
    """Sampling each 10 ms, aggregation each 20, tuning each second of these, update each 30."""
    goal = damon_intervals_goal(access_bp=400, aggrs=2, min_sample_us=10_000, max_sample_us=10_000)
    log = traced_run(40, sample_interval=10_000, aggr_interval=20_000, ops_update_interval=30_000, intervals_goal=goal)
    sample = ["prepare", "sleep", "reports", "check"]
    aggregate = ["merge", "min_nr_regions", "call", "schemes"]
    expected = ["init", "min_nr_regions"]
    expected += [*sample, "call", "schemes"]
    expected += [*sample, *aggregate, "reset", "split"]
    expected += [*sample, "call", "schemes", "update"]
    expected += [*sample, *aggregate, "tune", "reset", "split"]
    assert expected == log


def test_schemes_see_the_complete_counters_and_the_trace_too() -> None:
    """Before a reset, and after the merge: nr_accesses is that of the whole window."""
    seen: list[tuple[str, list[int]]] = []

    def count(ctx: damon_ctx) -> None:
        first(ctx).regions.nr_accesses += 1

    ctx = plain_ctx((0, 30), ops=report_ops(check_accesses=count), sample_interval=1000, aggr_interval=4000)
    ctx.clock = WorkClock()
    ctx.schemes = [damos()]
    with (
        recorded(ctx) as recorder,
        patch.object(
            core,
            "kdamond_apply_schemes",
            lambda ctx: seen.append((ctx.passed_sample_intervals, first(ctx).regions.nr_accesses.tolist()[0])),
        ),
    ):
        run_ctx(ctx, 0.008)
    assert [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 2), (7, 3), (8, 4)] == seen
    assert [(4, 4), (8, 4)] == [(s.sis, int(s.regions.nr_accesses[0])) for s in recorder.snapshots]
    assert [0, 4] == [int(s.regions.last_nr_accesses[0]) for s in recorder.snapshots]


def test_the_merge_threshold_is_a_tenth_of_the_most_accesses() -> None:
    """Over all targets; 39 of them make 3, and the growing starts there."""
    thresholds: list[int] = []

    def count(ctx: damon_ctx) -> None:
        ctx.adaptive_targets[1].regions.nr_accesses[:] = 39

    ctx = plain_ctx((0, 30), ops=report_ops(check_accesses=count), sample_interval=1000, aggr_interval=1000)
    ctx.clock = WorkClock()
    other = damon_target()
    other.regions = first(ctx).regions.copy()
    ctx.adaptive_targets.append(other)
    with patch.object(core, "kdamond_merge_regions", lambda _ctx, threshold, _limit: thresholds.append(threshold)):
        run_ctx(ctx, 0.001)
    assert [3] == thresholds


@pytest.mark.parametrize("at", [ULONG_MAX - 2, ULONG_MAX, 0])
def test_sampling_interval_counters_may_wrap(at: int) -> None:
    """The comparisons are those of jiffies: the counter of sampling intervals may pass its end."""
    ctx = plain_ctx((0, 30), sample_interval=1000, aggr_interval=5000)
    ctx.clock = WorkClock()

    def init(ctx: damon_ctx) -> None:
        ctx.passed_sample_intervals = at
        ctx.next_aggregation_sis = at + 5

    ctx.ops = report_ops(init=init)
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.010)
    assert 2 == len(recorder.snapshots)


# Deadlines.


def run_with_work(works: list[float], interval_us: int = 1000) -> tuple[damon_ctx, WorkClock]:
    """Let sample ``i`` be followed by ``works[i]`` intervals of work."""
    clock = WorkClock()
    left = list(works)

    def work(ctx: damon_ctx) -> None:
        clock.work(round(left.pop(0) * interval_us * 1000) if left else 0)

    ctx = plain_ctx((0, 30), ops=report_ops(check_accesses=work), sample_interval=interval_us, aggr_interval=20_000)
    ctx.clock = clock
    run_ctx(ctx, (sum(works) + len(works) + 3) * interval_us / 1e6)
    return ctx, clock


@pytest.mark.parametrize("works", [[0.0] * 50, [0.3] * 1000, [0.49] * 50, [0.1, 0.45, 0.0, 0.2] * 100])
def test_work_does_not_move_deadlines(works: list[float]) -> None:
    """Each sleep ends at a multiple of the interval, however long the work took; none is missed."""
    ctx, clock = run_with_work(works)
    n = len(clock.sleeps)
    assert [MS * (i + 1) for i in range(n)] == [deadline for _, deadline in clock.sleeps]
    assert 0 == ctx.missed_intervals
    assert n == ctx.passed_sample_intervals


@pytest.mark.parametrize(
    ("work", "missed"),
    [(0.4, 0), (0.5, 0), (0.51, 1), (1.0, 1), (1.5, 1), (1.51, 2), (3.2, 3), (3.6, 4), (1000.0, 1000)],
)
def test_overlong_work_misses_intervals(work: float, missed: int) -> None:
    """An interval is missed when less than half of it is left; it is not sampled, it is counted, nothing shifts."""
    ctx, clock = run_with_work([0, 0, work, 0, 0])
    assert missed == ctx.missed_intervals
    assert ctx.passed_sample_intervals + missed == clock.now() // MS
    assert all(deadline % MS == 0 for _, deadline in clock.sleeps)
    assert all(deadline - begin >= MS // 2 for begin, deadline in clock.sleeps)


def test_missed_intervals_are_not_samples() -> None:
    """An aggregation interval has as many samples as ever: it lasts longer instead."""
    samples: list[int] = []

    def check(ctx: damon_ctx) -> None:
        samples.append(ctx.clock.now() // MS)
        first(ctx).regions.nr_accesses += 1
        if len(samples) == 3:
            ctx.clock.work(10 * MS)  # type: ignore[attr-defined]

    ctx = plain_ctx((0, 30), ops=report_ops(check_accesses=check), sample_interval=1000, aggr_interval=5000)
    ctx.clock = WorkClock()
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.015)
    assert [1, 2, 3, 14, 15] == samples
    assert [5] == [int(s.regions.nr_accesses[0]) for s in recorder.snapshots]
    assert 10 == ctx.missed_intervals


def test_the_interval_of_zero_is_a_microsecond() -> None:
    ctx = plain_ctx((0, 30), sample_interval=0, aggr_interval=10)
    ctx.clock = WorkClock()
    run_ctx(ctx, 0.0001)
    assert 100 == ctx.passed_sample_intervals


# Simulated memory.


def a_terabyte(seed: int, seconds: float) -> tuple[damon_ctx, Recorder]:
    machine = SimMachine(seed=seed)
    process = machine.spawn([(TB, TB + 4 * GB), (2 * TB, 3 * TB - 8 * GB), (4 * TB, 4 * TB + 4 * GB)])
    process.access(2 * TB + 100 * GB, 2 * TB + 200 * GB, rate=400)
    ctx = sim_ctx(process, machine, seed=seed)
    with recorded(ctx) as recorder:
        run_ctx(ctx, seconds)
    return ctx, recorder


def test_half_a_minute_of_a_terabyte_is_found_and_repeatable() -> None:
    """Bit for bit the same from the same seed, something else from another, and the hot range is found."""
    ctx, recorder = a_terabyte(seed=1, seconds=30)
    assert (6000, 0, 0) == (ctx.passed_sample_intervals, ctx.missed_intervals, ctx.nr_unknown)
    assert 300 == len(recorder.snapshots)
    for snapshot in recorder.snapshots:
        core.validate_regions(snapshot.regions)
        assert TB == snapshot.regions.total()
        assert 10 <= len(snapshot.regions) <= 1000
        assert int(snapshot.regions.nr_accesses.max()) <= 20

    found = [0, 0, 0]
    for regions in (snapshot.regions for snapshot in recorder.snapshots[150:]):
        hot = regions.nr_accesses >= 10
        start, end = (np.clip(edge[hot], 2 * TB + 100 * GB, 2 * TB + 200 * GB) for edge in (regions.start, regions.end))
        found[0] += int((end - start).sum())
        found[1] += int(regions.sizes()[hot].sum())
        found[2] += 100 * GB
    recall, precision = found[0] / found[2], found[0] / found[1]
    assert recall > 0.95 and precision > 0.95, f"recall {recall:.3f}, precision {precision:.3f}"

    seen = [bytes_of(s.regions) for s in recorder.snapshots[:50]]
    again = a_terabyte(seed=1, seconds=5)[1]
    assert seen == [bytes_of(s.regions) for s in again.snapshots]
    other = a_terabyte(seed=2, seconds=5)[1]
    assert seen != [bytes_of(s.regions) for s in other.snapshots]


def test_regions_come_from_the_mappings_and_follow_them() -> None:
    """Three regions at first, cut to the minimum of ten; new mappings count from the next update on."""
    machine = SimMachine()
    process = machine.spawn(THREE)
    ctx = sim_ctx(process, machine, ops_update_interval=200_000)
    totals = []

    def look(ctx: damon_ctx) -> None:
        totals.append(first(ctx).regions.total())
        if len(totals) == 50:
            process.mmap([THREE[0], (0x200000, 0x400000), THREE[2]])

    with patched_check(ctx, look):
        run_ctx(ctx, 0.5)
    before, after = sum(b - a for a, b in THREE), 0x8000 + 0x200000 + 0x8000
    assert [before] * 80 + [after] * 20 == totals


def patched_check(ctx: damon_ctx, look: Callable[[damon_ctx], None]) -> Any:
    """Call ``look`` after each check of accesses of ``ctx``."""
    assert ctx.ops is not None
    check = ctx.ops.check_accesses
    assert check is not None

    def both(ctx: damon_ctx) -> None:
        check(ctx)
        look(ctx)

    return patch.object(ctx.ops, "check_accesses", both)


class ExecTask:
    """A process that becomes another program: another address space with the same number."""

    primitive = "page_table"

    def __init__(self, programs: list[SimProcess]) -> None:
        self.pid = 77
        self.programs = programs
        self.now = 0
        self.puts = 0

    def valid(self) -> bool:
        return True

    def get_mm(self) -> SimProcess | None:
        return self.programs[self.now] if self.now < len(self.programs) else None

    def put(self) -> None:
        self.puts += 1


@pytest.mark.parametrize("ops", [damon_ops_id.DAMON_OPS_VADDR, damon_ops_id.DAMON_OPS_FVADDR])
def test_exec_makes_regions_follow_at_once(ops: damon_ops_id) -> None:
    """With vaddr; with fvaddr they stay what the user made them. A sample across the exec is no access."""
    machine = SimMachine()
    old, new = machine.spawn(THREE), machine.spawn([(a + TB, b + TB) for a, b in THREE])
    old.access(0, 2 * TB)
    new.access(0, 2 * TB)
    task = ExecTask([old, new])
    ctx = sim_ctx(old, machine, ops=ops, ops_update_interval=60_000_000)
    first(ctx).pid, first(ctx).task = task.pid, task
    first(ctx).regions = core.Regions([a for a, _ in THREE], [b for _, b in THREE])
    seen: list[tuple[int, int]] = []

    def look(ctx: damon_ctx) -> None:
        seen.append((int(first(ctx).regions.start[0]), int(first(ctx).regions.nr_accesses.max())))
        if len(seen) == 5:
            task.now = 1

    with patched_check(ctx, look):
        run_ctx(ctx, 0.050)
    if ops is damon_ops_id.DAMON_OPS_VADDR:
        assert [(0x1000, i) for i in range(1, 6)] == seen[:5]
        assert [(TB + 0x1000, i) for i in range(1, 6)] == seen[5:]
    else:
        assert [(0x1000, i) for i in range(1, 6)] + [(0x1000, 5)] * 5 == seen
    assert 1 == task.puts


def test_without_an_address_space_nothing_is_sampled() -> None:
    """Between two programs, or in a zombie: no sample is counted, and regions stay."""
    machine = SimMachine()
    old = machine.spawn(THREE)
    old.access(0, TB)
    task = ExecTask([old])
    ctx = sim_ctx(old, machine)
    first(ctx).task = task
    samples: list[tuple[int, int]] = []

    def look(ctx: damon_ctx) -> None:
        samples.append((ctx.nr_samples, len(first(ctx).regions)))
        task.now = int(len(samples) >= 3)

    with patched_check(ctx, look):
        run_ctx(ctx, 0.050)
    n = samples[0][1]
    assert [(n, n), (2 * n, n), (3 * n, n)] + [(3 * n, n)] * 7 == samples


def test_unknown_samples_are_counted_and_never_accesses() -> None:
    """Where accessed bits cannot be cleared nothing is claimed, whatever is accessed there."""
    machine = SimMachine()
    process = machine.spawn([(0x1000, 0x2000), (0x100000, 0x900000), (0x10000000, 0x10001000)])
    process.access(0, TB)
    process.unknown.append((0x100000, 0x500000))
    ctx = sim_ctx(process, machine, aggr_interval=50_000)
    with recorded(ctx) as recorder:
        run_ctx(ctx, 5)
    in_regions = 0
    for snapshot in recorder.snapshots:
        regions = snapshot.regions
        unknown = (regions.start >= 0x100000) & (regions.end <= 0x500000)
        known = (regions.end <= 0x100000) | (regions.start >= 0x500000)
        assert [0] * int(unknown.sum()) == regions.nr_accesses[unknown].tolist()
        assert [0] * int(known.sum()) == regions.nr_unknown[known].tolist()
        both = regions.nr_accesses + regions.nr_unknown
        assert int(both.max()) <= 10
        in_regions += int(regions.nr_unknown.sum())
    assert 0.4 < ctx.nr_unknown / ctx.nr_samples < 0.6
    # Merges average them, rounded down.
    assert 0 < in_regions <= ctx.nr_unknown


def test_a_target_without_a_second_gap_keeps_running_without_regions() -> None:
    """The kernel does so too: the next update may find regions."""
    machine = SimMachine()
    process = machine.spawn([(0x1000, 0x9000)])
    ctx = sim_ctx(process, machine, ops_update_interval=100_000)
    lengths: list[int] = []

    def look(ctx: damon_ctx) -> None:
        lengths.append(len(first(ctx).regions))
        if len(lengths) == 10:
            process.mmap(THREE)

    with patched_check(ctx, look):
        run_ctx(ctx, 0.2)
    assert [0] * 20 == lengths[:20]
    assert all(length >= 3 for length in lengths[20:]) and 40 == len(lengths)


# Ends.


def test_ends_when_all_targets_are_gone() -> None:
    machine = SimMachine()
    processes = [machine.spawn(THREE), machine.spawn(THREE)]
    ctx = sim_ctx(processes[0], machine)
    other = damon_target(pid=processes[1].pid)
    ctx.adaptive_targets.append(other)
    ticks = []

    def look(ctx: damon_ctx) -> None:
        ticks.append(machine.clock.now() // MS)
        for process, at in zip(processes, (50, 100), strict=True):
            if ticks[-1] == at:
                process.exit()

    with patched_check(ctx, look):
        run_ctx(ctx, 10)
    assert 100 == ticks[-1]
    assert not damon_is_running(ctx)
    assert ctx.kdamond_error is None
    assert [] == ctx.adaptive_targets


@pytest.mark.parametrize("pid", [None, 4711])
def test_vaddr_without_a_process_ends_at_once(pid: int | None) -> None:
    """No target at all, or a target whose process is not there."""
    machine = SimMachine()
    ctx = sim_ctx(machine.spawn(THREE), machine)
    ctx.adaptive_targets = [] if pid is None else [damon_target(pid=pid)]
    run_ctx(ctx, 1)
    assert 0 == ctx.passed_sample_intervals
    assert not damon_is_running(ctx)


@pytest.mark.traceback_expected
@pytest.mark.parametrize("callback", ["init", "prepare_access_checks", "check_accesses", "update"])
def test_an_error_in_a_callback_ends_the_kdamond_and_is_visible(callback: str) -> None:
    def fail(ctx: damon_ctx) -> None:
        raise ZeroDivisionError(callback)

    ctx = plain_ctx((0, 30), ops=report_ops(**{callback: fail}), ops_update_interval=2000)
    ctx.clock = WorkClock()
    with pytest.raises(ZeroDivisionError):
        run_ctx(ctx, 1)
    assert isinstance(ctx.kdamond_error, ZeroDivisionError)
    assert not damon_is_running(ctx)
    assert [] == ctx.adaptive_targets


@pytest.mark.traceback_expected
def test_a_run_after_an_error_forgets_it() -> None:
    def fail(ctx: damon_ctx) -> None:
        raise ZeroDivisionError

    ctx = plain_ctx((0, 30), ops=report_ops(init=fail))
    ctx.clock = WorkClock()
    with pytest.raises(ZeroDivisionError):
        run_ctx(ctx, 1)
    ctx.ops = report_ops()
    run_ctx(ctx, 0.01)
    assert ctx.kdamond_error is None


def test_a_kdamond_can_run_again_from_the_beginning() -> None:
    machine = SimMachine()
    process = machine.spawn(THREE)
    ctx = sim_ctx(process, machine)
    run_ctx(ctx, 1)
    assert 200 == ctx.passed_sample_intervals
    ctx.adaptive_targets = [damon_target(pid=process.pid)]
    run_ctx(ctx, 0.5)
    assert 100 == ctx.passed_sample_intervals


def test_only_a_virtual_clock_can_be_run() -> None:
    with pytest.raises(OSError, match="virtual clock"):
        run_ctx(damon_new_ctx(), 1)


# Intervals auto-tuning.


def tuned_run(rate: float, seconds: float, **goals: int) -> tuple[damon_ctx, Recorder]:
    machine = SimMachine(seed=3)
    process = machine.spawn([(0x1000, 0x2000), (GB, 2 * GB), (4 * GB, 4 * GB + 0x1000)])
    process.access(GB, 2 * GB, rate=rate)
    goal = damon_intervals_goal(
        **({"access_bp": 400, "aggrs": 3, "min_sample_us": 100, "max_sample_us": 10**7} | goals)
    )
    ctx = sim_ctx(process, machine, intervals_goal=goal)
    with recorded(ctx) as recorder:
        run_ctx(ctx, seconds)
    return ctx, recorder


@pytest.mark.parametrize(("rate", "expected_us"), [(1.0, 40_821), (10.0, 4082), (0.1, 408_219)])
def test_tuning_converges_to_the_wanted_share_of_accesses(rate: float, expected_us: int) -> None:
    """4 percent of samples see an access when 1 - exp(-rate * interval) is 0.04."""
    ctx, recorder = tuned_run(rate, seconds=2000 * expected_us / 1e6)
    late = recorder.tuned[len(recorder.tuned) // 2 :]
    assert late, "the intervals were never tuned"
    mean = sum(late) / len(late)
    assert 0.75 * expected_us < mean < 1.25 * expected_us, f"{mean} us on average, wanted {expected_us}"
    assert 20 == ctx.attrs.aggr_samples
    assert ctx.attrs.aggr_interval == 20 * ctx.attrs.sample_interval


def test_tuning_happens_each_so_many_aggregations() -> None:
    """Every third aggregation, with the intervals that are in force then."""
    _ctx, recorder = tuned_run(rate=0.0, seconds=5)
    changes = [
        i
        for i, (a, b) in enumerate(zip(recorder.snapshots, recorder.snapshots[1:], strict=False), 1)
        if a.sample_us != b.sample_us
    ]
    sis = [s.sis for s in recorder.snapshots]
    assert [20 * (i + 1) for i in range(len(sis))] == sis
    assert [10_000, 20_000, 40_000][: len(recorder.tuned)] == recorder.tuned[:3]
    # The snapshot is taken after the tuning of the same iteration.
    assert [2, 5] == changes[:2]


@pytest.mark.parametrize(("rate", "bound"), [(0.0, 8000), (1e9, 2000)])
def test_tuning_stays_within_bounds(rate: float, bound: int) -> None:
    """Nothing accessed lengthens the intervals to their bound, everything accessed shortens them to theirs."""
    ctx, recorder = tuned_run(rate, seconds=3, min_sample_us=2000, max_sample_us=8000)
    assert bound == ctx.attrs.sample_interval
    assert bound == recorder.tuned[-1]
    assert all(2000 <= us <= 8000 for us in recorder.tuned)


def test_tuning_does_not_put_updates_off() -> None:
    """Mappings are looked at each update interval, however often the intervals are tuned meanwhile."""
    machine = SimMachine(seed=1)
    process = machine.spawn(THREE)
    process.access(*THREE[1], rate=2.0)
    goal = damon_intervals_goal(access_bp=400, aggrs=3, min_sample_us=1000, max_sample_us=20_000)
    ctx = sim_ctx(process, machine, intervals_goal=goal, ops_update_interval=5_000_000)
    assert ctx.ops is not None
    updates: list[float] = []
    ctx.ops = evolve(ctx.ops, update=lambda _: updates.append(machine.clock.now() / 1e9))
    with recorded(ctx) as recorder:
        run_ctx(ctx, 60)
    assert len(recorder.tuned) > 12
    assert 11 <= len(updates) <= 12
    assert all(4.9 < later - earlier < 5.2 for earlier, later in pairwise(updates))


def test_tuning_keeps_counters_within_the_samples() -> None:
    _ctx, recorder = tuned_run(rate=30.0, seconds=3)
    assert all(int(s.regions.nr_accesses.max()) <= 20 for s in recorder.snapshots)


def test_a_commit_in_the_kdamond_converts_and_goes_on() -> None:
    """New attributes in the middle of an aggregation interval: it begins anew, and last counts are converted."""
    machine = SimMachine()
    process = machine.spawn(THREE)
    process.access(0, TB)
    ctx = sim_ctx(process, machine, min_nr_regions=3)
    committed: list[int] = []

    def commit(_: Any) -> None:
        if ctx.passed_sample_intervals == 30:
            src = sim_ctx(process, machine, min_nr_regions=3, aggr_interval=50_000)
            first(src).regions = first(ctx).regions.copy()
            damon_commit_ctx(ctx, src)
            committed.append(ctx.passed_sample_intervals)
            assert [10] * len(first(ctx).regions) == first(ctx).regions.last_nr_accesses.tolist()
            validate_ctx(ctx)

    assert ctx.ops is not None
    init = ctx.ops.init
    assert init is not None

    def with_call(ctx: damon_ctx) -> None:
        init(ctx)
        damon_call(ctx, damon_call_control(commit, repeat=True))

    with patch.object(ctx.ops, "init", with_call), recorded(ctx) as recorder:
        run_ctx(ctx, 0.3)
    assert [30] == committed
    assert [20, 40, 50, 60] == [s.sis for s in recorder.snapshots]
    assert [20, 10, 10, 10] == [int(s.regions.nr_accesses[0]) for s in recorder.snapshots]


def test_a_commit_just_before_a_tuning_keeps_the_complete_counts() -> None:
    """The tuning takes the aggregation interval for what it is, complete, whatever the commit planned."""
    ctx = plain_ctx(
        (0, 30),
        ops=report_ops(check_accesses=lambda ctx: first(ctx).regions.nr_accesses.__iadd__(1)),
        sample_interval=1000,
        aggr_interval=10_000,
        intervals_goal=damon_intervals_goal(access_bp=5000, aggrs=1, min_sample_us=1000, max_sample_us=2000),
    )
    ctx.clock = WorkClock()

    def commit(_: Any) -> None:
        if ctx.passed_sample_intervals == 10:
            src = plain_ctx((0, 30), ops=ctx.ops)
            src.attrs = evolve(ctx.attrs, aggr_interval=20_000, aggr_samples=0)
            damon_commit_ctx(ctx, src)

    def init(ctx: damon_ctx) -> None:
        damon_call(ctx, damon_call_control(commit, repeat=True))

    assert ctx.ops is not None
    ctx.ops.init = init
    with recorded(ctx) as recorder:
        run_ctx(ctx, 0.010)
    assert [20] == [int(s.regions.nr_accesses[0]) for s in recorder.snapshots]
    assert [1000] == recorder.tuned
