# SPDX-License-Identifier: GPL-2.0-only
"""Tables of a record as Arrow streams, read by duckdb."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import kdamon
from kdamon import Snapshot
from kdamon.mm import RESIDENT
from kdamon.monitoring.residency import Residency
from kdamon.names.table import NameTable, changes
from kdamon.records.tables import Table
from tests.support.records import HEAP, LIBRARY, MIB, STARTED, names, rows, some_record, writer


@pytest.fixture(name="record")
def _record(tmp_path: Path) -> Iterator[kdamon.Record]:
    """A record of three seconds."""
    with kdamon.open(some_record(tmp_path / "run.kdamon")) as record:
        yield record


def read(table: Table, query: str = "SELECT * FROM given") -> list[dict[str, Any]]:
    """What duckdb reads of the stream, as a program of the user does."""
    with duckdb.connect() as db:
        db.register("given", table)
        found = db.sql(query)
        columns = found.columns
        return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]


def test_regions_have_times_names_and_exact_addresses(record: kdamon.Record) -> None:
    found = read(record.table())
    assert 30 * 4 == len(found)
    first = {"began": 0.0, "time": 0.1, "start": HEAP.start, "end": HEAP.start + 4 * MIB}
    rest = {"age": 0, "nr_unknown": 0.0, "mean_accesses": 20.0, "aggr_us": 100_000, "name": "[heap]"}
    assert first | {"nr_accesses": 20.0} | rest == found[0]
    assert LIBRARY.end == found[3]["end"]
    heap = "SELECT sum(\"end\" - start) AS size FROM given WHERE name = '[heap]' AND nr_accesses >= 10 AND time = 0.1"
    assert [{"size": 4 * MIB}] == read(record.table("regions"), heap)


def test_a_part_of_the_time(record: kdamon.Record) -> None:
    """As of snapshots()."""
    span = (STARTED + 1, STARTED + 1.2)
    assert {1.1, 1.2} == {row["time"] for row in read(record.table("regions", *span))}
    assert [(1.0, 1.1, 4), (1.1, 1.2, 4)] == [tuple(row.values()) for row in read(record.table("snapshots", *span))]
    assert [] == read(record.table("process", STARTED + 1.1, STARTED + 1.9))


def test_unknown_is_null(tmp_path: Path) -> None:
    record = writer(tmp_path / "a")
    record.add(Snapshot.of(STARTED + 1, rows(0)), {"resident": np.array([1.0, np.nan, 3.0, 0.0])})
    record.add_process(STARTED + 1, {"rss_anon": 4096})
    record.close()
    with kdamon.open(tmp_path / "a") as found:
        assert [1.0, None, 3.0, 0.0] == [row["resident"] for row in read(found.table())]
        (row,) = read(found.table("process"))
    assert (1.0, 4096.0, None) == (row["time"], row["rss_anon"], row["swap"])


def test_a_name_is_text_on_one_line(tmp_path: Path) -> None:
    record = writer(tmp_path / "a")
    record.change_names(changes(None, NameTable(names().rows, ("\x1b[31m\udcff\n", "b", "c"), STARTED)))
    record.add(Snapshot.of(STARTED + 1, rows(0)))
    record.close()
    with kdamon.open(tmp_path / "a") as found:
        assert {"\\x1b[31m\\xff\\x0a", "b"} == {row["name"] for row in read(found.table())}


def test_nothing_has_columns(tmp_path: Path) -> None:
    record = writer(tmp_path / "a")
    record.close(ended=STARTED)
    with kdamon.open(tmp_path / "a") as found:
        for name, count in (("regions", 10), ("snapshots", 3), ("process", 11)):
            with duckdb.connect() as db:
                assert (0, count) == db.from_arrow(found.table(name)).shape


def test_a_stream_outlives_all_else(tmp_path: Path) -> None:
    """It has the content of the moment at which it was made."""

    class Made:
        """An object with a stream."""

        def __init__(self, stream: object) -> None:
            self._stream = stream

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return self._stream

    with kdamon.open(some_record(tmp_path / "a")) as record:
        stream = record.table().__arrow_c_stream__()
    del record
    gc.collect()
    with duckdb.connect() as db:
        assert (120, 10) == db.from_arrow(Made(stream)).shape


def test_a_table_that_is_none(record: kdamon.Record) -> None:
    with pytest.raises(KeyError, match="it is regions, snapshots or process"):
        record.table("groups")


def test_without_duckdb_a_sentence_names_it(record: kdamon.Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=r"pip install 'kdamon\[parquet\]'"):
        record.table().__arrow_c_stream__()


def test_regions_say_what_was_in_memory_if_the_record_does(tmp_path: Path) -> None:
    record = writer(tmp_path / "a")
    rows_of = np.zeros(2, RESIDENT)
    rows_of["start"], rows_of["end"] = [HEAP.start, HEAP.start + 5 * MIB], [HEAP.start + MIB, HEAP.start + 6 * MIB]
    rows_of["anon"], rows_of["unknown"] = [MIB, 0], [0, MIB]
    record.change_residency(Residency(STARTED, rows_of))
    record.add(Snapshot.of(STARTED + 0.1, rows(1)))
    record.close(ended=STARTED + 1)
    with kdamon.open(tmp_path / "a") as found:
        wanted = [(float(MIB), 0.0, 0.0), (None, None, None), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)]
        assert wanted == [
            (row["resident_anon"], row["resident_file"], row["swapped"]) for row in read(found.table("regions"))
        ]
