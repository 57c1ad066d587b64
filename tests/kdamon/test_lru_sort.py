# SPDX-License-Identifier: GPL-2.0-only
"""damon_lru_sort: finds hot and cold memory of the processes that are named, and moves what user space can move."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from kdamon.damon import (
    damon_attrs,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_quota_goal,
    damos_quota_goal_metric,
    damos_watermarks,
    damos_wmark_metric,
)
from kdamon.kernel import PAGE_SIZE, UINT_MAX
from kdamon.lru_sort import damon_lru_sort
from kdamon.mm import PageFilter
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.sim.machine import SimMachine
from kdamon.ops_common import scheme_score
from tests.support.modules import HEAP, MEBI, module, reading, real_machine, run, shut_down, spawn
from tests.support.waiting import eventually
from tests.support.workload import Workload, build

pytestmark = pytest.mark.real


DEFAULTS = damon_attrs()
SECOND = 1_000_000

Metric = damos_quota_goal_metric


def test_the_schemes_of_the_defaults() -> None:
    """Hot is what half of the samples found accessed, cold what none did for two minutes; each has half of the time."""
    hot, cold = module(damon_lru_sort, SimMachine()).new_schemes(DEFAULTS)
    assert (damos_action.DAMOS_LRU_PRIO, damos_action.DAMOS_LRU_DEPRIO) == (hot.action, cold.action)
    assert hot.pattern == damos_access_pattern(min_sz_region=PAGE_SIZE, min_nr_accesses=10)
    assert cold.pattern == damos_access_pattern(min_sz_region=PAGE_SIZE, max_nr_accesses=0, min_age_region=1200)
    metric = damos_wmark_metric.DAMOS_WMARK_FREE_MEM_RATE
    for scheme in (hot, cold):
        quota = scheme.quota
        assert (5, 0, 1000, []) == (quota.ms, quota.sz, quota.reset_interval, quota.goals)
        assert (0, 1, 1) == (quota.weight_sz, quota.weight_nr_accesses, quota.weight_age)
        assert scheme.wmarks == damos_watermarks(metric, interval=5 * SECOND, high=200, mid=150, low=50)
        assert scheme.core_filters == scheme.ops_filters == []
    assert hot.quota is not cold.quota
    assert hot.wmarks is not cold.wmarks


@pytest.mark.parametrize(
    ("permille", "aggr_us", "threshold"),
    [(500, 100_000, 10), (999, 100_000, 19), (0, 100_000, 0), (2000, 5000, 2), (1 << 63, 10_000, 0)],
)
def test_the_least_number_of_accesses_of_hot_memory(permille: int, aggr_us: int, threshold: int) -> None:
    """In whole samples of 5 ms, rounded down and cut to what an unsigned int holds."""
    lru_sort = module(damon_lru_sort, SimMachine(), hot_thres_access_freq=permille)
    hot, _ = lru_sort.new_schemes(evolve(DEFAULTS, aggr_interval=aggr_us))
    assert hot.pattern.min_nr_accesses == threshold
    assert UINT_MAX == hot.pattern.max_nr_accesses


def test_goals_overlap_a_little() -> None:
    """Together they ask for 2 more of 10000 than there is."""
    hot, cold = module(damon_lru_sort, SimMachine(), active_mem_bp=7000).new_schemes(DEFAULTS)
    assert hot.quota.goals == [damos_quota_goal(Metric.DAMOS_QUOTA_ACTIVE_MEM_BP, 7000)]
    assert cold.quota.goals == [damos_quota_goal(Metric.DAMOS_QUOTA_INACTIVE_MEM_BP, 3002)]


def test_pages_can_be_looked_at_once_more() -> None:
    """Pages that are not accessed are not hot, and those that are not cold."""
    hot, cold = module(damon_lru_sort, SimMachine(), filter_young_pages=True).new_schemes(DEFAULTS)
    young = damos_filter_type.DAMOS_FILTER_TYPE_YOUNG
    assert hot.ops_filters == [damos_filter(young, matching=False, allow=False)]
    assert cold.ops_filters == [damos_filter(young, matching=True, allow=False)]


def test_hot_and_cold_memory_is_told_apart() -> None:
    """Each has statistics of its own, those of its scheme; of the hot memory user space can move nothing."""
    machine = SimMachine(seed=1)
    machine.metrics["free_mem_rate"] = 100
    spawn(machine).access(HEAP, HEAP + 40 * MEBI, rate=1000)
    lru_sort = module(damon_lru_sort, machine, monitor_pids=(150,), cold_min_age=SECOND)
    ctx = lru_sort.apply_parameters()

    def watch() -> None:
        hot, cold = ctx.schemes
        assert (lru_sort.hot_stat, lru_sort.cold_stat) == (hot.stat, cold.stat)

    run(lru_sort, ctx, 20, watch)
    assert lru_sort.hot_stat.sz_tried >= 40 * MEBI
    assert 0 == lru_sort.hot_stat.sz_applied
    assert lru_sort.cold_stat.sz_applied == lru_sort.cold_stat.sz_tried >= 60 * MEBI


def test_the_hottest_and_the_coldest_regions_come_first() -> None:
    """Where time is short."""
    machine = SimMachine(seed=1)
    machine.metrics["free_mem_rate"] = 100
    process = spawn(machine)
    process.access(HEAP, HEAP + 20 * MEBI)
    process.access(HEAP + 20 * MEBI, HEAP + 40 * MEBI, rate=20)
    lru_sort = module(damon_lru_sort, machine, monitor_pids=(150,))
    ctx = lru_sort.apply_parameters()
    scores: list[tuple[int, ...]] = []

    def watch() -> None:
        hot, cold = ctx.schemes
        for t in ctx.adaptive_targets:
            regions = [t.regions.region(row) for row in range(len(t.regions))]
            hottest, warm, idle = (
                next(r for r in regions if r.start <= addr < r.end)
                for addr in (HEAP + 10 * MEBI, HEAP + 30 * MEBI, HEAP + 80 * MEBI)
            )
            order = [scheme_score(ctx, r, hot) for r in (hottest, warm, idle)]
            assert [scheme_score(ctx, r, cold) for r in (hottest, warm, idle)] == [99 - n for n in order]
            scores.append(tuple(order))

    run(lru_sort, ctx, 5, watch)
    hottest, warm, idle = scores[-1]
    assert hottest > warm > idle


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"sample_interval": 0}, "sample_interval"),
        ({"aggr_interval": 0}, "sampling interval"),
        ({"active_mem_bp": 10_001}, "active_mem_bp"),
        ({"addr_unit": 3}, "addr_unit"),
        ({"monitor_pids": ()}, "monitor_pids"),
    ],
)
def test_parameters_that_make_no_sense(parameters: dict[str, int], said: str) -> None:
    """Are refused when the module is enabled; 10000 and all of the address units that are powers of two are not."""
    machine = SimMachine()
    spawn(machine)
    lru_sort = module(damon_lru_sort, machine, **{"monitor_pids": (150,), **parameters})
    with pytest.raises(OSError, match=said) as raised:
        lru_sort.enable(True)
    assert errno.EINVAL == raised.value.errno
    assert not lru_sort.enabled()


def test_parameters_at_their_bounds() -> None:
    """Make sense."""
    machine = SimMachine()
    machine.metrics["free_mem_rate"] = 175
    spawn(machine)
    lru_sort = damon_lru_sort(machine=lambda: machine, monitor_pids=(150,), active_mem_bp=10_000, addr_unit=1 << 63)
    with shut_down(lru_sort):
        lru_sort.enable(True)
        lru_sort.addr_unit = 4096
        lru_sort.commit_inputs()
        assert lru_sort.enabled()


@pytest.mark.parametrize("end", [damon_lru_sort.shutdown, lambda lru_sort: lru_sort.enable(False)])
def test_a_commit_that_waits_for_the_watermarks_ends_with_the_module(end: Callable[[damon_lru_sort], None]) -> None:
    """It does not hold up the end for as long as it would wait, and is made or canceled."""
    machine = SimMachine()
    machine.metrics["free_mem_rate"] = 900
    spawn(machine)
    lru_sort = damon_lru_sort(machine=lambda: machine, monitor_pids=(150,), wmarks_interval=3600 * SECOND)
    lru_sort.enable(True)
    answers: list[int | None] = []

    def commit() -> None:
        try:
            lru_sort.commit_inputs()
            answers.append(None)
        except OSError as error:
            answers.append(error.errno)

    waiting = threading.Thread(target=commit)
    waiting.start()
    assert lru_sort.ctx is not None
    ctx = lru_sort.ctx
    eventually(lambda: len(ctx.call_controls) == 2, "the commit")
    end(lru_sort)
    waiting.join(60)
    assert answers in ([None], [errno.ECANCELED])
    assert not lru_sort.enabled()


# On a real process.


def active(machine: LinuxMachine, work: Workload, first: int, last: int) -> int:
    """How many pages [first, last) of the workload's memory are on the active list."""
    task = machine.get_task(work.pid)
    try:
        mm = task.get_mm()
        assert mm is not None
        memory = np.array([[work.base + first * PAGE_SIZE, work.base + last * PAGE_SIZE]], np.uint64)
        found = mm.page_filter(memory, [PageFilter("active", True, True)], True)
        return int((found[:, 1] - found[:, 0]).sum()) // PAGE_SIZE
    finally:
        task.put()


@pytest.mark.real
def test_cold_pages_of_a_real_process_leave_the_active_list(tmp_path: Path) -> None:
    """Hot memory is found and counted, and stays where it is."""
    lists = Path("/sys/kernel/mm/lru_gen/enabled")
    if lists.exists() and int(lists.read_text(), 16) & 1:
        pytest.skip("kernel lacks: an active list, it has generations")
    pages = 4096
    half = pages // 2
    data = tmp_path / "data"
    data.write_bytes(bytes(pages * PAGE_SIZE))
    with real_machine() as machine, Workload([build(tmp_path)], "file", pages, str(data)) as work:
        work.order("r", range(pages))
        for _ in range(3):
            data.read_bytes()
        assert active(machine, work, half, pages) >= half * 9 // 10
        lru_sort = damon_lru_sort(
            machine=lambda: machine,
            monitor_pids=(work.pid,),
            monitor_region_start=work.base,
            monitor_region_end=work.base + pages * PAGE_SIZE,
            cold_min_age=SECOND,
            wmarks_high=1000,
            wmarks_mid=999,
            wmarks_low=0,
        )
        with reading(work, range(half)), shut_down(lru_sort):
            lru_sort.enable(True)
            eventually(lambda: active(machine, work, half, pages) <= half // 20, "an inactive half", 60)
            eventually(lambda: lru_sort.cold_stat.sz_applied >= half * PAGE_SIZE // 2, "the cold half's statistics")
            eventually(lambda: lru_sort.hot_stat.sz_tried >= half * PAGE_SIZE // 2, "the hot half's statistics")
        assert 0 == lru_sort.hot_stat.sz_applied
        assert lru_sort.cold_stat.sz_applied <= lru_sort.cold_stat.sz_tried
