# SPDX-License-Identifier: GPL-2.0-only
"""Long runs in bounded memory: snapshots are merged, and what they say on average stays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon_tools.history import History, merge_many, merge_snapshots
from kdamon_tools.snapshot import Snapshot
from tests.support.tables import effort

Row = tuple[int, int, float, int, float]


def rows_of(snapshot: Snapshot) -> list[Row]:
    """A snapshot's regions as tuples; nothing was rounded in them."""
    assert snapshot.regions["nr_accesses"].tolist() == pytest.approx(snapshot.regions["mean_accesses"].tolist())
    return [tuple(row)[:5] for row in snapshot.regions.tolist()]


def bytes_times_accesses(snapshots: Sequence[Snapshot]) -> float:
    """Accessed bytes summed over time: what merging must conserve."""
    return sum(float((s.sizes * s.regions["nr_accesses"]).sum()) * s.merged for s in snapshots)


@st.composite
def snapshots_of_one_area(draw: st.DrawFn) -> list[Snapshot]:
    """Snapshots that cut the same 64 pages differently."""
    snapshots = []
    for time in range(draw(st.integers(2, 12))):
        cuts = sorted({0, 64, *draw(st.sets(st.integers(1, 63), max_size=8))})
        snapshots.append(
            Snapshot.of(
                time + 1.0,
                [
                    (start << 12, end << 12, draw(st.integers(0, 20)), draw(st.integers(0, 9)), 0)
                    for start, end in itertools.pairwise(cuts)
                ],
            )
        )
    return snapshots


class TestMerge:
    """The mean of two neighbours."""

    def test_equal_borders(self) -> None:
        """Counts are averaged; the age is the newer one's."""
        older = Snapshot.of(1.0, [(0, 4096, 20, 5, 0)])
        newer = Snapshot.of(2.0, [(0, 4096, 10, 0, 4)])
        merged = merge_snapshots(older, newer)
        assert (2.0, 2, [(0, 4096, 15.0, 0, 2.0)]) == (merged.time, merged.merged, rows_of(merged))

    def test_weights_are_aggregations(self) -> None:
        """Three aggregations count three times one."""
        older = Snapshot.of(3.0, [(0, 4096, 20, 0, 0)], merged=3)
        newer = Snapshot.of(4.0, [(0, 4096, 0, 1, 0)])
        assert [(0, 4096, 15.0, 1, 0.0)] == rows_of(merge_snapshots(older, newer))

    def test_what_only_one_knows_stays(self) -> None:
        """A mapping that came or went is not averaged with nothing."""
        older = Snapshot.of(1.0, [(0, 4096, 20, 0, 0), (8192, 12288, 6, 3, 0)])
        newer = Snapshot.of(2.0, [(0, 4096, 20, 1, 0), (16384, 20480, 9, 2, 0)])
        merged = merge_snapshots(older, newer)
        assert [(0, 4096, 20, 1, 0), (8192, 12288, 6, 3, 0), (16384, 20480, 9, 2, 0)] == rows_of(merged)

    def test_an_empty_one_changes_nothing(self) -> None:
        """A process between two programs has no regions."""
        rows: list[Row] = [(0, 4096, 20, 5, 0)]
        full, empty = Snapshot.of(1.0, rows), Snapshot.of(2.0, [])
        assert rows == rows_of(merge_snapshots(full, empty)) == rows_of(merge_snapshots(empty, full))
        assert [] == rows_of(merge_snapshots(empty, empty))

    @effort(100)
    @given(snapshots_of_one_area())
    def test_regions_do_not_multiply_and_bytes_are_conserved(self, snapshots: list[Snapshot]) -> None:
        """Not more regions than the larger one had, the same memory, the same accesses."""
        older, newer = snapshots[:2]
        merged = merge_snapshots(older, newer)
        assert len(merged.regions) <= max(len(older.regions), len(newer.regions))
        assert (merged.regions["start"][1:] == merged.regions["end"][:-1]).all()
        assert 64 << 12 == merged.sizes.sum()
        np.testing.assert_allclose(bytes_times_accesses([merged]), bytes_times_accesses([older, newer]), rtol=1e-4)


class TestMergeMany:
    """The mean of many neighbours at once."""

    def test_it_is_the_mean_of_all(self) -> None:
        """An address that only some have keeps the mean of those; the age is the newest one's."""
        shots = [
            Snapshot.of(1.0, [(0, 4096, 20, 5, 0)]),
            Snapshot.of(2.0, [(0, 4096, 10, 0, 4), (8192, 12288, 6, 3, 0)], merged=2),
            Snapshot.of(3.0, [(0, 4096, 4, 7, 0)]),
        ]
        merged = merge_many(shots)
        assert [(0, 4096, 11.0, 7, 2.0), (8192, 12288, 6.0, 3, 0.0)] == rows_of(merged)
        assert (0.9, 3.0, 4) == (merged.began, merged.time, merged.merged)

    def test_snapshots_without_regions(self) -> None:
        """They are part of the time."""
        empty = [Snapshot.of(number, []) for number in range(1, 5)]
        assert ([], 4) == (rows_of(merge_many(empty)), merge_many(empty).merged)
        assert [(0, 4096, 8.0, 1, 0.0)] == rows_of(merge_many([*empty, Snapshot.of(5.0, [(0, 4096, 8, 1, 0)])]))

    def test_one_is_itself(self) -> None:
        one = Snapshot.of(1.0, [(0, 4096, 20, 5, 0)])
        assert one is merge_many([one])

    @given(snapshots_of_one_area())
    def test_accesses_are_conserved(self, snapshots: list[Snapshot]) -> None:
        """Over all bytes and all time, and each byte is in one region."""
        merged = merge_many(snapshots)
        assert np.isclose(bytes_times_accesses(snapshots), bytes_times_accesses([merged]), rtol=1e-5)
        assert 64 << 12 == int(merged.sizes.sum())
        assert len(merged.regions) <= max(len(snapshot.regions) for snapshot in snapshots)


class TestHistory:
    """A run of any length."""

    def test_short_runs_are_kept_as_they_are(self) -> None:
        """Nothing is merged before it must be."""
        history = History(max_snapshots=10)
        snapshots = [Snapshot.of(t, [(0, 4096, t, 0, 0)]) for t in range(10)]
        for snapshot in snapshots:
            history.add(snapshot)
        assert snapshots == history.snapshots

    @effort(100)
    @given(snapshots_of_one_area(), st.integers(2, 5))
    def test_limits_hold_and_accesses_are_conserved(self, snapshots: list[Snapshot], limit: int) -> None:
        """However long it goes on, the number of snapshots is bounded, and their order and sum are right."""
        history = History(max_snapshots=limit)
        for snapshot in snapshots:
            history.add(snapshot)
            assert len(history.snapshots) <= limit
        assert sum(s.merged for s in history.snapshots) == len(snapshots)
        assert sorted(s.time for s in history.snapshots) == [s.time for s in history.snapshots]
        np.testing.assert_allclose(bytes_times_accesses(history.snapshots), bytes_times_accesses(snapshots), rtol=1e-3)

    def test_rows_are_bounded_too(self) -> None:
        """Ten thousand regions need fewer snapshots."""
        history = History(max_snapshots=1000, max_rows=1000)
        for t in range(100):
            history.add(Snapshot.of(t, [(n << 12, (n + 1) << 12, (n * t) % 21, 0, 0) for n in range(100)]))
        assert sum(len(s.regions) for s in history.snapshots) <= 1000

    def test_time_is_thinned_evenly(self) -> None:
        """No part of a run is remembered much more coarsely than another."""
        history = History(max_snapshots=16)
        for t in range(1000):
            history.add(Snapshot.of(t, [(0, 4096, 1, 0, 0)]))
        weights = [s.merged for s in history.snapshots[:-4]]
        assert max(weights) <= 4 * min(weights)

    def test_snapshots_around_a_pause_are_not_merged(self) -> None:
        """Time in which nothing was sampled is not what a snapshot covers."""
        history = History(max_snapshots=16)
        for t in range(200):
            history.add(Snapshot.of(t / 10 + (1000 if t >= 90 else 0), [(0, 4096, 1, 0, 0)]))
        assert 200 == sum(s.merged for s in history.snapshots)
        assert 25 > max(s.time - s.began for s in history.snapshots)
        pauses = [b.began - a.time for a, b in itertools.pairwise(history.snapshots)]
        assert 1 == sum(pause > 900 for pause in pauses)
