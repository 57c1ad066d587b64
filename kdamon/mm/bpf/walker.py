# SPDX-License-Identifier: GPL-2.0-only
"""Reads page table entries of any process, and what the kernel has of page frames and of mmap_lock (x86_64)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U8Array, U64Array
from kdamon.kernel import PAGE_SHIFT
from kdamon.mm import FrameKind
from kdamon.mm.bpf.btf import vmlinux
from kdamon.mm.bpf.calibration import calibrate
from kdamon.mm.bpf.interval_memory import RWSEM_FLAG_WAITERS
from kdamon.mm.bpf.interval_program import IntervalProgram
from kdamon.mm.bpf.running_cpus import TaskLayout
from kdamon.mm.bpf.shared import Shared
from kdamon.mm.bpf.walk_batches import WalkBatches
from kdamon.mm.bpf.walk_program import Word
from kdamon.mm.bpf.watched_pages import WatchedPages

__all__ = ["Walker", "heads_of", "made_walker", "shared_walker"]


class Walker(WalkBatches):
    """Walks page tables for up to :attr:`capacity` addresses in one system call.

    :param looped: use bpf_loop(); None tries it and falls back, which kernels before 5.17 need.
    :ivar watched: pages that samples have to note, see :class:`kdamon.mm.bpf.watched_pages.WatchedPages`.
    :raises OSError: EPERM or EOPNOTSUPP with a sentence on what this machine lacks.
    """

    def __init__(self, looped: bool | None = None) -> None:
        super().__init__(looped)
        #: What the address space of each open pagemap may be.
        self._mms: dict[int, int] = {}
        #: Pages that samples of this process have to note.
        self.watched = WatchedPages()
        try:
            calibrate(self)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unload the program and give its memory back."""
        self.watched.close()
        super().close()

    def young(self, pagemap_fd: int, addrs: U64Array) -> U8Array:
        """The flags of :meth:`walk` alone."""
        count = len(addrs)
        if count > self.capacity:
            return self.walk(pagemap_fd, addrs)[0]
        with self.lock:
            self.header[Word.FD] = pagemap_fd
            self.run(addrs, count)
            return self._flags[:count].copy()

    def frame_kinds(self, pagemap_fd: int, pfns: U64Array) -> U8Array:
        """The kinds of page frames by the kernel's ``struct page``, a value of :class:`FrameKind` each, shape (n,).

        The kind stays open for reserved pages, addresses without memory, folios of several pages that are on no LRU
        list, and for all if the layout of ``struct page`` is unknown.

        :param pagemap_fd: any open /proc/PID/pagemap.
        :param pfns: shape (n,), any order.
        """
        found = np.full(len(pfns), FrameKind.UNKNOWN, dtype=np.uint8)
        page, vmemmap = self.layout.page, self.header[Word.VMEMMAP]
        # Nothing beyond RAM is read: device registers may be there.
        there = np.flatnonzero(pfns < self.header[Word.LIMIT] >> np.uint64(PAGE_SHIFT))
        if page is None or not vmemmap or not len(there):
            return found
        places = vmemmap + pfns[there] * np.uint64(page.size)
        with self.lock:
            self.header[Word.FD] = pagemap_fd
            readable, (compound, flags, counts) = self._members(places, (page.compound, page.flags, page.counts))
            tail = (compound & np.uint64(1)) != 0
            heads = np.where(tail, heads_of(places, compound), places)
            large = readable & (tail | ((flags & np.uint64(page.head)) != 0))
            large &= (heads >= vmemmap) & (heads <= places)
            large_readable, (head_flags, mapcount) = self._members(
                heads[large], (page.flags, page.flags if page.large_mapcount is None else page.large_mapcount)
            )
        single = readable & ~tail & ((flags & np.uint64(page.head | page.reserved)) == 0)
        # One less than the number of mappings; the types of pages that are not mapped are further below.
        mappings = counts.astype(np.uint32).view(np.int32)
        # Memory that was not put into use since boot has 0 in everything.
        used = counts >> np.uint64(32) != 0
        on_list = (flags & np.uint64(page.lru)) != 0
        kinds = np.where(used & (mappings == 0), FrameKind.MAPPED_ONCE, FrameKind.OTHER)
        kinds[((mappings < 0) | ~used) & ~on_list] = FrameKind.UNREACHABLE
        found[there[single]] = kinds[single]
        once = (mapcount.astype(np.uint32) == 0) & (page.large_mapcount is not None)
        kinds = np.where(once, FrameKind.MAPPED_ONCE, FrameKind.OTHER)
        on_list = large_readable & ((head_flags & np.uint64(page.lru)) != 0)
        found[there[large][on_list]] = kinds[on_list]
        return found

    def _members(self, places: U64Array, members: Sequence[int]) -> tuple[Mask, U64Array]:
        """Which structures at ``places`` can be read, and 8 bytes at each offset in them, shape (len(members), n)."""
        offsets = np.array(members, dtype=np.uint64)
        readable, words = self.peek((places + offsets[:, None]).ravel())
        whole: Mask = np.logical_and.reduce(readable.reshape(len(offsets), -1))
        return whole, words.reshape(len(offsets), -1)

    def waited_for(self, pagemap_fd: int, unseen: bool = True) -> bool:
        """Return whether some thread waits for the mmap_lock of the address space of an open /proc/PID/pagemap.

        :param unseen: the answer where that cannot be seen.
        """
        word = self._word_of_mm(pagemap_fd, self.layout.mmap_lock)
        return unseen if word is None else bool(word & RWSEM_FLAG_WAITERS)

    def changes(self, pagemap_fd: int) -> int | None:
        """A number that differs from an earlier one if the mappings changed since, None where the kernel has none.

        It is ``mm_lock_seq``: every change of a mapping takes the mmap_lock for writing.

        :param pagemap_fd: open /proc/PID/pagemap of the address space.
        """
        word = self._word_of_mm(pagemap_fd, self.layout.mm_lock_seq)
        return None if word is None else word & 0xFFFF_FFFF

    def table_bytes(self, pagemap_fd: int) -> int | None:
        """How many bytes the page tables of the address space take, None where that is not known.

        :param pagemap_fd: open /proc/PID/pagemap of the address space.
        """
        return self._word_of_mm(pagemap_fd, self.layout.pgtables_bytes)

    def _word_of_mm(self, pagemap_fd: int, offset: int | None) -> int | None:
        """8 bytes at ``offset`` in the ``struct mm_struct`` of an open /proc/PID/pagemap, None if they are not seen."""
        if offset is None:
            return None
        with self.lock:
            self.header[Word.FD] = pagemap_fd
            while True:
                # The shared memory shows afterwards for which address space the program ran.
                expected = self._mms.get(pagemap_fd, 0)
                readable, words = self.peek(np.array([expected + offset], dtype=np.uint64))
                mm = int(self.header[Word.MM])
                if mm == expected:
                    return int(words[0]) if readable[0] else None
                self._mms[pagemap_fd] = mm

    def page_directory(self, pagemap_fd: int) -> tuple[int, int]:
        """Where the ``struct mm_struct`` of an open /proc/PID/pagemap is, and its page directory; they stay there."""
        with self.lock:
            self.header[Word.FD] = pagemap_fd
            self.run(np.empty(0, dtype=np.uint64), 0)
            return int(self.header[Word.MM]), int(self.header[Word.PGD])

    def interval_program(self) -> IntervalProgram:
        """A new program for whole sampling intervals, the caller's to close.

        :raises OSError: EPERM without the rights; EOPNOTSUPP, and what the verifier says, where the kernel cannot.
        """
        with self.lock:
            return IntervalProgram(self.layout, TaskLayout(vmlinux()), self.header.copy(), self.watched.fd)


def heads_of(places: U64Array, compound: U64Array) -> U64Array:
    """The addresses of the ``struct page`` of folios, from those of tail pages, shape (n,).

    :param places: theirs.
    :param compound: ``compound_head`` in them, the head's address with bit 0 set. Newer kernels have ``compound_info``
        in its place, which may be a mask that makes the head's address of the tail's (``include/linux/page-flags.h:
        _compound_head()``). A mask is greater than any address, and a head lies before its tails.
    """
    return np.where(compound > places, places & compound, compound - np.uint64(1))


_shared: Final = Shared(Walker)


def made_walker() -> Walker | None:
    """The walker that :func:`shared_walker` made before; None if there is none."""
    return _shared.made()


def shared_walker() -> Walker:
    """The one walker of this process, made when it is first asked for; any thread may use it.

    :raises OSError: see :class:`Walker`; a failure is not remembered.
    """
    return _shared.get()
