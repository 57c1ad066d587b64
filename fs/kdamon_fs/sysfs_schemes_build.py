# SPDX-License-Identifier: GPL-2.0-only
"""Builds the schemes of a context from the directory ``schemes`` (the other half of ``mm/damon/sysfs-schemes.c``)."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from kdamon.core import damon_add_scheme
from kdamon.damon import (
    damon_addr_range,
    damon_ctx,
    damon_size_range,
    damos,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_migrate_dests,
    damos_quota,
    damos_quota_goal,
    damos_quota_goal_metric,
    damos_quota_goal_tuner,
    damos_watermarks,
    damos_wmark_metric,
)
from kdamon.damos_filters import damos_add_filter
from kdamon.damos_quota import damos_commit_quota_goals
from kdamon.kernel import uint
from kdamon.mm import Machine
from kdamon_fs.sysfs_common import memcg_id_of, name_of
from kdamon_fs.sysfs_schemes import (
    damon_sysfs_quotas,
    damon_sysfs_scheme,
    damon_sysfs_scheme_filter,
    damon_sysfs_scheme_filters,
    damon_sysfs_schemes,
    damon_sysfs_watermarks,
    damos_sysfs_dests,
    damos_sysfs_quota_goal,
    damos_sysfs_quota_goals,
)

__all__ = ["QuotaScores", "damon_sysfs_add_schemes", "damon_sysfs_mk_scheme"]

log = logging.getLogger("kdamon")

_MEMCG_METRICS = (
    damos_quota_goal_metric.DAMOS_QUOTA_NODE_MEMCG_USED_BP,
    damos_quota_goal_metric.DAMOS_QUOTA_NODE_MEMCG_FREE_BP,
)
FindMachine = Callable[[], Machine]


# Quotas and goals.


def _mk_goal(goal: damos_sysfs_quota_goal, machine: FindMachine) -> damos_quota_goal:
    metric = damos_quota_goal_metric(goal.target_metric)
    if metric in _MEMCG_METRICS:
        memcg_id_of(goal, "path", goal.path, machine)
    return damos_quota_goal(
        metric=metric,
        target_value=goal.target_value,
        current_value=goal.current_value,
        nid=goal.nid,
        memcg_path=name_of(goal.path),
        complement=goal.complement,
    )


def _mk_goals(goals: damos_sysfs_quota_goals, machine: FindMachine) -> list[damos_quota_goal]:
    """The goals; those with the target value 0 are ignored, as in the kernel."""
    return [_mk_goal(goal, machine) for goal in goals if goal.target_value]


def _mk_quota(quotas: damon_sysfs_quotas, machine: FindMachine) -> damos_quota:
    weights = quotas.weights
    return damos_quota(
        reset_interval=quotas.reset_interval_ms,
        ms=quotas.ms,
        sz=quotas.bytes,
        goals=_mk_goals(quotas.goals, machine),
        goal_tuner=damos_quota_goal_tuner(quotas.goal_tuner),
        weight_sz=weights.sz_permil,
        weight_nr_accesses=weights.nr_accesses_permil,
        weight_age=weights.age_permil,
        fail_charge_num=quotas.fail_charge_num,
        fail_charge_denom=quotas.fail_charge_denom,
    )


# Filters, watermarks, destinations.


def _check_range(made_of: damon_sysfs_scheme_filter, first: str, last: str) -> None:
    """Refuse a range that ends before it starts; from 7.4 on the core does, with the errno for the reason."""
    if getattr(made_of, last) < getattr(made_of, first) and not made_of.tree.has("7.4"):
        raise OSError(errno.EINVAL, f"{made_of.location()}: {last} is less than {first}")


def _mk_filter(made_of: damon_sysfs_scheme_filter, machine: FindMachine) -> damos_filter:
    f = damos_filter(damos_filter_type(made_of.type), made_of.matching, made_of.allow)
    if f.type is damos_filter_type.DAMOS_FILTER_TYPE_MEMCG:
        f.memcg_id = memcg_id_of(made_of, "memcg_path", made_of.memcg_path, machine)
    elif f.type is damos_filter_type.DAMOS_FILTER_TYPE_ADDR:
        _check_range(made_of, "addr_start", "addr_end")
        f.addr_range = damon_addr_range(made_of.addr_start, made_of.addr_end)
    elif f.type is damos_filter_type.DAMOS_FILTER_TYPE_TARGET:
        f.target_idx = made_of.damon_target_idx
    elif f.type is damos_filter_type.DAMOS_FILTER_TYPE_HUGEPAGE_SIZE:
        _check_range(made_of, "min", "max")
        f.sz_range = damon_size_range(made_of.min, made_of.max)
    elif f.type is damos_filter_type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM:
        f.range_min, f.range_max = made_of.min, made_of.max
    return f


def _add_filters(s: damos, filters: damon_sysfs_scheme_filters, machine: FindMachine) -> None:
    for made_of in filters:
        # The type decides: the default type in core_filters makes a filter of the operations set, as in the kernel.
        damos_add_filter(s, _mk_filter(made_of, machine))


def _mk_wmarks(watermarks: damon_sysfs_watermarks) -> damos_watermarks:
    return damos_watermarks(
        metric=damos_wmark_metric(watermarks.metric),
        interval=watermarks.interval_us,
        high=watermarks.high,
        mid=watermarks.mid,
        low=watermarks.low,
    )


def _mk_dests(dests: damos_sysfs_dests) -> damos_migrate_dests:
    made = damos_migrate_dests()
    for dest in dests:
        made.node_id_arr.append(dest.id)
        made.weight_arr.append(dest.weight)
    return made


# Schemes.


def damon_sysfs_mk_scheme(scheme: damon_sysfs_scheme, machine: FindMachine) -> damos:
    """Build the scheme that the directory describes.

    :param machine: returns the machine that resolves memory cgroups, called when a scheme needs it.
    :raises OSError: EINVAL a memory cgroup does not exist, or a range ends before it starts.
    """
    wanted = scheme.access_pattern
    s = damos(
        pattern=damos_access_pattern(
            min_sz_region=wanted.sz.min,
            max_sz_region=wanted.sz.max,
            min_nr_accesses=uint(wanted.nr_accesses.min),
            max_nr_accesses=uint(wanted.nr_accesses.max),
            min_age_region=uint(wanted.age.min),
            max_age_region=uint(wanted.age.max),
        ),
        action=damos_action(scheme.action),
        apply_interval_us=scheme.apply_interval_us,
        max_nr_snapshots=scheme.stats.max_nr_snapshots,
        quota=_mk_quota(scheme.quotas, machine),
        wmarks=_mk_wmarks(scheme.watermarks),
        target_nid=scheme.target_nid,
        migrate_dests=_mk_dests(scheme.dests),
    )
    for filters in (scheme.core_filters, scheme.ops_filters, scheme.filters):
        _add_filters(s, filters, machine)
    return s


def _measured(s: damos, goals: list[damos_quota_goal]) -> bool:
    """Return whether ``s`` with ``goals`` depends on metrics of the machine."""
    given = {damos_quota_goal_metric.DAMOS_QUOTA_USER_INPUT}
    metrics = {goal.metric for goal in goals}
    return s.wmarks.metric is not damos_wmark_metric.DAMOS_WMARK_NONE or bool(metrics - given)


def _doubt_goals(ctx: damon_ctx, goals: list[damos_quota_goal], scheme: damon_sysfs_scheme) -> None:
    """Warn about a goal that the operations set of ``ctx`` cannot measure; ``on`` and ``commit`` refuse it."""
    eligible = damos_quota_goal_metric.DAMOS_QUOTA_NODE_ELIGIBLE_MEM_BP
    if ctx.ops is not None and ctx.ops.node_mem is None and any(goal.metric is eligible for goal in goals):
        log.warning("%s: %s is always 0 here; it needs the operations set paddr", scheme.location(), eligible.value)


def damon_sysfs_add_schemes(ctx: damon_ctx, schemes: damon_sysfs_schemes, machine: FindMachine) -> None:
    """Add the schemes that the directories describe to ``ctx``.

    :param machine: returns the machine that resolves memory cgroups and measures metrics, called if a scheme needs it.
    :raises OSError: ENOMEM for any error in a scheme, as in the kernel; the errors of ``machine``.
    """
    for scheme in schemes:
        try:
            s = damon_sysfs_mk_scheme(scheme, machine)
        except OSError as error:
            raise OSError(errno.ENOMEM if error.errno == errno.EINVAL else error.errno, error.strerror) from error
        if _measured(s, s.quota.goals):
            ctx.machine = ctx.machine or machine()
        damon_add_scheme(ctx, s)


class QuotaScores:
    """The goals of the schemes of ``ctx``, from the directories (``damos_sysfs_set_quota_scores()``).

    Kernel: builds them in the kdamond. Here: in the caller's thread, because memory cgroups have to be resolved.
    (docs/deviations.md#goals-are-made-by-the-writer)

    :param machine: as for :func:`damon_sysfs_add_schemes`.
    :ivar error: EINVAL a memory cgroup does not exist, None if all do; the goals of the schemes before it are included.
    """

    def __init__(self, schemes: damon_sysfs_schemes, ctx: damon_ctx, machine: FindMachine) -> None:
        self.error: OSError | None = None
        self._machine: Machine | None = None
        self._quotas: list[damos_quota] = []
        try:
            for i, s in enumerate(ctx.schemes[: schemes.nr]):
                goals = _mk_goals(schemes.at(i).quotas.goals, machine)
                _doubt_goals(ctx, goals, schemes.at(i))
                if _measured(s, goals):
                    self._machine = machine()
                self._quotas.append(damos_quota(goals=goals))
        except OSError as error:
            self.error = error

    def set(self, ctx: damon_ctx) -> None:
        """Assign them to the schemes; runs in the kdamond of ``ctx``."""
        ctx.machine = ctx.machine or self._machine
        for s, quota in zip(ctx.schemes, self._quotas, strict=False):
            damos_commit_quota_goals(s.quota, quota)
