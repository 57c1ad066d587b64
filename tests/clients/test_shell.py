# SPDX-License-Identifier: GPL-2.0-only
"""A shell session on a live process, the way the kernel's usage document drives the tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.real


SCRIPT = """
set -e
grep -q '^kdamon /sys/kernel/mm/damon fuse.kdamon ' /proc/mounts
cd /sys/kernel/mm/damon/admin
echo 1 > kdamonds/nr_kdamonds && echo 1 > kdamonds/0/contexts/nr_contexts
echo vaddr > kdamonds/0/contexts/0/operations
echo 1 > kdamonds/0/contexts/0/targets/nr_targets
echo $1 > kdamonds/0/contexts/0/targets/0/pid_target
cd kdamonds/0/contexts/0/schemes
echo 1 > nr_schemes
echo stat > 0/action
echo 4096 > 0/access_pattern/sz/min
echo 18446744073709551615 > 0/access_pattern/sz/max
echo 11 > 0/access_pattern/nr_accesses/min
echo 20 > 0/access_pattern/nr_accesses/max
echo 0 > 0/access_pattern/age/min
echo 18446744073709551615 > 0/access_pattern/age/max
cd ../../..
echo on > state
cat state pid
for i in $(seq 120); do
    sleep 0.5
    echo update_schemes_tried_regions > state
    hot=$(cat contexts/0/schemes/0/tried_regions/total_bytes)
    if [ $hot -ge $2 ] && [ $hot -le $3 ]; then break; fi
done
echo $hot
echo update_schemes_stats > state
cat contexts/0/schemes/0/stats/nr_tried
echo off > state
cat state pid
"""


def test_the_session_of_the_usage_document_finds_the_hot_memory(
    kdamon_exec: Any, workload: int, sizes: tuple[int, int], tmp_path: Path
) -> None:
    """A scheme for what is accessed in most samples counts about as much as the workload reads."""
    least, most = round(0.8 * sizes[0]), round(1.3 * sizes[0])
    words = (str(workload), str(least), str(most))
    done = kdamon_exec(tmp_path, "bash", "-c", SCRIPT, "bash", *words)
    assert (0, "") == (done.returncode, done.stderr)
    on, kdamond, hot, tried, off, ended = done.stdout.split()
    assert ("on", "off", "-1") == (on, off, ended)
    assert int(kdamond) > 0
    # On a busy machine it takes longer, and the script waits for it.
    assert least <= int(hot) <= most
    assert int(tried) > 0
