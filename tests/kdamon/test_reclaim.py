# SPDX-License-Identifier: GPL-2.0-only
"""damon_reclaim: pages out what is cold, of the processes that are named, and as much as it may."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from kdamon.damon import (
    damon_attrs,
    damon_ops_id,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_quota_goal,
    damos_quota_goal_metric,
    damos_stat,
    damos_watermarks,
    damos_wmark_metric,
)
from kdamon.kernel import PAGE_SIZE
from kdamon.mm.linux.machine import linux_machine
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.reclaim import damon_reclaim
from kdamon.reports.deliver import report_accesses
from kdamon.reports.record import report_array
from tests.support.capabilities import skip_because
from tests.support.contexts import first, in_kdamond
from tests.support.modules import HEAP, MEBI, module, reading, real_machine, run, shut_down, spawn
from tests.support.waiting import eventually
from tests.support.workload import Workload, build

pytestmark = pytest.mark.real


DEFAULTS = damon_attrs()
SECOND = 1_000_000

#: Pages that may sit in a CPU's LRU batch, where advice does not find them.
IN_BATCHES = 64


def refused(do: Callable[[], object], said: str) -> None:
    """It is refused with EINVAL, for the reason that is meant."""
    with pytest.raises(OSError, match=said) as raised:
        do()
    assert errno.EINVAL == raised.value.errno


# The scheme.


def test_the_scheme_of_the_defaults() -> None:
    """What was not accessed for 120 seconds, 128 MiB and 10 ms in a second, while memory is neither free nor gone."""
    [scheme] = module(damon_reclaim, SimMachine()).new_schemes(DEFAULTS)
    assert scheme.action is damos_action.DAMOS_PAGEOUT
    assert scheme.pattern == damos_access_pattern(min_sz_region=PAGE_SIZE, max_nr_accesses=0, min_age_region=1200)
    quota = scheme.quota
    assert (10, 128 * MEBI, 1000, []) == (quota.ms, quota.sz, quota.reset_interval, quota.goals)
    assert (0, 0, 1) == (quota.weight_sz, quota.weight_nr_accesses, quota.weight_age)
    metric = damos_wmark_metric.DAMOS_WMARK_FREE_MEM_RATE
    assert scheme.wmarks == damos_watermarks(metric, interval=5 * SECOND, high=500, mid=400, low=200)
    assert 0 == scheme.apply_interval_us
    assert -1 == scheme.target_nid
    assert scheme.core_filters == scheme.ops_filters == []


def test_parameters_make_goals_and_filters() -> None:
    """One goal for pressure, one for the user's feedback; anonymous memory is rejected."""
    reclaim = module(
        damon_reclaim, SimMachine(), quota_mem_pressure_us=777, quota_autotune_feedback=5000, skip_anon=True
    )
    [scheme] = reclaim.new_schemes(DEFAULTS)
    assert scheme.quota.goals == [
        damos_quota_goal(damos_quota_goal_metric.DAMOS_QUOTA_SOME_MEM_PSI_US, 777),
        damos_quota_goal(damos_quota_goal_metric.DAMOS_QUOTA_USER_INPUT, 10000, 5000),
    ]
    anon = damos_filter_type.DAMOS_FILTER_TYPE_ANON
    assert scheme.ops_filters == [damos_filter(anon, matching=True, allow=False)]


def test_the_least_age_is_an_unsigned_int() -> None:
    """As in the kernel, which cuts what does not fit."""
    [scheme] = module(damon_reclaim, SimMachine(), min_age=(1 << 32) + 5).new_schemes(evolve(DEFAULTS, aggr_interval=1))
    assert 5 == scheme.pattern.min_age_region


def test_intervals_can_be_tuned() -> None:
    """Towards 0.4 percent of accesses, whatever the intervals say."""
    machine = SimMachine()
    spawn(machine)
    reclaim = module(
        damon_reclaim, machine, monitor_pids=(150,), sample_interval=7000, autotune_monitoring_intervals=True
    )
    attrs = reclaim.apply_parameters().attrs
    assert (5000, 100_000) == (attrs.sample_interval, attrs.aggr_interval)
    goal = attrs.intervals_goal
    assert (40, 3, 5000, 10 * SECOND) == (goal.access_bp, goal.aggrs, goal.min_sample_us, goal.max_sample_us)


# In simulated time.


def test_cold_memory_is_paged_out_and_hot_memory_stays() -> None:
    """All of it, and the statistics are those of the scheme."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.access(HEAP, HEAP + 40 * MEBI, rate=1000)
    reclaim = module(damon_reclaim, machine, monitor_pids=(150,), min_age=2 * SECOND)
    ctx = reclaim.apply_parameters()

    def watch() -> None:
        assert reclaim.stat == ctx.schemes[0].stat
        assert reclaim.stat is not ctx.schemes[0].stat

    run(reclaim, ctx, 30, watch)
    [[start, end]] = process.resident().tolist()
    assert HEAP == start
    assert HEAP + 40 * MEBI <= end <= HEAP + 41 * MEBI
    # What is paged out at the edge of the hot memory comes back, and counts again.
    assert 0 <= reclaim.stat.sz_applied - (102 * MEBI - (end - start)) <= MEBI


def test_no_more_than_the_quota_is_tried_in_a_window() -> None:
    """8 MiB a second from the first application on; how often that is exceeded is counted."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    reclaim = module(damon_reclaim, machine, monitor_pids=(150,), min_age=2 * SECOND, quota_ms=0, quota_sz=8 * MEBI)
    tried: list[int] = []

    def watch() -> None:
        if machine.clock.now() % 1_000_000_000 == 100_000_000:
            tried.append(reclaim.stat.sz_tried)

    run(reclaim, reclaim.apply_parameters(), 10, watch)
    steps = np.diff([0, *tried])
    assert (steps <= 8 * MEBI).all()
    assert reclaim.stat.sz_tried >= 5 * 8 * MEBI
    assert reclaim.stat.qt_exceeds >= 5
    assert int((process.resident()[:, 1] - process.resident()[:, 0]).sum()) == 102 * MEBI - reclaim.stat.sz_applied


def test_nothing_is_done_outside_of_the_watermarks() -> None:
    """Free memory of more than a half, or less than a fifth."""
    machine = SimMachine(seed=1)
    spawn(machine)
    for free, works in ((501, False), (450, True), (199, False)):
        machine.metrics["free_mem_rate"] = free
        reclaim = module(damon_reclaim, machine, monitor_pids=(150,), min_age=SECOND)
        run(reclaim, reclaim.apply_parameters(), 20)
        assert bool(reclaim.stat.nr_tried) is works


def test_anonymous_memory_can_be_skipped() -> None:
    """Only that of files goes."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.mark("anon", [(0, HEAP + 30 * MEBI)])
    reclaim = module(damon_reclaim, machine, monitor_pids=(150,), min_age=SECOND, skip_anon=True)
    run(reclaim, reclaim.apply_parameters(), 10)
    assert [[MEBI, 2 * MEBI], [HEAP, HEAP + 30 * MEBI]] == process.resident().tolist()


def test_addresses_limit_what_is_monitored() -> None:
    """To those of each process, in whole pages; the rest is left alone."""
    machine = SimMachine(seed=1)
    processes = [spawn(machine, pid) for pid in (1, 2)]
    bounds = {"monitor_region_start": HEAP + 10 * MEBI + 5, "monitor_region_end": HEAP + 20 * MEBI}
    reclaim = module(damon_reclaim, machine, monitor_pids=(1, 2), min_age=SECOND, **bounds)
    ctx = reclaim.apply_parameters()
    assert ctx.ops is not None
    assert ctx.ops.id is damon_ops_id.DAMON_OPS_FVADDR
    run(reclaim, ctx, 10)
    for process in processes:
        assert [[HEAP, HEAP + 10 * MEBI], [HEAP + 20 * MEBI, HEAP + 100 * MEBI]] == process.resident()[1:3].tolist()


def test_addresses_of_processes_that_come_later() -> None:
    """Are those that were asked for, too."""
    machine = SimMachine(seed=1)
    processes = [spawn(machine, pid) for pid in (1, 2)]
    machine.cgroups = {"/service": (1,)}
    bounds = {"monitor_region_start": HEAP, "monitor_region_end": HEAP + 20 * MEBI}
    reclaim = module(damon_reclaim, machine, monitor_cgroup="/service", min_age=SECOND, **bounds)

    def watch() -> None:
        if machine.clock.now() > 3e9:
            machine.cgroups = {"/service": (2,)}

    run(reclaim, reclaim.apply_parameters(), 15, watch)
    for process in processes:
        assert [HEAP + 20 * MEBI, HEAP + 100 * MEBI] == process.resident()[1].tolist()


def test_reported_memory_is_not_cold() -> None:
    """As little as memory whose accessed bits are set; it is paged out when the reports end."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    addrs = np.arange(HEAP + 30 * MEBI, HEAP + 40 * MEBI, 16 * PAGE_SIZE, dtype=np.uint64)
    reclaim = module(damon_reclaim, machine, monitor_pids=(150,), min_age=2 * SECOND, quota_ms=0)
    resident: dict[int, list[list[int]]] = {}

    def watch() -> None:
        if machine.clock.now() < 10e9:
            report_accesses(report_array(len(addrs), pid=150, addr=addrs, size=PAGE_SIZE))
        resident[machine.clock.now() // 1_000_000_000] = process.resident().tolist()

    run(reclaim, reclaim.apply_parameters(), 20, watch)
    # Of a region at its edge, of which a small part is reported, pages may be paged out and come back.
    [[start, end], *edge] = resident[9]
    assert HEAP + 29 * MEBI <= start <= HEAP + 30 * MEBI
    assert HEAP + 39 * MEBI <= end
    assert max([end, *(last for _, last in edge)]) <= HEAP + 41 * MEBI
    assert [] == resident[19]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"aggr_interval": 0, "sample_interval": 0}, "aggr_interval"),
        ({"aggr_interval": 4999}, "sampling interval"),
        ({"min_nr_regions": 2}, "at least 3"),
        ({"max_nr_regions": 9}, "exceed the maximum"),
        ({"monitor_region_start": 2, "monitor_region_end": 1}, "before monitor_region_start"),
        ({"addr_unit": 3}, "addr_unit"),
        ({"monitor_pids": ()}, "monitor_pids"),
        ({"monitor_pids": (151,)}, "monitor_pids"),
    ],
)
def test_parameters_that_make_no_sense(parameters: dict[str, int], said: str) -> None:
    """Are refused when the module is enabled."""
    machine = SimMachine()
    spawn(machine)
    reclaim = module(damon_reclaim, machine, **{"monitor_pids": (150,), **parameters})
    refused(lambda: reclaim.enable(True), said)
    assert not reclaim.enabled()


# Enabling and committing, in real time.


def real_time(**parameters: object) -> damon_reclaim:
    """A module on a simulated machine with processes 150 and 160."""
    machine = SimMachine()
    for pid in (150, 160):
        spawn(machine, pid)
    return damon_reclaim(machine=lambda: machine, monitor_pids=(150,), **parameters)  # type: ignore[arg-type]


def test_inputs_are_committed_when_that_is_asked_for() -> None:
    """Not before; the processes that stay keep what is known of them."""
    reclaim = real_time()
    with shut_down(reclaim):
        refused(reclaim.commit_inputs, "never enabled")
        reclaim.enable(True)
        ctx = reclaim.ctx
        assert ctx is not None
        [before] = ctx.adaptive_targets
        reclaim.min_age, reclaim.quota_sz, reclaim.monitor_pids = SECOND, MEBI, (160, 150)
        assert 1200 == ctx.schemes[0].pattern.min_age_region
        reclaim.commit_inputs()
        assert 10 == ctx.schemes[0].pattern.min_age_region
        assert MEBI == ctx.schemes[0].quota.sz
        assert [150, 160] == [t.pid for t in ctx.adaptive_targets]
        assert ctx.adaptive_targets[0] is before
        assert all(len(t.regions) for t in ctx.adaptive_targets)
        reclaim.monitor_pids = (160,)
        reclaim.commit_inputs()
        assert [160] == [t.pid for t in ctx.adaptive_targets]


def test_addresses_can_be_committed_and_given_up_again() -> None:
    """All that is mapped is monitored at once, not at the next update."""
    reclaim = real_time()
    with shut_down(reclaim):
        reclaim.enable(True)
        assert reclaim.ctx is not None
        ctx = reclaim.ctx
        t = first(ctx)
        everything = in_kdamond(ctx, lambda: int(first(ctx).regions.sizes().sum()))
        assert 102 * MEBI == everything
        reclaim.monitor_region_start, reclaim.monitor_region_end = HEAP, HEAP + MEBI
        reclaim.commit_inputs()
        assert MEBI == t.regions.total()
        reclaim.monitor_region_start = reclaim.monitor_region_end = 0
        reclaim.commit_inputs()
        assert t.regions.total() == everything


def test_a_commit_that_fails_changes_nothing() -> None:
    """The module goes on as before."""
    reclaim = real_time()
    with shut_down(reclaim):
        reclaim.enable(True)
        for name, wrong in (("aggr_interval", 1), ("min_nr_regions", 2), ("monitor_pids", (7,)), ("monitor_pids", ())):
            before = getattr(reclaim, name)
            setattr(reclaim, name, wrong)
            with pytest.raises(OSError, match=r".") as raised:
                reclaim.commit_inputs()
            assert errno.EINVAL == raised.value.errno
            setattr(reclaim, name, before)
        assert reclaim.enabled()
        assert reclaim.ctx is not None
        assert [150] == [t.pid for t in reclaim.ctx.adaptive_targets]
        reclaim.enable(False)
        with pytest.raises(OSError, match="does not run") as raised:
            reclaim.commit_inputs()
        assert errno.ECANCELED == raised.value.errno


def test_a_commit_takes_processes_while_the_kdamond_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the thread that commits; the control group is followed again once the targets have their places."""
    reclaim = real_time(monitor_cgroup="/group")
    machine = reclaim.machine()
    assert isinstance(machine, SimMachine)
    spawn(machine, 170)
    machine.cgroups["/group"] = (150,)
    get_task, asked, answer = machine.get_task, threading.Event(), threading.Event()
    takers: list[int] = []

    def slow(pid: int, primitive: str = "page_table", birth: int | None = None) -> SimProcess:
        if pid == 160:
            takers.append(threading.get_ident())
            asked.set()
            assert answer.wait(300)
        return get_task(pid, primitive, birth)

    with shut_down(reclaim), ThreadPoolExecutor(1) as pool:
        reclaim.enable(True)
        ctx = reclaim.ctx
        assert ctx is not None
        monkeypatch.setattr(machine, "get_task", slow)
        reclaim.monitor_pids = (150, 160)
        committing = pool.submit(lambda: reclaim.commit_inputs() or threading.get_ident())
        try:
            assert asked.wait(120)
            machine.cgroups["/group"] = (150, 170)
            reclaim._next_follow = 0
            begun = ctx.passed_sample_intervals
            assert eventually(lambda: ctx.passed_sample_intervals > begun + 10)
            assert [150] == [t.pid for t in ctx.adaptive_targets]
        finally:
            answer.set()
        assert takers == [committing.result(120)]
        assert [150, 160] == [t.pid for t in ctx.adaptive_targets][:2]
        assert eventually(lambda: [t.pid for t in ctx.adaptive_targets] == [150, 160, 170])


def test_statistics_go_on_when_the_module_is_enabled_again() -> None:
    """As in the kernel, whose context stays too."""
    machine = SimMachine(seed=1)
    spawn(machine)
    reclaim = module(damon_reclaim, machine, monitor_pids=(150,), min_age=SECOND)
    assert reclaim.stat == damos_stat()
    run(reclaim, reclaim.apply_parameters(), 5)
    before = evolve(reclaim.stat)
    assert before.sz_tried
    run(reclaim, reclaim.apply_parameters(), 5)
    assert reclaim.stat.sz_tried > before.sz_tried
    assert reclaim.stat.nr_snapshots > before.nr_snapshots


@pytest.mark.real
def test_nothing_stays_open_of_an_attempt_that_failed() -> None:
    """Neither when a process is missing nor while another kdamond runs."""
    machine = linux_machine("page_fault")
    reclaim, other = (damon_reclaim(machine=lambda: machine, monitor_pids=(os.getpid(),)) for _ in range(2))
    simulated = SimMachine()
    spawn(simulated, os.getpid())
    other.machine = lambda: simulated
    with shut_down(reclaim, other):
        other.enable(True)
        try:
            machine.get_task(os.getpid()).put()
        except OSError as error:
            skip_because(error)
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(OSError, match="stop it before you start an exclusive module"):
                reclaim.enable(True)
        reclaim.monitor_pids = (os.getpid(), 2**22)
        refused(lambda: reclaim.enable(True), "no process")
        assert sorted(os.listdir("/proc/self/fd")) == before
    machine.close()


# On a real process.


def resident(work: Workload, first: int, last: int) -> int:
    """How many pages [first, last) of the workload's memory are mapped."""
    with open(f"/proc/{work.pid}/pagemap", "rb", buffering=0) as pagemap:
        entries = os.pread(pagemap.fileno(), 8 * (last - first), (work.base // PAGE_SIZE + first) * 8)
    return int(np.count_nonzero(np.frombuffer(entries, np.uint64) >> np.uint64(63)))


@pytest.mark.real
def test_a_real_process_shrinks_by_its_cold_half(tmp_path: Path) -> None:
    """Of a file that it has mapped; what it reads over and over stays, and it reads what it wrote."""
    pages = 4096
    half = pages // 2
    contents = np.zeros((pages, PAGE_SIZE), np.uint8)
    contents[:, 128] = (np.arange(pages) * 7 + 3) % 256
    data = tmp_path / "data"
    data.write_bytes(contents.tobytes())
    with data.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with real_machine() as machine, Workload([build(tmp_path)], "file", pages, str(data)) as work:
        work.order("r", range(pages))
        assert resident(work, 0, pages) == pages
        reclaim = damon_reclaim(
            machine=lambda: machine,
            monitor_pids=(work.pid,),
            monitor_region_start=work.base,
            monitor_region_end=work.base + pages * PAGE_SIZE,
            min_age=SECOND,
            wmarks_high=1000,
            wmarks_mid=999,
            wmarks_low=0,
        )
        with reading(work, range(half)), shut_down(reclaim):
            reclaim.enable(True)
            eventually(lambda: resident(work, half, pages) <= half // 20 + IN_BATCHES, "less memory", 60)
            eventually(lambda: reclaim.stat.sz_applied >= half * PAGE_SIZE // 2, "the statistics")
            assert resident(work, 0, half) >= half * 9 // 10
        assert reclaim.stat.sz_tried >= reclaim.stat.sz_applied
        assert 0 == work.spoilt(range(pages))
