# SPDX-License-Identifier: GPL-2.0-only
"""DAMOS filters on the pages of a process (``mm/damon/ops-common.c: damos_folio_filter_match()``).

A filter matches folios: all pages of a folio that are mapped in the wanted range pass or fail together. Pages that are
not mapped, the zero page, huge TLB pages and device memory never pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from kdamon.arrays import Indexes, Mask, U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.lib.rights import refusal
from kdamon.mm import PageFilter, ranges
from kdamon.mm.proc.kpageflags import shared_folios
from kdamon.mm.proc.pagemap import Pagemap, anonymous, frames, present

__all__ = ["PageGroup"]


class PageGroup:
    """Pages of one address space, filtered together.

    :param blocks: as ranges, see :meth:`kdamon.mm.proc.pagemap.Pagemap.groups`.
    :param wanted: the ranges that are asked about.
    :raises OSError: EPERM page frames or their flags may not be seen.
    """

    def __init__(self, pagemap: Pagemap, blocks: U64Array, wanted: U64Array) -> None:
        self._pagemap = pagemap
        pages = pagemap.pages(blocks)
        entries = pagemap.entries(blocks)
        here = np.flatnonzero(present(entries) & ranges.inside(wanted, pages))
        pfns = frames(entries[here])
        if len(pfns) and not pfns.any():
            raise refusal("the numbers of page frames, for filters on pages, need", "seeing them", "CAP_SYS_ADMIN")
        folios = shared_folios().table(pfns)
        ordinary = folios.ordinary()
        self._folios = folios.rows(ordinary)
        self._pages: U64Array = pages[here[ordinary]]
        self._entries: U64Array = entries[here[ordinary]]

    def passing(
        self, filters: Sequence[PageFilter], default_reject: bool, make_old: Callable[[U64Array], None]
    ) -> U64Array:
        """The ranges of pages that pass: the first filter that matches decides.

        :param default_reject: what becomes of pages that no filter matches.
        :param make_old: clears the accessed bits of pages that a filter of type ``young`` found set.
        """
        open_ = np.ones(len(self._pages), dtype=np.bool_)
        passed = np.full(len(self._pages), not default_reject)
        for one in filters:
            raw = self._matches(one)
            if one.type == "young":
                make_old(self._whole_folios(open_ & raw))
            hit = open_ & (raw == one.matching)
            passed[hit] = one.allow
            open_ &= ~hit
        return ranges.of_pages(self._pages[passed])

    def _matches(self, one: PageFilter) -> Mask:
        if one.type == "anon":
            return anonymous(self._entries)
        if one.type == "active":
            return self._folios.active()
        if one.type == "memcg":
            return shared_folios().cgroups(self._folios.heads) == np.uint64(one.memcg_id)
        if one.type == "hugepage_size":
            sizes = self._folios.pages * np.uint64(PAGE_SIZE)
            return (sizes >= np.uint64(one.min_size)) & (sizes <= np.uint64(one.max_size))
        if one.type == "young":
            return self._young()
        # Of type unmapped: every page here is mapped.
        return np.zeros(len(self._pages), dtype=np.bool_)

    @cached_property
    def _members(self) -> tuple[Indexes, Indexes]:
        """The number of each page's folio among the folios here, and how many pages of each folio are here."""
        _, folio, counts = np.unique(self._folios.heads, return_inverse=True, return_counts=True)
        return folio.reshape(-1), counts

    def _young(self) -> Mask:
        folio, counts = self._members
        young = np.zeros(len(counts), dtype=np.bool_)
        young[folio[self._pagemap.accessed(self._pages)]] = True
        return young[folio]

    def _whole_folios(self, chosen: Mask) -> U64Array:
        """The ranges of ``chosen`` pages without those whose folios are only partly here: these would be split."""
        folio, counts = self._members
        whole = counts[folio].astype(np.uint64) == self._folios.pages
        return ranges.of_pages(self._pages[chosen & whole])
