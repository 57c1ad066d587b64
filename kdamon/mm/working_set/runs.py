# SPDX-License-Identifier: GPL-2.0-only
"""Runs of equal pages of whole address spaces, and arming them, by PAGEMAP_SCAN (``fs/proc/task_mmu.c``).

A call is about one page table, 2 MiB, so that it holds the process's mmap_lock for some tens of microseconds.
"""

from __future__ import annotations

import fcntl
import struct
from typing import Final

import numpy as np

from kdamon.arrays import U64Array
from kdamon.kernel import PAGE_SIZE, PMD_SIZE
from kdamon.mm.mmap_lock import held
from kdamon.mm.sampling.uffd import ACCESSED, HUGE, PRESENT, SWAPPED, WPALLOWED, WRITTEN

__all__ = ["NO_RUNS", "Runs", "Scanner", "having"]

#: Start and end of runs of pages, bytes, ascending and disjoint, and their categories, shape (n, 3).
Runs = U64Array
NO_RUNS: Final[Runs] = np.empty((0, 3), dtype=np.uint64)

_PAGEMAP_SCAN: Final = 0xC0606610
_WP_MATCHING: Final = 1
#: ``struct pm_scan_arg``, see :mod:`kdamon.mm.proc.populated`.
_ARGUMENT: Final = struct.Struct("<12Q")
#: For others the kernel reads the struct page of each, which takes several times as long.
_CATEGORIES: Final = WPALLOWED | WRITTEN | PRESENT | SWAPPED | HUGE
#: As many runs as a page table has entries.
_ROOM: Final = PMD_SIZE // PAGE_SIZE


def having(runs: Runs, categories: int, lacking: int = 0) -> U64Array:
    """The ranges of ``runs`` that have all of ``categories`` and none of ``lacking``."""
    wanted = (runs[:, 2] & np.uint64(categories | lacking)) == np.uint64(categories)
    return runs[wanted, :2]


class Scanner:
    """Scans blocks of 2 MiB of one address space.

    :param pagemap: its open /proc/PID/pagemap; stays the caller's.
    :param reads: whether the kernel knows ACCESSED.
    """

    def __init__(self, pagemap: int, *, reads: bool) -> None:
        self._pagemap = pagemap
        self._categories = _CATEGORIES | (ACCESSED if reads else 0)
        self._found = np.empty((_ROOM, 3), dtype=np.uint64)

    def look(self, blocks: U64Array) -> Runs:
        """The pages in ``blocks`` that are in memory or in swap.

        :raises OSError: ESRCH the address space ended.
        """
        return self._scan(blocks, 0, 0, 0, PRESENT | SWAPPED, self._categories)

    def arm(self, blocks: U64Array) -> U64Array:
        """Write-protect the pages in ``blocks`` that are in memory, in registered mappings, and of no huge page.

        :returns: those that are protected now, as ranges.
        :raises OSError: as :meth:`look`.
        """
        return self._scan(blocks, _WP_MATCHING, HUGE, PRESENT | HUGE, 0, PRESENT)[:, :2]

    def _scan(self, blocks: U64Array, flags: int, inverted: int, required: int, any_of: int, returned: int) -> Runs:  # noqa: PLR0917 -- the kernel's structure
        parts = [NO_RUNS]
        place = self._found.ctypes.data
        for start, end in blocks.tolist():
            argument = bytearray(
                _ARGUMENT.pack(
                    _ARGUMENT.size, flags, start, end, 0, place, _ROOM, 0, inverted, required, any_of, returned
                )
            )
            with held.of(self._pagemap):
                count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, argument)
            if count:
                parts.append(self._found[:count].copy())
        return np.concatenate(parts)
