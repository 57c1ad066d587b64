# SPDX-License-Identifier: GPL-2.0-only
"""A target that holds a kdamond up, by memory on a file system that never answers, holds up nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdamon import core
from kdamon import wait_limits as patience
from kdamon.lib.helpers import LostHelpers
from kdamon.mm.apart import madvise as madvise_apart
from kdamon.mm.linux.machine import linux_machine
from kdamon_fs.sysfs import SysfsTree, damon_sysfs_init
from tests.support.capabilities import needs_dev_fuse, needs_root
from tests.support.paths import PYTHONPATH, ROOT
from tests.support.waiting import eventually

NOBODY = 65534
NR_PROCESS_MADVISE = 440
KDAMONDS = "/admin/kdamonds"

pytestmark = [
    pytest.mark.real,
    needs_dev_fuse,
    needs_root("mounting in these tests needs root"),
]


@pytest.fixture(name="silent")
def _silent() -> Iterator[int]:
    """A process of another user with memory that is never read."""
    with tempfile.TemporaryDirectory(prefix="kdamon-test-", ignore_cleanup_errors=True) as directory:
        script = str(ROOT / "tests/support/silent_fuse.py")
        words = [sys.executable, script, directory, str(NOBODY)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert b"ready\n" == process.stdout.readline()
                yield process.pid
            finally:
                process.kill()


def wish(write: Callable[[str, str], object], number: int, pid: int, action: str) -> None:
    """Describe a kdamond that does ``action`` to all memory of a process."""
    kdamond = f"{KDAMONDS}/{number}"
    context = f"{kdamond}/contexts/0"
    for path, value in (
        (f"{kdamond}/contexts/nr_contexts", "1"),
        (f"{context}/targets/nr_targets", "1"),
        (f"{context}/targets/0/pid_target", str(pid)),
        (f"{context}/schemes/nr_schemes", "1"),
        (f"{context}/schemes/0/action", action),
        *(
            (f"{context}/schemes/0/access_pattern/{name}/max", str((1 << 64) - 1))
            for name in ("sz", "nr_accesses", "age")
        ),
    ):
        write(path, value)


def held_up(pid: int) -> bool:
    """Return whether a helper of process ``pid`` waits in process_madvise()."""
    for helper in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The names of other processes may be any bytes.
            parent = helper.joinpath("stat").read_bytes().rpartition(b")")[2].split()[1]
            if int(parent) == pid and (helper / "syscall").read_text().startswith(f"{NR_PROCESS_MADVISE} "):
                return True
    return False


@pytest.fixture(name="tree")
def _tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[SysfsTree]:
    """A tree of this machine whose kdamonds are waited for by a second; helpers, without an end."""
    monkeypatch.setattr(madvise_apart, "_PATIENCE", 1e6)
    monkeypatch.setattr(patience, "PATIENCE", 1.0)
    monkeypatch.setattr(core, "_END", 1.0)
    machine = linux_machine()
    tree = damon_sysfs_init(machine)
    yield tree
    tree.shutdown()
    machine.close()


def test_commands_do_not_wait_for_it(tree: SysfsTree, silent: int) -> None:
    """Each one gets EBUSY, the others' kdamonds can be used, and it ends when its target lets it."""

    def write(path: str, value: str) -> None:
        tree.write(path, value.encode())

    def refusal(command: str) -> int | None:
        with pytest.raises(OSError) as info:
            write(f"{KDAMONDS}/0/state", command)
        return info.value.errno

    write(f"{KDAMONDS}/nr_kdamonds", "2")
    wish(write, 0, silent, "willneed")
    write(f"{KDAMONDS}/0/state", "on")
    assert eventually(lambda: held_up(os.getpid()))

    for command in ("update_schemes_stats", "update_schemes_tried_bytes", "commit", "off"):
        assert (command, errno.EBUSY) == (command, refusal(command))
    assert b"on\n" == tree.read(f"{KDAMONDS}/0/state")
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            wish(write, 1, other.pid, "stat")
            write(f"{KDAMONDS}/1/state", "on")
            write(f"{KDAMONDS}/1/state", "commit")
            write(f"{KDAMONDS}/1/state", "off")
        finally:
            other.kill()
    os.kill(silent, signal.SIGKILL)
    # It was turned off.
    assert eventually(lambda: tree.read(f"{KDAMONDS}/0/state") == b"off\n")


def test_memory_that_does_not_answer_is_left_alone(
    tree: SysfsTree, silent: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kdamond loses the helper that asked for it, says so once, and goes on."""
    monkeypatch.setattr(madvise_apart, "_PATIENCE", 0.5)
    lost = LostHelpers()
    monkeypatch.setattr(madvise_apart, "_lost", lost)

    def write(path: str, value: str) -> None:
        tree.write(path, value.encode())

    write(f"{KDAMONDS}/nr_kdamonds", "1")
    wish(write, 0, silent, "willneed")
    write(f"{KDAMONDS}/0/state", "on")
    assert eventually(lambda: "it maps a file on a file system that does not answer" in caplog.text)
    tried = f"{KDAMONDS}/0/contexts/0/schemes/0/stats/nr_tried"

    def tried_more() -> bool:
        write(f"{KDAMONDS}/0/state", "update_schemes_stats")
        return int(tree.read(tried)) > before

    before = 0
    assert eventually(tried_more)
    before = int(tree.read(tried))
    assert eventually(tried_more)
    write(f"{KDAMONDS}/0/state", "off")
    assert 1 == len(lost)
    os.kill(silent, signal.SIGKILL)
    assert eventually(lambda: not lost)


def test_a_signal_ends_what_serves_the_tree(silent: int, tmp_path: Path) -> None:
    """SIGTERM unmounts the tree and ends ``kdamon mount``, be its kdamond where it may."""
    words = [sys.executable, "-m", "kdamon_tools", "mount", "--no-reports", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            assert "the tree is at" in server.stderr.readline()

            def write(path: str, value: str) -> None:
                Path(f"{tmp_path}{path}").write_text(value)

            write(f"{KDAMONDS}/nr_kdamonds", "1")
            wish(write, 0, silent, "willneed")
            write(f"{KDAMONDS}/0/state", "on")
            assert eventually(lambda: held_up(server.pid))
            server.terminate()
            said = server.stderr.read()
            server.wait(60)
        finally:
            server.kill()
    assert "willneed has no effect: it maps a file on a file system that does not answer" in said
    assert not os.path.ismount(tmp_path)
