# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon report`` reads what damo writes, in each of its forms, and refuses what is damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from kdamon_tools.damo_record import is_damo_record, part_of, read_damo_record
from tests.support.capabilities import needs_damo
from tests.support.cli import run
from tests.support.views import MIB, stairs, write_record

#: Of the same regions, but the unknown ones, which damo does not know.
HEAP, STACK = 0x7F00_0000_0000, 0x7F00_0000_0000 + (2 << 40)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of damo that kdamon wrote."""
    directory = tmp_path_factory.mktemp("damo")
    write_record(str(directory / "run.kdamon"), stairs())
    done = run("export", str(directory / "run.kdamon"), "--to", "damo", "-o", str(directory / "damon.data"))
    assert 0 == done.returncode, done.stderr
    return directory / "damon.data"


@pytest.mark.real
def test_an_exported_record_comes_back(exported: Path) -> None:
    recording, sentence = read_damo_record(exported)
    assert ("", 40, 42, 20) == (
        sentence,
        len(recording.snapshots),
        recording.config.pid,
        recording.config.max_nr_accesses,
    )
    hot = recording.snapshots[8].regions[recording.snapshots[8].regions["nr_accesses"] == 20]
    assert [(HEAP + 2 * MIB, HEAP + 3 * MIB)] == hot[["start", "end"]].tolist()


@pytest.mark.real
@needs_damo
@pytest.mark.parametrize("form", ["json", "json_compressed"])
def test_damo_s_own_files_are_the_same(exported: Path, tmp_path: Path, form: str) -> None:
    """damo reads the record and writes it in its way: numbers with commas, as text or compressed."""
    damo = Path(sys.executable).with_name("damo")
    words = [
        damo,
        "convert_record_format",
        "--record_file",
        exported,
        "--format",
        form,
        "--output_file",
        tmp_path / "x",
    ]
    subprocess.run(words, check=True, capture_output=True)
    assert is_damo_record(tmp_path / "x")
    ours, theirs = (read_damo_record(path)[0].snapshots for path in (exported, tmp_path / "x"))
    assert [one.regions.tolist() for one in ours] == [one.regions.tolist() for one in theirs]


@pytest.mark.real
def test_views_of_it(exported: Path) -> None:
    found = json.loads(run("report", str(exported), "where", "--time", "0.8-1.2", "--json").stdout)
    assert (MIB, 0x8000) == (found["hot_bytes"], found["warm_bytes"])
    assert 0 == run("report", str(exported), "heatmap").returncode


@pytest.mark.real
def test_a_part_of_it(exported: Path) -> None:
    part = part_of(read_damo_record(exported)[0], (1.0, 2.0), [(STACK, STACK + 0x1000)])
    assert (10, 1.0) == (len(part.snapshots), round(part.seconds, 6))
    assert [(STACK, STACK + 0x1000)] == part.snapshots[0].regions[["start", "end"]].tolist()


def record(**values: object) -> list[dict[str, object]]:
    region = {"start": "0", "end": "4,096", "nr_accesses": {"samples": 3}, "age": {"aggr_intervals": "1"}}
    shot = {"start_time": "0", "end_time": "100", "regions": [region]}
    one = {"intervals": {"sample_us": "5", "aggr_us": "100"}, "target_id": 7, "snapshots": [shot]}
    return [one | values]


@pytest.mark.parametrize(
    "content",
    [
        b"[",
        b"[]",
        b"[1]",
        b'[{"snapshots": 3}]',
        b"[" * 100_000,
        json.dumps(record(snapshots=[])).encode(),
        json.dumps(record(intervals={"sample_us": "0", "aggr_us": "9"})).encode(),
        json.dumps(record(snapshots=[{"start_time": "0", "end_time": "1", "regions": [{"start": "-5"}]}])).encode(),
        b"\x78\x9c",
        b"\x78\x9cnonsense",
        zlib.compress(json.dumps(record()).encode())[:-6],
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """By an error with a sentence and the name."""
    (tmp_path / "damon.data").write_bytes(content)
    with pytest.raises(OSError, match="record") as refused:
        read_damo_record(tmp_path / "damon.data")
    assert str(tmp_path / "damon.data") == refused.value.filename


def test_a_file_that_expands_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdamon_tools.damo_record._LARGEST", 1 << 20)
    (tmp_path / "damon.data").write_bytes(zlib.compress(b"[" + b" " * (64 << 20)))
    with pytest.raises(OSError, match="larger than 1 MiB"):
        read_damo_record(tmp_path / "damon.data")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not is_damo_record(tmp_path / "pipe")
    assert not is_damo_record(tmp_path)
    assert not is_damo_record(tmp_path / "nothing")


def test_several_targets_are_mentioned(tmp_path: Path) -> None:
    (tmp_path / "damon.data").write_text(json.dumps(record() + record()))
    assert "only the first of 2 targets is shown" == read_damo_record(tmp_path / "damon.data")[1]
