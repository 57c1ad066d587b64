# SPDX-License-Identifier: GPL-2.0-only
"""Names that another user can let stand for something else are not trusted, nor programs of such names run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdamon.lib.path_walk import UntrustedError
from kdamon.lib.trusted import find_program, open_trusted
from tests.support.capabilities import needs_dev_fuse, needs_root, needs_user_namespace

pytestmark = [pytest.mark.real, needs_root("giving files to another user needs root")]


#: The attacker.
USER = 65534


def opened(path: Path | str, **options: bool) -> str:
    """Where a trusted name leads."""
    descriptor = open_trusted(path, **options)
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def theirs(path: Path) -> None:
    """Give a file, a link or a directory to the attacker."""
    os.chown(path, USER, USER, follow_symlinks=False)


def writable(path: Path) -> None:
    """Let every user write there."""
    path.chmod(0o777)


def test_names_of_root_are_trusted(tmp_path: Path) -> None:
    """By links, absolute and relative, and below a sticky directory; what is found is what the kernel finds."""
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(place)
    (tmp_path / "relative").symlink_to("a/./b/../b")
    for name in (place, tmp_path / "absolute", tmp_path / "relative", f"{tmp_path}//a/../a/b/"):
        assert opened(name) == str(place)
    assert "/" == opened("/")


@pytest.mark.parametrize("spoil", [theirs, writable], ids=["theirs", "writable"])
@pytest.mark.parametrize("step", ["above", "above/directory", "above/directory/file"])
def test_a_step_on_the_way_that_another_user_can_change(
    tmp_path: Path, step: str, spoil: Callable[[Path], None]
) -> None:
    """Whether it is the file or a directory above it, and by owner or by mode."""
    file = tmp_path / "above" / "directory" / "file"
    file.parent.mkdir(parents=True)
    file.touch()
    assert opened(file) == str(file)
    spoil(tmp_path / step)
    with pytest.raises(UntrustedError) as refusal:
        open_trusted(file)
    assert refusal.value.filename == str(file)


def test_directories_that_roots_group_may_write_to(tmp_path: Path) -> None:
    """Only root is in it; any other group may have members, also the one of a root who has called newgrp."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory").chmod(0o775)
    assert opened(tmp_path / "directory") == str(tmp_path / "directory")
    os.chown(tmp_path / "directory", 0, USER)
    words = ["setpriv", "--regid", str(USER), "--clear-groups", sys.executable, "-c", OPENS]
    for command in (words, words[4:]):
        done = subprocess.run(
            [*command, str(tmp_path / "directory")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ("", f"other users can write to {tmp_path}/directory\n") == (done.stderr, done.stdout)


#: Opens a name that is not trusted.
OPENS = """
import sys
from kdamon.lib.path_walk import UntrustedError
from kdamon.lib.trusted import open_trusted
try:
    open_trusted(sys.argv[1])
except UntrustedError as error:
    print(error.strerror)
"""


def test_links_of_another_user_are_not_followed(tmp_path: Path) -> None:
    """In a sticky directory, although they lead to a file of root."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to("/etc")
    assert "/etc" == opened("/etc")
    theirs(shared / "link")
    with pytest.raises(UntrustedError, match="user 65534"):
        open_trusted(shared / "link" / "passwd")


def test_a_sticky_directory_is_for_directories_below_it(tmp_path: Path) -> None:
    """A file in it may be a hard link that its user made; of itself it is trusted where that is asked for."""
    shared = tmp_path / "shared"
    (shared / "own").mkdir(parents=True)
    (shared / "file").touch()
    (shared / "own" / "file").touch()
    shared.chmod(0o1777)
    assert opened(shared / "own" / "file") == str(shared / "own" / "file")
    assert opened(shared, sticky=True) == str(shared)
    for path in (shared, shared / "file"):
        with pytest.raises(UntrustedError):
            open_trusted(path)


@pytest.mark.parametrize("name", ["", ".", "file", "../file"])
def test_relative_names_are_not_trusted(name: str) -> None:
    """The working directory may be anybody's."""
    with pytest.raises(UntrustedError, match="relative"):
        open_trusted(name)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """As in the kernel."""
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        open_trusted(tmp_path / "circle")


def test_nothing_stays_open(tmp_path: Path) -> None:
    """Whatever is found, and refused."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "theirs").mkdir()
    theirs(tmp_path / "theirs")
    before = os.listdir("/proc/self/fd")
    opened(tmp_path / "link")
    for name in ("theirs", "link/theirs/x", "nothing", "link/nothing"):
        with pytest.raises(OSError):
            open_trusted(tmp_path / name)
    assert os.listdir("/proc/self/fd") == before


#: Mounts a file system of user 65534 that answers nothing, and looks for what is in it.
ASKS = """
import ctypes, os, sys
from kdamon.lib.path_walk import UntrustedError
from kdamon.lib.trusted import open_trusted
device = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={device},rootmode=40755,user_id=65534,group_id=65534,allow_other".encode()
if ctypes.CDLL(None).mount(b"fuse", os.fsencode(sys.argv[1]), b"fuse", 0, data):
    sys.exit("it was not mounted")
for name in ("", "/directory/file"):
    try:
        open_trusted(sys.argv[1] + name)
    except UntrustedError as error:
        print(error.strerror)
"""


@needs_dev_fuse
def test_a_file_system_that_another_user_serves_is_not_asked(tmp_path: Path) -> None:
    """It need not answer."""
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", ASKS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ("it is in a file system that user 65534 serves\n" * 2, "") == (done.stdout, done.stderr)


def test_programs_that_another_user_can_exchange_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of relative directories, empty ones among them; the next one on PATH is found."""
    for directory in ("theirs", "writable", "relative", "good"):
        (tmp_path / directory).mkdir()
        program = tmp_path / directory / "program"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    theirs(tmp_path / "theirs")
    writable(tmp_path / "writable")
    (tmp_path / "program").symlink_to("relative/program")
    monkeypatch.chdir(tmp_path)
    path = ["", ".", "relative", str(tmp_path / "theirs"), str(tmp_path / "writable"), str(tmp_path / "nothing")]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    assert find_program("program") is None
    monkeypatch.setenv("PATH", os.pathsep.join([*path, str(tmp_path / "good")]))
    assert find_program("program") == str(tmp_path / "good" / "program")
    (tmp_path / "good" / "program").chmod(0o644)
    assert find_program("program") is None


#: Becomes root of a user namespace, once that has a map, in which the machine's root has no number.
BECOMES_ROOT = """
import ctypes, os, sys
from kdamon.lib.trusted import find_program
if ctypes.CDLL(None).unshare(0x10000000):
    sys.exit("unshare")
print(flush=True)
sys.stdin.readline()
os.setuid(0)
print(os.stat("/").st_uid != 0, find_program("cat"))
"""


@needs_user_namespace
def test_a_user_namespace_has_programs() -> None:
    """The machine's root has another number there."""
    process = subprocess.Popen(
        [sys.executable, "-c", BECOMES_ROOT],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert "\n" == process.stdout.readline()
        Path(f"/proc/{process.pid}/uid_map").write_text(f"0 {USER} 1")
        said, complained = process.communicate("\n", timeout=60)
    assert said in ("True /usr/bin/cat\n", "True /bin/cat\n"), complained
