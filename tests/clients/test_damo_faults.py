# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified damo monitors writes, a CPU and a thread of a live process whose threads access different memory.

The options are those that the help of damo 3.4.3 hides; they write files of kdamon's own, in the default tree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.capabilities import needs_damo

pytestmark = [pytest.mark.real, needs_damo]


DAMO = Path(sys.executable).parent / "damo"
MEBI = 1 << 20


@pytest.fixture(scope="module")
def workload() -> Iterator[dict[str, Any]]:
    """The bundled workload: A is written on a CPU, B is written and C is read on another; what it says of itself."""
    words = [sys.executable, "-m", "kdamon_tools.workloads.readwrite", "--seconds", "300"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def page_fault(workload: dict[str, Any]) -> None:
    """Skip where faults cannot be sampled, with the machine's own reason."""
    from kdamon.mm.linux.machine import linux_machine

    machine = linux_machine("page_fault")
    try:
        machine.get_task(workload["pid"], "page_fault").put()
        attributed = machine.attributes_faults
    except OSError as error:
        pytest.skip(f"kernel lacks: page_fault: {error.strerror}")
    finally:
        machine.close()
    if not attributed:
        pytest.skip("kernel lacks: a way to attribute page faults")


@pytest.mark.usefixtures("page_fault")
def test_damo_sees_writes_a_cpu_and_a_thread(kdamon_exec: Any, workload: dict[str, Any], tmp_path: Path) -> None:
    """From all accesses to writes, a CPU and a thread, changed while it is monitored."""
    parts = {part["name"]: part for part in workload["parts"]}
    apart = parts["A"]["cpu"] != parts["B"]["cpu"]
    faults = ["--target_pid", str(workload["pid"]), "--sample_primitives", "page_fault"]
    steps = [
        (["start", *faults, "--exp_ops_write_only", "Y"], "AB"),
        (["tune", *faults, "--exp_ops_cpus", str(parts["A"]["cpu"])], "A" if apart else "AB"),
        (["tune", *faults, "--exp_ops_tids", str(parts["B"]["tid"])], "B"),
        # With "--sample_primitives page_table" this damo would take its own N for a yes.
        (["tune", "--target_pid", str(workload["pid"])], "ABC"),
    ]
    script = Path(__file__).parent / "damo_parts.py"
    words = [sys.executable, str(script), str(DAMO), json.dumps(workload), json.dumps(steps)]
    done = kdamon_exec(tmp_path, *words)
    assert 0 == done.returncode, done.stdout + done.stderr
    answers = json.loads(done.stdout)
    assert [wanted for _, wanted in steps] == [answer[0] for answer in answers]
    assert all(elsewhere <= 10 * MEBI for _, elsewhere, *_ in answers), answers
    assert [["write"], ["cpumask"], ["threads"], []] == [answer[2] for answer in answers]
    assert ["NY", "NY", "NY", "YN"] == [answer[3] for answer in answers]
    accepted = [answer[4] for answer in answers]
    assert 0 < accepted[0] < accepted[1] < accepted[2] <= accepted[3]
    assert Path(f"/proc/{workload['pid']}").exists()
