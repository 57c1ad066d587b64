# SPDX-License-Identifier: GPL-2.0-only
"""Looking at the files of a process does not wait for a file system that another user serves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdamon.mm.proc.file_systems import answers
from tests.support.capabilities import needs_dev_fuse, needs_root
from tests.support.paths import SUPPORT

NOBODY = 65534
PLACE = "100000000-100001000"

pytestmark = [
    pytest.mark.real,
    needs_dev_fuse,
    needs_root("mounting in these tests needs root"),
]

#: Looks at how much of a file is in memory.
LOOKS = """
import sys
from pathlib import Path
from kdamon.mm.proc.maps import Mappings
from kdamon.mm.actions.page_cache import FileMappings
process = f"/proc/{sys.argv[1]}"
mappings = Mappings.parse(Path(f"{process}/maps").read_bytes())
print(FileMappings(process, mappings).cached(0x100000000, 0x100001000))
"""


@pytest.fixture
def silent() -> Iterator[int]:
    """A process that maps a file of another user's file system, which answered until it was mapped, to all users."""
    directory = Path(tempfile.mkdtemp(prefix="kdamon-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    words = [
        sys.executable,
        SUPPORT / "silent_fuse.py",
        directory,
        str(NOBODY),
        "allow_other",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert b"ready\n" == process.stdout.readline()
            yield process.pid
        finally:
            process.kill()
    shutil.rmtree(directory)


def test_a_file_that_is_not_served_any_more_is_not_opened(silent: int) -> None:
    """Nor is its file system asked anything else."""
    with subprocess.Popen([sys.executable, "-c", LOOKS, str(silent)], stdout=subprocess.PIPE, text=True) as looking:
        try:
            said, _ = looking.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            # What waits for it cannot be killed.
            os.kill(silent, signal.SIGKILL)
            raise
    assert (0, "None\n") == (looking.returncode, said)


@contextlib.contextmanager
def looked_at(path: str) -> Iterator[int]:
    """A file that may only be looked at."""
    fd = os.open(path, os.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


def test_files_of_the_machine_answer(tmp_path: Path, silent: int) -> None:
    """Those that are in memory only, too, and in the view of any process."""
    memory = os.memfd_create("test")
    (tmp_path / "file").touch()
    for path in (f"/proc/self/fd/{memory}", str(tmp_path / "file"), sys.executable):
        with looked_at(path) as fd:
            assert (path, True) == (path, answers(silent, fd))
    os.close(memory)


def test_a_file_of_another_namespace(silent: int) -> None:
    """Of a disk, or of what this process has mounted, too, it answers; of the user's own it does not."""
    with looked_at(f"/proc/{silent}/exe") as fd:
        assert answers(silent, fd)
    with looked_at(f"/proc/{silent}/map_files/{PLACE}") as fd:
        assert not answers(silent, fd)
