# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified damo, in ``kdamon exec``, monitors a live process whose hot memory is known."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.capabilities import needs_damo

pytestmark = [pytest.mark.real, needs_damo]


DAMO = Path(sys.executable).parent / "damo"
#: Samples of an aggregation interval, 5 ms in 100 ms.
SAMPLES = 20

SCRIPT = """
set -e
grep -q '^kdamon /sys/kernel/mm/damon fuse.kdamon ' /proc/mounts
cd "$HOME"
damo=$1; pid=$2; python=$3; good=$4; sizes=$5; tree=/sys/kernel/mm/damon/admin/kdamonds
$damo start --target_pid $pid
cat $tree/0/state
for i in $(seq 60); do
    sleep 0.5
    $damo report access --json > access.json
    if $python -c "$good" $sizes < access.json; then break; fi
done
$damo tune --target_pid $pid --monitoring_intervals 10ms 200ms 1s --monitoring_nr_regions_range 20 500
cat $tree/0/state $tree/0/contexts/0/monitoring_attrs/{intervals/{sample,aggr}_us,nr_regions/{min,max}}
$damo report damon > damon.txt
$damo stop
cat $tree/0/state $tree/0/pid
"""


#: Whether a report finds about what the workload reads hot, and most of the rest cold; given those sizes.
GOOD = """
import json, sys
number = lambda shown: int(str(shown).replace(",", ""))
((snapshot,),) = (record["snapshots"] for record in json.load(sys.stdin))
sizes = {True: 0, False: 0}
for region in snapshot["regions"]:
    hot = number(region["nr_accesses"]["samples"]) > 10
    sizes[hot] += number(region["end"]) - number(region["start"])
hot, cold = map(int, sys.argv[1].split(","))
sys.exit(not (0.8 * hot <= sizes[True] <= 1.3 * hot and sizes[False] >= 0.8 * cold))
"""


class Answers(NamedTuple):
    """What the session said, and what it left in its home."""

    said: str
    home: Path
    pid: int


@pytest.fixture(scope="module")
def session(
    kdamon_exec: Any,
    workload: int,
    sizes: tuple[int, int],
    tmp_path_factory: pytest.TempPathFactory,
    fuse_binding: str,
) -> Answers:
    """start, report access, tune, report damon, stop."""
    home = tmp_path_factory.mktemp("home")
    words = (str(DAMO), str(workload), sys.executable, GOOD, ",".join(map(str, sizes)))
    done = kdamon_exec(home, "bash", "-c", SCRIPT, "bash", *words)
    assert 0 == done.returncode, done.stdout + done.stderr
    return Answers(done.stdout, home, workload)


def test_damo_starts_tunes_and_stops(session: Answers) -> None:
    """The states and the tuned attributes are in the tree."""
    assert ["on", "on", "10000", "200000", "20", "500", "off", "-1"] == session.said.split()


def number(shown: str | int) -> int:
    """A number as damo shows it, with commas."""
    return int(str(shown).replace(",", ""))


def test_damo_reports_the_hot_memory(session: Answers, sizes: tuple[int, int]) -> None:
    """Hot is what was seen in most samples: about as much as the workload reads, allowing for a missed bit."""
    (record,) = json.loads((session.home / "access.json").read_text())
    (snapshot,) = record["snapshots"]
    hot = cold = 0
    for region in snapshot["regions"]:
        size = number(region["end"]) - number(region["start"])
        if number(region["nr_accesses"]["samples"]) > SAMPLES // 2:
            hot += size
        else:
            cold += size
    assert 0.8 * sizes[0] <= hot <= 1.3 * sizes[0]
    assert cold >= 0.8 * sizes[1]


def test_damo_knows_what_is_monitored(session: Answers) -> None:
    """Its own view of the tree names the process and the intervals."""
    text = (session.home / "damon.txt").read_text()
    assert re.search(rf"pid: {session.pid}\b", text)
    assert re.search(r"sample 10 ms, aggr 200 ms", text)


def test_damo_finds_the_features_of_the_version_that_was_asked_for(kdamon_exec: Any, tmp_path: Path) -> None:
    """It looks which files exist: the versions differ by what it can see."""
    features = {}
    for abi in ("6.12", "7.2"):
        done = kdamon_exec(tmp_path, str(DAMO), "report", "sysinfo", "--print", "sysfs_features", abi=abi)
        assert 0 == done.returncode, done.stdout + done.stderr
        features[abi] = set(re.findall(r"sysfs/\w+", done.stdout))
    assert features["6.12"] < features["7.2"]
    assert {"sysfs/schemes_apply_interval", "sysfs/vaddr"} <= features["6.12"]
    assert {"sysfs/intervals_goal", "sysfs/addr_unit", "sysfs/refresh_ms"} <= features["7.2"] - features["6.12"]


def test_nothing_is_left_of_a_session(session: Answers) -> None:
    """No cache in the home directory, no mount, and the process lives on."""
    assert not (session.home / ".damo.sysinfo").exists()
    assert b"kdamon /sys" not in Path("/proc/mounts").read_bytes()
    assert Path(f"/proc/{session.pid}").exists()
