# SPDX-License-Identifier: GPL-2.0-only
"""Quota goals: what Linux 7.2 answered to scores, window by window, and what becomes of metrics.

Each case is the quota and, for each setting of the goals, the effective quotas of one window after another. Where a
window changed the tuned size by less than a byte, how many there were comes from what was read afterwards.
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import pytest

from kdamon import trace
from kdamon.core import damon_add_scheme
from kdamon.damon import (
    damon_addr_range,
    damon_ctx,
    damon_target,
    damos,
    damos_access_pattern,
    damos_filter,
    damos_filter_type,
    damos_quota,
    damos_quota_goal,
    damos_quota_goal_metric,
    damos_quota_goal_tuner,
)
from kdamon.damos_filters import damos_add_filter
from kdamon.damos_quota import (
    damon_feed_loop_next_input,
    damos_adjust_quota,
    damos_commit_quota_goals,
    damos_quota_score,
)
from kdamon.kernel import ULONG_MAX
from kdamon.mm.sim.machine import SimMachine
from kdamon.regions import Regions
from tests.support.contexts import report_ops
from tests.support.tables import ctx_of

Metric = damos_quota_goal_metric
TEMPORAL = damos_quota_goal_tuner.DAMOS_QUOTA_GOAL_TUNER_TEMPORAL
DOUBLES = [2**n for n in range(1, 19)]
MOST = ULONG_MAX // 10000

#: Name, quota, targets of the goals, then their current values and the effective quotas that followed.
CASES = [
    ("zero doubles", {}, [10000], [([0], DOUBLES)]),
    (
        "ramp",
        {},
        [10000],
        [
            ([0], DOUBLES[:9]),
            ([5000], [768, 1152, 1728, 2592, 3888]),
            ([9000], [4276, 4704, 5174, 5692]),
            ([9999], [5692, 5693, 5694, 5694, 5695]),
            ([10000], [5695]),
            ([10001], [5694, 5694, 5693, 5692, 5692]),
            ([11000], [5123, 4610, 4149, 3734]),
            ([15000], [1867, 933, 466, 233]),
            ([19999], [1]),
            ([20000], [1]),
            ([30000], [1]),
            ([0], DOUBLES[:8]),
        ],
    ),
    (
        "small target",
        {},
        [2],
        [([0], DOUBLES[:5]), ([1], [48, 72, 108, 162, 243, 364]), ([2], [364]), ([3], [182, 91, 45, 22, 11])],
    ),
    (
        "of two goals the higher score",
        {},
        [10000, 100],
        [
            ([0, 0], DOUBLES[:4]),
            ([5000, 0], [24]),
            ([5000, 100], [24]),
            ([5000, 150], [12, 6, 3, 1]),
            ([0, 200], [1]),
            ([10000, 0], [1]),
            ([0, 0], DOUBLES[:5]),
        ],
    ),
    (
        "capped at 1000",
        {"sz": 1000},
        [10000],
        [([0], [*DOUBLES[:9], 1000]), ([15000], [512, 256, 128]), ([0], [256, 512, 1000])],
    ),
    ("capped at 64", {"sz": 64}, [10000], [([0], DOUBLES[:6])]),
    ("below what 10 ms allow", {"ms": 10}, [10000], [([0], DOUBLES[:14]), ([15000], DOUBLES[12:5:-1])]),
    ("below what 1 ms allows", {"ms": 1}, [10000], [([0], DOUBLES[:7]), ([15000], [64, 32, 16, 8, 4, 2, 1])]),
    (
        "windows of a second",
        {},
        [10000],
        [([0], DOUBLES[:5]), ([5000], [48, 72, 108, 162, 243]), ([15000], [121, 60, 30, 15, 7])],
    ),
    ("10 ms without a goal", {"ms": 10}, [], [([], [41943040])]),
    ("bytes without a goal", {"sz": 12345}, [], [([], [12345])]),
    ("huge current values", {}, [10000], [([2**63], [1]), ([ULONG_MAX], [1]), ([10**15], [1])]),
    (
        "temporal",
        {"goal_tuner": TEMPORAL},
        [10000],
        [
            ([0], [MOST]),
            ([5000], [MOST]),
            ([9999], [MOST]),
            ([10000], [0]),
            ([10001], [0]),
            ([20000], [0]),
            ([0], [MOST]),
        ],
    ),
    (
        "consistent",
        {},
        [10000],
        [
            ([0], DOUBLES[:7]),
            ([5000], [192, 288, 432, 648]),
            ([9999], [648] * 5),
            ([10001], [648] * 4),
            ([20000], [1]),
            ([0], DOUBLES[:3]),
        ],
    ),
    # Sizes beyond 64 bits in 1/10000 of a byte are the largest number, as 7.4 computes them.
    ("temporal, capped at all", {"goal_tuner": TEMPORAL, "sz": ULONG_MAX}, [10000], [([0], [MOST])]),
    ("temporal, just fits", {"goal_tuner": TEMPORAL, "sz": MOST}, [10000], [([0], [MOST])]),
    ("temporal, just does not fit", {"goal_tuner": TEMPORAL, "sz": MOST + 1}, [10000], [([0], [MOST])]),
    # In 64 bits, as the kernel computes.
    ("more milliseconds than there are", {"ms": 2**50}, [], [([], [1])]),
    (
        "temporal, capped at 1000",
        {"goal_tuner": TEMPORAL, "sz": 1000},
        [10000],
        [([0], [1000]), ([9999], [1000]), ([10000], [0]), ([0], [1000])],
    ),
    ("temporal with 10 ms", {"goal_tuner": TEMPORAL, "ms": 10}, [10000], [([0], [41943040]), ([10000], [0])]),
    (
        "temporal, two goals",
        {"goal_tuner": TEMPORAL},
        [10000, 100],
        [([0, 0], [MOST]), ([10000, 0], [0]), ([0, 100], [0]), ([0, 0], [MOST])],
    ),
]


def quota_ctx(goals: list[damos_quota_goal], machine: SimMachine | None = None, **quota: object) -> damon_ctx:
    """A context with a scheme of such a quota."""
    ctx = ctx_of(Regions([0], [4096]))
    ctx.machine = machine
    s = damos(quota=damos_quota(reset_interval=300, goals=goals))
    for name, value in quota.items():
        setattr(s.quota, name, value)
    damon_add_scheme(ctx, s)
    return ctx


def window(ctx: damon_ctx) -> int:
    """Begin the next charge window; returns its effective quota."""
    s = ctx.schemes[0]
    ctx.deadline += 300_000_000
    damos_adjust_quota(ctx, s)
    return s.quota.esz


@pytest.mark.parametrize(("quota", "targets", "steps"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_measured_effective_quotas(
    quota: dict[str, object], targets: list[int], steps: list[tuple[list[int], list[int]]]
) -> None:
    ctx = quota_ctx([damos_quota_goal(target_value=value) for value in targets], **quota)
    for currents, expected in steps:
        for goal, current in zip(ctx.schemes[0].quota.goals, currents, strict=True):
            goal.current_value = current
        assert (currents, expected) == (currents, [window(ctx) for _ in expected])


def test_what_would_not_fit_64_bits_is_compensated_in_steps() -> None:
    """As the kernel does: less exactly."""
    last = 1_844_674_407_370_959_999
    assert last + 1_844_489_939_930_212_905 == damon_feed_loop_next_input(last, 1)
    assert last + 1_660_022_499_193_117_905 == damon_feed_loop_next_input(last, 1001)


def test_scores_of_large_values_do_not_wrap() -> None:
    """Where the kernel's do, which would see a goal that is nearly reached as far away."""
    ctx = quota_ctx([damos_quota_goal(target_value=ULONG_MAX, current_value=ULONG_MAX - 1)])
    assert 9999 == damos_quota_score(ctx, ctx.schemes[0].quota)


@pytest.mark.parametrize(
    ("name", "values", "target", "expected"),
    [
        ("node_mem_used_bp", 220, 10000, [1, 3, 7, 15, 30, 59, 118]),
        ("active_mem_bp", 3000, 1, [1, 1, 1]),
        # 7.2 compared the first window with a time that was never measured: [2, 4, 8, 16, 32].
        ("some_mem_psi_us", 0, 1000, [1, 2, 4, 8, 16]),
    ],
)
def test_measured_effective_quotas_by_metric(name: str, values: int, target: int, expected: list[int]) -> None:
    machine = SimMachine()
    machine.metrics[name] = values
    ctx = quota_ctx([damos_quota_goal(Metric(name), target)], machine)
    assert expected == [window(ctx) for _ in expected]


def scores(ctx: damon_ctx, machine: SimMachine, totals: tuple[int, ...]) -> list[int | None]:
    """The scores of the scheme's quota after these stall times."""
    seen = []
    for total in totals:
        machine.metrics["some_mem_psi_us"] = total
        seen.append(damos_quota_score(ctx, ctx.schemes[0].quota))
    return seen


def test_stall_time_counts_from_one_window_to_the_next() -> None:
    """The first window, also that after a commit, has no earlier one to compare with: no score."""
    machine = SimMachine()
    ctx = quota_ctx([damos_quota_goal(Metric.DAMOS_QUOTA_SOME_MEM_PSI_US, 1000)], machine)
    assert [None, 5000, 20000, 0] == scores(ctx, machine, (5_000_000, 5_000_500, 5_002_500, 5_002_500))
    goals = [damos_quota_goal(Metric.DAMOS_QUOTA_SOME_MEM_PSI_US, 700)]
    damos_commit_quota_goals(ctx.schemes[0].quota, damos_quota(goals=goals))
    assert [None, 1428] == scores(ctx, machine, (5_003_000, 5_003_100))


def test_an_unmeasured_window_leaves_the_decision_to_the_other_goals() -> None:
    machine = SimMachine()
    goals = [damos_quota_goal(Metric.DAMOS_QUOTA_SOME_MEM_PSI_US, 1000), damos_quota_goal(current_value=3000)]
    ctx = quota_ctx(goals, machine)
    assert [3000, 4000] == scores(ctx, machine, (50_000, 50_400))


@pytest.mark.parametrize(
    ("tuner", "expected"),
    [
        (damos_quota_goal_tuner.DAMOS_QUOTA_GOAL_TUNER_CONSIST, [1, 2, 4, 4, 1]),
        (TEMPORAL, [0, 4096, 4096, 4096, 0]),
    ],
)
def test_a_commit_of_a_stall_time_goal_changes_no_quota(tuner: damos_quota_goal_tuner, expected: list[int]) -> None:
    """The tuners keep the quota that they had over the window without a measurement, the fourth one here."""
    machine = SimMachine()
    goal = damos_quota_goal(Metric.DAMOS_QUOTA_SOME_MEM_PSI_US, 1000)
    ctx = quota_ctx([goal], machine, goal_tuner=tuner, sz=4096)
    seen = []
    for total in (9000, 9000, 9000, 9000, 19_000):
        if len(seen) == 3:
            damos_commit_quota_goals(ctx.schemes[0].quota, damos_quota(goals=[damos_quota_goal(goal.metric, 1000)]))
        machine.metrics["some_mem_psi_us"] = total
        seen.append(window(ctx))
    assert expected == seen


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("node_mem_used_bp", 6000, 4000),
        ("node_mem_free_bp", 0, 10000),
        ("node_mem_used_bp", 10000, 0),
        ("inactive_mem_bp", 7000, 3000),
        ("hugepage_mem_bp", 500, 9500),
        ("active_mem_bp", 10001, 0),
    ],
)
def test_the_complement_of_a_share_is_the_rest_of_the_whole(name: str, value: int, expected: int) -> None:
    machine = SimMachine()
    machine.metrics[name] = value
    ctx = quota_ctx([damos_quota_goal(Metric(name), 10000, complement=True)], machine)
    assert expected == damos_quota_score(ctx, ctx.schemes[0].quota)


def test_the_complement_of_stall_time_is_the_rest_of_the_charge_window() -> None:
    """Of 300 ms here, never less than nothing."""
    machine = SimMachine()
    goal = damos_quota_goal(Metric.DAMOS_QUOTA_SOME_MEM_PSI_US, 300_000, complement=True)
    ctx = quota_ctx([goal], machine)
    seen = scores(ctx, machine, (1000, 1000, 101_000, 401_000, 701_001))
    assert [None, 10000, 6666, 0, 0] == seen


def test_the_user_gives_the_complement() -> None:
    ctx = quota_ctx([damos_quota_goal(current_value=2500, complement=True)])
    assert 2500 == damos_quota_score(ctx, ctx.schemes[0].quota)


@pytest.mark.parametrize(
    ("name", "nid", "path", "value"),
    [
        ("node_mem_used_bp", 0, "", 6000),
        ("node_mem_free_bp", 0, "", 4000),
        ("node_mem_used_bp", 1, "", 0),
        ("node_mem_free_bp", -1, "", 10000),
        ("node_memcg_used_bp", 0, "/", 1000),
        ("node_memcg_free_bp", 0, "/gone", 10000),
        ("active_mem_bp", 0, "", 3000),
        ("inactive_mem_bp", 0, "", 7000),
        ("hugepage_mem_bp", 0, "", 500),
        ("node_eligible_mem_bp", 0, "", 0),
    ],
)
def test_metrics_are_measured_on_the_machine(name: str, nid: int, path: str, value: int) -> None:
    ctx = quota_ctx([damos_quota_goal(Metric(name), 10000, 77, nid, path)], SimMachine())
    assert value == damos_quota_score(ctx, ctx.schemes[0].quota)
    assert value == ctx.schemes[0].quota.goals[0].current_value


def test_what_cannot_be_measured_changes_nothing_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    machine = SimMachine()
    ctx = quota_ctx([damos_quota_goal(Metric.DAMOS_QUOTA_ACTIVE_MEM_BP, 6000)], machine)
    assert [1, 2, 3] == [window(ctx) for _ in range(3)]
    del machine.metrics["active_mem_bp"]
    with caplog.at_level(logging.WARNING, "kdamon"):
        assert [3, 3, 3] == [window(ctx) for _ in range(3)]
        assert 1 == len(caplog.records)
        machine.metrics["active_mem_bp"] = 3000
        assert 5 == window(ctx)
        assert 1 == len(caplog.records)
        del machine.metrics["active_mem_bp"]
        assert 5 == window(ctx)
    assert 2 == len(caplog.records)


def test_the_goal_of_eligible_memory_asks_for_what_the_scheme_wants() -> None:
    """Regions of its access pattern that its filters do not reject as a whole: a node's share in all of them."""
    asked: list[list[int]] = []

    def node_mem(ctx: damon_ctx, t: damon_target, rows: npt.NDArray[np.intp]) -> dict[int, int]:
        asked.append(rows.tolist())
        return {0: 100 * len(rows), 1: 300} if len(rows) else {}

    goal = damos_quota_goal(Metric.DAMOS_QUOTA_NODE_ELIGIBLE_MEM_BP, 10000)
    ctx = ctx_of(Regions([0, 10, 30, 60], [10, 30, 60, 100]), Regions([0], [5]))
    ctx.ops = report_ops(node_mem=node_mem)
    s = damos(damos_access_pattern(min_sz_region=20), quota=damos_quota(goals=[goal]))
    rejected = damon_addr_range(55, 100)
    damos_add_filter(s, damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ADDR, True, False, addr_range=rejected))
    damon_add_scheme(ctx, damos(damos_access_pattern(max_sz_region=0), quota=damos_quota(goals=[damos_quota_goal()])))
    damon_add_scheme(ctx, s)
    scores = []
    for goal.nid in (0, 1, 2, -1):
        asked.clear()
        scores.append(damos_quota_score(ctx, s.quota))
        assert [[1, 2], []] == asked
    assert [4000, 6000, 0, 0] == scores


def test_each_change_of_the_effective_quota_is_told() -> None:
    """And what it is at first."""
    traced: list[tuple[damos, int]] = []

    def probe(ctx: damon_ctx, s: damos, esz: int) -> None:
        traced.append((s, esz))

    ctx = quota_ctx([damos_quota_goal(target_value=10000)])
    (s,) = ctx.schemes
    s.quota.esz_bp = 100_000
    trace.damos_esz.register(probe)
    try:
        for current in (10000, 10000, 0, 10000):
            s.quota.goals[0].current_value = current
            window(ctx)
    finally:
        trace.damos_esz.unregister(probe)
    assert [(s, 10), (s, 20)] == traced


def test_a_window_also_ends_when_time_went_back() -> None:
    """As after a start with another clock."""
    ctx = quota_ctx([], sz=100)
    ctx.deadline = 10**12
    window(ctx)
    quota = ctx.schemes[0].quota
    quota.charged_sz = 60
    ctx.deadline = 0
    window(ctx)
    assert (0, 60, 300_000_000) == (quota.charged_sz, quota.total_charged_sz, quota.charged_from)
