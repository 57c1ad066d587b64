# SPDX-License-Identifier: GPL-2.0-only
"""Samples of a workload by faults, and what can be seen of them from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdamon.arrays import U64Array
from kdamon.mm import AddressSpace, Answers, Faults
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.linux.task import LinuxTask
from tests.support.workload import Pages, Workload

__all__ = ["armed", "mm_of", "open_files", "pages_of", "sample", "task_of", "wait_until", "within"]

#: Of an entry of /proc/PID/pagemap: write-protected by a userfaultfd.
_ARMED = np.uint64(1 << 57)

Act = Callable[[], object]


def open_files() -> dict[str, str]:
    """What is open in this process, by number."""
    # The list holds its own descriptor, which is gone by now.
    names = [name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]
    return {name: os.readlink(f"/proc/self/fd/{name}") for name in names}


@contextmanager
def task_of(machine: LinuxMachine, pid: int, primitive: str = "page_fault") -> Iterator[LinuxTask]:
    """The process, monitored by faults, until the context ends."""
    task = machine.get_task(pid, primitive)
    try:
        yield task
    finally:
        task.put()


def mm_of(task: LinuxTask) -> AddressSpace:
    """Its address space, which must be there."""
    mm = task.get_mm()
    assert mm is not None
    return mm


def within(work: Workload, faults: Faults) -> Faults:
    """Those in the workload's memory, by address."""
    inside = (faults["addr"] >= work.base) & (faults["addr"] < work.base + 4096 * work.pages)
    return np.sort(faults[inside], order="addr")


def pages_of(work: Workload, faults: Faults) -> list[int]:
    """Numbers of the pages that ``faults`` are in."""
    found: list[int] = ((faults["addr"] - np.uint64(work.base)) >> np.uint64(12)).tolist()
    return found


def sample(machine: LinuxMachine, mm: AddressSpace, work: Workload, pages: Pages, act: Act) -> tuple[Faults, Answers]:
    """The answers about ``pages`` while ``act`` is done."""
    addrs = work.addrs(pages)
    machine.faults()
    mm.begin_sample(addrs)
    act()
    faults = machine.faults()
    return within(work, faults), mm.end_sample(addrs)


def armed(work: Workload) -> npt.NDArray[np.intp]:
    """Numbers of the workload's pages that are armed."""
    raw = Path(f"/proc/{work.pid}/pagemap")
    with raw.open("rb", buffering=0) as pagemap:
        entries: U64Array = np.frombuffer(os.pread(pagemap.fileno(), 8 * work.pages, work.base >> 9), dtype=np.uint64)
    return np.flatnonzero(entries & _ARMED)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until ``condition`` holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
