# SPDX-License-Identifier: GPL-2.0-only
"""tests/kernels/compare.py: recall and precision of snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdamon_tools.workloads.truth import Event
from tests.kernels import compare
from tests.kernels.compare import Region, Snapshot, accuracy, hot_at, summary

HALF_FOUND = Snapshot(10.0, [Region(0, 100, 20), Region(100, 400, 10), Region(400, 500, 9)])


def test_recall_and_precision_count_bytes() -> None:
    """Hot are the regions from half of the greatest number of accesses on: 300 of 400 found bytes are truly hot."""
    assert (300 / 400, 300 / 400) == accuracy(HALF_FOUND, 100, 500)
    assert (1.0, 50 / 400) == accuracy(HALF_FOUND, 50, 100)


def test_nothing_hot_has_no_precision() -> None:
    """A kdamond that finds nothing is not precise."""
    assert (0.0, 0.0) == accuracy(Snapshot(10.0, [Region(0, 100, 9)]), 0, 100)


def test_the_hot_memory_is_that_of_the_last_move() -> None:
    """Later moves do not count yet."""
    moves = [Event(1.0, "hot", 0, 1), Event(2.0, "sweeps", 0, 1), Event(3.0, "hot", 1, 2), Event(5.0, "hot", 2, 3)]
    assert moves[2] == hot_at(moves, 4.0)


def test_snapshots_of_the_beginning_and_after_a_move_are_left_out() -> None:
    """Regions need time to adapt: 3 s at the start, 0.25 s after each move."""
    truth = [Event(0.0, "hot", 0, 400), Event(9.8, "hot", 0, 400)]
    early = Snapshot(2.9, HALF_FOUND.regions)
    late = Snapshot(9.7, HALF_FOUND.regions)
    assert "no snapshots" == summary([early, HALF_FOUND], truth, 0.0)
    assert "recall 1.00, precision 1.00, 3 regions, 1 snapshots" == summary([early, late, HALF_FOUND], truth, 0.0)


def test_the_machines_own_damon_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may use it."""
    monkeypatch.delenv("RESULTS", raising=False)
    monkeypatch.setattr(compare, "KDAMONDS", Path("/sys/kernel"))
    with pytest.raises(SystemExit, match="the machine's own DAMON"):
        compare.check_place()
    monkeypatch.setattr(compare, "KDAMONDS", Path("/proc"))
    compare.check_place()
