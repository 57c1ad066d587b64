# SPDX-License-Identifier: GPL-2.0-only
"""Schemes through the tree: what is written reaches them, what came of it can be read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from kdamon.damon import (
    damon_addr_range,
    damon_size_range,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_migrate_dests,
    damos_quota_goal_metric,
    damos_quota_goal_tuner,
    damos_watermarks,
    damos_wmark_metric,
)
from kdamon_fs.abi import ABI_VERSIONS
from tests.support.tree import CONTEXT, KDAMOND

SCHEME = f"{CONTEXT}/schemes/0"
GOAL = f"{SCHEME}/quotas/goals/0"
Type = damos_filter_type
Metric = damos_quota_goal_metric


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.005)


def put_all(session: Any, directory: str, **values: str | int) -> None:
    for name, value in values.items():
        session.put(f"{directory}/{name}", value)


def the_scheme(session: Any) -> Any:
    """The first scheme of the context that is monitored."""
    return session.tree.kdamonds.present()[0].damon_ctx.schemes[0]


def effective_bytes(session: Any) -> int:
    assert "OK" == session.state("update_schemes_effective_quotas")
    return int(session.read(f"{SCHEME}/quotas/effective_bytes"))


def stat(session: Any, name: str) -> int:
    assert "OK" == session.state("update_schemes_stats")
    return int(session.read(f"{SCHEME}/stats/{name}"))


def test_quotas_and_goals_are_what_the_files_say(session: Any) -> None:
    session.monitor()
    put_all(session, f"{SCHEME}/quotas", ms=1, bytes=2, reset_interval_ms=3, goal_tuner="temporal")
    put_all(session, f"{SCHEME}/quotas", fail_charge_num=4, fail_charge_denom=5)
    put_all(session, f"{SCHEME}/quotas/weights", sz_permil=6, nr_accesses_permil=7, age_permil=8)
    session.put(f"{SCHEME}/quotas/goals/nr_goals", 3)
    put_all(session, GOAL, target_metric="user_input", target_value=10, current_value=9)
    put_all(
        session, f"{SCHEME}/quotas/goals/2", target_metric="node_memcg_used_bp", target_value=11, nid=3, path="/foo"
    )
    assert "OK" == session.state("on")
    quota = the_scheme(session).quota
    assert (1, 2, 3) == (quota.ms, quota.sz, quota.reset_interval)
    assert quota.goal_tuner is damos_quota_goal_tuner.DAMOS_QUOTA_GOAL_TUNER_TEMPORAL
    assert (4, 5) == (quota.fail_charge_num, quota.fail_charge_denom)
    assert (6, 7, 8) == (quota.weight_sz, quota.weight_nr_accesses, quota.weight_age)
    # The second goal has the target value 0.
    assert [
        (Metric.DAMOS_QUOTA_USER_INPUT, 10, 0, ""),
        (Metric.DAMOS_QUOTA_NODE_MEMCG_USED_BP, 11, 3, "/foo"),
    ] == [(goal.metric, goal.target_value, goal.nid, goal.memcg_path) for goal in quota.goals]
    assert 9 == quota.goals[0].current_value


def test_filters_are_sorted_by_their_types(session: Any) -> None:
    """In the order core_filters, ops_filters, filters."""
    session.monitor()
    for name in ("core_filters", "ops_filters", "filters"):
        session.put(f"{SCHEME}/{name}/nr_filters", 3)
    put_all(session, f"{SCHEME}/core_filters/0", type="addr", addr_start=1, addr_end=2, matching="Y")
    put_all(session, f"{SCHEME}/core_filters/1", type="target", damon_target_idx=3, allow="Y")
    put_all(session, f"{SCHEME}/ops_filters/0", type="memcg", memcg_path="/foo")
    put_all(session, f"{SCHEME}/ops_filters/1", type="hugepage_size", min=4, max=5)
    put_all(session, f"{SCHEME}/ops_filters/2", type="active")
    put_all(session, f"{SCHEME}/filters/0", type="addr", addr_start=6, addr_end=7)
    put_all(session, f"{SCHEME}/filters/1", type="unmapped")
    put_all(session, f"{SCHEME}/filters/2", type="young", matching="Y", allow="Y")
    assert "OK" == session.state("on")
    s = the_scheme(session)
    assert s.core_filters == [
        damos_filter(Type.DAMOS_FILTER_TYPE_ADDR, True, addr_range=damon_addr_range(1, 2)),
        damos_filter(Type.DAMOS_FILTER_TYPE_TARGET, allow=True, target_idx=3),
        damos_filter(Type.DAMOS_FILTER_TYPE_ADDR, addr_range=damon_addr_range(6, 7)),
    ]
    assert s.ops_filters == [
        # The third directory in core_filters has the type that all begin with.
        damos_filter(Type.DAMOS_FILTER_TYPE_ANON),
        damos_filter(Type.DAMOS_FILTER_TYPE_MEMCG, memcg_id=2),
        damos_filter(Type.DAMOS_FILTER_TYPE_HUGEPAGE_SIZE, sz_range=damon_size_range(4, 5)),
        damos_filter(Type.DAMOS_FILTER_TYPE_ACTIVE),
        damos_filter(Type.DAMOS_FILTER_TYPE_UNMAPPED),
        damos_filter(Type.DAMOS_FILTER_TYPE_YOUNG, True, True),
    ]
    assert (False, True) == (s.core_filters_default_reject, s.ops_filters_default_reject)


def test_watermarks_destinations_and_nodes_are_what_the_files_say(session: Any) -> None:
    session.monitor()
    put_all(session, f"{SCHEME}/watermarks", metric="free_mem_rate", interval_us=10_000, high=900, mid=800, low=1)
    session.put(f"{SCHEME}/dests/nr_dests", 2)
    put_all(session, f"{SCHEME}/dests/0", id=1, weight=2)
    put_all(session, f"{SCHEME}/dests/1", id=3, weight=4)
    put_all(session, SCHEME, action="migrate_cold", target_nid=5)
    assert "OK" == session.state("on")
    s = the_scheme(session)
    assert s.wmarks == damos_watermarks(damos_wmark_metric.DAMOS_WMARK_FREE_MEM_RATE, 10_000, 900, 800, 1)
    assert s.migrate_dests == damos_migrate_dests([1, 3], [2, 4])
    assert (damos_action.DAMOS_MIGRATE_COLD, 5) == (s.action, s.target_nid)


def test_a_size_quota_is_in_effect_from_the_first_application(session: Any) -> None:
    """No pass before it tries more, and what is full is counted."""
    session.monitor()
    put_all(session, f"{SCHEME}/quotas", bytes=1 << 20, reset_interval_ms=200)
    assert "OK" == session.state("on")
    assert effective_bytes(session) in (0, 1 << 20)
    until(lambda: stat(session, "qt_exceeds") > 1, "a second full window")
    tried, windows = stat(session, "sz_tried"), stat(session, "qt_exceeds") + 1
    assert 0 == tried % (1 << 20)
    assert tried <= windows << 20
    assert 1 << 20 == effective_bytes(session)


def test_goals_steer_the_effective_quota_and_can_be_committed_alone(session: Any) -> None:
    """Below the target it doubles; above, it falls; nothing else of what was written meanwhile counts."""
    session.monitor()
    session.put(f"{SCHEME}/quotas/reset_interval_ms", 100)
    session.put(f"{SCHEME}/quotas/goals/nr_goals", 1)
    put_all(session, GOAL, target_value=10_000)
    assert "OK" == session.state("on")
    until(lambda: effective_bytes(session) >= 8, "the third window")
    sizes = {effective_bytes(session)}
    until(lambda: sizes.add(effective_bytes(session)) or len(sizes) > 2, "another window")  # type: ignore[func-returns-value]
    assert all(size & (size - 1) == 0 for size in sizes)
    put_all(session, GOAL, current_value=30_000)
    session.put(f"{SCHEME}/quotas/bytes", 77)
    assert "OK" == session.state("commit_schemes_quota_goals")
    until(lambda: effective_bytes(session) == 1, "a window above the target")
    assert 0 == the_scheme(session).quota.sz
    put_all(session, GOAL, target_metric="node_memcg_used_bp", path="/nonexist")
    assert "EINVAL" == session.state("commit_schemes_quota_goals")


def test_refresh_shows_effective_quotas_and_statistics(session: Any) -> None:
    session.monitor()
    put_all(session, f"{SCHEME}/quotas", bytes=4096, reset_interval_ms=100)
    session.put(f"{KDAMOND}/refresh_ms", 20)
    assert "OK" == session.state("on")
    until(lambda: session.read(f"{SCHEME}/quotas/effective_bytes") == "4096\n", "the effective quota")
    until(lambda: session.read(f"{SCHEME}/stats/sz_tried") != "0\n", "statistics")


@pytest.mark.parametrize(("matching", "allow", "inside"), [("Y", "Y", True), ("N", "N", True), ("N", "Y", False)])
def test_a_filter_of_addresses_cuts_regions_at_its_edges(session: Any, matching: str, allow: str, inside: bool) -> None:
    """As measured: Y Y and N N keep only the range, the others all but it."""
    session.monitor()
    session.put(f"{SCHEME}/core_filters/nr_filters", 1)
    start, end = (1 << 32) + 0x5000, (1 << 32) + 0x9000
    put_all(session, f"{SCHEME}/core_filters/0", type="addr", addr_start=start, addr_end=end)
    put_all(session, f"{SCHEME}/core_filters/0", matching=matching, allow=allow)
    assert "OK" == session.state("on")
    assert "OK" == session.state("update_schemes_tried_regions")
    regions = f"{SCHEME}/tried_regions"
    tried = [
        tuple(int(session.read(f"{regions}/{name}/{bound}")) for bound in ("start", "end"))
        for name in session.tree.listdir(regions)
        if name != "total_bytes"
    ]
    if inside:
        assert sum(b - a for a, b in tried) == end - start == int(session.read(f"{regions}/total_bytes"))
    assert all((start <= a and b <= end) == inside for a, b in tried)
    assert all(b <= start or a >= end or inside for a, b in tried)


def test_a_failing_commit_says_why_and_changes_nothing(session: Any, caplog: pytest.LogCaptureFixture) -> None:
    session.monitor()
    put_all(session, f"{SCHEME}/quotas", bytes=4096, reset_interval_ms=100)
    assert "OK" == session.state("on")
    session.put(f"{SCHEME}/quotas/bytes", 8192)
    session.put(f"{SCHEME}/filters/nr_filters", 1)
    put_all(session, f"{SCHEME}/filters/0", type="memcg", memcg_path="/nonexist")
    with caplog.at_level(logging.WARNING, "kdamon"):
        assert "ENOMEM" == session.state("commit")
    assert "filters/0/memcg_path" in caplog.text
    assert 4096 == the_scheme(session).quota.sz
    session.put(f"{SCHEME}/filters/0/memcg_path", "/foo")
    assert "OK" == session.state("commit")
    assert 8192 == the_scheme(session).quota.sz


def test_an_unchanged_commit_keeps_statistics_and_the_charge_window(session: Any) -> None:
    session.monitor()
    put_all(session, f"{SCHEME}/quotas", bytes=4096, reset_interval_ms=3_600_000)
    assert "OK" == session.state("on")
    until(lambda: stat(session, "sz_tried") == 4096, "the quota's end")
    for _ in range(3):
        assert "OK" == session.state("commit")
        time.sleep(0.12)
    assert 4096 == stat(session, "sz_tried")
    assert 4096 == the_scheme(session).quota.charged_sz


@pytest.mark.parametrize("abi", ABI_VERSIONS)
def test_the_newest_metric_is_in_the_newest_tree_only(make_session: Callable[..., Any], abi: str) -> None:
    session = make_session(abi)
    session.context()
    session.put(f"{CONTEXT}/schemes/nr_schemes", 1)
    session.put(f"{SCHEME}/quotas/goals/nr_goals", 1)
    expected = "OK" if abi in ("7.4", "next") else "EINVAL"
    assert expected == session.write(f"{GOAL}/target_metric", "hugepage_mem_bp")
