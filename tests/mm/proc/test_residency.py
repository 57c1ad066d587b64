# SPDX-License-Identifier: GPL-2.0-only
"""Which pages are in memory, found by PAGEMAP_SCAN: compared with what was touched."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kdamon.arrays import Records
from kdamon.lib.syscalls import libc
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.proc.residency import residency
from tests.support.process_memory import space_of
from tests.support.workload import Workload

pytestmark = pytest.mark.real

PAGE = 4096
MIB = 1 << 20
HUGE = 2 * MIB
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_GUARD_INSTALL = 102


@pytest.fixture(name="pagemap")
def _pagemap() -> Iterator[int]:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@contextmanager
def mapped(size: int, file: int = -1) -> Iterator[tuple[mmap.mmap, int]]:
    flags = mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if file < 0 else 0)
    with mmap.mmap(file, size, flags=flags) as memory:
        memory.madvise(MADV_NOHUGEPAGE)
        # Nothing refers to it any more when it is closed.
        yield memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


def found(pagemap: int, start: int, end: int) -> Records:
    return np.concatenate([rows for _, rows in residency(pagemap, np.array([[start, end]], np.uint64))])


def runs(pagemap: int, start: int, end: int) -> list[tuple[int, int, str]]:
    """First page, end and kind of each."""
    rows = found(pagemap, start, end)
    texts = []
    for row in rows:
        [kind] = [name for name in ("anon", "file", "swapped", "unknown") if row[name]]
        assert row[kind] == row["end"] - row["start"]
        texts.append(((int(row["start"]) - start) // PAGE, (int(row["end"]) - start) // PAGE, kind))
    return texts


def test_touched_pages_are_in_memory(pagemap: int) -> None:
    with mapped(MIB) as (memory, base):
        for page in (3, 4, 5, 9, 255):
            memory[page * PAGE] = 1
        assert [(3, 6, "anon"), (9, 10, "anon"), (255, 256, "anon")] == runs(pagemap, base, base + MIB)
        memory.madvise(mmap.MADV_DONTNEED, 4 * PAGE, PAGE)
        assert [(3, 4, "anon"), (5, 6, "anon")] == runs(pagemap, base, base + 8 * PAGE)


def test_pages_of_files_and_their_copies(pagemap: int) -> None:
    """A page of a private mapping that was written is anonymous. Whatever was not read is not mapped."""
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), 64 * PAGE)
        with mapped(64 * PAGE, file.fileno()) as (memory, base):
            memory.madvise(mmap.MADV_RANDOM)
            assert [] == runs(pagemap, base, base + 64 * PAGE)
            for page in range(10, 20):
                assert 0 == memory[page * PAGE]
            memory[12 * PAGE] = 1
            wanted = [(10, 12, "file"), (12, 13, "anon"), (13, 20, "file")]
            assert wanted == runs(pagemap, base + 10 * PAGE, base + 20 * PAGE) or wanted == [
                (start, end, kind) for start, end, kind in runs(pagemap, base, base + 64 * PAGE)
            ]


def test_the_zero_page_is_no_memory(pagemap: int) -> None:
    with mapped(MIB) as (memory, base):
        assert 0 == memory[7 * PAGE]
        assert [] == runs(pagemap, base, base + MIB)
        memory[7 * PAGE] = 1
        assert [(7, 8, "anon")] == runs(pagemap, base, base + MIB)


def test_the_huge_zero_page_is_no_memory(pagemap: int) -> None:
    with mapped(3 * HUGE) as (memory, base):
        memory.madvise(MADV_HUGEPAGE)
        first = -(-base // HUGE) * HUGE
        assert 0 == memory[first - base]
        assert [] == runs(pagemap, first, first + HUGE)


def test_guard_pages_are_not_in_swap(pagemap: int) -> None:
    with mapped(MIB) as (_, base):
        if libc().madvise(ctypes.c_void_p(base), ctypes.c_size_t(16 * PAGE), MADV_GUARD_INSTALL):
            pytest.skip("this kernel has no guard pages")
        assert [] == runs(pagemap, base, base + MIB)


def test_many_runs_and_steps(pagemap: int) -> None:
    """More than a call finds; each step goes on where the one before ended."""
    with mapped(16 * MIB) as (memory, base):
        for page in range(0, 4096, 2):
            memory[page * PAGE] = 1
        wanted = np.array([[base, base + 8 * MIB], [base + 8 * MIB, base + 16 * MIB]], np.uint64)
        steps = list(residency(pagemap, wanted))
        reached = [step for step, _ in steps]
        assert sorted(set(reached)) == reached
        assert base + 16 * MIB == reached[-1]
        for (until, rows), start in zip(steps, [base, *reached], strict=False):
            assert not len(rows) or (start <= rows["start"][0] and rows["end"][-1] <= until)
        rows = np.concatenate([part for _, part in steps])
        assert [base + page * PAGE for page in range(0, 4096, 2)] == rows["start"].tolist()


def test_anonymous_mappings_are_looked_at_by_themselves(pagemap: int) -> None:
    """In the order of addresses, and with the same result."""
    with mapped(16 * MIB) as (memory, base):
        for page in range(0, 4096, 3):
            memory[page * PAGE] = 1
        wanted = np.array([[base, base + 16 * MIB]], np.uint64)
        anon = np.array([[base + MIB, base + 2 * MIB], [base + 4 * MIB, base + 4 * MIB + PAGE]], np.uint64)
        anon = np.concatenate([anon, [[base + 5 * MIB, base + 20 * MIB]]]).astype(np.uint64)
        found = [list(residency(pagemap, wanted, anon=some)) for some in (anon, anon[:0])]
        for steps in found:
            reached = [step for step, _ in steps]
            assert sorted(set(reached)) == reached
            assert base + 16 * MIB == reached[-1]
        starts = [[row["start"] for _, rows in steps for row in rows if row["anon"]] for steps in found]
        assert [base + page * PAGE for page in range(0, 4096, 3)] == starts[1]
        assert starts[0] == starts[1]


def test_only_what_was_asked_for_is_found(pagemap: int) -> None:
    with mapped(MIB) as (memory, base):
        memory[:] = b"x" * MIB
        wanted = np.array([[PAGE, 3 * PAGE], [10 * PAGE, 11 * PAGE]], np.uint64) + np.uint64(base)
        rows = np.concatenate([part for _, part in residency(pagemap, wanted)])
        assert wanted.tolist() == [[row["start"], row["end"]] for row in rows]
        assert [2 * PAGE, PAGE] == rows["anon"].tolist()


def test_all_memory_is_what_the_kernel_counts(machine: LinuxMachine, program: Path) -> None:
    with Workload([program], "anon", 1000) as work, space_of(machine, work.pid) as mm:
        rows = np.concatenate([part for _, part in mm.residency(mm.vmas())])
        with open(f"/proc/{work.pid}/status", encoding="utf-8") as lines:
            status = dict(line.split(":", 1) for line in lines)
    sizes = {name: int(rows[name].sum()) >> 10 for name in ("anon", "file", "swapped")}
    wanted = {"anon": "RssAnon", "file": "RssFile", "swapped": "VmSwap"}
    assert {name: int(status[of].split()[0]) for name, of in wanted.items()} == sizes


def test_pages_of_devices_are_no_memory(pagemap: int) -> None:
    """In shared memory all pages are of files: what is not is of a device, or of the kernel."""
    with mapped(MIB) as (memory, base):
        memory[:] = b"x" * MIB
        wanted = np.array([[base, base + MIB]], np.uint64)
        shared = np.array([[base, base + MIB // 2]], np.uint64)
        [(_, rows)] = residency(pagemap, wanted, shared=shared)
        assert MIB // 2 == rows["anon"].sum()


def test_a_kernel_that_cannot_say_is_an_error() -> None:
    with open("/proc/self/maps", "rb") as other, pytest.raises(OSError, match="ioctl"):
        list(residency(other.fileno(), np.array([[0, MIB]], np.uint64)))
