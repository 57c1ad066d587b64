# SPDX-License-Identifier: GPL-2.0-only
"""Control groups may be delegated to users, who make any number of them; names of groups may be anything."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdamon.mm.linux.machine import linux_machine
from kdamon.mm.proc import cgroup
from tests.support.capabilities import needs_cgroup2, needs_root
from tests.support.tables import effort

pytestmark = pytest.mark.real


USER = 65534

#: Makes groups one in the other, goes to the innermost and waits there; says so.
DEEP = """
import os, sys, time
for name in range(int(sys.argv[1])):
    os.mkdir("d")
    os.chdir("d")
with open("cgroup.procs", "w") as file:
    file.write("0")
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def delegated(group: tuple[str, Path]) -> tuple[str, Path]:
    """A control group that belongs to another user: its path as the kernel writes it, and its directory."""
    _, directory = group
    for path in (directory, directory / "cgroup.procs", directory / "cgroup.subtree_control"):
        os.chown(path, USER, USER)
    return group


@needs_cgroup2
@needs_root("making a control group needs root")
def test_groups_deep_in_each_other_are_all_looked_at(delegated: tuple[str, Path]) -> None:
    """1500 of them, more than calls that Python allows in each other, made by their user."""
    path, directory = delegated
    # The user may move a process only out of a group that is the user's.
    join = f'echo 0 > "{directory}/cgroup.procs"; cd "{directory}"; exec setpriv --reuid {USER} --clear-groups "$@"'
    command = ["sh", "-c", join, "sh", sys.executable, "-c", DEEP, "1500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as deep:
        try:
            assert deep.stdout is not None
            assert b"\n" == deep.stdout.readline()
            machine = linux_machine("page_fault")
            assert (deep.pid,) == machine.cgroup_processes(path)
            machine.close()
        finally:
            deep.kill()


@needs_cgroup2
@needs_root("making a control group needs root")
def test_groups_without_number_are_left_out(
    delegated: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """But for as many as can be looked at in time; it is said once."""
    path, directory = delegated
    monkeypatch.setattr(cgroup, "_MOST_GROUPS", 5)
    subprocess.run(
        ["setpriv", f"--reuid={USER}", "--clear-groups", "mkdir", *map(str, range(8))], cwd=directory, check=True
    )
    with subprocess.Popen(["sleep", "600"]) as above:
        try:
            (directory / "cgroup.procs").write_text(str(above.pid))
            for _ in range(2):
                assert (above.pid,) == cgroup.processes(path)
        finally:
            above.kill()
    assert [f"more than 5 control groups are below {path!r}: some of them are left out"] == caplog.messages


pieces = st.one_of(
    st.sampled_from(["", ".", "..", "cgroup.procs", "cgroup.kill", "a\0b", "\n", "x" * 256, "\udcff", "*", "~", "%s"]),
    st.text(max_size=5),
)


@given(path=st.lists(pieces, max_size=6).map("/".join), begin=st.sampled_from(["", "/", "//", "../", "/../"]))
@example(path="/".join(3000 * ["x"]), begin="/")
@example(path="/".join(3000 * [".."]), begin="/")
@example(path="sys/fs/cgroup", begin="/")
@example(path="proc/self/root", begin="/")
@example(path="x" * 5000, begin="/")
@effort(200)
def test_no_name_leads_out_of_the_groups(path: str, begin: str) -> None:
    """It is that of a group, or there is none: ENOENT."""
    lookups: list[tuple[Callable[[str], Path], Callable[[], tuple[Path, str]]]] = [
        (cgroup._directory, cgroup._root),
        (cgroup.memory_group, cgroup.memory_root),
    ]
    for look_up, root in lookups:
        try:
            mounted = os.path.realpath(root()[0])
            found = look_up(begin + path)
        except OSError as error:
            assert errno.ENOENT == error.errno
            continue
        assert os.path.realpath(found) == mounted or os.path.realpath(found).startswith(f"{mounted}/")
        assert (found / "cgroup.procs").exists()
