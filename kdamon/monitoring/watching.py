# SPDX-License-Identifier: GPL-2.0-only
"""Watches a random set of a process's pages, to estimate how much of its memory is in use.

Every two seconds some pages are chosen, made old, and looked at 1, 10 and 60 seconds later. That runs beside the
kdamond, in a thread of its own, and takes a small share of a CPU at most. The thread also looks at what is in memory
(:mod:`kdamon.monitoring.residency`).
"""

from __future__ import annotations

import errno
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np
from attrs import define

from kdamon.arrays import Indexes, Mask, Records, U8Array, U64Array
from kdamon.kernel import PAGE_SHIFT, PAGE_SIZE
from kdamon.lib.threads import join_for, where_is
from kdamon.mm import AddressSpace, PageWatch, Resident, Task
from kdamon.mm.ranges import NO_RANGES, intersect, union
from kdamon.monitoring.residency import Residency, ResidencyReader
from kdamon.monitoring.use import (
    ABSENT,
    ACCESSED,
    CAME,
    GONE,
    IDLE,
    LOOK,
    UNKNOWN,
    WINDOWS,
    LookCounts,
    MemoryUse,
    estimate,
)

__all__ = ["CohortLog", "Watching"]

log = logging.getLogger("kdamon")

#: Seconds between two choices of pages.
_CHOICE_S: Final = 2.0
#: Pages that are chosen together, at most and at least, and the first time.
_MOST: Final = 1024
_LEAST: Final = 64
_FIRST: Final = 2048
#: Of all pages, one in this many at most is chosen together: samples of regions should not notice.
_PART: Final = 8
#: Of those that are chosen, one in this many is looked at again after the longest window.
_LONG_PART: Final = 8
#: Of how many of these it is looked up what kind they are: each is a system call.
_KINDS: Final = 32
#: The share of a CPU that watching takes.
_SHARE: Final = 0.003
#: Where it is not known what is in memory, the populated memory is looked up anew after this time, and this many times
#: what that takes; seconds.
_LOOK_UP_S: Final = 5.0
_LOOK_UP_PART: Final = 1000
#: Unless more than this share of the memory was not looked at yet, pages are chosen from what is in memory.
_UNKNOWN_PART: Final = 0.1
#: A process is starting if it has so many times as much in memory as at the choice before.
_STARTS: Final = 1.5
#: For so long after it began to be watched, or after an exec(); seconds.
_STARTING_S: Final = 30.0
#: Windows that end within this time are looked at together, seconds.
_TOGETHER_S: Final = 0.02
#: Estimates are from pages whose window ended in this time, or in the last window if that is longer; seconds.
_RECENT_S: Final = 12.0
#: Looks that wait for a slow consumer, at most.
_KEPT: Final = 512


@define(eq=False)
class _Cohort:
    """Pages that were chosen together.

    :ivar began: CLOCK_MONOTONIC seconds.
    :ivar pages: their addresses, shape (n,).
    :ivar places: see :class:`kdamon.mm.Watched`.
    :ivar total: bytes of the memory that they were chosen from.
    :ivar present: whether they were in memory.
    :ivar unknown: whether their accesses cannot be observed.
    :ivar kinds: see :data:`kdamon.monitoring.use.LOOK`.
    :ivar due: the windows that did not end yet.
    """

    began: float
    pages: U64Array
    places: Indexes
    total: float
    present: Mask
    unknown: Mask
    kinds: U8Array
    due: list[float]

    def part(self, rows: slice) -> None:
        """Keep only some of the pages."""
        self.pages, self.places, self.kinds = self.pages[rows], self.places[rows], self.kinds[rows]
        self.present, self.unknown = self.present[rows], self.unknown[rows]


class CohortLog:
    """The pages that are watched, and what was seen of them; takes the time from its caller.

    :param watch: observes the pages; becomes this object's.
    :param rng: chooses them.
    """

    def __init__(self, watch: PageWatch, rng: np.random.Generator) -> None:
        self._watch = watch
        self._rng = rng
        self._cohorts: list[_Cohort] = []
        self._users = np.zeros(watch.size, dtype=np.int32)
        #: When an access to the page of each place was last noticed.
        self._seen = np.full(watch.size, -np.inf)

    @property
    def empty(self) -> bool:
        """Whether no page is watched."""
        return not self._cohorts

    def close(self) -> None:
        """Watch no page any more."""
        self._cohorts.clear()
        self._watch.close()

    def begin(self, ranges: U64Array, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Choose about ``count`` pages of ``ranges``, and watch them.

        :param clock: CLOCK_MONOTONIC seconds.
        """
        sizes = (ranges[:, 1] - ranges[:, 0]) >> np.uint64(PAGE_SHIFT)
        ends = np.cumsum(sizes)
        if not len(ends) or not count:
            return
        drawn = np.sort(self._rng.integers(0, int(ends[-1]), count, dtype=np.uint64))
        at = np.searchsorted(ends, drawn, side="right")
        pages = ranges[at, 0] + ((drawn - (ends - sizes)[at]) << np.uint64(PAGE_SHIFT))
        before = clock()
        watched = self._watch.begin(pages)
        places = watched.places
        self._seen[places[watched.young]] = before
        # Those that there is no room for are as if they had not been chosen. The first part of them is a random one.
        kept = self._rng.permutation(np.flatnonzero(places >= 0))
        long = len(kept) // _LONG_PART
        kept[:long].sort()
        kept[long:].sort()
        places = places[kept]
        np.add.at(self._users, places, 1)
        kinds = np.zeros(len(kept), dtype=np.uint8)
        few = self._rng.permutation(long)[:_KINDS]
        few.sort()
        kinds[few] = self._watch.kinds(pages[kept[few]])
        total = float(int(ends[-1]) * PAGE_SIZE)
        self._cohorts.append(
            _Cohort(
                clock(), pages[kept], places, total, watched.present[kept], watched.unknown[kept], kinds, list(WINDOWS)
            )
        )

    def look(self, now: float) -> list[tuple[float, Records]]:
        """Look at the pages whose windows are over by ``now``; returns each window with its looks."""
        found = []
        for cohort in self._cohorts:
            if cohort.due and cohort.began + cohort.due[0] <= now + _TOGETHER_S:
                window = cohort.due.pop(0)
                found.append((window, self._looks(cohort, window, now)))
                if len(cohort.due) == 1:
                    self._shorten(cohort, len(cohort.pages) // _LONG_PART)
                elif not cohort.due:
                    self._shorten(cohort, 0)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.due]
        return found

    def next_due(self) -> float:
        """When the next window ends, CLOCK_MONOTONIC seconds; infinite if none does."""
        return min((cohort.began + cohort.due[0] for cohort in self._cohorts), default=math.inf)

    def _looks(self, cohort: _Cohort, window: float, now: float) -> Records:
        present, young = self._watch.look(cohort.pages, cohort.places)
        self._seen[cohort.places[young]] = now
        accessed = self._seen[cohort.places] > cohort.began
        looks = np.zeros(len(cohort.pages), dtype=LOOK)
        states = np.where(accessed, ACCESSED, IDLE)
        states[cohort.unknown] = UNKNOWN
        states[~cohort.present] = CAME
        states[~present] = np.where(cohort.present, GONE, ABSENT)[~present]
        looks["addr"], looks["state"], looks["kind"] = cohort.pages, states, cohort.kinds
        looks["weight"] = cohort.total / max(1, len(looks))
        looks["began"], looks["window"] = cohort.began, window
        return looks

    def _shorten(self, cohort: _Cohort, count: int) -> None:
        """Keep only the first ``count`` pages of a cohort."""
        left = cohort.places[count:]
        np.subtract.at(self._users, left, 1)
        unused = np.unique(left[self._users[left] == 0])
        self._watch.end(unused)
        self._seen[unused] = -np.inf
        cohort.part(slice(count))


class _Mean:
    """The mean of what a process had in memory at the looks since the first window ended."""

    def __init__(self) -> None:
        self._sums = (0, 0, 0)
        self._count = 0

    def add(self, resident: Resident | None) -> None:
        if resident is not None:
            anon, file, swapped = self._sums
            self._sums = anon + resident.anon, file + resident.file, swapped + resident.swapped
            self._count += 1

    def mean(self) -> Resident | None:
        """None without any."""
        return Resident(*(total // self._count for total in self._sums)) if self._count else None


class Watching:
    """The thread that watches the pages of one process, and the estimates from them.

    :param task: the process; stays the caller's.
    :param ranges: monitored ranges in bytes, shape (n, 2); None: all mappings.
    :param seed: makes the choice of pages repeatable.
    """

    def __init__(self, task: Task, ranges: U64Array | None = None, seed: int | None = None) -> None:
        self._task = task
        self._ranges = ranges
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kdamon-watch", daemon=True)
        self._mm: AddressSpace | None = None
        self._log: CohortLog | None = None
        self._populated, self._look_up_at = NO_RANGES, 0.0
        self._size, self._anew_at = 0, 0.0
        self._recent: dict[float, deque[LookCounts]] = {window: deque() for window in WINDOWS}
        self._all: dict[float, LookCounts | None] = dict.fromkeys(WINDOWS)
        self._resident = _Mean()
        self._waiting: deque[Records] = deque(maxlen=_KEPT)
        self._count = _MOST
        self._use: MemoryUse | None = None
        self._residency = ResidencyReader()
        self._chosen_from: Residency | None = None
        #: Why what is in memory is not looked at.
        self._blind: OSError | None = None
        self.cpu_s = 0.0

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End it soon; any thread may call this."""
        self._stop.set()

    def join(self, seconds: float) -> bool:
        """Wait for the end after :meth:`stop`, which the process can delay; returns whether it came."""
        if self._thread.ident is None or self._thread is threading.current_thread():
            return True
        return join_for(self._thread, seconds)

    def where(self) -> str:
        """Where the thread is, see :func:`kdamon.lib.threads.where_is`."""
        return where_is(self._thread)

    def use(self, *, overall: bool = False) -> MemoryUse | None:
        """The latest estimate, or the ``overall`` one since the begin; None before the first one."""
        with self._lock:
            return self._overall() if overall and self._use is not None else self._use

    def residency(self) -> Residency | None:
        """What is in memory, as it was seen last; None before that, and where the kernel cannot say."""
        return self._residency.latest

    def _overall(self) -> MemoryUse:
        assert self._use is not None
        resident = self._resident.mean()
        whole = None if resident is None else resident.total
        found = [(window, counts) for window, counts in self._all.items() if counts is not None]
        windows = (estimate([counts], window, whole) for window, counts in found)
        return MemoryUse(self._use.time, resident, tuple(one for one in windows if one is not None))

    def drain(self) -> list[Records]:
        """The looks since the last call, one array for each cohort and window; the oldest ones are lost if there are
        too many."""
        with self._lock:
            looks = list(self._waiting)
            self._waiting.clear()
        return looks

    def _run(self) -> None:
        choose_at = time.monotonic()
        spent = 0.0
        try:
            while not self._stop.wait(max(0.0, self._next(choose_at) - time.monotonic())):
                before = time.thread_time()
                self._look()
                if choosing := time.monotonic() + _TOGETHER_S >= choose_at:
                    choose_at = max(choose_at, time.monotonic() - _CHOICE_S / 2) + _CHOICE_S
                    first = self._choose()
                self.cpu_s += (took := time.thread_time() - before)
                spent += took
                if choosing:
                    # The first pages are more.
                    spent = 0.0 if first else self._adapt(spent)
                self._look_what_is_there()
        except OSError as error:
            log.info("how much memory is in use is not watched any more: %s", error.strerror)
        finally:
            if self._log is not None:
                self._log.close()

    def _next(self, choose_at: float) -> float:
        """When there is something to do, CLOCK_MONOTONIC seconds."""
        pages = choose_at if self._log is None else min(choose_at, self._log.next_due())
        return pages if self._mm is None or self._blind is not None else min(pages, self._residency.due)

    def _look_what_is_there(self) -> None:
        """Look at some more of what is in memory, if that is due."""
        if self._mm is None or self._blind is not None or time.monotonic() < self._residency.due:
            return
        before = time.thread_time()
        try:
            self._residency.step(self._mm, self._ranges)
        except OSError as error:
            if error.errno not in {errno.ENOTTY, errno.EINVAL, errno.ENOSYS}:
                raise
            log.info("what is in memory is not known: that needs PAGEMAP_SCAN, of Linux 6.7")
            self._blind = error
        self.cpu_s += time.thread_time() - before

    def _adapt(self, spent: float) -> float:
        """Choose as many pages as may take the time that there is for them, if it took ``spent`` for those before."""
        factor = min(max(_SHARE * _CHOICE_S / max(spent, 1e-6), 0.7), 1.2)
        self._count = int(min(max(_LEAST, self._count * factor), _MOST))
        return 0.0

    def _look(self) -> None:
        """Look at the pages whose windows are over."""
        if self._log is None:
            return
        now = time.monotonic()
        found = self._log.look(now)
        counted = [(window, LookCounts.of(looks)) for window, looks in found if len(looks)]
        for window, counts in counted:
            self._recent[window].append(counts)
        with self._lock:
            self._waiting.extend(looks for _, looks in found)
            for window, counts in counted:
                before = self._all[window]
                self._all[window] = counts if before is None else before.plus(counts)
        if found:
            self._estimate(now)

    def _choose(self) -> bool:
        """Choose pages and begin their windows; returns whether they are the first ones."""
        mm = self._task.get_mm()
        if mm is None:
            # It cannot be read at the moment; if it ended, its pages are found to be gone.
            return True
        if mm is not self._mm:
            self._begin_anew(mm)
        before, self._size = self._size, self._memory()
        now = time.monotonic()
        starts = self._size >= _STARTS * before
        if starts and before and now < self._anew_at + _STARTING_S:
            # Of what a program has in its first moment little can be said about the rest.
            self._watch_anew(mm)
        if self._log is None:
            return True
        self._look_up(mm, now, starts=starts)
        nr_pages = int((self._populated[:, 1] - self._populated[:, 0]).sum()) // PAGE_SIZE
        first = self._log.empty
        most = _FIRST if first else self._count
        self._log.begin(self._populated, min(most, max(_LEAST, nr_pages // _PART)))
        if first:
            self._estimate(now)
        return first

    def _memory(self) -> int:
        """Bytes in memory; 0 where they are not known."""
        resident = self._task.memory()
        return 0 if resident is None else resident.total

    def _begin_anew(self, mm: AddressSpace) -> None:
        """The process has another address space: what was seen of the old one says nothing."""
        self._watch_anew(mm)
        self._residency.reset()
        self._look_up_at = 0.0
        self._size, self._anew_at = 0, time.monotonic()

    def _watch_anew(self, mm: AddressSpace) -> None:
        """Forget the pages that were watched, and what was seen of them."""
        if self._log is not None:
            self._log.close()
        for recent in self._recent.values():
            recent.clear()
        with self._lock:
            self._all = dict.fromkeys(WINDOWS)
        watch = mm.watch()
        self._mm, self._log = mm, None if watch is None else CohortLog(watch, self._rng)

    def _look_up(self, mm: AddressSpace, now: float, *, starts: bool) -> None:
        """Find the memory that pages are chosen from: what was in memory at the last look, or else is populated.

        :param starts: whether the last look says little, because the process has much more now.
        """
        latest = self._residency.latest
        if latest is not None and latest.unknown_share <= _UNKNOWN_PART and not starts:
            if latest is not self._chosen_from:
                rows = latest.rows[latest.rows["anon"] + latest.rows["file"] + latest.rows["unknown"] > 0]
                self._populated = union(np.stack([rows["start"], rows["end"]], axis=1), NO_RANGES)
                self._chosen_from = latest
        elif starts or now >= self._look_up_at:
            mapped = mm.vmas()
            self._populated = mm.populated(mapped if self._ranges is None else intersect(mapped, self._ranges))
            self._look_up_at = now + max(_LOOK_UP_S, _LOOK_UP_PART * (time.monotonic() - now))

    def _estimate(self, now: float) -> None:
        resident = self._task.memory() if self._ranges is None else None
        windows = []
        for window, recent in self._recent.items():
            while recent and recent[0].began + window < now - max(window, _RECENT_S):
                recent.popleft()
            one = estimate(recent, window, None if resident is None else resident.total)
            if one is not None:
                windows.append(one)
        with self._lock:
            if windows and self._use is not None and not self._use.windows:
                # What a program had in memory before the first window ended, as while it starts, is no base of shares.
                self._resident = _Mean()
            self._resident.add(resident)
            self._use = MemoryUse(now, resident, tuple(windows))
