# SPDX-License-Identifier: GPL-2.0-only
"""Filters on sampled pages; :mod:`kdamon.mm.actions.page_filter` filters the whole ranges of a process.

As there, pages that are not mapped, the zero page, huge TLB pages and device memory are of no type. Page frames are of
a type only if they are on an LRU list, as in the kernel's ``damon_get_folio()``.
(docs/deviations.md#huge-tlb-pages-have-no-type)
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U64Array
from kdamon.kernel import PAGE_SIZE, PMD_SIZE
from kdamon.lib.rights import refusal
from kdamon.mm import OLD, YOUNG, Answers, PageFilter
from kdamon.mm.bpf.walk_program import LEVEL, PRESENT
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.proc.kpageflags import shared_folios
from kdamon.mm.proc.pagemap import entries_at, frames, present

__all__ = ["PageSamples"]

_PAGE_MASK: Final = np.uint64(0xFFFF_FFFF_FFFF_F000)
#: Level of the walk at which a huge page of 2 MiB is mapped, and its pages but the first.
_PMD: Final = 2
_WITHIN_HUGE: Final = np.uint64(PMD_SIZE // PAGE_SIZE - 1)


class PageSamples:
    """Sampled pages.

    :param pfns: their page frames, 0 where no page is, shape (n,).
    :param huge: which of them one huge page maps; their folios are known.
    :param listed: only pages on LRU lists count.
    :raises OSError: EPERM page flags may not be seen.
    """

    def __init__(self, pfns: U64Array, huge: Mask, *, listed: bool) -> None:
        here = np.flatnonzero(pfns)
        found = shared_folios().pages(pfns[here])
        chosen = found.ordinary()
        if listed:
            on_list = found.listed()
            # Some kernels show it for the first page of a folio only.
            unsure = np.flatnonzero(chosen & found.compound() & ~on_list)
            on_list[unsure] = shared_folios().table(found.pfns[unsure]).listed()
            chosen &= on_list
        self._count = len(pfns)
        self._rows = here[chosen]
        self._pages = found.rows(chosen)
        self._huge: Mask = huge[self._rows]

    @classmethod
    def of_process(cls, fd: int, addrs: U64Array) -> PageSamples:
        """The pages at addresses of a process.

        :param fd: open /proc/PID/pagemap; stays the caller's.
        :param addrs: bytes, shape (n,), any order, unaligned.
        :raises OSError: EPERM page frames or their flags may not be seen.
        """
        huge = np.zeros(len(addrs), dtype=np.bool_)
        try:
            walker = shared_walker()
        except OSError:
            # A system call for each of them instead of one for all.
            mapped = np.ones(len(addrs), dtype=np.bool_)
            pfns = np.zeros(len(addrs), dtype=np.uint64)
        else:
            flags, entries = walker.walk(fd, addrs & _PAGE_MASK)
            mapped, pfns = (flags & PRESENT) != 0, walker.pfns(entries)
            pfns[~mapped] = 0
            huge = (flags & LEVEL) == _PMD
        unknown = np.flatnonzero(mapped & (pfns == 0))
        if len(unknown):
            entries = entries_at(fd, addrs[unknown])
            pfns[unknown] = frames(entries)
            if present(entries).any() and not pfns.any():
                raise refusal("the numbers of page frames, for filters on pages, need", "seeing them", "CAP_SYS_ADMIN")
        return cls(pfns, huge, listed=False)

    @classmethod
    def of_frames(cls, pfns: U64Array) -> PageSamples:
        """Page frames, shape (n,), any order.

        :raises OSError: EPERM their flags may not be seen.
        """
        return cls(pfns, np.zeros(len(pfns), dtype=np.bool_), listed=True)

    @cached_property
    def _folios(self) -> tuple[U64Array, U64Array]:
        """The first page frames and the sizes in pages of the folios."""
        pfns = self._pages.pfns
        heads = np.where(self._huge, pfns & ~_WITHIN_HUGE, pfns)
        sizes = np.where(self._huge, _WITHIN_HUGE + np.uint64(1), np.uint64(1))
        others = np.flatnonzero(self._pages.compound() & ~self._huge)
        if len(others):
            table = shared_folios().table(pfns[others])
            heads[others], sizes[others] = table.heads, table.pages
        return heads, sizes

    def match(self, filters: Sequence[PageFilter], answers: Answers | None) -> Mask:
        """Which pages are of the type of each filter, shape (len(filters), n).

        :param answers: of the samples, see :meth:`kdamon.mm.Samples.page_match`.
        :raises OSError: EINVAL a type that single pages are not of; EPERM control groups may not be read.
        """
        found = np.zeros((len(filters), self._count), dtype=np.bool_)
        for row, one in zip(found, filters, strict=True):
            row[self._rows] = self._of_type(one, answers)
        return found

    def _of_type(self, one: PageFilter, answers: Answers | None) -> Mask:
        found: Mask
        if one.type == "anon":
            return self._pages.anonymous()
        if one.type == "memcg":
            found = shared_folios().cgroups(self._folios[0]) == np.uint64(one.memcg_id)
            return found
        if one.type == "hugepage_size":
            sizes = self._folios[1] * np.uint64(PAGE_SIZE)
            found = (sizes >= np.uint64(one.min_size)) & (sizes <= np.uint64(one.max_size))
            return found
        if one.type not in {"young", "idle"}:
            raise OSError(errno.EINVAL, f"filter type {one.type} is not supported for sampled pages")
        if answers is None:
            return np.zeros(len(self._rows), dtype=np.bool_)
        found = answers[self._rows] == (YOUNG if one.type == "young" else OLD)
        return found
