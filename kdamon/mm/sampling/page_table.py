# SPDX-License-Identifier: GPL-2.0-only
"""The ``page_table`` primitive: accessed bits read by a page table walk and cleared by MADV_COLD.

It is what ``mm/damon/vaddr.c`` does with damon_ptep_mkold() and damon_young_pmd_entry(), with these differences:

* A page that several processes (or two mappings) share, the zero page, locked, huge TLB and device mappings, and
  1 GiB pages cannot be made old. Samples of them are UNKNOWN when they were young before.
* A 2 MiB page, and a folio of the page cache or of a multi-size THP, is made old as a whole: a part of it would make
  the kernel split it. A folio that is not mapped as a whole is left alone, and a young sample in it is UNKNOWN.
* A young page is moved to the inactive LRU list. (docs/deviations.md#accessed-bits-are-cleared-by-advice)

As in the kernel, a page that was not mapped and that the fault of a neighbour mapped (fault-around) looks accessed.
No page is armed, so the target needs no clean-up, whatever happens to this process.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from kdamon.arrays import Indexes, Mask, U8Array, U64Array, distinct
from kdamon.kernel import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from kdamon.mm import UNKNOWN, Answers
from kdamon.mm.actions.madvise import Adviser, drain_lru
from kdamon.mm.bpf.walk_program import ACCESSED, CLEARABLE, LARGE, LEVEL, PRESENT
from kdamon.mm.bpf.walker import Walker
from kdamon.mm.mman import MADV_COLD
from kdamon.mm.mmap_lock import stays_locked
from kdamon.mm.proc import maps
from kdamon.mm.proc.kpageflags import Folios
from kdamon.mm.proc.pagemap import entries_at, frames
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.sampling.page_watch import PageTableWatch
from kdamon.mm.sampling.space import NOTHING, ProcessSpace

__all__ = ["LOCKED", "PageTableSpace"]

_PAGE_SIZE: Final = np.uint64(PAGE_SIZE)
_PAGE_MASK: Final = np.uint64(0xFFFF_FFFF_FFFF_F000)
_PAGE_SHIFT: Final = np.uint64(PAGE_SHIFT)
_PMD_SIZE: Final = np.uint64(PMD_SIZE)
_PMD_MASK: Final = ~np.uint64(PMD_SIZE - 1)

#: Nanoseconds for which a mapping that refused MADV_COLD is not asked again, and a list of mappings is used.
_REMEMBERED: Final = 1_000_000_000

#: ACCESSED in a flag byte is YOUNG at this place.
_ACCESSED_SHIFT: Final = np.uint8(5)
_ONE: Final = np.uint8(1)

#: Seconds for which others wait for the lock of the process's memory, before that counts as held for ever.
LOCKED: Final = 0.001


class PageTableSpace(ProcessSpace):
    """An address space whose accessed bits are read from its page tables.

    :param files: becomes this object's; :meth:`close` closes it.
    :param pidfd: the process; stays the caller's.
    """

    def __init__(self, walker: Walker, folios: Folios, files: ProcessFiles, pidfd: int) -> None:
        super().__init__(files, pidfd)
        self._walker = walker
        self._folios = folios
        self._adviser = Adviser(pidfd, files.pagemap)
        self._refusing: list[tuple[int, int]] = []
        self._forget_at = 0
        #: Its page directory, 0 until that is needed.
        self._directory = 0

    def same(self, files: ProcessFiles) -> bool:
        """Return whether ``files`` are of this very address space."""
        with self._lock:
            return not self._closed and self._walker.mm(files.pagemap) == self._walker.mm(self._files.pagemap)

    def begin_sample(self, addrs: U64Array) -> None:
        """See :meth:`kdamon.mm.Samples.begin_sample`."""
        pages = addrs & _PAGE_MASK
        with self._lock:
            self._sampled, self._unknown = None, NOTHING
            if not self._closed and len(pages):
                self._files.mappings.go_on(self._share())
                flags, entries = self._walker.walk(self._files.pagemap, pages)
                young = np.flatnonzero(flags & ACCESSED)
                if len(young) and stays_locked(self._files.pagemap, LOCKED):
                    self._unknown = distinct(pages[young])
                elif len(young):
                    self._clear(pages[young], flags[young], entries[young])
            self._sampled = addrs, pages

    def end_sample(self, addrs: U64Array) -> Answers:
        """See :meth:`kdamon.mm.Samples.end_sample`."""
        with self._lock:
            pages = self._end(addrs)
            if pages is None:
                return np.full(len(addrs), UNKNOWN, dtype=np.uint8)
            if self._closed or not len(pages):
                return np.zeros(len(pages), dtype=np.uint8)
            return self._answers(pages, self._walker.young(self._files.pagemap, pages))

    def end_sample_frames(self, addrs: U64Array) -> tuple[Answers, U64Array]:
        """See :meth:`kdamon.mm.AddressSpace.end_sample_frames`; the same entries hold both."""
        with self._lock:
            pages = self._end(addrs)
            if pages is None:
                return np.full(len(addrs), UNKNOWN, dtype=np.uint8), np.zeros(len(addrs), dtype=np.uint64)
            if self._closed or not len(pages):
                return np.zeros(len(pages), dtype=np.uint8), np.zeros(len(pages), dtype=np.uint64)
            flags, entries = self._walker.walk(self._files.pagemap, pages)
            mapped = (flags & PRESENT) != 0
            found = self._pfns(pages, entries, mapped)
            huge = (flags & LEVEL) == 2
            if huge.any():
                within = ~_PMD_MASK >> _PAGE_SHIFT
                found[huge] = (found[huge] & ~within) | (pages[huge] >> _PAGE_SHIFT & within)
            found[~mapped] = 0
            return self._answers(pages, flags), found

    def watch(self) -> PageTableWatch:
        """See :meth:`kdamon.mm.AddressSpace.watch`."""
        return PageTableWatch(self, self._walker)

    # Whole intervals, see kdamon.mm.sampling.intervals.

    def can_be_listed(self) -> bool:
        """Return whether its pages may be cleared without looking for mappings that refuse it."""
        with self._lock:
            self._forget()
            return not self._closed and not self._refusing

    def clear_listed(self, address: int, count: int) -> bool:
        """Make ``count`` pages old, see :meth:`kdamon.mm.actions.madvise.Adviser.advise_pages`; False: perhaps not."""
        with self._lock:
            return self._closed or self._adviser.advise_pages(address, count, MADV_COLD)

    def clear_ranges(self, starts: U64Array, sizes: U64Array) -> bool:
        """Make pages of any size old; returns whether the kernel took all.

        :param starts: their addresses, shape (n,), as ``sizes``.
        """
        with self._lock:
            entries = np.ones(len(starts), dtype=np.uint64)
            return self._closed or self._adviser.advise(starts, sizes, MADV_COLD, entries)[0] == len(starts)

    def clear_looked_at(self, pages: U64Array, flags: U8Array, entries: U64Array, *, neighbours: bool = False) -> Mask:
        """Make young ``pages`` old; returns which of them could not be, shape (n,).

        :param flags: of a walk, as ``entries``; of shape (n,) all.
        :param neighbours: whether many of them are side by side, so that advice in runs costs other CPUs less.
        """
        with self._lock:
            # A sample may be under way.
            kept, self._unknown = self._unknown, NOTHING
            if not self._closed:
                self._clear(pages, flags, entries, neighbours=neighbours)
            failed: Mask = np.isin(pages, self._unknown)
            self._unknown = kept
            return failed

    def read_mappings(self) -> bool:
        """Go on to read the mappings, if that is under way; returns whether it still is."""
        with self._lock:
            mappings = self._files.mappings
            if self._closed or not mappings.under_way:
                return False
            mappings.go_on(self._share())
            return mappings.under_way

    def _answers(self, pages: U64Array, flags: U8Array) -> Answers:
        """The answers for the sampled ``pages`` by the ``flags`` of a walk."""
        answers: Answers = (flags >> _ACCESSED_SHIFT) & _ONE
        if not flags.all():
            answers[flags == 0] = UNKNOWN
        if len(self._unknown):
            # Deviation: docs/deviations.md#pages-whose-bit-cannot-be-cleared
            answers[np.isin(pages, self._unknown) & ((flags & PRESENT) != 0)] = UNKNOWN
        return answers

    def _clear(self, pages: U64Array, flags: U8Array, entries: U64Array, *, neighbours: bool = False) -> None:
        """Make young ``pages`` old, and remember those that could not be.

        A page that is young again right after it was cleared is either in heavy use or was not cleared. It was
        cleared if the kernel had no reason not to, before and after. A page for which the reason went away in
        between (it sat in a CPU's batch, say) is cleared once more.
        """
        starts = pages.copy()
        sizes = np.full(len(pages), _PAGE_SIZE)
        level = flags & LEVEL
        huge = level == 2
        if huge.any():
            # Deviation: docs/deviations.md#leaves-and-folios-are-cleared-whole
            starts[huge] &= _PMD_MASK
            sizes[huge] = _PMD_SIZE
        self._note(starts)
        refused = level > 2
        large = np.flatnonzero(flags & LARGE)
        if len(large):
            self._widen(large, pages, entries, starts, sizes, refused)
        refused |= self._in_refusing(pages)
        self._cold(starts, sizes, refused, neighbours=neighbours)

        drain_lru()
        flags_after, entries_after = self._walker.walk(self._files.pagemap, pages)
        still = (flags_after & ACCESSED) != 0
        if not still.any():
            return
        cleared = (flags & flags_after & CLEARABLE) != 0
        again = np.flatnonzero(still & ~refused & ~cleared)
        if len(again):
            failed = ~self._clearable(pages[again], flags_after[again], entries_after[again])
            self._cold(starts[again], sizes[again], failed)
            refused[again] |= failed
        self._unknown = distinct(pages[still & refused])

    def _note(self, pages: U64Array) -> None:
        """Note the watched ones among ``pages``, which are young and to be made old."""
        if self._walker.watched.in_use:
            if not self._directory:
                self._directory = self._walker.page_directory(self._files.pagemap)[1]
            self._walker.watched.note(self._directory, pages)

    def _pfns(self, pages: U64Array, entries: U64Array, mapped: Mask) -> U64Array:
        """The page frames of ``pages``, where they are ``mapped``."""
        found = self._walker.pfns(entries)
        hidden = np.flatnonzero(mapped & (found == 0))
        if len(hidden):
            # Of pages that NUMA balancing watches the entry is no plain one.
            found[hidden] = frames(entries_at(self._files.pagemap, pages[hidden]))
        return found

    def _clearable(self, pages: U64Array, flags: U8Array, entries: U64Array) -> Mask:
        clearable: Mask = (flags & CLEARABLE) != 0
        # For single 4 KiB pages the flags of the walk are enough.
        asked = ((flags & LEVEL) == 2) | ((flags & LARGE) != 0)
        pfns = self._pfns(pages, entries, asked)
        for index in np.flatnonzero(asked).tolist():
            listed = int(flags[index]) & LEVEL == 1
            clearable[index] = self._folios.clearable(int(pfns[index]), listed=listed)
        return clearable

    def _cold(self, starts: U64Array, sizes: U64Array, refused: Mask, *, neighbours: bool = False) -> None:
        """Apply MADV_COLD once to each range that is not in ``refused``, and add ranges that fail to ``refused``.

        :param neighbours: whether ranges side by side are advised as one; if one fails, all of them do.
        """
        wanted = np.flatnonzero(~refused)
        if not len(wanted):
            return
        wanted = wanted[starts[wanted].argsort(kind="stable")]
        ordered = starts[wanted]
        first = np.ones(len(wanted), dtype=np.bool_)
        np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
        # The entries of a folio lie side by side, and of each range one at least is young: it counts as one.
        entries = np.ones(int(first.sum()), dtype=np.uint64)
        lengths = sizes[wanted[first]]
        if neighbours:
            begins = self._begins(ordered[first], lengths)
            entries, lengths = np.add.reduceat(entries, begins), np.add.reduceat(lengths, begins)
            first[np.delete(np.flatnonzero(first), begins)] = False
        ranges = ordered[first]
        failed = ~self._adviser.advise_each(ranges, lengths, MADV_COLD, self._refuse, entries)
        if failed.any():
            refused[wanted] = failed[first.cumsum() - 1]

    def _begins(self, starts: U64Array, sizes: U64Array) -> Indexes:
        """Where runs of ranges side by side begin, each within one mapping and one block of 2 MiB."""
        apart = starts[1:] != starts[:-1] + sizes[:-1]
        apart |= (starts[1:] & ~_PMD_MASK) == 0
        apart |= np.isin(starts[1:], self._mappings()[:, 0])
        return np.append(0, np.flatnonzero(apart) + 1)

    def _refuse(self, addr: int) -> int:
        """Note that the mapping at ``addr`` refused MADV_COLD (locked, huge TLB, device), and return its end.

        /proc/PID/smaps would show that in advance, but it visits every page: tens of milliseconds a GiB.
        """
        found = maps.containing(self._mappings(), addr)
        if found is None:
            return addr
        if found not in self._refusing:
            self._refusing.append(found)
        return found[1]

    def _mappings(self) -> U64Array:
        return self._files.mappings.recent(_REMEMBERED).ranges

    def _forget(self) -> None:
        now = time.monotonic_ns()
        if now >= self._forget_at:
            self._forget_at = now + _REMEMBERED
            self._refusing.clear()

    def _in_refusing(self, pages: U64Array) -> Mask:
        self._forget()
        inside = np.zeros(len(pages), dtype=np.bool_)
        for start, end in self._refusing:
            inside |= (pages >= np.uint64(start)) & (pages < np.uint64(end))
        return inside

    def _widen(  # noqa: PLR0917 -- the columns of one batch
        self,
        large: Indexes,
        pages: U64Array,
        entries: U64Array,
        starts: U64Array,
        sizes: U64Array,
        refused: Mask,
    ) -> None:
        """Let the ranges of pages ``large`` be their whole folios, or refuse those that are not mapped as a whole."""
        wide: list[tuple[int, int, int, int]] = []
        pfns = self._pfns(pages[large], entries[large], np.ones(len(large), dtype=np.bool_))
        for index, pfn in zip(large.tolist(), pfns.tolist(), strict=True):
            extent = self._folios.extent(pfn)
            if extent is None:
                refused[index] = True
            elif extent[1] > 1:
                first, count = extent
                wide.append((index, int(pages[index]) - 4096 * (pfn - first), first, count))
        if not wide:
            return
        wanted = np.concatenate([start + 4096 * np.arange(count) for _, start, _, count in wide]).astype(np.uint64)
        flags, found = self._walker.walk(self._files.pagemap, wanted)
        mapped = (flags & PRESENT) != 0
        self._note(wanted[(flags & ACCESSED) != 0])
        found = self._pfns(wanted, found, mapped)
        found[~mapped] = 0
        at = 0
        for index, start, first, count in wide:
            expected = np.arange(first, first + count, dtype=np.uint64)
            whole = np.array_equal(found[at : at + count], expected)
            at += count
            vma = maps.containing(self._mappings(), start) if whole else None
            if vma is None or start + 4096 * count > vma[1]:
                refused[index] = True
            else:
                starts[index] = start
                sizes[index] = 4096 * count
