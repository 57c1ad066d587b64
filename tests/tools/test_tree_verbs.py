# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon mount`` and ``kdamon exec`` as commands: what is tested of the tree itself is elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.capabilities import needs_damo
from tests.support.cli import ENVIRONMENT, KDAMON, run

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("fuse")]


def test_exec_passes_on_the_exit_status() -> None:
    """The command finds the tree at the kernel's place, and its status is kdamon's."""
    result = run("exec", "--", "sh", "-c", "cat /sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds; exit 3")
    assert (3, "0\n", "") == (result.returncode, result.stdout, result.stderr)


def test_exec_hides_what_is_newer() -> None:
    """--abi chooses the kernel version whose files there are."""
    script = "cd /sys/kernel/mm/damon/admin/kdamonds && echo 1 > nr_kdamonds && ls 0"
    old, new = (run("exec", "--abi", version, "--", "sh", "-c", script) for version in ("6.12", "7.3"))
    assert (0, 0) == (old.returncode, new.returncode)
    assert "refresh_ms" not in old.stdout.split()
    assert "refresh_ms" in new.stdout.split()


def test_a_command_that_is_not_there() -> None:
    """The status is a shell's; one sentence says which command."""
    result = run("exec", "--", "no-such-command")
    assert (127, 1) == (result.returncode, result.stderr.count("\n"))
    assert "no-such-command" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_mount_serves_until_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    """In the foreground; afterwards nothing is mounted any more."""
    with subprocess.Popen(
        [*KDAMON, "mount", str(tmp_path)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as mount:
        assert mount.stderr is not None
        ready = mount.stderr.readline()
        names = os.listdir(tmp_path / "admin")
        mount.send_signal(number)
        assert 0 == mount.wait(30)
    assert f"kdamon: the tree is at {tmp_path}/admin; Ctrl-C ends\n" == ready
    assert ["kdamonds"] == names
    assert not os.path.ismount(tmp_path)
    assert [] == os.listdir(tmp_path)


def test_mount_names_the_tree_as_it_is(tmp_path: Path) -> None:
    """Also where the name of the directory ends with a slash."""
    words = [*KDAMON, "mount", "--no-reports", f"{tmp_path}/"]
    with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as mount:
        assert mount.stderr is not None
        ready = mount.stderr.readline()
        mount.send_signal(signal.SIGINT)
        assert 0 == mount.wait(30)
    assert f"kdamon: the tree is at {tmp_path}/admin; Ctrl-C ends\n" == ready


@needs_damo
def test_exec_finds_programs_beside_kdamon() -> None:
    """damo is installed where this Python is, which need not be on PATH; it is found by a shell as well."""
    environment = ENVIRONMENT | {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    for command in (["damo", "version"], ["sh", "-c", "damo version"]):
        words = [*KDAMON, "exec", "--no-reports", "--", *command]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert (0, "") == (done.returncode, done.stderr)
        assert done.stdout.strip()


def test_mount_on_what_is_no_directory(tmp_path: Path) -> None:
    """One sentence, status 1."""
    result = run("mount", str(tmp_path / "nothing"))
    assert (1, 1) == (result.returncode, result.stderr.count("\n"))
    assert result.stderr.startswith("kdamon: cannot mount on ")
