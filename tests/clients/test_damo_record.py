# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified damo, in ``kdamon exec``: records, and a first call that comes when a kdamond runs already."""

from __future__ import annotations

import json
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.capabilities import needs_damo

pytestmark = [pytest.mark.real, needs_damo]


DAMO = Path(sys.executable).parent / "damo"
#: Samples of an aggregation interval, 5 ms in 100 ms.
SAMPLES = 20

MADE_SURE = "grep -q '^kdamon /sys/kernel/mm/damon fuse.kdamon ' /proc/mounts || exit 99\n"


def number(shown: str | int) -> int:
    """A number as damo writes it, with commas."""
    return int(str(shown).replace(",", ""))


def hot_bytes(record: dict[str, Any], snapshot: int) -> int:
    """Bytes that were accessed in most samples of a snapshot."""
    regions = record["snapshots"][snapshot]["regions"]
    hot = [region for region in regions if number(region["nr_accesses"]["samples"]) > SAMPLES // 2]
    return sum(number(region["end"]) - number(region["start"]) for region in hot)


def test_damo_records_the_process(kdamon_exec: Any, workload: int, tmp_path: Path, sizes: tuple[int, int]) -> None:
    """What it reads, in its own addresses, on a machine without perf."""
    script = f"""{MADE_SURE}
        cd "$HOME"; mkdir tools; for tool in sh which uname pidof ps; do ln -s "$(command -v $tool)" tools; done
        PATH="${{PATH%%:*}}:$HOME/tools"
        exec {sys.executable} {DAMO} record --do_record access --timeout 8 --out record {workload}"""
    done = kdamon_exec(tmp_path, "bash", "-c", script)
    assert 0 == done.returncode, done.stdout + done.stderr
    (record,) = json.loads(zlib.decompress((tmp_path / "record").read_bytes()))
    # Regions are still being found in the first ones, and a busy machine misses samples.
    hot = [hot_bytes(record, at) for at in range(len(record["snapshots"]))]
    assert any(0.8 * sizes[0] <= found <= 1.5 * sizes[0] for found in hot), hot
    assert number(record["snapshots"][-1]["regions"][-1]["end"]) < 1 << 47


def test_damo_starts_while_a_kdamond_runs(kdamon_exec: Any, workload: int, tmp_path: Path) -> None:
    """It finds out the features of a tree when nothing runs, which the namespace's start lets it do."""
    script = f"""{MADE_SURE}
        cd /sys/kernel/mm/damon/admin/kdamonds; echo 1 > nr_kdamonds; cd 0; echo 1 > contexts/nr_contexts
        echo 1 > contexts/0/targets/nr_targets; echo {workload} > contexts/0/targets/0/pid_target; echo on > state
        {DAMO} report damon; {DAMO} report sysinfo --print sysfs_features; cat state"""
    done = kdamon_exec(tmp_path, "bash", "-c", script)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert re.search(rf"pid: {workload}\b", done.stdout)
    assert "sysfs/schemes_tried_regions" in done.stdout
    assert done.stdout.endswith("on\n")
    assert [] == sorted(name.name for name in tmp_path.iterdir())
