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
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdamon import core, patience
from kdamon.mm.linux import linux_machine
from kdamon_fs.sysfs import damon_sysfs_init, damon_sysfs_tree

ROOT = Path(__file__).parents[2]
NOBODY = 65534
NR_PROCESS_MADVISE = 440
KDAMONDS = "/admin/kdamonds"

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="kernel lacks: /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting in these tests needs root"),
]


def eventually(what: Callable[[], object], seconds: float = 60) -> bool:
    """Wait until ``what()`` is true; tell whether it became so."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(name="silent")
def _silent() -> Iterator[int]:
    """A process of another user with memory that is never read."""
    with tempfile.TemporaryDirectory(prefix="kdamon-test-", ignore_cleanup_errors=True) as directory:
        script = str(ROOT / "tests/mm/silent_fuse.py")
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


def held_up(pid: int, tids: Callable[[], list[str]]) -> bool:
    """Return whether a thread of process ``pid`` waits in process_madvise()."""
    with contextlib.suppress(OSError):
        return any(
            Path(f"/proc/{pid}/task/{tid}/syscall").read_text().startswith(f"{NR_PROCESS_MADVISE} ") for tid in tids()
        )
    return False


@pytest.fixture(name="tree")
def _tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[damon_sysfs_tree]:
    """A tree of this machine whose kdamonds are waited for by a second."""
    monkeypatch.setattr(patience, "PATIENCE", 1.0)
    monkeypatch.setattr(core, "_END", 1.0)
    machine = linux_machine()
    tree = damon_sysfs_init(machine)
    yield tree
    tree.shutdown()
    machine.close()


def test_commands_do_not_wait_for_it(tree: damon_sysfs_tree, silent: int) -> None:
    """Each one is told EBUSY, the others' kdamonds can be used, and it ends when its target lets it."""

    def write(path: str, value: str) -> None:
        tree.write(path, value.encode())

    def refusal(command: str) -> int | None:
        with pytest.raises(OSError) as info:
            write(f"{KDAMONDS}/0/state", command)
        return info.value.errno

    write(f"{KDAMONDS}/nr_kdamonds", "2")
    wish(write, 0, silent, "willneed")
    write(f"{KDAMONDS}/0/state", "on")
    assert eventually(lambda: held_up(os.getpid(), lambda: [tree.read(f"{KDAMONDS}/0/pid").decode().strip()]))

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
