# SPDX-License-Identifier: GPL-2.0-only
"""Quotas of schemes: the limit, the goals that tune it, and charging (the quotas of ``mm/damon/core.c``)."""

from __future__ import annotations

import errno
import logging
from collections import Counter

import numpy as np
from attrs import evolve

from kdamon import trace
from kdamon.arrays import I64Array
from kdamon.damon import (
    DAMOS_MAX_SCORE,
    damon_ctx,
    damon_nr_accesses_mvsum,
    damon_target,
    damos,
    damos_quota,
    damos_quota_goal,
    damos_quota_goal_metric,
    damos_quota_goal_tuner,
)
from kdamon.damos_filters import (
    core_filter_candidates,
    damos_core_filter_out,
    for_each_part,
    wanted_rows,
)
from kdamon.kernel import ALIGN_DOWN, NSEC_PER_MSEC, PAGE_SIZE, ULONG_MAX, mult_frac, ulong

__all__ = [
    "check_goals",
    "damon_feed_loop_next_input",
    "damos_adjust_quota",
    "damos_charge_quota",
    "damos_commit_quota",
    "damos_commit_quota_goal",
    "damos_commit_quota_goals",
    "damos_quota_is_full",
    "damos_quota_is_set",
    "damos_quota_score",
    "damos_set_effective_quota",
    "damos_skip_charged_region",
    "forget_charged_target",
    "largest_charge",
    "region_scores",
]

log = logging.getLogger("kdamon")

#: The kernel takes windows of so many milliseconds for endless ones (msecs_to_jiffies()).
_ENDLESS_MS = 1 << 31
_USEC_PER_MSEC = 1000

Metric = damos_quota_goal_metric


# Commit.


def check_goals(ctx: damon_ctx) -> None:
    """Check that the operations set of ``ctx`` can measure the goals of its schemes.

    :raises OSError: EINVAL ``node_eligible_mem_bp`` without an operations set that knows nodes, as paddr does.
    """
    if ctx.ops is not None and ctx.ops.node_mem is not None:
        return
    metric = Metric.DAMOS_QUOTA_NODE_ELIGIBLE_MEM_BP
    if any(goal.metric is metric for s in ctx.schemes for goal in s.quota.goals):
        raise OSError(errno.EINVAL, f"the quota goal {metric.value} needs the operations set paddr")


def damos_commit_quota_goal(dst: damos_quota_goal, src: damos_quota_goal) -> None:
    """Make ``dst`` what ``src`` is; only what the user gives as the current value is taken over.

    :raises OSError: EINVAL the target value is 0.
    """
    if not src.target_value:
        raise OSError(errno.EINVAL, "a quota goal needs a target value other than 0")
    dst.metric, dst.complement, dst.target_value = src.metric, src.complement, src.target_value
    dst.nid, dst.memcg_path = src.nid, src.memcg_path
    if src.metric is Metric.DAMOS_QUOTA_USER_INPUT:
        dst.current_value = src.current_value
    dst.last_psi_total = ULONG_MAX


def damos_commit_quota_goals(dst: damos_quota, src: damos_quota) -> None:
    """Make the goals of ``dst`` those of ``src``, place by place.

    :raises OSError: EINVAL as :func:`damos_commit_quota_goal`; ``dst`` is as before then.
    """
    places = range(len(src.goals))
    goals = [evolve(dst.goals[i]) if i < len(dst.goals) else damos_quota_goal() for i in places]
    for mine, theirs in zip(goals, src.goals, strict=True):
        damos_commit_quota_goal(mine, theirs)
    dst.goals = goals
    if not _limited(dst):
        # Kernel: the last effective quota stays in force, in a window that never ends. Here: there is no limit, because
        # that is what was committed. (docs/deviations.md#a-quota-that-a-commit-removes)
        dst.total_charged_sz += dst.charged_sz
        dst.esz = dst.charged_sz = dst.charge_addr_from = dst.sz_unusable = dst.min_score = 0
        dst.charged_from = dst.charge_target_from = None


def damos_commit_quota(dst: damos_quota, src: damos_quota) -> None:
    """Make ``dst`` what ``src`` is; what was charged, and the effective quota of the present window, stay.

    :raises OSError: EINVAL as :func:`damos_commit_quota_goals`.
    """
    changed = dst.reset_interval != src.reset_interval
    dst.reset_interval, dst.ms, dst.sz = src.reset_interval, src.ms, src.sz
    damos_commit_quota_goals(dst, src)
    if changed:
        _doubt_window(dst)
    dst.goal_tuner = src.goal_tuner
    dst.weight_sz, dst.weight_nr_accesses, dst.weight_age = src.weight_sz, src.weight_nr_accesses, src.weight_age
    dst.fail_charge_num, dst.fail_charge_denom = src.fail_charge_num, src.fail_charge_denom


# The effective quota.


def damon_feed_loop_next_input(last_input: int, score: int) -> int:
    """The input that should bring ``score`` to 10000, given that ``last_input`` led to ``score``.

    The input changes in proportion to the distance of the score from 10000: at most it doubles, and it falls to its
    minimum once the score is twice as high as wanted.

    :returns: at least 10000, at most ULONG_MAX.
    """
    goal = min_input = 10000
    if score == goal:
        return last_input
    if score >= 2 * goal:
        return min_input
    difference = abs(score - goal)
    if last_input < ULONG_MAX // difference:
        compensation = last_input * difference // goal
    else:
        compensation = last_input // goal * difference
    if score > goal:
        return max(last_input - compensation, min_input)
    return min(last_input + compensation, ULONG_MAX)


def _damos_set_quota_goal_current_value(ctx: damon_ctx, quota: damos_quota, goal: damos_quota_goal) -> bool:
    """Measure ``goal``, a part of ``quota``; returns whether it has a value."""
    if goal.metric is Metric.DAMOS_QUOTA_USER_INPUT:
        return True
    unknown, goal.unknown = goal.unknown, False
    try:
        value = _measure(ctx, goal)
    except OSError as error:
        # Kernel: counts what it cannot measure as 0, which asks for more and more work. Here: as what it should be.
        # (docs/deviations.md#a-goal-that-cannot-be-measured)
        goal.current_value, goal.unknown = goal.target_value, True
        if not unknown:
            log.warning("the quota goal %s cannot be measured: %s", goal.metric.value, error.strerror)
        return True
    whole = 10000
    if goal.metric is Metric.DAMOS_QUOTA_SOME_MEM_PSI_US:
        # How long tasks stalled for memory since the last measurement: the first one has none to compare with.
        last, goal.last_psi_total = goal.last_psi_total, value
        if last == ULONG_MAX:
            return False
        value, whole = ulong(value - last), quota.reset_interval * _USEC_PER_MSEC
    goal.current_value = max(whole - value, 0) if goal.complement else value
    return True


def _measure(ctx: damon_ctx, goal: damos_quota_goal) -> int:
    if goal.metric is Metric.DAMOS_QUOTA_NODE_ELIGIBLE_MEM_BP:
        return _node_eligible_mem_bp(ctx, goal)
    if ctx.machine is None:
        raise OSError(errno.EINVAL, "the context has no machine to measure it on")
    return ctx.machine.metric(goal.metric.value, nid=goal.nid, memcg=goal.memcg_path)


def _node_eligible_mem_bp(ctx: damon_ctx, goal: damos_quota_goal) -> int:
    """The goal's node's share of the memory that the scheme wants (``damos_get_node_eligible_mem_bp()``), 1/10000.

    0 where the operations set knows no nodes: a commit of goals alone does not check that.
    """
    if ctx.ops is None or ctx.ops.node_mem is None:
        return 0
    s = next(s for s in ctx.schemes if any(one is goal for one in s.quota.goals))
    eligible: Counter[int] = Counter()
    for t in ctx.adaptive_targets:
        wanted = wanted_rows(ctx, t.regions, damon_nr_accesses_mvsum(t.regions, ctx), s)
        # Deviation: docs/deviations.md#eligible-memory-after-core-filters
        rows = np.flatnonzero(wanted & core_filter_candidates(ctx, t, s))
        eligible.update(ctx.ops.node_mem(ctx, t, rows))
    return mult_frac(eligible[goal.nid], 10000, eligible.total() or 1)


def damos_quota_score(ctx: damon_ctx, quota: damos_quota) -> int | None:
    """The score of ``quota``: its highest ratio of a goal's current to its target value, in 1/10000.

    None where no goal has a value in this window: only the next measurement shows how long tasks stalled.
    """
    measured = [goal for goal in quota.goals if _damos_set_quota_goal_current_value(ctx, quota, goal)]
    return max((mult_frac(goal.current_value, 10000, goal.target_value) for goal in measured), default=None)


def _damos_goal_tune_esz_bp(ctx: damon_ctx, quota: damos_quota) -> None:
    score = damos_quota_score(ctx, quota)
    if quota.goal_tuner is damos_quota_goal_tuner.DAMOS_QUOTA_GOAL_TUNER_CONSIST:
        quota.esz_bp = damon_feed_loop_next_input(max(quota.esz_bp, 10000), 10000 if score is None else score)
    elif score is None:
        return
    elif score >= 10000:
        quota.esz_bp = 0
    else:
        quota.esz_bp = min(quota.sz * 10000, ULONG_MAX) if quota.sz else ULONG_MAX


def damos_set_effective_quota(ctx: damon_ctx, quota: damos_quota) -> None:
    """Compute the effective quota of a new charge window: the smallest limit of size, time and goals.

    The limit of time becomes one of size by the measured speed of the action, because a region must be accepted or cut
    before its time is known."""
    if not quota.ms and not quota.goals:
        quota.esz = quota.sz
        return
    esz = ULONG_MAX
    if quota.goals:
        _damos_goal_tune_esz_bp(ctx, quota)
        esz = quota.esz_bp // 10000
    if quota.ms:
        # Bytes per millisecond; before anything was measured, a page takes about a microsecond.
        throughput = PAGE_SIZE * 1024
        if quota.total_charged_ns:
            throughput = mult_frac(quota.total_charged_sz, NSEC_PER_MSEC, quota.total_charged_ns)
        esz = min(max(ulong(throughput * quota.ms), ctx.min_region_sz), esz)
    if quota.sz and quota.sz < esz:
        esz = quota.sz
    quota.esz = esz


def _limited(quota: damos_quota) -> bool:
    return bool(quota.ms or quota.sz or quota.goals)


def damos_quota_is_set(quota: damos_quota) -> bool:
    """Return whether ``quota`` limits anything."""
    return bool(quota.esz) or _limited(quota)


def damos_quota_is_full(quota: damos_quota, min_region_sz: int) -> bool:
    """Return whether there is no room for a region in the present charge window."""
    return damos_quota_is_set(quota) and quota.esz - quota.charged_sz - quota.sz_unusable < max(min_region_sz, 1)


# Charge windows.


def _doubt_window(quota: damos_quota) -> None:
    """Warn about a charge window that practically never ends: goals are measured only once in each window."""
    if quota.goals and quota.reset_interval >= _ENDLESS_MS:
        log.warning(
            "a charge window of %d ms is 25 days or more, and goals are measured only when one begins; use a smaller "
            "reset_interval_ms",
            quota.reset_interval,
        )


def damos_adjust_quota(ctx: damon_ctx, s: damos) -> None:
    """Begin a new charge window if the last one is over, and choose which scores are worth the quota.

    A quota that is full gets no choice: nothing is applied before the next window.
    """
    quota = s.quota
    if not _limited(quota):
        return
    # Kernel: jiffies. Here: when the present sampling interval was to end, so that a window of n apply intervals is
    # just that, whatever the time of day at which the kdamond comes to it.
    # (docs/deviations.md#charge-windows-follow-sampling-times)
    now = ctx.deadline
    if quota.charged_from is None:
        _doubt_window(quota)
        quota.charged_from = now
        damos_set_effective_quota(ctx, quota)
        trace.damos_esz(ctx, s, quota.esz)
    if not 0 <= now - quota.charged_from < quota.reset_interval * NSEC_PER_MSEC:
        if damos_quota_is_full(quota, ctx.min_region_sz):
            s.stat.qt_exceeds += 1
        quota.total_charged_sz += quota.charged_sz
        quota.charged_from = now
        quota.charged_sz = quota.sz_unusable = 0
        esz = quota.esz
        damos_set_effective_quota(ctx, quota)
        if quota.esz != esz:
            trace.damos_esz(ctx, s, quota.esz)
    if not damos_quota_is_full(quota, ctx.min_region_sz):
        _damos_set_min_score(ctx, s)


def region_scores(ctx: damon_ctx, t: damon_target, s: damos) -> I64Array | None:
    """The score of each region of ``t`` for the action of ``s``, shape (n,); None where all have the same.

    A part of a region has the score of the region.
    """
    ops = ctx.ops
    if ops is not None and ops.get_scheme_scores is not None:
        return ops.get_scheme_scores(ctx, t.regions, s)
    if ops is not None and ops.get_scheme_score is not None:
        scores = [ops.get_scheme_score(ctx, t.regions.region(row), s) for row in range(len(t.regions))]
        return np.array(scores, np.int64)
    return None


def _damos_set_min_score(ctx: damon_ctx, s: damos) -> None:
    """Find the highest score such that the regions of at least that score fill the quota.

    So a quota that has no room for all regions goes to those that deserve the action most, wherever they are."""
    # Kernel: one histogram in the context, for all its schemes. Here: a local one.
    # (docs/deviations.md#one-score-histogram-per-scheme)
    histogram = np.zeros(DAMOS_MAX_SCORE + 1, np.uint64)
    for t in ctx.adaptive_targets:
        scores = region_scores(ctx, t, s)
        if scores is None:
            return
        regions = t.regions
        wanted = wanted_rows(ctx, regions, damon_nr_accesses_mvsum(regions, ctx), s)
        if s.core_filters:
            rows = (wanted & core_filter_candidates(ctx, t, s)).nonzero()[0]
            for first, row in for_each_part(regions, rows.tolist()):
                # A part that a filter cuts off may be too small for the access pattern.
                large_enough = int(regions.end[row] - regions.start[row]) >= s.pattern.min_sz_region
                if large_enough and not damos_core_filter_out(ctx, t, row, s):
                    histogram[scores[first]] += regions.end[row] - regions.start[row]
        else:
            np.add.at(histogram, scores[wanted], regions.sizes()[wanted])
    enough = np.cumsum(histogram[::-1]) >= np.uint64(s.quota.esz)
    s.quota.min_score = DAMOS_MAX_SCORE - int(enough.argmax()) if enough.any() else 0


# Charging.


def damos_charge_quota(quota: damos_quota, sz_region: int, sz_applied: int) -> None:
    """Charge a region of ``sz_region`` of which the action was applied to ``sz_applied``."""
    if not quota.fail_charge_denom or sz_applied > sz_region:
        quota.charged_sz += sz_region
        return
    failed = mult_frac(sz_region - sz_applied, quota.fail_charge_num, quota.fail_charge_denom)
    quota.charged_sz += sz_applied + failed


def largest_charge(quota: damos_quota, sz_region: int) -> int:
    """How much :func:`damos_charge_quota` charges for a region of ``sz_region`` at most."""
    if not quota.fail_charge_denom:
        return sz_region
    return max(sz_region, mult_frac(sz_region, quota.fail_charge_num, quota.fail_charge_denom))


def forget_charged_target(s: damos, t: damon_target) -> None:
    """Let the next charge window of ``s`` start at the first region if it was to continue in ``t``."""
    if s.quota.charge_target_from is t:
        s.quota.charge_target_from = None
        s.quota.charge_addr_from = 0


def damos_skip_charged_region(t: damon_target, row: int, s: damos, min_region_sz: int) -> bool:
    """Return whether a region was visited before the quota became full.

    A region that was visited in part is cut where the rest begins, and ``row`` is its first part then. Continuing
    there gives all memory the same chance: otherwise a full quota would serve the lowest addresses only.
    """
    quota = s.quota
    if quota.charge_target_from is None:
        return False
    if quota.charge_target_from is not t:
        return True
    regions = t.regions
    start, end, charged_to = int(regions.start[row]), int(regions.end[row]), quota.charge_addr_from
    skip = start < charged_to
    if start < charged_to < end:
        size = ALIGN_DOWN(charged_to - start, min_region_sz) or min_region_sz
        if size < end - start:
            regions.split_at(row, size)
    if row == len(regions) - 1:
        forget_charged_target(s, t)
    return skip
