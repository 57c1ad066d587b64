# SPDX-License-Identifier: GPL-2.0-only
"""Where the kernel maps all memory: found by a walk to a known address, and proven on pages of our own."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from kdamon.mm.linux import LinuxMachine
from kdamon.mm.walk_program import Word
from kdamon.mm.walker import Walker

GIB = 1 << 30


def walk_own_page(walker: Walker) -> tuple[int, int]:
    """The frame number of a page of this process by the walk, and as /proc tells it."""
    memory = np.ones(8192, np.uint8)
    address = int(memory.ctypes.data) + 4096
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        _, entries = walker.walk(fd, np.array([address], np.uint64))
        told = int.from_bytes(os.pread(fd, 8, address // 4096 * 8), "little") & ((1 << 55) - 1)
    finally:
        os.close(fd)
    return int(walker.pfns(entries)[0]), told


@pytest.mark.usefixtures("machine")
def test_a_wrong_base_that_fits_by_chance_is_told_from_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is taken for a page table may look like the right one; pages of our own decide."""
    find = Walker._find_bases

    def with_others(self: Walker, fd: int, pgd: int, limit: int) -> list[int]:
        right = find(self, fd, pgd, limit)
        return [right[0] - GIB, *right, right[0] - 2 * GIB]

    monkeypatch.setattr(Walker, "_find_bases", with_others)
    walker = Walker()
    try:
        walked, told = walk_own_page(walker)
        assert walked == told
        assert told
    finally:
        walker.close()


@pytest.mark.usefixtures("machine")
def test_without_a_base_that_walks_right_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that disagrees with what the kernel says about our own pages is of no use for others'."""
    find = Walker._find_bases
    monkeypatch.setattr(
        Walker, "_find_bases", lambda self, fd, pgd, limit: [base - GIB for base in find(self, fd, pgd, limit)]
    )
    with pytest.raises(OSError, match="was not found") as refused:
        Walker()
    assert refused.value.errno == errno.EOPNOTSUPP


def test_the_machine_is_the_same_each_time(machine: LinuxMachine) -> None:
    """Calibrating again finds the same place."""
    walkers = [Walker() for _ in range(3)]
    bases = {int(walker._header[Word.BASE]) for walker in walkers}
    for walker in walkers:
        walker.close()
    assert len(bases) == 1
