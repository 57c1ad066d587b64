# SPDX-License-Identifier: GPL-2.0-only
"""PAGEMAP_SCAN (Linux 6.7, ``fs/proc/task_mmu.c``): runs of pages of an address space by their categories."""

from __future__ import annotations

import fcntl
import struct
from typing import Final

import numpy as np

from kdamon.arrays import U64Array
from kdamon.mm.mmap_lock import held

__all__ = ["FILE", "GUARD", "PRESENT", "SWAPPED", "ZERO", "PagemapScan"]

# include/uapi/linux/fs.h
_PAGEMAP_SCAN: Final = 0xC0606610
FILE: Final = 1 << 2
PRESENT: Final = 1 << 3
SWAPPED: Final = 1 << 4
#: The zero page, and the huge zero page (Linux 6.16, and 6.12.35 among others; before, that was a huge page).
ZERO: Final = 1 << 5
#: A guard page (Linux 6.15), which looks as if it was in swap.
GUARD: Final = 1 << 8
#: ``struct pm_scan_arg``: size, flags, start, end, end of the walk, where to write, room there, limit, and four masks
#: of categories: inverted, required, any-of, returned.
_ARGUMENT: Final = struct.Struct("<12Q")


class PagemapScan:
    """Finds pages in memory or in swap.

    :param fd: open /proc/PID/pagemap; stays the caller's.
    :param room: runs that one call finds at most.
    :param returned: categories that make pages differ.
    """

    def __init__(self, fd: int, room: int, returned: int) -> None:
        self._fd = fd
        self._room = room
        self._returned = returned
        self._found = np.zeros((room, 3), dtype=np.uint64)
        self._place = self._found.ctypes.data

    def runs(self, start: int, end: int) -> tuple[U64Array, int]:
        """The first runs in [start, end): start, end and categories of each, shape (n, 3); and how far the call came.

        The array is valid until the next call.

        :raises OSError: ENOTTY the kernel has no PAGEMAP_SCAN; EINVAL, or it has not these categories.
        """
        count = self._call(start, end, self._room, 0)
        # What the kernel says itself is too low where it found more than 512 runs.
        return self._found[:count], end if count < self._room else int(self._found[-1, 1])

    def first(self, start: int, end: int) -> int | None:
        """The address of the first page in [start, end); None when there is none.

        :raises OSError: as of :meth:`runs`.
        """
        return int(self._found[0, 0]) if self._call(start, end, 1, 1) else None

    def _call(self, start: int, end: int, room: int, most: int) -> int:
        """How many runs, of ``most`` pages at most (0: any number), it found."""
        wanted = PRESENT | SWAPPED
        argument = _ARGUMENT.pack(
            _ARGUMENT.size, 0, start, end, 0, self._place, room, most, 0, 0, wanted, self._returned
        )
        with held.of(self._fd):
            return fcntl.ioctl(self._fd, _PAGEMAP_SCAN, bytearray(argument))
