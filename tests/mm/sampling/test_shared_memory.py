# SPDX-License-Identifier: GPL-2.0-only
"""A process that was monitored by faults writes its shared memory as before."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdamon.lib.helpers import LostHelpers
from kdamon.mm.apart import madvise as madvise_apart
from kdamon.mm.apart.madvise import fault_apart
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.proc.maps import Mappings
from kdamon.mm.sampling import shared_memory as shared_memory_module
from kdamon.mm.sampling.shared_memory import make_writable, present_runs, shared_memory
from tests.support.paths import SUPPORT
from tests.support.sampling import mm_of, sample, task_of
from tests.support.waiting import eventually
from tests.support.workload import Workload

pytestmark = pytest.mark.real


PAGES = 2048
#: Where silent_fuse.py has its data.
SILENT = 0x200000000
EVERY = np.arange(PAGES)


def _faults(pid: int) -> int:
    """How many faults without I/O the process had so far."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[7])


@pytest.mark.parametrize("kind", ["shmem", "tmpfs", "file", "anon", "thp"])
def test_no_page_faults_once_more_when_monitoring_ends(
    faulting: LinuxMachine, program: Path, directory: Path, kind: str
) -> None:
    """Whatever the memory is; a write after the end of one that was armed is none of those."""
    data = Path("/dev/shm", f"kdamon-test-{os.getpid()}") if kind == "tmpfs" else directory / "shared"
    data.write_bytes(bytes(4096 * PAGES))
    try:
        with Workload([program], "file" if kind == "tmpfs" else kind, PAGES, str(data)) as work:
            work.order("w", EVERY)
            before = _faults(work.pid)
            work.order("w", EVERY)
            quiet = _faults(work.pid) - before
            with task_of(faulting, work.pid) as task:
                sample(faulting, mm_of(task), work, EVERY[::8], lambda: work.order("w", EVERY[::16]))
            before = _faults(work.pid)
            work.order("w", EVERY)
            assert _faults(work.pid) - before < PAGES // 16 + quiet
            assert 0 == work.spoilt(EVERY)
    finally:
        data.unlink()


def test_pages_that_are_not_there_are_not_made(faulting: LinuxMachine, program: Path) -> None:
    """Memory that the process never used stays unused."""
    with Workload([program], "shared", PAGES) as work:
        work.order("w", EVERY[::32])
        task_of_it = task_of(faulting, work.pid)
        with task_of_it as task:
            sample(faulting, mm_of(task), work, EVERY, lambda: None)
        entries = Path(f"/proc/{work.pid}/pagemap")
        with entries.open("rb", buffering=0) as pagemap:
            present = np.frombuffer(os.pread(pagemap.fileno(), 8 * PAGES, work.base >> 9), np.uint64) >> np.uint64(63)
        assert PAGES // 32 == np.count_nonzero(present)
        assert 0 == work.spoilt(EVERY[::32])


def test_what_is_there_is_not_changed() -> None:
    """Every byte of memory that is made writable is what it was."""
    memory = mmap.mmap(-1, 1 << 21, mmap.MAP_SHARED)
    bytes_of = np.frombuffer(memory, dtype=np.uint8)
    bytes_of[:] = np.random.default_rng(1).integers(0, 256, len(bytes_of), dtype=np.uint8)
    before = bytes_of.copy()
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        runs = present_runs(fd, bytes_of.ctypes.data, bytes_of.ctypes.data + len(bytes_of))
        assert make_writable(os.getpid(), runs)
    finally:
        os.close(fd)
    assert np.array_equal(before, bytes_of)


def test_shared_memory_is_what_is_in_no_other_file(directory: Path) -> None:
    """Shared, writable, of a file system that is in memory."""
    disk = directory / "on disk"
    disk.write_bytes(bytes(4096))
    fd = os.memfd_create("kdamon-test")
    os.ftruncate(fd, 4096)
    with disk.open("r+b") as file:
        kinds = {
            "anonymous": mmap.mmap(-1, 4096, mmap.MAP_SHARED),
            "memfd": mmap.mmap(fd, 4096, mmap.MAP_SHARED),
            "read-only": mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ),
            "private": mmap.mmap(fd, 4096, mmap.MAP_PRIVATE),
            "disk": mmap.mmap(file.fileno(), 4096, mmap.MAP_SHARED),
        }
    os.close(fd)
    with open("/proc/self/maps", "rb") as lines:
        found = shared_memory(os.getpid(), Mappings.parse(lines.read()))
    places = {name: np.uint64(np.frombuffer(memory, np.uint8).ctypes.data) for name, memory in kinds.items()}
    inside = [name for name, at in places.items() if ((found[:, 0] <= at) & (at < found[:, 1])).any()]
    assert ["anonymous", "memfd"] == inside


def test_a_file_system_that_does_not_answer_is_not_waited_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process of another user may map something else meanwhile: a helper waits for that, and is lost."""
    monkeypatch.setattr(madvise_apart, "_PATIENCE", 0.5)
    lost = LostHelpers()
    monkeypatch.setattr(madvise_apart, "_lost", lost)
    words = [sys.executable, SUPPORT / "silent_fuse.py", directory, "65534"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as silent:
        try:
            assert silent.stdout is not None
            assert b"ready\n" == silent.stdout.readline()
            assert not make_writable(silent.pid, [(SILENT, SILENT + 2 * 4096)])
        finally:
            silent.kill()
    assert "it maps a file on a file system that does not answer" in caplog.text
    assert eventually(lambda: not lost)


def test_no_page_of_another_users_faults_once_more(
    faulting: LinuxMachine, program: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is spared its faults as well, by the helper."""
    monkeypatch.setattr(shared_memory_module, "_is_ours", lambda pid: False)
    asked: list[bool] = []

    def fault_apart_counted(pid: int, ranges: bytes) -> bool:
        asked.append(fault_apart(pid, ranges))
        return asked[-1]

    monkeypatch.setattr(shared_memory_module, "fault_apart", fault_apart_counted)
    test_no_page_faults_once_more_when_monitoring_ends(faulting, program, directory, "shmem")
    assert asked
    assert all(asked)


def test_a_process_that_ended_is_refused() -> None:
    """By the helper as by the kernel."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert not fault_apart(process.pid, struct.pack("<2Q", 1 << 20, 4096))
