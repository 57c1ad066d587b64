# SPDX-License-Identifier: GPL-2.0-only
"""What sampled pages are: single ones, where :mod:`kdamon.mm.page_filter` looks at the whole ranges of a process.

As there, what is not mapped, the zero page, huge TLB pages and device memory are of no type. Of page frames only those
on LRU lists are of any, as in the kernel's ``damon_get_folio()``.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kdamon.mm import OLD, YOUNG, Answers, PageFilter, U64Array
from kdamon.mm.folios import FolioTable, shared_folios
from kdamon.mm.pagemap import PAGE_SIZE, anonymous, entries_at, frames, present

__all__ = ["PageSamples"]

_Mask = npt.NDArray[np.bool_]


class PageSamples:
    """Sampled pages.

    :param count: how many samples there are.
    :param rows: those where a page is that can be of a type.
    :param pfns: the page frames of these.
    :param anonymous_: which of these are anonymous memory.
    """

    def __init__(self, count: int, rows: npt.NDArray[np.intp], pfns: U64Array, anonymous_: _Mask) -> None:
        self._count = count
        self._rows = rows
        self._pfns = pfns
        self._anonymous = anonymous_

    @classmethod
    def of_process(cls, fd: int, addrs: U64Array) -> PageSamples:
        """The pages at addresses of a process.

        :param fd: open /proc/PID/pagemap; stays the caller's.
        :param addrs: bytes, shape (n,), any order, unaligned.
        :raises OSError: EPERM page frames or their flags may not be seen.
        """
        entries = entries_at(fd, addrs)
        mapped = np.flatnonzero(present(entries))
        pfns = frames(entries[mapped])
        if len(pfns) and not pfns.any():
            raise OSError(
                errno.EPERM,
                "filters on pages need the numbers of page frames, which CAP_SYS_ADMIN shows; run as root or give that "
                "capability",
            )
        ordinary = shared_folios().ordinary(pfns)
        rows = mapped[ordinary]
        return cls(len(addrs), rows, pfns[ordinary], anonymous(entries[rows]))

    @classmethod
    def of_frames(cls, pfns: U64Array) -> PageSamples:
        """Page frames, shape (n,), any order.

        :raises OSError: EPERM their flags may not be seen.
        """
        folios = shared_folios().table(pfns)
        chosen = folios.listed() & folios.ordinary()
        return cls(len(pfns), np.flatnonzero(chosen), pfns[chosen], folios.rows(chosen).anonymous())

    @cached_property
    def _folios(self) -> FolioTable:
        return shared_folios().table(self._pfns)

    def match(self, filters: Sequence[PageFilter], answers: Answers | None) -> _Mask:
        """Which pages are of the type of each filter, shape (len(filters), n).

        :param answers: what :meth:`kdamon.mm.AddressSpace.young` says of the samples, if a filter asks for that.
        :raises OSError: EINVAL a type that single pages are not of; EPERM control groups may not be read.
        """
        found = np.zeros((len(filters), self._count), dtype=np.bool_)
        for row, one in zip(found, filters, strict=True):
            row[self._rows] = self._of_type(one, answers)
        return found

    def _of_type(self, one: PageFilter, answers: Answers | None) -> _Mask:
        found: _Mask
        if one.type == "anon":
            return self._anonymous
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
