# SPDX-License-Identifier: GPL-2.0-only
"""The directory ``schemes`` of a context (``mm/damon/sysfs-schemes.c``): schemes and their results.

The files only store values; :mod:`kdamon_fs.sysfs_schemes_build` builds schemes from them.
"""

from __future__ import annotations

from attrs import define

from kdamon.damon import (
    damon_ctx,
    damon_region,
    damon_target,
    damos,
    damos_action,
    damos_filter_type,
    damos_quota_goal_metric,
    damos_quota_goal_tuner,
    damos_wmark_metric,
)
from kdamon.damos_filters import damos_filter_for_ops
from kdamon.probes import damon_probe_hits_mvsum
from kdamon_fs.kobject import NumberedDirectories, Tree, kobject, nr_attribute
from kdamon_fs.sysfs_common import (
    bool_attribute,
    damon_sysfs_ul_range,
    int_attribute,
    keyword_attribute,
    read_only_attribute,
    text_attribute,
    uint_attribute,
    ulong_attribute,
)
from kdamon_fs.sysfs_schemes_results import damon_sysfs_scheme_regions, damon_sysfs_stats

__all__ = [
    "damon_sysfs_access_pattern",
    "damon_sysfs_quotas",
    "damon_sysfs_scheme",
    "damon_sysfs_scheme_filter",
    "damon_sysfs_scheme_filters",
    "damon_sysfs_schemes",
    "damon_sysfs_schemes_clear_regions",
    "damon_sysfs_schemes_update_stats",
    "damon_sysfs_schemes_walk_data",
    "damon_sysfs_watermarks",
    "damos_sysfs_dest",
    "damos_sysfs_dests",
    "damos_sysfs_populate_region_dir",
    "damos_sysfs_quota_goal",
    "damos_sysfs_quota_goals",
    "damos_sysfs_update_effective_quotas",
]


# Filters.

_CORE_FILTER_TYPES = tuple(kind.value for kind in damos_filter_type if not damos_filter_for_ops(kind))
_OPS_FILTER_TYPES = tuple(kind.value for kind in damos_filter_type if damos_filter_for_ops(kind))


def _filter_types(kobj: damon_sysfs_scheme_filter) -> tuple[str, ...]:
    newest = damos_filter_type.DAMOS_FILTER_TYPE_PROBE_HITS_WSUM.value
    return tuple(keyword for keyword in kobj.types if keyword != newest or kobj.tree.has("7.4"))


class damon_sysfs_scheme_filter(kobject):
    """A condition on regions or pages; ``types`` are the filter types that its directory accepts."""

    __slots__ = (
        "addr_end",
        "addr_start",
        "allow",
        "damon_target_idx",
        "matching",
        "max",
        "memcg_path",
        "min",
        "type",
        "types",
    )

    default_attributes = (
        keyword_attribute("type", _filter_types),
        bool_attribute("matching"),
        bool_attribute("allow", since="6.14"),
        text_attribute("memcg_path"),
        ulong_attribute("addr_start"),
        ulong_attribute("addr_end"),
        ulong_attribute("min", since="6.15"),
        ulong_attribute("max", since="6.15"),
        int_attribute("damon_target_idx"),
    )

    def __init__(self, tree: Tree, types: tuple[str, ...]) -> None:
        super().__init__(tree)
        self.types = types
        # Also where the directory accepts other types only, as in the kernel.
        self.type = "anon"
        self.matching = self.allow = False
        self.memcg_path = ""
        self.addr_start = self.addr_end = 0
        self.min = self.max = 0
        self.damon_target_idx = 0


class damon_sysfs_scheme_filters(NumberedDirectories[damon_sysfs_scheme_filter]):
    """``core_filters``, ``ops_filters`` or ``filters``, which accept the filter types ``types``."""

    __slots__ = ("types",)

    default_attributes = (nr_attribute("nr_filters"),)

    def __init__(self, tree: Tree, types: tuple[str, ...]) -> None:
        super().__init__(tree)
        self.types = types

    def new_child(self) -> damon_sysfs_scheme_filter:
        """A filter."""
        return damon_sysfs_scheme_filter(self.tree, self.types)


# Watermarks, destinations.


class damon_sysfs_watermarks(kobject):
    """The watermarks, shares of free memory between which the scheme is active."""

    __slots__ = ("high", "interval_us", "low", "metric", "mid")

    default_attributes = (
        keyword_attribute("metric", tuple(metric.value for metric in damos_wmark_metric)),
        ulong_attribute("interval_us"),
        ulong_attribute("high"),
        ulong_attribute("mid"),
        ulong_attribute("low"),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.metric = "none"
        self.interval_us = self.high = self.mid = self.low = 0


class damos_sysfs_dest(kobject):
    """A node to migrate to, and its share."""

    __slots__ = ("id", "weight")

    default_attributes = (uint_attribute("id"), uint_attribute("weight"))

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.id = self.weight = 0


class damos_sysfs_dests(NumberedDirectories[damos_sysfs_dest]):
    """The nodes to migrate to."""

    __slots__ = ()

    default_attributes = (nr_attribute("nr_dests"),)

    def new_child(self) -> damos_sysfs_dest:
        """A destination."""
        return damos_sysfs_dest(self.tree)


# Quotas.

#: The version of the tree that a metric came with, for metrics that are newer than the file.
_METRICS_SINCE = {"hugepage_mem_bp": "7.4"}


def _goal_metrics(kobj: damos_sysfs_quota_goal) -> tuple[str, ...]:
    keywords = (metric.value for metric in damos_quota_goal_metric)
    return tuple(keyword for keyword in keywords if kobj.tree.has(_METRICS_SINCE.get(keyword)))


class damos_sysfs_quota_goal(kobject):
    """A metric and its target value; with the target value 0 it is ignored."""

    __slots__ = ("complement", "current_value", "nid", "path", "target_metric", "target_value")

    default_attributes = (
        keyword_attribute("target_metric", _goal_metrics),
        ulong_attribute("target_value"),
        ulong_attribute("current_value"),
        int_attribute("nid", since="6.16"),
        text_attribute("path", since="6.19"),
        bool_attribute("complement", since="7.4"),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.complement = False
        self.target_metric = "user_input"
        self.target_value = self.current_value = 0
        self.nid = 0
        self.path = ""


class damos_sysfs_quota_goals(NumberedDirectories[damos_sysfs_quota_goal]):
    """The goals of a quota."""

    __slots__ = ()

    default_attributes = (nr_attribute("nr_goals"),)

    def new_child(self) -> damos_sysfs_quota_goal:
        """A goal."""
        return damos_sysfs_quota_goal(self.tree)


class damon_sysfs_weights(kobject):
    """The weights of size, access frequency and age in the scores of a quota."""

    __slots__ = ("age_permil", "nr_accesses_permil", "sz_permil")

    default_attributes = (
        uint_attribute("sz_permil"),
        uint_attribute("nr_accesses_permil"),
        uint_attribute("age_permil"),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.sz_permil = self.nr_accesses_permil = self.age_permil = 0


class damon_sysfs_quotas(kobject):
    """The limits of the scheme."""

    __slots__ = (
        "bytes",
        "effective_bytes",
        "fail_charge_denom",
        "fail_charge_num",
        "goal_tuner",
        "goals",
        "ms",
        "reset_interval_ms",
        "weights",
    )

    default_attributes = (
        ulong_attribute("ms", squash=True),
        ulong_attribute("bytes", squash=True),
        ulong_attribute("reset_interval_ms", squash=True),
        read_only_attribute("effective_bytes"),
        keyword_attribute("goal_tuner", tuple(tuner.value for tuner in damos_quota_goal_tuner), since="7.1"),
        uint_attribute("fail_charge_num", since="7.2", squash=True),
        uint_attribute("fail_charge_denom", since="7.2", squash=True),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.ms = self.bytes = self.reset_interval_ms = 0
        self.effective_bytes = 0
        self.goal_tuner = "consist"
        self.fail_charge_num = self.fail_charge_denom = 0
        self.weights = damon_sysfs_weights(tree)
        self.goals = damos_sysfs_quota_goals(tree)
        self.add("weights", self.weights)
        self.add("goals", self.goals)


# Schemes.


class damon_sysfs_access_pattern(kobject):
    """The regions that the scheme applies to. The maxima are 0 at first, so a new scheme matches nothing."""

    __slots__ = ("age", "nr_accesses", "sz")

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.sz = damon_sysfs_ul_range(tree, 0, 0)
        self.nr_accesses = damon_sysfs_ul_range(tree, 0, 0)
        self.age = damon_sysfs_ul_range(tree, 0, 0)
        self.add("sz", self.sz)
        self.add("nr_accesses", self.nr_accesses)
        self.add("age", self.age)


class damon_sysfs_scheme(kobject):
    """A scheme: an action, the access pattern that it applies to, and the results."""

    __slots__ = (
        "access_pattern",
        "action",
        "apply_interval_us",
        "core_filters",
        "dests",
        "filters",
        "ops_filters",
        "quotas",
        "stats",
        "target_nid",
        "tried_regions",
        "watermarks",
    )

    default_attributes = (
        keyword_attribute("action", tuple(action.value for action in damos_action)),
        ulong_attribute("apply_interval_us"),
        int_attribute("target_nid"),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.action = damos_action.DAMOS_STAT.value
        self.apply_interval_us = 0
        self.target_nid = -1
        self.access_pattern = damon_sysfs_access_pattern(tree)
        self.dests = damos_sysfs_dests(tree)
        self.quotas = damon_sysfs_quotas(tree)
        self.watermarks = damon_sysfs_watermarks(tree)
        self.core_filters = damon_sysfs_scheme_filters(tree, _CORE_FILTER_TYPES)
        self.ops_filters = damon_sysfs_scheme_filters(tree, _OPS_FILTER_TYPES)
        self.filters = damon_sysfs_scheme_filters(tree, _OPS_FILTER_TYPES + _CORE_FILTER_TYPES)
        self.stats = damon_sysfs_stats(tree)
        self.tried_regions = damon_sysfs_scheme_regions(tree)
        self.add("access_pattern", self.access_pattern)
        self.add("dests", self.dests, since="6.17")
        self.add("quotas", self.quotas)
        self.add("watermarks", self.watermarks)
        self.add("core_filters", self.core_filters, since="6.15")
        self.add("ops_filters", self.ops_filters, since="6.15")
        self.add("filters", self.filters)
        self.add("stats", self.stats)
        self.add("tried_regions", self.tried_regions)


class damon_sysfs_schemes(NumberedDirectories[damon_sysfs_scheme]):
    """The schemes of a context."""

    __slots__ = ()

    default_attributes = (nr_attribute("nr_schemes"),)

    def new_child(self) -> damon_sysfs_scheme:
        """A scheme."""
        return damon_sysfs_scheme(self.tree)


# Results.


def damon_sysfs_schemes_update_stats(schemes: damon_sysfs_schemes, ctx: damon_ctx) -> None:
    """Show the statistics of the schemes of ``ctx``; runs in its kdamond.

    There may be fewer or more directories than schemes by now.
    """
    for i, s in enumerate(ctx.schemes[: schemes.nr]):
        stats = schemes.at(i).stats
        stats.nr_tried = s.stat.nr_tried
        stats.sz_tried = s.stat.sz_tried
        stats.nr_applied = s.stat.nr_applied
        stats.sz_applied = s.stat.sz_applied
        stats.sz_ops_filter_passed = s.stat.sz_ops_filter_passed
        stats.qt_exceeds = s.stat.qt_exceeds
        stats.nr_snapshots = s.stat.nr_snapshots
        stats.sz_unknown = s.stat.sz_unknown


def damos_sysfs_update_effective_quotas(schemes: damon_sysfs_schemes, ctx: damon_ctx) -> None:
    """Show the effective quotas of the schemes of ``ctx``; runs in its kdamond."""
    for i, s in enumerate(ctx.schemes[: schemes.nr]):
        schemes.at(i).quotas.effective_bytes = s.quota.esz


def damon_sysfs_schemes_clear_regions(schemes: damon_sysfs_schemes) -> None:
    """Remove the tried regions of all schemes."""
    for scheme in schemes:
        scheme.tried_regions.rm_regions()


@define(slots=True)
class damon_sysfs_schemes_walk_data:
    """The arguments of :func:`damos_sysfs_populate_region_dir`.

    :ivar schemes: the directory of the schemes.
    :ivar total_bytes_only: count the bytes, create no directories.
    """

    schemes: damon_sysfs_schemes
    total_bytes_only: bool
    _scheme: damos | None = None
    _regions: damon_sysfs_scheme_regions | None = None

    def regions_of(self, ctx: damon_ctx, s: damos) -> damon_sysfs_scheme_regions | None:
        """The directory for tried regions of ``s``, None if it was removed meanwhile."""
        if s is not self._scheme:
            self._scheme = s
            place = ctx.schemes.index(s)
            self._regions = self.schemes.at(place).tried_regions if place < self.schemes.nr else None
        return self._regions


def damos_sysfs_populate_region_dir(  # noqa: PLR0917 -- the parameters of damos_walk_control.walk_fn
    data: damon_sysfs_schemes_walk_data,
    ctx: damon_ctx,
    t: damon_target,
    region: damon_region,
    s: damos,
    sz_filter_passed: int,
) -> None:
    """Show ``region``, tried by scheme ``s``: a walk function of :class:`damos_walk_control`."""
    regions = data.regions_of(ctx, s)
    if regions is None:
        return
    regions.total_bytes += region.size
    if not data.total_bytes_only:
        hits = [damon_probe_hits_mvsum(i, region, ctx) for i in range(len(ctx.probes))]
        regions.add_region(region, sz_filter_passed, hits)
