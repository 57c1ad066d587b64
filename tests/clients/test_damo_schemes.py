# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified damo, in ``kdamon exec``: schemes with quotas, filters, goals and watermarks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

DAMO = Path(sys.executable).parent / "damo"
QUOTA = 8 << 20

SCRIPT = """
set -e
cd "$HOME"
damo=$1; pid=$2; tree=/sys/kernel/mm/damon/admin/kdamonds/0; scheme=$tree/contexts/0/schemes/0
show() { echo update_schemes_stats > $tree/state; echo update_schemes_effective_quotas > $tree/state; "$@"; }
$damo start --target_pid $pid --damos_action stat --damos_quotas 0 8M 500ms 0 0% 1% --damos_filter allow anon
sleep 3
$damo report damon --damos_stats
show grep . $scheme/quotas/effective_bytes $scheme/stats/{sz_tried,qt_exceeds} $scheme/ops_filters/0/type
$damo tune --target_pid $pid --damos_action stat --damos_quota_interval 100 --damos_quota_goal user_input 100 0
for i in $(seq 100); do
    show grep -q '^[0-9]\\{4,\\}$' $scheme/quotas/effective_bytes && break
    sleep 0.1
done
show cat $scheme/quotas/effective_bytes
$damo tune --target_pid $pid --damos_action stat --damos_wmarks free_mem_rate 100ms 0.1% 0.1% 0.1%
sleep 0.5
show cat $scheme/stats/nr_tried
sleep 0.5
show cat $scheme/stats/nr_tried
cat $tree/state
$damo stop
"""

if not DAMO.exists():
    pytest.skip("damo is not installed", allow_module_level=True)


def test_damo_starts_and_tunes_schemes(kdamon_exec: Any, workload: int, tmp_path: Path) -> None:
    """A quota is kept in each window, a goal makes it grow, watermarks stop everything."""
    done = kdamon_exec(tmp_path, "bash", "-c", SCRIPT, "bash", str(DAMO), str(workload))
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    shown = dict(re.findall(r"/([a-z_]+):(\S+)$", done.stdout, re.MULTILINE))
    assert int(shown["effective_bytes"]) == QUOTA
    assert int(shown["sz_tried"]) <= (int(shown["qt_exceeds"]) + 1) * QUOTA
    assert int(shown["qt_exceeds"]) >= 3
    assert shown["type"] == "anon"
    assert re.search(r"^qt_exceeds: [1-9]", done.stdout, re.MULTILINE)
    *_, effective, before, after, state = said
    size = int(effective)
    assert size >= 1024
    assert size & (size - 1) == 0
    assert before == after
    assert state == "on"
