# SPDX-License-Identifier: GPL-2.0-only
"""The mappings of a process by a BPF program, against /proc/PID/maps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kdamon.mm.bpf.vma_reader import AT_ONCE, Found, VmaReader, vma_reader
from kdamon.mm.proc.maps import Mappings, VmasReader
from kdamon.mm.proc.process_files import ProcessFiles
from tests.support.sampling import wait_until
from tests.support.workload import Workload

pytestmark = pytest.mark.real

MANY = 3000


@pytest.fixture
def reader() -> VmaReader:
    """The one of this process."""
    found = vma_reader()
    if found is None:
        pytest.skip("no BPF program can read mappings here")
    return found


@contextmanager
def files_of(pid: int) -> Iterator[ProcessFiles]:
    directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        files = ProcessFiles(directory)
    finally:
        os.close(directory)
    try:
        yield files
    finally:
        files.close()


def everything(reader: VmaReader, pagemap: int) -> Mappings:
    """All mappings of a process that changes none."""
    parts, at = [], 0
    while True:
        records, found = reader.read(pagemap, at, AT_ONCE)
        parts.append(records)
        if found == Found.ALL:
            return Mappings.of_vmas(np.concatenate(parts))
        if found == Found.MORE:
            assert AT_ONCE == len(records)
            at = int(records[-1, 1])
        else:
            assert Found.BUSY == found


@pytest.mark.parametrize("kind", ["many", "shmem"])
def test_they_are_those_of_the_file(reader: VmaReader, program: Path, kind: str) -> None:
    """In all that is known of each; anonymous memory has no offset, and shared memory is a file."""
    with Workload([program], kind, MANY) as work, files_of(work.pid) as files:
        found = everything(reader, files.pagemap)
        expected = Mappings.parse(Path(f"/proc/{work.pid}/maps").read_bytes())
    assert expected.ranges.tolist() == found.ranges.tolist()
    assert expected.offsets.tolist() == found.offsets.tolist()
    assert expected.writable.tolist() == found.writable.tolist()
    assert expected.shared.tolist() == found.shared.tolist()
    assert expected.files.tolist() == found.files.tolist()
    # Of overlayfs the kernel shows the device of the upper file system there, and maps the lower one's file.
    assert expected.devices[expected.shared].tolist() == found.devices[found.shared].tolist()
    assert found.shared.any() == (kind == "shmem")


def test_as_many_as_wanted(reader: VmaReader, program: Path) -> None:
    """From the address on, be it in the middle of one."""
    with Workload([program], "many", MANY) as work, files_of(work.pid) as files:
        expected = everything(reader, files.pagemap).ranges
        records, found = reader.read(files.pagemap, int(expected[7, 0]) + 1, 3)
    assert (Found.MORE, expected[7:10].tolist()) == (found, records[:, :2].tolist())


#: Asks for the reader while no file can be opened, and afterwards.
SHORT_OF_FILES = """
import os, resource
from kdamon.mm.bpf.vma_reader import vma_reader
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
first_free = os.dup(0)
os.close(first_free)
resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))
print(vma_reader() is not None)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
print(vma_reader() is not None)
"""


@pytest.mark.usefixtures("reader")
def test_a_lack_of_files_is_not_remembered() -> None:
    """Once there are some, there is a reader."""
    done = subprocess.run([sys.executable, "-c", SHORT_OF_FILES], capture_output=True, text=True, check=True)
    assert ["False", "True"] == done.stdout.split()


def test_of_a_process_that_ended_there_are_none(reader: VmaReader, program: Path) -> None:
    """Though its file is still open."""
    with Workload([program], "anon", 16) as work:
        pid = work.pid
        with files_of(pid) as files:
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            wait_until(lambda: not files.alive())
            records, found = reader.read(files.pagemap, 0, AT_ONCE)
    assert (0, Found.LOST) == (len(records), found)


def test_the_address_space_counts_and_not_the_process(reader: VmaReader, program: Path) -> None:
    """A child of vfork() reads as its parent, also after it called exec()."""
    with Workload([program], "anon", 16) as work, files_of(work.pid) as parent:
        work.send("v")
        children = Path(f"/proc/{work.pid}/task/{work.pid}/children")
        wait_until(lambda: children.read_text(encoding="ascii") != "")
        child = int(children.read_text(encoding="ascii"))
        try:
            with files_of(child) as borrowed:
                assert child == int.from_bytes(work.receive(4), "little")
                with files_of(child) as own:
                    expected = everything(reader, parent.pagemap).ranges.tolist()
                    assert expected == everything(reader, borrowed.pagemap).ranges.tolist()
                    assert expected != everything(reader, own.pagemap).ranges.tolist()
        finally:
            os.kill(child, signal.SIGKILL)


#: Changes mappings at random at the first addresses of blocks of 16 pages, of which the last page stays as it is: so
#: many for each line of its input, or, after an empty one, for ever.
RANDOM = """
import ctypes, random, sys

PAGE, BLOCK, BLOCKS = 4096, 16 * 4096, 2500
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PRIVATE, SHARED, FIXED, ANONYMOUS, NORESERVE = 0x2, 0x1, 0x10, 0x20, 0x4000
chosen = random.Random(int(sys.argv[1]))
program = open(sys.executable, "rb")
base = libc.mmap(None, BLOCK * BLOCKS, 0, PRIVATE | ANONYMOUS | NORESERVE, -1, 0)
for block in range(BLOCKS):
    # Neither readable alone nor shared is any other, so that it merges with none.
    libc.mmap(base + block * BLOCK + 15 * PAGE, PAGE, 1, SHARED | FIXED | ANONYMOUS, -1, 0)

def change():
    first = chosen.randrange(14)
    place = base + chosen.randrange(BLOCKS) * BLOCK + first * PAGE
    size = chosen.randint(1, 15 - first) * PAGE
    kind = chosen.randrange(4)
    if kind == 0:
        libc.munmap(place, size)
    elif kind == 1:
        libc.mprotect(place, size, chosen.choice((0, 3, 5, 7)))
    elif kind == 2:
        libc.mmap(place, size, chosen.choice((0, 3)), PRIVATE | FIXED | ANONYMOUS | NORESERVE, -1, 0)
    else:
        offset = chosen.randrange(16) * PAGE
        libc.mmap(place, size, chosen.choice((1, 3)), PRIVATE | FIXED | NORESERVE, program.fileno(), offset)

print(base, BLOCK, BLOCKS, flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        change()
    print("done", flush=True)
    while not int(line):
        change()
"""


@contextmanager
def at_random(seed: int) -> Iterator[tuple[subprocess.Popen[str], list[list[int]]]]:
    """A process that runs :data:`RANDOM`, and its mappings that stay."""
    command = [sys.executable, "-c", RANDOM, str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base, size, count = map(int, process.stdout.readline().split())
            yield process, [[base + n * size + 15 * 4096, base + (n + 1) * size] for n in range(count)]
        finally:
            process.kill()


def let_change(process: subprocess.Popen[str], count: int) -> None:
    """Let it make so many changes; 0: go on with them."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    assert "done\n" == process.stdout.readline()


@pytest.mark.parametrize("seed", range(3))
def test_thousands_at_random(reader: VmaReader, seed: int) -> None:
    """After each of many changes they are those of the file."""
    with at_random(seed) as (process, _), files_of(process.pid) as files:
        for count in (1, 1, 10, 100, 1000, 10_000, 10_000, 1, 1, 1, 100, 10_000):
            let_change(process, count)
            found = everything(reader, files.pagemap)
            expected = Mappings.parse(Path(f"/proc/{process.pid}/maps").read_bytes())
            assert expected.ranges.tolist() == found.ranges.tolist()
            assert expected.offsets.tolist() == found.offsets.tolist()
            for name in ("writable", "shared", "files", "accessible"):
                assert getattr(expected, name).tolist() == getattr(found, name).tolist()
    assert len(found) > 10_000


def test_while_they_change(reader: VmaReader) -> None:
    """Each list is in order, and has all that does not change, as it is; what the program cannot read the file has."""
    wholly = 0
    with at_random(7) as (process, staying), files_of(process.pid) as files:
        let_change(process, 10_000)
        let_change(process, 0)
        for _ in range(30):
            reading = VmasReader(reader, files.pagemap)
            try:
                while (found := reading.step(1024)) is None:
                    pass
            except BlockingIOError:
                continue
            wholly += 1
            assert (found.ranges[:, 0] < found.ranges[:, 1]).all()
            assert (found.ranges[1:, 0] >= found.ranges[:-1, 1]).all()
            present = set(map(tuple, found.ranges[found.shared].tolist()))
            assert [] == [one for one in staying if tuple(one) not in present]
    assert wholly
