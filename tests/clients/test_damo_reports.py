# SPDX-License-Identifier: GPL-2.0-only
"""Schemes of unmodified damo that reports drive: faults of writes, and what another process reports."""

from __future__ import annotations

import array
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.capabilities import needs_damo

pytestmark = [pytest.mark.real, needs_damo]


DAMO = Path(sys.executable).parent / "damo"
PART = 16 << 20
PAGE = 4096

SCRIPT = """
set -e
cd "$HOME"
python=$1; damo=$2; pid=$3; cold=$4; push=$5; shift 5
tree=/sys/kernel/mm/damon/admin/kdamonds/0; context=$tree/contexts/0; scheme=$context/schemes/0
$damo start --target_pid $pid --damos_action pageout --damos_access_rate 0% 0% --damos_age 500ms max "$@" \\
    --damos_filter reject young --damos_quota_interval 1s --damos_quota_space 32M --damos_quota_fail_charge_ratio 1 1000
if [ -n "$push" ]; then
    echo N > $context/monitoring_attrs/sample/primitives/page_table
    echo commit > $tree/state
    $python -c "$push" &
fi
for i in $(seq 600); do
    echo update_schemes_stats > $tree/state
    [ $(cat $scheme/stats/sz_applied) -lt $cold ] || break
    sleep 0.1
done
$damo report damon --damos_stats
grep . $scheme/stats/{sz_applied,nr_applied} $context/monitoring_attrs/sample/{primitives,reports}/*
$damo stop
[ -z "$push" ] || kill %1
"""

#: Reports each page of a range of a process, again and again.
PUSH = """
import time
import numpy as np
from kdamon.producers.client import ReportClient
from kdamon.reports.record import report_array
with ReportClient() as client:
    pages = np.arange({pages}, dtype=np.uint64) * np.uint64(4096)
    told = report_array(len(pages), pid={pid}, addr=pages + np.uint64({start}))
    while True:
        client.report(told)
        time.sleep(0.002)
"""


@pytest.fixture
def coldhalf(tmp_path: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """A process that writes a part, reads a part, and leaves a part of a file alone; its number, and where they are."""
    truth = tmp_path / "truth"
    sizes = ["--total", str(3 * PART >> 20), "--written", str(PART >> 20), "--read", str(PART >> 20)]
    words = ["-m", "kdamon_tools.workloads.coldhalf", *sizes, "--seconds", "300", "--truth", str(truth)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, *words, "--rest-us", "2000"], env=environment) as process:
        try:
            parts: dict[str, int] = {}
            while "sweeps" not in parts:
                assert process.poll() is None
                time.sleep(0.05)
                lines = truth.read_text().splitlines() if truth.exists() else []
                parts = {event["event"]: event["start"] for event in map(json.loads, lines)}
            yield process.pid, parts
        finally:
            process.kill()


def present(pid: int, start: int) -> int:
    """How many bytes of the part that begins at ``start`` are mapped."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        entries = array.array("Q", os.pread(pagemap.fileno(), PART // PAGE * 8, start // PAGE * 8))
    return sum(entry >> 63 for entry in entries) * PAGE


def check_page_fault(pid: int) -> None:
    """Skip where faults cannot be sampled, with the machine's own reason."""
    from kdamon.mm.linux.machine import linux_machine

    machine = linux_machine("page_fault")
    try:
        machine.get_task(pid, "page_fault").put()
    except OSError as error:
        pytest.skip(f"kernel lacks: page_fault: {error.strerror}")
    finally:
        machine.close()


@pytest.mark.parametrize("source", ["faults", "another process"])
def test_what_nobody_reports_is_paged_out(
    kdamon_exec: Any, coldhalf: tuple[int, dict[str, int]], tmp_path: Path, source: str
) -> None:
    """With a quota, and a filter that keeps what is read: neither faults nor the other process report that."""
    pid, parts = coldhalf
    push, options = "", ["--sample_primitives", "page_fault", "--exp_ops_write_only", "Y"]
    if source == "faults":
        check_page_fault(pid)
    else:
        push, options = PUSH.format(pid=pid, start=parts["writes"], pages=PART // PAGE), []
    words = ["bash", "-c", SCRIPT, "bash", sys.executable, str(DAMO), str(pid), str(PART), push, *options]
    done = kdamon_exec(tmp_path, *words, options=("--reports", str(tmp_path / "reports")))
    assert 0 == done.returncode, done.stdout + done.stderr
    shown = dict(re.findall(r"/(\w+):(\S+)$", done.stdout, re.MULTILINE))
    assert ("N", "Y" if source == "faults" else "N") == (shown["page_table"], shown["page_fault"])
    assert int(shown["applied"]) > 0
    assert 0 == int(shown["late"])
    assert int(shown["sz_applied"]) >= PART
    assert re.search(r"^nr_applied: [1-9]", done.stdout, re.MULTILINE)
    # Pages in the middle of being made young again may go, and come back when they are next read.
    assert present(pid, parts["cold"]) < PART // 4
    assert present(pid, parts["reads"]) > PART * 3 // 4
    assert PART == present(pid, parts["writes"])
