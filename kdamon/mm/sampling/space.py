# SPDX-License-Identifier: GPL-2.0-only
"""The common base of address spaces of real processes, for all primitives."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import numpy as np

from kdamon.arrays import Mask, Records, U64Array
from kdamon.mm import Answers, Observed, PageFilter, PageWatch
from kdamon.mm.actions.advice import Advice
from kdamon.mm.actions.page_samples import PageSamples
from kdamon.mm.bpf.running_cpus import ANY_CPU, running_cpus
from kdamon.mm.proc.pagemap import Pagemap, entries_at, exclusive_frames, frames
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.proc.residency import residency
from kdamon.mm.ranges import NO_RANGES, intersect, joined

__all__ = ["NOTHING", "ProcessSpace"]

_Step = TypeVar("_Step")

#: How many mappings are read within some milliseconds.
#: Deviation: docs/deviations.md#mappings-are-read-in-parts
_MAPPINGS_AT_ONCE: Final = 1024

#: No addresses.
NOTHING: Final[U64Array] = np.empty(0, dtype=np.uint64)


class ProcessSpace(ABC):
    """The address space of a real process; its subclasses observe accesses.

    :param files: becomes this object's; :meth:`close` closes it.
    :param pidfd: the process; stays the caller's.
    """

    def __init__(self, files: ProcessFiles, pidfd: int) -> None:
        self._files = files
        self._pidfd = pidfd
        self._lock = threading.Lock()
        self._closed = False
        self._shared_at = time.monotonic_ns()
        #: The sample under way: the array that it was begun with, and the pages.
        self._sampled: tuple[U64Array, U64Array] | None = None
        #: Pages of it that could not be made old.
        self._unknown = NOTHING
        self._advice: Advice | None = None

    def _share(self) -> int:
        """How many mappings may be read during this sample, so that reading takes a small part of the time."""
        now = time.monotonic_ns()
        elapsed, self._shared_at = now - self._shared_at, now
        return min(elapsed // self._files.mappings.time_of_one, _MAPPINGS_AT_ONCE)

    @property
    def pagemap(self) -> int:
        """Its open /proc/PID/pagemap."""
        return self._files.pagemap

    @property
    def pidfd(self) -> int:
        """A pidfd of the process."""
        return self._pidfd

    def cpus(self) -> int:
        """The CPUs on which its threads run or are about to, see :meth:`kdamon.mm.bpf.running_cpus.RunningCpus.of`."""
        running = running_cpus()
        with self._lock:
            return ANY_CPU if running is None or self._closed else running.of(self._files.pagemap)

    @property
    def files(self) -> ProcessFiles:
        """Its files in /proc; they stay this object's."""
        return self._files

    def alive(self) -> bool:
        """Return whether a process still lives in this address space."""
        with self._lock:
            return not self._closed and self._files.alive()

    def close(self) -> None:
        """Give the file descriptors back; from then on the address space is empty."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._files.close()

    def vmas(self) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.vmas`."""
        with self._lock:
            return NO_RANGES if self._closed else self._files.mappings.now().ranges

    def populated(self, ranges: U64Array) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.populated`."""
        wanted = joined(ranges)
        blocks = np.concatenate([NO_RANGES, *self._steps(lambda: Pagemap(self._files.pagemap).groups(wanted))])
        return intersect(wanted, joined(blocks))

    def residency(self, ranges: U64Array) -> Iterator[tuple[int, Records]]:
        """See :meth:`kdamon.mm.AddressSpace.residency`."""

        def begin() -> Iterator[tuple[int, Records]]:
            mappings = self._files.mappings.now()
            shared, files = mappings.shared, mappings.files
            anon = mappings.ranges[~shared & ~files]
            return residency(self._files.pagemap, ranges, anon=anon, shared=mappings.ranges[shared])

        return self._steps(begin)

    def extent(self) -> tuple[int, int] | None:
        """See :meth:`kdamon.mm.AddressSpace.extent`."""
        with self._lock:
            return None if self._closed else self._files.mappings.extent()

    def watch(self) -> PageWatch | None:
        """See :meth:`kdamon.mm.AddressSpace.watch`."""
        return None

    def observed(self) -> Observed | None:
        """See :meth:`kdamon.mm.AddressSpace.observed`; not by faults."""
        return None

    def _end(self, addrs: U64Array) -> U64Array | None:
        """The pages of the sample that was begun with ``addrs``, None if there is no such; none is under way then."""
        sampled, self._sampled = self._sampled, None
        return sampled[1] if sampled is not None and sampled[0] is addrs else None

    def end_sample_frames(self, addrs: U64Array) -> tuple[Answers, U64Array]:
        """See :meth:`kdamon.mm.AddressSpace.end_sample_frames`."""
        answers = self.end_sample(addrs)
        with self._lock:
            if self._closed:
                return answers, np.zeros(len(addrs), dtype=np.uint64)
            # In this order: a page frame that is there now was there when the accessed bit was read.
            return answers, frames(entries_at(self._files.pagemap, addrs))

    def frames(self, addrs: U64Array) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.frames`."""
        with self._lock:
            if self._closed:
                return np.zeros(len(addrs), dtype=np.uint64)
            return exclusive_frames(entries_at(self._files.pagemap, addrs))

    def advise(self, action: str, ranges: U64Array) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.advise`."""
        return self._sum(ranges, self._steps(lambda: self._actions().apply(action, ranges)))

    def migrate(self, ranges: U64Array, dests: Sequence[tuple[int, int]]) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.migrate`."""
        return self._sum(ranges, self._steps(lambda: self._actions().migrate(ranges, dests)))

    def page_filter(self, ranges: U64Array, filters: Sequence[PageFilter], default_reject: bool) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.page_filter`."""
        found = self._steps(lambda: self._actions().passing(ranges, filters, default_reject))
        return np.concatenate([NO_RANGES, *found])

    def page_match(self, addrs: U64Array, filters: Sequence[PageFilter], answers: Answers | None = None) -> Mask:
        """See :meth:`kdamon.mm.Samples.page_match`."""
        with self._lock:
            if self._closed or not filters:
                return np.zeros((len(filters), len(addrs)), dtype=np.bool_)
            return PageSamples.of_process(self._files.pagemap, addrs).match(filters, answers)

    @abstractmethod
    def begin_sample(self, addrs: U64Array) -> None:
        """See :meth:`kdamon.mm.Samples.begin_sample`."""

    @abstractmethod
    def end_sample(self, addrs: U64Array) -> Answers:
        """See :meth:`kdamon.mm.Samples.end_sample`."""

    @staticmethod
    def _sum(ranges: U64Array, steps: Iterator[U64Array]) -> U64Array:
        """The bytes of each of ``ranges`` that all ``steps`` affected, shape (n,)."""
        applied = np.zeros(len(ranges), dtype=np.uint64)
        for step in steps:
            applied += step
        return applied

    def _actions(self) -> Advice:
        if self._advice is None:
            self._advice = Advice(self._files, self._pidfd)
        return self._advice

    def _steps(self, begin: Callable[[], Iterator[_Step]]) -> Iterator[_Step]:
        """Take the steps that ``begin`` starts, each under the lock, so that :meth:`close` waits for one at most."""
        steps: Iterator[_Step] | None = None
        while True:
            with self._lock:
                if self._closed:
                    return
                steps = steps or begin()
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step
