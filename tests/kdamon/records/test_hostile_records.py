# SPDX-License-Identifier: GPL-2.0-only
"""Records that were damaged, or made to do harm: an OSError with a sentence, in bounded time and memory."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sqlite3
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kdamon
from kdamon import Snapshot
from kdamon.records import files
from kdamon.records.columns import pack
from kdamon.records.schema import TABLES
from tests.support.records import STARTED, read_all, rows, some_record, writer


def changed(path: Path, *statements: str) -> Path:
    """A record on which SQL statements were run."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA writable_schema = ON")
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()
    return path


def refusal(path: Path) -> str:
    """The sentence by which a record is refused."""
    with pytest.raises(OSError, match="damaged") as refused, kdamon.open(path) as record:
        read_all(record)
    assert (errno.EBADMSG, str(path)) == (refused.value.errno, refused.value.filename), refused.value
    return refused.value.strerror or ""


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_table_cannot_be_something_else(tmp_path: Path, table: str) -> None:
    """A view would run any query; a generated column, too."""
    path = some_record(tmp_path / "a", 3)
    endless = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x FROM t) SELECT x FROM t"
    changed(path, f"DROP TABLE {table}", f"CREATE VIEW {table} AS {endless}")
    assert refusal(path) == "the record is damaged: its tables are not those of a record"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE columns SET type = 'O'",
        "UPDATE columns SET type = x'00ff'",
        "UPDATE columns SET rows = 'many'",
        "UPDATE columns SET rows = 1 << 62",
        "UPDATE columns SET rows = -1",
        "UPDATE columns SET rows = rows + 1 WHERE name = 'regions.age'",
        "UPDATE columns SET data = 'text'",
        "UPDATE columns SET data = zeroblob(100000)",
        "UPDATE columns SET data = 5",
        "DELETE FROM columns WHERE name = 'snapshots.time'",
        "DELETE FROM columns WHERE name = 'regions.gap'",
        "UPDATE chunks SET snapshots = 1 << 60",
        "UPDATE chunks SET snapshots = -1",
        "UPDATE chunks SET began = 'x'",
        "UPDATE run SET value = 'no JSON'",
        "UPDATE run SET value = '[' || replace(hex(zeroblob(100000)), '0', '[')",
        "UPDATE run SET value = '5' WHERE key = 'config'",
        "UPDATE run SET value = '{\"pid\": \"x\"}' WHERE key = 'config'",
        "UPDATE run SET value = '{\"pid\": 1, \"ranges\": [1]}' WHERE key = 'config'",
        "UPDATE run SET value = 'null' WHERE key = 'started'",
        "UPDATE run SET value = 'NaN' WHERE key = 'started'",
        "UPDATE run SET value = '1e300' WHERE key = 'ended'",
        "UPDATE run SET value = 'Infinity' WHERE key = 'ended'",
        "UPDATE run SET value = '0' WHERE key = 'ended'",
        "UPDATE run SET value = '{\"pid\": 1, \"sample_us\": 0}' WHERE key = 'config'",
        "UPDATE run SET value = '{\"pid\": 1, \"aggr_us\": 1e300}' WHERE key = 'config'",
        "INSERT OR REPLACE INTO run VALUES ('started_at', '\"0001-01-01T00:00:00+23:59\"')",
        "DELETE FROM run WHERE key = 'started'",
        "UPDATE run SET value = x'ff' WHERE key = 'name'",
        "UPDATE counters SET data = '[]'",
        "UPDATE counters SET data = x'ff'",
        "UPDATE mappings SET start_address = 'x'",
        "UPDATE mappings SET name = 5",
        "UPDATE process SET rss_anon = 'x'",
        "UPDATE names SET gone = zeroblob(28)",
        "UPDATE names SET new = x'00'",
        "UPDATE names SET names = x''",
        "UPDATE names SET first_name = 10",
        "UPDATE threads SET name = 5",
        "UPDATE threads SET tid = x'00'",
    ],
)
def test_a_damaged_value_is_reported(tmp_path: Path, statement: str) -> None:
    """Also values of types that a column should not have."""
    path = changed(some_record(tmp_path / "a", 12), statement)
    assert refusal(path).startswith("the record is damaged: ")


def test_a_column_that_grows_when_it_is_read(tmp_path: Path) -> None:
    """A megabyte that becomes a gigabyte is not decompressed."""
    path = some_record(tmp_path / "a", 12)
    db = sqlite3.connect(path)
    bomb = zlib.compress(bytes(1 << 28))
    db.execute("UPDATE columns SET data = ?", (bomb,))
    db.execute("UPDATE names SET names = ?", (bomb,))
    db.commit()
    db.close()
    assert "the record is damaged: compressed data has another size than it should have" == refusal(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record to be damaged."""
    return some_record(tmp_path_factory.mktemp("whole") / "a", 12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_damaged_bytes(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Any bytes of the file, and any end of it: it is read, or it is an error with a sentence."""
    content = bytearray(whole.read_bytes())
    path = tmp_path / "damaged"
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=20)):
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        with kdamon.open(path) as record:
            read_all(record)
    except OSError as error:
        assert error.errno in {errno.EBADMSG, errno.EINVAL}, error
        assert str(path) == error.filename


def test_a_record_is_never_changed_by_reading(whole: Path, tmp_path: Path) -> None:
    """Not even its times of change."""
    path = Path(shutil.copy2(whole, tmp_path / "a"))
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    with kdamon.open(path) as record:
        read_all(record)
    assert before == (path.read_bytes(), path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    "name",
    ["a\" DOUBLE); COPY (SELECT 1) TO 'x'; --", "=1+1", "a\x1b[31m", "name", "time", "began", "snapshot", "A", ""],
)
def test_columns_have_plain_names(tmp_path: Path, name: str) -> None:
    """Others would become a part of SQL, of a heading, or of another column."""
    path = tmp_path / "a"
    record = writer(path)
    record.add(Snapshot.of(STARTED + 1, rows(0)), {name: np.zeros(4), "resident": np.ones(4)})
    record.close(ended=STARTED + 2)
    with kdamon.open(path) as found:
        assert {"resident"} == found.columns
        assert [1.0] * 4 == found.regions(extra=found.columns)["resident"].tolist()


def endless(path: Path, table: str) -> Path:
    """A small record of which a table has the same rows billions of times: its pages have one child many times."""
    some_record(path, 30)
    with contextlib.closing(sqlite3.connect(path)) as db:
        ((root,),) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchall()
        ((size,),), ((count,),) = (db.execute(f"PRAGMA {name}").fetchall() for name in ("page_size", "page_count"))
    content = bytearray(path.read_bytes())
    begin = (root - 1) * size
    content += content[begin : begin + size]
    for page in range(count + 1, count + 5):
        cells = [size - 5 * number for number in range(1, 301)]
        interior = bytearray(size)
        interior[:12] = struct.pack(">BHHHBI", 5, 0, 300, cells[-1], 0, page)
        interior[12:612] = struct.pack(">300H", *cells)
        for cell in cells:
            interior[cell : cell + 5] = struct.pack(">IB", page, 9)
        content += interior
    content[begin : begin + size] = content[-size:]
    content[28:32] = struct.pack(">I", count + 5)
    path.write_bytes(content)
    return path


def test_a_table_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither read into the memory, nor does looking for its end take for ever."""
    path = endless(tmp_path / "a", "counters")
    monkeypatch.setattr(files, "_MOST_FOUND", 1 << 12)
    monkeypatch.setattr(files, "_MOST_TIMES", 1 << 4)
    with kdamon.open(path) as record:
        for read in (record.counter_log, lambda: record.mappings):
            with pytest.raises(OSError, match="the record is damaged: a table is too large"):
                read()


def test_endless_names(tmp_path: Path) -> None:
    """A few bytes, compressed, hold millions of empty ones."""
    path = some_record(tmp_path / "a", 3)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE names SET names = ?", (zlib.compress(bytes(1 << 20)),))
        db.commit()
    assert refusal(path) == "the record is damaged: there are too many names"


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("regions.nr_accesses", np.nan, "the accesses of a region are no number"),
        ("regions.nr_accesses", -1, "the accesses of a region are no number"),
        ("regions.nr_unknown", np.inf, "the accesses of a region are no number"),
        ("regions.size", 0, "regions overlap"),
        ("regions.size", 2**64 - 1, "regions overlap"),
        ("snapshots.merged", 0, "the times of a snapshot are none"),
        ("snapshots.time", -(2**62), "the times of a snapshot are none"),
    ],
)
def test_a_damaged_number_is_reported(tmp_path: Path, column: str, value: float, why: str) -> None:
    path = some_record(tmp_path / "a", 3)
    with contextlib.closing(sqlite3.connect(path)) as db:
        ((rows_of,),) = db.execute("SELECT rows FROM columns WHERE name = ?", (column,)).fetchall()
        kind, data = pack(np.array([value] * rows_of))
        db.execute("UPDATE columns SET type = ?, data = ? WHERE name = ?", (kind, data, column))
        db.commit()
    assert refusal(path) == f"the record is damaged: {why}"


def test_a_reason_is_short(tmp_path: Path) -> None:
    """SQLite's own quotes the text that it cannot read."""
    path = changed(some_record(tmp_path / "a", 12), "UPDATE counters SET data = CAST(x'ff' || zeroblob(5000) AS TEXT)")
    assert len(refusal(path)) < 300
