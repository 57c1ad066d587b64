# SPDX-License-Identifier: GPL-2.0-only
"""The memory of a workload, as the kernel shows it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdamon.arrays import U64Array
from kdamon.mm import AddressSpace
from kdamon.mm.linux.machine import LinuxMachine
from tests.support.workload import Workload

__all__ = ["EVERYTHING", "HUGE", "IN_BATCHES", "PAGE", "PAGES", "SIZE", "pages", "present", "smaps", "space_of"]

PAGE = 4096
HUGE = 1 << 21
PAGES = 4096
SIZE = PAGES * PAGE

#: Pages that may sit in a CPU's LRU batch, where advice does not find them.
IN_BATCHES = 64

EVERYTHING = np.array([[0, 1 << 47]], np.uint64)


@contextmanager
def space_of(machine: LinuxMachine, pid: int) -> Iterator[AddressSpace]:
    task = machine.get_task(pid)
    try:
        mm = task.get_mm()
        assert mm is not None
        yield mm
    finally:
        task.put()


def pages(work: Workload, first: int, last: int) -> U64Array:
    """Pages [first, last) of the workload's memory, as a range."""
    return np.array([[work.base + first * PAGE, work.base + last * PAGE]], np.uint64)


def present(work: Workload, first: int = 0, last: int = PAGES) -> npt.NDArray[np.bool_]:
    """Which pages are mapped, as the pagemap has it."""
    with open(f"/proc/{work.pid}/pagemap", "rb", buffering=0) as pagemap:
        entries = os.pread(pagemap.fileno(), 8 * (last - first), (work.base // PAGE + first) * 8)
    return np.frombuffer(entries, np.uint64) >> np.uint64(63) != 0


def smaps(work: Workload, field: str) -> int:
    """A field of the mapping at the workload's memory, bytes."""
    text = Path(f"/proc/{work.pid}/smaps").read_text(encoding="utf-8", errors="replace")
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
        start, end = (int(number, 16) for number in mapping.split(" ", 1)[0].split("-"))
        if start <= work.base < end:
            found = re.search(rf"^{field}: +([0-9]+) kB$", mapping, re.MULTILINE)
            assert found is not None
            return int(found[1]) * 1024
    raise AssertionError("the workload's memory is not mapped")
