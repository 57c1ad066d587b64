# SPDX-License-Identifier: GPL-2.0-only
"""Names of directories to mount on that lead through what other users move, other processes' roots, and automounts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdamon.lib.replaceable import open_directory
from tests.support.capabilities import needs_path, needs_root

NOBODY = 65534

pytestmark = [pytest.mark.real, needs_root("other users' processes need root")]


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory of root's that every user reaches, with ``home`` of a user, and ``shared`` as /tmp is."""
    directory = Path(tempfile.mkdtemp(prefix="kdamon-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    for name in ("home", "home/x", "home/d"):
        (directory / name).mkdir()
        os.chown(directory / name, NOBODY, NOBODY)
    (directory / "shared").mkdir()
    (directory / "shared").chmod(0o1777)
    (directory / "shared/d").mkdir()
    yield directory
    shutil.rmtree(directory)


def as_user(*words: str | Path) -> None:
    """Run a program of the other user's."""
    identity = ("--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
    subprocess.run(["setpriv", *identity, *words], check=True, timeout=60)


def found(name: str) -> Path | str:
    """Where a name leads to, or why it is refused."""
    try:
        directory = open_directory(name)
    except OSError as error:
        return str(error.strerror)
    try:
        return Path(os.readlink(f"/proc/self/fd/{directory}"))
    finally:
        os.close(directory)


def test_dots_after_a_directory_that_its_user_moved(public: Path) -> None:
    """They would lead to root's own directory of the same name."""
    before = os.open(".", os.O_PATH)
    os.chdir(public / "home/x")
    try:
        as_user("mv", public / "home/x", public / "shared/x")
        said = found("../d")
    finally:
        os.fchdir(before)
        os.close(before)
    assert f"'..' leads out of {public}/shared/x, and user {NOBODY} may move that; name the directory that is" in str(
        said
    )


def test_dots_after_a_directory_that_its_user_may_move(public: Path) -> None:
    """Whether it is the user's own or below one of the user's; the user may go that way."""
    (public / "home/x/root").mkdir()
    assert f"'..' leads out of {public}/home/x, and user {NOBODY}" in str(found(f"{public}/home/x/../d"))
    below = str(found(f"{public}/home/x/root/../../d"))
    assert f"'..' leads out of {public}/home/x/root, and user {NOBODY}" in below
    assert f"{public}/home/d" == found_by_user(f"{public}/home/x/../d")


def found_by_user(name: str) -> str:
    """The same, when the other user asks."""
    answer, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(theirs, str(found(name)).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(answer, "rb") as lines:
        said = lines.read().decode()
    os.waitpid(pid, 0)
    return said


def test_dots_after_directories_of_root(public: Path) -> None:
    """No other user can move these, in a sticky directory either."""
    assert public / "home/d" == found(f"{public}/shared/d/../../home/./d/")


def test_the_root_of_another_process(public: Path) -> None:
    """It is what the kernel says, not the directory that this process knows by the same name."""
    (public / "jail").mkdir()
    (public / "jail/d").mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            os.chroot(public / "jail")
            os.chdir("/")
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(1)
    try:
        os.waitpid(pid, os.WUNTRACED)
        assert public / "jail/d" == found(f"/proc/{pid}/root/d")
        assert public / "jail/d" == found(f"/proc/{pid}/cwd/d")
        assert "No such file or directory" == found(f"/proc/{pid}/root/{public}")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_root_of_a_process_in_another_mount_namespace(public: Path) -> None:
    """Nothing can be mounted there from here, and what has the same name here is not meant."""
    words = ["unshare", "--mount", "sh", "-c", "echo ready; read line"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        said = found(f"/proc/{process.pid}/root{public}/shared/d")
        process.communicate("\n")
    assert "root leads out of this mount namespace" in str(said)


AUTOMOUNT = """
import os, sys
from kdamon.lib.replaceable import open_directory
print(os.readlink(f"/proc/self/fd/{open_directory(sys.argv[1])}"))
"""


@needs_path("/sys/kernel/debug", "debugfs")
def test_what_is_mounted_when_it_is_used(public: Path) -> None:
    """As home directories are by an automounter; here the kernel does it."""
    (public / "debug").mkdir()
    place = f"{public}/debug/tracing/events"
    script = 'mount -t debugfs none "$1"; shift; exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", script, "sh", public / "debug", sys.executable, "-P", "-c", AUTOMOUNT]
    done = subprocess.run(
        [*words, place],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"{place}\n" == done.stdout, done.stderr
