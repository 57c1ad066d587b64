# SPDX-License-Identifier: GPL-2.0-only
"""A process whose first thread ended goes on by the others, and so does what can monitor it."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.mm import OLD, YOUNG, AddressSpace
from kdamon.mm.inject.requests import inject_madvise
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.linux.task import LinuxTask
from kdamon.mm.mman import MADV_NOHUGEPAGE
from kdamon.mm.proc.maps import containing
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.sampling.uffd import has_userfaultfd

pytestmark = pytest.mark.real


PAGES = 64

#: A second thread writes each page when it is asked to. The first one ends, at once or when "end" comes.
TARGET = """
import ctypes, mmap, os, sys, threading
libc = ctypes.CDLL(None)
memory = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for page in range(64):
    memory[page * 4096] = 1
end = threading.Event()
def write():
    print(base, threading.get_native_id(), flush=True)
    for line in sys.stdin:
        if line == "end\\n":
            end.set()
        if line == "userfaultfd\\n":
            assert libc.syscall(323, os.O_CLOEXEC | 1) >= 0
        for page in range(64):
            memory[page * 4096] = 2
        print(flush=True)
    os._exit(0)
threading.Thread(target=write).start()
if sys.argv[1] == "later":
    end.wait()
# The first thread alone.
libc.syscall(60, 0)
"""


class Target:
    """A process that loses its first thread."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.base, self.thread = map(int, process.stdout.readline().split())
        self.pid = process.pid

    def order(self, what: str) -> None:
        """Let it do ``what``, and write its pages."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        assert "\n" == self._process.stdout.readline()

    def wait_for_the_end_of_the_first_thread(self) -> None:
        """It is a zombie then."""
        deadline = time.monotonic() + 20
        while "State:\tZ" not in Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8"):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def addrs(self) -> U64Array:
        """The pages."""
        found: U64Array = np.uint64(self.base) + np.arange(PAGES, dtype=np.uint64) * np.uint64(4096)
        return found


@pytest.fixture(name="start")
def _start() -> Iterator[Callable[[str], Target]]:
    started = []

    def start(when: str) -> Target:
        words = [sys.executable, "-c", TARGET, when]
        started.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        target = Target(started[-1])
        if when == "now":
            target.wait_for_the_end_of_the_first_thread()
        return target

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _mm(task: LinuxTask) -> AddressSpace:
    mm = task.get_mm()
    assert mm is not None
    return mm


def test_its_memory_is_that_of_a_living_thread(start: Callable[[str], Target]) -> None:
    """Mappings and pages, by the process's number."""
    target = start("now")
    directory = os.open(f"/proc/{target.pid}", os.O_RDONLY | os.O_DIRECTORY)
    files = ProcessFiles(directory)
    try:
        assert files.alive()
        assert containing(files.mappings.known().ranges, target.base) is not None
    finally:
        files.close()
        os.close(directory)


def test_faults_of_it_are_seen(faulting: LinuxMachine, start: Callable[[str], Target]) -> None:
    """By the thread that is left, from the start and after the first one ended in the middle."""
    for when in ("now", "later"):
        target = start(when)
        task = faulting.get_task(target.pid, "page_fault")
        try:
            for order in ("write", "end", "write"):
                mm = _mm(task)
                addrs = target.addrs()
                mm.begin_sample(addrs)
                target.order(order)
                faults = faulting.faults()
                inside = np.isin(faults["addr"] & ~np.uint64(4095), target.addrs())
                assert PAGES == len(np.unique(faults["addr"][inside] & ~np.uint64(4095)))
                assert {target.pid} == set(faults["pid"][inside].tolist())
                if faulting.attributes_faults:
                    assert {target.thread} == set(faults["tid"][inside].tolist())
                mm.end_sample(addrs)
                if order == "end":
                    target.wait_for_the_end_of_the_first_thread()
            assert task.valid()
            assert task.has_thread(target.thread)
            assert not task.has_thread(target.pid)
            assert not task.has_thread(1)
        finally:
            task.put()


def test_accessed_bits_are_refused_with_the_reason(machine: LinuxMachine, start: Callable[[str], Target]) -> None:
    """The kernel clears them by the first thread alone, also where a living one is named."""
    target = start("now")
    for number in (target.pid, target.thread):
        with pytest.raises(OSError, match=r"its first thread ended.*use page_fault") as caught:
            machine.get_task(number)
        assert errno.EOPNOTSUPP == caught.value.errno


def test_accesses_are_unknown_once_it_ended(
    machine: LinuxMachine, start: Callable[[str], Target], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither accessed nor cold, and that is said once."""
    target = start("later")
    task = machine.get_task(target.pid)
    try:
        mm = _mm(task)
        addrs = target.addrs()
        mm.begin_sample(addrs)
        target.order("write")
        assert (mm.end_sample(addrs) == YOUNG).sum() > PAGES / 2
        target.order("end")
        target.wait_for_the_end_of_the_first_thread()
        mm.begin_sample(addrs)
        target.order("write")
        assert not np.isin(mm.end_sample(addrs), (OLD, YOUNG)).any()
        with caplog.at_level(logging.WARNING):
            deadline = time.monotonic() + 20
            while not caplog.records and time.monotonic() < deadline:
                assert task.get_mm() is mm
                time.sleep(0.02)
            time.sleep(0.3)
            assert task.get_mm() is mm
        assert [True] == ["its first thread ended" in record.message for record in caplog.records]
    finally:
        task.put()


def test_a_living_thread_advises(start: Callable[[str], Target]) -> None:
    """What a process can only ask for itself."""
    target = start("now")
    end = target.base + 4096 * PAGES
    assert 1 == inject_madvise(target.pid, [(target.base, end)], MADV_NOHUGEPAGE, lambda: True)


def test_its_own_userfaultfd_is_found(start: Callable[[str], Target]) -> None:
    """Its open files are those of a living thread."""
    target = start("now")
    assert not has_userfaultfd(target.pid)
    target.order("userfaultfd")
    assert has_userfaultfd(target.pid)
