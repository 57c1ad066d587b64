# SPDX-License-Identifier: GPL-2.0-only
"""The plain values of :mod:`kdamon.mm`'s protocols, which has them all."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import Indexes, Mask, Records, U8Array

__all__ = [
    "FAULT_DTYPE",
    "OLD",
    "RESIDENT",
    "UNKNOWN",
    "YOUNG",
    "Answers",
    "Faults",
    "FrameKind",
    "Observed",
    "PageFilter",
    "Primitive",
    "Resident",
    "Watched",
]

#: One answer for each sampled address: OLD, YOUNG or UNKNOWN.
Answers = U8Array

#: One fault of a process that is monitored by faults: when (CLOCK_MONOTONIC nanoseconds), the process, the address
#: (bytes), the NUMA node of the CPU, whether it was a write, the CPU, the thread. Unknown: node and CPU -1, thread 0.
FAULT_DTYPE: Final = np.dtype(
    [
        ("time", np.uint64),
        ("pid", np.int32),
        ("addr", np.uint64),
        ("node_id", np.int32),
        ("write", np.bool_),
        ("cpu", np.int32),
        ("tid", np.int32),
    ]
)
#: Faults, an array of FAULT_DTYPE.
Faults = Records

#: A part of an address space: start and end, and how many bytes of it are in memory, anonymous or of files and shared
#: memory; how many are in swap; and of how many that is not known. What is in no row is neither in memory nor in swap.
RESIDENT: Final = np.dtype(
    [
        ("start", "<u8"),
        ("end", "<u8"),
        ("anon", "<u8"),
        ("file", "<u8"),
        ("swapped", "<u8"),
        ("unknown", "<u8"),
    ]
)


class Primitive(StrEnum):
    """How accesses to sampled pages are observed, by the names of ``struct damon_sample_control`` (the series).

    :cvar PAGE_FAULT_WRITES: :attr:`PAGE_FAULT` for writes alone: reads do not fault, also where the kernel lets them.
    :cvar PAGE_IDLE: accessed bits by the bitmap of idle pages: stands in for :attr:`PAGE_TABLE` where that does not
        work.
    """

    PAGE_TABLE = "page_table"
    PAGE_FAULT = "page_fault"
    PAGE_FAULT_WRITES = "page_fault_writes"
    PAGE_IDLE = "page_idle"


#: The page was not accessed since :meth:`Samples.begin_sample`, or is not mapped.
OLD: Final = 0
#: The page was accessed since :meth:`Samples.begin_sample`.
YOUNG: Final = 1
#: The page's accessed bit could not be cleared or read: it is unknown whether the page was accessed.
UNKNOWN: Final = 2


class FrameKind(IntEnum):
    """The kind of a page frame, as far as it can be determined for many at once."""

    #: It has to be examined by itself.
    UNKNOWN = 0
    MAPPED_ONCE = 1
    #: Not mapped, and on no LRU list.
    UNREACHABLE = 2
    OTHER = 3


@frozen
class PageFilter:
    """A condition on mapped pages (kernel: ``struct damos_filter`` of a type that operations sets handle).

    :ivar type: ``anon``, ``active`` (on an active LRU list), ``memcg``, ``young`` (accessed since the last time that
        this was asked), ``hugepage_size``, ``unmapped``.
    :ivar matching: whether it matches pages of the type, or all others.
    :ivar allow: whether pages that it matches pass.
    :ivar memcg_id: of type memcg: the control group's inode number.
    :ivar min_size: of type hugepage_size: smallest size of the folio that a page is of, bytes.
    :ivar max_size: largest size of it.
    """

    type: str
    matching: bool
    allow: bool
    memcg_id: int = 0
    min_size: int = 0
    max_size: int = 0


@frozen
class Observed:
    """The accesses to a process's memory that ``page_fault`` observes: bytes of mappings, without those that no access
    is allowed to.

    :ivar accesses: where reads and writes fault.
    :ivar writes: where only writes do, or no write is possible.
    :ivar neither: where none does.
    """

    accesses: int
    writes: int
    neither: int


@frozen
class Resident:
    """What a process has in memory, exactly, in bytes.

    :ivar anon: anonymous memory.
    :ivar file: of files, and shared memory.
    :ivar swapped: in swap, besides.
    """

    anon: int
    file: int
    swapped: int

    @property
    def total(self) -> int:
        """All that is in memory."""
        return self.anon + self.file


@frozen(eq=False)
class Watched:
    """Pages that a watch was asked for, each of shape (n,).

    :ivar places: a number for each page; huge pages have one. -1: there is no room to watch it.
    :ivar present: whether it is in memory.
    :ivar young: whether it was accessed since a page with this number was asked for before.
    :ivar unknown: whether its accesses cannot be observed.
    """

    places: Indexes
    present: Mask
    young: Mask
    unknown: Mask
