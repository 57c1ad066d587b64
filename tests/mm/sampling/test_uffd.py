# SPDX-License-Identifier: GPL-2.0-only
"""System calls in batches, and pages that are armed one by one without a trace in the page tables."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.mm import syscall_batch
from kdamon.mm.inject.requests import launch
from kdamon.mm.proc.maps import parse
from kdamon.mm.sampling.uffd import HUGE, PRESENT, WPALLOWED, WRITTEN, ZERO, Batch, Pages, Userfaultfd

pytestmark = pytest.mark.real


PAGES = 2048
PAGE = 4096
HUGE_PAGE = 1 << 21
NR_DUP = 32
NR_NANOSLEEP = 35


class _Memory:
    """Untouched private memory of this process."""

    def __init__(self, size: int, advice: int = mmap.MADV_NOHUGEPAGE) -> None:
        self.memory = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(advice)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.offset = -start % HUGE_PAGE
        self.base = start + self.offset
        self.size = size
        self.addrs: U64Array = np.uint64(self.base) + np.arange(0, size, PAGE, dtype=np.uint64)
        self.range: U64Array = np.array([[start, start + size + HUGE_PAGE]], dtype=np.uint64)

    def write(self, page: int) -> None:
        self.memory[self.offset + page * PAGE] = 1

    def read(self, page: int) -> int:
        return self.memory[self.offset + page * PAGE]


@pytest.fixture(name="table")
def _table() -> Iterator[Pages]:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    yield Pages(fd)
    os.close(fd)


@pytest.fixture(name="fault")
def _fault() -> Iterator[Userfaultfd]:
    found = Userfaultfd.own()
    yield found
    found.close()


def _page_tables() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmPTE"))


@pytest.mark.parametrize("in_machine_code", [True, False])
def test_a_batch_gives_each_calls_result(monkeypatch: pytest.MonkeyPatch, in_machine_code: bool) -> None:
    """Errors are negative numbers of theirs; executable memory changes nothing but the speed."""
    if in_machine_code:
        assert syscall_batch.runner() is not None
    else:
        monkeypatch.setattr(syscall_batch, "runner", lambda: None)
    read, write = os.pipe()
    bad = batch(1 << 20, 3).run(0, 3).tolist()
    fds = batch(read, 3).run(0, 3).tolist()
    assert [-errno.EBADF] * 3 == bad
    assert 3 == len(set(fds))
    assert {os.readlink(f"/proc/self/fd/{fd}") for fd in fds} == {os.readlink(f"/proc/self/fd/{read}")}
    for fd in (read, write, *fds):
        os.close(fd)


def batch(fd: int, count: int) -> Batch:
    """As many calls of dup()."""
    calls = Batch(NR_DUP, fd, 0)
    calls.prepare(np.zeros(count, dtype=np.uint64))
    return calls


def test_a_part_of_a_batch_may_be_made() -> None:
    """None at all, too."""
    calls = batch(1 << 20, 5000)
    for first, end in ((0, 0), (0, 5000), (7, 8), (4000, 5000), (9, 9)):
        assert [-errno.EBADF] * (end - first) == calls.run(first, end).tolist()


def test_other_threads_run_during_a_batch() -> None:
    """The interpreter is not held."""
    milliseconds = (ctypes.c_long * 2)(0, 20_000_000)
    stop = threading.Event()
    turns = [0]

    def turn() -> None:
        while not stop.wait(0.001):
            turns[0] += 1

    thread = threading.Thread(target=turn)
    thread.start()
    before = turns[0]
    calls = Batch(NR_NANOSLEEP, ctypes.addressof(milliseconds), 0)
    calls.prepare(np.zeros(10, dtype=np.uint64))
    calls.run(0, 10)
    after = turns[0]
    stop.set()
    thread.join()
    assert after > before


def test_pages_that_are_there_are_armed(table: Pages, fault: Userfaultfd) -> None:
    """Until they are written or disarmed; reading leaves them armed."""
    own = _Memory(PAGES * PAGE)
    for page in range(0, PAGES, 2):
        own.write(page)
    assert fault.register(own.range)[0].all()
    armed = table.arm(own.addrs)
    assert armed[::2].all()
    assert not armed[1::2].any()
    written = np.arange(0, PAGES, 4)
    for page in written.tolist():
        own.write(page)
        own.read(page + 2)
    categories = table.categories(own.addrs)
    assert np.array_equal(np.flatnonzero((categories & np.uint64(PRESENT | WRITTEN)) == PRESENT | WRITTEN), written)
    assert np.array_equal(np.flatnonzero(table.armed(own.addrs)), written + 2)
    fault.disarm(own.addrs[::2])
    assert {PRESENT | WRITTEN | WPALLOWED} == set(table.categories(own.addrs[::2]).tolist())


def test_arming_allocates_no_page_tables(table: Pages, fault: Userfaultfd) -> None:
    """A page that is not there stays so, with the tables that it would be in."""
    own = _Memory(64 * HUGE_PAGE)
    fault.register(own.range)
    sparse = own.addrs[:: HUGE_PAGE // PAGE]
    assert not table.arm(sparse).any()
    before = _page_tables()
    for _ in range(3):
        assert not table.arm(sparse).any()
        fault.disarm(sparse)
    assert _page_tables() - before < 64 * 4 // 2
    assert not (table.categories(sparse) & np.uint64(PRESENT)).any()


def test_the_zero_page_can_be_armed(table: Pages, fault: Userfaultfd) -> None:
    """It is there after a read, and a write then gives the process a page."""
    own = _Memory(PAGE)
    fault.register(own.range)
    own.read(0)
    assert table.arm(own.addrs).all()
    assert [PRESENT | WPALLOWED | ZERO] == table.categories(own.addrs).tolist()
    own.write(0)
    assert [PRESENT | WPALLOWED | WRITTEN] == table.categories(own.addrs).tolist()


def test_huge_pages_are_neither_armed_nor_split(table: Pages, fault: Userfaultfd) -> None:
    """Not by arming, not by a write that follows, and not when it ends."""
    own = _Memory(4 * HUGE_PAGE, mmap.MADV_HUGEPAGE)
    for page in range(0, 4 * HUGE_PAGE // PAGE, 8):
        own.write(page)
    huge = (table.categories(own.addrs) & np.uint64(HUGE)) != 0
    if not huge.any():
        pytest.skip("kernel lacks: transparent huge pages, or a free one")
    other = Userfaultfd.own()
    other.register(own.range)
    assert not table.arm(own.addrs)[huge].any()
    for page in range(4 * HUGE_PAGE // PAGE):
        own.write(page)
    assert not table.armed(own.addrs)[huge].any()
    other.unregister(own.range)
    other.close()
    assert ((table.categories(own.addrs) & np.uint64(HUGE)) != 0)[huge].all()


def test_special_mappings_are_refused_alone(fault: Userfaultfd) -> None:
    """Those before and after [vdso] are registered."""
    own = _Memory(PAGE)
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    vdso = next(line.split()[0].split("-") for line in lines if line.endswith("[vdso]"))
    special = [[int(x, 16) for x in vdso]]
    ranges = np.array([*own.range.tolist(), *special, *own.range.tolist()], dtype=np.uint64)
    assert [True, False, True] == fault.register(ranges)[0].tolist()


def test_what_is_not_registered_is_not_armed(table: Pages, fault: Userfaultfd) -> None:
    """Its pages count as present all the same."""
    own = _Memory(PAGE)
    own.write(0)
    assert not table.arm(own.addrs).any()
    # Linux 7.3 says of registered mappings alone what was written.
    assert table.categories(own.addrs).tolist() in ([PRESENT | WRITTEN], [PRESENT])


def test_closing_takes_the_protection_off_and_leaves_the_mappings(table: Pages) -> None:
    """Piece by piece; no mapping stays cut."""
    own = _Memory(48 * HUGE_PAGE)
    for page in range(0, 48 * HUGE_PAGE // PAGE, 64):
        own.write(page)
    maps = Path("/proc/self/maps").read_bytes()
    before = table.categories(own.addrs)
    fault = Userfaultfd.own()
    fault.register(own.range)
    assert table.arm(own.addrs).any()
    fault.unregister(own.range)
    fault.close()
    assert np.array_equal(table.categories(own.addrs), before)
    assert [line for line in maps.splitlines() if b"%x-" % own.range[0, 0] in line] == [
        line for line in Path("/proc/self/maps").read_bytes().splitlines() if b"%x-" % own.range[0, 0] in line
    ]


def test_an_address_space_that_ended_is_told() -> None:
    """By exec(), here: a holder of the old userfaultfd must not take it for the new one's."""
    command = launch(["sh", "-c", "read line; exec sleep 60"], stdin=subprocess.PIPE)
    try:
        assert command.fd is not None, command.refusal
        assert command.stdin is not None
        fault = Userfaultfd(command.fd)
        ranges = parse(Path(f"/proc/{command.pid}/maps").read_bytes())
        assert fault.register(ranges)[0].any()
        command.stdin.write(b"\n")
        command.stdin.close()
        while Path(f"/proc/{command.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        with pytest.raises(ProcessLookupError):
            fault.register(parse(Path(f"/proc/{command.pid}/maps").read_bytes()))
        assert not fault.alive()
        fault.unregister(ranges)
        fault.close()
    finally:
        command.kill()
        command.wait()
