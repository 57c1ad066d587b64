# SPDX-License-Identifier: GPL-2.0-only
"""Processes with many mappings, or with many addresses: what monitoring costs depends on neither."""

from __future__ import annotations

import errno
import os
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.mm.bpf.vma_reader import Found, VmaReader, vma_reader
from kdamon.mm.bpf.walker import made_walker
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.proc import maps
from kdamon.mm.proc.process_files import ProcessFiles
from tests.support.sampling import armed, mm_of, pages_of, sample, task_of, wait_until
from tests.support.workload import Workload

pytestmark = pytest.mark.real


MANY = 5000
PAGES = 1024
EVERY = np.arange(PAGES)


def _files(pid: int) -> ProcessFiles:
    directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return ProcessFiles(directory)
    finally:
        os.close(directory)


def test_many_are_read_in_pieces(program: Path) -> None:
    """The list of before holds until the new one is complete."""
    with Workload([program], "many", MANY) as work:
        files = _files(work.pid)
        before = files.mappings.known()
        assert MANY <= len(before)
        work.base = int.from_bytes(work.order("n", answer=8), "little")
        assert files.mappings.now() is before
        steps = 0
        while files.mappings.under_way:
            assert files.mappings.known() is before
            files.mappings.go_on(500)
            steps += 1
        assert MANY // 500 - 3 <= steps <= MANY // 500 + 1
        after = files.mappings.known().ranges
        assert maps.containing(after, work.base) is not None
        assert np.array_equal(after, maps.parse(Path(f"/proc/{work.pid}/maps").read_bytes()))
        files.close()


def test_few_are_read_at_once(program: Path) -> None:
    """A caller gets them as they are."""
    with Workload([program], "anon", PAGES) as work:
        files = _files(work.pid)
        files.mappings.known()
        work.base = int.from_bytes(work.order("n", answer=8), "little")
        assert maps.containing(files.mappings.now().ranges, work.base) is not None
        files.close()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("kind", "pages"), [("anon", PAGES), ("many", MANY)])
def test_those_that_did_not_change_are_not_read_again(program: Path, kind: str, pages: int) -> None:
    """The kernel shows that; the list stays the same, until the next change."""
    with Workload([program], kind, pages) as work:
        files = _files(work.pid)
        mappings = files.mappings
        walker = made_walker()
        if walker is None or walker.changes(files.pagemap) is None:
            pytest.skip("this kernel does not count changes of the mappings")

        def read() -> maps.Mappings:
            mappings.now()
            while mappings.under_way:
                mappings.go_on(500)
            return mappings.known()

        def kept() -> bool:
            # The kernel itself changes mappings to make huge pages, but not all the time.
            before, looks = read(), mappings.looks
            work.order("w", np.array([1, 3]))
            after = mappings.now()
            assert mappings.under_way or looks + 1 == mappings.looks
            return after is before and not mappings.under_way

        wait_until(kept)
        work.base = int.from_bytes(work.order("n", answer=8), "little")
        assert maps.containing(read().ranges, work.base) is not None
        mappings.begin(anyway=True)
        assert mappings.under_way
        files.close()


def test_a_process_that_is_busy_with_its_mappings_is_read_as_text(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program does not wait for the mmap_lock, but the kernel does."""
    if vma_reader() is None:
        pytest.skip("no BPF program can read mappings here")
    with Workload([program], "many", MANY) as work:
        files = _files(work.pid)
        files.mappings.known()
        files.mappings.begin(anyway=True)
        monkeypatch.setattr(VmaReader, "read", lambda *_: (np.empty((0, 5), np.uint64), Found.BUSY))
        steps = 0
        while files.mappings.under_way:
            files.mappings.go_on(2 * MANY)
            steps += 1
        assert 1 < steps < 32
        assert np.array_equal(files.mappings.known().ranges, maps.parse(Path(f"/proc/{work.pid}/maps").read_bytes()))
        files.close()


def test_few_are_read_at_once_though_the_lock_is_taken(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then as text, for which the kernel waits."""
    if vma_reader() is None:
        pytest.skip("no BPF program can read mappings here")
    with Workload([program], "anon", PAGES) as work:
        files = _files(work.pid)
        files.mappings.known()
        work.base = int.from_bytes(work.order("n", answer=8), "little")
        attempts = []

        def busy(*arguments: object) -> tuple[U64Array, Found]:
            attempts.append(arguments)
            return np.empty((0, 5), np.uint64), Found.BUSY

        monkeypatch.setattr(VmaReader, "read", busy)
        assert maps.containing(files.mappings.now().ranges, work.base) is not None
        assert 1 == len(attempts)
        files.close()


def test_what_an_address_space_is_known_by(program: Path) -> None:
    """A child of vfork() is in its parent's until it calls exec()."""
    with Workload([program], "anon", PAGES) as work:
        parent = _files(work.pid)
        work.send("v")
        children = Path(f"/proc/{work.pid}/task/{work.pid}/children")
        wait_until(lambda: children.read_text(encoding="ascii") != "")
        child = int(children.read_text(encoding="ascii"))
        try:
            borrowed = _files(child)
            assert parent.same(borrowed)
            assert child == int.from_bytes(work.receive(4), "little")
            own = _files(child)
            assert borrowed.alive()
            assert not borrowed.same(own)
        finally:
            os.kill(child, signal.SIGKILL)
        for files in (parent, borrowed, own):
            files.close()


@pytest.mark.parametrize("primitive", ["page_table", "page_fault"])
def test_looking_whether_a_process_left_its_memory_reads_no_mappings(
    faulting: LinuxMachine, program: Path, primitive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at ten times a second."""
    with Workload([program], "anon", PAGES) as work:
        try:
            task = faulting.get_task(work.pid, primitive)
        except OSError as error:
            assert error.errno in {errno.EPERM, errno.EOPNOTSUPP}
            pytest.skip(str(error.strerror))
        mm = mm_of(task)

        def refuse(_self: object, _count: int) -> None:
            raise AssertionError("the mappings were read")

        monkeypatch.setattr(maps.MapsReader, "step", refuse)
        monkeypatch.setattr(maps.VmasReader, "step", refuse)
        rechecks = []
        same = type(mm).same  # type: ignore[attr-defined]

        def counted(self: object, files: ProcessFiles) -> bool:
            rechecks.append(files)
            return bool(same(self, files))

        monkeypatch.setattr(type(mm), "same", counted)

        def rechecked() -> bool:
            assert task.get_mm() is mm
            return len(rechecks) > 3

        wait_until(rechecked)
        monkeypatch.undo()
        task.put()


def test_new_ones_among_many_are_monitored_in_the_end(faulting: LinuxMachine, program: Path) -> None:
    """Piece by piece with each sample; nothing stays armed, nor registered."""
    with Workload([program], "many", MANY) as work:
        with task_of(faulting, work.pid) as task:
            mm = mm_of(task)
            work.base = int.from_bytes(work.order("n", answer=8), "little")
            mm.vmas()
            pages = np.arange(MANY)

            def monitored() -> bool:
                faults, _ = sample(faulting, mm, work, pages, lambda: work.order("w", pages))
                return pages_of(work, faults) == pages.tolist()

            wait_until(monitored)
            mm.begin_sample(work.addrs(pages))
            assert pages.tolist() == armed(work).tolist()
        assert not len(armed(work))
        flags = (line.split() for line in Path(f"/proc/{work.pid}/smaps").read_text(encoding="utf-8").splitlines())
        assert not any("uw" in words for words in flags if words[0] == "VmFlags:")


def test_a_mapping_in_the_place_of_another_is_found(faulting: LinuxMachine, program: Path) -> None:
    """It begins and ends where that did, among many that are not looked at each time."""
    with Workload([program], "anon", PAGES) as work, task_of(faulting, work.pid) as task:
        mm = mm_of(task)
        for _ in range(3):
            work.order("m")
            work.order("w", EVERY)
            mm.vmas()
            faults, _ = sample(faulting, mm, work, EVERY, lambda: work.order("w", EVERY))
            assert EVERY.tolist() == pages_of(work, faults)


@pytest.mark.parametrize("action", ["cold", "pageout", "willneed"])
def test_reserved_addresses_cost_nothing(faulting: LinuxMachine, program: Path, action: str) -> None:
    """4 TiB, of which 4 MiB are used: neither what is done to all of them, nor the end, needs memory for them."""
    with Workload([program], "reserved", PAGES) as work:
        task = faulting.get_task(work.pid, "page_fault")
        try:
            everything = np.array([[4096, 1 << 47]], np.uint64)
            mm = mm_of(task)
            mm.advise(action, everything)  # what is made once for the machine
            tracemalloc.start()
            mm.advise(action, everything)
            sample(faulting, mm, work, EVERY, lambda: work.order("w", EVERY))
        finally:
            task.put()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20
        assert not len(armed(work))
