# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel says about physical pages: /proc/kpageflags, /proc/kpagecount (``fs/proc/page.c``)."""

from __future__ import annotations

import contextlib
import os
from typing import Final

import numpy as np

__all__ = ["COMPOUND_HEAD", "COMPOUND_TAIL", "LRU", "Folios"]

# include/uapi/linux/kernel-page-flags.h
LRU: Final = 1 << 5
COMPOUND_HEAD: Final = 1 << 15
COMPOUND_TAIL: Final = 1 << 16
_HUGETLB: Final = 1 << 17
_ZERO_PAGE: Final = 1 << 24

#: Pages in the largest folio that is mapped by 4 KiB entries or by one 2 MiB entry; folios are aligned to their size.
_MAX_PAGES: Final = 512


class Folios:
    """Reads the two files; without permission for them it knows nothing and says so by None or False.

    :param flags_path: /proc/kpageflags
    :param count_path: /proc/kpagecount
    """

    def __init__(self, flags_path: str = "/proc/kpageflags", count_path: str = "/proc/kpagecount") -> None:
        self._flags_fd = self._count_fd = -1
        with contextlib.suppress(OSError):
            self._flags_fd = os.open(flags_path, os.O_RDONLY | os.O_CLOEXEC)
            self._count_fd = os.open(count_path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the file descriptors back."""
        for fd in (self._flags_fd, self._count_fd):
            if fd >= 0:
                os.close(fd)
        self._flags_fd = self._count_fd = -1

    def flags(self, pfn: int) -> int | None:
        """The KPF_* bits of page frame ``pfn``, None when they cannot be read."""
        return self._number(self._flags_fd, pfn)

    def extent(self, pfn: int) -> tuple[int, int] | None:
        """First page frame and number of pages of the folio of ``pfn``, None when it cannot be told."""
        flags = self.flags(pfn)
        if flags is None:
            return None
        if not flags & (COMPOUND_HEAD | COMPOUND_TAIL):
            return pfn, 1
        first = pfn & ~(_MAX_PAGES - 1)
        raw = os.pread(self._flags_fd, 8 * _MAX_PAGES, 8 * first)
        window = np.frombuffer(raw, dtype=np.uint64)
        heads = np.flatnonzero(window[: pfn - first + 1] & np.uint64(COMPOUND_HEAD))
        if not len(heads):
            return None
        head = int(heads[-1])
        others = np.flatnonzero((window[head + 1 :] & np.uint64(COMPOUND_TAIL)) == 0)
        pages = int(others[0]) + 1 if len(others) else len(window) - head
        # The folio may have changed between the two reads.
        return (first + head, pages) if pfn < first + head + pages else None

    def clearable(self, pfn: int, *, listed: bool) -> bool:
        """Tell whether MADV_COLD clears the accessed bit of page ``pfn``: one mapping, and no special page.

        :param listed: ask for a page on an LRU list too, which MADV_COLD wants of pages of 4 KiB.
        """
        flags = self.flags(pfn)
        if flags is None or flags & (_HUGETLB | _ZERO_PAGE) or (listed and not flags & LRU):
            return False
        return self._number(self._count_fd, pfn) == 1

    @staticmethod
    def _number(fd: int, pfn: int) -> int | None:
        if fd < 0 or not pfn:
            return None
        raw = os.pread(fd, 8, 8 * pfn)
        return int.from_bytes(raw, "little") if len(raw) == 8 else None
