# SPDX-License-Identifier: GPL-2.0-only
"""Memory for a workload, whose pages are present and of a known size, so that samples match the truth."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

import numpy as np

from kdamon.arrays import U8Array
from kdamon.kernel import HPAGE_PMD_SIZE, PAGE_SIZE

__all__ = ["MIB", "PAGE", "map_memory"]

MIB: Final = 1 << 20
PAGE: Final = PAGE_SIZE
_HUGE: Final = HPAGE_PMD_SIZE


def map_memory(size: int, *, huge_pages: bool = False) -> U8Array:
    """``size`` bytes at a multiple of 2 MiB, every page of it written.

    :param huge_pages: request huge pages; otherwise disable them, so that all pages have the base size.
    """
    mapping = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    skip = -base % _HUGE
    memory = np.frombuffer(mapping, np.uint8)[skip : skip + size]
    memory[::PAGE] = 1
    return memory
