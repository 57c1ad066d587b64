# SPDX-License-Identifier: GPL-2.0-only
"""What was written to a record is read from it."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import attrs
import numpy as np
import pytest

import kdamon
from kdamon import Config, Snapshot
from kdamon.mm.proc.maps import NamedMapping
from kdamon.names.table import NAMED_RANGE, NameTable, changes
from kdamon.records.writer import RecordWriter
from kdamon.reports.groups import GROUP_ADDRESS, GROUP_REGION, GroupTable
from tests.support.records import (
    HEAP,
    LIBRARY,
    STARTED,
    counters,
    names,
    read_all,
    rows,
    some_record,
    times_of,
    with_means,
    writer,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record of three seconds."""
    return some_record(tmp_path / "run.kdamon")


def test_the_run(tmp_path: Path) -> None:
    """With its options, clocks and machine; unknown values of a newer kdamon are left out."""
    config = {"pid": 12, "ranges": [[4096, 8192]], "cpus": [1, 2], "ops": "fvaddr", "write_only": True, "new": 5}
    at = datetime(2026, 12, 1, 12, tzinfo=UTC)
    path = some_record(tmp_path / "a", config=config, host="vm", started_at=at.isoformat(), nr_cpus=2, newer=[1])
    with kdamon.open(path) as record:
        run = record.run
    wanted = Config(12, "fvaddr", ranges=((4096, 8192),), cpus=(1, 2), write_only=True)
    assert (wanted, 12, "server", "vm", at, 2) == (run.config, run.pid, run.name, run.host, run.started_at, run.nr_cpus)
    assert (True, STARTED, 3.0) == (run.complete, run.started, round(run.seconds, 6))
    assert ("the time was over", ("a remark",), 1, [1]) == (run.note, run.remarks, run.part, run.values["newer"])


def test_the_snapshots(path: Path) -> None:
    """All of them, with the regions that they had."""
    with kdamon.open(path) as record:
        found = list(record.snapshots())
    assert [round((number + 1) / 10, 6) for number in range(30)] == times_of(found)
    assert [with_means(rows(number)) for number in range(30)] == [snapshot.regions.tolist() for snapshot in found]
    assert [0.1] * 30 == [round(snapshot.time - snapshot.began, 6) for snapshot in found]


def test_a_part_of_the_snapshots(path: Path) -> None:
    """Those that overlap a time; a snapshot that only touches it does not."""
    with kdamon.open(path) as record:
        assert [1.1, 1.2] == times_of(record.snapshots(STARTED + 1.0, STARTED + 1.2))
        assert [1.1, 1.2, 1.3] == times_of(record.snapshots(STARTED + 1.05, STARTED + 1.25))
        assert [2.9, 3.0] == times_of(record.snapshots(STARTED + 2.85))
        assert [0.1] == times_of(record.snapshots(until=STARTED + 0.1))
        assert [] == times_of(record.snapshots(STARTED + 4))
        times = record.times(STARTED + 1.0, STARTED + 1.2)
    assert [(1.0, 1.1, 4), (1.1, 1.2, 4)] == [(round(a - STARTED, 6), round(b - STARTED, 6), n) for a, b, n in times]


def test_all_regions_in_one_array(path: Path) -> None:
    """With the number of each row's snapshot."""
    with kdamon.open(path) as record:
        table = record.regions(STARTED + 1.0, STARTED + 1.2)
    assert [0] * 4 + [1] * 4 == table["snapshot"].tolist()
    assert [row[:2] for row in rows(0) * 2] == list(zip(table["start"].tolist(), table["end"].tolist(), strict=True))
    assert ["snapshot", *(kdamon.REGION.names or ())] == list(table.dtype.names or ())


def test_further_columns(tmp_path: Path) -> None:
    """Those that the regions have, and those that come beside them; unknown where a snapshot has none."""
    wide = np.dtype([*((name, kdamon.REGION[name]) for name in kdamon.REGION.names or ()), ("sum", "<u8")])
    record = writer(tmp_path / "a")
    for number in range(3):
        plain = Snapshot.of(STARTED + number + 1, rows(number))
        regions = np.zeros(4, wide)
        for name in kdamon.REGION.names or ():
            regions[name] = plain.regions[name]
        regions["sum"] = np.arange(4) + (1 << 40)
        resident = {} if number == 1 else {"resident": np.arange(4) * 4096}
        record.add(Snapshot(plain.began, plain.time, regions), resident)
    record.add(Snapshot.of(STARTED + 4, rows(3)))
    record.close()
    with kdamon.open(tmp_path / "a") as found:
        assert {"sum", "resident"} == found.columns
        snapshots = list(found.snapshots(extra=["resident", "sum"]))
        assert [with_means(rows(number)) for number in range(4)] == [one.regions.tolist() for one in found.snapshots()]
        with pytest.raises(KeyError, match="no column 'cold'"):
            list(found.snapshots(extra=["cold"]))
    assert [0, 4096, 8192, 12288] == snapshots[0].regions["resident"].tolist()
    assert np.isnan([*snapshots[1].regions["resident"], *snapshots[3].regions["sum"]]).all()
    assert (np.arange(4) + (1 << 40)).tolist() == snapshots[2].regions["sum"].tolist()


def test_intervals_and_means(tmp_path: Path) -> None:
    """They are columns where they say something; a record without them is as before."""
    record = writer(tmp_path / "a")
    for number, aggr_us in enumerate((0, 100_000, 1_600_000)):
        snapshot = attrs.evolve(Snapshot.of(STARTED + number + 1, rows(number)), aggr_us=aggr_us)
        snapshot.regions["mean_accesses"] += [0, number / 4, 1e-3, 0]
        record.add(snapshot)
    record.close()
    with kdamon.open(tmp_path / "a") as found:
        snapshots = list(found.snapshots())
        assert [0, 100_000, 1_600_000] == [snapshot.aggr_us for snapshot in snapshots]
        assert [[20, 1, 0, 0]] * 3 == [snapshot.regions["nr_accesses"].tolist() for snapshot in snapshots]
        for number, snapshot in enumerate(snapshots):
            wanted = [20, 1 + number / 4, 1e-3, 0]
            assert wanted == pytest.approx(snapshot.regions["mean_accesses"].tolist(), rel=2**-12)
        assert frozenset() == found.columns
    with sqlite3.connect(some_record(tmp_path / "b")) as db:
        names = {name for (name,) in db.execute("SELECT DISTINCT name FROM columns")}
    assert not {"snapshots.aggr_us", "regions.mean_accesses"} & names


def test_groups(tmp_path: Path) -> None:
    """The regions of CPUs, threads or nodes; snapshots without them stay without."""
    table = np.array([(13, 4096, 8192, 2.5, 7, 6, 4100, 8000), (14, 4096, 8192, 1, 1, 0, 0, 0)], GROUP_REGION)
    record = writer(tmp_path / "a")
    for groups in (
        GroupTable(table, np.empty(0, GROUP_ADDRESS)),
        None,
        GroupTable(table[:0], np.empty(0, GROUP_ADDRESS)),
    ):
        plain = Snapshot.of(STARTED + 1, rows(0))
        record.add(Snapshot(plain.began, plain.time, plain.regions, 1, groups))
    record.close()
    with kdamon.open(tmp_path / "a") as found:
        groups_found = [snapshot.groups for snapshot in found.snapshots()]
    assert [table.tolist(), None, []] == [None if one is None else one.regions.tolist() for one in groups_found]


def test_a_snapshot_without_regions(tmp_path: Path) -> None:
    """A process may have no memory yet."""
    record = writer(tmp_path / "a")
    record.add(Snapshot.of(STARTED + 1, []))
    record.close()
    with kdamon.open(tmp_path / "a") as found:
        assert [[]] == [snapshot.regions.tolist() for snapshot in found.snapshots()]
        assert (0, 1) == (len(found.regions()), len(found.times()))


def test_mappings_over_time(tmp_path: Path) -> None:
    """Of any name and address; one that went, and those that were there until the end."""
    grown = NamedMapping(HEAP.start, HEAP.end + 4096, "rw-p", 0, 0, "[heap]")
    odd = NamedMapping(1 << 46, (1 << 46) + 4096, "---s", (1 << 64) - 4096, (1 << 64) - 1, "")
    record = writer(tmp_path / "a")
    record.change_mappings(STARTED, (), (HEAP, LIBRARY, odd), STARTED)
    record.change_mappings(STARTED + 2, (HEAP,), (grown,), STARTED + 1)
    record.add(Snapshot.of(STARTED + 3, rows(0)))
    record.close()
    with kdamon.open(tmp_path / "a") as found:
        assert [HEAP, odd, LIBRARY] == found.mappings_at(STARTED + 1)
        assert [odd, LIBRARY] == found.mappings_at(STARTED + 1.5)
        assert [grown, odd, LIBRARY] == found.mappings_at(STARTED + 2)
        seen = [(one.mapping, one.first_seen, one.last_seen) for one in found.mappings]
    assert (HEAP, STARTED, STARTED + 1) == seen[0]
    assert (grown, STARTED + 2, STARTED + 3) == seen[1]


def test_names_over_time(tmp_path: Path) -> None:
    """As they were at each time, and the last one of each address."""
    first = names(STARTED)
    later = NameTable(
        np.array([(HEAP.start, HEAP.end, 0, 3)], NAMED_RANGE), (*first.names, "\udcff label"), STARTED + 2
    )
    record = writer(tmp_path / "a")
    record.change_names(changes(None, first))
    record.change_names(changes(first, later))
    record.close()
    with kdamon.open(tmp_path / "a") as found:
        before, after, whole = found.names_at(STARTED + 1), found.names_at(STARTED + 2), found.names
        assert (STARTED, STARTED + 2) == tuple(table.time for table in found.name_tables())
        early = found.names_at(STARTED - 5)
    assert before is not None and after is not None and whole is not None and early is not None
    assert first.rows.tolist() == before.rows.tolist() == early.rows.tolist()
    assert (later.rows.tolist(), later.names) == (after.rows.tolist(), after.names)
    assert ["\udcff label", "a b;c.so .text", "a b;c.so .data"] == [whole.names[n] for n in whole.rows["name"]]


def test_process_and_counters(path: Path) -> None:
    """A row each second; what is not known is no number."""
    with kdamon.open(path) as record:
        data, log = record.process_data(), record.counter_log()
        assert counters(samples=580, unknown=29) == record.counters
        assert {13: "worker"} == record.threads
        assert [(1000 * 10**9, 10**18, 1001 * 10**9)] == record.clocks().tolist()
    assert [1.0, 2.0, 3.0] == [round(time - STARTED, 6) for time in data["time"].tolist()]
    assert [6 << 20] * 3 == data["rss_anon"].tolist()
    assert np.isnan(data["swap"]).all()
    assert [1.0, 2.0, 3.0] == [round(time - STARTED, 6) for time, _ in log]


def test_a_record_without_anything(tmp_path: Path) -> None:
    """Of a run that has just begun."""
    record = writer(tmp_path / "a")
    record.flush()
    with kdamon.open(tmp_path / "a") as found:
        everything = read_all(found)
        assert (False, STARTED) == (found.run.complete, found.run.ended)
    record.close()
    assert ([], [], {}) == (everything["snapshots"], everything["mappings"][0], everything["threads"])
    assert ([], None, None) == everything["names"]


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    """Its file is there already, and holds no snapshots."""
    record = RecordWriter(tmp_path / "a")
    with kdamon.open(tmp_path / "a") as found:
        assert [] == list(found.snapshots())
        with pytest.raises(OSError, match="the record is empty: monitoring has not begun") as empty:
            _ = found.run
    assert str(tmp_path / "a") == empty.value.filename
    record.close()


def test_a_record_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    """By two readers, which see what each transaction added; the writer closes it under their eyes."""
    record = writer(tmp_path / "a")
    record.flush()
    with kdamon.open(tmp_path / "a") as one, kdamon.open(tmp_path / "a") as other:
        for number in range(3):
            record.add(Snapshot.of(STARTED + number + 1, rows(number)))
            record.flush()
            assert [number + 1] * 2 == [len(one.times()), len(list(other.snapshots()))]
        reading = one.snapshots()
        next(reading)
        record.close(ended=STARTED + 3)
        assert (2, 3, True) == (len(list(reading)), len(other.times()), other.run.complete)
