# SPDX-License-Identifier: GPL-2.0-only
"""When calls that hold a target's mmap_lock pause, and how much one of them does."""

from __future__ import annotations

import pytest

from kdamon.mm import mmap_lock
from kdamon.mm.mmap_lock import LONGEST, CallSize, held

MICROSECOND = 1000
#: A pagemap whose lock no thread waits for.
NOT_WAITED_FOR = 5


class FakeTime:
    """A clock that only calls and pauses move."""

    def __init__(self) -> None:
        self.now = 10**12
        self.pauses: list[float] = []

    def monotonic_ns(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += round(seconds * 1e9)

    def call(self, microseconds: int, pagemap: int = -1) -> None:
        with held.of(pagemap):
            self.now += microseconds * MICROSECOND


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    clock = FakeTime()
    monkeypatch.setattr(mmap_lock, "_waited_for", lambda pagemap: pagemap != NOT_WAITED_FOR)
    monkeypatch.setattr(mmap_lock, "time", clock)
    # The calls of other tests are long ago.
    monkeypatch.setattr(held, "_end", 0)
    monkeypatch.setattr(held, "_waited_at", 0)
    return clock


def test_calls_pause_after_a_tenth_of_a_millisecond_together(clock: FakeTime) -> None:
    """However short each of them is."""
    for _ in range(100):
        clock.call(20)
    assert 19 == len(clock.pauses)
    assert {0.0001} == set(clock.pauses)


def test_a_long_call_is_followed_by_a_pause(clock: FakeTime) -> None:
    """Before the next one, not after the last."""
    clock.call(250)
    assert [] == clock.pauses
    clock.call(1)
    assert [0.0001] == clock.pauses


def test_what_the_caller_does_in_between_is_a_pause(clock: FakeTime) -> None:
    """Fully, or a part of one."""
    for _ in range(10):
        clock.call(90)
        clock.now += 100 * MICROSECOND
    assert [] == clock.pauses
    clock.call(90)
    clock.call(90)
    clock.now += 40 * MICROSECOND
    clock.call(1)
    assert clock.pauses == pytest.approx([0.00006])


def test_no_pause_is_made_for_a_lock_that_no_thread_waits_for(clock: FakeTime) -> None:
    """Until one does, and for a second then: it will map memory again."""
    for _ in range(100):
        clock.call(90, NOT_WAITED_FOR)
    assert [] == clock.pauses
    clock.call(110, NOT_WAITED_FOR)
    clock.call(110)
    assert 1 == len(clock.pauses)
    clock.call(110, NOT_WAITED_FOR)
    assert 2 == len(clock.pauses)
    clock.now += 10**9
    for _ in range(100):
        clock.call(110, NOT_WAITED_FOR)
    assert 2 == len(clock.pauses)


def test_a_failed_call_counts(clock: FakeTime) -> None:
    """It held the lock too."""
    with pytest.raises(OSError, match="refused"), held:
        clock.now += 300 * MICROSECOND
        raise OSError("refused")
    clock.call(1)
    assert 1 == len(clock.pauses)


@pytest.mark.parametrize(("fixed", "each"), [(0, 1), (5, 2), (150, 1), (0, 60)])
def test_a_size_fits_the_machine(clock: FakeTime, fixed: int, each: int) -> None:
    """From any size to calls that take neither more than they may nor much less."""
    for first in (1, 64, 1000):
        size = CallSize(first, 1, 1000)
        longest = 0
        for turn in range(200):
            did = size.now
            clock.call(fixed + each * did)
            size.called(did)
            if turn > 100:
                longest = max(longest, held.elapsed)
        assert longest <= LONGEST + 2 * each * MICROSECOND
        assert fixed + each * (size.now + 1) >= 75


def test_a_size_has_bounds(clock: FakeTime) -> None:
    """Never less than the least nor more than the most, and a call that did less than it might teaches no growth."""
    size = CallSize(64, 32, 128)
    for _ in range(10):
        clock.call(5000)
        size.called(size.now)
    assert 32 == size.now
    clock.call(1)
    size.called(10)
    assert 32 == size.now
    for _ in range(10):
        clock.call(1)
        size.called(size.now)
    assert 128 == size.now


def test_one_long_call_does_not_make_it_tiny(clock: FakeTime) -> None:
    """The thread may only have waited for a CPU."""
    size = CallSize(64, 1, 128)
    clock.call(100_000)
    size.called(64)
    assert 16 == size.now
