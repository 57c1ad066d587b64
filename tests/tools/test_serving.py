# SPDX-License-Identifier: GPL-2.0-only
"""While a tree is served, so is the socket for reports; then it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdamon.producers.client import ReportClient
from kdamon.producers.server import ReportServer
from kdamon.reports.record import report_array
from tests.support.capabilities import needs_root
from tests.support.cli import ENVIRONMENT, KDAMON, run

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("fuse")]

REPORT = """
from kdamon.producers.client import ReportClient
from kdamon.reports.record import report_array
with ReportClient() as client:
    print(client.report(report_array(3, pid=client.pid)), client.connected())
"""


@contextmanager
def mounted(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """``kdamon mount`` with ``options``, ready."""
    command = [*KDAMON, "mount", *options, str(directory)]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as mount:
        assert mount.stderr is not None
        line = mount.stderr.readline()
        while line and "the tree is at" not in line:
            line = mount.stderr.readline()
        assert line
        try:
            yield mount
        finally:
            mount.send_signal(signal.SIGTERM)
            assert 0 == mount.wait(30)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Where to mount, and where to serve reports."""
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree", tmp_path / "reports"


def test_mount_takes_reports_until_it_ends(places: tuple[Path, Path]) -> None:
    directory, socket = places
    with mounted(directory, "--reports", str(socket)):
        client = ReportClient(socket)
        assert 3 == client.report(report_array(3, pid=client.pid))
        assert client.connected()
    assert not client.connected()
    client.close()
    assert ["tree"] == os.listdir(socket.parent)


def test_mount_without_reports(places: tuple[Path, Path]) -> None:
    directory, socket = places
    with mounted(directory, "--reports", str(socket), "--no-reports"):
        assert not socket.exists()


def test_a_socket_that_was_asked_for_and_cannot_be_is_an_error(places: tuple[Path, Path]) -> None:
    """Another kdamon is there: one sentence, and nothing stays mounted."""
    directory, socket = places
    with ReportServer(socket):
        result = run("mount", "--reports", str(socket), str(directory))
        assert (1, 1) == (result.returncode, result.stderr.count("\n"))
        assert "another kdamon serves reports" in result.stderr
        result = run("exec", "--reports", str(socket), "--", "true")
        assert (1, 1) == (result.returncode, result.stderr.count("\n"))
        assert "another kdamon serves reports" in result.stderr
    assert not os.path.ismount(directory)


def test_the_usual_place_may_be_taken(places: tuple[Path, Path]) -> None:
    """Two kdamons are no trouble: the second one serves its tree."""
    with mounted(places[0], "--debug"):
        result = run("exec", "--", "cat", "/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds")
        assert (0, "0\n", "") == (result.returncode, result.stdout, result.stderr)


def test_a_command_in_exec_finds_the_socket(places: tuple[Path, Path]) -> None:
    """By KDAMON_REPORTS; it is gone afterwards."""
    _, socket = places
    result = run("exec", "--reports", str(socket), "--", KDAMON[0], "-c", REPORT)
    assert (0, "3 True\n", "") == (result.returncode, result.stdout, result.stderr)
    assert ["tree"] == os.listdir(socket.parent)


KILLED = """
mount -t tmpfs none /run && mkdir /run/tree || exit 99
others=$(grep fuse.kdamon /proc/mounts)
awaited=$1
shift
"$@" > /dev/null 2>&1 &
until [ -S /run/kdamon/reports ]; do sleep 0.02; done
until [ -z "$awaited" ] || cat /proc/[0-9]*/comm | grep -qx "$awaited"; do sleep 0.02; done
kill -9 $!
wait
while cat /proc/[0-9]*/comm | grep -qxE 'python.*|damo|kdamon'; do sleep 0.05; done
ls -R /run
for process in /proc/[0-9]*; do read -r name < $process/comm && echo $name; done
grep fuse.kdamon /proc/mounts | grep -vxF "${others:-none}"
"""


@pytest.mark.parametrize(
    ("words", "awaited", "left"),
    [
        (("mount", "/run/tree"), "", []),
        (("exec", "--", "sleep", "1000"), "", []),
        (("exec", "--", "sleep", "1000"), "sleep", []),
        (("run", "--reports", "--", "sleep", "1000"), "sleep", ["sleep"]),
        (("run", "--ops", "reports", "--range", "0-1000000", "--pid", "1", "--reports"), "", []),
    ],
    ids=["mount", "exec", "exec-started", "run-started", "run"],
)
@needs_root("namespaces need root")
def test_killed_it_leaves_nothing(words: tuple[str, ...], awaited: str, left: list[str]) -> None:
    """Neither mount nor socket, directory or process, but for a command that ``run`` started."""
    inside = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", KILLED, "bash", awaited]
    inside += [*KDAMON, *words]
    done = subprocess.run(inside, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False)
    assert ["/run:", "tree", "", "/run/tree:", "bash", *left] == done.stdout.splitlines(), done.stderr
