# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon report`` shows what a record holds, and says in one sentence what it cannot."""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
import sys
from pathlib import Path

import pytest

import kdamon
from kdamon_tools.errors import CommandError
from kdamon_tools.pictures.png import render_png
from kdamon_tools.pictures.scene import scene_of
from kdamon_tools.recorded.recording import recording_of
from kdamon_tools.recorded.selection import select
from tests.support.cli import run
from tests.support.json_schemas import validate
from tests.support.records import some_record
from tests.support.views import HOSTILE, MIB, stairs, write_record

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A record of 4 s."""
    path = str(tmp_path_factory.mktemp("records") / "run.kdamon")
    write_record(path, stairs())
    return path


@pytest.mark.parametrize("view", ["summary", "where", "wss", "idle", "regions"])
def test_each_view_is_shown_as_text_and_as_json(record: str, view: str) -> None:
    text = run("report", record, view)
    assert (0, "") == (text.returncode, text.stderr)
    assert text.stdout
    made = run("report", record, view, "--json")
    assert view == validate(json.loads(made.stdout), "kdamon.report")["view"]


def test_the_default_is_the_summary(record: str) -> None:
    assert run("report", record, "summary").stdout == run("report", record).stdout


def test_the_heatmap_is_that_of_a_run(record: str) -> None:
    """Its lines have names, and the steps of the stairs."""
    found = run("report", record, "heatmap").stdout
    assert "[heap]" in found
    assert any("@@@@" in line for line in found.splitlines())


def test_the_heatmap_as_json_has_times_ranges_and_shares(record: str) -> None:
    """One MiB of the heap after the other is hot for 0.4 s; the library is unknown all the time."""
    found = validate(json.loads(run("report", record, "heatmap", "--json").stdout), "kdamon.report")
    assert [0.0, 0.1, 4.0] == [found["times"][at] for at in (0, 1, -1)]
    rows = {row["start"]: row for row in found["ranges"]}
    heap, library = 0x7F00_0000_0000, 0x7F00_0000_0000 + (1 << 40)
    for number in range(10):
        row = rows[heap + number * MIB]
        assert ("[heap]", heap + (number + 1) * MIB) == (row["name"], row["end"])
        assert [float(number == column // 4) for column in range(40)] == row["shares"]
    assert ([None] * 40, [1.0] * 40) == (rows[library]["shares"], rows[library]["unknown_shares"])


def test_the_heatmap_as_csv_has_a_row_for_each_cell(record: str, tmp_path: Path) -> None:
    found = run("report", record, "heatmap", "-o", str(tmp_path / "heat.csv"))
    assert (0, "", "") == (found.returncode, found.stdout, found.stderr)
    rows = list(csv.DictReader((tmp_path / "heat.csv").read_text().splitlines()))
    document = json.loads(run("report", record, "heatmap", "--json").stdout)
    assert 40 * len(document["ranges"]) == len(rows)
    hot = [row for row in rows if row["share"] == "1.0"]
    assert [(str(round(at / 10, 6)), "[heap]") for at in range(40)] == [
        (row["from_seconds"], row["name"]) for row in sorted(hot, key=lambda row: float(row["from_seconds"]))
    ]
    assert {("", "1.0")} == {(row["share"], row["unknown_share"]) for row in rows if "script" in row["name"]}


@pytest.mark.parametrize(("end", "begins"), [(".html", b"<!DOCTYPE html>"), (".svg", b"<svg "), (".png", b"\x89PNG")])
def test_the_file_name_chooses_the_picture(record: str, tmp_path: Path, end: str, begins: bytes) -> None:
    made = run("report", record, "-o", str(tmp_path / f"picture{end}"))
    assert (0, "", "") == (made.returncode, made.stdout, made.stderr)
    assert (tmp_path / f"picture{end}").read_bytes().startswith(begins)


def test_a_csv_file_has_the_rows(record: str, tmp_path: Path) -> None:
    assert 0 == run("report", record, "where", "-o", str(tmp_path / "where.csv")).returncode
    assert "name,bytes,hot_bytes" == (tmp_path / "where.csv").read_text().splitlines()[0][:20]


def test_a_part_of_the_time_and_of_the_addresses(record: str) -> None:
    """From 0.8 s to 1.2 s the third MiB is hot, and of that the first half was asked for."""
    start = 0x7F00_0000_0000 + 2 * MIB
    words = ("--time", "0.8-1.2", "--range", f"{start:x}-{start + MIB // 2:x}", "--json")
    found = json.loads(run("report", record, "where", *words).stdout)
    assert (MIB // 2, 0) == (found["hot_bytes"], found["cold_bytes"])


def test_a_record_without_an_end_is_shown(tmp_path: Path) -> None:
    path = str(tmp_path / "run.kdamon")
    write_record(path, stairs())
    # As a killed kdamon leaves it: everything but the end.

    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM run WHERE key = 'ended'")
    found = run("report", path, "where")
    assert 0 == found.returncode
    assert "the record has no end; it may be in progress" in found.stderr
    assert "[heap]" in found.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["where", "-o", "x.png"], "a .png file holds the heatmap: leave where out, or name a .csv or text file"),
        (["-o", "x.svg", "--json"], "a .svg file is a picture: leave --json and --raw out"),
        (["where", "--at", "3"], "--at is a time of the view regions: name it, or use --time"),
        (["regions", "--at", "3", "--time", "2-4"], "--at is a time of the whole record: leave --time out"),
        (["where", "-o", "x.csv", "--json"], "a .csv file is a table: leave --json out"),
    ],
)
def test_contradictions_are_refused(record: str, words: list[str], sentence: str) -> None:
    assert (2, f"kdamon: {sentence}\n") == ((found := run("report", record, *words)).returncode, found.stderr)


def test_a_long_record_is_read_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours are merged: as many bytes are hot, and no time is lost."""
    of = stairs()
    write_record(str(tmp_path / "run.kdamon"), of)
    monkeypatch.setattr("kdamon_tools.recorded.recording._MOST_SNAPSHOTS", 10)
    with kdamon.open(tmp_path / "run.kdamon") as record:
        found = recording_of(select(record, None, ()))
    assert ([4] * 10, 100.0) == ([snapshot.merged for snapshot in found.snapshots], found.snapshots[0].began)
    hot = [snapshot.regions[snapshot.regions["nr_accesses"] == 20] for snapshot in found.snapshots]
    assert [0x7F00_0000_0000 + number * MIB for number in range(10)] == [int(row["start"][0]) for row in hot]


def test_a_result_does_not_replace_the_record(record: str) -> None:
    found = run("report", record, "-o", record)
    assert 2 == found.returncode
    assert "are the same file" in found.stderr


def test_times_after_the_end_hold_nothing(record: str) -> None:
    found = run("report", record, "--time", "10-20")
    assert (1, f"kdamon: {record}: the record holds no snapshot in --time; it ends at 4.0 s\n") == (
        found.returncode,
        found.stderr,
    )


@pytest.mark.parametrize("content", [b"", b"no record", b"SQLite format 3\0" + bytes(100)])
def test_another_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    found = run("report", str(path))
    assert (1, 1) == (found.returncode, found.stderr.count("\n"))
    assert found.stderr.startswith(f"kdamon: {path}: ")


def test_a_hostile_name_reaches_no_output(record: str, tmp_path: Path) -> None:
    for words in (["where"], ["regions"], ["heatmap"], ["where", "--json"], ["-o", str(tmp_path / "x.html")]):
        found = run("report", record, *words)
        assert 0 == found.returncode
        assert not {"\x1b", "\udcff"} & set(found.stdout)
    assert HOSTILE not in (tmp_path / "x.html").read_text()


def test_without_pillow_a_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(CommandError, match=r"pip install 'kdamon\[png\]'"):
        render_png(scene_of(stairs()))


def test_a_view_may_follow_the_options(record: str) -> None:
    assert run("report", record, "where").stdout == run("report", record, "--color", "never", "where").stdout
    assert 2 == run("report", record, "--color", "never", "nowhere").returncode
    assert 2 == run("report", record, "where", "--color", "never", "idle").returncode


def test_a_summary_says_what_the_disk_was_too_slow_for(tmp_path: Path) -> None:
    path = some_record(tmp_path / "a", 3)
    assert "too slow" not in run("report", str(path)).stdout
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("INSERT OR REPLACE INTO run VALUES ('lost_snapshots', '7')")
        database.commit()
    assert "7 snapshots are not in the record: the disk was too slow" in run("report", str(path)).stdout
