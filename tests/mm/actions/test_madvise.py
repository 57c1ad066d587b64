# SPDX-License-Identifier: GPL-2.0-only
"""Advice in batches, with ranges in it that the kernel refuses."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from kdamon.lib.pidfd import pidfd_open
from kdamon.mm.actions.madvise import Adviser
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.mman import MADV_COLD, MADV_COLLAPSE, MADV_PAGEOUT

pytestmark = pytest.mark.real


PAGE = 4096


@pytest.fixture(name="adviser")
def _adviser(machine: LinuxMachine) -> Iterator[Adviser]:
    """Advice to this process."""
    assert "page_table" == machine.primitive
    pidfd = pidfd_open(os.getpid())
    yield Adviser(pidfd)
    os.close(pidfd)


def _memory(pages: int) -> tuple[mmap.mmap, int]:
    memory = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memory, np.frombuffer(memory, dtype=np.uint8).ctypes.data


def test_more_ranges_than_one_call_takes_are_several_calls(adviser: Adviser) -> None:
    """All are taken."""
    memory, base = _memory(3000)
    starts = np.uint64(base) + np.arange(3000, dtype=np.uint64) * np.uint64(PAGE)
    assert (3000, 0) == adviser.advise(starts, np.full(3000, PAGE, dtype=np.uint64), MADV_COLD)
    memory.close()


def test_ranges_of_together_more_than_two_gib_are_all_taken(adviser: Adviser) -> None:
    """The kernel would cut a larger batch off."""
    memory, base = _memory(4 << 18)
    starts = np.uint64(base) + np.arange(2048, dtype=np.uint64) * np.uint64(1 << 21)
    assert (2048, 0) == adviser.advise(starts, np.full(2048, 1 << 21, dtype=np.uint64), MADV_COLD)
    memory.close()


@pytest.mark.parametrize("bad", [0, 1, 700, 1022, 1023, 1999])
def test_the_first_refused_range_is_told(adviser: Adviser, bad: int) -> None:
    """How many went before it, and why it was refused; ranges of different sizes."""
    memory, base = _memory(4000)
    starts = np.uint64(base) + np.arange(2000, dtype=np.uint64) * np.uint64(2 * PAGE)
    sizes = np.where(np.arange(2000) % 3 == 0, 2 * PAGE, PAGE).astype(np.uint64)
    starts[bad] = 1 << 46
    assert adviser.advise(starts, sizes, MADV_COLD) == (bad, errno.ENOMEM)
    memory.close()


def test_each_range_that_can_be_is_taken(adviser: Adviser) -> None:
    """It continues after a locked mapping, which is tried once, and after a hole."""
    memory, base = _memory(40)
    libc = ctypes.CDLL(None)
    assert 0 == libc.mlock(ctypes.c_void_p(base + 10 * PAGE), ctypes.c_size_t(10 * PAGE))
    starts = np.uint64(base) + np.arange(40, dtype=np.uint64) * np.uint64(PAGE)
    starts[-1] = 1 << 46
    asked = []

    def refused(addr: int) -> int:
        asked.append((addr - base) // PAGE)
        return base + 20 * PAGE

    taken = adviser.advise_each(starts, np.full(40, PAGE, dtype=np.uint64), MADV_COLD, refused)
    assert np.flatnonzero(~taken).tolist() == [*range(10, 20), 39]
    assert [10] == asked
    memory.close()


def test_no_ranges_are_no_call(adviser: Adviser) -> None:
    """Nothing is taken and nothing is wrong."""
    empty = np.empty(0, dtype=np.uint64)
    assert (0, 0) == adviser.advise(empty, empty, MADV_COLD)


def test_an_absent_process_has_no_pidfd() -> None:
    """ESRCH, as from any other call."""
    with pytest.raises(ProcessLookupError):
        pidfd_open(1 << 22)


@pytest.mark.parametrize(
    ("advice", "pages", "entries", "most"),
    [
        (MADV_COLD, 1, None, 128),
        (MADV_COLD, 512, None, 2),
        (MADV_COLD, 512, 1, 128),
        (MADV_PAGEOUT, 1, None, 57),
        (MADV_PAGEOUT, 64, None, 1),
        (MADV_COLLAPSE, 512, None, 1),
    ],
)
def test_no_call_has_more_than_is_done_quickly(  # noqa: PLR0917 -- fixture and columns
    adviser: Adviser, monkeypatch: pytest.MonkeyPatch, advice: int, pages: int, entries: int | None, most: int
) -> None:
    """By pages, and by page table entries where huge pages have fewer; all ranges are advised nevertheless."""
    call, counts = adviser._call, []

    def counted(count: int, advice: int) -> int:
        counts.append(count)
        return call(count, advice)

    monkeypatch.setattr(adviser, "_call", counted)
    memory, base = _memory(301 * pages)
    starts = np.uint64(base) + np.arange(300, dtype=np.uint64) * np.uint64(pages * PAGE)
    many = None if entries is None else np.full(300, entries, dtype=np.uint64)
    adviser.advise_each(starts, np.full(300, pages * PAGE, dtype=np.uint64), advice, lambda addr: addr, many)
    assert 300 == sum(counts)
    assert max(counts) <= most
    memory.close()
