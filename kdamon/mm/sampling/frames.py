# SPDX-License-Identifier: GPL-2.0-only
"""The page frames of this machine, and which process maps each: /proc/PID/pagemap and /proc/kpageflags.

They replace the kernel's reverse mappings, see :mod:`kdamon.mm.sampling.physical`. An update reads the page table
entries of every process that this one may read.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U8Array, U64Array
from kdamon.kernel import PAGE_SIZE, PMD_SIZE
from kdamon.lib.file_limit import files_ran_out, too_many_files
from kdamon.lib.once import warn_once
from kdamon.lib.rights import refusal
from kdamon.mm import Answers, PageFilter, Task
from kdamon.mm.actions.page_samples import PageSamples
from kdamon.mm.apart.looked_at import looking_at
from kdamon.mm.bpf.walker import Walker
from kdamon.mm.mmap_lock import stays_locked
from kdamon.mm.proc.kpageflags import Folios
from kdamon.mm.proc.pagemap import Pagemap, exclusive_frames
from kdamon.mm.proc.process_files import ProcessFiles

__all__ = ["LinuxFrames", "runs_of_pages"]

log = logging.getLogger("kdamon")

#: Processes that an update reads, and pages of page tables that it reads: 64 GiB.
_MAX_PROCESSES: Final = 4096
_MAX_PAGES: Final = 1 << 24
#: Page tables that are read at once.
_BLOCKS: Final = 8
#: Mappings that are read at once.
_MAPPINGS: Final = 512
#: Seconds that some thread waits for the lock of a process's memory before the lock counts as held for ever.
_LOCKED: Final = 0.02
#: Processes that cannot be read and are named in the log.
_NAMED: Final = 10


def runs_of_pages(pages: U64Array, pfns: U64Array) -> U64Array:
    """The runs that pages make up, see :meth:`kdamon.mm.sampling.physical.Frames.runs`.

    :param pages: addresses, ascending, shape (n,).
    :param pfns: their page frames; 0 is left out.
    """
    here = np.flatnonzero(pfns)
    pages, pfns = pages[here], pfns[here]
    if not len(here):
        return np.empty((0, 3), np.uint64)
    apart = (pages[1:] != pages[:-1] + np.uint64(PAGE_SIZE)) | (pfns[1:] != pfns[:-1] + np.uint64(1))
    first = np.append(0, np.flatnonzero(apart) + 1)
    counts = np.diff(np.append(first, len(pages))).astype(np.uint64)
    return np.column_stack((pages[first], pfns[first], counts))


class LinuxFrames:
    """The page frames of this machine: /proc/PID/pagemap of every process and /proc/kpageflags.

    :param walker: skips memory that is not mapped, and identifies address spaces.
    :param open_task: opens a process to take samples of it.
    :param left_out: whether a process must not be read.
    :raises OSError: EPERM page flags may not be read.
    """

    def __init__(
        self, walker: Walker, open_task: Callable[[int], Task], left_out: Callable[[int], bool] = lambda pid: False
    ) -> None:
        self._walker = walker
        self._open_task = open_task
        self._left_out = left_out
        self._locked: set[int] = set()
        self._zones: list[tuple[int, int, int]] | None = None
        self._folios = Folios()
        try:
            self._folios.unreachable(np.zeros(1, np.uint64))
            self._own_pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._folios.close()
            raise

    def runs(self) -> Generator[tuple[int, U64Array, int]]:
        """See :meth:`kdamon.mm.sampling.physical.Frames.runs`."""
        seen: set[int] = set()
        pages = 0
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
            if len(seen) >= _MAX_PROCESSES or pages >= _MAX_PAGES:
                warn_once(
                    "physical memory: "
                    + f"only the page frames of {len(seen)} processes are known: there are too many processes"
                )
                return
            if self._left_out(pid):
                continue
            looking_at(pid)
            try:
                with _Pages(pid) as process:
                    mm = self._walker.mm(process.files.pagemap)
                    if mm in seen:
                        # A child of vfork(), which runs in its parent's memory.
                        continue
                    seen.add(mm)
                    if self._stays_locked(pid, process.files.pagemap):
                        yield pid, np.empty((0, 3), np.uint64), 0
                        continue
                    for runs, count in process.runs():
                        pages += count
                        yield pid, runs, count
                        looking_at(pid)
            except OSError as error:
                if files_ran_out(error):
                    # Its memory would look idle until the next update.
                    raise too_many_files(error, f"the memory of process {pid} cannot be read") from error

    def _stays_locked(self, pid: int, pagemap: int) -> bool:
        """Whether others wait for the lock of a process's memory, as they may do for ever."""
        # If the lock was held the last time, do not wait again.
        if not stays_locked(pagemap, 0 if pid in self._locked else _LOCKED):
            self._locked.discard(pid)
            return False
        if pid not in self._locked:
            self._locked.add(pid)
            say_left_out(pid)
        return True

    def task(self, pid: int) -> Task:
        """See :meth:`kdamon.mm.sampling.physical.Frames.task`."""
        return self._open_task(pid)

    def kinds(self, pfns: U64Array) -> U8Array:
        """See :meth:`kdamon.mm.sampling.physical.Frames.kinds`."""
        return self._walker.frame_kinds(self._own_pagemap, pfns)

    def unreachable(self, pfns: U64Array) -> Mask:
        """See :meth:`kdamon.mm.sampling.physical.Frames.unreachable`."""
        return self._folios.unreachable(pfns)

    def page_match(self, pfns: U64Array, filters: Sequence[PageFilter], answers: Answers | None) -> Mask:
        """See :meth:`kdamon.mm.sampling.physical.Frames.page_match`."""
        if not filters:
            return np.zeros((0, len(pfns)), np.bool_)
        return PageSamples.of_frames(pfns).match(filters, answers)

    def ram(self) -> U64Array:
        """See :meth:`kdamon.mm.PhysicalMemory.ram`: what /proc/iomem calls System RAM."""
        found = _system_ram(Path("/proc/iomem").read_text(encoding="utf-8", errors="replace"))
        if not len(found):
            raise refusal(
                "the addresses of memory, from /proc/iomem, need",
                "seeing it",
                "CAP_SYS_ADMIN",
                otherwise="name the addresses",
            )
        return found

    def zones(self) -> list[tuple[int, int, int]]:
        """See :meth:`kdamon.mm.sampling.physical.Frames.zones`."""
        if self._zones is None:
            self._zones = _zones(Path("/proc/zoneinfo").read_text(encoding="ascii"))
        return self._zones

    def reachable(self) -> int:
        """See :meth:`kdamon.mm.sampling.physical.Frames.reachable`."""
        with open("/proc/meminfo", encoding="utf-8") as lines:
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return 1024 * (sizes["Active"] + sizes["Inactive"] + sizes["Unevictable"])

    def close(self) -> None:
        """See :meth:`kdamon.mm.sampling.physical.Frames.close`."""
        self._folios.close()
        if self._own_pagemap >= 0:
            os.close(self._own_pagemap)
            self._own_pagemap = -1


def _system_ram(text: str) -> U64Array:
    """Whole pages of System RAM in /proc/iomem, which shows zeros to a process without CAP_SYS_ADMIN."""
    matches = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM", text, re.MULTILINE)
    edges = np.array([(int(start, 16), int(last, 16) + 1) for start, last in matches], np.uint64).reshape(-1, 2)
    edges[:, 0] += np.uint64(PAGE_SIZE - 1)
    edges -= edges % np.uint64(PAGE_SIZE)
    return edges[edges[:, 0] < edges[:, 1]]


def _zones(text: str) -> list[tuple[int, int, int]]:
    """Node, first page frame and end (exclusive) of every zone with memory in /proc/zoneinfo."""
    zones = []
    for zone in re.split(r"^(?=Node )", text, flags=re.MULTILINE):
        node, spanned, first = (
            re.search(pattern, zone) for pattern in (r"^Node (\d+)", r"spanned +(\d+)", r"start_pfn: +(\d+)")
        )
        if node and spanned and first and int(spanned[1]):
            zones.append((int(node[1]), int(first[1]), int(first[1]) + int(spanned[1])))
    return zones


class _Pages:
    """A process's files, open for reading all of its pages."""

    def __init__(self, pid: int) -> None:
        directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.files = ProcessFiles(directory)
        finally:
            os.close(directory)

    def __enter__(self) -> _Pages:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()

    def runs(self) -> Iterator[tuple[U64Array, int]]:
        """Runs of pages that are this process's alone, and how many pages were read, piece by piece."""
        pagemap = Pagemap(self.files.pagemap)
        mappings = self.files.mappings
        mappings.begin()
        mappings.go_on(_MAPPINGS)
        while mappings.under_way:
            yield np.empty((0, 3), np.uint64), _BLOCKS * PMD_SIZE // PAGE_SIZE
            mappings.go_on(_MAPPINGS)
        for group in pagemap.groups(mappings.known().ranges):
            for first in range(0, len(group), _BLOCKS):
                blocks = group[first : first + _BLOCKS]
                pages = pagemap.pages(blocks)
                yield runs_of_pages(pages, exclusive_frames(pagemap.entries(blocks))), len(pages)


def say_left_out(pid: int) -> None:
    """Log that process ``pid`` blocks every read of its memory, for a limited number of processes."""
    _say_left_out(pid) if _named_left_out() < _NAMED else warn_once(
        "physical memory: " + "more processes hold the lock of their memory; they are not named"
    )


def _named_left_out() -> int:
    return _say_left_out.cache_info().currsize


@functools.cache
def _say_left_out(pid: int) -> None:
    log.warning("physical memory: process %d holds the lock of its memory; what it maps is unknown", pid)
