# SPDX-License-Identifier: GPL-2.0-only
"""The structures of ``include/linux/damon.h`` that make up a scheme; :mod:`kdamon.damon` has all of them.

Sizes are in core address units, times in the unit that the field's name or description says.
"""

from __future__ import annotations

from enum import Enum

from attrs import define, field

from kdamon.kernel import UINT_MAX, ULONG_MAX
from kdamon.regions import damon_addr_range

__all__ = [
    "DAMOS_MAX_SCORE",
    "damon_size_range",
    "damos",
    "damos_access_pattern",
    "damos_action",
    "damos_filter",
    "damos_filter_type",
    "damos_migrate_dests",
    "damos_quota",
    "damos_quota_goal",
    "damos_quota_goal_metric",
    "damos_quota_goal_tuner",
    "damos_stat",
    "damos_watermarks",
    "damos_wmark_metric",
]

DAMOS_MAX_SCORE = 99


class damos_action(Enum):
    """The action of a scheme on matching regions; the value is the tree's keyword, the order the kernel's."""

    DAMOS_WILLNEED = "willneed"
    DAMOS_COLD = "cold"
    DAMOS_PAGEOUT = "pageout"
    DAMOS_HUGEPAGE = "hugepage"
    DAMOS_NOHUGEPAGE = "nohugepage"
    DAMOS_COLLAPSE = "collapse"
    DAMOS_LRU_PRIO = "lru_prio"
    DAMOS_LRU_DEPRIO = "lru_deprio"
    DAMOS_MIGRATE_HOT = "migrate_hot"
    DAMOS_MIGRATE_COLD = "migrate_cold"
    DAMOS_STAT = "stat"


@define(slots=True)
class damos_access_pattern:
    """The access pattern of a scheme; all bounds inclusive, sizes in core address units, ages in aggregations."""

    min_sz_region: int = 0
    max_sz_region: int = ULONG_MAX
    min_nr_accesses: int = 0
    max_nr_accesses: int = UINT_MAX
    min_age_region: int = 0
    max_age_region: int = UINT_MAX


class damos_quota_goal_metric(Enum):
    """The metric of a goal; the value is the tree's keyword, the order the kernel's."""

    DAMOS_QUOTA_USER_INPUT = "user_input"
    DAMOS_QUOTA_SOME_MEM_PSI_US = "some_mem_psi_us"
    DAMOS_QUOTA_NODE_MEM_USED_BP = "node_mem_used_bp"
    DAMOS_QUOTA_NODE_MEM_FREE_BP = "node_mem_free_bp"
    DAMOS_QUOTA_NODE_MEMCG_USED_BP = "node_memcg_used_bp"
    DAMOS_QUOTA_NODE_MEMCG_FREE_BP = "node_memcg_free_bp"
    DAMOS_QUOTA_ACTIVE_MEM_BP = "active_mem_bp"
    DAMOS_QUOTA_INACTIVE_MEM_BP = "inactive_mem_bp"
    DAMOS_QUOTA_NODE_ELIGIBLE_MEM_BP = "node_eligible_mem_bp"
    DAMOS_QUOTA_HUGEPAGE_MEM_BP = "hugepage_mem_bp"


@define(slots=True)
class damos_quota_goal:
    """A metric and its wanted value: below it the scheme works more.

    :ivar target_value: not 0.
    :ivar current_value: given by the user for ``user_input``, else measured; of the complement, if that is compared.
    :ivar nid: the NUMA node of the metrics ``node_*``.
    :ivar memcg_path: the memory cgroup of ``node_memcg_*``, below the root of their tree (kernel: its id).
    :ivar complement: compare what the metric leaves of the whole: of 10000, or of the time of a charge window. The user
        gives the complement for ``user_input``.
    :ivar last_psi_total: private, total stall time at the last measurement, microseconds; ULONG_MAX is unknown.
    :ivar unknown: private, the last measurement failed (no kernel counterpart).
    """

    metric: damos_quota_goal_metric = damos_quota_goal_metric.DAMOS_QUOTA_USER_INPUT
    target_value: int = 10000
    current_value: int = 0
    nid: int = 0
    memcg_path: str = ""
    complement: bool = False
    last_psi_total: int = ULONG_MAX
    unknown: bool = False


class damos_quota_goal_tuner(Enum):
    """How goals change the quota; the value is the tree's keyword, the order the kernel's."""

    #: By a feedback loop, to the amount of work that keeps the goal.
    DAMOS_QUOTA_GOAL_TUNER_CONSIST = "consist"
    #: All that is allowed until the goal is reached, nothing then.
    DAMOS_QUOTA_GOAL_TUNER_TEMPORAL = "temporal"


@define(slots=True, eq=False)
class damos_quota:
    """How much a scheme may do; 0 for ``ms`` and ``sz`` and no goal is no limit.

    :ivar reset_interval: length of a charge window, milliseconds.
    :ivar ms: time for applying the action in a window, milliseconds.
    :ivar sz: memory to apply the action to in a window.
    :ivar goals: of several, the one that is the nearest to its target decides.
    :ivar esz: the effective quota: the resulting limit of the present window.
    :ivar weight_sz: not used, as in the kernel.
    :ivar weight_nr_accesses: how much access frequency counts when the quota has to choose.
    :ivar weight_age: how much age counts.
    :ivar fail_charge_num: memory that the action could not be applied to is charged by ``num / denom``.
    :ivar fail_charge_denom: 0 charges it in full.
    :ivar charged_from: private, when the present window began, nanoseconds; None before the first.
    :ivar charge_target_from: private, the target at which a full quota stopped: the next window continues there.
    :ivar sz_unusable: private, the rest of the present window's quota, if it is too small for the operations set.
    :ivar min_score: private, regions of a lower score are left alone in this pass.
    :ivar esz_bp: private, the state of the consistent tuner, bytes times 10000.
    """

    reset_interval: int = 0
    ms: int = 0
    sz: int = 0
    goals: list[damos_quota_goal] = field(factory=list)
    goal_tuner: damos_quota_goal_tuner = damos_quota_goal_tuner.DAMOS_QUOTA_GOAL_TUNER_CONSIST
    esz: int = 0
    weight_sz: int = 0
    weight_nr_accesses: int = 0
    weight_age: int = 0
    fail_charge_num: int = 0
    fail_charge_denom: int = 0

    total_charged_sz: int = 0
    total_charged_ns: int = 0
    charged_sz: int = 0
    charged_from: int | None = None
    charge_target_from: object | None = None
    charge_addr_from: int = 0
    sz_unusable: int = 0
    min_score: int = 0
    esz_bp: int = 0


class damos_wmark_metric(Enum):
    """The metric of watermarks; the value is the tree's keyword, the order the kernel's."""

    DAMOS_WMARK_NONE = "none"
    #: Share of free memory in the whole, permille.
    DAMOS_WMARK_FREE_MEM_RATE = "free_mem_rate"


@define(slots=True)
class damos_watermarks:
    """Activate a scheme once the metric is below ``mid``, until it is above ``high`` or below ``low``.

    :ivar interval: time between two checks of an inactive scheme, microseconds.
    :ivar activated: private, whether it is active.
    """

    metric: damos_wmark_metric = damos_wmark_metric.DAMOS_WMARK_NONE
    interval: int = 0
    high: int = 0
    mid: int = 0
    low: int = 0
    activated: bool = True


class damos_filter_type(Enum):
    """The property that a filter compares; the value is the tree's keyword, the order the kernel's.

    The last three are handled by the core, the others by the operations set.
    """

    DAMOS_FILTER_TYPE_ANON = "anon"
    DAMOS_FILTER_TYPE_ACTIVE = "active"
    DAMOS_FILTER_TYPE_MEMCG = "memcg"
    DAMOS_FILTER_TYPE_YOUNG = "young"
    DAMOS_FILTER_TYPE_HUGEPAGE_SIZE = "hugepage_size"
    DAMOS_FILTER_TYPE_UNMAPPED = "unmapped"
    DAMOS_FILTER_TYPE_ADDR = "addr"
    DAMOS_FILTER_TYPE_TARGET = "target"
    #: Weighted sum of the probes' hits, see :mod:`kdamon.probes`.
    DAMOS_FILTER_TYPE_PROBE_HITS_WSUM = "probe_hits_wsum"


@define(slots=True)
class damon_size_range:
    """Sizes from ``min`` to ``max``, both included, bytes."""

    min: int = 0
    max: int = 0


@define(slots=True)
class damos_filter:
    """A condition on memory: the first filter of a scheme that matches decides, by ``allow``.

    :ivar matching: whether it matches memory of the type, or all other.
    :ivar allow: whether what it matches gets the action, or does not.
    :ivar memcg_id: of type memcg: the memory cgroup's number, as ``/proc/kpagecgroup`` shows it.
    :ivar addr_range: of type addr.
    :ivar target_idx: of type target: place among the targets.
    :ivar sz_range: of type hugepage_size.
    :ivar range_min: of type probe_hits_wsum: the smallest sum.
    :ivar range_max: the largest.
    """

    type: damos_filter_type
    matching: bool = False
    allow: bool = False
    memcg_id: int = 0
    addr_range: damon_addr_range = field(factory=lambda: damon_addr_range(0, 0))
    target_idx: int = 0
    sz_range: damon_size_range = field(factory=damon_size_range)
    range_min: int = 0
    range_max: int = 0


@define(slots=True)
class damos_migrate_dests:
    """NUMA nodes to migrate to, and how much of the memory each of them gets."""

    node_id_arr: list[int] = field(factory=list)
    weight_arr: list[int] = field(factory=list)


@define(slots=True)
class damos_stat:
    """Statistics of a scheme; sizes in core address units.

    :ivar sz_unknown: of all snapshots, regions that had the access pattern but are mostly unknown, whatever filters and
        quotas make of them (no kernel counterpart). Actions that :attr:`damos.needs_known` says leave them alone.
    """

    nr_tried: int = 0
    sz_tried: int = 0
    nr_applied: int = 0
    sz_applied: int = 0
    sz_ops_filter_passed: int = 0
    qt_exceeds: int = 0
    nr_snapshots: int = 0
    sz_unknown: int = 0


#: Actions that cost the process something where memory is in use after all: reading it back, a fault, a slower node,
#: smaller pages. Kernel: knows of every access. Here: they leave alone what is mostly unknown, because it may be hot.
#: The others go to memory that accesses were seen in, or cost the process nothing.
#: (docs/deviations.md#mostly-unknown-memory-is-left-alone)
_NEED_KNOWN = frozenset(
    {
        damos_action.DAMOS_PAGEOUT,
        damos_action.DAMOS_COLD,
        damos_action.DAMOS_MIGRATE_COLD,
        damos_action.DAMOS_LRU_DEPRIO,
        damos_action.DAMOS_NOHUGEPAGE,
    }
)


@define(slots=True, eq=False)
class damos:
    """A DAMON-based operation scheme.

    :ivar apply_interval_us: time between applications, 0 means the aggregation interval.
    :ivar max_nr_snapshots: stop after so many snapshots; 0 never.
    :ivar target_nid: where ``migrate_*`` move memory to if there are no ``migrate_dests``; -1 nowhere.
    :ivar core_filters: filters on regions, made by :func:`kdamon.damos_filters.damos_add_filter`.
    :ivar ops_filters: filters on pages, for the operations set.
    :ivar next_apply_sis: private, sampling intervals since start at which it is applied next.
    :ivar walk_completed: private, whether the installed walk saw one application of it.
    :ivar core_filters_allowed: private, a core filter allowed the present region: filters on pages do not count.
    :ivar core_filters_default_reject: private, what no core filter matches is left alone.
    :ivar ops_filters_default_reject: private, what no filter on pages matches is left alone.
    """

    pattern: damos_access_pattern = field(factory=damos_access_pattern)
    action: damos_action = damos_action.DAMOS_STAT
    apply_interval_us: int = 0
    max_nr_snapshots: int = 0
    stat: damos_stat = field(factory=damos_stat)
    quota: damos_quota = field(factory=damos_quota)
    wmarks: damos_watermarks = field(factory=damos_watermarks)
    target_nid: int = -1
    migrate_dests: damos_migrate_dests = field(factory=damos_migrate_dests)
    core_filters: list[damos_filter] = field(factory=list)
    ops_filters: list[damos_filter] = field(factory=list)
    next_apply_sis: int = 0
    walk_completed: bool = False
    core_filters_allowed: bool = False
    core_filters_default_reject: bool = False
    ops_filters_default_reject: bool = False

    @property
    def needs_known(self) -> bool:
        """Whether its action leaves alone what is mostly unknown, see :func:`kdamon.damos_filters.known_rows`."""
        return self.action in _NEED_KNOWN
