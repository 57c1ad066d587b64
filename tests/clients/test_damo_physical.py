# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified damo without arguments: it monitors the machine's memory, here as far as that can be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
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
for n in $(seq 12); do
    sleep 0.3
    $damo report access --json > access$n.json
done
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


def accessed_and_covered(path: Path) -> tuple[int, int]:
    """Bytes of regions that were accessed, and of all, in a report of damo's."""
    (record,) = json.loads(path.read_text())
    (snapshot,) = record["snapshots"]
    accessed = covered = 0
    for region in snapshot["regions"]:
        start, end, accesses = (
            int(str(number).replace(",", ""))
            for number in (region["start"], region["end"], region["nr_accesses"]["samples"])
        )
        covered += end - start
        accessed += (end - start) * bool(accesses)
    return accessed, covered


@pytest.fixture
def reader() -> Iterator[int]:
    """A process that reads 200 MiB all the time: about one in a hundred pages of the machine."""
    script = "memory = bytearray(200 << 20)\nprint(flush=True)\nwhile True:\n    memory[::4096]\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.mark.usefixtures("reader")
def test_damo_monitors_all_memory(kdamon_exec: Any, tmp_path: Path) -> None:
    """Regions cover it, some of them are accessed, and it is said what is not known."""
    done = kdamon_exec(tmp_path, "bash", "-c", SCRIPT, "bash", str(DAMO))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["paddr", "on", "off"]
    assert "are mapped by one process each, whose accesses can be told" in done.stderr
    sizes = [accessed_and_covered(path) for path in tmp_path.glob("access*.json")]
    assert len(sizes) == 12
    assert min(covered for _, covered in sizes) >= 0.9 * system_ram()
    # The few samples of an interval may miss what is accessed; those of all of them do not.
    assert any(0 < accessed < covered for accessed, covered in sizes)
