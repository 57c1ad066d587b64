# SPDX-License-Identifier: GPL-2.0-only
"""Monitoring contexts from a :class:`kdamon.monitoring.config.Config`."""

from __future__ import annotations

import errno

from kdamon.core import (
    damon_add_target,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_set_regions,
)
from kdamon.damon import (
    OPS_KEYWORDS,
    PrimitivesEnabled,
    damon_addr_range,
    damon_attrs,
    damon_ctx,
    damon_intervals_goal,
    damon_operations,
    damon_sample_control,
    damon_sample_filter_type,
    damon_target,
)
from kdamon.mapped import follow_mappings
from kdamon.mm import Primitive
from kdamon.monitoring.config import Config
from kdamon.monitoring.defaults import TUNING_AGGRS, TUNING_BP
from kdamon.reports.groups import GroupedReports
from kdamon.sample_control import damon_add_sample_filter, damon_new_sample_filter

__all__ = ["add_target", "new_context", "operations_set"]


def operations_set(name: str) -> damon_operations:
    """The operations set ``name``: vaddr, fvaddr, paddr or reports.

    ``attrs.evolve(operations_set("vaddr"), ...)`` is one with other callbacks.

    :raises OSError: EINVAL there is none of this name.
    """
    if name not in OPS_KEYWORDS:
        raise OSError(errno.EINVAL, f"there is no operations set {name!r}; use {', '.join(OPS_KEYWORDS)}")
    ctx = damon_new_ctx()
    damon_select_ops(ctx, OPS_KEYWORDS[name])
    assert ctx.ops is not None
    return ctx.ops


def new_context(config: Config, seed: int | None = None, operations: damon_operations | None = None) -> damon_ctx:
    """A context without targets that monitors as ``config`` says.

    :param seed: makes everything random in it repeatable.
    :param operations: an operations set of the caller's own instead of the one that ``config`` names.
    :raises OSError: EINVAL there is no such operations set, or the attributes make no sense.
    """
    ctx = damon_new_ctx(seed)
    ctx.ops = operations_set(config.ops) if operations is None else operations
    if config.ops == "vaddr" and config.vaddr_regions == "mappings" and operations is None:
        follow_mappings(ctx)
    damon_set_attrs(
        ctx,
        damon_attrs(
            sample_interval=config.sample_us,
            aggr_interval=config.aggr_us,
            ops_update_interval=config.update_us,
            min_nr_regions=config.min_regions,
            max_nr_regions=config.max_regions,
            intervals_goal=_intervals_goal(config),
        ),
    )
    ctx.sample_control = _sample_control(config)
    ctx.density = config.density
    return ctx


def _intervals_goal(config: Config) -> damon_intervals_goal:
    if config.intervals == "fixed":
        return damon_intervals_goal()
    return damon_intervals_goal(
        access_bp=TUNING_BP,
        aggrs=TUNING_AGGRS,
        min_sample_us=config.sample_us,
        max_sample_us=max(config.sample_us, config.longest_sample_us),
    )


def add_target(ctx: damon_ctx, config: Config) -> damon_target:
    """Add the process and the ranges of ``config`` to ``ctx``.

    :raises OSError: EINVAL the ranges overlap.
    """
    target = damon_new_target()
    target.pid = config.pid
    if config.by:
        target.groups = GroupedReports(config.by)
    if config.ranges:
        ranges = [damon_addr_range(start, end) for start, end in sorted(config.ranges)]
        damon_set_regions(target, ranges, ctx.min_region_sz)
    damon_add_target(ctx, target)
    return target


def _sample_control(config: Config) -> damon_sample_control:
    """Where accesses come from and which count, as ``config`` says: each filter allows what it names."""
    primitives = PrimitivesEnabled(config.primitive == Primitive.PAGE_TABLE, config.primitive == Primitive.PAGE_FAULT)
    control = damon_sample_control(primitives)
    kinds = damon_sample_filter_type
    if config.write_only:
        damon_add_sample_filter(control, damon_new_sample_filter(kinds.DAMON_FILTER_TYPE_WRITE, True, True))
    if config.read_only:
        damon_add_sample_filter(control, damon_new_sample_filter(kinds.DAMON_FILTER_TYPE_WRITE, False, True))
    if config.cpus:
        f = damon_new_sample_filter(kinds.DAMON_FILTER_TYPE_CPUMASK, True, True, cpumask=config.cpus)
        damon_add_sample_filter(control, f)
    if config.tids:
        f = damon_new_sample_filter(kinds.DAMON_FILTER_TYPE_THREADS, True, True, tid_arr=config.tids)
        damon_add_sample_filter(control, f)
    return control
