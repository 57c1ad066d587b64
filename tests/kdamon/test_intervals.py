# SPDX-License-Identifier: GPL-2.0-only
"""Many sampling intervals in one callback: the regions come out as from one by one, and nothing is put off."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kdamon import vaddr
from kdamon.access import damon_access_report
from kdamon.arrays import U64Array
from kdamon.core import damon_add_scheme, damon_add_target, damon_new_scheme, damon_new_target, run_ctx
from kdamon.damon import (
    SamplingIntervals,
    damon_call_control,
    damon_ctx,
    damos_access_pattern,
    damos_action,
    damos_walk_control,
)
from kdamon.intervals import interrupt
from kdamon.kernel import VirtualClock, rnd_state
from kdamon.mm import IntervalTarget
from kdamon.mm.sim.intervals import SimIntervals
from kdamon.mm.sim.machine import SimMachine
from kdamon.regions import COLUMNS, Regions
from kdamon.reports.deliver import damon_report_access
from kdamon.vaddr import damon_va_mkold
from tests.support.contexts import recorded, sim_ctx
from tests.support.tables import effort

GIB = 1 << 30

#: What happens at the end of given sleeps of a run.
Hooks = Callable[[damon_ctx, SimMachine], dict[int, Callable[[], None]]]


class HookedClock(VirtualClock):
    """A clock that calls functions at the end of given sleeps.

    :ivar kept_until: until when a sampler slept by itself.
    """

    kept_until = 0

    def __init__(self, hooks: dict[int, Callable[[], None]]) -> None:
        super().__init__()
        self.hooks = hooks
        self.sleeps = 0

    def kept(self, until: int) -> None:
        self.kept_until = until

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        before = self.now()
        super().sleep_until(deadline, wake)
        # The rest of an interval that was interrupted at its end is none.
        if self.now() > before:
            self.sleeps += 1
            self.hooks.get(self.sleeps, lambda: None)()


class CountedIntervals(SimIntervals):
    """Counts the samples that follow another one."""

    followed = 0
    resting = True

    def begin(self, targets: Sequence[IntervalTarget], random: U64Array) -> bool:
        self.resting = False
        return super().begin(targets, random)

    def rest(self) -> None:
        self.resting = True

    def follow(self, most: int = 1, deadline: int = 0, interval: int = 0) -> bool:
        self.followed += 1
        return super().follow(most, deadline, interval)


class MonotonicClock(HookedClock):
    """One that lets a sampler sleep by itself."""

    monotonic = True


class BatchedIntervals(CountedIntervals):
    """Takes many samples at once and sleeps in between, as a kernel that can."""

    wanted = False
    most = 0

    def __init__(self, clock: HookedClock) -> None:
        super().__init__()
        self.clock = clock

    def follow(self, most: int = 1, deadline: int = 0, interval: int = 0) -> bool:
        self.woken = False
        assert deadline == self.clock.now()
        for taken in range(1, most + 1):
            lives = super().follow()
            self.taken = taken
            self.most = max(self.most, taken)
            if not lives:
                return False
            if taken < most:
                self.clock.sleep_until(deadline + taken * interval, threading.Event())
                if self.wanted:
                    self.woken = True
                    break
        self.wanted = False
        return True

    def interrupt(self) -> None:
        self.wanted = True


def a_machine() -> SimMachine:
    """Two processes with hot, cold, rarely accessed and unknown memory, one of them larger than 4 GiB."""
    machine = SimMachine(seed=3)
    small = machine.spawn([(0x1000, 0x9000), (0x100000, 0x900000), (0x7000_0000, 0x7100_0000)], pid=10)
    small.access(0x100000, 0x300000)
    small.access(0x300000, 0x500000, rate=60)
    small.unknown.append((0x7000_0000, 0x7040_0000))
    large = machine.spawn([(0x1000, 0x9000), (GIB, 40 * GIB), (100 * GIB, 101 * GIB)], pid=11)
    large.access(GIB, 2 * GIB, rate=100)
    return machine


def a_run(
    whole: bool | str,
    seconds: float,
    hooks: Hooks = lambda _ctx, _machine: {},
    **attrs: Any,
) -> tuple[list[tuple[int, int, dict[str, list[int]]]], damon_ctx, int]:
    """The snapshots of a run, the context after it, and how many samples followed another one within a callback.

    :param whole: take whole intervals; "batches": and sleep by itself.
    """
    machine = a_machine()
    clock = MonotonicClock({}) if whole == "batches" else HookedClock({})
    sampler = BatchedIntervals(clock) if whole == "batches" else CountedIntervals()
    machine.clock = clock
    for process in machine.processes.values():
        process.clock = clock
    ctx = sim_ctx(machine.processes[10], machine, **attrs)
    second = damon_new_target()
    second.pid = 11
    damon_add_target(ctx, second)
    clock.hooks = hooks(ctx, machine)
    with (
        recorded(ctx) as recorder,
        patch.object(machine, "interval_sampler", lambda: sampler if whole else None),
    ):
        run_ctx(ctx, seconds)
    found = [(s.sis, s.target, columns(s.regions)) for s in recorder.snapshots]
    if isinstance(sampler, BatchedIntervals) and sampler.most > 1:
        assert 0 < clock.kept_until <= clock.now()
    return found, ctx, sampler.followed


def columns(regions: Regions) -> dict[str, list[int]]:
    """All columns as lists."""
    return {name: getattr(regions, name).tolist() for name in COLUMNS if getattr(regions, name) is not None}


def same(seconds: float, hooks: Hooks = lambda _ctx, _machine: {}, **attrs: Any) -> int:
    """Compare a run one by one with those by whole intervals; returns how many samples followed another one."""
    one_by_one, ctx, none = a_run(False, seconds, hooks, **attrs)
    assert len(one_by_one) > 4
    assert 0 == none
    counts = []
    for way in (True, "batches"):
        whole, other, followed = a_run(way, seconds, hooks, **attrs)
        assert one_by_one == whole
        for name in ("nr_samples", "nr_unknown", "passed_sample_intervals", "missed_intervals", "deadline"):
            assert getattr(ctx, name) == getattr(other, name), name
        assert other.interval_sampler is None
        counts.append(followed)
    assert counts[0] == counts[1]
    return followed


def test_regions_come_out_the_same() -> None:
    """Every column of every snapshot; the sizes of some regions need more than 32 bits."""
    assert 30 * 19 == same(3)


@given(
    sample=st.sampled_from([1000, 5000, 7000, 100_000]),
    samples=st.integers(1, 40),
    update=st.integers(0, 60),
    seed=st.integers(0, 5),
)
@effort(30)
def test_regions_come_out_the_same_whatever_the_intervals(sample: int, samples: int, update: int, seed: int) -> None:
    """Also where an update of the mappings falls into an aggregation interval."""
    same(
        sample * samples * 6 / 1e6,
        seed=seed,
        sample_interval=sample,
        aggr_interval=sample * samples,
        ops_update_interval=sample * update,
    )


def test_a_process_that_ends_is_unknown_from_then_on() -> None:
    """Its samples are not taken for memory that was not accessed, and the other process goes on to be sampled."""

    def hooks(_ctx: damon_ctx, machine: SimMachine) -> dict[int, Callable[[], None]]:
        return {107: machine.processes[11].exit}

    same(2, hooks)


@pytest.mark.parametrize("way", [True, "batches"])
def test_a_process_that_left_its_address_space_is_followed(way: bool | str) -> None:
    """Within some looks, though the old one is still another process's; its regions are those of the new one."""
    found: list[object] = []
    expected: list[object] = []

    def hooks(ctx: damon_ctx, machine: SimMachine) -> dict[int, Callable[[], None]]:
        target = ctx.adaptive_targets[1]
        other = machine.spawn([(0x1000, 0x9000), (GIB, 2 * GIB), (3 * GIB, 4 * GIB)], pid=12)
        expected.append(other)
        before = vaddr._damon_get_mm

        def leave() -> None:
            stack.enter_context(
                patch.object(vaddr, "_damon_get_mm", lambda t: other if t is target else before(t)),
            )

        return {250: leave, 900: lambda: found.append(target.mm)}

    with ExitStack() as stack:
        a_run(way, 1, hooks, sample_interval=1000, aggr_interval=10_000_000, ops_update_interval=60_000_000)
    assert expected == found


def test_a_call_does_not_wait_for_the_end_of_an_aggregation_interval() -> None:
    """It is made at the end of the sampling interval in which it was requested."""
    made: list[int] = []

    def hooks(ctx: damon_ctx, _machine: SimMachine) -> dict[int, Callable[[], None]]:
        control = damon_call_control(lambda _: made.append(ctx.passed_sample_intervals))

        def call() -> None:
            ctx.call_controls.append(control)
            interrupt(ctx)

        return {33: call}

    same(1, hooks)
    assert [33, 33, 33] == made


def test_a_repeated_call_is_made_once_a_second_at_least() -> None:
    """However long an aggregation interval lasts."""
    made: list[int] = []

    def hooks(ctx: damon_ctx, _machine: SimMachine) -> dict[int, Callable[[], None]]:
        ctx.call_controls.append(damon_call_control(lambda _: made.append(ctx.passed_sample_intervals), repeat=True))
        return {}

    a_run(True, 10, hooks, sample_interval=5000, aggr_interval=5_000_000, ops_update_interval=60_000_000)
    assert set(range(200, 2001, 200)) <= set(made)


def test_reports_are_counted_in_the_interval_in_which_they_arrive() -> None:
    """A region that was sampled and reported counts once."""

    def hooks(_ctx: damon_ctx, _machine: SimMachine) -> dict[int, Callable[[], None]]:
        def report() -> None:
            for addr in (0x1800, 0x120000, 0x800000):
                damon_report_access(damon_access_report(pid=10, addr=addr, size=8))

        return dict.fromkeys((5, 6, 20, 21, 57, 199), report)

    same(2, hooks)


def test_schemes_are_applied_when_they_are_due() -> None:
    """Also in the middle of an aggregation interval; their counters and the walks are the same."""
    stats = []

    def hooks(ctx: damon_ctx, _machine: SimMachine) -> dict[int, Callable[[], None]]:
        pattern = damos_access_pattern(4096, 1 << 40, 0, 20, 0, 1 << 31)
        s = damon_new_scheme(pattern, damos_action.DAMOS_STAT, apply_interval_us=35_000)
        damon_add_scheme(ctx, s)
        stats.append(s.stat)
        walked: list[int] = []
        stats.append(walked)
        control = damos_walk_control(lambda *_: walked.append(ctx.passed_sample_intervals))

        def walk() -> None:
            ctx.walk_control = control
            interrupt(ctx)

        return {44: walk}

    same(1, hooks)
    (first, walked, *others) = stats
    assert walked
    assert [first, walked, first, walked] == others


def test_a_caller_that_wants_nothing_yet_disturbs_nothing() -> None:
    """An interrupted interval goes on to its end, and counts once."""

    def hooks(ctx: damon_ctx, _machine: SimMachine) -> dict[int, Callable[[], None]]:
        return dict.fromkeys((33, 34, 50, 199), lambda: interrupt(ctx))

    same(2, hooks)


def test_where_there_are_producers_each_interval_is_looked_at() -> None:
    """Reports of each interval are to be counted in it."""
    most: list[int] = []

    def hooks(ctx: damon_ctx, _machine: SimMachine) -> dict[int, Callable[[], None]]:
        def report() -> None:
            damon_report_access(damon_access_report(pid=10, addr=0x1800, size=8))

        def note() -> None:
            if isinstance(sampler := ctx.interval_sampler, BatchedIntervals):
                most.append(sampler.most)
                sampler.most = 0

        return {100: report, 110: note, 390: note}

    a_run("batches", 2, hooks)
    assert [19, 1] == most


@pytest.mark.parametrize("callback", ["prepare_access_checks", "check_accesses"])
def test_a_callback_that_was_replaced_is_called_for_each_interval(callback: str) -> None:
    """Of a set made of vaddr by attrs.evolve(), which still has its sample_intervals."""
    called: list[int] = []

    def hooks(ctx: damon_ctx, _machine: SimMachine) -> dict[int, Callable[[], None]]:
        assert ctx.ops is not None
        replaced = getattr(ctx.ops, callback)

        def own(ctx: damon_ctx) -> None:
            called.append(ctx.passed_sample_intervals)
            replaced(ctx)

        ctx.ops = evolve(ctx.ops, **{callback: own})
        return {}

    _, ctx, _ = a_run(True, 1, hooks)
    assert len(called) == ctx.passed_sample_intervals == 200


@pytest.mark.parametrize("way", [True, "batches"])
def test_nothing_of_a_sample_is_left_when_the_kdamond_is_stopped_in_it(way: bool | str) -> None:
    """Neither what ends it, nor the sampler."""

    def hooks(ctx: damon_ctx, _machine: SimMachine) -> dict[int, Callable[[], None]]:
        def stop() -> None:
            assert ctx.kdamond is not None
            ctx.kdamond.stop()

        return {107: stop}

    _, ctx, followed = a_run(way, 2, hooks)
    assert followed
    assert (106, None, None) == (ctx.passed_sample_intervals, ctx.interval_sampler, ctx.end_intervals)


@pytest.mark.parametrize("work", ["a repeated call", "an update", "one by one after a process ended"])
def test_work_that_may_take_long_is_done_without_what_samples_have(work: str) -> None:
    """Real-time priority, and a CPU beside the target."""
    resting: list[bool] = []

    def hooks(ctx: damon_ctx, machine: SimMachine) -> dict[int, Callable[[], None]]:
        def note(_: object) -> None:
            if isinstance(sampler := ctx.interval_sampler, CountedIntervals):
                resting.append(sampler.resting)

        assert ctx.ops is not None
        update = ctx.ops.update
        if work == "a repeated call":
            ctx.call_controls.append(damon_call_control(note, repeat=True))
        elif work == "an update":
            ctx.ops = evolve(ctx.ops, update=lambda ctx: (note(ctx), update(ctx))[1])
        else:
            stack.enter_context(patch("kdamon.vaddr.damon_va_mkold", lambda *args: (note(args), damon_va_mkold(*args))))
            return {107: machine.processes[11].exit}
        return {}

    with ExitStack() as stack:
        a_run(True, 2, hooks, ops_update_interval=300_000)
    assert resting and all(resting)


def test_no_fewer_intervals_than_none_are_asked_for() -> None:
    """Where a sampling interval is longer than what is taken as a whole."""
    asked: list[int] = []

    def hooks(ctx: damon_ctx, _machine: SimMachine) -> dict[int, Callable[[], None]]:
        assert ctx.ops is not None
        plain = ctx.ops.prepare_access_checks

        def sample(ctx: damon_ctx, nr: int, _passing: SamplingIntervals) -> None:
            asked.append(nr)
            plain(ctx)

        ctx.ops = evolve(ctx.ops, sample_intervals=sample)
        return {}

    a_run(True, 60, hooks, sample_interval=2_000_000, aggr_interval=20_000_000)
    a_run(True, 2, hooks)
    assert asked and min(asked) > 0


def test_what_is_due_in_each_interval_is_done_in_each() -> None:
    """Updates and applications with shorter intervals than a sample; not of schemes that are not activated."""
    found: list[tuple[list[int], list[int], int]] = []
    for whole in (False, True):
        updated: list[int] = []
        applied: list[int] = []

        def hooks(ctx: damon_ctx, _machine: SimMachine, updated: list[int] = updated) -> dict[int, Callable[[], None]]:
            assert ctx.ops is not None
            ctx.ops = evolve(ctx.ops, update=lambda ctx: updated.append(ctx.passed_sample_intervals))
            return {}

        def with_scheme(
            ctx: damon_ctx, _machine: SimMachine, applied: list[int] = applied, activated: bool = True
        ) -> dict[int, Callable[[], None]]:
            pattern = damos_access_pattern(4096, 1 << 40, 0, 20, 0, 1 << 31)
            s = damon_new_scheme(pattern, damos_action.DAMOS_COLD, apply_interval_us=1)
            damon_add_scheme(ctx, s)
            s.wmarks.activated = activated
            assert ctx.ops is not None
            apply = ctx.ops.apply_scheme
            assert apply is not None

            def noted(ctx: damon_ctx, *rest: Any) -> Any:
                applied.append(ctx.passed_sample_intervals)
                return apply(ctx, *rest)

            ctx.ops = evolve(ctx.ops, apply_scheme=noted)
            return {}

        a_run(whole, 1, hooks, ops_update_interval=0)
        a_run(whole, 1, with_scheme)
        followed = a_run(whole, 1, partial(with_scheme, applied=[], activated=False))[2]
        found.append((updated, applied, followed))
    (updates, applications, none), (updates_whole, applications_whole, followed) = found
    assert list(range(1, 201)) == updates == updates_whole
    assert set(range(1, 201)) == set(applications)
    assert applications == applications_whole
    assert 0 == none < followed


def test_random_numbers_are_the_same_drawn_at_once_and_one_by_one() -> None:
    """Given back ones come again, over the edges of what is drawn in advance."""
    one, other = rnd_state(7), rnd_state(7)
    singly = np.concatenate([one.u32(n) for n in (1, 4000, 200, 5000, 3)])
    many = np.concatenate((other.u32(4201), other.u32(5003)))
    assert np.array_equal(singly, many)
    wide = one.u64(10)
    assert np.array_equal(wide, other.u64(10))
    other.give_back(4000, 3)
    assert np.array_equal(many[-4000:], other.u32(4000))
    assert np.array_equal(wide[-3:], other.u64(3))
    assert np.array_equal(one.u32(9000), other.u32(9000))


@pytest.mark.parametrize("bits", [32, 64])
def test_random_numbers_are_uniform(bits: int) -> None:
    """Both streams use all their bits."""
    numbers = rnd_state(1).u32(50000) if bits == 32 else rnd_state(1).u64(50000)
    for bit in range(bits):
        share = float((numbers >> np.uint64(bit) & np.uint64(1)).mean())
        assert 0.48 < share < 0.52, bit
    assert not (numbers >> np.uint64(bits - 1) > 1).any()
