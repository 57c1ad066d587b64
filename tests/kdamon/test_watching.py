# SPDX-License-Identifier: GPL-2.0-only
"""Watched pages of simulated memory: the share that is accessed within a window, whatever the pattern."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.monitoring.use import UNKNOWN, WINDOWS, LookCounts, WindowUse, estimate
from kdamon.monitoring.watching import CohortLog, Watching

MIB = 1 << 20
BASE = 1 << 30


def spawn(mib: int) -> SimProcess:
    return SimMachine(seed=1).spawn([(BASE, BASE + mib * MIB)])


def wait(process: SimProcess, seconds: float) -> None:
    process.clock.sleep_until(process.clock.now() + round(seconds * 1e9), threading.Event())


def watched(process: SimProcess, seconds: int, count: int = 500) -> dict[float, WindowUse]:
    """What is found in ``seconds``, with ``count`` pages chosen each second."""

    def now() -> float:
        return process.clock.now() / 1e9

    log = CohortLog(process.watch(), np.random.default_rng(2))
    found: dict[float, list[LookCounts]] = {window: [] for window in WINDOWS}
    for _ in range(seconds):
        for window, looks in log.look(now()):
            found[window].append(LookCounts.of(looks))
        log.begin(process.vmas(), count, now)
        wait(process, 1)
    log.close()
    uses = {window: estimate(counts, window, None) for window, counts in found.items()}
    return {window: use for window, use in uses.items() if use is not None}


def test_each_window_finds_what_is_accessed_in_it() -> None:
    """Of 200 MiB 20 are accessed all the time, 60 every 5 s on average, the rest never."""
    process = spawn(200)
    process.access(BASE, BASE + 20 * MIB, rate=100)
    process.access(BASE + 20 * MIB, BASE + 80 * MIB, rate=0.2)
    found = watched(process, 90)
    for window, use in found.items():
        expected = 20 * MIB + 60 * MIB * -np.expm1(-0.2 * window)
        assert use.low <= expected <= use.high, f"window of {window} s"
        assert 0 == use.unknown
    assert list(WINDOWS) == list(found)
    assert found[10.0].high - found[10.0].low < 10 * MIB


def test_two_runs_agree() -> None:
    """Within 10 % for an eighth of the memory, after 30 s."""
    sizes = []
    for seed in (1, 2):
        process = SimMachine(seed=seed).spawn([(BASE, BASE + 256 * MIB)])
        process.access(BASE, BASE + 32 * MIB, rate=1)
        sizes.append(watched(process, 30)[10.0].accessed)
    assert pytest.approx(sizes[0], rel=0.1) == sizes[1]
    assert pytest.approx(32 * MIB, rel=0.1) == sizes[0]


def test_pages_that_are_chosen_again_count_for_each_choice() -> None:
    """A small process is watched as a whole all the time: the windows overlap on the same pages."""
    process = spawn(4)
    process.access(BASE, BASE + MIB, rate=0.1)
    found = watched(process, 80)
    assert pytest.approx(MIB * -np.expm1(-1), rel=0.1) == found[10.0].accessed
    assert pytest.approx(MIB * -np.expm1(-6), rel=0.1) == found[60.0].accessed


def test_memory_that_cannot_be_observed_is_unknown() -> None:
    process = spawn(100)
    process.access(BASE, BASE + 100 * MIB, rate=100)
    process.unknown.append((BASE, BASE + 50 * MIB))
    use = watched(process, 10)[1.0]
    assert pytest.approx(50 * MIB, rel=0.1) == use.unknown
    assert pytest.approx(50 * MIB, rel=0.1) == use.accessed
    assert 0 == use.idle


def test_memory_that_is_unmapped_is_no_part_of_it() -> None:
    process = spawn(100)
    log = CohortLog(process.watch(), np.random.default_rng(2))
    log.begin(process.vmas(), 1000, lambda: process.clock.now() / 1e9)
    process.mmap([(BASE, BASE + 25 * MIB)])
    wait(process, 1)
    [(window, looks)] = log.look(process.clock.now() / 1e9)
    use = estimate([LookCounts.of(looks)], window)
    assert use is not None
    assert pytest.approx(25 * MIB, rel=0.2) == use.idle
    assert not (looks["state"] == UNKNOWN).any()


def test_memory_that_cannot_be_read_for_a_moment_stays_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when others wait for its lock: windows that began go on."""
    process = spawn(100)
    watching = Watching(process, seed=1)
    watching._choose()
    log = watching._log
    assert log is not None
    with monkeypatch.context() as away:
        away.setattr(SimProcess, "get_mm", lambda _: None)
        watching._choose()
    watching._choose()
    assert watching._log is log
    assert not log.empty


def test_pages_are_chosen_from_what_is_in_memory_now() -> None:
    """A process that grew since the populated memory was looked up."""
    process = spawn(10)
    watching = Watching(process, seed=1)
    watching._choose()
    process.mmap([(BASE, BASE + 10 * MIB), (2 * BASE, 2 * BASE + 90 * MIB)])
    watching._look_what_is_there()
    watching._choose()
    log = watching._log
    assert log is not None
    grown = log._cohorts[-1].pages
    assert pytest.approx(0.9, abs=0.05) == (grown >= 2 * BASE).mean()


def test_a_process_that_starts_is_looked_up_at_once() -> None:
    """Where it is not known what is in memory: of what it had at first little can be said about the rest."""
    process = spawn(10)
    watching = Watching(process, seed=1)
    watching._choose()
    process.mmap([(BASE, BASE + 100 * MIB)])
    watching._choose()
    assert 100 * MIB == int((watching._populated[:, 1] - watching._populated[:, 0]).sum())
    log = watching._log
    assert log is not None
    # The pages of its first moment are not watched any more; those of a little growth later are.
    assert 1 == len(log._cohorts)
    process.mmap([(BASE, BASE + 120 * MIB)])
    watching._choose()
    assert watching._log is log
    assert 2 == len(log._cohorts)


def test_choices_are_of_all_ranges_alike() -> None:
    """Pages of each range are chosen by its size."""
    process = spawn(100)
    ranges: U64Array = np.array([[BASE, BASE + MIB], [BASE + 90 * MIB, BASE + 99 * MIB]], np.uint64)
    log = CohortLog(process.watch(), np.random.default_rng(2))
    log.begin(ranges, 2000, lambda: 0.0)
    [(_, looks)] = log.look(1.0)
    first = looks["addr"] < BASE + MIB
    assert pytest.approx(0.1, rel=0.3) == first.mean()
    assert (first | ((looks["addr"] >= BASE + 90 * MIB) & (looks["addr"] < BASE + 99 * MIB))).all()
    assert pytest.approx(10 * MIB) == looks["weight"].sum()
