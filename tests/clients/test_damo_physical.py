# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified damo without arguments: it monitors the machine's memory, here as far as that can be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.mm.proc.pagemap import entries_at, exclusive_frames
from tests.support.capabilities import needs_damo

pytestmark = [pytest.mark.real, needs_damo]


DAMO = Path(sys.executable).parent / "damo"

SCRIPT = """
set -e
cd "$HOME"
damo=$1; context=/sys/kernel/mm/damon/admin/kdamonds/0/contexts/0
$damo start
cat $context/operations $context/../../state
for n in $(seq 12); do
    sleep 0.3
    $damo report access --json > access$n.json
done
$damo stop
cat $context/../../state
"""

PAGEOUT = """
set -e
cd "$HOME"
damo=$1 regions=$2 unit=$3; kdamond=/sys/kernel/mm/damon/admin/kdamonds/0
$damo start --ops paddr --damon_addr_unit $unit --regions "$regions" --damos_action pageout \\
    --damos_access_rate 0% 0% --damos_age 0 max --damos_sz_region 1 max --damos_filter reject anon
for n in $(seq 100); do
    sleep 0.2
    echo update_schemes_stats > $kdamond/state
    if [ $(($(cat $kdamond/contexts/0/schemes/0/stats/sz_applied) * unit)) -ge $4 ]; then break; fi
done
cat $kdamond/contexts/0/addr_unit $kdamond/contexts/0/schemes/0/stats/sz_applied
$damo stop
"""

#: Maps a file that no other process maps, prints where, and waits.
OWNER = """
import mmap, os, sys
with open(sys.argv[1], "w+b") as file:
    file.write(os.urandom(1 << 20) * 24)
    file.flush()
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    memory = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
memory[::4096]
where = next(line.split("-")[0] for line in open("/proc/self/maps") if sys.argv[1] in line)
print(int(where, 16), flush=True)
sys.stdin.read()
"""


def system_ram() -> int:
    """Bytes of memory that /proc/iomem lists."""
    sizes = 0
    for line in Path("/proc/iomem").read_text().splitlines():
        where, _, what = line.partition(" : ")
        if what == "System RAM":
            start, end = (int(number, 16) for number in where.split("-"))
            sizes += end + 1 - start
    return sizes


def accessed_and_covered(path: Path) -> tuple[int, int]:
    """Bytes of regions that were accessed, and of all, in a report of damo's."""
    (record,) = json.loads(path.read_text())
    (snapshot,) = record["snapshots"]
    accessed = covered = 0
    for region in snapshot["regions"]:
        start, end, accesses = (
            int(str(number).replace(",", ""))
            for number in (region["start"], region["end"], region["nr_accesses"]["samples"])
        )
        covered += end - start
        accessed += (end - start) * bool(accesses)
    return accessed, covered


@pytest.fixture
def reader() -> Iterator[int]:
    """A process that reads 200 MiB all the time: about one in a hundred pages of the machine."""
    script = "memory = bytearray(200 << 20)\nprint(flush=True)\nwhile True:\n    memory[::4096]\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.mark.usefixtures("reader")
def test_damo_monitors_all_memory(kdamon_exec: Any, tmp_path: Path) -> None:
    """Regions cover it, some of them are accessed, and it is said what is not known."""
    done = kdamon_exec(tmp_path, "bash", "-c", SCRIPT, "bash", str(DAMO))
    assert 0 == done.returncode, done.stdout + done.stderr
    assert ["paddr", "on", "off"] == done.stdout.split()
    assert "are mapped by one process each, whose accesses can be observed" in done.stderr
    sizes = [accessed_and_covered(path) for path in tmp_path.glob("access*.json")]
    assert 12 == len(sizes)
    assert min(covered for _, covered in sizes) >= 0.9 * system_ram()
    # The few samples of an interval may miss what is accessed; those of all of them do not.
    assert any(0 < accessed < covered for accessed, covered in sizes)


@contextmanager
def owner() -> Iterator[tuple[int, U64Array]]:
    """A process that maps a file of 24 MiB on a disk: its number, and the addresses of the pages."""
    with (
        tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="kdamon-test-") as file,
        subprocess.Popen(
            [sys.executable, "-c", OWNER, file.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout is not None
        base = int(process.stdout.readline())
        yield process.pid, np.uint64(base) + np.arange(24 << 8, dtype=np.uint64) * np.uint64(4096)
        process.kill()


def frames_of(pid: int, addrs: U64Array) -> U64Array:
    """The page frames at addresses of a process, 0 where none is."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return exclusive_frames(entries_at(fd, addrs))
    finally:
        os.close(fd)


@pytest.mark.parametrize("unit", [1, 1024])
def test_damo_pages_out_page_frames(kdamon_exec: Any, tmp_path: Path, unit: int) -> None:
    """The process that maps them loses these pages, all of them, and neither it nor another one any other."""
    with ExitStack() as stack:
        (pid, addrs), (other, others) = stack.enter_context(owner()), stack.enter_context(owner())
        before = frames_of(pid, addrs)
        pfns = np.sort(before[before != 0])
        # The largest runs of neighbouring page frames, half of the memory at most.
        runs = np.split(pfns, np.flatnonzero(np.diff(pfns) != 1) + 1)
        runs = sorted(runs, key=len, reverse=True)
        runs = sorted(
            runs[: max(1, int(np.searchsorted(np.cumsum([len(run) for run in runs]), len(pfns) // 2)))], key=min
        )
        wanted = np.concatenate(runs)
        regions = " ".join(f"{int(run[0]) * 4096 // unit}-{(int(run[-1]) + 1) * 4096 // unit}" for run in runs)
        arguments = (str(DAMO), regions, str(unit), str(4096 * len(wanted)))
        done = kdamon_exec(tmp_path, "bash", "-c", PAGEOUT, "bash", *arguments)
        assert 0 == done.returncode, done.stdout + done.stderr
        assert [unit, 4096 * len(wanted) // unit] == [int(word) for word in done.stdout.split()]
        after = frames_of(pid, addrs)
        assert np.isin(before, wanted).tolist() == ((before != 0) & (after == 0)).tolist()
        assert np.count_nonzero(frames_of(other, others)) == len(others)
