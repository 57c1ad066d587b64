# SPDX-License-Identifier: GPL-2.0-only
"""From when to when a kdamond really sampled, and what pictures and figures make of the rest."""

from __future__ import annotations

import threading
import time

import pytest

from kdamon.core import damon_stop
from kdamon.damon import damon_ctx
from kdamon.kernel import VirtualClock
from kdamon.monitoring import monitor as monitoring
from kdamon.monitoring.sampled_time import SampledTime
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.reporters.table import render_summary, summarize
from kdamon_tools.snapshot import Config, Counters, Recording, Snapshot

CONFIG = Config(pid=42)
INTERVAL, LONGEST = 10, 100


class LateClock(VirtualClock):
    """A clock by which work takes a nanosecond, and by which a sleeper may be late."""

    def __init__(self) -> None:
        super().__init__()
        self.late: dict[int, int] = {}
        self.sleeps = 0

    def work(self, nanoseconds: int) -> None:
        """Let time pass."""
        self._now += nanoseconds

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        super().sleep_until(deadline, wake)
        self.work(1 + self.late.get(self.sleeps, 0))
        self.sleeps += 1


def spans(late: dict[int, int], work: dict[int, int], aggregations: int = 3) -> list[tuple[int, int]]:
    """What is sampled in aggregations of ten samples each, if sleeps are ``late`` and ``work`` takes long."""
    clock = LateClock()
    clock.work(1000)
    clock.late = late
    sampled = SampledTime(clock, LONGEST)
    found = []
    for sample in range(10 * aggregations):
        clock.work(work.get(sample, 0))
        sampled.sleep_until(sampled.now() // INTERVAL * INTERVAL + INTERVAL, threading.Event())
        if sample % 10 == 9:
            found.append(sampled.take_span())
    return found


@pytest.mark.parametrize(
    ("late", "work", "expected"),
    [
        ({}, {}, [(1000, 1101), (1101, 1201), (1201, 1301)]),
        # Late by less than an aggregation interval: the samples last longer.
        ({4: 90}, {}, [(1000, 1191), (1191, 1291), (1291, 1391)]),
        # Stopped in a sleep, late or early in an aggregation: the longer part around the pause stays.
        ({6: 5000}, {}, [(1000, 1070), (6101, 6201), (6201, 6301)]),
        ({2: 5000}, {}, [(6031, 6101), (6101, 6201), (6201, 6301)]),
        # Stopped at work, at the end of an aggregation, and twice in one.
        ({}, {6: 5000}, [(1000, 1061), (6101, 6201), (6201, 6301)]),
        ({9: 5000}, {}, [(1000, 1100), (6101, 6201), (6201, 6301)]),
        ({12: 5000, 18: 5000}, {}, [(1000, 1101), (6131, 6190), (11201, 11301)]),
        # Stopped before the first sample.
        ({}, {0: 5000}, [(6000, 6101), (6101, 6201), (6201, 6301)]),
    ],
)
def test_a_span_has_no_pause(late: dict[int, int], work: dict[int, int], expected: list[tuple[int, int]]) -> None:
    """Whatever time the kdamond was stopped at; afterwards all is as before."""
    assert expected == spans(late, work)


def recording(times: list[tuple[float, float]], seconds: float, merged: int = 1) -> Recording:
    """Snapshots of a hot page from when to when, seconds since the beginning of the recording."""
    rows = [(0x1000, 0x2000, 20.0, 0, 0.0)]
    snapshots = [Snapshot.of(100 + end, rows, merged, end - begin) for begin, end in times]
    return Recording(CONFIG, snapshots, Counters(cpu_s=1.0), 100.0, 100.0 + seconds)


def tenths(first: int, end: int) -> list[tuple[float, float]]:
    """Snapshots of a tenth of a second each."""
    return [(t / 10, (t + 1) / 10) for t in range(first, end)]


@pytest.mark.parametrize(
    ("times", "seconds", "expected"),
    [
        (tenths(0, 10), 1.0, "@" * 10),
        # Stopped for a second in the middle, at the end, at the beginning.
        (tenths(0, 10) + tenths(20, 30), 3.0, "@" * 10 + " " * 10 + "@" * 10),
        (tenths(0, 10), 2.0, "@" * 10),
        (tenths(10, 20), 2.0, " " * 10 + "@" * 10),
        # As many columns as there would be snapshots; there is room for 62 of them.
        (tenths(0, 1) + tenths(9, 10), 1.0, "@" + " " * 8 + "@"),
        (tenths(0, 310) + tenths(620, 930), 93.0, "@" * 21 + " " * 20 + "@" * 21),
        (tenths(0, 1), 0.1, "@"),
        # A snapshot that covers much: of many aggregations, or of one whose samples were all late.
        ([(0, 1.0), (1.0, 1.1), (1.1, 1.2)], 1.2, "@" * 12),
    ],
)
def test_time_in_which_nothing_was_sampled_is_blank(
    times: list[tuple[float, float]], seconds: float, expected: str
) -> None:
    """And neither its neighbours' nor the next snapshot's shade."""
    lines = render_heatmap(recording(times, seconds), show_legend=False).splitlines()
    assert expected.rstrip() == lines[1][18:]


def test_figures_are_about_the_time_in_which_something_was_sampled() -> None:
    """A line says how long nothing was; the CPU time of the kdamond is related to the rest."""
    figures = summarize(recording(tenths(0, 20) + tenths(120, 140), 14.0))
    assert (10.0, 25.0) == (figures["unsampled_seconds"], round(figures["kdamond_cpu_percent"], 6))
    text = render_summary(recording(tenths(0, 20) + tenths(120, 140), 14.0))
    assert "nothing was sampled for                 10 s  of the 14 s\n" in text
    # The first and the last interval of a run are no pause.
    assert "nothing was sampled" not in render_summary(recording(tenths(1, 139), 14.0))


def test_time_in_which_the_machine_was_suspended_is_said() -> None:
    """It is no part of the run: the clock stands still, as the process does."""
    made = recording(tenths(0, 20), 2.0)
    assert "suspended" not in render_summary(made)
    made = Recording(CONFIG, made.snapshots, Counters(suspended_s=63.2), 100.0, 102.0)
    assert "the machine was suspended for           63 s  besides" in render_summary(made)


def test_the_time_ends_with_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """To let a process go may take seconds, in which nothing is monitored."""
    sampled_until = []

    def stop_slowly(ctxs: list[damon_ctx]) -> None:
        damon_stop(ctxs)
        sampled_until.append(time.monotonic())
        time.sleep(0.01)

    monkeypatch.setattr(monitoring, "damon_stop", stop_slowly)
    config = Config(pid=42, ops="reports", primitive="", ranges=((0x1000, 0x5000),))
    with monitoring.Monitor(config) as monitor:
        while not monitor.drain():
            time.sleep(0.01)
    assert monitor.started < monitor.ended <= sampled_until[0]
