# SPDX-License-Identifier: GPL-2.0-only
"""Recall, precision and detection delay against a known truth."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from kdamon_tools.compare import PhaseResult, compare, phases
from kdamon_tools.snapshot import Config, Counters, Recording, Snapshot
from kdamon_tools.workloads.truth import Event, load_truth, write_event

PAGE = 4096
EVENTS = [
    Event(100.0, "map", 0, 100 * PAGE),
    Event(100.0, "hot", 0, 10 * PAGE),
    Event(105.0, "hot", 10 * PAGE, 20 * PAGE),
    Event(110.0, "end", 0, 100 * PAGE),
]


def snapshot(time: float, hot_start: int, hot_end: int, nr_accesses: int = 20) -> Snapshot:
    """100 pages, those from ``hot_start`` to ``hot_end`` accessed ``nr_accesses`` times."""
    cuts = [(0, hot_start, 0), (hot_start, hot_end, nr_accesses), (hot_end, 100, 9)]
    return Snapshot.of(time, [(start * PAGE, end * PAGE, nr, 0, 0) for start, end, nr in cuts if start < end])


def recording(*snapshots: Snapshot) -> Recording:
    """A recording from 100 to 110 with the default intervals and without pauses."""
    times = [100.0, *(snapshot.time for snapshot in snapshots)]
    return paused(*(evolve(snapshot, began=began) for began, snapshot in zip(times, snapshots, strict=False)))


def paused(*snapshots: Snapshot) -> Recording:
    """The same, of snapshots between which there may be pauses."""
    return Recording(Config(pid=1), list(snapshots), Counters(), 100.0, 110.0)


def test_phases_follow_each_other() -> None:
    """A place is hot until the next one is, the last one until the end."""
    assert [(100.0, 105.0, (0, 10 * PAGE)), (105.0, 110.0, (10 * PAGE, 20 * PAGE))] == [
        (phase.begin, phase.end, phase.hot) for phase in phases(EVENTS)
    ]


@pytest.mark.parametrize(
    ("hot_start", "hot_end", "nr_accesses", "recall", "precision"),
    [
        (0, 10, 20, 1.0, 1.0),
        (0, 5, 20, 0.5, 1.0),
        (0, 20, 20, 1.0, 0.5),
        (20, 30, 20, 0.0, 0.0),
        (5, 15, 10, 0.5, 0.5),
        (0, 10, 9, 0.0, 0.0),
    ],
    ids=["exact", "half", "double", "elsewhere", "shifted, half of the maximum", "below half of the maximum"],
)
def test_recall_and_precision(hot_start: int, hot_end: int, nr_accesses: int, recall: float, precision: float) -> None:
    """Regions from half of the maximum on count as found."""
    found = compare(recording(snapshot(104.0, hot_start, hot_end, nr_accesses)), EVENTS)
    assert (recall, precision, 1) == (found.recall, found.precision, found.nr_judged)


def test_the_warm_up_and_the_moment_after_a_move_are_not_judged() -> None:
    """No monitor can know so early."""
    early = [snapshot(100.1, 50, 60), snapshot(102.9, 50, 60)]
    settling = [snapshot(105.1, 0, 10), snapshot(105.2, 0, 10)]
    found = compare(recording(*early, snapshot(104.0, 0, 10), *settling, snapshot(105.3, 10, 20)), EVENTS)
    assert (1.0, 1.0, 2) == (found.recall, found.precision, found.nr_judged)


def test_delay_is_the_first_snapshot_with_half_of_the_window() -> None:
    """The move at 105 is seen at 105.5, when 5 of 10 pages were found."""
    found = compare(recording(snapshot(105.1, 0, 14), snapshot(105.5, 0, 15), snapshot(106.0, 10, 20)), EVENTS)
    assert (1, 0, [0.5]) == (found.nr_moves, found.nr_moves_missed, found.delays_s)


def test_a_move_that_nobody_saw_is_missed() -> None:
    """It has no delay, and it is counted."""
    found = compare(recording(snapshot(106.0, 0, 10), snapshot(109.0, 0, 10)), EVENTS)
    assert (1, 1, []) == (found.nr_moves, found.nr_moves_missed, found.delays_s)
    assert (PhaseResult(105.0, (10 * PAGE, 20 * PAGE), 10 * PAGE, 0.0, 0.0, None),) == found.phases


def test_a_move_while_nothing_was_sampled() -> None:
    """The delay counts from when sampling went on, and the moments after that are not judged."""
    times = [round(100 + t / 10, 1) for t in range(1, 40)] + [round(107.0 + t / 10, 1) for t in range(1, 30)]
    seen = [snapshot(time, 0, 10) if time < 107.35 else snapshot(time, 10, 20) for time in times]
    found = compare(paused(*seen), EVENTS)
    assert (1, 0, [0.4]) == (found.nr_moves, found.nr_moves_missed, [round(delay, 6) for delay in found.delays_s])
    # The snapshot of 107.3 is the first to be judged, and not right yet.
    assert [1.0, 26 / 27] == [phase.recall for phase in found.phases]


def test_a_phase_that_was_over_before_sampling_went_on_is_not_judged() -> None:
    """No invisible move counts as missed, and the warm-up lasts as long as sampling did."""
    resumed = [snapshot(round(109.2 + t / 10, 1), 10, 20) for t in range(8)]
    found = compare(paused(snapshot(103.1, 0, 10), *resumed), EVENTS)
    assert (0, 0, 0) == (found.nr_moves, found.nr_moves_missed, found.nr_judged)


def test_nothing_is_judged_without_snapshots() -> None:
    """Figures are missing, not zero."""
    found = compare(recording(), EVENTS[:2])
    assert (None, None, 0, ()) == (found.recall, found.precision, found.nr_judged, found.phases)


def test_a_truth_file_reads_back_what_was_written(tmp_path: Path) -> None:
    """Time is added, figures stay."""
    path = tmp_path / "truth.jsonl"
    with path.open("w") as out:
        write_event(out, "hot", 4096, 8192)
        write_event(out, "sweeps", 4096, 8192, hot_sweeps=3)
    events = load_truth(path)
    assert [("hot", 4096, 8192, {}), ("sweeps", 4096, 8192, {"hot_sweeps": 3})] == [
        (event.event, event.start, event.end, event.detail) for event in events
    ]
    assert events[0].time <= events[1].time


@pytest.mark.parametrize("line", ["no json", "[]", '{"time": 1}'])
def test_what_is_no_truth_file_is_refused(tmp_path: Path, line: str) -> None:
    """The message says where."""
    path = tmp_path / "truth.jsonl"
    path.write_text('{"time": 1.0, "event": "hot", "start": 0, "end": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2 is not an event"):
        load_truth(path)
