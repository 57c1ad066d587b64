# SPDX-License-Identifier: GPL-2.0-only
"""Which processes a control group of the second version has."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from kdamon.mm.linux.machine import linux_machine
from kdamon.mm.proc import cgroup
from tests.support.capabilities import needs_cgroup2, needs_root

pytestmark = [pytest.mark.real, needs_cgroup2, needs_root("making a control group needs root")]


def test_processes_of_a_group_and_of_those_below(group: tuple[str, Path]) -> None:
    """Those that end are gone; this process is never among them."""
    path, directory = group
    below = directory / "below"
    below.mkdir()
    machine = linux_machine("page_fault")
    assert () == machine.cgroup_processes(path)
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as other:
        try:
            (directory / "cgroup.procs").write_text(str(one.pid))
            (below / "cgroup.procs").write_text(str(other.pid))
            assert machine.cgroup_processes(path) == tuple(sorted([one.pid, other.pid]))
            assert machine.cgroup_processes(f"{path}/below") == (other.pid,)
            assert os.getpid() not in machine.cgroup_processes(path.rpartition("/")[0] or "/")
        finally:
            one.kill()
            other.kill()
        one.wait()
        other.wait()
    assert () == machine.cgroup_processes(path)
    machine.close()


@pytest.mark.parametrize("path", ["", "nowhere", "/nowhere-at-all", "/../..", "/./../cgroup"])
def test_what_is_no_group(group: tuple[str, Path], path: str) -> None:
    """Also what leads out of the tree of groups."""
    with pytest.raises(OSError, match="control group") as raised:
        cgroup.processes(path)
    assert errno.ENOENT == raised.value.errno
