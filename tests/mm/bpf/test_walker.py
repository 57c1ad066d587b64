# SPDX-License-Identifier: GPL-2.0-only
"""Where the kernel maps all memory: found by a walk to a known address, and proven on pages of our own."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.mm import FrameKind
from kdamon.mm.actions.madvise import drain_lru
from kdamon.mm.bpf import calibration
from kdamon.mm.bpf.walk_batches import WalkBatches
from kdamon.mm.bpf.walk_program import Word
from kdamon.mm.bpf.walker import Walker, heads_of, shared_walker
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.proc.kpageflags import Folios
from kdamon.mm.proc.pagemap import entries_at, frames

pytestmark = pytest.mark.real


GIB = 1 << 30


def walk_own_page(walker: Walker) -> tuple[int, int]:
    """The frame number of a page of this process by the walk, and by /proc; it may just have moved."""
    # Of a huge page the walk gives the first frame.
    pages = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    pages[0] = 1
    memory = np.frombuffer(pages, np.uint8)
    address = int(memory.ctypes.data)
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)

    def shown() -> int:
        return int.from_bytes(os.pread(fd, 8, address // 4096 * 8), "little") & ((1 << 55) - 1)

    try:
        before, after = 0, shown()
        while before != after:
            before = after
            _, entries = walker.walk(fd, np.array([address], np.uint64))
            after = shown()
    finally:
        os.close(fd)
    return int(walker.pfns(entries)[0]), after


@pytest.mark.usefixtures("machine")
def test_a_wrong_base_that_fits_by_chance_is_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is taken for a page table may look like the right one; pages of our own decide."""
    find = calibration.find_bases

    def with_others(walk: WalkBatches, fd: int, pgd: int, limit: int) -> list[int]:
        right = find(walk, fd, pgd, limit)
        return [right[0] - GIB, *right, right[0] - 2 * GIB]

    monkeypatch.setattr(calibration, "find_bases", with_others)
    walker = Walker()
    try:
        walked, shown = walk_own_page(walker)
        assert walked == shown
        assert shown
    finally:
        walker.close()


@pytest.mark.usefixtures("machine")
def test_without_a_base_that_walks_right_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that disagrees with what the kernel says about our own pages is of no use for others'."""
    find = calibration.find_bases
    monkeypatch.setattr(
        calibration, "find_bases", lambda walk, fd, pgd, limit: [base - GIB for base in find(walk, fd, pgd, limit)]
    )
    with pytest.raises(OSError, match="was not found") as refused:
        Walker()
    assert errno.EOPNOTSUPP == refused.value.errno


def test_the_machine_is_the_same_each_time(machine: LinuxMachine) -> None:
    """Calibrating again finds the same place."""
    walkers = [Walker() for _ in range(3)]
    bases = {int(walker.header[Word.BASE]) for walker in walkers}
    for walker in walkers:
        walker.close()
    assert 1 == len(bases)


@contextmanager
def own_pages(count: int, advice: int = mmap.MADV_NOHUGEPAGE) -> Iterator[tuple[mmap.mmap, U64Array]]:
    """Touched pages of this process, and their page frames."""
    memory = mmap.mmap(-1, count * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    whole = np.frombuffer(memory, np.uint8)
    whole[::4096] = 1
    drain_lru()
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        addrs = np.uint64(whole.ctypes.data) + np.arange(count, dtype=np.uint64) * np.uint64(4096)
        yield memory, frames(entries_at(fd, addrs))
    finally:
        os.close(fd)
        del whole
        memory.close()


def kinds_of(pfns: U64Array) -> list[int]:
    """The kinds of page frames by the walker."""
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        found: list[int] = shared_walker().frame_kinds(fd, pfns).tolist()
    finally:
        os.close(fd)
    return found


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("advice", [mmap.MADV_NOHUGEPAGE, mmap.MADV_HUGEPAGE])
def test_the_kind_of_a_page_frame_follows_from_its_mappings(advice: int) -> None:
    """Own pages are mapped once, and not once with a child."""
    with own_pages(4096, advice) as (_, pfns):
        once = {FrameKind.MAPPED_ONCE}
        page = shared_walker().layout.page
        # Before Linux 6.10 huge pages have to be looked at by themselves.
        unsure = advice == mmap.MADV_HUGEPAGE and (page is None or page.large_mapcount is None)
        assert set(kinds_of(pfns)) <= (once | {FrameKind.OTHER} if unsure else once)
        ready, done = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.write(ready[1], b"1")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        try:
            assert {FrameKind.OTHER} == set(kinds_of(pfns))
        finally:
            os.write(done[1], b"1")
            os.waitpid(child, 0)
            for fd in (*ready, *done):
                os.close(fd)


def test_tail_pages_have_their_head_as_an_address_or_as_a_mask() -> None:
    """Of 64 bytes each; folios of 512, 512 and 4 pages, of which the second and third have masks."""
    base = 0xFFD4_0000_0000_0000
    pages = base + 64 * np.array([1, 511, 513, 1023, 1025, 1027], np.uint64)
    masks = [(1 << 64) - 64 * count | 1 for count in (512, 4)]
    found = heads_of(pages, np.array([base | 1, base | 1, masks[0], masks[0], masks[1], masks[1]], np.uint64))
    assert [base, base, base + 64 * 512, base + 64 * 512, base + 64 * 1024, base + 64 * 1024] == found.tolist()


@pytest.mark.usefixtures("machine")
def test_addresses_without_memory_have_no_kind() -> None:
    """Nor is anything read there."""
    far = np.array([0, 1 << 39, (1 << 52) - 1, (1 << 64) - 1], np.uint64)
    assert [FrameKind.UNKNOWN] * 4 == kinds_of(far)
    assert [] == kinds_of(far[:0])


def frames_all_over(machine: LinuxMachine, count: int) -> U64Array:
    """Page frames of the machine's memory, however little it has."""
    memory = machine.physical_memory()
    try:
        first, last = (memory.ram() >> np.uint64(12)).astype(np.int64).T
    finally:
        memory.put()
    ends = (last - first).cumsum()
    chosen = np.random.default_rng(1).integers(0, ends[-1], count)
    piece = np.searchsorted(ends, chosen, side="right")
    return (last[piece] - ends[piece] + chosen).astype(np.uint64)


def test_what_is_kinds_of_page_frames_is_what_the_kernel_shows_of_them(machine: LinuxMachine) -> None:
    """For page frames all over memory. A difference is a frame that got another use meanwhile: another look agrees."""
    pfns = frames_all_over(machine, 20_000)
    folios = Folios()
    try:
        unreachable, kinds = folios.unreachable(pfns), np.array(kinds_of(pfns))
        # Hardly anything but what the kernel has for itself is left to be asked for.
        assert (kinds == FrameKind.UNREACHABLE).sum() > 0.5 * unreachable.sum() > 1000
        for _ in range(20):
            same = (unreachable == (kinds == FrameKind.UNREACHABLE)) | (kinds == FrameKind.UNKNOWN)
            pfns = pfns[~same]
            unreachable, kinds = folios.unreachable(pfns), np.array(kinds_of(pfns))
        assert [] == pfns.tolist()
    finally:
        folios.close()


WAITER = """
import mmap, os, threading
memory = mmap.mmap(-1, 256 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for place in range(0, len(memory), 4096):
    memory[place] = 1
print("ready", flush=True)
while os.getppid() != 1:
    mmap.mmap(-1, 4096).close()
"""


def test_a_thread_that_waits_for_mmap_lock_is_seen(machine: LinuxMachine) -> None:
    """While the lock is held for long, as by a look at smaps; never where nothing else happens."""
    assert "page_table" == machine.primitive
    walker = shared_walker()
    done = threading.Event()

    def look(pid: int) -> None:
        while not done.is_set():
            Path(f"/proc/{pid}/smaps").read_bytes()

    with subprocess.Popen(["sleep", "60"]) as sleeping, open(f"/proc/{sleeping.pid}/pagemap", "rb") as pagemap:
        assert not any(walker.waited_for(pagemap.fileno()) for _ in range(100))
        sleeping.kill()
    with subprocess.Popen([sys.executable, "-c", WAITER], stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        assert b"ready\n" == waiting.stdout.readline()
        looker = threading.Thread(target=look, args=(waiting.pid,))
        looker.start()
        try:
            with open(f"/proc/{waiting.pid}/pagemap", "rb") as pagemap:
                give_up = time.monotonic() + 60
                while not walker.waited_for(pagemap.fileno()):
                    assert time.monotonic() < give_up
        finally:
            done.set()
            looker.join()
            waiting.kill()
