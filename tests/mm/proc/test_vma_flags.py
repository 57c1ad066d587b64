# SPDX-License-Identifier: GPL-2.0-only
"""The flags of mappings: the BPF iterator beside /proc/PID/smaps, which shows the same."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from kdamon.lib.pidfd import pidfd_open
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.proc import vma_flags
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.proc.vma_flags import Mappings, VmaFlag, mappings_with_flags

pytestmark = pytest.mark.real


NAMED = (
    VmaFlag.GROWS_DOWN | VmaFlag.PFN_MAP | VmaFlag.IO | VmaFlag.HUGE_TLB | VmaFlag.MIXED_MAP
    | VmaFlag.HUGEPAGE | VmaFlag.NOHUGEPAGE | VmaFlag.SEALED
)  # fmt: skip
#: Maps pieces with all kinds of flags, then waits.
TARGET = """
import mmap, sys
pieces = [mmap.mmap(-1, 1 << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(300)]
for number, piece in enumerate(pieces):
    if number % 3:
        piece.madvise(mmap.MADV_HUGEPAGE if number % 3 == 1 else mmap.MADV_NOHUGEPAGE)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(name="target")
def _target() -> Iterator[tuple[ProcessFiles, int]]:
    """Its files, and its pidfd."""
    with subprocess.Popen([sys.executable, "-c", TARGET], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        directory = os.open(f"/proc/{process.pid}", os.O_RDONLY | os.O_DIRECTORY)
        files, pidfd = ProcessFiles(directory), pidfd_open(process.pid)
        yield files, pidfd
        process.kill()
        files.close()
        os.close(pidfd)
        os.close(directory)


@pytest.fixture(name="from_smaps")
def _from_smaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """No iterator, as without CAP_BPF."""
    monkeypatch.setattr(vma_flags, "_vma_iterator", lambda: None)


def named(found: Mappings) -> list[list[int]]:
    """With those flags only that have a name here; smaps shows a sealed mapping by one name for two places."""
    found = found.copy()
    found[:, 2] &= np.uint64(NAMED)
    return [
        [start, end, flags | VmaFlag.SEALED if flags & VmaFlag.SEALED else flags]
        for start, end, flags in found.tolist()
    ]


def with_smaps(files: ProcessFiles, pidfd: int) -> list[list[int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vma_flags, "_vma_iterator", lambda: None)
        return named(mappings_with_flags(files, pidfd))


def test_the_iterator_shows_what_smaps_shows(machine: LinuxMachine, target: tuple[ProcessFiles, int]) -> None:
    """Of hundreds of mappings, which take several readings."""
    assert "page_table" == machine.primitive
    assert vma_flags._vma_iterator() is not None
    found = named(mappings_with_flags(*target))
    assert with_smaps(*target) == found
    for flag in (VmaFlag.HUGEPAGE, VmaFlag.NOHUGEPAGE):
        # Neighbours with the same flags are one mapping.
        assert sum(end - start for start, end, flags in found if flags & flag) >= 100 << 21
    assert [VmaFlag.GROWS_DOWN] == [flags for _, _, flags in found if flags & VmaFlag.GROWS_DOWN]


def test_changes_are_seen(machine: LinuxMachine) -> None:
    """The next time."""
    assert "page_table" == machine.primitive
    directory, pidfd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY), pidfd_open(os.getpid())
    files = ProcessFiles(directory)
    with mmap.mmap(-1, 1 << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        address = np.frombuffer(own, np.uint8).ctypes.data

        def flags() -> int:
            found = mappings_with_flags(files, pidfd)
            return int(found[(found[:, 0] <= address) & (address < found[:, 1]), 2][0])

        assert not flags() & (VmaFlag.HUGEPAGE | VmaFlag.NOHUGEPAGE)
        own.madvise(mmap.MADV_HUGEPAGE)
        assert flags() & VmaFlag.HUGEPAGE
        own.madvise(mmap.MADV_NOHUGEPAGE)
        assert VmaFlag.NOHUGEPAGE == flags() & (VmaFlag.HUGEPAGE | VmaFlag.NOHUGEPAGE)
    files.close()
    os.close(pidfd)
    os.close(directory)


@pytest.mark.parametrize("fallback", [False, True])
def test_a_process_that_ended_has_none(fallback: bool, request: pytest.FixtureRequest) -> None:
    """Whichever way is used."""
    if fallback:
        request.getfixturevalue("from_smaps")
    with subprocess.Popen(["sleep", "60"]) as process:
        directory, pidfd = os.open(f"/proc/{process.pid}", os.O_RDONLY | os.O_DIRECTORY), pidfd_open(process.pid)
        files = ProcessFiles(directory)
        process.kill()
    assert 0 == len(mappings_with_flags(files, pidfd))
    files.close()
    os.close(pidfd)
    os.close(directory)
