# SPDX-License-Identifier: GPL-2.0-only
"""Kdamond threads: start, stop, exclusive use, calls, walks, commits and pauses, from other threads."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from kdamon import core, kernel
from kdamon.core import (
    damon_add_scheme,
    damon_add_target,
    damon_call,
    damon_commit_ctx,
    damon_destroy_ctx,
    damon_is_running,
    damon_kdamond_pid,
    damon_new_ctx,
    damon_new_target,
    damon_set_attrs,
    damon_start,
    damon_stop,
    damos_walk,
    run_ctx,
)
from kdamon.damon import (
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_target,
    damos,
    damos_access_pattern,
    damos_action,
    damos_walk_control,
)
from kdamon.regions import Regions
from tests.support.contexts import (
    MS,
    SteppedClock,
    first,
    in_kdamond,
    plain_ctx,
    recorded,
    report_ops,
    stepped,
    stopped,
)
from tests.support.tables import ranges_of
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Whatever a test does, no kdamond survives it, and none counts as running."""
    yield
    # One that ended by itself may still be on its last lines.
    eventually(lambda: not kdamonds(), "the end of the kdamonds")
    assert {"nr_ctxs": 0, "exclusive": False} == core._running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def kdamonds() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("kdamond"))


def quick_ctx(**more: Any) -> damon_ctx:
    """A context whose kdamond does an iteration each millisecond."""
    return plain_ctx((0, 1000), (2000, 3000), **more)


def stepped_ctx(**more: Any) -> tuple[damon_ctx, SteppedClock]:
    ctx = plain_ctx((0, 1000), (2000, 3000), **more)
    clock = SteppedClock()
    ctx.clock = clock
    return ctx, clock


def errno_of(fn: Callable[..., Any], *args: Any) -> int | None:
    with pytest.raises(OSError) as error:
        fn(*args)
    assert error.value.strerror
    return error.value.errno


def call_later(pool: ThreadPoolExecutor, ctx: damon_ctx, fn: Callable[[Any], None]) -> Future[None]:
    """Begin a damon_call() in another thread; returns when it waits for the kdamond."""
    control = damon_call_control(fn)
    future = pool.submit(damon_call, ctx, control)
    eventually(lambda: control in ctx.call_controls or future.done(), "the call")
    return future


def walk_later(pool: ThreadPoolExecutor, ctx: damon_ctx, control: damos_walk_control) -> Future[None]:
    """Begin a damos_walk() in another thread; returns when it waits for the kdamond."""
    future = pool.submit(damos_walk, ctx, control)
    eventually(lambda: ctx.walk_control is control or future.done(), "the walk")
    return future


# Start and stop.


def test_start_and_stop() -> None:
    ctx = quick_ctx()
    assert not damon_is_running(ctx)
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        assert damon_is_running(ctx)
        assert eventually(lambda: ctx.passed_sample_intervals > 3)
    assert not damon_is_running(ctx)
    assert ctx.kdamond is None
    assert ctx.kdamond_error is None
    assert [] == ctx.adaptive_targets


def test_kdamonds_are_threads_named_by_number() -> None:
    """Also for ps and pgrep; the pid is the thread's."""
    ctxs = [quick_ctx() for _ in range(3)]
    with stopped(*ctxs):
        damon_start(ctxs, exclusive=False)
        assert ["kdamond.0", "kdamond.1", "kdamond.2"] == kdamonds()
        for i, ctx in enumerate(ctxs):
            comm = Path(f"/proc/self/task/{damon_kdamond_pid(ctx)}/comm")
            eventually(lambda comm=comm, i=i: f"kdamond.{i}\n" == comm.read_text(), "the thread's name")
        assert 3 == len({damon_kdamond_pid(ctx) for ctx in ctxs})


def test_there_is_no_pid_without_a_kdamond() -> None:
    ctx = quick_ctx()
    assert errno.EINVAL == errno_of(damon_kdamond_pid, ctx)
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
    assert errno.EINVAL == errno_of(damon_kdamond_pid, ctx)


def test_stopping_what_does_not_run_is_no_error() -> None:
    ctx = quick_ctx()
    damon_stop([ctx])
    damon_stop([])
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
    damon_stop([ctx, ctx])


def test_a_kdamond_that_does_not_end_is_waited_for_and_named() -> None:
    """It may wait for the process that it monitors, for as long as that likes; nothing else waits with it."""
    waits, go_on = threading.Event(), threading.Event()

    def wait(_ctx: damon_ctx) -> None:
        waits.set()
        assert go_on.wait(600)

    stuck, other = quick_ctx(ops=report_ops(check_accesses=wait)), quick_ctx()
    with stopped(stuck, other), patch("kdamon.core._END", 0.1):
        damon_start([stuck, other], exclusive=False)
        assert waits.wait(60)
        with pytest.raises(OSError, match=r"^\[Errno 16\] kdamond.0 did not end within 0.1 seconds") as lingering:
            damon_stop([stuck, other])
        assert errno.EBUSY == lingering.value.errno
        assert [True, False] == [damon_is_running(stuck), damon_is_running(other)]
        go_on.set()
        eventually(lambda: not damon_is_running(stuck), "its end, which nothing more is needed for")


def test_stop_is_quick_in_a_long_interval() -> None:
    """A sleep of an hour ends when it is asked to, and what was sampled in it is worth nothing."""
    checked: list[damon_ctx] = []
    ctx = quick_ctx(ops=report_ops(check_accesses=checked.append), sample_interval=3_600_000_000, aggr_interval=2**60)
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
    assert 0 == ctx.passed_sample_intervals
    assert [] == checked


def test_a_context_starts_once() -> None:
    ctx = quick_ctx()
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        assert errno.EBUSY == errno_of(damon_start, [ctx], False)
        assert damon_is_running(ctx)


def test_a_run_in_simulated_time_needs_a_context_that_does_not_run() -> None:
    ctx, _clock = stepped_ctx()
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        assert errno.EINVAL == errno_of(run_ctx, ctx, 1)


@pytest.mark.parametrize(
    ("running", "wanted", "error"),
    [(True, True, errno.EBUSY), (True, False, errno.EBUSY), (False, True, errno.EBUSY), (False, False, None)],
)
def test_exclusive_use(running: bool, wanted: bool, error: int | None) -> None:
    """One that wants to be alone starts beside nothing, and nothing starts beside it."""
    one, other = quick_ctx(), quick_ctx()
    with stopped(one, other):
        damon_start([one], exclusive=running)
        if error is None:
            damon_start([other], exclusive=wanted)
        else:
            assert error == errno_of(damon_start, [other], wanted)
        assert damon_is_running(one)
        assert (error is None) == damon_is_running(other)


def test_several_contexts_can_be_exclusive_together() -> None:
    """And when the last of them ended, also by itself, others may start."""
    gone: list[bool] = []
    ctxs = [quick_ctx(), quick_ctx(ops=report_ops(target_valid=lambda _: not gone))]
    late = quick_ctx()
    with stopped(*ctxs, late):
        damon_start(ctxs, exclusive=True)
        damon_stop(ctxs[:1])
        assert errno.EBUSY == errno_of(damon_start, [late], False)
        gone.append(True)
        eventually(lambda: not kdamonds(), "the end of the kdamond")
        damon_start([late], exclusive=False)


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_start_that_fails_half_way_leaves_nothing_running(exclusive: bool) -> None:
    ctx = quick_ctx()
    assert errno.EBUSY == errno_of(damon_start, [ctx, ctx], exclusive)
    assert not damon_is_running(ctx)


def test_a_thread_that_cannot_be_made_is_an_error_of_start() -> None:
    """What started before it is stopped again."""
    ctxs = [quick_ctx(), quick_ctx()]
    start = threading.Thread.start
    count = iter(range(10))

    def failing(thread: threading.Thread) -> None:
        if thread.name.startswith("kdamond") and next(count) == 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    with patch.object(threading.Thread, "start", failing):
        assert errno.ENOMEM == errno_of(damon_start, ctxs, False)
    assert [False, False] == [damon_is_running(ctx) for ctx in ctxs]
    damon_start([ctxs[1]], exclusive=False)
    damon_stop(ctxs)


def test_a_kdamond_that_is_faster_than_its_starter() -> None:
    """It may do many iterations before the starting thread goes on."""
    ctx = quick_ctx()
    start = kernel.kthread.start

    def slow(thread: kernel.kthread) -> None:
        start(thread)
        time.sleep(0.05)

    with stopped(ctx), patch.object(kernel.kthread, "start", slow):
        damon_start([ctx], exclusive=False)
        assert damon_is_running(ctx)
        assert ctx.kdamond_error is None


@pytest.mark.parametrize(
    "break_it",
    [
        lambda ctx: setattr(ctx, "min_region_sz", 3),
        lambda ctx: setattr(ctx.attrs, "min_nr_regions", 2),
        lambda ctx: setattr(ctx.attrs, "sample_interval", ctx.attrs.aggr_interval + 1),
    ],
)
def test_bad_parameters_are_refused_before_anything_starts(break_it: Callable[[damon_ctx], None]) -> None:
    good, bad = quick_ctx(), quick_ctx()
    break_it(bad)
    assert errno.EINVAL == errno_of(damon_start, [good, bad], False)
    assert [False, False] == [damon_is_running(good), damon_is_running(bad)]
    assert [(0, 1000), (2000, 3000)] == ranges_of(first(good).regions)


@pytest.mark.traceback_expected
def test_an_error_ends_one_kdamond_and_no_other() -> None:
    def fail(ctx: damon_ctx) -> None:
        if ctx.passed_sample_intervals == 5:
            raise ZeroDivisionError

    bad, good = quick_ctx(ops=report_ops(check_accesses=fail)), quick_ctx()
    with stopped(bad, good):
        damon_start([bad, good], exclusive=False)
        eventually(lambda: not damon_is_running(bad), "the end of the kdamond")
        assert isinstance(bad.kdamond_error, ZeroDivisionError)
        now = good.passed_sample_intervals
        assert eventually(lambda: good.passed_sample_intervals > now + 3)
        assert good.kdamond_error is None
        bad.ops = report_ops()
        damon_start([bad], exclusive=False)
        assert bad.kdamond_error is None


class Task:
    """A process that only knows how often it was given back."""

    pid = 5
    primitive = "page_table"

    def __init__(self) -> None:
        self.puts = 0

    def valid(self) -> bool:
        return True

    def get_mm(self) -> None:
        return None

    def put(self) -> None:
        self.puts += 1


def test_processes_are_given_back_when_a_context_ends() -> None:
    """By the kdamond that monitored them, or with a context that never ran."""
    cleaned: list[damon_target] = []
    ctxs = [quick_ctx(ops=report_ops(cleanup_target=cleaned.append)) for _ in range(2)]
    tasks = [Task(), Task()]
    targets = [first(ctx) for ctx in ctxs]
    for t, task in zip(targets, tasks, strict=True):
        t.task = task
    with stopped(ctxs[0]):
        damon_start(ctxs[:1], exclusive=False)
        assert 0 == tasks[0].puts
    damon_destroy_ctx(ctxs[1])
    assert [1, 1] == [task.puts for task in tasks]
    assert targets == cleaned


# Calls.


def test_a_call_is_made_in_the_kdamond() -> None:
    ctx = quick_ctx()
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        assert damon_kdamond_pid(ctx) == in_kdamond(ctx, threading.get_native_id)


def test_calls_need_a_context_that_runs() -> None:
    control = damon_call_control(lambda _: None)
    assert errno.EINVAL == errno_of(damon_call, None, control)
    ctx = quick_ctx()
    assert errno.ECANCELED == errno_of(damon_call, ctx, control)
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        damon_call(ctx, control)
    assert errno.ECANCELED == errno_of(damon_call, ctx, control)


@pytest.mark.parametrize("repeat", [False, True])
def test_a_call_to_what_does_not_run_is_refused_also_if_repeated(repeat: bool) -> None:
    calls: list[Any] = []
    assert errno.ECANCELED == errno_of(damon_call, quick_ctx(), damon_call_control(calls.append, repeat=repeat))
    assert [] == calls


def test_calls_are_made_in_their_order(pool: ThreadPoolExecutor) -> None:
    ctx, clock = stepped_ctx()
    order: list[int] = []
    with stepped(ctx):
        futures = [call_later(pool, ctx, lambda _, i=i: order.append(i)) for i in range(4)]
        assert [] == order
        clock.step()
        assert [None] * 4 == [future.result(60) for future in futures]
    assert [0, 1, 2, 3] == order


def test_a_failed_call_raises_for_its_caller_only() -> None:
    """An OSError is the caller's; the kdamond and the next caller notice nothing."""

    def refuse(_: Any) -> None:
        raise OSError(errno.EDOM, "no")

    ctx = quick_ctx()
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        control = damon_call_control(refuse)
        assert errno.EDOM == errno_of(damon_call, ctx, control)
        control.fn = lambda _: None
        damon_call(ctx, control)
        assert ctx.kdamond_error is None


@pytest.mark.traceback_expected
def test_a_call_with_an_internal_error_ends_the_kdamond(pool: ThreadPoolExecutor) -> None:
    """All callers learn that they were canceled: the one, those after it, and one that came in between."""
    ctx, clock = stepped_ctx()
    late: list[Future[None]] = []

    def fail(_: Any) -> None:
        late.append(call_later(pool, ctx, lambda _: None))
        raise ZeroDivisionError

    with stepped(ctx):
        repeated = damon_call_control(lambda _: None, repeat=True)
        damon_call(ctx, repeated)
        futures = [call_later(pool, ctx, fail), call_later(pool, ctx, lambda _: None)]
        clock.release()
        eventually(lambda: not damon_is_running(ctx), "the end of the kdamond")
        for future in futures + late:
            with pytest.raises(OSError) as error:
                future.result(60)
            assert errno.ECANCELED == error.value.errno
        assert 1 == len(late)
        assert repeated.canceled
    assert isinstance(ctx.kdamond_error, ZeroDivisionError)


def test_a_repeated_call_is_made_each_iteration_until_the_end() -> None:
    ctx, clock = stepped_ctx()
    calls: list[int] = []
    control = damon_call_control(lambda _: calls.append(ctx.passed_sample_intervals), repeat=True)
    with stepped(ctx):
        damon_call(ctx, control)
        for _ in range(3):
            clock.step()
        assert [1, 2, 3] == calls
        assert not control.canceled
    assert control.canceled
    assert control.completion.is_set()


def test_a_repeated_call_may_fail_and_is_repeated_all_the_same() -> None:
    ctx, clock = stepped_ctx()

    def refuse(_: Any) -> None:
        raise OSError(errno.EDOM, "no")

    control = damon_call_control(refuse, repeat=True)
    with stepped(ctx):
        damon_call(ctx, control)
        clock.step()
        clock.step()
        assert [control] == ctx.call_controls


def test_pending_calls_are_canceled_at_the_end(pool: ThreadPoolExecutor) -> None:
    ctx, clock = stepped_ctx()
    with stepped(ctx):
        future = call_later(pool, ctx, lambda _: None)
        stop = pool.submit(damon_stop, [ctx])
        assert ctx.kdamond is not None
        assert ctx.kdamond.wake.wait(60)
        clock.release()
        with pytest.raises(OSError) as error:
            future.result(60)
        assert errno.ECANCELED == error.value.errno
        stop.result(60)


def test_calls_and_ends_from_many_threads_at_once(pool: ThreadPoolExecutor) -> None:
    """Each call is made or canceled, none hangs, however it meets the end."""
    for _ in range(10):
        ctx = quick_ctx(sample_interval=100, aggr_interval=1000)
        made: list[int] = []

        def caller(ctx: damon_ctx = ctx, made: list[int] = made) -> int:
            done = 0
            while True:
                try:
                    damon_call(ctx, damon_call_control(lambda _: made.append(1)))
                except OSError as error:
                    assert errno.ECANCELED == error.errno
                    return done
                done += 1

        with stopped(ctx):
            damon_start([ctx], exclusive=False)
            futures = [pool.submit(caller) for _ in range(4)]
            assert eventually(lambda made=made: len(made) > 5)
        assert sum(future.result(60) for future in futures) == len(made)


# Commit.


def source_of(ctx: damon_ctx, **changes: Any) -> damon_ctx:
    """A context with the parameters of ``ctx``, as a writer of the tree makes it."""
    src = damon_new_ctx()
    src.ops, src.min_region_sz = ctx.ops, ctx.min_region_sz
    attrs = {n: getattr(ctx.attrs, n) for n in ("sample_interval", "aggr_interval", "min_nr_regions", "max_nr_regions")}
    src.attrs = damon_attrs(**(attrs | changes))
    for t in ctx.adaptive_targets:
        damon_add_target(src, damon_target(pid=t.pid))
    for _ in ctx.schemes:
        damon_add_scheme(src, damos())
    return src


def test_an_unchanged_commit_does_not_restart_the_aggregation() -> None:
    ctx, clock = stepped_ctx(sample_interval=1000, aggr_interval=10_000)
    with stopped(ctx), recorded(ctx) as recorder:
        damon_start([ctx], exclusive=False)
        clock.wait_asleep()
        repeated = damon_call_control(lambda _: damon_commit_ctx(ctx, source_of(ctx)), repeat=True)
        damon_call(ctx, repeated)
        for _ in range(30):
            clock.step()
        assert [10, 20, 30] == [s.sis for s in recorder.snapshots]
        assert repeated.error is None
        assert [(0, 1000), (2000, 3000)] == joined(ranges_of(first(ctx).regions))


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for start, end in ranges:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def test_changed_attributes_restart_it() -> None:
    ctx, clock = stepped_ctx(sample_interval=1000, aggr_interval=10_000)
    with stopped(ctx), recorded(ctx) as recorder:
        damon_start([ctx], exclusive=False)
        clock.wait_asleep()
        for _ in range(4):
            clock.step()
        src = source_of(ctx, aggr_interval=5000)
        ctx.call_controls.append(damon_call_control(lambda _: damon_commit_ctx(ctx, src)))
        for _ in range(11):
            clock.step()
        assert [10, 15] == [s.sis for s in recorder.snapshots]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda src: setattr(src, "min_region_sz", 4095),
        lambda src: setattr(src.attrs, "max_nr_regions", 2),
        lambda src: setattr(src.adaptive_targets[-1], "regions", Regions([5, 3], [9, 4])),
        lambda src: damon_add_target(src, damon_target(obsolete=True)),
    ],
)
def test_a_failed_commit_changes_nothing(break_it: Callable[[damon_ctx], None]) -> None:
    """It is tried on a copy first: whatever is wrong, and however much before it was right."""
    ctx = plain_ctx((0, 1000), (2000, 3000))
    ctx.schemes = [damos(damos_access_pattern(min_age_region=7))]
    damon_add_target(ctx, damon_target(pid=8, regions=Regions([100], [200])))
    tasks = [Task(), Task()]
    for t, task in zip(ctx.adaptive_targets, tasks, strict=True):
        t.task = task
    src = source_of(ctx, aggr_interval=99_000)
    src.pause = True
    src.schemes = []
    src.adaptive_targets[0].regions = Regions([0], [10])
    src.adaptive_targets[0].pid = 77
    src.adaptive_targets[0].task = Task()
    break_it(src)

    def state() -> tuple[Any, ...]:
        return (
            [(t.pid, t.task, ranges_of(t.regions)) for t in ctx.adaptive_targets],
            [(s, s.pattern.min_age_region) for s in ctx.schemes],
            (ctx.attrs.sample_interval, ctx.attrs.aggr_interval, ctx.min_region_sz, ctx.pause, ctx.maybe_corrupted),
            [task.puts for task in tasks],
        )

    before = state()
    assert errno.EINVAL == errno_of(damon_commit_ctx, ctx, src)
    assert before == state()


def test_a_commit_replaces_targets_place_by_place() -> None:
    """A process number is replaced, regions are kept unless given, obsolete and missing targets go, new ones come."""
    ctx = plain_ctx((0, 1000))
    first(ctx).pid = 1
    for pid in (2, 3, 4):
        damon_add_target(ctx, damon_target(pid=pid, regions=Regions([100 * pid], [100 * pid + 50])))
    olds, news = [Task() for _ in range(4)], [Task() for _ in range(3)]
    for t, task in zip(ctx.adaptive_targets, olds, strict=True):
        t.task = task
    kept = list(ctx.adaptive_targets)

    src = source_of(ctx)
    src.adaptive_targets = src.adaptive_targets[:3]
    for t, pid, task in zip(src.adaptive_targets, (10, 20, 30), news, strict=True):
        t.pid, t.task = pid, task
    src.adaptive_targets[0].regions = Regions([500, 700], [600, 1200])
    src.adaptive_targets[1].obsolete = True
    damon_commit_ctx(ctx, src)
    assert [kept[0], kept[2]] == ctx.adaptive_targets
    assert [(10, news[0]), (30, news[2])] == [(t.pid, t.task) for t in ctx.adaptive_targets]
    assert [[(500, 600), (700, 1200)], [(300, 350)]] == [ranges_of(t.regions) for t in ctx.adaptive_targets]
    # The source has them now.
    assert [0, 0, 0, 0] == [task.puts for task in olds]
    damon_destroy_ctx(src)
    assert [1, 1, 1, 1] == [task.puts for task in olds]

    src = source_of(ctx)
    extra = damon_new_target()
    extra.pid, extra.regions = 40, Regions([7], [9])
    damon_add_target(src, extra)
    damon_commit_ctx(ctx, src)
    assert [10, 30, 40] == [t.pid for t in ctx.adaptive_targets]
    assert extra is not ctx.adaptive_targets[2]
    assert [(7, 9)] == ranges_of(ctx.adaptive_targets[2].regions)
    # A source without processes leaves those that are there.
    assert [news[0], news[2], None] == [t.task for t in ctx.adaptive_targets]


def test_a_commit_of_schemes_keeps_statistics_by_place() -> None:
    ctx = plain_ctx((0, 1000))
    ctx.schemes = [damos(apply_interval_us=3000), damos()]
    ctx.schemes[0].stat.nr_tried = 5
    kept = ctx.schemes[0]
    kept.next_apply_sis = 9
    src = source_of(ctx)
    src.schemes = [
        damos(damos_access_pattern(1, 2, 3, 4, 5, 6), damos_action.DAMOS_COLD, 7000, 8),
        damos(),
        damos(apply_interval_us=2000),
    ]
    ctx.passed_sample_intervals = 100
    damon_commit_ctx(ctx, src)
    assert kept is ctx.schemes[0]
    assert (damos_access_pattern(1, 2, 3, 4, 5, 6), damos_action.DAMOS_COLD) == (kept.pattern, kept.action)
    assert (7000, 8, 5, 9) == (kept.apply_interval_us, kept.max_nr_snapshots, kept.stat.nr_tried, kept.next_apply_sis)
    assert 102 == ctx.schemes[2].next_apply_sis
    src.schemes = []
    damon_commit_ctx(ctx, src)
    assert [] == ctx.schemes


# Pause.


def test_a_pause_samples_nothing_and_serves_calls(pool: ThreadPoolExecutor) -> None:
    ctx, clock = stepped_ctx(ops=report_ops(check_accesses=lambda ctx: log.append(ctx.passed_sample_intervals)))
    log: list[int] = []
    with stepped(ctx):
        clock.step()
        for pause in (True, False):
            src = source_of(ctx)
            src.pause = pause
            future = call_later(pool, ctx, lambda _, src=src: damon_commit_ctx(ctx, src))
            clock.step()
            future.result(60)
            if pause:
                for _ in range(5):
                    clock.step()
                assert [1, 2] == log
                call = call_later(pool, ctx, lambda _: log.append(-1))
                clock.step()
                call.result(60)
        clock.step()
    assert [1, 2, -1, 3] == log[:4]


def test_a_pause_cancels_walks_and_ends_with_a_stop(pool: ThreadPoolExecutor) -> None:
    ctx, clock = stepped_ctx()
    ctx.schemes = [damos()]
    with stepped(ctx):
        walk = walk_later(pool, ctx, damos_walk_control(lambda *_: None))
        src = source_of(ctx)
        src.pause = True
        call_later(pool, ctx, lambda _: damon_commit_ctx(ctx, src))
        clock.step()
        with pytest.raises(OSError) as error:
            walk.result(60)
        assert errno.ECANCELED == error.value.errno


def test_a_target_that_goes_during_a_pause_ends_it() -> None:
    gone: list[bool] = []
    ctx = quick_ctx(ops=report_ops(target_valid=lambda _: not gone))
    ctx.pause = True
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        in_kdamond(ctx, lambda: None)
        gone.append(True)
        eventually(lambda: not damon_is_running(ctx), "the end of the kdamond")
    assert ctx.kdamond_error is None


# Walks.


def test_a_walk_sees_each_region_of_each_scheme_once(pool: ThreadPoolExecutor) -> None:
    ctx, clock = stepped_ctx(sample_interval=1000, aggr_interval=4000)
    small, all_sizes = damos(damos_access_pattern(max_sz_region=999)), damos(apply_interval_us=2000)
    ctx.schemes = [small, all_sizes]
    seen: list[tuple[Any, int, int, int]] = []

    def walk(*args: Any) -> None:
        data, walked_ctx, t, r, s, sz_passed = args
        assert (ctx, first(ctx), 0) == (walked_ctx, t, sz_passed)
        seen.append((data, ctx.schemes.index(s), r.start, r.end))

    with stepped(ctx):
        before = ranges_of(first(ctx).regions)
        future = walk_later(pool, ctx, damos_walk_control(walk, data="mine"))
        for _ in range(4):
            assert not future.done()
            clock.step()
        future.result(60)
        assert sorted(("mine", 1, start, end) for start, end in before) == sorted(x for x in seen if x[1] == 1)
        assert sorted(("mine", 0, *r) for r in before if r[1] - r[0] <= 999) == sorted(x for x in seen if x[1] == 0)
        for _ in range(8):
            clock.step()
        assert len([x for x in seen if x[1] == 1]) == len(before)


def test_one_walk_at_a_time(pool: ThreadPoolExecutor) -> None:
    ctx, clock = stepped_ctx()
    ctx.schemes = [damos()]
    with stepped(ctx):
        future = walk_later(pool, ctx, damos_walk_control(lambda *_: None))
        assert errno.EBUSY == errno_of(damos_walk, ctx, damos_walk_control(lambda *_: None))
        for _ in range(20):
            clock.step()
        assert future.result(60) is None


def test_a_walk_without_schemes_or_kdamond_is_canceled(pool: ThreadPoolExecutor) -> None:
    ctx, clock = stepped_ctx()
    control = damos_walk_control(lambda *_: None)
    assert errno.ECANCELED == errno_of(damos_walk, ctx, control)
    with stepped(ctx):
        future = walk_later(pool, ctx, control)
        clock.step()
        with pytest.raises(OSError) as error:
            future.result(60)
        assert errno.ECANCELED == error.value.errno
    assert errno.ECANCELED == errno_of(damos_walk, ctx, control)


def test_a_walk_that_is_under_way_at_the_end_is_canceled(pool: ThreadPoolExecutor) -> None:
    ctx, clock = stepped_ctx()
    ctx.schemes = [damos(apply_interval_us=3_600_000_000)]
    with stepped(ctx):
        future = walk_later(pool, ctx, damos_walk_control(lambda *_: None))
        clock.step()
        assert not future.done()
    with pytest.raises(OSError) as error:
        future.result(60)
    assert errno.ECANCELED == error.value.errno


def test_a_canceled_walk_does_not_shorten_the_next(pool: ThreadPoolExecutor) -> None:
    """One scheme had its turn when the walk was canceled; the next walk waits for both again."""
    ctx, clock = stepped_ctx(sample_interval=1000, aggr_interval=4000)
    ctx.schemes = [damos(apply_interval_us=1000), damos(apply_interval_us=3_600_000_000)]
    seen: list[damos] = []
    control = damos_walk_control(lambda _d, _c, _t, _r, s, _z: seen.append(s))
    with stepped(ctx):
        walk = walk_later(pool, ctx, control)
        clock.step()
        assert set(seen) == {ctx.schemes[0]}
        for pause in (True, False):
            src = source_of(ctx)
            src.schemes = [damos(apply_interval_us=1000), damos(apply_interval_us=1000)]
            src.pause = pause
            call_later(pool, ctx, lambda _, src=src: damon_commit_ctx(ctx, src))
            clock.step()
        with pytest.raises(OSError):
            walk.result(60)
        seen.clear()
        ctx.schemes[1].next_apply_sis = ctx.passed_sample_intervals + 2
        again = walk_later(pool, ctx, control)
        clock.step()
        assert not again.done()
        clock.step()
        again.result(60)
        assert set(seen) == set(ctx.schemes)


def test_attributes_cannot_be_wrong_in_the_kdamond() -> None:
    """damon_set_attrs() in a call refuses as everywhere, and the caller hears of it."""
    ctx = quick_ctx()
    with stopped(ctx):
        damon_start([ctx], exclusive=False)

        def set_bad() -> None:
            damon_set_attrs(ctx, damon_attrs(min_nr_regions=1))

        assert errno.EINVAL == errno_of(in_kdamond, ctx, set_bad)
        assert 1000 == ctx.attrs.sample_interval


def test_real_deadlines_do_not_drift() -> None:
    """On the machine's own clock, too: sampled and missed intervals are just the time that passed."""
    ctx = quick_ctx(sample_interval=2000, aggr_interval=20_000)
    with stopped(ctx):
        damon_start([ctx], exclusive=False)
        start = in_kdamond(ctx, lambda: (ctx.deadline, ctx.passed_sample_intervals + ctx.missed_intervals))
        time.sleep(0.2)
        end = in_kdamond(ctx, lambda: (ctx.deadline, ctx.passed_sample_intervals + ctx.missed_intervals))
    assert end[0] - start[0] == (end[1] - start[1]) * 2 * MS
