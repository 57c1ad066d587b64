# SPDX-License-Identifier: GPL-2.0-only
"""What system calls do with the mounted tree, row by row as Linux 7.3's own tree answered them.

The table is data/fs-semantics-7.3.tsv: an operation and the result. Rows in :data:`DIFFERENT` come out differently,
because FUSE is between the tree and the caller; what does come out is checked as well.
"""

from __future__ import annotations

import array
import ast
import errno
import fcntl
import mmap
import os
import re
import select
import stat
import subprocess
import sys
import termios
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.capabilities import needs_dev_fuse, needs_root
from tests.support.paths import SUPPORT

HERE = Path(__file__).parent
NOBODY = 65534


pytestmark = [
    pytest.mark.real,
    pytest.mark.usefixtures("fuse_binding"),
    needs_dev_fuse,
    needs_root("the table was measured by root"),
]

MEASURED = dict(
    line.split("\t")
    for line in (HERE / "data/fs-semantics-7.3.tsv").read_text().splitlines()
    if not line.startswith("#")
)

#: Operation, what comes out instead, and why.
DIFFERENT = {
    "open action, nr_schemes=0, then read/write/fstat.nlink on the fd": (
        "['ENODEV', 'ENODEV', 'ENOENT']",
        "FUSE asks for the attributes of a path, and the path is gone",
    ),
    "dir fd of scheme 0, nr_schemes rewritten to 1, then listdir/openat": (
        "['names', 'OK']",
        "FUSE finds directories by path, and the path leads to the new one",
    ),
    "poll": ("325", "FUSE answers for files without a poll operation; sysfs adds an error, as nothing ever notifies"),
    "as nobody: listdir": ("EACCES", "FUSE lets nobody in but the user who mounted it"),
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, fuse_binding: str) -> Iterator[Path]:
    """A context directory of a mounted tree with a scheme."""
    mountpoint = tmp_path_factory.mktemp("damon")
    server = subprocess.Popen(
        [sys.executable, str(SUPPORT / "serve_tree.py"), str(mountpoint), "7.3"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert server.stdout is not None
        assert "ready\n" == server.stdout.readline()
        kdamonds = mountpoint / "admin/kdamonds"
        (kdamonds / "nr_kdamonds").write_text("1")
        (kdamonds / "0/contexts/nr_contexts").write_text("1")
        (kdamonds / "0/contexts/0/schemes/nr_schemes").write_text("1")
        yield kdamonds / "0/contexts/0"
    finally:
        server.terminate()
        assert 0 == server.wait(20)


def attempt(call: Callable[[], Any]) -> Any:
    """What ``call`` returns, or the name of the errno that it raises."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def with_file(path: Path, flags: int, use: Callable[[int], Any]) -> Any:
    """Open ``path``, use the descriptor, close it."""
    descriptor = os.open(path, flags)
    try:
        return use(descriptor)
    finally:
        os.close(descriptor)


def as_nobody(call: Callable[[], Any]) -> str:
    """What another user gets."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setuid(NOBODY)
            os.write(write, str(attempt(call)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return answer


def opened(context: Path, operation: str) -> Any:
    """Rows like "open rw file O_WRONLY|O_TRUNC"."""
    kind, names = re.fullmatch(r"open (rw|ro) file (\S+)", operation).groups()
    flags = 0
    for name in names.split("|"):
        flags |= getattr(os, name)
    path = context / ("addr_unit" if kind == "rw" else "avail_operations")
    return attempt(lambda: with_file(path, flags, lambda _: "OK"))


def small_reads(path: Path) -> Any:
    path.write_text("5000")

    def use(file: int) -> Any:
        first = os.read(file, 2), os.read(file, 2), os.read(file, 2), os.read(file, 2)
        path.write_text("777")
        os.lseek(file, 0, os.SEEK_SET)
        return *first, "after write+lseek0", os.read(file, 10)

    return with_file(path, os.O_RDONLY, use)


def read_on(path: Path) -> Any:
    path.write_text("111")

    def use(file: int) -> Any:
        first = os.read(file, 1)
        path.write_text("222")
        rest = os.read(file, 9)
        anew = os.pread(file, 9, 0), "pread1", os.pread(file, 9, 1), "pread100", os.pread(file, 9, 100)
        return first, rest, "pread0", *anew

    return with_file(path, os.O_RDONLY, use)


def two_writes(path: Path) -> Any:
    def use(file: int) -> Any:
        one = os.write(file, b"12"), path.read_text()
        two = os.write(file, b"34"), path.read_text()
        rest = os.read(file, 9)
        return *one, *two, "read same fd", rest, "pwrite@100", os.pwrite(file, b"56", 100), path.read_text()

    return with_file(path, os.O_RDWR, use)


def write_of(path: Path, data: bytes) -> Any:
    def use(file: int) -> Any:
        taken = os.write(file, data)
        return (None if taken == len(data) else f"short:{taken}"), path.read_text()

    return attempt(lambda: with_file(path, os.O_WRONLY, use))


def removed_file(context: Path) -> list[Any]:
    schemes = context / "schemes/nr_schemes"

    def use(file: int) -> list[Any]:
        schemes.write_text("0")
        answers = [attempt(lambda: os.read(file, 9)), attempt(lambda: os.write(file, b"cold"))]
        return [*answers, attempt(lambda: os.fstat(file).st_nlink)]

    try:
        return with_file(context / "schemes/0/action", os.O_RDWR, use)
    finally:
        schemes.write_text("1")


def removed_directory(context: Path) -> list[Any]:
    def use(directory: int) -> list[Any]:
        (context / "schemes/nr_schemes").write_text("1")
        names = attempt(lambda: os.listdir(directory))
        again = attempt(lambda: os.close(os.open("action", os.O_RDONLY, dir_fd=directory)))
        return ["names" if names else names, "OK" if again is None else again]

    return with_file(context / "schemes/0", os.O_RDONLY | os.O_DIRECTORY, use)


def fionread(path: Path) -> bytes:
    answer = array.array("i", [0])
    with_file(path, os.O_RDONLY, lambda file: fcntl.ioctl(file, termios.FIONREAD, answer))
    return answer.tobytes()


def polled(path: Path) -> str:
    def use(file: int) -> str:
        poll = select.poll()
        poll.register(file, 0xFFFF)
        return str(poll.poll(0)[0][1])

    return with_file(path, os.O_RDONLY, use)


def attributes(path: Path, *names: str) -> dict[str, int]:
    found = os.stat(path)
    return {name: getattr(found, name) for name in names}


def measured_attributes(operation: str, *names: str) -> dict[str, int]:
    fields = dict(re.findall(r"(\w+)=(\d+)", MEASURED[operation]))
    return {name: int(fields[name]) for name in names}


SIMPLE: dict[str, Callable[[Path], Any]] = {
    "open new file O_CREAT in dir": lambda c: attempt(lambda: os.open(c / "new", os.O_CREAT | os.O_WRONLY)),
    "open missing file": lambda c: attempt(lambda: os.open(c / "missing", os.O_RDONLY)),
    "open dir O_WRONLY": lambda c: attempt(lambda: os.open(c, os.O_WRONLY)),
    "mkdir": lambda c: attempt(lambda: os.mkdir(c / "new")),
    "rmdir scheme dir": lambda c: attempt(lambda: os.rmdir(c / "schemes/0")),
    "unlink": lambda c: attempt(lambda: os.unlink(c / "operations")),
    "rename": lambda c: attempt(lambda: os.rename(c / "operations", c / "new")),
    "symlink": lambda c: attempt(lambda: os.symlink("operations", c / "new")),
    "link": lambda c: attempt(lambda: os.link(c / "operations", c / "new")),
    "truncate(0)": lambda c: attempt(lambda: os.truncate(c / "addr_unit", 0)),
    "truncate(10)": lambda c: attempt(lambda: os.truncate(c / "addr_unit", 10)),
    "utime": lambda c: attempt(lambda: os.utime(c / "addr_unit", (1, 1))),
    "setxattr user.": lambda c: attempt(lambda: os.setxattr(c / "addr_unit", "user.x", b"1")),
    "listxattr": lambda c: os.listxattr(c / "addr_unit"),
    "readdir context": lambda c: sorted(os.listdir(c)),
    "sequential small reads": lambda c: small_reads(c / "addr_unit"),
    "read 1 byte, file changed, read on": lambda c: read_on(c / "addr_unit"),
    "two writes on one fd (each a full store?)": lambda c: two_writes(c / "addr_unit"),
    "empty write": lambda c: (
        with_file(c / "addr_unit", os.O_WRONLY, lambda file: os.write(file, b"")),
        (c / "addr_unit").read_text(),
    ),
    "write of 5001 bytes": lambda c: write_of(c / "addr_unit", b"0" * 5001),
    'write 4096 bytes "0..01"': lambda c: write_of(c / "addr_unit", b"0" * 4095 + b"1"),
    'write 4097 bytes "0..01"': lambda c: write_of(c / "monitoring_attrs/intervals/sample_us", b"0" * 4096 + b"1"),
    "writev of two parts": lambda c: (
        with_file(c / "addr_unit", os.O_WRONLY, lambda file: os.writev(file, [b"12", b"34"])),
        None,
        (c / "addr_unit").read_text(),
    ),
    "open action, nr_schemes=0, then read/write/fstat.nlink on the fd": removed_file,
    "dir fd of scheme 0, nr_schemes rewritten to 1, then listdir/openat": removed_directory,
    "fsync": lambda c: with_file(c / "addr_unit", os.O_RDWR, lambda file: (os.fsync(file), os.fdatasync(file))),
    "ioctl FIONREAD": lambda c: fionread(c / "addr_unit")[:4],
    "mmap": lambda c: attempt(lambda: with_file(c / "addr_unit", os.O_RDWR, lambda file: mmap.mmap(file, 4096))),
    "flock": lambda c: with_file(c / "addr_unit", os.O_RDWR, lambda file: fcntl.flock(file, fcntl.LOCK_EX) or "OK"),
    "poll": lambda c: polled(c / "addr_unit"),
    "lseek end": lambda c: with_file(c / "addr_unit", os.O_RDONLY, lambda file: os.lseek(file, 0, os.SEEK_END)),
    "as nobody: read": lambda c: as_nobody((c / "operations").read_text),
    "as nobody: write": lambda c: as_nobody(lambda: f"open:{attempt(lambda: os.open(c / 'operations', os.O_WRONLY))}"),
    "as nobody: listdir": lambda c: as_nobody(lambda: os.listdir(c)),
}


@pytest.mark.parametrize("operation", [op for op in MEASURED if op in SIMPLE or op.startswith(("open rw", "open ro"))])
def test_a_system_call_does_what_it_does_to_the_kernels_tree(context: Path, operation: str) -> None:
    """The same result, or the one that FUSE makes of it."""
    result = opened(context, operation) if operation.startswith(("open rw", "open ro")) else SIMPLE[operation](context)
    expected = DIFFERENT.get(operation, (MEASURED[operation],))[0]
    assert expected == str(result)


def test_modes_and_owners_can_be_changed(context: Path) -> None:
    """They change what stat() says; a read-only file that was made writable still cannot be written."""
    file = context / "addr_unit"
    os.chmod(file, 0o644)
    assert oct(os.stat(file).st_mode) == MEASURED["chmod 0644 then mode"]
    os.chown(file, 1000, 1000)
    assert os.stat(file).st_uid == int(MEASURED["chown then uid"])
    names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size")
    assert attributes(file, *names) == measured_attributes("stat rw file", *names)
    assert attributes(context, *names) == measured_attributes("stat dir", *names)
    os.chmod(context / "avail_operations", 0o600)
    written = attempt(lambda: with_file(context / "avail_operations", os.O_WRONLY, lambda file: os.write(file, b"1")))
    assert written == MEASURED["chmod ro file 0600 then open WRONLY then write"]
    os.chmod(context / "avail_operations", 0o400)
    os.chmod(file, 0o600)
    os.chown(file, 0, 0)


def test_statfs_is_the_kernels(context: Path) -> None:
    """But for the flags, which are FUSE's."""
    found = os.statvfs(context)
    fields = dict(re.findall(r"(f_\w+)=(\d+)", MEASURED["statfs"]))
    del fields["f_flag"]
    assert {name: str(getattr(found, name)) for name in fields} == fields


def test_listings_have_the_kernels_names(context: Path) -> None:
    """In whatever order."""
    for row, path in (("context", context), ("scheme", context / "schemes/0"), ("kdamonds", context.parents[2])):
        assert sorted(os.listdir(path)) == sorted(ast.literal_eval(MEASURED[f"readdir raw order {row}"]))


def test_listings_tell_what_is_a_directory(context: Path) -> None:
    """Without a stat() of each name, and with the inode number that stat() gives."""
    for entry in os.scandir(context):
        assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(os.lstat(entry.path).st_mode)
        assert entry.inode() == os.lstat(entry.path).st_ino


def test_sendfile_between_file_systems_is_refused(context: Path, tmp_path: Path) -> None:
    """copy_file_range() answers EXDEV, as for the kernel's tree."""

    def copy(source: int) -> Any:
        return with_file(
            tmp_path / "copy", os.O_CREAT | os.O_WRONLY, lambda target: os.copy_file_range(source, target, 9)
        )

    result = attempt(lambda: with_file(context / "addr_unit", os.O_RDONLY, copy))
    assert result == MEASURED["sendfile/copy_file_range"]


def test_every_row_is_checked(rows: Counter[str]) -> None:
    """Nothing in the table was left out."""
    others = {
        "chmod 0644 then mode",
        "chown then uid",
        "chmod ro file 0600 then open WRONLY then write",
        "stat rw file",
        "stat dir",
        "statfs",
        "readdir raw order context",
        "readdir raw order scheme",
        "readdir raw order kdamonds",
        "sendfile/copy_file_range",
    }
    assert set(MEASURED) == SIMPLE.keys() | others | {op for op in MEASURED if op.startswith(("open rw", "open ro"))}
    rows["rows about system calls agree"] = len(MEASURED.keys() - DIFFERENT.keys())
    for operation, (_, reason) in DIFFERENT.items():
        rows[f"row about system calls differs ({operation}): {reason}"] = 1
