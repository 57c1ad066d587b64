# SPDX-License-Identifier: GPL-2.0-only
"""damo's own reports on what ``kdamon export --to damo`` writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.capabilities import needs_damo, needs_program
from tests.support.cli import ENVIRONMENT, KDAMON
from tests.support.records import HEAP, STARTED, some_record
from tests.support.views import tuned, write_record

pytestmark = [pytest.mark.real, needs_damo, needs_program("file", "file")]

DAMO = Path(sys.executable).parent / "damo"
MIB = 1 << 20


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of 3 s for damo: 4 MiB are hot, 2 MiB warm, 2 MiB cold, 2 MiB unknown."""
    directory = tmp_path_factory.mktemp("damo")
    record = some_record(directory / "run.kdamon")
    words = [*KDAMON, "export", str(record), "--to", "damo", "-o", str(directory / "damon.data")]
    subprocess.run(words, env=ENVIRONMENT, check=True, stderr=subprocess.DEVNULL)
    return directory / "damon.data"


def damo(path: Path, *words: str) -> str:
    """What damo prints; a failure of it fails the test."""
    done = subprocess.run([str(DAMO), *words], cwd=path.parent, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def number(shown: Any) -> int:
    """A number as damo writes it, with commas."""
    return int(str(shown).replace(",", ""))


def test_damo_reports_the_accesses(exported: Path) -> None:
    """Every snapshot, with the times and regions of the record."""
    (record,) = json.loads(damo(exported, "report", "access", "--input_file", str(exported), "--json", "--raw_number"))
    snapshots = record["snapshots"]
    assert (30, 12) == (len(snapshots), number(record["target_id"]))
    assert round((STARTED + 0.1) * 1e9) == number(snapshots[0]["end_time"])
    hot = [one for one in snapshots[5]["regions"] if number(one["nr_accesses"]["samples"]) == 20]
    assert [(HEAP.start, HEAP.start + 4 * MIB)] == [(number(one["start"]), number(one["end"])) for one in hot]


def test_damo_reports_ages_of_intervals_that_changed(tmp_path: Path) -> None:
    """Each in seconds, whatever the aggregation interval of its snapshot; and the rate of what is always accessed."""
    write_record(str(tmp_path / "run.kdamon"), tuned())
    words = [*KDAMON, "export", str(tmp_path / "run.kdamon"), "--to", "damo", "-o", str(tmp_path / "damon.data")]
    subprocess.run(words, env=ENVIRONMENT, check=True)
    show = ["--input_file", str(tmp_path / "damon.data"), "--raw_number", "--style", "detailed"]
    forms = ["--format_region", "of <start address> <age> <access hz>", "--format_snapshot_head", "at <end time>"]
    shown = damo(tmp_path / "damon.data", "report", "access", *show, *forms)
    idle = re.findall(rf"of {(1 << 30) + MIB} \s+(\S+)\s+(\S+)", shown)
    assert [round(one.time - 100, 6) for one in tuned().snapshots] == [float(age) / 1e6 for age, _ in idle]
    hot = re.findall(rf"of {(1 << 30) + 2 * MIB} \s+(\S+)\s+(\S+)", shown)
    assert [200] * 8 + [100] * 4 + [12.5] * 5 == [float(rate) for _, rate in hot]
    heatmap = ["report", "heatmap", "--input", str(tmp_path / "damon.data"), "--output", "raw", "--resol", "4", "4"]
    assert re.search(r"^\d+\s+\d+\s+\S+$", damo(tmp_path / "damon.data", *heatmap), re.MULTILINE)


def test_damo_reports_the_working_set(exported: Path) -> None:
    """What was accessed at all, at each percentile."""
    shown = damo(exported, "report", "wss", "--input", str(exported))
    assert ["6.000 MiB"] * 5 == re.findall(r"^\s*\d+\s+(\S+ MiB) ", shown, re.MULTILINE), shown


def test_damo_draws_a_heatmap(exported: Path) -> None:
    """Its hottest part is where the record has it."""
    words = ["report", "heatmap", "--input", str(exported), "--abs_addr", "--output", "raw", "--resol", "10", "10"]
    rows = [
        line.split() for line in damo(exported, *words).splitlines() if re.fullmatch(r"\d+\s+\d+\s+\S+", line.strip())
    ]
    heat: dict[int, float] = {}
    for _, address, value in rows:
        heat[int(address)] = heat.get(int(address), 0.0) + float(value)
    hottest = max(heat, key=lambda address: heat[address])
    assert HEAP.start <= hottest < HEAP.start + 4 * MIB
