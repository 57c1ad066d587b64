# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified damo, in ``kdamon exec``: what memory is, counted by probes, and a scheme that goes by it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.capabilities import needs_damo
from tests.support.two_halves import HALF
from tests.support.two_halves import SCRIPT as TWO_HALVES

pytestmark = [pytest.mark.real, needs_damo]


DAMO = Path(sys.executable).parent / "damo"

#: A region of two pages is never split: the huge page whose first page shares one with anonymous memory may stay.
EDGE_KIB = 2048

#: Pages out what is a file's, then weighs another property, then names a control group that is not there.
SCRIPT = """
set -e
cd "$HOME"
damo=$1; pid=$2; file=$3; edge=$4; shift 4; what="--ops fvaddr --target_pid $pid --regions $1"
in_memory() { awk -v file="$file" '$6 == file { here = 1 } here && /^Rss:/ { print $2; exit }' /proc/$pid/smaps; }
echo "before: $(in_memory) $(awk '/RssAnon/ { print $2 }' /proc/$pid/status)"
$damo start $what --probe --probe_filter allow anon --probe_weight 100 \
    --damos_scheme --damos_action pageout --damos_filter allow probe_hits_wsum 0 0
for i in $(seq 100); do [ "$(in_memory)" -le $edge ] && break; sleep 0.2; done
echo "after: $(in_memory) $(awk '/RssAnon/ { print $2 }' /proc/$pid/status)"
$damo tune $what --probe --probe_filter reject hugepage_size 8K 4M --probe_filter allow anon --probe_weight 3 \
    --probe --probe_prep set_pgidle --probe_filter allow pgidle_set --probe_weight 1
sleep 1
$damo report attrs
$damo tune $what --probe --probe_filter allow memcg /there/is/none || echo refused
cat /sys/kernel/mm/damon/admin/kdamonds/0/state
$damo stop
"""


def test_damo_probes_what_memory_is(kdamon_exec: Any, tmp_path: Path) -> None:
    """The file leaves memory and nothing else does; what damo reads back is what it wrote."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="kdamon-test-") as file:
        file.write(b"\7" * HALF)
        file.flush()
        # What waits to be written cannot be paged out.
        os.fsync(file.fileno())
        command = [sys.executable, "-c", TWO_HALVES, file.name, str(HALF)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            base = int(process.stdout.readline())
            arguments = (str(DAMO), str(process.pid), file.name, str(EDGE_KIB), f"{base}-{base + 2 * HALF}")
            done = kdamon_exec(tmp_path, "bash", "-c", SCRIPT, "bash", *arguments, abi="next")
            process.stdin.close()
    assert 0 == done.returncode, done.stdout + done.stderr
    (before, after) = re.findall(r"^(?:before|after): (\d+) (\d+)$", done.stdout, re.MULTILINE)
    assert HALF >> 10 == int(before[0])
    assert int(after[0]) <= EDGE_KIB
    assert int(after[1]) >= int(before[1])
    assert "- reject hugepage_size [8.000 KiB, 4.000 MiB], allow anon (weight: 3)" in done.stdout
    assert "- prep: set_pgidle, filter: allow pgidle_set (weight: 1)" in done.stdout
    # damo joins regions of similar sums: what it shows of one is the hits of its first part.
    rows = re.findall(r"^\d+ .* (\d+) (\d+) *$", done.stdout, re.MULTILINE)
    assert rows
    assert all(int(hits) <= 20 for row in rows for hits in row)
    assert any(int(anon) >= 19 and int(idle) >= 19 for anon, idle in rows)
    assert ["refused", "on"] == done.stdout.splitlines()[-2:]
