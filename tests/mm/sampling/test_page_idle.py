# SPDX-License-Identifier: GPL-2.0-only
"""The idle page bitmap, on files that stand for the kernel's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.mm import OLD, UNKNOWN, YOUNG
from kdamon.mm.proc.kpageflags import COMPOUND_HEAD, COMPOUND_TAIL, LRU
from kdamon.mm.sampling.page_idle import PagemapFrames
from tests.support.idle_pages import FRAMES, Memory, Space

pytestmark = pytest.mark.real


ZERO_PAGE = 1 << 24


@pytest.fixture(name="memory")
def _memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path)


def _addrs(*pages: int) -> U64Array:
    return np.array(pages, dtype=np.uint64) * np.uint64(4096) + np.uint64(17)


def test_a_page_is_old_until_it_is_accessed(memory: Memory) -> None:
    """Pages in one word of the bitmap do not disturb each other; a page may be sampled twice."""
    memory.pages = {1: 64, 2: 65, 3: 127, 4: 4000}
    with Space(memory) as space:
        addrs = _addrs(4, 1, 2, 3, 2)
        space.begin_sample(addrs)
        assert [True, True, False, True, False, True] == [memory.idle(pfn) for pfn in (64, 65, 66, 127, 128, 4000)]
        assert [OLD] * 5 == space.end_sample(addrs).tolist()
        space.begin_sample(addrs)
        memory.access(65)
        memory.access(4000)
        assert [YOUNG, OLD, YOUNG, OLD, YOUNG] == space.end_sample(addrs).tolist()


def test_a_page_that_is_not_mapped_is_old(memory: Memory) -> None:
    """And one that came since was accessed."""
    with Space(memory) as space:
        addrs = _addrs(1, 2)
        space.begin_sample(addrs)
        assert [OLD, OLD] == space.end_sample(addrs).tolist()
        space.begin_sample(addrs)
        memory.pages = {2: 77}
        assert [OLD, YOUNG] == space.end_sample(addrs).tolist()


def test_a_part_of_a_folio_is_asked_for_by_its_first_page(memory: Memory) -> None:
    """The kernel ignores the bits of the others."""
    memory.flags[512] |= COMPOUND_HEAD
    memory.flags[513:528] = COMPOUND_TAIL
    memory.pages = {1: 515, 2: 527, 3: 528}
    with Space(memory) as space:
        addrs = _addrs(1, 2, 3)
        space.begin_sample(addrs)
        assert [True, False, False, True] == [memory.idle(pfn) for pfn in (512, 515, 527, 528)]
        memory.access(512)
        assert [YOUNG, YOUNG, OLD] == space.end_sample(addrs).tolist()


def test_what_the_kernel_does_not_track_is_unknown(memory: Memory) -> None:
    """The zero page is on no LRU list; neither is a page that was not when it was marked."""
    memory.flags[100] = ZERO_PAGE
    memory.flags[101] = 0
    memory.pages = {1: 100, 2: 101, 3: 102}
    with Space(memory) as space:
        addrs = _addrs(1, 2, 3)
        space.begin_sample(addrs)
        memory.flags[101] = LRU
        memory.folios().close()
        assert [UNKNOWN, UNKNOWN, OLD] == space.end_sample(addrs).tolist()


def test_nothing_is_told_after_close(memory: Memory) -> None:
    """The address space is empty then."""
    memory.pages = {1: 64}
    with Space(memory) as space:
        addrs = _addrs(1)
        space.begin_sample(addrs)
        memory.access(64)
        space.close()
        assert [OLD] == space.end_sample(addrs).tolist()
        space.begin_sample(addrs)
        assert [OLD] == space.end_sample(addrs).tolist()
        assert (0, 2) == space.vmas().shape
        assert not space.alive()


@pytest.fixture(name="pagemap")
def _pagemap(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "pagemap"
    present, swapped = 1 << 63, 1 << 62
    entries = [0, present | 5, swapped | 6, present | 1 << 55 | 7]
    path.write_bytes(np.array(entries, dtype=np.uint64).tobytes())
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_page_frames_come_from_the_pagemap(pagemap: int) -> None:
    """Only of pages that are present; an address beyond the file, or beyond any file, has none."""
    addrs = np.array([0, 4096 + 9, 2 * 4096, 3 * 4096, 4 * 4096, 1 << 63, (1 << 64) - 1], dtype=np.uint64)
    assert [0, 5, 0, 7, 0, 0, 0] == PagemapFrames(pagemap).pfns(addrs).tolist()


def test_folios_are_found_around_a_page(memory: Memory) -> None:
    """Neighbouring folios stay separate; what cannot be read is None."""
    memory.flags[8] |= COMPOUND_HEAD
    memory.flags[9:16] = COMPOUND_TAIL
    memory.flags[16] |= COMPOUND_HEAD
    memory.flags[17:32] = COMPOUND_TAIL
    memory.flags[512] |= COMPOUND_HEAD
    memory.flags[513:1024] = COMPOUND_TAIL
    folios = memory.folios()
    assert [
        (7, 1),
        (8, 8),
        (8, 8),
        (16, 16),
        (16, 16),
        (32, 1),
    ] == [folios.extent(pfn) for pfn in (7, 8, 15, 16, 31, 32)]
    assert (512, 512) == folios.extent(700)
    assert folios.extent(FRAMES) is None
    folios.close()
    assert folios.extent(8) is None
