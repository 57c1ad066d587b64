# SPDX-License-Identifier: GPL-2.0-only
"""Physical memory: accesses observed through the page tables of the processes that map it.

The kernel's reverse mappings lead from a page frame to all processes that map it. User space has none, so kdamon builds
its own: now and then it reads the mappings of all processes that it may read, and remembers the page frames that
exactly one process maps, with that process and the address (:class:`ReverseMap`). A sample of a page frame is a sample
of that address in that process, as for any monitored process. After the sample kdamon checks that the address still
maps this page frame and that no other process does: the remembered map may be old, the answers are not.

============================================  =========================================================================
page frame                                    answer
============================================  =========================================================================
mapped by one process, known since the last   by its accessed bit; UNKNOWN where that cannot be cleared
update
on no LRU list and not mapped: free, the      OLD, as the kernel's damon_pa_young() answers for what damon_get_folio()
kernel's, or no memory at all                 does not take: no process accesses it
everything else: shared by processes, page    UNKNOWN
cache without mapping, mapped since the last
update
============================================  =========================================================================
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Final, Protocol, Self

import numpy as np

from kdamon.arrays import I64Array, Indexes, Mask, U8Array, U64Array
from kdamon.kernel import PAGE_SHIFT, PAGE_SIZE
from kdamon.lib.file_limit import FileShortage, files_ran_out
from kdamon.mm import OLD, UNKNOWN, AddressSpace, Answers, FrameKind, PageFilter, Primitive, Task
from kdamon.mm.apart.looked_at import looking_at

__all__ = ["Frames", "MemoryTask", "Physical", "ReverseMap"]

log = logging.getLogger("kdamon")

_PAGE_SHIFT: Final = np.uint64(PAGE_SHIFT)

#: Processes that one sample is taken of: each costs some system calls.
_MAX_SAMPLED: Final = 64
#: Processes that are kept open for samples; each costs four file descriptors.
_MAX_OPEN: Final = 128
#: Pages whose page tables are read besides a sample while an update is under way, which takes about a millisecond; and
#: to how many of them looking at a process at all compares.
_STEP: Final = 4096
_PROCESS: Final = 512


class Frames(Protocol):
    """Page frames of a machine, and the processes that map them."""

    def runs(self) -> Generator[tuple[int, U64Array, int]]:
        """The page frames that each process alone maps.

        :returns: process by process its number, and runs of pages whose addresses and page frames both follow each
            other: first address (bytes), first page frame, number of pages, shape (n, 3); and how many pages were
            looked at to find them. A process may come in pieces.
        """
        ...

    def task(self, pid: int) -> Task:
        """Process ``pid``, to be put().

        :raises OSError: as :meth:`kdamon.mm.Machine.get_task`.
        """
        ...

    def kinds(self, pfns: U64Array) -> U8Array:
        """The kinds of page frames, a value of :class:`kdamon.mm.FrameKind` each, shape (n,)."""
        ...

    def unreachable(self, pfns: U64Array) -> Mask:
        """Which page frames no process maps and no LRU list has: free, the kernel's, or no memory; shape (n,)."""
        ...

    def page_match(self, pfns: U64Array, filters: Sequence[PageFilter], answers: Answers | None) -> Mask:
        """Which page frames are of the type of each filter, see :meth:`.PageSamples.match`."""
        ...

    def ram(self) -> U64Array:
        """The machine's memory, start and end of each piece, whole pages, bytes, ascending, shape (n, 2)."""
        ...

    def zones(self) -> list[tuple[int, int, int]]:
        """Page frames of NUMA nodes, piece by piece: the node, the first one, the end (exclusive)."""
        ...

    def reachable(self) -> int:
        """How many bytes of memory are on LRU lists: what processes and files have."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class ReverseMap:
    """Maps page frames to their process and address.

    :param found: processes and runs as :meth:`Frames.runs` gives them. Frames that come twice, of two processes or of
        one, are left out.
    :ivar pages: how many page frames it knows.
    """

    def __init__(self, found: Iterable[tuple[int, U64Array]]) -> None:
        pids, parts = [0], [np.empty((0, 3), np.uint64)]
        for pid, runs in found:
            pids.append(pid)
            parts.append(runs)
        owners = np.repeat(np.array(pids, np.uint64), [len(part) for part in parts])
        # Rows of a table are columns here: these are long, and take a fifth of the time.
        whole = np.vstack((np.concatenate(parts).T, owners))
        whole = whole[:, whole[1].argsort()]
        if (whole[1, 1:] < whole[1, :-1] + whole[2, :-1]).any():
            whole = _once(whole)
        self._addrs, self._first = whole[0], whole[1]
        self._last = self._first + whole[2]
        self._pids = whole[3].astype(np.int64)
        self.pages = int(whole[2].sum())

    def find(self, pfns: U64Array) -> tuple[I64Array, U64Array]:
        """The processes that map page frames ``pfns`` (shape (n,)), -1 for none that is known, and the addresses."""
        if not len(self._first):
            return np.full(len(pfns), -1, np.int64), np.zeros(len(pfns), np.uint64)
        at = np.maximum(np.searchsorted(self._first, pfns, side="right") - 1, 0)
        known = (pfns >= self._first[at]) & (pfns < self._last[at])
        return np.where(known, self._pids[at], -1), self._addrs[at] + ((pfns - self._first[at]) << _PAGE_SHIFT)

    def runs_within(self, first: int, last: int) -> tuple[int, U64Array, U64Array]:
        """Runs of page frames that it knows of [first, last): the number of the first one, beginnings and sizes."""
        low = int(np.searchsorted(self._last, np.uint64(first), side="right"))
        high = max(low, int(np.searchsorted(self._first, np.uint64(last), side="left")))
        begin = np.maximum(self._first[low:high], np.uint64(first))
        return low, begin, np.minimum(self._last[low:high], np.uint64(last)) - begin

    def within(self, first: int, last: int) -> tuple[I64Array, U64Array, U64Array]:
        """All that it knows of page frames [first, last): the processes, the addresses, the page frames, shape (n,)."""
        low, begin, sizes = self.runs_within(first, max(first, last))
        counts = sizes.astype(np.intp)
        rows = np.repeat(np.arange(low, low + len(counts)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        pfns = np.repeat(begin, counts) + within.astype(np.uint64)
        return self._pids[rows], self._addrs[rows] + ((pfns - self._first[rows]) << _PAGE_SHIFT), pfns


def _once(runs: U64Array) -> U64Array:
    """The parts of ``runs`` whose page frames are in no other run.

    :param runs: addresses, first page frames, numbers of pages, anything, shape (4, n).
    """
    count = runs.shape[1]
    number = np.arange(1, count + 1)
    edges = np.concatenate((runs[1], runs[1] + runs[2]))
    order = edges.argsort(kind="stable")
    edges = edges[order]
    over = np.cumsum(np.repeat((1, -1), count)[order])
    # Where only one run is open, the sum of the numbers of the open ones is its number.
    which = np.cumsum(np.concatenate((number, -number))[order])
    final = np.append(edges[1:] != edges[:-1], True)
    edges, over, which = edges[final], over[final], which[final]
    single = np.flatnonzero(over[:-1] == 1)
    found: U64Array = runs[:, which[single] - 1]
    found[0] += (edges[single] - found[1]) << _PAGE_SHIFT
    found[1] = edges[single]
    found[2] = edges[single + 1] - edges[single]
    return found


def _groups(pids: I64Array) -> Iterator[tuple[int, Indexes]]:
    """The rows of each number in ``pids``; -1, no process, is left out."""
    order = pids.argsort(kind="stable")
    ordered = pids[order]
    begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(pids) else np.empty(0, np.intp)
    for rows in np.split(order, begins[1:]) if len(begins) else []:
        if pids[rows[0]] >= 0:
            yield int(pids[rows[0]]), rows


class MemoryTask:
    """The methods of :class:`kdamon.mm.Task` for physical memory, which is no process."""

    pid = 0
    primitive = Primitive.PAGE_TABLE
    birth = 0

    @property
    def physical(self) -> Self:
        """See :meth:`kdamon.mm.Task.physical`."""
        return self

    def valid(self) -> bool:
        """There is always memory."""
        return True

    def ended(self) -> bool:
        """Memory does not end."""
        return False

    def get_mm(self) -> None:
        """It is no process's address space."""

    def has_thread(self, tid: int) -> bool:
        """It is no process, and has none."""
        return False

    def memory(self) -> None:
        """See :meth:`kdamon.mm.Task.memory`; that is about processes."""


class Physical(MemoryTask):
    """Physical memory; implements :class:`kdamon.mm.PhysicalMemory`.

    :param frames: becomes this object's; :meth:`put` closes it.
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._map = ReverseMap([])
        self._updated = False
        self._tasks: OrderedDict[int, tuple[Task, AddressSpace | None] | None] = OrderedDict()
        self._shortage = FileShortage()
        #: The sample under way: the array that it was begun with, and the page frames.
        self._begun: tuple[U64Array, U64Array] | None = None
        self._sampled: list[tuple[int, AddressSpace, Indexes, U64Array]] = []
        self._turn = 0
        self._looking: Generator[tuple[int, U64Array, int]] | None = None
        self._found: list[tuple[int, U64Array]] = []

    def put(self) -> None:
        """See :meth:`kdamon.mm.Task.put`."""
        self._put_tasks(0)
        self._sampled = []
        self._stop_looking()
        self._frames.close()

    def update(self) -> None:
        """See :meth:`kdamon.mm.PhysicalMemory.update`."""
        self._stop_looking()
        self._take(ReverseMap((pid, runs) for pid, runs, _ in self._frames.runs()))

    def begin_update(self) -> None:
        """See :meth:`kdamon.mm.PhysicalMemory.begin_update`."""
        if self._looking is None:
            self._looking = self._frames.runs()

    def _look_on(self) -> None:
        """Go on with an update that was begun."""
        if self._looking is None:
            return
        left = _STEP
        for pid, runs, pages in self._looking:
            self._found.append((pid, runs))
            left -= pages + _PROCESS
            if left <= 0:
                return
        found = ReverseMap(self._found)
        self._stop_looking()
        self._take(found)

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.close()
        self._looking = None
        self._found = []

    def _take(self, found: ReverseMap) -> None:
        """Use the map ``found`` from now on."""
        # Numbers of processes may be others' by now.
        self._put_tasks(0)
        self._sampled = []
        self._map = found
        self._updated = True

    def known(self) -> tuple[int, int]:
        """See :meth:`kdamon.mm.PhysicalMemory.known`."""
        return PAGE_SIZE * self._map.pages, self._frames.reachable()

    def ram(self) -> U64Array:
        """See :meth:`kdamon.mm.PhysicalMemory.ram`."""
        return self._frames.ram()

    def begin_sample(self, addrs: U64Array) -> None:
        """See :meth:`kdamon.mm.Samples.begin_sample`."""
        self._begun = None
        if self._updated:
            self._look_on()
        else:
            self.update()
        self._sampled = []
        pfns = addrs >> _PAGE_SHIFT
        pids, where = self._map.find(pfns)
        groups = list(_groups(pids))
        if len(groups) > _MAX_SAMPLED:
            # Each time others, so that none is left out for good.
            self._turn = (self._turn + _MAX_SAMPLED) % len(groups)
            groups = (groups[self._turn :] + groups[: self._turn])[:_MAX_SAMPLED]
        for pid, rows in groups:
            mm = self._mm(pid)
            if mm is not None:
                there = where[rows]
                mm.begin_sample(there)
                self._sampled.append((pid, mm, rows, there))
        self._begun = addrs, pfns

    def end_sample(self, addrs: U64Array) -> Answers:
        """See :meth:`kdamon.mm.Samples.end_sample`."""
        answers = np.full(len(addrs), UNKNOWN, np.uint8)
        begun, self._begun = self._begun, None
        if begun is None or begun[0] is not addrs:
            return answers
        pfns = begun[1]
        matches = np.zeros(len(addrs), np.bool_)
        for pid, mm, rows, there in self._sampled:
            looking_at(pid)
            answers[rows], found = mm.end_sample_frames(there)
            matches[rows] = found == pfns[rows]
        # Now, not before: a process that mapped a page frame meanwhile may have accessed it.
        kinds = self._frames.kinds(pfns)
        for pid, mm, rows, there in self._sampled:
            doubtful = matches[rows] & (kinds[rows] != FrameKind.MAPPED_ONCE) & (answers[rows] != UNKNOWN)
            if doubtful.any():
                looking_at(pid)
                matches[rows[doubtful]] = mm.frames(there[doubtful]) == pfns[rows[doubtful]]
        unknown = np.flatnonzero(~matches & (kinds == FrameKind.UNKNOWN))
        unreachable = kinds == FrameKind.UNREACHABLE
        unreachable[unknown] = self._frames.unreachable(pfns[unknown])
        answers[~matches] = np.where(unreachable[~matches], OLD, UNKNOWN)
        return answers

    def page_match(self, addrs: U64Array, filters: Sequence[PageFilter], answers: Answers | None = None) -> Mask:
        """See :meth:`kdamon.mm.Samples.page_match`."""
        return self._frames.page_match(addrs >> _PAGE_SHIFT, filters, answers)

    def node_mem(self, ranges: U64Array) -> dict[int, int]:
        """See :meth:`kdamon.mm.PhysicalMemory.node_mem`."""
        frames = [(-(-start // PAGE_SIZE), end // PAGE_SIZE) for start, end in ranges.tolist()]
        parts = [self._map.runs_within(first, last)[1:] for first, last in frames if first < last]
        if not parts:
            return {}
        first, pages = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        found: Counter[int] = Counter()
        for node, begin, end in self._frames.zones():
            inside = np.clip(first + pages, begin, end).astype(np.int64) - np.clip(first, begin, end).astype(np.int64)
            found[node] += int(inside.sum()) * PAGE_SIZE
        return {node: size for node, size in found.items() if size}

    def owners(self, ranges: U64Array) -> Iterator[tuple[AddressSpace, U64Array, Indexes]]:
        """See :meth:`kdamon.mm.PhysicalMemory.owners`."""
        frames = [(-(-start // PAGE_SIZE), end // PAGE_SIZE) for start, end in ranges.tolist()]
        found = [self._map.within(first, last) for first, last in frames]
        if not found:
            return
        which = np.repeat(np.arange(len(found)), [len(pids) for pids, _, _ in found])
        pids, addrs, pfns = (np.concatenate(columns) for columns in zip(*found, strict=True))
        for pid, chosen in _groups(pids):
            mm = self._mm(pid)
            if mm is None:
                continue
            rows = chosen[addrs[chosen].argsort()]
            rows = rows[mm.frames(addrs[rows]) == pfns[rows]]
            pages, number = addrs[rows], which[rows]
            if not len(pages):
                continue
            apart = (pages[1:] != pages[:-1] + np.uint64(PAGE_SIZE)) | (number[1:] != number[:-1])
            first = np.flatnonzero(np.append(True, apart))
            last = np.append(first[1:], len(pages)) - 1
            yield mm, np.column_stack((pages[first], pages[last] + np.uint64(PAGE_SIZE))), number[first]

    def _mm(self, pid: int) -> AddressSpace | None:
        """The address space that a process had when it was first asked for since the update; it may be empty by now."""
        looking_at(pid)
        if pid in self._tasks:
            self._tasks.move_to_end(pid)
        else:
            self._put_tasks(_MAX_OPEN - 1)
            self._tasks[pid] = self._open(pid)
        opened = self._tasks[pid]
        return None if opened is None else opened[1]

    def _open(self, pid: int) -> tuple[Task, AddressSpace | None] | None:
        try:
            task = self._frames.task(pid)
        except OSError as error:
            if files_ran_out(error):
                self._shortage.bear(error, f"the memory of process {pid} cannot be read")
            log.debug("process %d is left out: %s", pid, error.strerror)
            return None
        self._shortage.end()
        return task, task.get_mm()

    def _put_tasks(self, left: int) -> None:
        while len(self._tasks) > left:
            _, opened = self._tasks.popitem(last=False)
            if opened is not None:
                opened[0].put()
