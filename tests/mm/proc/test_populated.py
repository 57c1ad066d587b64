# SPDX-License-Identifier: GPL-2.0-only
"""Where memory is populated, found by PAGEMAP_SCAN: compared with what was touched."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.kernel import PMD_SIZE
from kdamon.mm.proc.pagemap import Pagemap
from kdamon.mm.proc.populated import populated

pytestmark = pytest.mark.real


GIB = 1 << 30
MAP_NORESERVE = 0x4000


@contextmanager
def reserved(size: int) -> Iterator[int]:
    """Memory of our own of which nothing is populated; the first address at a gibibyte's beginning."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, size + GIB, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    assert address not in {None, ctypes.c_void_p(-1).value}
    try:
        yield -(-address // GIB) * GIB
    finally:
        libc.munmap(address, size + GIB)


@pytest.fixture(name="pagemap")
def _pagemap() -> Iterator[int]:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def found(groups: Iterator[U64Array], base: int) -> list[int]:
    """The numbers of the blocks after ``base``; groups must be a gibibyte's at most."""
    starts: list[int] = []
    for group in groups:
        assert (group[:, 1] - group[:, 0] == PMD_SIZE).all()
        assert 1 == len(set((group[:, 0] // np.uint64(GIB)).tolist()))
        starts += group[:, 0].tolist()
    return [(start - base) // PMD_SIZE for start in starts]


def touch(addresses: list[int]) -> None:
    for address in addresses:
        ctypes.c_ubyte.from_address(address).value = 1


def test_blocks_with_pages_are_found_among_terabytes(pagemap: int) -> None:
    """Wherever in its block the page is, and each once; the page table walk finds the same."""
    with reserved(4 << 40) as base:
        blocks = [0, 1, 511, 512, 5000, 5001, (3 << 40) // PMD_SIZE + 7]
        places = [0, PMD_SIZE - 4096, 4096, 40960, PMD_SIZE // 2, 0, 8192]
        touch([base + block * PMD_SIZE + place for block, place in zip(blocks, places, strict=True)])
        wanted = np.array([[base, base + (4 << 40)]], np.uint64)
        assert blocks == found(populated(pagemap, wanted), base)
        assert blocks == found(Pagemap(pagemap).groups(wanted), base)


def test_blocks_are_found_in_many_tables(pagemap: int) -> None:
    """Of each level, more than are looked through at once."""
    gib, pgdir = GIB // PMD_SIZE, (1 << 39) // PMD_SIZE
    with reserved(12 << 40) as base:
        blocks = sorted(
            {*(gib * number + number for number in range(21)), *(pgdir * number + 3 for number in range(20))}
        )
        touch([base + block * PMD_SIZE for block in blocks])
        wanted = np.array([[base, base + (12 << 40)]], np.uint64)
        assert blocks == found(Pagemap(pagemap).groups(wanted), base)


def test_ranges_in_the_middle_of_a_block_find_it_once(pagemap: int) -> None:
    """And not when its pages are outside of them."""
    with reserved(GIB) as base:
        touch([base + 4096, base + 20 * 4096, base + 3 * PMD_SIZE])
        edges = [[0, 4096], [4096, 8192], [16 * 4096, 64 * 4096], [3 * PMD_SIZE + 4096, 4 * PMD_SIZE]]
        wanted = np.array(edges, np.uint64) + np.uint64(base)
        assert [0] == found(populated(pagemap, wanted), base)


def test_nothing_is_found_where_nothing_is(pagemap: int) -> None:
    """Neither in memory without pages nor without any ranges."""
    with reserved(GIB) as base:
        assert [] == found(populated(pagemap, np.array([[base, base + GIB]], np.uint64)), base)
        assert [] == found(populated(pagemap, np.empty((0, 2), np.uint64)), base)


def test_all_blocks_are_found_where_the_kernel_cannot_scan() -> None:
    """As before Linux 6.7."""
    with reserved(GIB) as base, open("/proc/self/maps", "rb") as other:
        wanted = np.array([[base + 4096, base + 3 * PMD_SIZE + 1]], np.uint64)
        assert [0, 1, 2, 3] == found(populated(other.fileno(), wanted), base)


def test_nothing_is_found_once_the_process_ended() -> None:
    """It may end at any time, also between the look at its mappings and the one at their pages."""
    with subprocess.Popen(["sleep", "60"]) as process, open(f"/proc/{process.pid}/pagemap", "rb") as pagemap:
        process.kill()
        process.wait()
        assert [] == list(populated(pagemap.fileno(), np.array([[0, 1 << 46]], np.uint64)))
