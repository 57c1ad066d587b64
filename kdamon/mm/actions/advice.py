# SPDX-License-Identifier: GPL-2.0-only
"""DAMOS actions by process_madvise(2), with a measurement of their effect (``mm/madvise.c``).

The system call returns how many bytes were advised. The effect can be smaller: memory without swap stays where it is,
pages that other processes map are left out, no huge page may be free. So the pages are examined before and after:

==========  ================================================================================================
action      bytes that it was applied to
==========  ================================================================================================
pageout     were mapped before and are neither mapped nor in memory now: written to swap, or dropped because a file has
            them (a page that must be written to its file first is unmapped, but stays in memory and does not count)
cold        are mapped and not accessed any more (huge pages partly in a range are split, as in the kernel)
collapse    are part of a huge page now and were not before
willneed    of files that came into memory, mapped or not; pages that come back from swap cannot be counted
hugepage    are allowed to be huge pages now and were not before; nohugepage likewise
migrate_*   are on the wanted NUMA node now and were not before
==========  ================================================================================================

Mappings that the kernel would not touch (locked, huge TLB, device memory) refuse advice and are left out.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U64Array
from kdamon.kernel import PAGE_SIZE, PMD_SIZE
from kdamon.lib.rights import refusal
from kdamon.mm import PageFilter, ranges
from kdamon.mm.actions.huge_pages import HugePages
from kdamon.mm.actions.madvise import Adviser
from kdamon.mm.actions.migrate import Migration
from kdamon.mm.actions.page_cache import FileMappings
from kdamon.mm.actions.page_filter import PageGroup
from kdamon.mm.mman import MADV_COLD, MADV_COLLAPSE, MADV_PAGEOUT, MADV_WILLNEED
from kdamon.mm.proc import maps
from kdamon.mm.proc.kpageflags import shared_folios
from kdamon.mm.proc.pagemap import Pagemap, anonymous, exclusive, frames, present, swapped
from kdamon.mm.proc.process_files import ProcessFiles

__all__ = ["Advice", "has_swap"]

_ADVICE: Final = {
    "willneed": MADV_WILLNEED,
    "cold": MADV_COLD,
    "pageout": MADV_PAGEOUT,
    "collapse": MADV_COLLAPSE,
}

#: Bytes that are paged out in one call, where no folio reaches over the cut: the call takes some 0.1 ms.
_PIECE: Final = 1 << 18

#: Bytes of a file that are brought into memory in one step.
_GIB: Final = 1 << 30
#: Bytes that one advice is about there. The kernel reads no more than the device takes in one request, or the default
#: read-ahead, which is this, and leaves the rest out (``mm/readahead.c: force_page_cache_ra()``).
_READ_AHEAD: Final = 1 << 17

#: Nanoseconds for which a list of mappings is used.
_REMEMBERED: Final = 100_000_000


class Advice:
    """Gives advice about one address space.

    :param files: of the address space; stays the caller's.
    :param pidfd: the process; stays the caller's.
    """

    def __init__(self, files: ProcessFiles, pidfd: int) -> None:
        self._files = files
        self._adviser = Adviser(pidfd, files.pagemap)
        self._pagemap = Pagemap(files.pagemap)
        self._huge_pages = HugePages(files, pidfd)
        self._checked: set[str] = set()

    def apply(self, action: str, wanted: U64Array) -> Iterator[U64Array]:
        """Apply ``action`` to the memory in ``wanted``, at most a gibibyte at each step.

        :returns: the bytes of each range that it was applied to, step by step, shape (n,).
        :raises OSError: see :meth:`kdamon.mm.AddressSpace.advise`.
        """
        if action in {"hugepage", "nohugepage"}:
            yield self._huge_pages.apply(action, wanted)
            return
        if action not in _ADVICE:
            raise OSError(errno.EOPNOTSUPP, f"user space cannot do {action} to another process; use another action")
        if not self._files.alive():
            # After an exec the advice would go to the new program.
            return
        self._check(action)
        if action == "willneed":
            yield from self._willneed(wanted)
            return
        mapped = ranges.intersect(ranges.union(wanted, ranges.NO_RANGES), self._mappings())
        do = {"cold": self._cold, "pageout": self._pageout, "collapse": self._collapse}[action]
        for blocks in self._pagemap.groups(mapped):
            applied = do(blocks, mapped)
            if not self._files.alive():
                # All of the memory is gone, but not by this action.
                return
            yield ranges.overlaps(wanted, ranges.of_pages(applied))

    def migrate(self, wanted: U64Array, dests: Sequence[tuple[int, int]]) -> Iterator[U64Array]:
        """Migrate the memory in ``wanted``, see :meth:`kdamon.mm.AddressSpace.migrate`, step by step."""
        return Migration(self._files, self._pagemap).apply(wanted, dests)

    def passing(self, wanted: U64Array, filters: Sequence[PageFilter], default_reject: bool) -> Iterator[U64Array]:
        """The pages in ``wanted`` that pass ``filters``, as ranges, at most a gibibyte at each step.

        :raises OSError: see :meth:`kdamon.mm.AddressSpace.page_filter`.
        """
        if not self._files.alive():
            return
        mapped = ranges.intersect(ranges.union(wanted, ranges.NO_RANGES), self._mappings())

        def make_old(young: U64Array) -> None:
            # Kernel: vaddr clears the bit alone. Here: the page is deactivated, too, because MADV_COLD does both.
            # (docs/deviations.md#the-filter-for-young-pages)
            self._check("cold", "a filter of type young")
            young = ranges.intersect(young, mapped)
            self._advise(ranges.intersect(young, ranges.blocks(young, PMD_SIZE)), "cold")

        for blocks in self._pagemap.groups(mapped):
            yield PageGroup(self._pagemap, blocks, mapped).passing(filters, default_reject, make_old)

    def _check(self, action: str, purpose: str = "") -> None:
        """Check whether ``action`` works on this machine; ``purpose`` is the user's word for it, for the sentence."""
        if action in self._checked:
            return
        try:
            self._adviser.check(_ADVICE[action])
        except OSError as error:
            if not self._files.alive():
                return
            if error.errno == errno.EPERM:
                raise refusal(
                    f"{purpose or action} on another process's memory needs", "process_madvise()", "CAP_SYS_NICE"
                ) from error
            if error.errno in {errno.EINVAL, errno.ENOSYS}:
                raise OSError(
                    errno.EOPNOTSUPP,
                    f"this kernel cannot do {purpose or action} to another process; use another one or a newer kernel",
                ) from error
            if error.errno == errno.ESRCH:
                raise OSError(
                    errno.ESRCH,
                    f"{purpose or action} needs the process's first thread, which ended; use hugepage or nohugepage",
                ) from error
            raise
        if action in {"cold", "collapse"}:
            # Before the action: only the page table walk can measure its effect.
            self._pagemap.walk(np.empty(0, dtype=np.uint64))
        self._checked.add(action)

    def _mappings(self) -> U64Array:
        return self._files.mappings.recent(_REMEMBERED).ranges

    def _advise(self, chunks: U64Array, action: str, huge: U64Array = ranges.NO_RANGES) -> U64Array:
        """Advise ``chunks``, each in one mapping and small enough for the adviser; returns those that were taken.

        :param huge: blocks that are a huge page, which has one page table entry.
        """
        # A mapping refuses other advice as a whole, but a collapse may fail because of a single page.
        refused = (lambda addr: addr) if action == "collapse" else self._end_of_mapping
        sizes = chunks[:, 1] - chunks[:, 0]
        entries = np.where(np.isin(chunks[:, 0], huge[:, 0]), np.uint64(1), sizes // np.uint64(PAGE_SIZE))
        return chunks[self._adviser.advise_each(chunks[:, 0], sizes, _ADVICE[action], refused, entries)]

    # Deviation: docs/deviations.md#one-mapping-that-refuses
    def _end_of_mapping(self, addr: int) -> int:
        found = maps.containing(self._files.mappings.known().ranges, addr)
        return addr if found is None else found[1]

    def _pageout(self, blocks: U64Array, mapped: U64Array) -> U64Array:
        """Page out what is mapped in ``blocks``; returns the pages that left memory, as do those that follow."""
        pages = self._pagemap.pages(blocks)
        entries = self._pagemap.entries(blocks)
        # Kernel: leaves pages out that other processes map, but not those of large folios that this one maps twice.
        # Here: those, too, because a view that is not accessed says nothing about the other one.
        # (docs/deviations.md#memory-that-a-process-maps-twice)
        before = present(entries) & exclusive(entries) & ranges.inside(mapped, pages)
        if not has_swap():
            # Kernel: without swap a pageout of anonymous memory reclaims nothing but splits its huge pages. Here: it
            # is not asked for, because that only harms. (docs/deviations.md#anonymous-memory-without-swap)
            before &= ~anonymous(entries)
        before &= anonymous(entries) | ~ranges.inside(self._partly_meant(blocks, mapped), pages)
        if not before.any():
            return pages[:0]
        wanted = ranges.intersect(ranges.of_pages(pages[before]), mapped)
        self._advise(ranges.intersect(wanted, self._pieces(blocks, pages, entries)), "pageout")
        after = self._pagemap.entries(blocks)
        # Pages that are neither in memory nor in swap were freed by the process itself.
        gone = before & ~present(after) & (swapped(after) | ~anonymous(entries))
        of_files = np.flatnonzero(gone & ~anonymous(entries))
        # Deviation: docs/deviations.md#dirty-file-pages
        gone[of_files[self._still_cached(frames(entries[of_files]))]] = False
        return pages[gone]

    def _pieces(self, blocks: U64Array, pages: U64Array, entries: U64Array) -> U64Array:
        """``blocks`` divided into smaller ranges, no folio divided; whole blocks if the folios are not visible."""
        at = np.flatnonzero((pages % np.uint64(_PIECE) == 0) & present(entries))
        pfns = frames(entries[at])
        try:
            cuts = pages[at[shared_folios().table(pfns).heads == pfns]] if pfns.any() else pages[:0]
        except PermissionError:
            cuts = pages[:0]
        starts = np.union1d(blocks[:, 0], cuts)
        ends = starts - starts % np.uint64(PMD_SIZE) + np.uint64(PMD_SIZE)
        ends[:-1] = np.minimum(ends[:-1], starts[1:])
        return np.stack((starts, ends), axis=1)

    def _partly_meant(self, blocks: U64Array, mapped: U64Array) -> U64Array:
        """The huge pages among ``blocks`` of which only a part is in ``mapped``."""
        # Kernel: splits them. Here: those of files stay, because to split one of a file is to unmap it: it leaves the
        # process and stays in memory, where no advice finds it again.
        # (docs/deviations.md#huge-pages-of-files-stay-whole)
        pieces = ranges.intersect(mapped, blocks)
        whole = pieces[pieces[:, 1] - pieces[:, 0] == PMD_SIZE]
        partly = blocks[~np.isin(blocks[:, 0], whole[:, 0])]
        try:
            found: U64Array = partly[self._pagemap.huge(partly)[0]]
        except OSError:
            # Without the page table walk this is unknown.
            return partly[:0]
        return found

    def _still_cached(self, pfns: U64Array) -> Mask:
        """Which of the page frames ``pfns``, which were mapped, still hold the same data, shape (n,).

        Pages that must be written first, and shared memory without swap, are unmapped and stay.
        """
        if pfns.any():
            try:
                return shared_folios().table(pfns).cached()
            except PermissionError:
                pass
        # Without CAP_SYS_ADMIN the pagemap shows no frames, nor may their flags be read.
        return np.zeros(len(pfns), dtype=np.bool_)

    def _cold(self, blocks: U64Array, mapped: U64Array) -> U64Array:
        taken = self._advise(ranges.intersect(mapped, blocks), "cold", blocks[self._pagemap.huge(blocks)[0]])
        pages = self._pagemap.pages(blocks)
        pages = pages[present(self._pagemap.entries(blocks)) & ranges.inside(taken, pages)]
        return pages[~self._pagemap.accessed(pages)]

    def _collapse(self, blocks: U64Array, mapped: U64Array) -> U64Array:
        chunks = ranges.intersect(mapped, blocks)
        whole = chunks[chunks[:, 1] - chunks[:, 0] == PMD_SIZE]
        small = whole[self._pagemap.huge(whole)[1]]
        self._advise(small, "collapse")
        return self._pagemap.pages(small[self._pagemap.huge(small)[0]])

    # Deviation: docs/deviations.md#what-willneed-counts
    def _willneed(self, wanted: U64Array) -> Iterator[U64Array]:
        # The link leads to /proc/PID/pagemap; a process that ended since is noticed before anything is counted.
        directory = os.path.dirname(os.readlink(f"/proc/self/fd/{self._files.pagemap}"))
        files = FileMappings(directory, self._files.mappings.recent(_REMEMBERED))
        # Cut where one of the wanted ranges ends: what comes into memory is counted for each.
        of_files, others = files.within(ranges.intersect(wanted, self._mappings()))
        if has_swap():
            for blocks in self._pagemap.groups(others):
                pages = self._pagemap.pages(blocks)
                there = ranges.of_pages(pages[swapped(self._pagemap.entries(blocks)) & ranges.inside(others, pages)])
                self._advise(ranges.intersect(ranges.intersect(there, others), blocks), "willneed")
                yield np.zeros(len(wanted), dtype=np.uint64)
        for start, end in _pieces(of_files, _GIB):
            before = files.cached(start, end)
            piece = np.array([[start, end]], dtype=np.uint64)
            self._advise(ranges.intersect(piece, ranges.blocks(piece, _READ_AHEAD)), "willneed")
            after = files.cached(start, end)
            if before is not None and after is not None and self._files.alive():
                yield np.where(ranges.overlaps(wanted, piece) > 0, np.uint64(max(after - before, 0)), np.uint64(0))


def _pieces(wanted: U64Array, size: int) -> Iterator[tuple[int, int]]:
    """``wanted`` in pieces of at most ``size`` bytes."""
    for start, end in wanted.tolist():
        for first in range(start, end, size):
            yield first, min(first + size, end)


def has_swap() -> bool:
    """Return whether anonymous memory has somewhere to go."""
    try:
        with open("/proc/swaps", "rb") as swaps:
            return len(swaps.readlines()) > 1
    except OSError:
        # A kernel without swap has no such file.
        return False
