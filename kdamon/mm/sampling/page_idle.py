# SPDX-License-Identifier: GPL-2.0-only
"""The ``page_idle`` primitive: the bitmap of idle pages (``mm/page_idle.c``, CONFIG_IDLE_PAGE_TRACKING).

Writing a page's bit clears the accessed bits of all its mappings; the bit reads as 1 until one of them is set again.
It works for shared and locked pages, leaves the LRU lists alone and loads no program, but takes several system calls
for each address. As in the kernel's own DAMON the TLB is not flushed: an access through a cached translation is not
seen.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

import numpy as np

from kdamon.arrays import Mask, U64Array, distinct
from kdamon.kernel import PAGE_SHIFT
from kdamon.mm import OLD, UNKNOWN, YOUNG, Answers
from kdamon.mm.proc.kpageflags import COMPOUND_TAIL, LRU, Folios
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.sampling.space import NOTHING, ProcessSpace

__all__ = ["BITMAP", "Bitmap", "PageIdleSpace", "PagemapFrames"]

BITMAP: Final = "/sys/kernel/mm/page_idle/bitmap"

_PRESENT: Final = 1 << 63
_PFN_MASK: Final = (1 << 55) - 1
_PAGE_MASK: Final = np.uint64(0xFFFF_FFFF_FFFF_F000)


class Frames(Protocol):
    """Finds page frame numbers."""

    def pfns(self, addrs: U64Array) -> U64Array:
        """The page frames at ``addrs``, 0 where nothing is mapped, shape (n,)."""
        ...


class PagemapFrames:
    """Page frame numbers from an open /proc/PID/pagemap, which shows them with CAP_SYS_ADMIN."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pfns(self, addrs: U64Array) -> U64Array:
        """See :class:`Frames`."""
        fd = self._fd
        offsets = ((addrs >> np.uint64(PAGE_SHIFT)) << np.uint64(3)).tolist()
        # Addresses of the kernel's half are beyond the end of the file, or of any file.
        raw = b"".join((os.pread(fd, 8, offset) if offset < 1 << 48 else b"").ljust(8, b"\0") for offset in offsets)
        entries = np.frombuffer(raw, dtype=np.uint64)
        found: U64Array = entries & np.uint64(_PFN_MASK)
        found[(entries & np.uint64(_PRESENT)) == 0] = 0
        return found


class Bitmap:
    """One bit a page frame, in words of 64.

    :param path: /sys/kernel/mm/page_idle/bitmap.
    :raises OSError: as open(2).
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the file descriptor back."""
        os.close(self._fd)

    def set_idle(self, pfns: U64Array) -> None:
        """Mark the page frames ``pfns`` (ascending, each once) as idle; the other bits of a word are not touched."""
        if not len(pfns):
            return
        words = pfns >> np.uint64(6)
        bits = np.uint64(1) << (pfns & np.uint64(63))
        firsts = np.flatnonzero(np.r_[True, words[1:] != words[:-1]])
        values = np.bitwise_or.reduceat(bits, firsts)
        for word, value in zip(words[firsts].tolist(), values.tolist(), strict=True):
            os.pwrite(self._fd, value.to_bytes(8, "little"), 8 * word)

    def idle(self, pfns: U64Array) -> Mask:
        """Return which page frames ``pfns`` are idle, shape (n,), bool; one that does not exist is not."""
        words, back = np.unique(pfns >> np.uint64(6), return_inverse=True)
        raw = b"".join(os.pread(self._fd, 8, 8 * word).ljust(8, b"\0") for word in words.tolist())
        values = np.frombuffer(raw, dtype=np.uint64)[back.reshape(-1)]
        return (values >> (pfns & np.uint64(63)) & np.uint64(1)) != 0


class PageIdleSpace(ProcessSpace):
    """An address space whose accesses the idle page bitmap shows.

    :param files: becomes this object's; :meth:`close` closes it.
    :param pidfd: the process; stays the caller's.
    :param frames: finds the page frames of addresses in ``files``.
    """

    def __init__(self, bitmap: Bitmap, folios: Folios, files: ProcessFiles, pidfd: int, frames: Frames) -> None:
        super().__init__(files, pidfd)
        self._bitmap = bitmap
        self._folios = folios
        self._frames = frames

    def same(self, files: ProcessFiles) -> bool:
        """Return whether ``files`` are of this address space."""
        with self._lock:
            return not self._closed and self._files.same(files)

    def begin_sample(self, addrs: U64Array) -> None:
        """See :meth:`kdamon.mm.Samples.begin_sample`."""
        pages = addrs & _PAGE_MASK
        with self._lock:
            self._sampled, self._unknown = None, NOTHING
            if not self._closed and len(pages):
                self._files.mappings.go_on(self._share())
                pfns, tracked = self._heads(pages)
                self._bitmap.set_idle(distinct(pfns[tracked]))
                self._unknown = distinct(pages[(pfns != 0) & ~tracked])
            self._sampled = addrs, pages

    def end_sample(self, addrs: U64Array) -> Answers:
        """See :meth:`kdamon.mm.Samples.end_sample`."""
        answers: Answers = np.full(len(addrs), OLD, dtype=np.uint8)
        with self._lock:
            pages = self._end(addrs)
            if pages is None:
                answers[:] = UNKNOWN
                return answers
            if self._closed or not len(pages):
                return answers
            pfns, tracked = self._heads(pages)
            mapped = np.flatnonzero(pfns)
            busy = mapped[~self._bitmap.idle(pfns[mapped])]
            answers[busy] = YOUNG
            answers[busy[~tracked[busy]]] = UNKNOWN
            if len(self._unknown):
                answers[np.isin(pages, self._unknown) & (pfns != 0)] = UNKNOWN
        return answers

    def _heads(self, addrs: U64Array) -> tuple[U64Array, Mask]:
        """The page frames of ``addrs``, and whether the kernel tracks them.

        It tracks pages on LRU lists, not the zero page and kin; and of a folio only the first page.
        """
        pfns = self._frames.pfns(addrs)
        tracked = np.zeros(len(pfns), dtype=np.bool_)
        for index in np.flatnonzero(pfns).tolist():
            flags = self._folios.flags(int(pfns[index])) or 0
            if flags & COMPOUND_TAIL:
                extent = self._folios.extent(int(pfns[index]))
                if extent is None:
                    continue
                pfns[index] = extent[0]
                flags = self._folios.flags(extent[0]) or 0
            tracked[index] = bool(flags & LRU)
        return pfns, tracked
