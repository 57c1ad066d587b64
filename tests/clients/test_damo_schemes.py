# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified damo, in ``kdamon exec``: schemes with quotas, filters, goals and watermarks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.capabilities import needs_damo

pytestmark = [pytest.mark.real, needs_damo]


DAMO = Path(sys.executable).parent / "damo"
QUOTA = 8 << 20

SCRIPT = """
set -e
cd "$HOME"
damo=$1; pid=$2; tree=/sys/kernel/mm/damon/admin/kdamonds/0; scheme=$tree/contexts/0/schemes/0
show() { echo update_schemes_stats > $tree/state; echo update_schemes_effective_quotas > $tree/state; "$@"; }
$damo start --target_pid $pid --damos_action stat --damos_quotas 0 8M 500ms 0 0% 1% --damos_filter allow anon
for i in $(seq 300); do
    show true
    [ $(cat $scheme/stats/qt_exceeds) -lt 3 ] || break
    sleep 0.1
done
$damo report damon --damos_stats
show grep . $scheme/quotas/effective_bytes $scheme/stats/{sz_tried,qt_exceeds} $scheme/ops_filters/0/type
$damo tune --target_pid $pid --damos_action stat --damos_quota_interval 100 --damos_quota_goal user_input 100 0
for i in $(seq 100); do
    show grep -q '^[0-9]\\{4,6\\}$' $scheme/quotas/effective_bytes && break
    sleep 0.1
done
show cat $scheme/quotas/effective_bytes
$damo tune --target_pid $pid --damos_action stat --damos_wmarks free_mem_rate 100ms 0.1% 0.1% 0.1%
for i in $(seq 20); do
    before=$(show cat $scheme/stats/nr_tried)
    sleep 0.5
    after=$(show cat $scheme/stats/nr_tried)
    [ $before -ne $after ] || break
done
echo $before; echo $after
cat $tree/state
$damo stop
"""


def test_damo_starts_and_tunes_schemes(kdamon_exec: Any, workload: int, tmp_path: Path) -> None:
    """A quota is kept in each window, a goal makes it grow, watermarks stop everything."""
    done = kdamon_exec(tmp_path, "bash", "-c", SCRIPT, "bash", str(DAMO), str(workload))
    assert 0 == done.returncode, done.stdout + done.stderr
    said = done.stdout.splitlines()
    shown = dict(re.findall(r"/([a-z_]+):(\S+)$", done.stdout, re.MULTILINE))
    assert QUOTA == int(shown["effective_bytes"])
    assert int(shown["sz_tried"]) <= (int(shown["qt_exceeds"]) + 1) * QUOTA
    assert int(shown["qt_exceeds"]) >= 3
    assert "anon" == shown["type"]
    assert re.search(r"^qt_exceeds: [1-9]", done.stdout, re.MULTILINE)
    *_, effective, before, after, state = said
    size = int(effective)
    assert size >= 1024
    assert 0 == size & (size - 1)
    assert before == after
    assert "on" == state


COMPLEMENT = """
cd "$HOME"
goal="--damos_action stat --damos_sz_region 1T max --damos_quotas 0 1G 1s --damos_quota_goal $3"
$1 start --target_pid $2 $goal || { echo refused; exit; }
cd /sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/schemes/0/quotas/goals/0
cat complement target_metric target_value nid
cd "$HOME"
$1 report damon | grep -o "metric .* target"
$1 stop
"""


@pytest.mark.parametrize(
    ("abi", "said"),
    [
        (None, ["refused"]),
        ("7.4", ["Y", "node_mem_free_bp", "5000", "0", "metric node_mem_free_bp (complement) (nid 0) target"]),
    ],
)
def test_damo_asks_for_the_complement_of_a_goal(
    kdamon_exec: Any, workload: int, tmp_path: Path, abi: str | None, said: list[str]
) -> None:
    """It is a file of 7.4: damo refuses without it, writes it, and reads it back."""
    goal = "node_mem_free_bp 50% complement 0"
    done = kdamon_exec(tmp_path, "bash", "-c", COMPLEMENT, "bash", str(DAMO), str(workload), goal, abi=abi)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert said == done.stdout.splitlines()[-len(said) :], done.stdout + done.stderr


#: What damo is asked for, and the scheme's files that say so afterwards.
SCHEMES = (
    ("willneed", "allow anon", "user_input 100 50", "ops_filters/0/type anon", "goals/0/current_value 50"),
    ("cold", "reject none active", "some_mem_psi_us 7", "ops_filters/0/matching N", "goals/0/target_value 7"),
    ("pageout", "allow memcg /", "node_mem_used_bp 50% 0", "ops_filters/0/memcg_path /", "goals/0/target_value 5000"),
    ("hugepage", "allow young", "node_mem_free_bp 50% 0", "ops_filters/0/allow Y", "goals/0/nid 0"),
    (
        "nohugepage",
        "allow hugepage_size 4K 2M",
        "node_memcg_used_bp 9% 0 /",
        "ops_filters/0/max 2097152",
        "goals/0/path /",
    ),
    ("collapse", "reject none unmapped", "node_memcg_free_bp 9% 0 /", "ops_filters/0/allow N", "goals/0/path /"),
    (
        "lru_prio",
        "allow addr 4096 8192",
        "active_mem_bp 9%",
        "core_filters/0/addr_end 8192",
        "goals/0/target_value 900",
    ),
    ("lru_deprio", "reject target 0", "inactive_mem_bp 9%", "core_filters/0/damon_target_idx 0", "goals/nr_goals 1"),
    ("migrate_hot 0", "allow none anon", "user_input 1 0", "target_nid 0", "goals/nr_goals 1"),
    ("migrate_cold 0 3 1 2", "reject anon", "user_input 1 0", "dests/1/weight 2", "goals/nr_goals 1"),
    ("stat", "allow none target 1", "user_input 1 0", "core_filters/0/matching N", "goals/nr_goals 1"),
)


def test_every_action_filter_and_goal_of_damo_reaches_the_tree(kdamon_exec: Any, workload: int, tmp_path: Path) -> None:
    """One command with a scheme for each; none of them finds a region, so nothing is done to anybody."""
    options = [f"--damos_action {action} --damos_sz_region 1T max --damos_quotas 0 1G 1s" for action, *_ in SCHEMES]
    options += [f"--damos_filter {memory} --damos_quota_goal {goal}" for _, memory, goal, *_ in SCHEMES]
    ones = " ".join("1" for _ in SCHEMES)
    options += [f"--damos_nr_filters {ones} --damos_nr_quota_goals {ones} --target_pid {workload}"]
    files = [
        (f"{i}/{path}", value)
        for i, (action, _, goal, filter_file, goal_file) in enumerate(SCHEMES)
        for path, value in (
            ("action", action.split()[0]),
            filter_file.split(),
            ("quotas/goals/0/target_metric", goal.split()[0]),
            f"quotas/{goal_file}".split(),
        )
    ]
    script = f"""
    set -e
    {DAMO} start {" ".join(options)}
    cd /sys/kernel/mm/damon/admin/kdamonds/0
    echo update_schemes_stats > state
    cat state contexts/0/schemes/{{{",".join(path for path, _ in files)}}}
    {DAMO} stop
    """
    done = kdamon_exec(tmp_path, "bash", "-c", script)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert ["on", *(value for _, value in files)] == done.stdout.split()
