# SPDX-License-Identifier: GPL-2.0-only
"""Proactive reclamation: pages out what was not accessed for long (``mm/damon/reclaim.c``)."""

from __future__ import annotations

import errno
from typing import ClassVar

from attrs import define, evolve, field

from kdamon.damon import (
    damon_attrs,
    damon_ctx,
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
from kdamon.kernel import PAGE_SIZE, uint
from kdamon.modules_common import SchemeModule

__all__ = ["damon_reclaim"]


@define(slots=True, eq=False, kw_only=True)
class damon_reclaim(SchemeModule):
    """The module, see :class:`kdamon.modules_common.SchemeModule` for the parameters that are not here.

    :ivar min_age: for how long memory must not have been accessed, microseconds.
    :ivar quota_ms: time for paging out in a charge window, milliseconds.
    :ivar quota_sz: memory to page out in a charge window, bytes.
    :ivar quota_mem_pressure_us: time that tasks should stall for memory in a charge window, microseconds; 0 does not
        tune the quota by it.
    :ivar quota_autotune_feedback: the user's feedback, 10000 is what it should be; 0 does not tune the quota by it.
    :ivar skip_anon: leave anonymous memory alone.
    :ivar stat: what was tried, applied and how often the quota was exceeded.
    """

    name: ClassVar[str] = "damon_reclaim"

    min_age: int = 120_000_000
    quota_sz: int = 128 << 20
    quota_mem_pressure_us: int = 0
    quota_autotune_feedback: int = 0
    skip_anon: bool = False
    wmarks_high: int = 500
    wmarks_mid: int = 400
    wmarks_low: int = 200
    stat: damos_stat = field(factory=damos_stat)

    def new_schemes(self, attrs: damon_attrs) -> list[damos]:
        """The scheme that pages out (``damon_reclaim_new_scheme()``).

        :raises OSError: EINVAL the aggregation interval is 0.
        """
        if not attrs.aggr_interval:
            raise OSError(errno.EINVAL, "aggr_interval must not be 0")
        scheme = damos(
            pattern=damos_access_pattern(
                min_sz_region=PAGE_SIZE, max_nr_accesses=0, min_age_region=uint(self.min_age // attrs.aggr_interval)
            ),
            action=damos_action.DAMOS_PAGEOUT,
            quota=damos_quota(
                reset_interval=self.quota_reset_interval_ms,
                ms=self.quota_ms,
                sz=self.quota_sz,
                goals=self._goals(),
                weight_age=1,
            ),
            wmarks=self.wmarks(),
        )
        if self.skip_anon:
            damos_add_filter(scheme, damos_new_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON, True, False))
        return [scheme]

    def _goals(self) -> list[damos_quota_goal]:
        # Each parameter is read once: it may be written meanwhile.
        goals = []
        if pressure_us := self.quota_mem_pressure_us:
            goals.append(damos_quota_goal(damos_quota_goal_metric.DAMOS_QUOTA_SOME_MEM_PSI_US, pressure_us))
        if feedback := self.quota_autotune_feedback:
            goals.append(damos_quota_goal(damos_quota_goal_metric.DAMOS_QUOTA_USER_INPUT, 10000, feedback))
        return goals

    def refresh(self, ctx: damon_ctx) -> None:
        """Show the scheme's statistics (``damon_reclaim_damon_call_fn()``)."""
        for s in ctx.schemes:
            self.stat = evolve(s.stat)
