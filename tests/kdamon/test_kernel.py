# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel gives every subsystem: integers, random numbers, clocks, threads."""

from __future__ import annotations

import re
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.kernel import (
    ALIGN,
    ALIGN_DOWN,
    UINT_MAX,
    ULONG_MAX,
    RealClock,
    VirtualClock,
    is_power_of_2,
    kthread,
    kthread_stop,
    mult_frac,
    rnd_state,
    time_after_eq,
    uint,
    ulong,
)
from tests.support.paths import ROOT
from tests.support.tables import effort

u64 = st.integers(0, ULONG_MAX)


@pytest.mark.parametrize(
    ("value", "alignment", "down", "up"),
    [(0, 4096, 0, 0), (1, 4096, 0, 4096), (4096, 4096, 4096, 4096), (4097, 4096, 4096, 8192), (10, 6, 6, 12)],
)
def test_alignment(value: int, alignment: int, down: int, up: int) -> None:
    assert (down, up) == (ALIGN_DOWN(value, alignment), ALIGN(value, alignment))


@pytest.mark.parametrize(
    ("value", "expected"), [(0, False), (1, True), (2, True), (3, False), (4096, True), (-2, False)]
)
def test_is_power_of_2(value: int, expected: bool) -> None:
    assert expected == is_power_of_2(value)


def test_integers_wrap_at_their_widths() -> None:
    assert (0, 5, UINT_MAX) == (uint(UINT_MAX + 1), uint((3 << 32) + 5), uint(-1))
    assert (0, ULONG_MAX) == (ulong(ULONG_MAX + 1), ulong(-1))


@effort(100)
@given(st.integers(0, 2**32), st.integers(0, 2**20), st.integers(1, 2**20))
def test_mult_frac_truncates_twice(value: int, numerator: int, denominator: int) -> None:
    """At most one below the exact quotient's whole part, never above."""
    exact = value * numerator // denominator
    assert exact - 1 <= mult_frac(value, numerator, denominator) <= exact
    assert mult_frac(value, denominator, denominator) == value


@effort(100)
@given(u64, st.integers(0, 2**62))
def test_time_after_eq_holds_across_the_wrap(time: int, later: int) -> None:
    assert time_after_eq(ulong(time + later), time)
    assert not time_after_eq(time, ulong(time + later)) or 0 == later


@pytest.mark.parametrize("n", [0, 1, 10, 4095, 4096, 4097, 100_000])
def test_random_numbers_are_repeatable_and_32_bits_wide(n: int) -> None:
    one, same, other = rnd_state(3), rnd_state(3), rnd_state(4)
    first, second = one.u32(n).tolist(), one.u32(n).tolist()
    assert (first, second) == (same.u32(n).tolist(), same.u32(n).tolist())
    assert n == len(first)
    assert all(0 <= value <= UINT_MAX for value in first)
    if n >= 10:
        assert first != second
        assert first != other.u32(n).tolist()
    if n >= 4096:
        assert abs(np.mean(first) / UINT_MAX - 0.5) < 0.05


def test_random_numbers_of_the_system_differ() -> None:
    assert rnd_state().u64(4).tolist() != rnd_state().u64(4).tolist()


def test_a_virtual_clock_goes_where_a_sleep_ends_and_never_back() -> None:
    clock = VirtualClock(end=100)
    wake = threading.Event()
    clock.sleep_until(50, wake)
    clock.sleep_until(20, wake)
    assert (50, False) == (clock.now(), clock.expired())
    wake.set()
    clock.sleep_until(100, wake)
    assert 50 == clock.now()
    wake.clear()
    clock.sleep_until(100, wake)
    assert clock.expired()


@pytest.mark.parametrize("ms", [0, 1, 15])
def test_the_real_clock_sleeps_at_least_to_the_deadline(ms: int) -> None:
    clock = RealClock()
    deadline = clock.now() + ms * 1_000_000
    clock.sleep_until(deadline, threading.Event())
    # A condition's timeout may be a little early, by what it converts.
    assert clock.now() >= deadline - 100_000


def test_a_long_sleep_can_be_woken() -> None:
    wake = threading.Event()
    sleeper = threading.Thread(target=RealClock().sleep_until, args=(time.monotonic_ns() + 10**15, wake))
    sleeper.start()
    wake.set()
    sleeper.join(60)
    assert not sleeper.is_alive()


@pytest.mark.traceback_expected
def test_a_kthread_keeps_what_killed_it() -> None:
    def fail(arg: str) -> None:
        raise ZeroDivisionError(arg)

    thread = kthread(fail, "what", "kthread-test")
    assert -1 == thread.pid
    assert thread.join(60)
    thread.start()
    assert thread.join(60)
    assert not thread.alive()
    assert isinstance(thread.error, ZeroDivisionError)


def test_a_kthread_runs_until_it_is_asked_to_stop() -> None:
    started = threading.Event()

    def work(_: None) -> None:
        started.set()
        while not thread.should_stop():
            time.sleep(0.001)

    thread = kthread(work, None, "kthread-test")
    thread.start()
    assert started.wait(60)
    assert thread.alive() and thread.pid > 0
    assert [] == kthread_stop([thread], 60)
    assert not thread.alive() and thread.error is None


def test_page_sizes_have_one_place() -> None:
    """Two programs that run alone under ``python -I -S`` cannot import it."""
    root = ROOT
    standalone = {"kdamon/mm/apart/madvise_helper.py", "kdamon/mm/inject/helper.py"}
    own_sizes = re.compile(r"PAGESIZE|1 << 21|^_?(PAGE|PAGE_SIZE|HUGE|BLOCK)\b.* = (4096|1 << 12)$", re.MULTILINE)

    paths = [path for part in ("kdamon", "fs/kdamon_fs", "tools/kdamon_tools") for path in (root / part).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in paths if own_sizes.search(path.read_text(encoding="utf-8"))}

    assert {"kdamon/kernel.py", *standalone} == found


def test_arrays_have_one_set_of_names() -> None:
    """Names with a meaning of their own, such as ``Answers``, are made of these."""
    root = ROOT
    own_names = re.compile(r"NDArray\[np\.(uint8|uint32|uint64|int32|int64|float64|bool_|intp|void)\]")

    paths = [path for part in ("kdamon", "fs/kdamon_fs", "tools/kdamon_tools") for path in (root / part).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in paths if own_names.search(path.read_text(encoding="utf-8"))}

    assert {"kdamon/arrays.py"} == found
