# SPDX-License-Identifier: GPL-2.0-only
"""Simulated memory is what the tests of monitoring rest on: it does what its script says."""

from __future__ import annotations

import errno
import math
import threading

import numpy as np
import pytest

from kdamon.mm import OLD, UNKNOWN, YOUNG
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess

PAGE = 4096


def sampled(process: SimProcess, addrs: list[int], ns: int) -> list[int]:
    """One sample of ``addrs`` that takes ``ns``."""
    array = np.array(addrs, np.uint64)
    process.begin_sample(array)
    process.clock.sleep_until(process.clock.now() + ns, threading.Event())
    return process.end_sample(array).tolist()


def spawn(*ranges: tuple[int, int]) -> SimProcess:
    return SimMachine(seed=1).spawn(list(ranges) or [(0, 40_000 * PAGE)])


def test_what_is_always_accessed_is_young_and_the_rest_is_old() -> None:
    process = spawn()
    process.access(10 * PAGE, 20 * PAGE)
    addrs = [10 * PAGE - 1, 10 * PAGE, 20 * PAGE - 1, 20 * PAGE]
    assert [OLD, YOUNG, YOUNG, OLD] == sampled(process, addrs, 1000)


def test_what_is_not_mapped_is_old() -> None:
    process = spawn((PAGE, 2 * PAGE), (4 * PAGE, 5 * PAGE))
    process.access(0, 100 * PAGE)
    addrs = [0, PAGE, 2 * PAGE - 1, 2 * PAGE, 4 * PAGE, 5 * PAGE, 99 * PAGE]
    assert [OLD, YOUNG, YOUNG, OLD, YOUNG, OLD, OLD] == sampled(process, addrs, 1000)
    process.mmap([])
    assert [OLD] * 7 == sampled(process, addrs, 1000)


@pytest.mark.parametrize(("rate", "ms"), [(1, 100), (100, 5), (200, 5), (1000, 1), (0.0, 1000)])
def test_a_rate_is_a_probability(rate: float, ms: int) -> None:
    """A page is accessed in a time with the probability 1 - exp(-rate * time)."""
    process = spawn()
    process.access(0, 40_000 * PAGE, rate=rate)
    young = sampled(process, [i * PAGE for i in range(40_000)], ms * 1_000_000).count(YOUNG) / 40_000
    assert abs(young - (1 - math.exp(-rate * ms / 1000))) < 0.01


def test_rates_of_overlapping_pieces_add_up() -> None:
    process = spawn()
    process.access(0, 40_000 * PAGE, rate=40)
    process.access(20_000 * PAGE, 40_000 * PAGE, rate=60)
    young = sampled(process, [i * PAGE for i in range(20_000, 40_000)], 10_000_000).count(YOUNG) / 20_000
    assert abs(young - (1 - math.exp(-1))) < 0.01


@pytest.mark.parametrize(
    ("begin", "until", "expected"), [(0, 1, OLD), (0, 1.0005, YOUNG), (1.0005, 2, YOUNG), (1.001, 2, OLD)]
)
def test_pieces_have_their_time(begin: float, until: float, expected: int) -> None:
    """A sample from 1 s to 1.001 s sees what happens in between, however short."""
    process = spawn()
    process.access(0, PAGE, begin=begin, until=until)
    process.clock.sleep_until(1_000_000_000, threading.Event())
    assert [expected] == sampled(process, [0], 1_000_000)


def test_unknown_ranges_are_unknown_even_if_accessed() -> None:
    process = spawn()
    process.access(0, 100 * PAGE)
    process.unknown.append((PAGE, 2 * PAGE))
    assert [YOUNG, UNKNOWN, YOUNG] == sampled(process, [0, PAGE, 2 * PAGE], 1000)


def test_without_a_sample_before_nothing_is_known() -> None:
    """Nor is it of other addresses than were sampled."""
    process = spawn()
    process.access(0, 100 * PAGE)
    addrs = np.zeros(3, np.uint64)
    assert [UNKNOWN] * 3 == process.end_sample(addrs).tolist()
    process.begin_sample(addrs.copy())
    assert [UNKNOWN] * 3 == process.end_sample(addrs).tolist()


def test_the_same_seed_gives_the_same_accesses() -> None:
    answers = []
    for seed in (1, 1, 2):
        process = SimMachine(seed).spawn([(0, 100 * PAGE)])
        process.access(0, 100 * PAGE, rate=100)
        answers.append(sampled(process, [i * PAGE for i in range(100)], 5_000_000))
    assert answers[0] == answers[1] != answers[2]


def test_processes_are_found_while_they_live() -> None:
    machine = SimMachine()
    process = machine.spawn([(0, PAGE)], pid=5)
    assert process is machine.get_task(5)
    assert process is process.get_mm()
    process.exit()
    assert (False, None) == (process.valid(), process.get_mm())
    for pid in (5, 6):
        with pytest.raises(OSError) as error:
            machine.get_task(pid)
        assert errno.ESRCH == error.value.errno
