# SPDX-License-Identifier: GPL-2.0-only
"""What sampled pages of a process are: single addresses, where :mod:`kdamon.mm.page_filter` looks at whole ranges.

As there, what is not mapped, the zero page, huge TLB pages and device memory are of no type.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from kdamon.mm import OLD, YOUNG, Answers, PageFilter, U64Array
from kdamon.mm.folios import FolioTable, shared_folios
from kdamon.mm.pagemap import PAGE_SIZE, anonymous, frames, present

__all__ = ["PageSamples"]

_PAGE_SHIFT: Final = np.uint64(12)
#: Addresses from here on are of the kernel's half, or of none.
_USER_END: Final = np.uint64(1 << 47)

_Mask = npt.NDArray[np.bool_]


class PageSamples:
    """Pages at single addresses of one address space.

    :param fd: open /proc/PID/pagemap; stays the caller's.
    :param addrs: bytes, shape (n,), any order, unaligned.
    :raises OSError: EPERM page frames or their flags may not be seen.
    """

    def __init__(self, fd: int, addrs: U64Array) -> None:
        pages, place = np.unique(addrs[addrs < _USER_END] >> _PAGE_SHIFT, return_inverse=True)
        raw = b"".join([os.pread(fd, 8, 8 * page).ljust(8, b"\0") for page in pages.tolist()])
        entries = np.zeros(len(addrs), dtype=np.uint64)
        entries[addrs < _USER_END] = np.frombuffer(raw, dtype=np.uint64)[place.reshape(-1)]
        mapped = np.flatnonzero(present(entries))
        pfns = frames(entries[mapped])
        if len(pfns) and not pfns.any():
            raise OSError(
                errno.EPERM,
                "filters on pages need the numbers of page frames, which CAP_SYS_ADMIN shows; run as root or give that "
                "capability",
            )
        ordinary = shared_folios().ordinary(pfns)
        self._count = len(addrs)
        self._rows = mapped[ordinary]
        self._entries: U64Array = entries[self._rows]
        self._pfns: U64Array = pfns[ordinary]

    @cached_property
    def _folios(self) -> FolioTable:
        return shared_folios().table(self._pfns)

    def match(self, filters: Sequence[PageFilter], answers: Answers | None) -> _Mask:
        """Which pages are of the type of each filter, shape (len(filters), n).

        :param answers: what :meth:`kdamon.mm.AddressSpace.young` says of the addresses, if a filter asks for that.
        :raises OSError: EINVAL a type that single pages are not of; EPERM control groups may not be read.
        """
        found = np.zeros((len(filters), self._count), dtype=np.bool_)
        for row, one in zip(found, filters, strict=True):
            row[self._rows] = self._of_type(one, answers)
        return found

    def _of_type(self, one: PageFilter, answers: Answers | None) -> _Mask:
        found: _Mask
        if one.type == "anon":
            return anonymous(self._entries)
        if one.type == "memcg":
            found = shared_folios().cgroups(self._folios.heads) == np.uint64(one.memcg_id)
            return found
        if one.type == "hugepage_size":
            sizes = self._folios.pages * np.uint64(PAGE_SIZE)
            found = (sizes >= np.uint64(one.min_size)) & (sizes <= np.uint64(one.max_size))
            return found
        if one.type not in {"young", "idle"} or answers is None:
            raise OSError(errno.EINVAL, f"sampled pages are not told apart by {one.type}")
        found = answers[self._rows] == (YOUNG if one.type == "young" else OLD)
        return found
