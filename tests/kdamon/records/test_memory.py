# SPDX-License-Identifier: GPL-2.0-only
"""Records keep how much memory is in use, the looks at pages, and what is in memory; older records do without."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import kdamon
from kdamon import Snapshot
from kdamon.arrays import Records
from kdamon.mm import RESIDENT, Resident
from kdamon.monitoring.residency import Residency
from kdamon.monitoring.use import LOOK, MemoryUse, WindowUse
from kdamon.records.memory import residencies_of, residency_rows
from kdamon.records.schema import LATER_TABLES
from tests.support.records import STARTED, rows, some_record, writer

MIB = 1 << 20


def use(time: float) -> MemoryUse:
    windows = (WindowUse(1.0, 5, 4, 6, 1, 9, 8, 1, 100), WindowUse(10.0, 15, 14, 16, 1, 9, 8, 1, 90))
    return MemoryUse(STARTED + time, Resident(20, 5, 1), windows)


def table(*runs: tuple[int, int, str]) -> Records:
    """Runs of one kind, in MiB."""
    found = np.zeros(len(runs), RESIDENT)
    for row, (start, end, kind) in zip(found, runs, strict=True):
        row["start"], row["end"], row[kind] = start * MIB, end * MIB, (end - start) * MIB
    return found


def looks(began: float, window: float) -> Records:
    found = np.zeros(3, LOOK)
    found["addr"] = [1 << 40, 4096, 8192]
    found["weight"], found["began"], found["window"] = MIB, STARTED + began, window
    found["state"], found["kind"] = [0, 1, 5], [2, 0, 1]
    return found


def test_what_was_added_is_read(tmp_path: Path) -> None:
    record = writer(tmp_path / "run.kdamon")
    residencies = [
        Residency(STARTED + 0.05, table((1, 2, "anon"), (5, 9, "file"))),
        Residency(STARTED + 1.05, table((1, 2, "anon"), (5, 8, "file"), (9, 10, "swapped"))),
    ]
    for number in range(20):
        record.add(Snapshot.of(STARTED + (number + 1) / 10, rows(number)))
    for residency in residencies:
        assert record.change_residency(residency) > 0
    assert 0 == record.change_residency(evolve(residencies[1], time=STARTED + 1.9))
    record.add_use(use(0.15))
    record.add_use(MemoryUse(STARTED + 1.0))
    record.add_looks(looks(0.1, 1.0))
    record.add_looks(looks(0.2, 10.0))
    record.close(ended=STARTED + 2.0)
    with kdamon.open(tmp_path / "run.kdamon") as found:
        assert [use(0.15), MemoryUse(STARTED + 1.0)] == list(found.uses())
        assert [MemoryUse(STARTED + 1.0)] == list(found.uses(STARTED + 0.5))
        assert [(one.time, one.rows.tolist()) for one in residencies] == [
            (one.time, one.rows.tolist()) for one in found.residencies()
        ]
        assert found.residency_at(STARTED) is None
        at = found.residency_at(STARTED + 1.0)
        assert at is not None
        assert residencies[0].rows.tolist() == at.rows.tolist()
        wanted = np.sort(looks(0.1, 1.0), order="addr")
        assert [wanted.tolist()] == [one.tolist() for one in found.looks(STARTED, STARTED + 2)]
        assert 2 == len(list(found.looks()))
        snapshots = list(found.snapshots())
        times = [None if one.residency is None else one.residency.time for one in snapshots]
        assert [residencies[0].time] * 10 + [residencies[1].time] * 10 == times
        uses = [None if one.use is None else one.use.time for one in snapshots]
        assert [None] + [STARTED + 0.15] * 8 + [STARTED + 1.0] * 11 == uses
        [late] = found.snapshots(STARTED + 1.95)
        assert late.residency is not None
        assert residencies[1].rows.tolist() == late.residency.rows.tolist()


def test_an_older_record_has_nothing_of_it(tmp_path: Path) -> None:
    path = some_record(tmp_path / "run.kdamon")
    with sqlite3.connect(path) as database:
        for name in LATER_TABLES:
            database.execute(f"DROP TABLE {name}")
    with kdamon.open(path) as record:
        assert ([], [], []) == (list(record.uses()), list(record.residencies()), list(record.looks()))
        assert {(None, None)} == {(one.use, one.residency) for one in record.snapshots()}


@pytest.mark.parametrize("name", LATER_TABLES)
def test_another_table_of_the_same_name_is_refused(tmp_path: Path, name: str) -> None:
    path = some_record(tmp_path / "run.kdamon")
    with sqlite3.connect(path) as database:
        database.execute(f"DROP TABLE {name}")
        database.execute(f"CREATE TABLE {name} (time INTEGER)")
    with pytest.raises(OSError, match="its tables are not those of a record"), kdamon.open(path):
        pass


@pytest.mark.parametrize("name", LATER_TABLES)
def test_a_view_of_the_same_name_is_not_read(tmp_path: Path, name: str) -> None:
    path = some_record(tmp_path / "run.kdamon")
    with sqlite3.connect(path) as database:
        database.execute(f"DROP TABLE {name}")
        database.execute(f"CREATE VIEW {name} AS SELECT 1 AS id, 2 AS time, 3 AS began")
    with kdamon.open(path) as record:
        assert ([], [], []) == (list(record.uses()), list(record.residencies()), list(record.looks()))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE residency SET new = x'00'",
        "UPDATE residency SET gone = x''",
        "INSERT INTO residency (time, gone, new) SELECT time + 1, x'789c030000000001', new FROM residency",
        "UPDATE residency SET time = 'x'",
        "UPDATE looks SET pages = 1000000000000",
        "UPDATE looks SET pages = 2",
        "UPDATE looks SET bytes = -1",
        "UPDATE windows SET accessed = -1",
        "UPDATE windows SET pages = 'x'",
        "UPDATE resident SET anon = x'00'",
    ],
)
def test_damage_is_an_error_with_a_sentence(tmp_path: Path, change: str) -> None:
    record = writer(tmp_path / "run.kdamon")
    record.change_residency(Residency(STARTED, table((1, 2, "anon"))))
    record.add_use(use(0.1))
    record.add_looks(looks(0.1, 1.0))
    record.close(ended=STARTED + 2.0)
    with sqlite3.connect(tmp_path / "run.kdamon") as database:
        database.execute(change)
    with kdamon.open(tmp_path / "run.kdamon") as found, pytest.raises(OSError, match="the record is damaged"):
        assert (list(found.residencies()), list(found.uses()), list(found.looks())) is None


def test_a_late_time_does_not_need_all_changes(tmp_path: Path) -> None:
    """Each 256th change is whole; what is before is not read."""
    record = writer(tmp_path / "run.kdamon")
    for number in range(600):
        record.change_residency(Residency(STARTED + number, table((1, 2 + number, "anon"))))
        record.add_use(MemoryUse(STARTED + number))
    for number in range(600):
        record.add(Snapshot.of(STARTED + number + 0.5, rows(1)))
    record.close(ended=STARTED + 601)
    with sqlite3.connect(tmp_path / "run.kdamon") as database:
        assert [(1,), (257,), (513,)] == database.execute("SELECT id FROM residency WHERE gone IS NULL").fetchall()
        database.execute("UPDATE residency SET new = x'00' WHERE id = 300")
    with kdamon.open(tmp_path / "run.kdamon") as found:
        [snapshot] = found.snapshots(STARTED + 599.45)
        assert snapshot.residency is not None
        assert snapshot.use is not None
        assert (STARTED + 599, STARTED + 599) == (snapshot.residency.time, snapshot.use.time)
        assert table((1, 601, "anon")).tolist() == snapshot.residency.rows.tolist()
        assert 600 == len(list(found.uses()))
        at = found.residency_at(STARTED + 100)
        assert at is not None
        assert table((1, 102, "anon")).tolist() == at.rows.tolist()


@st.composite
def residencies(draw: st.DrawFn) -> Residency:
    edges = draw(st.lists(st.integers(0, 200), min_size=2, max_size=40, unique=True).map(sorted))
    kinds = draw(st.lists(st.sampled_from(["anon", "file", "swapped", "", "unknown"]), min_size=39, max_size=39))
    runs = [run for run in zip(edges, edges[1:], kinds, strict=False) if run[2]]
    return Residency(0.0, table(*runs))


@given(st.lists(residencies(), min_size=1, max_size=5))
def test_changes_restore_each_state(states: list[Residency]) -> None:
    stored, before = [], None
    for number, state in enumerate(states):
        now = evolve(state, time=float(number))
        stored += [row for _, row in residency_rows(before, now)]
        before = now
    table_rows = [(at + 1, *row) for at, row in enumerate(stored)]

    def query(text: str, last: int) -> list[tuple[object, ...]]:
        return [(None,)] if "max" in text else [row for row in table_rows if row[0] > last][:1]

    found = list(residencies_of(query, 0))
    last: list[tuple[object, ...]] = []
    for state in found:
        assert states[int(state.time)].rows.tolist() == state.rows.tolist()
        last = state.rows.tolist()
    assert states[-1].rows.tolist() == last
