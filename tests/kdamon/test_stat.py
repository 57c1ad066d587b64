# SPDX-License-Identifier: GPL-2.0-only
"""damon_stat: numbers as the kernel computes them, of the processes that are named."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon import modules_common
from kdamon.core import damon_add_target, damon_new_ctx, damon_new_target, damon_start, damon_stop
from kdamon.damon import damon_ctx
from kdamon.kernel import time_after_eq
from kdamon.mm.sim.machine import SimMachine
from kdamon.regions import Regions
from kdamon.stat import bandwidth_of, damon_stat, idle_percentiles
from tests.support.contexts import stopped
from tests.support.modules import HEAP, MEBI, module, reading, real_machine, run, shut_down, spawn
from tests.support.tables import effort
from tests.support.waiting import eventually
from tests.support.workload import Workload, build

pytestmark = pytest.mark.real


#: Size, accesses in the aggregation interval, age.
Region = tuple[int, int, int]


def ctx_of(*targets: Sequence[Region], aggr_us: int = 100_000) -> damon_ctx:
    """A context with ``targets``."""
    ctx = damon_new_ctx()
    ctx.attrs.aggr_interval = aggr_us
    for regions in targets:
        t = damon_new_target()
        bounds = np.concatenate([[0], np.cumsum([size for size, _, _ in regions])]).astype(np.uint64)
        t.regions = Regions(bounds[:-1], bounds[1:])
        t.regions.nr_accesses = np.array([accesses for _, accesses, _ in regions], np.uint32)
        t.regions.age = np.array([age for _, _, age in regions], np.uint32)
        damon_add_target(ctx, t)
    return ctx


def kernels_percentiles(regions: Sequence[Region], aggr_us: int) -> list[int]:
    """The loop of the kernel, region by region."""

    def idle(region: Region) -> int:
        return -(region[2] + 1) if region[1] else region[2] + 1

    percentiles: list[int] = []
    total = sum(size for size, _, _ in regions)
    accounted = 0
    for region in sorted(regions, key=idle):
        accounted += region[0]
        while len(percentiles) <= accounted * 100 // total:
            percentiles.append(int(idle(region) * aggr_us / 1000))
    return percentiles


# The formulas.


def note_targets(ctx: damon_ctx, seen: list[list[int]]) -> None:
    """Append the processes of ``ctx`` to ``seen`` when they have changed."""
    pids = [t.pid for t in ctx.adaptive_targets]
    if not seen or seen[-1] != pids:
        seen.append(pids)


def test_bandwidth_takes_each_sampled_access_for_one_of_the_whole_region() -> None:
    """Sizes times accesses, over the aggregation interval."""
    assert 23 * 4096 * 10 == bandwidth_of(ctx_of([(4096, 20, 0), (8192, 0, 5), (4096, 3, 1)]))
    assert 4096 == bandwidth_of(ctx_of([(4096, 1, 0)], [(4096, 2, 0)], aggr_us=3_000_000))
    assert ((1 << 46) * 2000 * 1_000_000) % (1 << 64) == bandwidth_of(ctx_of([(1 << 46, 2000, 0)], aggr_us=1))


def test_percentiles_go_from_the_longest_accessed_to_the_longest_idle_memory() -> None:
    """Negative where memory is accessed, and one aggregation more than the region's age."""
    ctx = ctx_of([(50, 0, 9), (25, 3, 4), (25, 1, 0)])
    percentiles = idle_percentiles(ctx)
    assert (-500,) * 26 + (-100,) * 25 + (1000,) * 50 == percentiles


def test_percentiles_are_of_all_processes_together() -> None:
    """Whichever comes first."""
    assert (-200,) * 26 + (200,) * 75 == idle_percentiles(ctx_of([(75, 0, 1)], [(25, 1, 1)]))


def test_there_are_no_percentiles_of_nothing() -> None:
    """Without any region the last ones stay."""
    assert idle_percentiles(ctx_of()) is None
    assert idle_percentiles(ctx_of([])) is None


def test_memory_of_which_nothing_is_known_is_left_out() -> None:
    """Unknown is not idle; the last percentiles stay if all memory is unknown."""
    ctx = ctx_of([(50, 0, 9), (25, 3, 4), (25, 0, 0)])
    [regions] = [t.regions for t in ctx.adaptive_targets]
    regions.nr_unknown = np.array([10, 0, 9], np.uint32)
    assert (-500,) * 51 + (100,) * 50 == idle_percentiles(ctx)
    regions.nr_unknown = np.array([20, 20, 10], np.uint32)
    assert idle_percentiles(ctx) is None


def test_shared_memory_is_not_idle() -> None:
    """Of half of the memory samples are unknown; of the rest a half is accessed."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.access(HEAP, HEAP + 75 * MEBI)
    process.unknown = [(HEAP, HEAP + 50 * MEBI)]
    stat = module(damon_stat, machine, monitor_pids=(150,))
    run(stat, stat.build_ctx(), 20)
    assert 45 <= sum(ms < 0 for ms in stat.memory_idle_ms_percentiles) <= 55
    assert stat.estimated_memory_bandwidth == pytest.approx(25 * MEBI * 20 * 1e6 / stat.aggr_interval_us, rel=0.1)


@effort(300)
@given(
    st.lists(
        st.tuples(st.integers(1, 1 << 40), st.integers(0, 3), st.integers(0, 1 << 20)),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 10_000_000),
)
def test_percentiles_are_the_kernels(regions: list[Region], aggr_us: int) -> None:
    """Of any regions."""
    percentiles = idle_percentiles(ctx_of(regions, aggr_us=aggr_us))
    assert percentiles is not None
    assert list(percentiles) == kernels_percentiles(regions, aggr_us)


# Which memory.


def test_regions_are_what_is_mapped() -> None:
    """From the beginning, and some seconds later also when that changes."""
    machine = SimMachine(seed=1)
    process = machine.spawn(
        [(MEBI, 2 * MEBI), (20 * MEBI, 30 * MEBI), (HEAP, HEAP + MEBI), (1 << 46, (1 << 46) + MEBI)]
    )
    stat = module(damon_stat, machine, monitor_pids=(process.pid,))
    ctx = stat.build_ctx()
    totals: list[int] = []

    def watch() -> None:
        totals.append(ctx.adaptive_targets[0].regions.total())
        if machine.clock.now() > 2e9:
            process.mmap([(20 * MEBI, 25 * MEBI), (1 << 46, (1 << 46) + MEBI)])

    run(stat, ctx, 10, watch)
    assert 13 * MEBI == totals[0]
    assert 6 * MEBI == totals[-1]


# The module, in simulated time.


def test_a_known_workload() -> None:
    """A quarter is always accessed, and all of it counts at every sample."""
    machine = SimMachine(seed=1)
    spawn(machine).access(HEAP, HEAP + 25 * MEBI)
    stat = module(damon_stat, machine, monitor_pids=(150,))
    run(stat, stat.build_ctx(), 40)
    busy = sum(ms < 0 for ms in stat.memory_idle_ms_percentiles)
    assert 23 <= busy <= 27
    assert stat.memory_idle_ms_percentiles[100] > 30_000
    # Of a tuned sampling interval there is one access each.
    assert stat.estimated_memory_bandwidth == pytest.approx(25 * MEBI * 20 * 1e6 / stat.aggr_interval_us, rel=0.1)


def test_numbers_come_more_than_five_seconds_apart_with_an_aggregation() -> None:
    """They are those of complete counters, and the interval that they were counted in is shown with them."""
    machine = SimMachine(seed=1)
    spawn(machine).access(HEAP, HEAP + 50 * MEBI, rate=100)
    stat = module(damon_stat, machine, monitor_pids=(150,))
    ctx = stat.build_ctx()
    seen: list[tuple[float, int]] = []

    def watch() -> None:
        found = idle_percentiles(ctx)
        if stat.memory_idle_ms_percentiles == found and stat.estimated_memory_bandwidth == bandwidth_of(ctx):
            assert time_after_eq(ctx.passed_sample_intervals, ctx.next_aggregation_sis)
            assert stat.aggr_interval_us == ctx.attrs.aggr_interval
            seen.append((machine.clock.now() / 1e9, stat.aggr_interval_us))

    run(stat, ctx, 30, watch)
    times = [time for time, _ in seen]
    assert len(seen) >= 4
    assert times[0] > 5
    for (before, _), (after, aggr_us) in pairwise(seen):
        assert 5 < after - before <= 5 + 2 * aggr_us / 1e6 + 1


def test_results_outlive_the_processes() -> None:
    """They stay as they were."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    process.access(HEAP, HEAP + 50 * MEBI)
    stat = module(damon_stat, machine, monitor_pids=(150,))
    ctx = stat.build_ctx()
    run(stat, ctx, 8, lambda: process.exit() if machine.clock.now() > 7e9 else None)
    assert stat.estimated_memory_bandwidth > 0
    assert not stat.enabled()
    assert -1 == stat.kdamond_pid()


# Which processes.


def test_nothing_is_monitored_without_a_named_process() -> None:
    """Whole-machine monitoring is not to be had by accident."""
    stat = module(damon_stat, SimMachine())
    with pytest.raises(OSError, match="monitor_pids") as raised:
        stat.enable(True)
    assert errno.EINVAL == raised.value.errno
    assert not stat.enabled()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"monitor_pids": (150, 7)}, "monitor_pids: there is no simulated process 7"),
        ({"monitor_cgroup": "/gone"}, "monitor_cgroup: there is no control group"),
        ({"monitor_cgroup": "/empty"}, "no process of /empty can be monitored now: there is no simulated process 8"),
    ],
)
def test_what_is_named_has_to_exist(parameters: dict[str, object], said: str) -> None:
    """Each process by itself; of a control group at least one."""
    machine = SimMachine()
    spawn(machine)
    machine.cgroups = {"/empty": (8,)}
    with pytest.raises(OSError, match=said) as raised:
        module(damon_stat, machine, **parameters).enable(True)
    assert errno.EINVAL == raised.value.errno


def test_a_control_groups_processes_are_followed() -> None:
    """Those that come later are monitored, those that leave or end are not; a process that is named stays."""
    machine = SimMachine(seed=1)
    for pid in (1, 2, 3, 4):
        spawn(machine, pid)
    machine.cgroups = {"/service": (1, 2, 99)}
    stat = module(damon_stat, machine, monitor_pids=(4,), monitor_cgroup="/service")
    ctx = stat.build_ctx()
    seen: list[list[int]] = []

    def watch() -> None:
        note_targets(ctx, seen)
        assert all(len(t.regions) for t in ctx.adaptive_targets)
        if machine.clock.now() > 3e9:
            machine.cgroups = {"/service": (2, 3)}
        if machine.clock.now() > 9e9:
            machine.processes[2].exit()
        if machine.clock.now() > 15e9:
            machine.cgroups = {}

    run(stat, ctx, 21, watch)
    assert [[4, 1, 2], [4, 2, 3], [4, 3], [4]] == seen


def test_a_control_group_of_very_many_processes_takes_no_more_descriptors_than_there_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A user may have any number in it: those of the lowest numbers are monitored, until they end; it is said once."""
    monkeypatch.setattr(modules_common, "_MOST_MEMBERS", 3)
    machine = SimMachine(seed=1)
    for pid in range(1, 9):
        spawn(machine, pid)
    machine.cgroups = {"/service": tuple(range(1, 9))}
    stat = module(damon_stat, machine, monitor_cgroup="/service")
    ctx = stat.build_ctx()
    seen: list[list[int]] = []

    def watch() -> None:
        note_targets(ctx, seen)
        if machine.clock.now() > 3e9:
            machine.processes[2].exit()

    run(stat, ctx, 11, watch)
    assert [[1, 2, 3], [1, 3, 4]] == seen
    sentence = "damon_stat: of /service only 3 processes are monitored at once; name a smaller control group"
    assert [sentence] == [record.message for record in caplog.records if record.levelname == "WARNING"]


def test_memory_of_processes_that_ended_does_not_count() -> None:
    """As idle it would hide the others; nor does another process that gets such a number, as no user named it."""
    machine = SimMachine(seed=1)
    for pid in (1, 2):
        spawn(machine, pid).access(HEAP, HEAP + 100 * MEBI)
    stat = module(damon_stat, machine, monitor_pids=(1, 2))
    ctx = stat.build_ctx()
    seen: list[list[int]] = []

    def watch() -> None:
        note_targets(ctx, seen)
        if machine.clock.now() > 8e9 and machine.processes[1].alive:
            machine.processes[1].exit()
        elif machine.clock.now() > 9e9:
            spawn(machine, 1)

    run(stat, ctx, 16, watch)
    assert [[1, 2], [2]] == seen
    assert sum(ms < 0 for ms in stat.memory_idle_ms_percentiles) >= 95


def test_a_process_without_memory_is_left_without_regions() -> None:
    """As one that ended and was not reaped."""
    machine = SimMachine(seed=1)
    process = spawn(machine)
    stat = module(damon_stat, machine, monitor_pids=(150,))
    ctx = stat.build_ctx()
    nr_regions: list[int] = []

    def watch() -> None:
        nr_regions.append(len(ctx.adaptive_targets[0].regions))
        if machine.clock.now() > 3e9:
            process.mmap([])

    run(stat, ctx, 12, watch)
    assert nr_regions[0] >= 3
    assert 0 == nr_regions[-1]


def test_a_control_group_without_processes_waits_for_one() -> None:
    """Also when it goes and comes again, as that of a service that is started again."""
    machine = SimMachine(seed=1)
    machine.cgroups = {"/service": ()}
    stat = module(damon_stat, machine, monitor_cgroup="/service")
    ctx = stat.build_ctx()
    seen: list[list[int]] = []

    def watch() -> None:
        note_targets(ctx, seen)
        if machine.clock.now() > 16e9:
            machine.cgroups = {"/service": (2,)}
        elif machine.clock.now() > 9e9:
            machine.cgroups = {}
        elif machine.clock.now() > 3e9:
            machine.cgroups = {"/service": (1,)}

    for pid in (1, 2):
        spawn(machine, pid)
    run(stat, ctx, 25, watch)
    assert [[], [1], [], [2]] == seen


def test_many_processes_share_the_regions() -> None:
    """Each has three at least, and all together leave room to separate parts of the memory."""
    machine = SimMachine(seed=1)
    pids = tuple(range(1, 51))
    for pid in pids:
        machine.spawn([(n * 16 * MEBI, n * 16 * MEBI + MEBI) for n in range(1, 101)], pid)
    stat = module(damon_stat, machine, monitor_pids=pids)
    ctx = stat.build_ctx()
    nr_regions: list[list[int]] = []
    run(stat, ctx, 6, lambda: nr_regions.append([len(t.regions) for t in ctx.adaptive_targets]))
    assert min(map(min, nr_regions)) >= 3
    assert max(map(sum, nr_regions)) <= ctx.attrs.max_nr_regions


# With others, in real time.


def test_only_one_may_monitor_while_a_module_does() -> None:
    """Neither another module nor another kdamond, and no module while one runs."""
    machine = SimMachine()
    spawn(machine)
    one, other = (damon_stat(machine=lambda: machine, monitor_pids=(150,)) for _ in range(2))
    ctx = module(damon_stat, machine, monitor_pids=(150,)).build_ctx()
    with shut_down(one, other), stopped(ctx):
        one.enable(True)
        one.enable(True)
        assert one.enabled()
        assert one.kdamond_pid() > 0
        with pytest.raises(OSError, match="stop it before you start an exclusive module") as raised:
            other.enable(True)
        assert errno.EBUSY == raised.value.errno
        with pytest.raises(OSError, match="stop it before you start an exclusive module"):
            damon_start([ctx], exclusive=False)
        one.enable(False)
        assert -1 == one.kdamond_pid()
        ctx = other.build_ctx()
        damon_start([ctx], exclusive=False)
        with pytest.raises(OSError, match="stop it before you start an exclusive module"):
            one.enable(True)
        damon_stop([ctx])
        one.enable(True)


def test_a_module_that_was_shut_down_stays_off() -> None:
    """Also against a write that comes at the same time."""
    machine = SimMachine()
    spawn(machine)
    stat = damon_stat(machine=lambda: machine, monitor_pids=(150,))
    stat.enable(True)
    stat.shutdown()
    assert not stat.enabled()
    with pytest.raises(OSError, match="unmounted"):
        stat.enable(True)


# On a real process.


@pytest.mark.real
def test_a_real_process(tmp_path: Path) -> None:
    """Of 16 MiB one half is read over and over; the numbers say about that."""
    pages = 4096
    with real_machine() as machine, Workload([build(tmp_path)], "anon", pages) as work:
        work.order("w", range(pages))
        stat = damon_stat(machine=lambda: machine, monitor_pids=(work.pid,))
        with reading(work, range(pages // 2)), shut_down(stat):
            stat.enable(True)
            eventually(lambda: stat.aggr_interval_us, "the first numbers", 60)
        samples_per_second = 20 * 1e6 / stat.aggr_interval_us
        assert 0 < stat.estimated_memory_bandwidth < 2 * pages * 4096 * samples_per_second
        idle = stat.memory_idle_ms_percentiles
        assert idle[0] < 0 < idle[100]
        assert sorted(idle) == list(idle)
        assert 20 <= sum(ms < 0 for ms in idle) <= 80
