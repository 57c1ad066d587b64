# SPDX-License-Identifier: GPL-2.0-only
"""The axis of a picture has all that was monitored, in few pieces that keep the borders that matter."""

from __future__ import annotations

import itertools

import numpy as np

from kdamon_tools.snapshot import Config, Snapshot
from kdamon_tools.views.axis import axis_of
from tests.support.views import MIB, name_table, stairs

CONFIG = Config(pid=42)


def test_gaps_have_no_piece() -> None:
    of = stairs()
    axis = axis_of(of.snapshots, of.config, of.names, 512)
    heap, library, stack = (0x7F00_0000_0000 + (number << 40) for number in range(3))
    assert [[heap, heap + 20 * MIB], [library, library + MIB], [stack, stack + 0x8000]] == axis.segments.tolist()
    assert 21 * MIB + 0x8000 == sum(end - start for start, end in axis.pieces.tolist())


def test_all_borders_are_kept_where_there_is_room() -> None:
    of = stairs(steps=3)
    axis = axis_of(of.snapshots, of.config, None, 512)
    edges = {int(edge) for shot in of.snapshots for name in ("start", "end") for edge in shot.regions[name]}
    assert edges == set(axis.pieces.ravel().tolist())


def test_borders_of_names_are_kept() -> None:
    names = name_table((0, 0x3000, "one"), (0x3000, 0x8000, "two"))
    axis = axis_of([Snapshot.of(1.0, [(0, 0x8000, 0, 0, 0)])], CONFIG, names, 64)
    assert [[0, 0x3000], [0x3000, 0x8000]] == axis.pieces.tolist()


def test_of_too_many_borders_those_of_hot_memory_stay() -> None:
    """A page that is hot all the time is a piece of its own among thousands of random borders in 100 TiB."""
    random = np.random.default_rng(7)
    size, hot = 100 << 40, 77 << 40
    shots = []
    for number in range(200):
        cuts = np.unique(random.integers(1, size >> 12, 60) << 12)
        edges = np.union1d(np.append(0, np.append(cuts, size)), [hot, hot + 4096]).tolist()
        rows = [(start, end, 20.0 * (start == hot), 0, 0) for start, end in itertools.pairwise(edges)]
        shots.append(Snapshot.of(number, rows))
    axis = axis_of(shots, CONFIG, None, 128)
    assert len(axis.pieces) <= 140
    assert [hot, hot + 4096] in axis.pieces.tolist()
    assert [[0, size]] == axis.segments.tolist()


def test_thousands_of_segments_are_joined_over_the_shortest_gaps() -> None:
    rows = [(number * 0x10000, number * 0x10000 + 0x1000, 0, 0, 0) for number in range(3000)]
    rows.append((1 << 40, (1 << 40) + 0x1000, 0, 0, 0))
    axis = axis_of([Snapshot.of(1.0, rows)], CONFIG, None, 64)
    assert len(axis.segments) <= 16
    assert [1 << 40, (1 << 40) + 0x1000] == axis.segments[-1].tolist()
    assert len(axis.pieces) <= 96
