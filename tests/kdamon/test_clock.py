# SPDX-License-Identifier: GPL-2.0-only
"""Clocks: what sleeps, and until when."""

import threading
import time

from kdamon.kernel import ULONG_MAX, RealClock, VirtualClock


def test_a_sleep_without_end_in_sight_ends_when_it_is_woken():
    """A sampling interval may be as long as the tree's files can say, which is longer than any thread can wait."""
    clock = RealClock()
    wake = threading.Event()
    sleeper = threading.Thread(target=clock.sleep_until, args=(clock.now() + ULONG_MAX * 1000, wake))
    sleeper.start()
    time.sleep(0.02)
    assert sleeper.is_alive()
    wake.set()
    sleeper.join(60)
    assert not sleeper.is_alive()


def test_a_deadline_that_is_over_is_no_sleep():
    """The past is not waited for."""
    RealClock().sleep_until(0, threading.Event())


def test_virtual_time_passes_by_sleeping_only():
    """A simulated run takes no longer than its computations."""
    clock = VirtualClock(end=7)
    clock.sleep_until(5, threading.Event())
    assert 5 == clock.now()
    clock.sleep_until(3, threading.Event())
    assert 5 == clock.now()
    assert not clock.expired()
    clock.sleep_until(7, threading.Event())
    assert clock.expired()
