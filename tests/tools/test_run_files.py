# SPDX-License-Identifier: GPL-2.0-only
"""Where files run out nothing can be looked at: that is an error, and no producer of reports can make it happen."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.cli import KDAMON
from tests.support.paths import ROOT, public_directory
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


#: A user's 64 rings, each about every number that a process may have.
ATTACK = """
import os, sys, time
from kdamon.producers.client import ReportClient
from kdamon.reports.record import report_array
user = int(sys.argv[2])
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
clients = []
try:
    for _ in range(64):
        clients.append(ReportClient(sys.argv[1], 1024))
except OSError:
    pass
print(len(clients), flush=True)
for turn in range(20):
    for client in clients:
        while client.pending:
            time.sleep(0.001)
        client.report(report_array(1000, pid=range(1000 * turn + 1, 1000 * turn + 1001)))
print("done", flush=True)
sys.stdin.read()
"""

#: A process whose memory is in use.
BUSY = """
import mmap
memory = mmap.mmap(-1, 1 << 22, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print("ready", flush=True)
while True:
    for at in range(0, 1 << 22, 4096):
        memory[at] = 1
"""


@pytest.fixture
def busy() -> Iterator[int]:
    """The process."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may look into."""
    with public_directory() as directory:
        yield directory


def limited(soft: int, hard: int) -> tuple[str, ...]:
    """What starts a program with that limit of open files."""
    return "prlimit", f"--nofile={soft}:{hard}"


@pytest.mark.parametrize("what", ["page_table", "page_fault"])
def test_monitoring_without_files_is_an_error(busy: int, tmp_path: Path, what: str) -> None:
    """Within a second or two, in one sentence, with a status; what was seen before that is shown."""
    run = [*KDAMON, "run", "--pid", str(busy), "--primitive", what, "--seconds", "600", "--update-us", "1s", "--json"]
    with (tmp_path / "log").open("w") as log, (tmp_path / "result").open("w") as result:
        process = subprocess.Popen(run, cwd=ROOT, stdout=result, stderr=log)
        try:
            eventually(lambda: b"regions" in (tmp_path / "log").read_bytes(), "a first snapshot")
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, 3))
            assert 1 == process.wait(timeout=120)
        finally:
            process.kill()
            process.wait()
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("kdamon: monitoring ended: ")
    assert last.endswith(": too many files are open; raise the limit with 'ulimit -n'")
    assert json.loads((tmp_path / "result").read_text())["snapshots"]


def test_producers_cannot_blind_the_monitor(busy: int, place: Path) -> None:
    """At the usual limit two users take all that they can get, and what the target accesses is seen to the end."""
    run = [*limited(1024, 1024), *KDAMON, "run", "--pid", str(busy), "--seconds", "6", "--reports"]
    run += [str(place / "reports"), "--json", "--quiet"]
    with ExitStack() as stack:
        process = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        stack.callback(process.wait)
        stack.callback(process.kill)
        eventually((place / "reports").exists, "the socket")
        for user in (65534, 65533):
            attack = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ATTACK, place / "reports", str(user)],
                    cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            assert attack.stdout is not None
            assert int(attack.stdout.readline()) > 0
            assert "done\n" == attack.stdout.readline()
        files = len(os.listdir(f"/proc/{process.pid}/fd"))
        result, said = process.communicate(timeout=120)
    assert (0, "") == (process.returncode, said)
    assert files < 400
    document = json.loads(result)
    assert max(region["nr_accesses"] for region in document["snapshots"][-1]["regions"]) > 0
    counters = document["counters"]
    assert counters["producers"]["ineligible"] + counters["producers"]["not_permitted"] > 100_000


def test_run_may_open_as_many_files_as_are_allowed_and_its_command_as_before(place: Path) -> None:
    """A program that uses select() must not get more than 1024 because kdamon needs them."""
    script = "ulimit -n; cat /proc/$PPID/limits | grep 'open files'; sleep 3; grep 'open files' /proc/$PPID/limits"
    done = subprocess.run(
        [*limited(1024, 4096), *KDAMON, "run", "--quiet", "--output", place / "result", "--", "sh", "-c", script],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    own, _, kdamons = done.stdout.splitlines()
    assert "1024" == own
    assert ["4096", "4096"] == kdamons.split()[3:5]


TREE = """
import logging, os, resource, sys, time
from kdamon.mm.linux.machine import linux_machine
from kdamon_fs.sysfs import damon_sysfs_init
logging.basicConfig(format="%(levelname)s %(message)s")
tree = damon_sysfs_init(linux_machine("page_table"))
context = "/admin/kdamonds/0/contexts/0"
for path, value in (
    ("/admin/kdamonds/nr_kdamonds", "1"), ("/admin/kdamonds/0/contexts/nr_contexts", "1"),
    (f"{context}/targets/nr_targets", "1"), (f"{context}/targets/0/pid_target", sys.argv[1]),
    ("/admin/kdamonds/0/state", "on"), ("/admin/kdamonds/0/state", "commit"),
):
    tree.write(path, value.encode())
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
deadline = time.monotonic() + 60
while tree.read("/admin/kdamonds/0/state") == b"on\\n" and time.monotonic() < deadline:
    time.sleep(0.01)
print(tree.read("/admin/kdamonds/0/state").decode().strip())
try:
    tree.write("/admin/kdamonds/0/state", b"on")
except OSError as error:
    print(error.errno)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
tree.write("/admin/kdamonds/0/state", b"on")
print(tree.read("/admin/kdamonds/0/state").decode().strip())
tree.shutdown()
"""


def test_a_kdamond_of_the_tree_without_files_ends(busy: int) -> None:
    """Its state is off, the log says why in one line, and turning it on again answers EMFILE until there are some."""
    done = subprocess.run(
        [sys.executable, "-c", TREE, str(busy)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert ["off", "24", "on"] == done.stdout.split(), done.stderr
    lacking = f"process {busy} cannot be read: too many files are open; raise the limit with 'ulimit -n'"
    lines = done.stderr.splitlines()
    assert [f"WARNING {lacking}", f"ERROR kdamond.0 ended: {lacking}"] == lines[:2]
    assert "Traceback" not in done.stderr
