# SPDX-License-Identifier: GPL-2.0-only
"""The mounted tree is for the user who mounted it, whatever others try; and what that user writes costs little."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.capabilities import needs_dev_fuse, needs_root
from tests.support.paths import SUPPORT

HERE = Path(__file__).parent
NOBODY = 65534


pytestmark = [
    pytest.mark.real,
    pytest.mark.usefixtures("fuse_binding"),
    needs_dev_fuse,
    needs_root("only root can become another user"),
]


class Mounted:
    """A tree that a process of its own serves."""

    def __init__(self, mountpoint: Path) -> None:
        self.kdamonds = mountpoint / "admin/kdamonds"
        self.mountpoint = mountpoint
        self.process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "serve_tree.py"), str(mountpoint), "7.3"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout is not None
        assert "ready\n" == self.process.stdout.readline()

    def memory(self) -> int:
        """Bytes that the process has."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, fuse_binding: str) -> Iterator[Mounted]:
    """A tree below directories that everybody may pass."""
    mountpoint = tmp_path_factory.mktemp("damon")
    for directory in (mountpoint, *list(mountpoint.parents)[:2]):
        directory.chmod(0o755)
    tree = Mounted(mountpoint)
    try:
        yield tree
    finally:
        tree.process.send_signal(signal.SIGTERM)
        tree.process.wait(60)


@pytest.fixture
def mounted(served: Mounted) -> Mounted:
    """The tree with a new kdamond and a context."""
    (served.kdamonds / "nr_kdamonds").write_text("1")
    (served.kdamonds / "0/contexts/nr_contexts").write_text("1")
    return served


ATTEMPTS = """
    import errno, os, sys
    os.setresuid(*map(int, sys.argv[2:]))
    top = sys.argv[1]
    path = top + "/admin/kdamonds/nr_kdamonds"
    attempts = dict(
        stat=lambda: os.stat(path), list=lambda: os.listdir(top), read=lambda: os.open(path, os.O_RDONLY),
        write=lambda: os.open(path, os.O_WRONLY | os.O_TRUNC), path=lambda: os.open(path, os.O_PATH),
        make=lambda: os.mkdir(top + "/x"), cd=lambda: os.chdir(top),
        chmod=lambda: os.chmod(path, 0o777), link=lambda: os.symlink("/", top + "/x"),
    )
    for name, attempt in attempts.items():
        try:
            attempt()
            print(name, "was done")
        except OSError as error:
            print(name, errno.errorcode[error.errno])
"""


@pytest.mark.parametrize(
    "users",
    [(NOBODY, NOBODY, NOBODY), (0, NOBODY, 0), (NOBODY, 0, 0)],
    ids=["another user", "root as another user", "set-user-ID root"],
)
def test_other_users_get_nothing_of_it(mounted: Mounted, users: tuple[int, ...]) -> None:
    """Not even where root gave files of the tree away; nor by a program that has only a part of root's identity."""
    given = mounted.kdamonds / "nr_kdamonds"
    os.chown(given, NOBODY, NOBODY)
    os.chmod(given, 0o666)
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(ATTEMPTS), str(mounted.mountpoint), *map(str, users)],
            capture_output=True,
            text=True,
            check=True,
        )
        answers = dict(line.split(" ", 1) for line in done.stdout.splitlines())
        assert dict.fromkeys(answers, "EACCES") == answers
        assert 9 == len(answers)
        assert "1\n" == given.read_text()
    finally:
        os.chown(given, 0, 0)
        os.chmod(given, 0o600)


def test_the_mount_is_for_its_user_alone(mounted: Mounted) -> None:
    """The kernel refuses everybody else before kdamon learns of it."""
    lines = Path("/proc/mounts").read_text().splitlines()
    (options,) = (line.split()[3].split(",") for line in lines if line.split()[1] == str(mounted.mountpoint))
    assert {"user_id=0", "group_id=0", "nosuid", "nodev"} <= {*options}
    assert "allow_other" not in options


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("nr_kdamonds", b"-1", errno.EINVAL),
        ("nr_kdamonds", b"2147483647", errno.ENOMEM),
        ("nr_kdamonds", b"4294967297", errno.ERANGE),
        ("nr_kdamonds", b"9" * 4096, errno.ERANGE),
        ("nr_kdamonds", b"9" * (1 << 20), errno.ERANGE),
        ("nr_kdamonds", b"\xff\xfe", errno.EINVAL),
        ("0/contexts/0/targets/nr_targets", b"2147483647", errno.ENOMEM),
        ("0/contexts/0/schemes/nr_schemes", b"2147483647", errno.ENOMEM),
        ("0/contexts/nr_contexts", b"2", errno.EINVAL),
    ],
)
def test_absurd_numbers_of_directories_are_refused(mounted: Mounted, file: str, text: bytes, expected: int) -> None:
    """As the kernel refuses them, and nothing comes of it."""
    descriptor = os.open(mounted.kdamonds / file, os.O_WRONLY)
    try:
        with pytest.raises(OSError) as caught:
            os.write(descriptor, text)
    finally:
        os.close(descriptor)
    assert errno.errorcode[expected] == errno.errorcode[caught.value.errno or 0]
    assert (mounted.kdamonds / "nr_kdamonds").read_text() in ("0\n", "1\n")


def test_as_many_directories_as_the_kernel_would_make_cost_nothing(mounted: Mounted) -> None:
    """Each is made when it is looked up."""
    schemes = mounted.kdamonds / "0/contexts/0/schemes"
    before = mounted.memory()
    for number in ("nr_schemes", "nr_schemes"):
        (schemes / number).write_text("524288")
    assert "524288\n" == (schemes / "nr_schemes").read_text()
    assert "stat\n" == (schemes / "524287/action").read_text()
    assert mounted.memory() - before < 8 << 20
    (schemes / "nr_schemes").write_text("0")


@pytest.mark.parametrize("offset", [1, 4095, 4096, 1 << 40, (1 << 63) - 4097])
def test_offsets_lead_nowhere(mounted: Mounted, offset: int) -> None:
    """Every write is a store of its own wherever it goes, and nothing is after the end."""
    descriptor = os.open(mounted.kdamonds / "0/contexts/0/monitoring_attrs/nr_regions/max", os.O_RDWR)
    try:
        assert 2 == os.pwrite(descriptor, b"77", offset)
        assert b"77\n"[offset:] == os.pread(descriptor, 4096, offset)
        assert 3 == os.writev(descriptor, [b"1", b"2", b"3"])
        assert b"123\n" == os.pread(descriptor, 4096, 0)
    finally:
        os.close(descriptor)


def test_a_thousand_open_files_hold_nobody_up(mounted: Mounted) -> None:
    """Each is a few bytes, and none a descriptor of the process that serves the tree."""
    files = len(os.listdir(f"/proc/{mounted.process.pid}/fd"))
    opened = [os.open(mounted.kdamonds / "0/state", os.O_RDONLY) for _ in range(900)]
    try:
        assert b"off\n" == os.read(opened[-1], 16)
        assert files == len(os.listdir(f"/proc/{mounted.process.pid}/fd"))
    finally:
        for descriptor in opened:
            os.close(descriptor)
