# SPDX-License-Identifier: GPL-2.0-only
"""Proactive sorting of LRU lists: hot memory to the active, cold to the inactive one (``mm/damon/lru_sort.c``)."""

from __future__ import annotations

import errno
from typing import ClassVar

from attrs import define, evolve, field

from kdamon.damon import (
    damon_attrs,
    damon_ctx,
    damon_nr_samples_per_aggr,
    damos,
    damos_access_pattern,
    damos_action,
    damos_filter_type,
    damos_quota,
    damos_quota_goal,
    damos_quota_goal_metric,
    damos_stat,
)
from kdamon.damos_filters import damos_add_filter, damos_new_filter
from kdamon.kernel import PAGE_SIZE, uint, ulong
from kdamon.modules_common import SchemeModule

__all__ = ["damon_lru_sort"]


@define(slots=True, eq=False, kw_only=True)
class damon_lru_sort(SchemeModule):
    """The module, see :class:`kdamon.modules_common.SchemeModule` for the parameters that are not here.

    :ivar hot_thres_access_freq: share of the samples from which on memory is hot, permille.
    :ivar cold_min_age: for how long memory must not have been accessed to be cold, microseconds.
    :ivar active_mem_bp: wanted share of active memory, 1/10000; 0 does not tune the quotas by it.
    :ivar filter_young_pages: check the accessed bit of each page once more before it is moved.
    :ivar quota_ms: time for sorting in a charge window, milliseconds; half of it for hot and half for cold memory.
    :ivar hot_stat: statistics of hot memory.
    :ivar cold_stat: statistics of cold memory.
    """

    name: ClassVar[str] = "damon_lru_sort"

    hot_thres_access_freq: int = 500
    cold_min_age: int = 120_000_000
    active_mem_bp: int = 0
    filter_young_pages: bool = False
    wmarks_high: int = 200
    wmarks_mid: int = 150
    wmarks_low: int = 50
    hot_stat: damos_stat = field(factory=damos_stat)
    cold_stat: damos_stat = field(factory=damos_stat)

    def new_schemes(self, attrs: damon_attrs) -> list[damos]:
        """The scheme for hot and the one for cold memory.

        :raises OSError: EINVAL the sampling interval is 0, or ``active_mem_bp`` exceeds 10000.
        """
        if not attrs.sample_interval:
            raise OSError(errno.EINVAL, "sample_interval must not be 0")
        hot_thres = uint(ulong(damon_nr_samples_per_aggr(attrs) * self.hot_thres_access_freq) // 1000)
        cold_thres = uint(self.cold_min_age // attrs.aggr_interval)
        hot = self._new_scheme(
            damos_access_pattern(min_sz_region=PAGE_SIZE, min_nr_accesses=hot_thres), damos_action.DAMOS_LRU_PRIO
        )
        cold = self._new_scheme(
            damos_access_pattern(min_sz_region=PAGE_SIZE, max_nr_accesses=0, min_age_region=cold_thres),
            damos_action.DAMOS_LRU_DEPRIO,
        )
        self._add_goals(hot, cold)
        if self.filter_young_pages:
            # Neither move pages up that are not accessed, nor pages down that are.
            young = damos_filter_type.DAMOS_FILTER_TYPE_YOUNG
            damos_add_filter(hot, damos_new_filter(young, False, False))
            damos_add_filter(cold, damos_new_filter(young, True, False))
        return [hot, cold]

    def _new_scheme(self, pattern: damos_access_pattern, action: damos_action) -> damos:
        quota = damos_quota(
            reset_interval=self.quota_reset_interval_ms, ms=self.quota_ms // 2, weight_nr_accesses=1, weight_age=1
        )
        return damos(pattern=pattern, action=action, quota=quota, wmarks=self.wmarks())

    def _add_goals(self, hot: damos, cold: damos) -> None:
        active_mem_bp = self.active_mem_bp  # once: it may be written meanwhile
        if not active_mem_bp:
            return
        if active_mem_bp > 10000:
            raise OSError(errno.EINVAL, f"active_mem_bp, {active_mem_bp}, exceeds 10000, which is all memory")
        active = damos_quota_goal_metric.DAMOS_QUOTA_ACTIVE_MEM_BP
        hot.quota.goals.append(damos_quota_goal(active, active_mem_bp))
        # The two targets overlap a little, so that the schemes do not undo each other's work for ever.
        inactive = damos_quota_goal_metric.DAMOS_QUOTA_INACTIVE_MEM_BP
        cold.quota.goals.append(damos_quota_goal(inactive, 10000 - active_mem_bp + 2))

    def refresh(self, ctx: damon_ctx) -> None:
        """Show the schemes' statistics (``damon_lru_sort_damon_call_fn()``)."""
        for s in ctx.schemes:
            if s.action is damos_action.DAMOS_LRU_PRIO:
                self.hot_stat = evolve(s.stat)
            else:
                self.cold_stat = evolve(s.stat)
