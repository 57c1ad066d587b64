# SPDX-License-Identifier: GPL-2.0-only
"""What the trees of Linux 7.3 and 7.4 answer differently: files, and which of two places checks a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kdamon import core
from kdamon.damon import damon_ctx
from tests.support.tree import CONTEXT, KDAMOND
from tests.support.waiting import eventually

PROBES = f"{CONTEXT}/monitoring_attrs/probes"
SCHEME = f"{CONTEXT}/schemes/0"
GOAL = f"{SCHEME}/quotas/goals/0"
STATE = f"{KDAMOND}/state"

#: A version of the tree, and whether it has what is queued for 7.4.
every_version = pytest.mark.parametrize(
    ("abi", "queued"), [("7.2", False), ("7.3", False), ("kdamon", False), ("7.4", True), ("next", True)]
)


def with_goal(session: Any) -> None:
    session.monitor()
    session.put(f"{SCHEME}/quotas/goals/nr_goals", 1)


def running_goal(session: Any) -> Any:
    """The goal of the context that is monitored."""
    return session.tree.kdamonds.present()[0].damon_ctx.schemes[0].quota.goals[0]


@every_version
def test_the_complement_of_a_goal(make_session: Callable[..., Any], abi: str, queued: bool) -> None:
    """A file of each goal, N at first, that takes truth values."""
    session = make_session(abi)
    with_goal(session)
    assert queued == ("complement" in session.tree.listdir(GOAL))
    if not queued:
        return
    path = f"{GOAL}/complement"
    assert 0o600 == session.tree.getattr(path)["st_mode"] & 0o777
    assert "N\n" == session.read(path)
    for written, answer, back in (("Y", "OK", "Y"), ("maybe", "EINVAL", "Y"), ("0\n", "OK", "N"), ("on", "OK", "Y")):
        assert (answer, f"{back}\n") == (session.write(path, written), session.read(path))


@pytest.mark.parametrize("command", ["commit", "commit_schemes_quota_goals"])
def test_the_complement_is_committed_with_its_goal(make_session: Callable[..., Any], command: str) -> None:
    session = make_session("7.4")
    with_goal(session)
    for name, value in (("target_metric", "node_mem_used_bp"), ("target_value", 9000), ("complement", "Y")):
        session.put(f"{GOAL}/{name}", value)
    assert "OK" == session.state("on")
    assert running_goal(session).complement
    session.put(f"{GOAL}/complement", "N")
    assert running_goal(session).complement
    assert "OK" == session.state(command)
    assert not running_goal(session).complement


RANGES = [
    ("core_filters", "addr", "addr_start", "addr_end"),
    ("ops_filters", "hugepage_size", "min", "max"),
    ("core_filters", "probe_hits_wsum", "min", "max"),
]


@pytest.mark.parametrize("where", RANGES, ids=lambda where: where[1])
@every_version
def test_a_range_that_ends_before_it_starts(
    make_session: Callable[..., Any], abi: str, queued: bool, where: tuple[str, str, str, str]
) -> None:
    """The core refuses it with EINVAL in 7.4; before, no scheme could be made of the files. Nothing changes."""
    directory, kind, first, last = where
    session = make_session(abi)
    session.monitor()
    filters = f"{SCHEME}/{directory}"
    session.put(f"{filters}/nr_filters", 1)
    if kind == "probe_hits_wsum" and not queued:
        assert "EINVAL" == session.write(f"{filters}/0/type", kind)
        return
    for name, value in (("type", kind), (first, 8192), (last, 4096)):
        session.put(f"{filters}/0/{name}", value)
    errno = "EINVAL" if queued else "ENOMEM"
    assert errno == session.state("on")
    session.put(f"{filters}/0/{last}", 8192)
    assert "OK" == session.state("on")
    session.put(f"{filters}/0/{last}", 4096)
    assert errno == session.state("commit")
    assert "on\n" == session.read(STATE)


@every_version
def test_more_probes_than_counters(make_session: Callable[..., Any], abi: str, queued: bool) -> None:
    """7.4 takes the number and refuses to start, and to commit; before, the number was refused."""
    session = make_session(abi)
    session.monitor()
    assert ("OK" if queued else "EINVAL") == session.write(f"{PROBES}/nr_probes", "5")
    assert "EINVAL" == session.write(f"{PROBES}/nr_probes", "-1")
    assert ("EINVAL" if queued else "OK") == session.state("on")
    session.put(f"{PROBES}/nr_probes", 4)
    if queued:
        assert "OK" == session.state("on")
        session.put(f"{PROBES}/nr_probes", 500_000)
        assert "EINVAL" == session.state("commit")
    assert "on\n" == session.read(STATE)


@every_version
def test_a_kdamond_that_ends_before_it_is_called(
    make_session: Callable[..., Any], abi: str, queued: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.4 says so; before, the kdamond was off a moment later."""

    def start_and_end(ctxs: list[damon_ctx], exclusive: bool) -> None:
        core.damon_start(ctxs, exclusive)
        eventually(lambda: not core.damon_is_running(ctxs[0]), "the end")

    monkeypatch.setattr("kdamon_fs.sysfs.damon_start", start_and_end)
    session = make_session(abi)
    session.monitor()
    session.put(f"{CONTEXT}/targets/nr_targets", 0)
    assert ("ECANCELED" if queued else "OK") == session.state("on")
    assert "off\n" == session.read(STATE)
    assert "OK" == session.state("off")


@every_version
def test_goals_without_a_target_are_ignored(make_session: Callable[..., Any], abi: str, queued: bool) -> None:
    """By the tree of any version; the core refuses them."""
    session = make_session(abi)
    with_goal(session)
    assert queued == session.tree.has("7.4")
    assert "OK" == session.state("on")
    assert [] == session.tree.kdamonds.present()[0].damon_ctx.schemes[0].quota.goals
