# SPDX-License-Identifier: GPL-2.0-only
"""Where an address space holds pages: PAGEMAP_SCAN from one page to the next (``fs/proc/task_mmu.c``).

One call finds the first page from an address on, and the next one begins at the following block, so that only blocks
with pages cost time. The kernel skips addresses without page tables a gibibyte or more at a time.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

import numpy as np

from kdamon.arrays import U64Array
from kdamon.kernel import PMD_SIZE
from kdamon.mm.mmap_lock import CallSize
from kdamon.mm.proc.pagemap_scan import PRESENT, PagemapScan
from kdamon.mm.ranges import NO_RANGES, union

__all__ = ["populated"]

_GIB: Final = 1 << 30

#: Blocks of empty page tables cost a call some microseconds each; bounds of the range of one call.
_FIRST: Final = 16
_MOST: Final = 512


def populated(fd: int, wanted: U64Array) -> Iterator[U64Array]:
    """The blocks of 2 MiB (as ranges) that touch ``wanted`` and hold pages there, a gibibyte's at a time.

    Before Linux 6.7 these are all that touch ``wanted``. Once the process ended there are none.

    :param fd: open /proc/PID/pagemap.
    :param wanted: user space addresses, ascending and disjoint ranges.
    """
    scan = _Scan(fd)
    found: list[int] = []
    at = 0
    # Neighbours at once, and no more calls for small ranges in one block once that is found.
    for start, end in union(wanted, NO_RANGES).tolist():
        at = max(at, start)
        while at < end:
            try:
                page = scan.first(at, end)
            except ProcessLookupError:
                return
            except OSError as error:
                if error.errno not in {errno.ENOTTY, errno.EINVAL, errno.ENOSYS}:
                    raise
                page = at
            if page is None:
                break
            block = page - page % PMD_SIZE
            if found and block // _GIB != found[0] // _GIB:
                yield _blocks(found)
                found = []
            if not found or block != found[-1]:
                found.append(block)
            at = block + PMD_SIZE
    if found:
        yield _blocks(found)


def _blocks(starts: list[int]) -> U64Array:
    edges = np.array(starts, dtype=np.uint64)
    return np.stack((edges, edges + np.uint64(PMD_SIZE)), axis=1)


class _Scan:
    def __init__(self, fd: int) -> None:
        self._scan = PagemapScan(fd, 1, PRESENT)
        self._size = CallSize(_FIRST, 1, _MOST)

    def first(self, start: int, end: int) -> int | None:
        """The address of the first page in [start, end), in memory or in swap; None when there is none.

        :raises OSError: ENOTTY the kernel has no PAGEMAP_SCAN.
        """
        while start < end:
            reach = min(end, start + self._size.now * PMD_SIZE)
            page = self._scan.first(start, reach)
            if page is not None:
                return page
            self._size.called((reach - start) // PMD_SIZE)
            start = reach
        return None
