# SPDX-License-Identifier: GPL-2.0-only
"""A grid has the accesses of each range of addresses in each span of time, and nothing where nothing was sampled."""

from __future__ import annotations

import numpy as np

from kdamon_tools.snapshot import Config, Snapshot
from kdamon_tools.views.grid import columns_of, grid_of
from tests.support.views import recording

CONFIG = Config(pid=42)
ROWS = np.array([[0, 0x1000], [0x1000, 0x3000], [0x8000, 0x9000]], np.uint64)


def test_a_row_is_as_hot_as_its_hottest_part() -> None:
    snapshot = Snapshot.of(1.0, [(0, 0x2000, 4, 7, 0), (0x2000, 0x3000, 20, 3, 0)])
    grid = grid_of([[snapshot]], ROWS, CONFIG)
    assert [[0.2], [1.0], [0.0]] == grid.shares.round(6).tolist()
    assert [[0.7], [0.3], [-1.0]] == grid.age.round(6).tolist()
    assert [[False], [False], [True]] == grid.absent.tolist()


def test_a_neighbour_that_ends_where_a_row_begins_is_no_part_of_it() -> None:
    snapshot = Snapshot.of(1.0, [(0, 0x1000, 20, 0, 0), (0x1000, 0x3000, 0, 0, 0)])
    assert [[1.0], [0.0], [0.0]] == grid_of([[snapshot]], ROWS, CONFIG).shares.tolist()


def test_unknown_memory_is_neither_idle_nor_accessed() -> None:
    snapshot = Snapshot.of(1.0, [(0, 0x1000, 0, 0, 20), (0x1000, 0x2000, 20, 0, 0), (0x2000, 0x3000, 0, 0, 20)])
    grid = grid_of([[snapshot]], ROWS, CONFIG)
    assert [[True], [False], [False]] == grid.mostly_unknown.tolist()


def test_columns_are_means_that_can_be_joined() -> None:
    """Joined columns are what one column of all their snapshots is."""
    shots = [Snapshot.of(number, [(0, 0x3000, count, number, 0)]) for number, count in enumerate((20, 0, 10, 4, 4), 1)]
    fine = grid_of([[shot] for shot in shots], ROWS, CONFIG)
    coarse = grid_of([shots[:2], shots[2:4], shots[4:]], ROWS, CONFIG)
    assert coarse.shares.tolist() == fine.joined(2).shares.tolist()
    assert coarse.age.tolist() == fine.joined(2).age.tolist()


def test_a_pause_is_blank() -> None:
    """Half of the time was not sampled: its columns have no snapshot."""
    of = recording([[(0, 0x1000, 20, 0, 0)]] * 10)
    del of.snapshots[3:8]
    columns = columns_of(of, 100)
    assert [1, 1, 1, 0, 0, 0, 0, 0, 1, 1] == [len(snapshots) for snapshots in columns.snapshots]
    assert grid_of(columns.snapshots, ROWS[:1], CONFIG).absent[0].tolist() == [not shots for shots in columns.snapshots]


def test_a_snapshot_without_regions_covers_nothing() -> None:
    assert grid_of([[Snapshot.of(1.0, [])]], ROWS, CONFIG).absent.all()
