# SPDX-License-Identifier: GPL-2.0-only
"""paddr on simulated memory: samples of page frames are samples of the one process that maps them."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon import paddr
from kdamon.core import (
    damon_add_scheme,
    damon_add_target,
    damon_commit_ctx,
    damon_destroy_ctx,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    report_counters,
    run_ctx,
)
from kdamon.damon import (
    DAMOS_MAX_SCORE,
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_ops_id,
    damon_region,
    damon_target,
    damon_target_has_pid,
    damos,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_quota,
    damos_quota_goal,
    damos_quota_goal_metric,
)
from kdamon.damos_quota import damos_quota_score
from kdamon.kernel import ULONG_MAX
from kdamon.lib.once import warn_once
from kdamon.mm import OLD, UNKNOWN, YOUNG, Machine
from kdamon.mm.sampling.physical import Physical, ReverseMap
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.ops_common import scheme_score, scheme_scores
from kdamon.paddr import damon_pa_apply_scheme, pa_init
from kdamon.regions import Regions, damon_addr_range
from kdamon.reports.deliver import report_accesses
from kdamon.reports.record import report_array
from tests.support.contexts import recorded
from tests.support.tables import effort

MIB = 1 << 20
PAGE = 4096
#: Where processes have their memory, and where that is.
VIRTUAL, PHYSICAL = 1 << 40, 1 << 30


def spawn(machine: SimMachine, mib: int = 64, physical: int = PHYSICAL) -> SimProcess:
    """A process whose memory is in one piece; the first quarter is accessed without end."""
    process = machine.spawn([(VIRTUAL, VIRTUAL + mib * MIB)])
    machine.place(process, VIRTUAL, VIRTUAL + mib * MIB, physical)
    process.access(VIRTUAL, VIRTUAL + mib * MIB // 4)
    return process


def sampled(machine: SimMachine, memory: Physical, *addrs: int, meanwhile: Callable[[], object] = int) -> list[int]:
    """One sample of physical addresses."""
    array = np.array(addrs, np.uint64)
    memory.begin_sample(array)
    meanwhile()
    machine.clock.sleep_until(machine.clock.now() + 5_000_000, threading.Event())
    return memory.end_sample(array).tolist()


def pa_ctx(machine: Machine | None, *ranges: tuple[int, int], addr_unit: int = 1) -> damon_ctx:
    """A context that monitors ``ranges``, bytes."""
    ctx = damon_new_ctx(seed=1)
    ctx.machine = machine
    if isinstance(machine, SimMachine):
        ctx.clock = machine.clock
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_PADDR)
    ctx.addr_unit, ctx.min_region_sz = addr_unit, max(PAGE // addr_unit, 1)
    t = damon_new_target()
    t.regions = Regions([start // addr_unit for start, _ in ranges], [end // addr_unit for _, end in ranges])
    damon_add_target(ctx, t)
    return ctx


# Samples.


def test_the_goal_of_eligible_memory_is_a_nodes_share_of_what_the_scheme_wants() -> None:
    """Of the hot quarter of a process: a part is on either node. Nothing is eligible where nothing is known."""
    machine = SimMachine(seed=1)
    spawn(machine)
    machine.second_node = PHYSICAL + 12 * MIB
    ctx = pa_ctx(machine, (PHYSICAL, PHYSICAL + 64 * MIB), (1 << 40, (1 << 40) + 64 * MIB))
    t = ctx.adaptive_targets[0]
    t.regions.split_at(0, 16 * MIB)
    t.regions.nr_accesses[0] = t.regions.last_nr_accesses[0] = 20
    goals = [damos_quota_goal(damos_quota_goal_metric.DAMOS_QUOTA_NODE_ELIGIBLE_MEM_BP, 10000, nid=n) for n in range(3)]
    s = damos(pattern=damos_access_pattern(min_nr_accesses=1), quota=damos_quota(goals=goals))
    damon_add_scheme(ctx, s)
    damos_quota_score(ctx, s.quota)
    assert [0, 0, 0] == [goal.current_value for goal in goals]
    pa_init(ctx)
    damos_quota_score(ctx, s.quota)
    assert [7500, 2500, 0] == [goal.current_value for goal in goals]
    s.pattern = damos_access_pattern(max_nr_accesses=0)
    damos_quota_score(ctx, s.quota)
    assert [0, 10000, 0] == [goal.current_value for goal in goals]


def test_samples_are_young_old_or_unknown() -> None:
    """Memory of one process by its accesses; unmapped memory is old, except page cache, which is unknown."""
    machine = SimMachine(seed=1)
    spawn(machine)
    machine.cached = np.array([[0, 16 * MIB]], np.uint64)
    memory = machine.physical_memory()
    hot, cold, cache, free = PHYSICAL + 5, PHYSICAL + 63 * MIB, 3 * MIB + 1, PHYSICAL + 64 * MIB
    assert [YOUNG, OLD, UNKNOWN, OLD, OLD] == sampled(machine, memory, hot, cold, cache, free, 1 << 60)


def test_memory_that_two_processes_map_is_unknown_until_one_is_left() -> None:
    """As after a fork(); what was left out becomes known with the next update."""
    machine = SimMachine(seed=1)
    spawn(machine)
    child = spawn(machine)
    memory = machine.physical_memory()
    assert [UNKNOWN, UNKNOWN] == sampled(machine, memory, PHYSICAL, PHYSICAL + 63 * MIB)
    child.exit()
    assert [UNKNOWN, UNKNOWN] == sampled(machine, memory, PHYSICAL, PHYSICAL + 63 * MIB)
    memory.update()
    assert [YOUNG, OLD] == sampled(machine, memory, PHYSICAL, PHYSICAL + 63 * MIB)


def test_memory_that_is_shared_since_the_update_is_unknown() -> None:
    """Also if that happens between the two halves of a sample."""
    machine = SimMachine(seed=1)
    spawn(machine)
    memory = machine.physical_memory()
    assert [UNKNOWN] == sampled(machine, memory, PHYSICAL, meanwhile=lambda: spawn(machine))
    assert [UNKNOWN] == sampled(machine, memory, PHYSICAL)


def test_memory_of_a_process_that_ended_is_free() -> None:
    """Before the sample, and in the middle of it: no process accesses it any more, until another one has it."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    memory = machine.physical_memory()
    assert [OLD] == sampled(machine, memory, PHYSICAL, meanwhile=process.exit)
    assert [OLD] == sampled(machine, memory, PHYSICAL)
    spawn(machine)
    assert [UNKNOWN] == sampled(machine, memory, PHYSICAL)
    memory.update()
    assert [YOUNG] == sampled(machine, memory, PHYSICAL)


def test_what_the_process_cannot_tell_is_unknown() -> None:
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.unknown.append((VIRTUAL, VIRTUAL + PAGE))
    assert [UNKNOWN, YOUNG] == sampled(machine, machine.physical_memory(), PHYSICAL, PHYSICAL + PAGE)


def test_a_sample_that_was_not_begun_tells_nothing() -> None:
    """But that memory is free."""
    machine = SimMachine(seed=1)
    spawn(machine)
    memory = machine.physical_memory()
    addrs = np.array([PHYSICAL, 0], np.uint64)
    assert [UNKNOWN, UNKNOWN] == memory.end_sample(addrs).tolist()
    memory.begin_sample(addrs)
    memory.update()
    assert [UNKNOWN, OLD] == memory.end_sample(addrs).tolist()
    memory.put()


def test_of_many_processes_some_are_sampled_each_time_and_all_in_turn() -> None:
    """Each costs system calls: a sample is of 64 at most."""
    machine = SimMachine(seed=1)
    for i in range(100):
        spawn(machine, 4, PHYSICAL + 4 * MIB * i)
    memory = machine.physical_memory()
    addrs = [PHYSICAL + 4 * MIB * i for i in range(100)]
    rounds = np.array([sampled(machine, memory, *addrs) for _ in range(10)])
    assert ((rounds == YOUNG) | (rounds == UNKNOWN)).all()
    assert [64] * 10 == (rounds == YOUNG).sum(axis=1).tolist()
    assert (rounds == YOUNG).any(axis=0).all()


def test_an_update_goes_on_with_the_samples() -> None:
    """A piece with each; what was known stays known until all is, and one that is under way is not begun again."""
    machine = SimMachine(seed=1)
    first = spawn(machine)
    memory = machine.physical_memory()
    memory.update()
    first.exit()
    new = [spawn(machine, 16, PHYSICAL + 16 * MIB * i) for i in range(1, 6)]
    where = [PHYSICAL, *(PHYSICAL + 16 * MIB * i for i in range(1, 6))]
    memory.begin_update()
    before = [sampled(machine, memory, *where)]
    memory.begin_update()
    while before[-1][1] == UNKNOWN:
        before.append(sampled(machine, memory, *where))
        assert len(before) <= len(new) + 1
    assert [OLD, *[UNKNOWN] * 5] == before[0] == before[-2]
    assert len(before) > 3
    assert [OLD, *[YOUNG] * 5] == before[-1]


def test_monitoring_goes_on_while_who_maps_what_is_looked_at() -> None:
    """Memory of a process that comes later is found with the next update, and no interval is without samples."""
    machine = SimMachine(seed=1)
    ctx = pa_ctx(machine, (PHYSICAL, PHYSICAL + 256 * MIB))
    damon_set_attrs(ctx, damon_attrs(5000, 100_000, 500_000))
    _before_run(ctx, damon_call_control(lambda _: machine.placed or spawn(machine, 256), repeat=True))
    with recorded(ctx) as seen:
        run_ctx(ctx, seconds=5)
    hot = [int(s.regions.sizes()[s.regions.nr_accesses > 10].sum()) for s in seen.snapshots]
    assert 0 == hot[0]
    assert 64 * MIB == pytest.approx(hot[-1], rel=0.05)
    assert ctx.passed_sample_intervals == pytest.approx(1000, rel=0.01)


def test_memory_that_is_given_back_in_the_middle_of_an_update() -> None:
    machine = SimMachine(seed=1)
    for i in range(4):
        spawn(machine, 64, PHYSICAL + 64 * MIB * i)
    memory = machine.physical_memory()
    memory.update()
    memory.begin_update()
    sampled(machine, memory, PHYSICAL)
    memory.put()
    assert [YOUNG] == sampled(machine, memory, PHYSICAL)


def test_how_much_is_known_is_said_when_monitoring_begins(caplog: pytest.LogCaptureFixture) -> None:
    """Not with each update."""
    machine = SimMachine(seed=1)
    spawn(machine)
    machine.cached = np.array([[0, 36 * MIB]], np.uint64)
    ctx = pa_ctx(machine, (PHYSICAL, PHYSICAL + MIB))
    assert (0, 100 * MIB) == machine.physical_memory().known()
    damon_set_attrs(ctx, damon_attrs(5000, 100_000, 200_000))
    run_ctx(ctx, seconds=1)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "of 100 MiB that processes and files have, 64 MiB are mapped by one process each" in line
    assert "unknown" in line


# The map from page frames to processes.


runs = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 40), st.integers(1, 60), st.integers(1, 12)),
    max_size=12,
)


@effort(300)
@given(runs)
def test_the_map_knows_what_comes_once(found: list[tuple[int, int, int, int]]) -> None:
    """Whatever overlaps; compared with a dictionary of page frames."""
    model: dict[int, list[tuple[int, int]]] = {}
    parts = []
    for pid, page, pfn, count in found:
        parts.append((pid, np.array([[page * PAGE, pfn, count]], np.uint64)))
        for i in range(count):
            model.setdefault(pfn + i, []).append((pid, (page + i) * PAGE))
    known = {pfn: owners[0] for pfn, owners in model.items() if len(owners) == 1}

    whole = ReverseMap(parts)
    pids, addrs = whole.find(np.arange(80, dtype=np.uint64))
    assert known == {pfn: (pids[pfn], addrs[pfn]) for pfn in range(80) if pids[pfn] >= 0}
    assert len(known) == whole.pages
    inside = {int(pfn): (int(pid), int(addr)) for pid, addr, pfn in zip(*whole.within(20, 50), strict=True)}
    assert {pfn: owner for pfn, owner in known.items() if 20 <= pfn < 50} == inside
    assert [0, 0] == [len(whole.within(30, last)[0]) for last in (30, 29)]


# Monitoring.


@pytest.mark.parametrize("addr_unit", [1, 1024, 8192])
def test_hot_and_cold_memory_is_found(addr_unit: int) -> None:
    """With page cache unknown and free memory cold, in any unit of addresses."""
    machine = SimMachine(seed=1)
    spawn(machine)
    machine.cached = np.array([[PHYSICAL + 64 * MIB, PHYSICAL + 96 * MIB]], np.uint64)
    ctx = pa_ctx(machine, (PHYSICAL, PHYSICAL + 128 * MIB), addr_unit=addr_unit)
    with recorded(ctx) as seen:
        run_ctx(ctx, seconds=5)
    regions = seen.snapshots[-1].regions
    sizes = regions.sizes() * np.uint64(addr_unit)
    middle = (regions.start + regions.end) // np.uint64(2) * np.uint64(addr_unit) - np.uint64(PHYSICAL)
    assert 16 * MIB == pytest.approx(int(sizes[regions.nr_accesses > 10].sum()), rel=0.02)
    assert (regions.nr_accesses[middle > 17 * MIB] == 0).all()
    cache = (middle > 65 * MIB) & (middle < 95 * MIB)
    assert (regions.nr_unknown[cache] == 20).all()
    assert 0 < ctx.nr_unknown < ctx.nr_samples


def test_without_a_machine_everything_is_unknown() -> None:
    ctx = pa_ctx(None, (PHYSICAL, PHYSICAL + MIB))
    ctx.clock = SimMachine().clock
    run_ctx(ctx, seconds=1)
    assert ctx.nr_unknown == ctx.nr_samples > 0


def test_a_machine_that_lacks_something_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    class Lacking(SimMachine):
        def physical_memory(self) -> Physical:
            raise OSError(errno.EPERM, "this process may look at nothing")

    warn_once.cache_clear()
    ctx = pa_ctx(Lacking(), (PHYSICAL, PHYSICAL + MIB))
    run_ctx(ctx, seconds=1)
    assert ctx.nr_unknown == ctx.nr_samples > 0
    assert ["physical addresses cannot be monitored: this process may look at nothing"] == [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize("addr_unit", [1, 1024, 8192])
def test_reports_of_process_0_are_about_physical_addresses(addr_unit: int) -> None:
    """They are bytes, whatever the unit of addresses is."""
    machine = SimMachine(seed=1)
    ctx = pa_ctx(machine, (PHYSICAL, PHYSICAL + MIB), addr_unit=addr_unit)
    assert not damon_target_has_pid(ctx)
    counters = []

    def report(_: object) -> None:
        report_accesses(report_array(2, pid=[0, 150], addr=[PHYSICAL + 5000, PHYSICAL], size=[1, 1]))
        counters.append(report_counters(ctx))

    control = damon_call_control(report, repeat=True)
    _before_run(ctx, control)
    run_ctx(ctx, seconds=1)
    assert counters[-1].applied > 0
    assert abs(counters[-1].applied - counters[-1].ineligible) <= 1


def _before_run(ctx: damon_ctx, control: damon_call_control) -> None:
    ctx.call_controls.append(control)


def test_a_commit_turns_physical_into_virtual_addresses_and_back() -> None:
    """What the target held is given back."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    ctx = pa_ctx(machine, (PHYSICAL, PHYSICAL + MIB))
    damon_set_attrs(ctx, damon_attrs())
    (t,) = ctx.adaptive_targets
    pa_init(ctx)
    assert t.task is not None
    assert t.task.physical is t.task

    other = damon_new_ctx()
    damon_select_ops(other, damon_ops_id.DAMON_OPS_FVADDR)
    target = damon_new_target()
    target.pid, target.task = process.pid, machine.get_task(process.pid)
    damon_add_target(other, target)
    damon_commit_ctx(ctx, other)
    assert t.task is process

    back = pa_ctx(machine, (PHYSICAL, PHYSICAL + 2 * MIB))
    damon_commit_ctx(ctx, back)
    paddr.damon_pa_prepare_access_checks(ctx)
    assert t.task is not None
    assert t.task.physical is t.task
    assert 2 * MIB == int(t.regions.sizes().sum())
    damon_destroy_ctx(ctx)
    assert t.task is None


# Schemes.


def scheme(action: damos_action, *filters: damos_filter) -> damos:
    s = damos(action=action)
    s.ops_filters = list(filters)
    return s


def apply(ctx: damon_ctx, t: damon_target, s: damos) -> tuple[int, int]:
    """What the first region of ``t`` had applied and passed."""
    applied, passed = damon_pa_apply_scheme(ctx, t, np.array([0]), s)
    return int(applied[0]), int(passed[0])


def test_pageout_reaches_the_processes_and_leaves_what_is_accessed() -> None:
    """Of two processes' memory and some that is free, the region; in units of addresses."""
    machine = SimMachine(seed=1)
    first, second = spawn(machine), spawn(machine, 64, PHYSICAL + 64 * MIB)
    ctx = pa_ctx(machine, (PHYSICAL + 32 * MIB, PHYSICAL + 200 * MIB), addr_unit=4096)
    pa_init(ctx)
    machine.clock.sleep_until(machine.clock.now() + 10**9, threading.Event())
    (t,) = ctx.adaptive_targets
    applied, passed = apply(ctx, t, scheme(damos_action.DAMOS_PAGEOUT))
    assert ((32 + 48) * 256, (32 + 48) * 256) == (applied, passed)
    assert [[VIRTUAL, VIRTUAL + 32 * MIB]] == first.resident().tolist()
    assert [[VIRTUAL, VIRTUAL + 16 * MIB]] == second.resident().tolist()


def test_each_region_counts_what_was_done_in_it() -> None:
    """Of several regions at once, one of which is left out; memory of a process may be the other way round."""
    machine = SimMachine(seed=1)
    process = machine.spawn([(VIRTUAL, VIRTUAL + 64 * MIB)])
    machine.place(process, VIRTUAL + 32 * MIB, VIRTUAL + 64 * MIB, PHYSICAL)
    machine.place(process, VIRTUAL, VIRTUAL + 32 * MIB, PHYSICAL + 32 * MIB)
    process.mark("anon", [(VIRTUAL, VIRTUAL + 8 * MIB)])
    edges = [PHYSICAL + mib * MIB for mib in (0, 3, 24, 37, 64, 80)]
    ctx = pa_ctx(machine, *pairwise(edges))
    pa_init(ctx)
    machine.clock.sleep_until(machine.clock.now() + 10**9, threading.Event())
    (t,) = ctx.adaptive_targets
    anon = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON, matching=True, allow=False)
    s = scheme(damos_action.DAMOS_PAGEOUT, anon)
    applied, passed = damon_pa_apply_scheme(ctx, t, np.array([0, 2, 3, 4]), s)
    assert [3 * MIB, 8 * MIB, 24 * MIB, 0] == applied.tolist() == passed.tolist()
    left = [[VIRTUAL, VIRTUAL + 8 * MIB], [VIRTUAL + 35 * MIB, VIRTUAL + 56 * MIB]]
    assert left == process.resident().tolist()


def test_filters_decide_what_is_paged_out() -> None:
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.mark("anon", [(VIRTUAL, VIRTUAL + 40 * MIB)])
    ctx = pa_ctx(machine, (PHYSICAL, PHYSICAL + 64 * MIB))
    pa_init(ctx)
    machine.clock.sleep_until(machine.clock.now() + 10**9, threading.Event())
    (t,) = ctx.adaptive_targets
    anon = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON, matching=True, allow=False)
    assert (0, 24 * MIB) == apply(ctx, t, scheme(damos_action.DAMOS_STAT, anon))
    assert (0, 0) == apply(ctx, t, scheme(damos_action.DAMOS_STAT))
    everything = scheme(damos_action.DAMOS_PAGEOUT, anon)
    everything.core_filters_allowed = True
    only_files = scheme(damos_action.DAMOS_PAGEOUT, anon)
    assert (24 * MIB, 24 * MIB) == apply(ctx, t, only_files)
    # As in the kernel: what a filter of the core allowed passes the filter of accessed pages, too.
    assert (40 * MIB, 64 * MIB) == apply(ctx, t, everything)


def test_migrations_go_to_the_target_node(caplog: pytest.LogCaptureFixture) -> None:
    """One that is not there is said once, and nothing happens."""
    warn_once.cache_clear()
    machine = SimMachine(seed=1)
    spawn(machine)
    ctx = pa_ctx(machine, (PHYSICAL, PHYSICAL + 64 * MIB))
    pa_init(ctx)
    caplog.clear()
    (t,) = ctx.adaptive_targets
    s = scheme(damos_action.DAMOS_MIGRATE_COLD)
    s.target_nid = 0
    assert (0, 64 * MIB) == apply(ctx, t, s)
    assert not caplog.records
    s.target_nid = 7
    for _ in range(2):
        assert (0, 64 * MIB) == apply(ctx, t, s)
    (record,) = caplog.records
    assert record.getMessage().startswith("migrate_cold leaves memory of a process out: ")


def test_what_user_space_cannot_do_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    machine = SimMachine(seed=1)
    spawn(machine)
    ctx = pa_ctx(machine, (PHYSICAL, PHYSICAL + 64 * MIB))
    (t,) = ctx.adaptive_targets
    for action in (damos_action.DAMOS_LRU_PRIO, damos_action.DAMOS_WILLNEED) * 2:
        assert (0, 0) == apply(ctx, t, scheme(action))
    said = [record.getMessage() for record in caplog.records]
    assert ["lru_prio", "willneed"] == [line.split()[0] for line in said]


def test_a_scheme_pages_cold_memory_out_while_it_is_monitored() -> None:
    """By the pattern of what was not accessed for long."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    ctx = pa_ctx(machine, (PHYSICAL, PHYSICAL + 64 * MIB))
    s = scheme(damos_action.DAMOS_PAGEOUT)
    s.pattern.min_sz_region, s.pattern.max_sz_region = PAGE, ULONG_MAX
    s.pattern.min_age_region, s.pattern.max_age_region = 10, ULONG_MAX
    damon_add_scheme(ctx, s)
    run_ctx(ctx, seconds=5)
    assert 16 * MIB <= int((process.resident()[:, 1] - process.resident()[:, 0]).sum()) < 20 * MIB
    assert s.stat.sz_applied >= 44 * MIB


def test_scores() -> None:
    """Cold memory first for pageout, lru_deprio and migrate_cold; hot memory first for lru_prio and migrate_hot."""
    ctx = pa_ctx(None, (0, MIB), (MIB, 2 * MIB))
    (t,) = ctx.adaptive_targets
    samples = ctx.attrs.aggr_interval // ctx.attrs.sample_interval
    t.regions.nr_accesses = t.regions.last_nr_accesses = np.array([0, samples], np.uint32)
    cold = damon_region(damon_addr_range(0, MIB))
    hot = damon_region(damon_addr_range(MIB, 2 * MIB), nr_accesses=samples, last_nr_accesses=samples)
    for action in damos_action:
        s = scheme(action)
        s.quota.weight_nr_accesses = s.quota.weight_age = 1
        scores = [scheme_score(ctx, r, s) for r in (cold, hot)]
        assert scores == scheme_scores(ctx, t.regions, s).tolist()
        if action.value in ("pageout", "lru_deprio", "migrate_cold"):
            assert scores[0] > scores[1]
        elif action.value in ("lru_prio", "migrate_hot"):
            assert scores[0] < scores[1]
        else:
            assert [DAMOS_MAX_SCORE] * 2 == scores


def test_page_cache_is_not_taken_for_cold() -> None:
    """Where no process maps it, all of it is unknown: pageout does not try it."""
    machine = SimMachine(seed=1)
    spawn(machine)
    machine.cached = np.array([[PHYSICAL + 64 * MIB, PHYSICAL + 128 * MIB]], np.uint64)
    ctx = pa_ctx(machine, (PHYSICAL + 64 * MIB, PHYSICAL + 128 * MIB))
    schemes = [damos(action=action) for action in (damos_action.DAMOS_STAT, damos_action.DAMOS_PAGEOUT)]
    for scheme in schemes:
        damon_add_scheme(ctx, scheme)
    run_ctx(ctx, seconds=2)
    stat, pageout = (scheme.stat for scheme in schemes)
    assert 0 < stat.sz_tried == stat.sz_unknown == pageout.sz_unknown
    assert 0 == pageout.nr_tried
