# SPDX-License-Identifier: GPL-2.0-only
"""Monitoring by faults where they may not be recorded: only a remaining effect of an access counts as one."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.lib.syscalls import syscall
from kdamon.mm import OLD, UNKNOWN
from kdamon.mm.actions.madvise import Adviser
from kdamon.mm.bpf.vma_reader import vma_reader
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.mman import MADV_COLLAPSE
from kdamon.mm.proc import maps
from kdamon.mm.ranges import inside
from tests.support.capabilities import needs_anonymous_huge_pages, needs_read_faults, needs_write_faults_alone
from tests.support.process_memory import smaps
from tests.support.sampling import mm_of, pages_of, sample, task_of, wait_until
from tests.support.workload import Workload

pytestmark = pytest.mark.real


PAGES = 1024
EVERY = np.arange(PAGES)
_NR_CAPGET, _NR_CAPSET = 125, 126
#: CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF.
_RECORDING: Final = 1 << 21 | 1 << 38 | 1 << 39


@contextmanager
def _without(capabilities: int) -> Iterator[None]:
    """This thread, for a while without ``capabilities``; it may take them back."""
    header = ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0))
    before = ctypes.create_string_buffer(24)
    assert 0 == syscall(_NR_CAPGET, header, before)
    words = list(struct.unpack("<6I", before.raw))
    words[0] &= ~capabilities & 0xFFFFFFFF
    words[3] &= ~(capabilities >> 32)
    assert 0 == syscall(_NR_CAPSET, header, ctypes.create_string_buffer(struct.pack("<6I", *words)))
    try:
        yield
    finally:
        assert 0 == syscall(_NR_CAPSET, header, before)


@pytest.fixture
def blind(faulting: LinuxMachine) -> Iterator[LinuxMachine]:
    """A machine that cannot record faults; ``faulting``: page_fault works at all."""
    # It is made once for the whole process, and its absence would be remembered.
    vma_reader()
    with _without(_RECORDING):
        found = linux_machine("page_fault")
        assert not found.attributes_faults
        yield found
        found.close()


def _mapped(pid: int) -> U64Array:
    """All pages of all mappings of less than 16 MiB."""
    vmas = maps.parse(Path(f"/proc/{pid}/maps").read_bytes())
    parts = [np.arange(start, end, 4096, dtype=np.uint64) for start, end in vmas.tolist() if end - start < 1 << 24]
    return np.concatenate(parts)


@pytest.mark.parametrize("kind", ["anon", "shmem", "private", "readonly", "thp"])
def test_a_process_that_sleeps_accesses_nothing(blind: LinuxMachine, program: Path, directory: Path, kind: str) -> None:
    """None of its pages: code, read-only data, what the loader wrote before it became read-only, stack, [vdso]."""
    data = directory / "asleep"
    data.write_bytes(bytes(4096 * PAGES))
    with Workload([program], kind, PAGES, str(data)) as work, task_of(blind, work.pid) as task:
        mm, pages = mm_of(task), _mapped(work.pid)
        found = maps.Mappings.parse(Path(f"/proc/{work.pid}/maps").read_bytes())
        spared = inside(found.ranges[found.files & ~found.writable], pages)
        # It may be on its way from its last answer, which writes to its stack.
        wait_until(lambda: "State:\tS" in Path(f"/proc/{work.pid}/status").read_text(errors="replace"))
        for _ in range(3):
            mm.begin_sample(pages)
            assert 0 == len(blind.faults())
            assert {OLD} == set(mm.end_sample(pages)[spared].tolist())


@needs_write_faults_alone
def test_writes_are_told_and_no_reads(blind: LinuxMachine, program: Path) -> None:
    """Once each, and what was not written is OLD."""
    with Workload([program], "anon", PAGES) as work, task_of(blind, work.pid) as task:

        def act() -> None:
            work.order("r", EVERY)
            work.order("w", EVERY[::3])

        faults, answers = sample(blind, mm_of(task), work, EVERY, act)
        assert EVERY[::3].tolist() == pages_of(work, faults)
        assert faults["write"].all()
        assert [OLD] * PAGES == answers.tolist()


@pytest.mark.parametrize(("kind", "sure"), [("untouched", True), ("shared", False)])
def test_first_touches_are_told(blind: LinuxMachine, program: Path, kind: str, sure: bool) -> None:
    """A read of anonymous memory gives the zero page; of shared memory it is unknown."""
    with Workload([program], kind, PAGES) as work, task_of(blind, work.pid) as task:

        def act() -> None:
            work.order("r", range(100))
            work.order("w", range(200, 300))

        faults, answers = sample(blind, mm_of(task), work, EVERY, act)
        assert [*range(100), *range(200, 300)] == pages_of(work, faults)
        assert [False] * 100 + [sure] * 100 == faults["write"].tolist()
        assert [OLD] * PAGES == answers.tolist()


@needs_read_faults
def test_accesses_are_told_where_reads_fault(blind: LinuxMachine, program: Path) -> None:
    """Once each; what they were is unknown, and what was not accessed is OLD."""
    with Workload([program], "anon", PAGES) as work, task_of(blind, work.pid) as task:

        def act() -> None:
            work.order("r", EVERY[:100])
            work.order("w", EVERY[50:200])

        faults, answers = sample(blind, mm_of(task), work, EVERY, act)
        assert EVERY[:200].tolist() == pages_of(work, faults)
        assert not faults["write"].any()
        assert [OLD] * PAGES == answers.tolist()


@needs_read_faults
@needs_anonymous_huge_pages
def test_accesses_to_huge_pages_are_told_where_reads_fault(blind: LinuxMachine, program: Path) -> None:
    """At each sampled page, once."""
    with Workload([program], "thp", 1024) as work, task_of(blind, work.pid) as task:
        if smaps(work, "AnonHugePages") != 1024 * 4096:
            pytest.skip("kernel lacks: free huge pages")
        faults, answers = sample(blind, mm_of(task), work, [7, 300, 600], lambda: work.order("r", [100]))
        assert [7, 300] == pages_of(work, faults)
        assert [OLD] * 3 == answers.tolist()


def _collapse(work: Workload) -> None:
    pidfd = os.pidfd_open(work.pid)
    try:
        Adviser(pidfd).advise_each(
            np.array([work.base], np.uint64), np.array([4096 * PAGES], np.uint64), MADV_COLLAPSE, lambda addr: addr
        )
    finally:
        os.close(pidfd)


def _replace(kind: str) -> Callable[[Workload], None]:
    def act(work: Workload) -> None:
        work.order("m")
        work.order(kind, EVERY[::2])

    return act


@pytest.mark.parametrize(
    ("act", "unknown"),
    [
        (lambda work: work.order("p"), 0),
        (lambda work: work.order("f", EVERY), 0),
        (lambda work: work.order("d"), 0),
        (lambda work: work.order("u"), 0),
        (lambda work: work.order("M"), PAGES),
        (_replace("r"), PAGES // 2),
        (_replace("w"), PAGES // 2),
    ],
    ids=["mprotect", "fork", "MADV_DONTNEED", "munmap", "mremap", "another mapping, read", "another mapping, written"],
)
@pytest.mark.parametrize("kind", ["anon", "shmem"])
def test_protection_that_went_otherwise_is_no_write(
    blind: LinuxMachine, program: Path, kind: str, act: Callable[[Workload], object], unknown: int
) -> None:
    """What is in a mapping that is not registered may be there without an access, as mremap() moves it."""
    with Workload([program], kind, PAGES) as work, task_of(blind, work.pid) as task:
        faults, answers = sample(blind, mm_of(task), work, EVERY, lambda: act(work))
        assert [] == pages_of(work, faults)
        assert unknown == np.count_nonzero(answers == UNKNOWN)
        assert PAGES - unknown == np.count_nonzero(answers == OLD)


def test_what_comes_where_nothing_was_mapped_is_unknown(blind: LinuxMachine, program: Path) -> None:
    """Until the mapping is registered."""
    with Workload([program], "anon", PAGES) as work, task_of(blind, work.pid) as task:
        work.order("u")
        faults, answers = sample(blind, mm_of(task), work, EVERY, lambda: _replace("w")(work))
        assert [] == pages_of(work, faults)
        assert PAGES // 2 == np.count_nonzero(answers == UNKNOWN)
        mm_of(task).vmas()
        faults, _ = sample(blind, mm_of(task), work, EVERY, lambda: work.order("w", EVERY))
        assert EVERY.tolist() == pages_of(work, faults)


@pytest.mark.parametrize("kind", ["small", "untouched"])
def test_a_collapse_is_no_access(blind: LinuxMachine, program: Path, kind: str) -> None:
    """Neither of what was there, nor of what came into being by it."""
    with Workload([program], kind, PAGES) as work, task_of(blind, work.pid) as task:
        faults, _ = sample(blind, mm_of(task), work, EVERY, lambda: _collapse(work))
        assert [] == pages_of(work, faults)


def test_two_monitors_do_not_take_each_others_samples_for_writes(blind: LinuxMachine, program: Path) -> None:
    """The one's pages are disarmed while the other's sample goes on."""
    with (
        Workload([program], "anon", PAGES) as work,
        task_of(blind, work.pid) as first,
        task_of(blind, work.pid) as second,
    ):
        addrs = work.addrs(EVERY)
        mm_of(first).begin_sample(addrs)
        others = addrs[::2]
        mm_of(second).begin_sample(others)
        mm_of(second).end_sample(others)
        assert [] == pages_of(work, blind.faults())
        work.order("w", EVERY[:5])
        assert EVERY[:5].tolist() == pages_of(work, blind.faults())
