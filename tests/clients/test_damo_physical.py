# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified damo without arguments: it monitors the machine's memory, here as far as that can be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

DAMO = Path(sys.executable).parent / "damo"

SCRIPT = """
set -e
cd "$HOME"
damo=$1; context=/sys/kernel/mm/damon/admin/kdamonds/0/contexts/0
$damo start
cat $context/operations $context/../../state
sleep 2
$damo report access --json > access.json
$damo stop
cat $context/../../state
"""

if not DAMO.exists():
    pytest.skip("damo is not installed", allow_module_level=True)


def system_ram() -> int:
    """Bytes of memory that /proc/iomem lists."""
    sizes = 0
    for line in Path("/proc/iomem").read_text().splitlines():
        where, _, what = line.partition(" : ")
        if what == "System RAM":
            start, end = (int(number, 16) for number in where.split("-"))
            sizes += end + 1 - start
    return sizes


def test_damo_monitors_all_memory(kdamon_exec: Any, workload: int, tmp_path: Path) -> None:
    """Regions cover it, some of them are accessed, and it is said what is not known."""
    done = kdamon_exec(tmp_path, "bash", "-c", SCRIPT, "bash", str(DAMO))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["paddr", "on", "off"]
    assert "are mapped by one process each, whose accesses can be told" in done.stderr
    (record,) = json.loads((tmp_path / "access.json").read_text())
    (snapshot,) = record["snapshots"]
    covered = hot = 0
    for region in snapshot["regions"]:
        start, end, accesses = (
            int(str(number).replace(",", ""))
            for number in (region["start"], region["end"], region["nr_accesses"]["samples"])
        )
        covered += end - start
        hot += (end - start) * bool(accesses)
    assert covered >= 0.9 * system_ram()
    # The workload alone reads 20 MiB all the time.
    assert 0 < hot < covered
    assert workload
