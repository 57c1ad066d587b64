# SPDX-License-Identifier: GPL-2.0-only
"""Passes of several schemes over any regions, with whatever happens between them, against a model of the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kdamon.core import damon_add_scheme, damon_destroy_target, damon_new_ctx, validate_ctx
from kdamon.damon import (
    damon_addr_range,
    damon_attrs,
    damon_ctx,
    damon_region,
    damon_region_sz_limit,
    damon_target,
    damos,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_quota,
    damos_quota_goal,
    damos_quota_goal_tuner,
    damos_stat,
    damos_walk_control,
)
from kdamon.damos import damon_commit_schemes, kdamond_apply_schemes
from kdamon.damos_filters import damos_add_filter
from tests.support.contexts import WorkClock, report_ops
from tests.support.damos_model import Quota, Scheme, apply_schemes
from tests.support.model import ModelRegions, Region
from tests.support.tables import ctx_of, effort, model_of, ranges_of, table_of

UNIT = 16
MS = 1_000_000
Score = Callable[[Region | damon_region], int]

#: Scores: none, one for all, few, many, and such that change when the action was applied.
SCORES: list[Score | None] = [
    None,
    lambda r: 99,
    lambda r: r.last_nr_accesses * 7 % 100,
    lambda r: 33 * (r.last_nr_accesses % 4),
    lambda r: min(r.age, 9) * 11,
]

#: What an action is applied to of so many bytes, and how many nanoseconds that takes.
ACTIONS: list[Callable[[int], tuple[int, int]] | None] = [
    None,
    lambda size: (size, size * 3),
    lambda size: (size // 2, 0),
    lambda size: (0, 1000),
    lambda size: (size + 100, size),
]


@dataclass
class Drawn:
    """A scheme as the tests draw it: parameters for the port and for the model."""

    pattern: tuple[int, int, int, int]
    sz: int
    ms: int
    window: int
    goals: list[tuple[int, int]]
    temporal: bool
    fail: tuple[int, int]
    filters: list[tuple[Any, ...]]
    with_ops_filter: bool
    action: int
    max_nr_snapshots: int
    interval: int
    esz_bp: int

    def port(self) -> damos:
        tuners = damos_quota_goal_tuner
        tuner = tuners.DAMOS_QUOTA_GOAL_TUNER_TEMPORAL if self.temporal else tuners.DAMOS_QUOTA_GOAL_TUNER_CONSIST
        s = damos(
            self._pattern(),
            damos_action.DAMOS_PAGEOUT if self.action else damos_action.DAMOS_STAT,
            max_nr_snapshots=self.max_nr_snapshots,
            quota=damos_quota(
                reset_interval=self.window,
                ms=self.ms,
                sz=self.sz,
                goals=[damos_quota_goal(current_value=current, target_value=target) for current, target in self.goals],
                goal_tuner=tuner,
                fail_charge_num=self.fail[0],
                fail_charge_denom=self.fail[1],
                esz_bp=self.esz_bp,
            ),
        )
        for f in self.filters:
            damos_add_filter(s, core_filter(f))
        if self.with_ops_filter:
            damos_add_filter(s, damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON, True, True))
        return s

    def _pattern(self) -> damos_access_pattern:
        min_sz, max_sz, min_age, max_age = self.pattern
        return damos_access_pattern(min_sz, max_sz, min_age_region=min_age, max_age_region=max_age)

    def quota(self) -> Quota:
        return Quota(
            self.sz, self.ms, self.window, list(self.goals), self.temporal, self.fail, UNIT, esz_bp=self.esz_bp
        )

    def model(self, score: Score | None, action_sz: int) -> Scheme:
        return Scheme(
            self._pattern(),
            self.quota(),
            [core_filter(f) for f in self.filters],
            self.with_ops_filter,
            score,
            ACTIONS[self.action],
            UNIT,
            action_sz,
            self.max_nr_snapshots,
        )

    def commit(self, s: Scheme) -> None:
        theirs = self.model(s.score, s.action_sz)
        s.pattern, s.action, s.filters, s.max_nr_snapshots = (
            theirs.pattern,
            theirs.action,
            theirs.filters,
            theirs.max_nr_snapshots,
        )
        s.with_ops_filter = theirs.with_ops_filter
        s.quota.commit(theirs.quota)


def core_filter(drawn: tuple[Any, ...]) -> damos_filter:
    kind, matching, allow, *rest = drawn
    if kind == "target":
        return damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_TARGET, matching, allow, target_idx=rest[0])
    a, b = sorted(rest)
    kind = damos_filter_type.DAMOS_FILTER_TYPE_ADDR
    return damos_filter(kind, matching, allow, addr_range=damon_addr_range(a, b))


# Dense enough for filters, quotas and regions to meet; most addresses are multiples of the smallest region.
_places = st.one_of(st.integers(0, 200).map(lambda unit: unit * UNIT), st.integers(0, 200 * UNIT))
_filters = st.one_of(
    st.tuples(st.just("addr"), st.booleans(), st.booleans(), _places, _places),
    st.tuples(st.just("target"), st.booleans(), st.booleans(), st.integers(0, 2)),
)
_scores_of_goals = st.sampled_from([0, 2000, 5000, 9000, 10000, 12000, 25000])
_goal = st.builds(
    lambda score, target: (score * target // 10000, target), _scores_of_goals, st.sampled_from([10000, 20])
)
_any_pattern = (0, 1 << 20, 0, 99)
_scheme = st.builds(
    Drawn,
    pattern=st.one_of(
        st.just(_any_pattern),
        st.tuples(
            st.sampled_from([0, 16, 64, 160]),
            st.sampled_from([160, 1 << 20]),
            st.integers(0, 1),
            st.sampled_from([3, 99]),
        ),
    ),
    sz=st.one_of(st.just(0), st.integers(100, 2000), st.integers(1, 4000)),
    ms=st.sampled_from([0, 0, 0, 1]),
    window=st.sampled_from([0, 100, 300, 1000]),
    goals=st.one_of(
        st.just([]),
        st.just([]),
        st.lists(_goal, min_size=1, max_size=2),
    ),
    temporal=st.booleans(),
    fail=st.sampled_from([(0, 0), (1, 4), (1, 1), (2, 1), (7, 3)]),
    filters=st.one_of(st.just([]), st.lists(_filters, min_size=1, max_size=3)),
    with_ops_filter=st.booleans(),
    action=st.integers(0, len(ACTIONS) - 1),
    max_nr_snapshots=st.sampled_from([0, 0, 0, 0, 3]),
    interval=st.sampled_from([1, 1, 1, 2]),
    # Where the tuner is: from nothing it would double for a dozen windows before anything is done.
    esz_bp=st.sampled_from([0, 5_000_000, 20_000_000]),
)


@st.composite
def _regions(draw: st.DrawFn) -> ModelRegions:
    """Regions between random edges: the seed stands for all of them, which costs less to draw than each."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    unit = draw(st.sampled_from([UNIT, UNIT, 1]))
    edges = np.unique(rng.integers(0, 200 * UNIT // unit, draw(st.integers(0, 14))) * unit).tolist()
    gap_share = draw(st.sampled_from([0.0, 0.3]))
    kinds = draw(st.sampled_from([1, 3, 100]))
    return [
        Region(a, b, 0, int(rng.integers(kinds)), int(rng.integers(4)))
        for a, b in pairwise(edges)
        if rng.random() >= gap_share
    ]


_pass = st.tuples(st.just("pass"), st.sampled_from([0, 50, 100, 300, 1000]))
_between = st.one_of(
    st.tuples(st.just("age")),
    st.tuples(st.just("cut"), st.integers(0, 2), _places),
    st.tuples(st.just("update"), st.integers(0, 2), _regions()),
    st.tuples(st.just("remove"), st.integers(0, 2)),
    st.tuples(st.just("gone"), st.integers(0, 5)),
    st.tuples(st.just("goal"), st.integers(0, 2), _scores_of_goals),
    st.tuples(st.just("commit"), st.lists(_scheme, min_size=1, max_size=3)),
    st.tuples(
        st.just("commit"), st.lists(_scheme.map(lambda one: replace(one, sz=0, ms=0, goals=[])), min_size=1, max_size=3)
    ),
    st.tuples(st.just("commit same")),
)
_steps = st.lists(st.tuples(_pass, _pass, _between), min_size=1, max_size=6).map(lambda rounds: sum(rounds, ()))
_worlds = {
    "lists": st.lists(_regions(), min_size=1, max_size=3),
    "schemes": st.lists(_scheme, min_size=1, max_size=3),
    "score": st.sampled_from(SCORES),
    "action_sz": st.sampled_from([1, 1, 64]),
    "steps": _steps,
}


@dataclass
class World:
    """The port and the model, side by side."""

    drawn: list[Drawn]
    score: Score | None
    action_sz: int
    ctx: damon_ctx = field(init=False)
    targets: list[ModelRegions] = field(init=False)
    models: list[Scheme] = field(init=False)
    gone: list[damon_target] = field(default_factory=list)
    now: int = 0
    passes: int = 0
    seen: dict[int, list[tuple[int, int, bool]]] = field(default_factory=dict)
    walked: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)

    def begin(self, lists: list[ModelRegions]) -> None:
        self.ctx = ctx_of(*map(table_of, lists), min_region_sz=UNIT)
        self.ctx.clock = WorkClock()
        # At the end of an aggregation interval the moving sum is what was counted.
        self.ctx.attrs = damon_attrs(min_nr_regions=3)
        score = self.score
        callbacks: dict[str, Any] = {}
        if score is not None:
            callbacks["get_scheme_score"] = lambda ctx, region, s: score(region)
        self.ctx.ops = report_ops(self._apply, target_valid=lambda t: t not in self.gone, **callbacks)
        self.ctx.ops.action_sz = self.action_sz
        self.targets = [[r.copy() for r in regions] for regions in lists]
        self.models = [one.model(score, self.action_sz) for one in self.drawn]
        for one in self.drawn:
            damon_add_scheme(self.ctx, one.port())

    def _apply(self, ctx: damon_ctx, t: damon_target, row: int, s: damos) -> tuple[int, int]:
        action = ACTIONS[self.drawn[ctx.schemes.index(s)].action]
        start, end = int(t.regions.start[row]), int(t.regions.end[row])
        applied, ns = action(end - start) if action else (0, 0)
        assert isinstance(ctx.clock, WorkClock)
        ctx.clock.work(ns)
        self.seen.setdefault(ctx.schemes.index(s), []).append((start, end, s.core_filters_allowed))
        return applied, (end - start) // 4

    def _walk(self, *arguments: Any) -> None:
        _data, ctx, _t, region, s, passed = arguments
        self.walked.setdefault(ctx.schemes.index(s), []).append((region.start, region.end, passed))

    def do_pass(self, ms: int) -> None:
        self.now += ms
        self.passes += 1
        self.ctx.deadline = self.now * MS
        due = [i for i, one in enumerate(self.drawn) if self.passes % one.interval == 0]
        for i, s in enumerate(self.ctx.schemes):
            s.next_apply_sis = self.ctx.passed_sample_intervals + (i not in due)
            s.walk_completed = False
        self.ctx.walk_control = damos_walk_control(self._walk)
        most = damon_region_sz_limit(self.ctx)
        kdamond_apply_schemes(self.ctx)
        if due:
            gone = [i for i, t in enumerate(self.ctx.adaptive_targets) if t in self.gone]
            apply_schemes([self.models[i] for i in due], self.targets, gone, self.now, most)

    def do_age(self) -> None:
        for regions, t in zip(self.targets, self.ctx.adaptive_targets, strict=True):
            t.regions.age = t.regions.age + np.uint32(1)
            for r in regions:
                r.age += 1

    def do_cut(self, place: int, at: int) -> None:
        if place < len(self.targets):
            for i, r in enumerate(self.targets[place]):
                if r.start < at < r.end:
                    Scheme.split(self.targets[place], i, at - r.start)
                    self.ctx.adaptive_targets[place].regions.split_at(i, at - r.start)
                    break

    def do_update(self, place: int, regions: ModelRegions) -> None:
        if place < len(self.targets):
            self.targets[place][:] = [r.copy() for r in regions]
            self.ctx.adaptive_targets[place].regions = table_of(regions)

    def do_remove(self, place: int) -> None:
        if place < len(self.targets):
            for s in self.models:
                if s.quota.target_from is self.targets[place]:
                    s.quota.target_from, s.quota.addr_from = None, 0
            del self.targets[place]
            damon_destroy_target(self.ctx.adaptive_targets[place], self.ctx)

    def do_gone(self, place: int) -> None:
        if place < len(self.targets):
            t = self.ctx.adaptive_targets[place]
            (self.gone.remove if t in self.gone else self.gone.append)(t)

    def do_goal(self, which: int, score: int) -> None:
        which %= len(self.drawn)
        goals = self.drawn[which].goals
        if goals:
            current = score * goals[0][1] // 10000
            goals[0] = (current, goals[0][1])
            self.models[which].quota.goals[0] = goals[0]
            self.ctx.schemes[which].quota.goals[0].current_value = current

    def do_commit(self, drawn: list[Drawn]) -> None:
        src = damon_new_ctx()
        src.schemes = [one.port() for one in drawn]
        damon_commit_schemes(self.ctx, src)
        del self.models[len(drawn) :]
        for s, one in zip(self.models, drawn, strict=False):
            one.commit(s)
        self.models += [replace(one, esz_bp=0).model(self.score, self.action_sz) for one in drawn[len(self.models) :]]
        self.drawn = drawn

    def do_commit_same(self) -> None:
        self.do_commit(self.drawn)

    def check(self) -> None:
        validate_ctx(self.ctx)
        assert self.targets == [model_of(t.regions) for t in self.ctx.adaptive_targets]
        for i, (s, model) in enumerate(zip(self.ctx.schemes, self.models, strict=True)):
            assert model.stat == s.stat
            quota, expected = s.quota, model.quota
            place = None
            if quota.charge_target_from is not None:
                place = self.targets[self.ctx.adaptive_targets.index(quota.charge_target_from)]
            assert expected.target_from is place
            assert (
                expected.esz,
                expected.esz_bp,
                expected.charged,
                expected.unusable,
                expected.total_sz,
                expected.total_ns,
                expected.addr_from,
            ) == (
                quota.esz,
                quota.esz_bp,
                quota.charged_sz,
                quota.sz_unusable,
                quota.total_charged_sz,
                quota.total_charged_ns,
                quota.charge_addr_from,
            )
            assert not quota.esz or expected.min_score == quota.min_score
            asked = self.drawn[i].action or self.drawn[i].with_ops_filter
            assert (model.applied if asked else []) == self.seen.get(i, [])
            assert model.walked == self.walked.get(i, [])
            model.applied.clear()
            model.walked.clear()
        self.seen.clear()
        self.walked.clear()


@effort(200)
@given(**_worlds)
def test_schemes_do_what_the_kernels_loop_over_regions_does(
    lists: list[ModelRegions], schemes: list[Drawn], score: Score | None, action_sz: int, steps: list[tuple[Any, ...]]
) -> None:
    """Regions, statistics, quotas, what the action was applied to and what walks saw are the same after every step."""
    world = World(schemes, score, action_sz)
    world.begin(lists)
    for name, *what in steps:
        getattr(world, "do_" + name.replace(" ", "_"))(*what)
        world.check()


def covered(ctx: damon_ctx) -> list[list[tuple[int, int]]]:
    """What each target covers, without its cuts."""
    joined = []
    for t in ctx.adaptive_targets:
        pieces: list[tuple[int, int]] = []
        for start, end in ranges_of(t.regions):
            if pieces and pieces[-1][1] == start:
                pieces[-1] = (pieces[-1][0], end)
            else:
                pieces.append((start, end))
        joined.append(pieces)
    return joined


@effort(100)
@given(**_worlds)
def test_no_window_takes_more_than_its_quota(
    lists: list[ModelRegions], schemes: list[Drawn], score: Score | None, action_sz: int, steps: list[tuple[Any, ...]]
) -> None:
    """A region is let in where it fits in whole; what it is charged with follows from what was done.

    That is more than its size where failures are charged so: it is the last one of its window then. Statistics add up
    to what walks saw, and passes leave covered what was.
    """
    world = World(schemes, score, action_sz)
    world.begin(lists)
    windows: dict[damos, tuple[int | None, int]] = {}
    for name, *what in steps:
        before, stats = covered(world.ctx), {s: evolve(s.stat) for s in world.ctx.schemes}
        getattr(world, "do_" + name.replace(" ", "_"))(*what)
        assert name != "pass" or before == covered(world.ctx)
        for i, s in enumerate(world.ctx.schemes):
            walked = world.walked.get(i, [])
            sizes = [end - start for start, end, _ in walked]
            action = ACTIONS[world.drawn[i].action]
            done = [action(size)[0] if action else 0 for size in sizes]
            then = stats.get(s, damos_stat())
            assert len(sizes) == s.stat.nr_tried - then.nr_tried
            assert sum(sizes) == s.stat.sz_tried - then.sz_tried
            assert sum(map(bool, done)) == s.stat.nr_applied - then.nr_applied
            assert sum(done) == s.stat.sz_applied - then.sz_applied
            assert sum(passed for _, _, passed in walked) == s.stat.sz_ops_filter_passed - then.sz_ops_filter_passed
            quota = s.quota
            if not (quota.sz or quota.ms or quota.goals):
                windows.pop(s, None)
                continue
            since, charged = windows.get(s, (None, 0))
            if since != quota.charged_from or (sizes and not quota.reset_interval):
                charged = 0
            for size, applied in zip(sizes, done, strict=True):
                assert charged + size <= quota.esz
                num, denom = quota.fail_charge_num, quota.fail_charge_denom
                charged += applied + (size - applied) * num // denom if denom and applied <= size else size
            assert [] == sizes or charged == quota.charged_sz
            windows[s] = (quota.charged_from, charged)
        world.seen.clear()
        world.walked.clear()
