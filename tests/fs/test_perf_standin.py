# SPDX-License-Identifier: GPL-2.0-only
"""``perf`` in a directory of another user: records are new files, and nothing there makes it wait."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kdamon_fs import perf_standin
from kdamon_fs.trace_server import TraceServer
from tests.support.attacker import NOBODY, attacker, exchange
from tests.support.capabilities import needs_root

pytestmark = pytest.mark.real


SECRET = "only root's"


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A directory of another user."""
    directory = Path(tempfile.mkdtemp(prefix="kdamon-test-", dir="/var/tmp"))
    os.chown(directory, NOBODY, NOBODY)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of root's."""
    file = tmp_path / "victim"
    file.write_text(SECRET)
    return file


def perf(socket: Path, directory: Path, *words: str) -> tuple[int, str]:
    """The status of ``perf`` in ``directory``, and what it says."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", perf_standin.__file__, socket, directory, *words],
        cwd=directory,
        # There is no other perf.
        env={"PATH": "/nowhere"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def record(theirs: Path, tmp_path: Path) -> tuple[int, str]:
    """Record an event, for no time, into the usual file."""
    with TraceServer(str(tmp_path / "events"), ["damon_aggregated"]):
        return perf(tmp_path / "events", theirs, "record", "-e", "damon:damon_aggregated", "--", "/bin/true")


def test_a_record_is_a_new_file_of_its_user_alone(theirs: Path, tmp_path: Path) -> None:
    """An earlier one has another name then."""
    (theirs / "perf.data").write_text("earlier")
    assert (0, "") == record(theirs, tmp_path)
    assert "# kdamon events\n" == (theirs / "perf.data").read_text()
    assert 0o600 == stat.S_IMODE((theirs / "perf.data").stat().st_mode)
    assert "earlier" == (theirs / "perf.data.old").read_text()


def test_a_link_to_a_file_is_not_followed(theirs: Path, tmp_path: Path, victim: Path) -> None:
    """It gets another name, like an earlier record."""
    (theirs / "perf.data").symlink_to(victim)
    assert (0, "") == record(theirs, tmp_path)
    assert SECRET == victim.read_text()
    assert victim == (theirs / "perf.data.old").readlink()


def test_no_file_is_made_by_a_link(theirs: Path, tmp_path: Path) -> None:
    """That leads to none yet."""
    (theirs / "perf.data").symlink_to(tmp_path / "new")
    assert (1, "perf: perf.data: No such file or directory\n") == record(theirs, tmp_path)
    assert not (tmp_path / "new").exists()


def test_a_pipe_without_a_reader_is_not_waited_for(theirs: Path, tmp_path: Path) -> None:
    """Nor one without a writer, by what reads a record."""
    os.mkfifo(theirs / "perf.data")
    assert (1, "perf: perf.data: No such device or address\n") == record(theirs, tmp_path)
    said = (1, "perf: it is not installed; kdamon serves DAMON's events alone\n")
    assert said == perf(tmp_path / "none", theirs, "script")


def test_a_device_is_written_to(theirs: Path, tmp_path: Path) -> None:
    """By a link too, such as /dev/stdout."""
    (theirs / "perf.data").symlink_to("/dev/stdout")
    assert (0, "# kdamon events\n") == record(theirs, tmp_path)


@needs_root("other users' processes need root")
def test_a_user_races_for_the_name_of_a_record(theirs: Path, victim: Path) -> None:
    """With links, files and nothing at all: the file that root writes to is never one that was there."""
    name, other = theirs / "perf.data", theirs / "other"

    def attack() -> None:
        with suppress(OSError):
            other.symlink_to(victim)
        for _ in range(20):
            with suppress(OSError):
                os.close(os.open(name, os.O_CREAT | os.O_EXCL, 0o666))
            exchange(name, other)
        for path in (name, other):
            with suppress(OSError):
                path.unlink()

    made = 0
    with attacker(attack):
        for _ in range(2000):
            try:
                file = perf_standin._make_output(str(name))
            except OSError:
                continue
            made += 1
            assert (0, 0o600, 0) == (
                os.fstat(file).st_uid,
                stat.S_IMODE(os.fstat(file).st_mode),
                os.fstat(file).st_size,
            )
            os.close(file)
    assert SECRET == victim.read_text()
    assert made


@pytest.mark.parametrize(("number", "lost"), [("3", "3"), ("9" * 5000, "9" * 18)])
def test_a_record_of_another_user_is_any_text(theirs: Path, number: str, lost: str) -> None:
    """It may have been made up."""
    lines = ["# kdamon events", "# lost ", "# lost x", "# lost 1 2", f"# lost {number}", " an event"]
    (theirs / "perf.data").write_text("".join(f"{line}\n" for line in lines))
    assert (0, f"perf: {lost} events were lost\n an event\n") == perf(Path("none"), theirs, "script")


@pytest.mark.parametrize("umask", [0, 0o77])
def test_events_are_for_one_user(tmp_path: Path, umask: int) -> None:
    """Whatever the umask is."""
    before = os.umask(umask)
    try:
        with TraceServer(str(tmp_path / "events"), ["damon_aggregated"]):
            assert 0o600 == stat.S_IMODE((tmp_path / "events").stat().st_mode)
    finally:
        os.umask(before)
