# SPDX-License-Identifier: GPL-2.0-only
"""A context under a running kdamond, with everything done to it in any order, against its invariants.

The kdamond is the real one in its real thread; only its clock is the test's, which lets it do one sampling interval at
a time. Changes are made where the kernel makes them: in the kdamond, by damon_call().
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import asdict, evolve
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kdamon import trace
from kdamon.core import (
    damon_add_target,
    damon_commit_ctx,
    damon_is_running,
    damon_new_ctx,
    damon_new_region,
    damon_nr_samples_per_aggr,
    damon_select_ops,
    damon_set_attrs,
    damon_set_regions,
    damon_start,
    damon_stop,
    report_counters,
    validate_ctx,
)
from kdamon.damon import (
    damon_access_report,
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_intervals_goal,
    damon_ops_id,
    damon_target,
    damos,
    damos_access_pattern,
)
from kdamon.kernel import PAGE_SIZE, UINT_MAX
from kdamon.mm.sim.machine import SimMachine
from kdamon.region_merge import merge_similar
from kdamon.regions import Regions
from kdamon.reports.deliver import damon_report_access, report_accesses
from kdamon.reports.record import report_array
from tests.support.contexts import SteppedClock
from tests.support.tables import addr_ranges, effort, ranges_of, well_formed

PIDS = [1000, 1001, 1002]
PAGES = 4000
addresses = st.integers(0, PAGES * PAGE_SIZE)
page_ranges = st.lists(st.integers(0, PAGES), min_size=2, max_size=8, unique=True).map(
    lambda points: [(a * PAGE_SIZE, b * PAGE_SIZE) for a, b in zip(*[iter(sorted(points))] * 2, strict=False)]
)

#: Schemes with patterns that match some regions, none or all.
schemes = st.builds(
    lambda pages, accesses, interval_ms: damos(
        damos_access_pattern(pages[0] * PAGE_SIZE, pages[1] * PAGE_SIZE, *accesses),
        apply_interval_us=1000 * interval_ms,
    ),
    pages=st.tuples(st.integers(0, 50), st.integers(0, 4000)),
    accesses=st.tuples(st.integers(0, 10), st.integers(0, 40)),
    interval_ms=st.sampled_from([0, 1, 7, 100]),
)
sizes = st.sampled_from([0, 1, 64, PAGE_SIZE, 2**40, 2**64 - 1])
reported_pids = st.sampled_from([0, *PIDS])


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """``ranges`` with neighbours that touch each other made one: what they cover."""
    out: list[tuple[int, int]] = []
    for start, end in ranges:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


class ContextMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**16), ranges=page_ranges, counts=st.booleans(), min_nr=st.integers(3, 12))
    def start(self, seed: int, ranges: list[tuple[int, int]], counts: bool, min_nr: int) -> None:
        self.machine = SimMachine(seed)
        self.clock = SteppedClock()
        for pid in PIDS:
            process = self.machine.spawn([(0, PAGES * PAGE_SIZE)], pid=pid)
            process.clock = self.clock  # type: ignore[assignment]
            process.access(pid % 1000 * 1000 * PAGE_SIZE, (pid % 1000 * 1000 + 700) * PAGE_SIZE, rate=150)
            process.access(3000 * PAGE_SIZE, 3500 * PAGE_SIZE)
            process.unknown.append((3400 * PAGE_SIZE, 3600 * PAGE_SIZE))
        self.ctx = damon_new_ctx(seed)
        self.ctx.machine, self.ctx.clock, self.ctx.report_counts = self.machine, self.clock, counts
        damon_select_ops(self.ctx, damon_ops_id.DAMON_OPS_FVADDR)
        damon_set_attrs(self.ctx, damon_attrs(min_nr_regions=min_nr, max_nr_regions=60, aggr_interval=40_000))
        damon_add_target(self.ctx, self.target(PIDS[0], ranges))
        self.covered = [(PIDS[0], joined(ranges))]
        self.sent = self.seen_samples = 0
        self.aggregations = 0
        trace.damon_aggregated.register(self.on_aggregated)
        damon_start([self.ctx], exclusive=False)
        self.clock.wait_asleep()

    def teardown(self) -> None:
        if not hasattr(self, "ctx"):
            return
        self.clock.release()
        damon_stop([self.ctx])
        trace.damon_aggregated.unregister(self.on_aggregated)
        assert self.ctx.kdamond_error is None
        assert [] == self.ctx.adaptive_targets

    @staticmethod
    def target(pid: int, ranges: list[tuple[int, int]]) -> damon_target:
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        return damon_target(pid=pid, regions=Regions(starts, ends))

    def on_aggregated(self, ctx: damon_ctx, target: int, regions: Regions) -> None:
        if ctx is self.ctx:
            self.aggregations += target == 0
            assert int(regions.nr_accesses.max(initial=0)) <= damon_nr_samples_per_aggr(ctx.attrs)

    def in_kdamond(self, change: Callable[[], None]) -> OSError | None:
        """Make a change at the end of this sampling interval; returns the error that it met."""
        control = damon_call_control(lambda _: change())
        with self.ctx.call_controls_lock:
            self.ctx.call_controls.append(control)
        self.clock.step()
        assert control.completion.is_set() and not control.canceled
        return control.error

    def source(self, **attrs: Any) -> damon_ctx:
        """A context that asks for what there is already, but for ``attrs``."""
        src = damon_new_ctx()
        src.ops, src.pause, src.report_counts = self.ctx.ops, self.ctx.pause, self.ctx.report_counts
        src.attrs = evolve(self.ctx.attrs, **({"aggr_samples": 0} | attrs))
        for t in self.ctx.adaptive_targets:
            damon_add_target(src, damon_target(pid=t.pid))
        src.schemes = [evolve(s, stat=evolve(s.stat)) for s in self.ctx.schemes]
        return src

    # What happens.

    @rule(n=st.integers(1, 25))
    def pass_time(self, n: int) -> None:
        for _ in range(n):
            self.clock.step()

    @rule(intervals=st.floats(0.1, 6))
    def stall(self, intervals: float) -> None:
        """The machine is busy with something else: the kdamond wakes up late."""
        before = self.ctx.missed_intervals
        self.clock.work(round(intervals * self.ctx.attrs.sample_interval * 1000))
        self.clock.step()
        assert before <= self.ctx.missed_intervals

    @rule(
        addr=addresses, size=st.sampled_from([0, 1, 64, PAGE_SIZE, 2**40, 2**64 - 1]), pid=st.sampled_from([0, *PIDS])
    )
    def report(self, addr: int, size: int, pid: int) -> None:
        damon_report_access(damon_access_report(pid=pid, addr=addr, size=size, nr_accesses=3))
        self.sent += 1

    @rule(seed=st.integers(0, 2**16), n=st.integers(0, 300), pid=reported_pids)
    def report_batch(self, seed: int, n: int, pid: int) -> None:
        rng = np.random.default_rng(seed)
        addr = rng.integers(0, PAGES * PAGE_SIZE, n).astype(np.uint64)
        report_accesses(report_array(n, pid=pid, addr=addr, nr_accesses=rng.integers(0, 30, n)))
        self.sent += n

    @rule(place=st.integers(0, 3), row=st.integers(0, 100), share=st.floats(0, 1))
    def split(self, place: int, row: int, share: float) -> None:
        def change() -> None:
            regions = self.ctx.adaptive_targets[place % len(self.ctx.adaptive_targets)].regions
            if not len(regions):
                return
            at = row % len(regions)
            pages = int(regions.sizes()[at]) // PAGE_SIZE
            if pages > 1:
                before = model_row(regions, at)
                regions.split_at(at, PAGE_SIZE * min(pages - 1, 1 + int(share * (pages - 1))))
                assert before[2:] == model_row(regions, at)[2:] == model_row(regions, at + 1)[2:]

        assert self.in_kdamond(change) is None

    @rule(place=st.integers(0, 3), row=st.integers(0, 100))
    def merge(self, place: int, row: int) -> None:
        def change() -> None:
            regions = self.ctx.adaptive_targets[place % len(self.ctx.adaptive_targets)].regions
            touching = [i for i in range(len(regions) - 1) if regions.end[i] == regions.start[i + 1]]
            if touching:
                at = touching[row % len(touching)]
                before, counts = len(regions), regions.nr_accesses.tolist()
                merge_similar(regions, UINT_MAX, int(regions.sizes()[at : at + 2].sum()))
                assert len(regions) < before
                assert min(counts) <= int(regions.nr_accesses.min())
                assert int(regions.nr_accesses.max()) <= max(counts)

        assert self.in_kdamond(change) is None

    @rule(place=st.integers(0, 3), pages=st.integers(1, 50), gap=st.integers(0, 5))
    def add_region(self, place: int, pages: int, gap: int) -> None:
        """After the last one."""

        def change() -> None:
            i = place % len(self.ctx.adaptive_targets)
            t = self.ctx.adaptive_targets[i]
            start = int(t.regions.end[-1]) + gap * PAGE_SIZE if len(t.regions) else 0
            t.regions.append(damon_new_region(start, start + pages * PAGE_SIZE))
            self.covered[i] = (t.pid, joined([*self.covered[i][1], (start, start + pages * PAGE_SIZE)]))

        assert self.in_kdamond(change) is None

    @rule(place=st.integers(0, 3), ranges=page_ranges, unsorted=st.integers(0, 9))
    def set_regions(self, place: int, ranges: list[tuple[int, int]], unsorted: int) -> None:
        """Ranges in the wrong order are refused, and nothing changes."""
        if not unsorted:
            ranges = ranges[::-1]
        i = place % len(self.ctx.adaptive_targets)
        good = (not unsorted and len(ranges) == 1) or unsorted

        def change() -> None:
            damon_set_regions(self.ctx.adaptive_targets[i], addr_ranges(ranges), PAGE_SIZE)

        error = self.in_kdamond(change)
        if good:
            assert error is None
            self.covered[i] = (self.covered[i][0], joined(ranges))
        else:
            assert error is not None and errno.EINVAL == error.errno

    @rule(
        sample_ms=st.sampled_from([1, 5, 20]),
        samples=st.integers(0, 40),
        min_nr=st.integers(2, 20),
        max_nr=st.integers(10, 80),
        goal=st.booleans(),
    )
    def commit_attrs(self, sample_ms: int, samples: int, min_nr: int, max_nr: int, goal: bool) -> None:
        """Attributes that are wrong are refused, and nothing changes."""
        sample = sample_ms * 1000
        wanted: dict[str, Any] = {
            "sample_interval": sample,
            "aggr_interval": sample * samples,
            "min_nr_regions": min_nr,
            "max_nr_regions": max_nr,
            "intervals_goal": damon_intervals_goal(400, 2 if goal else 0, 1000, 20_000),
        }
        before = evolve(self.ctx.attrs)
        good = samples > 0 and 3 <= min_nr <= max_nr
        error = self.in_kdamond(lambda: damon_commit_ctx(self.ctx, self.source(**wanted)))
        if good:
            assert error is None
            # The tuning may have changed them already in this very iteration.
            assert goal or wanted == {name: getattr(self.ctx.attrs, name) for name in wanted}
        else:
            assert error is not None and errno.EINVAL == error.errno
            assert before.intervals_goal.aggrs or before == self.ctx.attrs

    @rule()
    def commit_nothing_new(self) -> None:
        plan: list[tuple[int, int]] = []

        def change() -> None:
            before = (self.ctx.next_aggregation_sis, self.ctx.next_ops_update_sis)
            tables = [t.regions.copy() for t in self.ctx.adaptive_targets]
            damon_commit_ctx(self.ctx, self.source())
            plan.append(before)
            plan.append((self.ctx.next_aggregation_sis, self.ctx.next_ops_update_sis))
            for t, table in zip(self.ctx.adaptive_targets, tables, strict=True):
                assert t.regions.nr_accesses.tolist() == table.nr_accesses.tolist()

        assert self.in_kdamond(change) is None
        assert plan[0] == plan[1]

    @rule(pid=st.sampled_from(PIDS), ranges=page_ranges)
    def commit_new_target(self, pid: int, ranges: list[tuple[int, int]]) -> None:
        if len(self.covered) >= 4:
            return

        def change() -> None:
            src = self.source()
            new = self.target(pid, ranges)
            new.task = self.machine.get_task(pid)
            damon_add_target(src, new)
            damon_commit_ctx(self.ctx, src)

        assert self.in_kdamond(change) is None
        self.covered.append((pid, joined(ranges)))

    @rule(place=st.integers(0, 3), obsolete=st.booleans(), ranges=page_ranges)
    def commit_target(self, place: int, obsolete: bool, ranges: list[tuple[int, int]]) -> None:
        """One target goes, or gets other ranges."""
        i = place % len(self.covered)
        if obsolete and len(self.covered) == 1:
            return

        def change() -> None:
            src = self.source()
            src.adaptive_targets[i].obsolete = obsolete
            src.adaptive_targets[i].regions = self.target(0, ranges).regions
            damon_commit_ctx(self.ctx, src)

        assert self.in_kdamond(change) is None
        if obsolete:
            del self.covered[i]
        else:
            self.covered[i] = (self.covered[i][0], joined(ranges))

    @rule(chosen=st.lists(schemes, max_size=3))
    def commit_schemes(self, chosen: list[damos]) -> None:
        def change() -> None:
            src = self.source()
            src.schemes = [evolve(s) for s in chosen]
            damon_commit_ctx(self.ctx, src)

        assert self.in_kdamond(change) is None
        assert [s.pattern for s in chosen] == [s.pattern for s in self.ctx.schemes]

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        def change() -> None:
            src = self.source()
            src.pause = paused
            damon_commit_ctx(self.ctx, src)

        assert self.in_kdamond(change) is None

    # What always holds.

    @invariant()
    def regions_are_valid(self) -> None:
        validate_ctx(self.ctx)
        assert all(well_formed(t.regions) for t in self.ctx.adaptive_targets)
        assert not self.ctx.maybe_corrupted

    @invariant()
    def everything_and_nothing_else_is_covered(self) -> None:
        assert self.covered == [(t.pid, joined(ranges_of(t.regions))) for t in self.ctx.adaptive_targets]

    @invariant()
    def regions_are_whole_pages(self) -> None:
        for t in self.ctx.adaptive_targets:
            assert not (t.regions.start % np.uint64(PAGE_SIZE)).any()

    @invariant()
    def counters_of_reports_add_up(self) -> None:
        counters = asdict(report_counters(self.ctx))
        assert 0 == counters["dropped"]
        assert self.sent == counters["accepted"]
        assert self.sent == sum(counters.values()) - counters["accepted"]

    @precondition(lambda self: not self.ctx.pause)
    @rule()
    def reports_do_not_wait(self) -> None:
        """One sampling interval after another, whatever was reported was looked at."""
        self.clock.step()
        assert 0 == report_counters(self.ctx).pending

    @invariant()
    def samples_are_counted(self) -> None:
        assert self.seen_samples <= self.ctx.nr_samples
        self.seen_samples = self.ctx.nr_samples
        assert self.ctx.nr_unknown <= self.ctx.nr_samples

    @invariant()
    def statistics_are_plausible(self) -> None:
        for s in self.ctx.schemes:
            assert s.stat.sz_tried >= s.stat.nr_tried * PAGE_SIZE
            assert 0 == s.stat.nr_applied == s.stat.sz_applied

    @invariant()
    def aggregations_are_in_time(self) -> None:
        ctx = self.ctx
        # A pause begins before the end of the iteration.
        assert ctx.pause or ctx.passed_sample_intervals < ctx.next_aggregation_sis
        assert ctx.next_aggregation_sis - ctx.passed_sample_intervals <= damon_nr_samples_per_aggr(ctx.attrs)
        assert self.aggregations <= ctx.passed_sample_intervals

    @invariant()
    def it_runs(self) -> None:
        assert damon_is_running(self.ctx)
        assert self.ctx.kdamond_error is None


def model_row(regions: Regions, row: int) -> tuple[int, ...]:
    r = regions.region(row)
    counts = (r.nr_accesses, r.last_nr_accesses, r.age, r.unknown_age, r.nr_unknown, r.last_nr_unknown)
    return (r.start, r.end, *counts)


ContextMachine.TestCase.settings = effort(25, stateful_step_count=40)
TestContextMachine = ContextMachine.TestCase
