# SPDX-License-Identifier: GPL-2.0-only
"""Probes through the tree: files, results, commits while the kdamond runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.tree import CONTEXT, KDAMOND

PROBES = f"{CONTEXT}/monitoring_attrs/probes"
REGIONS = f"{CONTEXT}/schemes/0/tried_regions"
SECOND = 1 << 32


@pytest.fixture(name="next_session")
def _next_session(make_session: Callable[..., Any]) -> Any:
    """A tree of the newest version that monitors a process: its first mapping is anonymous, the others are a file's."""
    session = make_session("next")
    session.monitor()
    session.machine.processes[150].mark("anon", [(0, SECOND)])
    session.machine.processes[150].mark("memcg", [(SECOND, 1 << 46)], memcg_id=2)
    for name, value in (("sample_us", 1000), ("aggr_us", 20_000)):
        session.put(f"{CONTEXT}/monitoring_attrs/intervals/{name}", value)
    return session


def add(session: Any, *settings: dict[str, str | int]) -> None:
    """Write probes: names of files below each, and what to write to them."""
    session.put(f"{PROBES}/nr_probes", len(settings))
    for place, files in enumerate(settings):
        for name, value in files.items():
            session.put(f"{PROBES}/{place}/{name}", value)


def filtered(kind: str, **more: str | int) -> dict[str, str | int]:
    """A probe that pages of a type hit."""
    one = {"type": kind, "matching": "Y", "allow": "Y", **more}
    return {"filters/nr_filters": 1} | {f"filters/0/{name}": value for name, value in one.items()}


def tried(session: Any) -> list[tuple[int, list[int]]]:
    """Start and hits of every tried region."""
    assert "OK" == session.state("update_schemes_tried_regions")
    found = []
    for name in sorted((n for n in session.tree.listdir(REGIONS) if n.isdecimal()), key=int):
        region = f"{REGIONS}/{name}"
        probes = session.tree.listdir(f"{region}/probes") if "probes" in session.tree.listdir(region) else []
        hits = [int(session.read(f"{region}/probes/{i}/hits")) for i in range(len(probes))]
        found.append((int(session.read(f"{region}/start")), hits))
    return found


def until_tried(session: Any, condition: Callable[[list[tuple[int, list[int]]]], bool]) -> None:
    """Wait until the tried regions are as they should be; on a busy machine intervals are late."""
    give_up = time.monotonic() + 60
    while not condition(found := tried(session)):
        assert time.monotonic() < give_up, f"never came true: {found}"
        time.sleep(0.02)


def test_defaults_and_modes(next_session: Any) -> None:
    """New files are empty; hits can only be read, and only where there are probes."""
    add(next_session, {"preps/nr_preps": 1, "filters/nr_filters": 1})
    shown = {
        "weight": "0\n",
        "preps/0/prep_action": "set_pgidle\n",
        "filters/0/type": "anon\n",
        "filters/0/matching": "N\n",
        "filters/0/allow": "N\n",
        "filters/0/path": "\n",
        "filters/0/min": "0\n",
        "filters/0/max": "0\n",
    }
    assert {name: next_session.read(f"{PROBES}/0/{name}") for name in shown} == shown
    for kind in ("memcg", "pgidle_unset", "pgidle_set", "hugepage_size", "anon"):
        next_session.put(f"{PROBES}/0/filters/0/type", kind)
    assert "EINVAL" == next_session.write(f"{PROBES}/0/filters/0/type", "young")
    assert "EINVAL" == next_session.write(f"{PROBES}/0/preps/0/prep_action", "x")
    assert "OK" == next_session.state("on")
    until_tried(next_session, lambda regions: all(len(hits) == 1 for _, hits in regions) and bool(regions))
    assert 0o400 == next_session.tree.getattr(f"{REGIONS}/0/probes/0/hits")["st_mode"] & 0o777
    assert "open:EACCES" == next_session.write(f"{REGIONS}/0/probes/0/hits", "1")


def test_hits_tell_what_regions_are(next_session: Any) -> None:
    """Every sample of the first mapping is anonymous, of the second one charged to the group; all hit no filter."""
    add(next_session, filtered("anon"), filtered("memcg", path="/foo"), {})
    assert "OK" == next_session.state("on")

    def complete(regions: list[tuple[int, list[int]]]) -> bool:
        first = [hits for start, hits in regions if start < SECOND]
        second = [hits for start, hits in regions if SECOND <= start < 1 << 46]
        # In the middle of an aggregation interval the moving sum is rounded down.
        return (
            all(hits[0] >= 19 and hits[1] == 0 and hits[2] >= 19 for hits in first)
            and all(hits[0] == 0 and hits[1] >= 19 and hits[2] >= 19 for hits in second)
            and bool(first and second)
        )

    until_tried(next_session, complete)


def test_probes_are_committed_while_it_runs(next_session: Any) -> None:
    """Added, weighted and removed, without a new start."""
    assert "OK" == next_session.state("on")
    until_tried(next_session, lambda regions: bool(regions) and not any(hits for _, hits in regions))
    pid = next_session.read(f"{KDAMOND}/pid")
    add(next_session, filtered("anon", matching="N") | {"weight": 5}, filtered("anon"))
    assert "OK" == next_session.state("commit")
    until_tried(next_session, lambda regions: any(hits == [20, 0] for _, hits in regions))
    next_session.put(f"{PROBES}/nr_probes", 0)
    assert "OK" == next_session.state("commit")
    until_tried(next_session, lambda regions: bool(regions) and not any(hits for _, hits in regions))
    assert next_session.read(f"{KDAMOND}/pid") == pid


@pytest.mark.parametrize(
    "wrong",
    [
        filtered("memcg", path="/none"),
        filtered("memcg"),
        filtered("hugepage_size", min=2, max=1),
        {"weight": (1 << 32) - 1},
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(next_session: Any, wrong: dict[str, str | int]) -> None:
    """At the start and at a commit."""
    add(next_session, wrong)
    assert "EINVAL" == next_session.state("on")
    add(next_session, filtered("anon"))
    assert "OK" == next_session.state("on")
    add(next_session, wrong, wrong)
    assert "EINVAL" == next_session.state("commit")
    assert "on\n" == next_session.read(f"{KDAMOND}/state")
    assert all(len(hits) == 1 for _, hits in tried(next_session))


def test_weights_need_counters_that_hold(next_session: Any) -> None:
    """More than 255 samples in an aggregation interval fit none."""
    add(next_session, {"weight": 1})
    next_session.put(f"{CONTEXT}/monitoring_attrs/intervals/aggr_us", 256_000)
    assert "EINVAL" == next_session.state("on")
    next_session.put(f"{CONTEXT}/monitoring_attrs/intervals/aggr_us", 255_000)
    assert "OK" == next_session.state("on")


def test_schemes_take_weighted_sums(next_session: Any) -> None:
    """Only regions of which each sample was anonymous are tried."""
    add(next_session, filtered("anon") | {"weight": 3})
    filters = f"{CONTEXT}/schemes/0/core_filters"
    next_session.put(f"{filters}/nr_filters", 1)
    for name, value in {"type": "probe_hits_wsum", "matching": "Y", "allow": "Y", "min": 51, "max": 60}.items():
        next_session.put(f"{filters}/0/{name}", value)
    assert "OK" == next_session.state("on")
    until_tried(next_session, lambda regions: bool(regions) and all(start < SECOND for start, _ in regions))
    next_session.put(f"{filters}/0/max", 50)
    assert "EINVAL" == next_session.state("commit")


def test_linux_7_2_has_less(make_session: Callable[..., Any]) -> None:
    """No weights, no preps, two types of filters, no filter of schemes for weighted sums."""
    session = make_session("7.2")
    session.monitor()
    add(session, filtered("anon"))
    assert ["filters"] == sorted(session.tree.listdir(f"{PROBES}/0"))
    assert "min" not in session.tree.listdir(f"{PROBES}/0/filters/0")
    assert "EINVAL" == session.write(f"{PROBES}/0/filters/0/type", "hugepage_size")
    session.put(f"{CONTEXT}/schemes/0/filters/nr_filters", 1)
    assert "EINVAL" == session.write(f"{CONTEXT}/schemes/0/filters/0/type", "probe_hits_wsum")
