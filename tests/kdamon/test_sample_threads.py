# SPDX-License-Identifier: GPL-2.0-only
"""A thread that a filter waits for and that is not there is said to be so, once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from kdamon.core import damon_add_target, damon_new_ctx, damon_new_target
from kdamon.damon import damon_ctx, damon_sample_filter_type
from kdamon.kernel import VirtualClock
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.sample_control import damon_add_sample_filter, damon_new_sample_filter, only_threads
from kdamon.vaddr import va_report_faults

THREADS = damon_sample_filter_type.DAMON_FILTER_TYPE_THREADS
SECOND = 1_000_000_000


def context(*filters: tuple[bool, bool, tuple[int, ...]]) -> tuple[damon_ctx, SimProcess, VirtualClock]:
    """A context with a process and filters of threads: matching, allow and numbers of each."""
    machine = SimMachine()
    process = machine.spawn([(1 << 20, 2 << 20)])
    ctx = damon_new_ctx()
    ctx.clock, ctx.machine = machine.clock, machine
    target = damon_new_target()
    target.pid, target.task = process.pid, process
    damon_add_target(ctx, target)
    for matching, allow, tids in filters:
        damon_add_sample_filter(ctx.sample_control, damon_new_sample_filter(THREADS, matching, allow, tid_arr=tids))
    return ctx, process, machine.clock


@pytest.fixture(name="said")
def _said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    def said() -> list[str]:
        messages = [record.message for record in caplog.records]
        caplog.clear()
        return messages

    return said


@pytest.mark.parametrize(
    ("matching", "allow", "expected"),
    [(True, True, (5, 6)), (False, False, (5, 6)), (True, False, ()), (False, True, ())],
)
def test_threads_that_alone_count_are_awaited(matching: bool, allow: bool, expected: tuple[int, ...]) -> None:
    """Those that are kept out are not missed."""
    ctx, _, _ = context((matching, allow, (5, 6, 5)))
    assert expected == only_threads(ctx.sample_control)


def test_a_thread_that_ends_is_said_once(said: Callable[[], list[str]]) -> None:
    """Looked for once a second; others go on."""
    ctx, process, clock = context((True, True, (5, 6)))
    va_report_faults(ctx, sampled=False)
    process.ended_threads.add(5)
    va_report_faults(ctx, sampled=False)
    assert [] == said()
    for _ in range(3):
        clock.sleep_until(clock.now() + SECOND, threading.Event())
        va_report_faults(ctx, sampled=False)
    assert ["thread 5 ended: it makes no more accesses that the filter could count"] == said()


def test_a_thread_of_no_target_is_said_at_once(said: Callable[[], list[str]]) -> None:
    """With where its number is to be taken from."""
    ctx, process, _ = context((True, True, (5,)))
    process.ended_threads.add(5)
    va_report_faults(ctx, sampled=False)
    assert [
        f"thread 5 ended or is not in process {process.pid}: no access of it counts; /proc/{process.pid}/task lists "
        "the threads"
    ] == said()


def test_with_its_process_a_thread_ends_without_a_word(said: Callable[[], list[str]]) -> None:
    """That the process ended is said elsewhere."""
    ctx, process, clock = context((True, True, (5,)))
    va_report_faults(ctx, sampled=False)
    process.exit()
    clock.sleep_until(clock.now() + SECOND, threading.Event())
    va_report_faults(ctx, sampled=False)
    assert [] == said()
