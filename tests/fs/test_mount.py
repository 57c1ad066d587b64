# SPDX-License-Identifier: GPL-2.0-only
"""The tree mounted, used by a shell and by system calls, and what becomes of the mount in the end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdamon.lib.mountinfo import MountEntry, mounts
from kdamon_fs.mount import MountedTree, _operations
from kdamon_fs.mounts import MNT_DETACH, umount
from tests.support.capabilities import needs_dev_fuse, needs_path, needs_root, needs_user_namespace
from tests.support.paths import SUPPORT

HERE = Path(__file__).parent


pytestmark = [
    pytest.mark.real,
    pytest.mark.usefixtures("fuse_binding"),
    needs_dev_fuse,
    needs_root("mounting in these tests needs root"),
]


def mount_at(path: str) -> MountEntry | None:
    """The topmost mount on exactly ``path``, None if nothing is mounted there."""
    return next((entry for entry in reversed(mounts()) if entry.target == path), None)


class Server:
    """A process that serves a tree on ``mountpoint``."""

    def __init__(self, mountpoint: Path, abi: str = "7.3") -> None:
        self.mountpoint = mountpoint
        self.process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "serve_tree.py"), str(mountpoint), abi],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def ready(self) -> bool:
        """Wait until it serves, or ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline() == "ready\n"

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Send a signal and return exit status, and what it said."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        """Wait for its end; exit status and what it said."""
        said, complained = self.process.communicate(timeout=90)
        return self.process.returncode, said, complained


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """A starter of servers on directories of this test; none of them and no mount survives it."""
    servers: list[Server] = []

    def start(name: str = "damon", **options: str) -> Server:
        mountpoint = tmp_path / name
        if not os.path.lexists(mountpoint) and mount_at(str(mountpoint)) is None:
            mountpoint.mkdir()
        servers.append(Server(mountpoint, **options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        while mount_at(str(server.mountpoint)) is not None:
            # The watcher of a killed server does the same.
            with contextlib.suppress(OSError):
                umount(str(server.mountpoint), MNT_DETACH)


@pytest.fixture
def top(serve: Callable[..., Server]) -> Path:
    """A mounted tree's kdamonds directory, with one kdamond and one context."""
    server = serve()
    assert server.ready()
    kdamonds = server.mountpoint / "admin/kdamonds"
    sh(kdamonds, "echo 1 > nr_kdamonds; echo 1 > 0/contexts/nr_contexts")
    return kdamonds


def sh(directory: Path, script: str) -> str:
    """What a shell says to ``script``."""
    done = subprocess.run(
        ["bash", "-c", script], cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


MONITOR = """
cd 0/contexts/0
echo 1 > targets/nr_targets
echo 150 > targets/0/pid_target
echo 1 > schemes/nr_schemes
for i in sz nr_accesses age; do echo 9223372036854775807 > schemes/0/access_pattern/$i/max; done
echo on > ../../state
cat ../../state
"""


def test_a_shell_session(top: Path) -> None:
    """echo and cat, as the kernel's documentation of the tree shows them."""
    assert "on\n" == sh(top, MONITOR)
    pid = sh(top, "cat 0/pid")
    assert "kdamond.0\n" == sh(top, f"cat /proc/*/task/{pid.strip()}/comm 2>&1 | sort -u")
    assert "1048576\n" == sh(
        top, "echo update_schemes_tried_regions > 0/state; cat 0/contexts/0/schemes/0/tried_regions/0/start"
    )
    assert "Device or resource busy" in sh(top, "echo on > 0/state")
    assert "Device or resource busy" in sh(top, "echo 0 > nr_kdamonds")
    assert "off\n-1\n" == sh(top, "echo off > 0/state; cat 0/state 0/pid")
    assert "Invalid argument" in sh(top, "echo -1 > nr_kdamonds")
    assert "Numerical result out of range" in sh(top, "echo 99999999999 > nr_kdamonds")
    assert "Permission denied" in sh(top, "echo 1 > 0/pid")
    assert "Permission denied" in sh(top, "touch new")
    assert "Operation not permitted" in sh(top, "mkdir new; rm -r 0")
    assert "32\n33\n" == sh(top, "echo 0x20 > nr_kdamonds; cat nr_kdamonds; ls | wc -l")


def test_new_directories_take_the_place_of_removed_ones_at_once(top: Path) -> None:
    """No name and no content of before is seen after a nr_* file was written."""
    script = "echo {} > 0/contexts/0/schemes/nr_schemes; ls 0/contexts/0/schemes; cat 0/contexts/0/schemes/1/action"
    assert "0\n1\nnr_schemes\nstat\n" == sh(top, script.format(2))
    assert "cold\n" == sh(top, "echo cold > 0/contexts/0/schemes/1/action; cat 0/contexts/0/schemes/1/action")
    assert "0\n1\nnr_schemes\nstat\n" == sh(top, script.format(2))
    assert sh(top, script.format(1)).startswith("0\nnr_schemes\ncat: ")
    assert not (top / "0/contexts/0/schemes/1").exists()


def test_other_files_answer_while_a_command_waits(top: Path) -> None:
    """The command holds the lock: state and pid are busy, everything else goes on."""
    sh(top, "echo 3000000 > 0/contexts/0/monitoring_attrs/intervals/aggr_us")
    sh(top, MONITOR)
    waiting = threading.Thread(target=sh, args=(top, "echo update_schemes_tried_regions > 0/state"))
    waiting.start()
    until(lambda: "Device or resource busy" in sh(top, "cat 0/state"), "the walk")
    assert "vaddr\n" == sh(top, "cat 0/contexts/0/operations")
    assert "Device or resource busy" in sh(top, "cat 0/pid")
    assert "Device or resource busy" in sh(top, "echo 2 > 0/contexts/0/schemes/nr_schemes")
    waiting.join()
    assert "on\n" == sh(top, "cat 0/state")


# How it ends.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_and_stops_everything(serve: Callable[..., Server], number: signal.Signals) -> None:
    """Also while a kdamond runs and a command waits for it."""
    server = serve()
    assert server.ready()
    kdamonds = server.mountpoint / "admin/kdamonds"
    sh(kdamonds, "echo 1 > nr_kdamonds; echo 1 > 0/contexts/nr_contexts")
    sh(kdamonds, "echo 60000000 > 0/contexts/0/monitoring_attrs/intervals/aggr_us")
    assert "on\n" == sh(kdamonds, MONITOR)
    waiting = threading.Thread(target=sh, args=(kdamonds, "echo update_schemes_tried_regions > 0/state"))
    waiting.start()
    until(lambda: "Device or resource busy" in sh(kdamonds, "cat 0/state"), "the walk")
    status, said, _ = server.end(number)
    waiting.join(60)
    assert not waiting.is_alive()
    assert (0, "ended\n") == (status, said)
    assert mount_at(str(server.mountpoint)) is None
    assert [] == os.listdir(server.mountpoint)


def test_unmounting_ends_the_server(serve: Callable[..., Server]) -> None:
    """umount(8) is a proper way to end it."""
    server = serve()
    assert server.ready()
    umount(str(server.mountpoint))
    status, said, _ = server.wait()
    assert (0, "ended\n") == (status, said)


def test_a_pause_does_not_end_the_server(serve: Callable[..., Server]) -> None:
    """As with Ctrl-Z and fg in a shell, also when it is longer than the server ever waits."""
    server = serve()
    assert server.ready()
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(0.7)
    server.process.send_signal(signal.SIGCONT)
    time.sleep(0.7)
    assert server.process.poll() is None
    assert "0\n" == (server.mountpoint / "admin/kdamonds/nr_kdamonds").read_text()
    assert 0 == server.end(signal.SIGTERM)[0]


def test_several_signals_are_as_good_as_one(serve: Callable[..., Server]) -> None:
    """None of them is left to kill the server once it cleaned up."""
    server = serve()
    assert server.ready()
    for number in (signal.SIGINT, signal.SIGHUP):
        server.process.send_signal(number)
    status, said, _ = server.end(signal.SIGTERM)
    assert (0, "ended\n") == (status, said)
    assert mount_at(str(server.mountpoint)) is None


def test_a_file_that_is_kept_open_keeps_nothing_mounted(serve: Callable[..., Server]) -> None:
    """The mount goes; processes with an open file get errors."""
    server = serve()
    assert server.ready()
    file = os.open(server.mountpoint / "admin/kdamonds/nr_kdamonds", os.O_RDONLY)
    try:
        status, _, _ = server.end(signal.SIGTERM)
        assert 0 == status
        assert mount_at(str(server.mountpoint)) is None
        with pytest.raises(OSError, match=r"Transport endpoint is not connected|connection abort"):
            os.read(file, 10)
    finally:
        with contextlib.suppress(OSError):
            os.close(file)


def watchers(server: Server) -> list[int]:
    """The processes that clean up when the server is killed."""
    return [
        int(pid) for pid in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    ]


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that is sure to come."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)


def monitors(serve: Callable[..., Server], **options: str) -> tuple[Server, int]:
    """A server that monitors something, and the process that cleans up after it."""
    server = serve(**options)
    assert server.ready()
    sh(server.mountpoint / "admin/kdamonds", "echo 1 > nr_kdamonds; echo 1 > 0/contexts/nr_contexts")
    assert "on\n" == sh(server.mountpoint / "admin/kdamonds", MONITOR)
    (watcher,) = watchers(server)
    return server, watcher


@pytest.mark.parametrize("in_use", [False, True])
def test_a_killed_server_leaves_nothing(serve: Callable[..., Server], in_use: bool) -> None:
    """Neither a mount nor a process, also where it is a working directory; signals to all do not change that."""
    server, watcher = monitors(serve)
    with contextlib.ExitStack() as stack:
        if in_use:
            stack.callback(os.close, os.open(server.mountpoint / "admin/kdamonds/nr_kdamonds", os.O_RDONLY))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(watcher, number)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.wait()
        until(lambda: not os.path.exists(f"/proc/{watcher}"), "the watcher's end")
        assert mount_at(str(server.mountpoint)) is None
        assert [] == os.listdir(server.mountpoint)


def test_the_mount_of_a_later_server_is_left_alone(serve: Callable[..., Server]) -> None:
    """It came before the killed one's could be cleaned up."""
    server, watcher = monitors(serve)
    os.kill(watcher, signal.SIGSTOP)
    server.end(signal.SIGKILL)
    later = serve()
    assert later.ready()
    os.kill(watcher, signal.SIGCONT)
    until(lambda: not os.path.exists(f"/proc/{watcher}"), "the watcher's end")
    assert "0\n" == (later.mountpoint / "admin/kdamonds/nr_kdamonds").read_text()
    assert 0 == later.end(signal.SIGTERM)[0]
    assert mount_at(str(later.mountpoint)) is None


def test_the_mount_of_a_killed_server_is_taken_over(serve: Callable[..., Server]) -> None:
    """If no process was left to clean up, its directory is dead until the next server starts there."""
    for _ in range(2):
        killed, watcher = monitors(serve)
        os.kill(watcher, signal.SIGKILL)
        killed.end(signal.SIGKILL)
        with pytest.raises(OSError, match="Transport endpoint is not connected"):
            os.listdir(killed.mountpoint)
    server = serve()
    assert server.ready()
    assert "0\n" == (server.mountpoint / "admin/kdamonds/nr_kdamonds").read_text()
    status, _, complained = server.end(signal.SIGTERM)
    assert 0 == status
    assert "taking over the mount of a kdamon that was killed" in complained
    assert mount_at(str(server.mountpoint)) is None


# Where it does not mount.


def test_a_directory_in_use_is_refused(serve: Callable[..., Server]) -> None:
    """A second server on the same directory would hide the first."""
    first = serve()
    assert first.ready()
    second = serve()
    assert not second.ready()
    status, _, complained = second.wait()
    assert 1 == status
    assert "another kdamon serves" in complained
    assert (first.mountpoint / "admin").is_dir()


def test_what_is_no_directory_is_refused(session: Any, tmp_path: Path) -> None:
    """With a sentence that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot mount on .*/file: it is not a directory"):
        MountedTree(session.tree, tmp_path / "file").start()
    with pytest.raises(OSError, match=r"cannot mount on .*/absent: No such file or directory"):
        MountedTree(session.tree, tmp_path / "absent").start()


def test_a_name_that_is_empty_is_not_the_working_directory(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from a variable of a script that was not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="no directory was given"):
        MountedTree(session.tree, "")


def test_a_part_of_another_kdamons_tree_is_refused(serve: Callable[..., Server], session: Any) -> None:
    """It would hide files that are in use."""
    first = serve()
    assert first.ready()
    with pytest.raises(OSError, match="another kdamon serves"):
        MountedTree(session.tree, first.mountpoint / "admin").start()


@pytest.mark.parametrize(
    ("user", "remedy"),
    [(0, r"which root lacks here; .*--cap-add$"), (1000, r"or install fusermount3?, which mounts for users \(")],
)
def test_mounting_without_the_right_to_names_what_is_missing(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, remedy: str
) -> None:
    """libfuse would ask fusermount, which is not there for users, and could do nothing for root."""
    monkeypatch.setattr("kdamon_fs.mount_checks.missing_capability", lambda *names: list(names))
    monkeypatch.setattr("kdamon.lib.rights.missing_capability", lambda *names: list(names))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match=f"mounting needs CAP_SYS_ADMIN.*{remedy}"):
        MountedTree(session.tree, tmp_path).start()


@needs_path("/sys/kernel/irq", "/sys/kernel/irq")
def test_the_machines_own_sysfs_is_refused(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a namespace of its own; the sentence says how a command can see the tree there."""
    directory = "/sys/kernel/irq"  # as much the kernel's as /sys/kernel/mm/damon, and no program needs it
    monkeypatch.setattr("kdamon_fs.mount.private_mount_namespace", lambda: False)
    with pytest.raises(OSError, match="belongs to the kernel: 'kdamon exec -- COMMAND'"):
        MountedTree(session.tree, directory).start()


def test_a_private_namespace_is_told_from_the_machines() -> None:
    """Also where the first process's namespace may not be looked at."""
    question = "from kdamon_fs.mounts import private_mount_namespace; print(private_mount_namespace())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["unshare", "--mount", sys.executable, "-P", "-c", question]
    assert "True\n" == subprocess.check_output(command, env=environment, text=True)


def test_names_may_be_any_bytes(serve: Callable[..., Server]) -> None:
    """Of the mount point and of names in it."""
    server = serve("Дерево\N{DECIDUOUS TREE}")
    assert server.ready()
    assert "0\n" == (server.mountpoint / "admin/kdamonds/nr_kdamonds").read_text()
    with pytest.raises(FileNotFoundError):
        os.stat(os.fsencode(server.mountpoint) + b"/admin/\xff\xfe")


def test_every_answer_to_a_list_of_cpus_passes(serve: Callable[..., Server]) -> None:
    """A number of more than 32 bits has an errno that no other file answers."""
    server = serve(abi="next")
    assert server.ready()
    sh(server.mountpoint / "admin/kdamonds", "echo 1 > nr_kdamonds; echo 1 > 0/contexts/nr_contexts")
    filters = server.mountpoint / "admin/kdamonds/0/contexts/0/monitoring_attrs/sample/filters"
    (filters / "nr_filters").write_text("1")
    for written, answer in (("4294967296", errno.EOVERFLOW), ("99999", errno.ERANGE), ("x", errno.EINVAL)):
        with pytest.raises(OSError) as error:
            (filters / "0/cpumask").write_text(written)
        assert answer == error.value.errno


def test_a_program_that_forgets_its_mount_leaves_none(tmp_path: Path) -> None:
    """What is mounted in the background is unmounted at exit."""
    program = """
import sys
from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.mount import MountedTree
from kdamon_fs.sysfs import damon_sysfs_init
MountedTree(damon_sysfs_init(SimMachine()), sys.argv[1]).start()
print(open(sys.argv[1] + "/admin/kdamonds/nr_kdamonds").read())
sys.exit(3)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (3, "0\n\n") == (done.returncode, done.stdout)
    assert mount_at(str(tmp_path)) is None


# Errors that are bugs.


@pytest.mark.traceback_expected
@pytest.mark.parametrize("bug", [KeyError("x"), SystemExit(3), OSError("no errno"), OSError(5000, "odd errno")])
def test_a_bug_is_an_io_error_and_a_traceback_in_the_log(
    session: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bug: BaseException
) -> None:
    """Nothing else escapes to FUSE, where it would become EINVAL or the end of the mount."""

    def fail(_path: str) -> None:
        raise bug

    operations = _operations(session.tree)
    monkeypatch.setattr(session.tree, "getattr", fail)
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="internal error") as error:
        operations.getattr("/admin")
    assert 5 == error.value.errno
    assert re.search(r"getattr of /admin failed", caplog.text)
    assert "Traceback" in caplog.text


#: Serves a tree, lets operations fail by the exception that is its second argument, and prints what their callers get.
FAILING = """
import errno, logging, os, sys
from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.kobject import OpenFile
from kdamon_fs.mount import MountedTree
from kdamon_fs.sysfs import damon_sysfs_init
logging.disable()
tree, top, bug = damon_sysfs_init(SimMachine()), sys.argv[1], eval(sys.argv[2])
file = top + "/admin/kdamonds/nr_kdamonds"
def fail(*arguments, **named):
    raise bug
def read():
    with open(file, "rb", buffering=0) as opened:
        return opened.read(10)
def write():
    with open(file, "wb", buffering=0) as opened:
        opened.write(b"1")
with MountedTree(tree, top) as mounted:
    for owner, name, use in (
        (tree, "getattr", lambda: os.stat(file)),
        (tree, "readdir", lambda: os.listdir(top + "/admin")),
        (tree, "open", read),
        (tree, "setattr", lambda: os.chmod(file, 0o600)),
        (tree, "setattr", lambda: os.utime(file)),
        (tree, "lookup", lambda: os.truncate(file, 0)),
        (OpenFile, "read", read),
        (OpenFile, "write", write),
    ):
        before = getattr(owner, name)
        setattr(owner, name, fail)
        try:
            use()
            print(name, "works")
        except OSError as error:
            print(name, errno.errorcode[error.errno])
        setattr(owner, name, before)
        assert read() == b"0\\n"
"""


@pytest.mark.parametrize("bug", ["SystemExit(3)", "OSError(5000, 'odd errno')", "GeneratorExit()"])
def test_a_bug_in_any_operation_is_an_io_error_for_its_caller(tmp_path: Path, bug: str) -> None:
    """With either binding; the tree is served on."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-c", FAILING, str(tmp_path), bug]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    names = ("getattr", "readdir", "open", "setattr", "setattr", "lookup", "read", "write")
    assert [f"{name} EIO" for name in names] == done.stdout.splitlines(), done.stderr
    assert 0 == done.returncode, done.stderr
    assert mount_at(str(tmp_path)) is None


@needs_user_namespace
def test_a_user_namespace_without_its_own_mount_namespace_says_so() -> None:
    """All capabilities there are of no use: libfuse would fail to find fusermount."""
    script = "from kdamon_fs.mount_checks import check_may_mount; check_may_mount()"
    for options, refused in (("-Ur", True), ("-Urm", False)):
        words = ["unshare", options, sys.executable, "-c", script]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert refused == ("mounting needs a mount namespace of this user namespace" in done.stderr)
        assert refused == bool(done.returncode), done.stderr
