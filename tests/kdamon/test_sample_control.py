# SPDX-License-Identifier: GPL-2.0-only
"""Sample control: which reports count, by whom they were made, and monitoring by faults instead of accessed bits."""

from __future__ import annotations

import errno
import threading
from typing import Any

import numpy as np
import pytest
from attrs import asdict
from hypothesis import given
from hypothesis import strategies as st

from kdamon.core import (
    damon_commit_ctx,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    report_counters,
    run_ctx,
)
from kdamon.damon import (
    PrimitivesEnabled,
    damon_access_report,
    damon_ctx,
    damon_ops_id,
    damon_sample_control,
    damon_sample_filter,
    damon_sample_filter_type,
)
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.reports.deliver import damon_report_access
from kdamon.reports.record import report_array
from kdamon.sample_control import (
    damon_add_sample_filter,
    damon_commit_sample_control,
    damon_new_sample_filter,
    sample_primitive,
)
from kdamon.sample_control import damon_sample_filter_out as filter_out
from tests.support.contexts import (
    SteppedClock,
    first,
    in_kdamond,
    plain_ctx,
    recorded,
    report_ops,
    sim_ctx,
    stepped,
)
from tests.support.tables import effort

CPUMASK = damon_sample_filter_type.DAMON_FILTER_TYPE_CPUMASK
THREADS = damon_sample_filter_type.DAMON_FILTER_TYPE_THREADS
WRITE = damon_sample_filter_type.DAMON_FILTER_TYPE_WRITE

MIB = 1 << 20
BASE = 0x7F00_0000_0000


def kept(filters: list[damon_sample_filter], **columns: Any) -> bool:
    """Whether a report with ``columns`` passes ``filters``."""
    return not filter_out(report_array(1, **columns), damon_sample_control(sample_filters=filters))[0]


# Filters.


@pytest.mark.parametrize(
    ("matching", "allow", "write_kept", "read_kept"),
    [(True, True, True, False), (True, False, False, True), (False, False, True, False), (False, True, False, True)],
)
def test_a_filter_answers_allow_for_what_it_matches_and_the_opposite_for_the_rest(
    matching: bool, allow: bool, write_kept: bool, read_kept: bool
) -> None:
    """The documented meaning; the development tree's code keeps reads in the first case and discards them all next."""
    f = [damon_new_sample_filter(WRITE, matching, allow)]
    assert (write_kept, read_kept) == (kept(f, write=True), kept(f, write=False))


def test_no_filter_keeps_everything() -> None:
    assert kept([])


def test_the_first_rejection_discards_whatever_later_filters_say() -> None:
    """An AND chain: writes, and only CPUs 2 and 3, and not thread 7."""
    filters = [
        damon_new_sample_filter(WRITE, True, True),
        damon_new_sample_filter(CPUMASK, True, True, cpumask=(2, 3)),
        damon_new_sample_filter(THREADS, True, False, tid_arr=(7,)),
    ]
    assert kept(filters, write=True, cpu=2, tid=5)
    assert not kept(filters, write=False, cpu=2, tid=5)
    assert not kept(filters, write=True, cpu=1, tid=5)
    assert not kept(filters, write=True, cpu=3, tid=7)


@pytest.mark.parametrize("filters", [(CPUMASK, "cpumask", (0, 1)), (THREADS, "tid_arr", (1, 2))])
def test_what_is_unknown_was_made_by_nobody_that_a_filter_names(
    filters: tuple[damon_sample_filter_type, str, tuple[int, ...]],
) -> None:
    """Nor does naming the number that stands for unknown help."""
    filter_type, name, numbers = filters
    named = [damon_new_sample_filter(filter_type, True, True, **{name: numbers})]
    assert not kept(named, cpu=-1, tid=0)
    assert not kept([damon_sample_filter(THREADS, True, True, tid_arr=(0, 5))], tid=0)


def test_a_filter_of_threads_has_to_name_one() -> None:
    with pytest.raises(OSError, match="names no thread") as raised:
        damon_new_sample_filter(THREADS, True, True)
    assert errno.EINVAL == raised.value.errno


def passes(report: dict[str, Any], filters: list[damon_sample_filter]) -> bool:
    """The rule for one report, by hand."""
    for f in filters:
        raw = {
            WRITE: report["write"],
            CPUMASK: report["cpu"] in f.cpumask,
            THREADS: report["tid"] in f.tid_arr,
        }[f.type]
        if (f.allow if raw == f.matching else not f.allow) is False:
            return False
    return True


some_filters = st.lists(
    st.builds(
        damon_sample_filter,
        type=st.sampled_from([CPUMASK, THREADS, WRITE]),
        matching=st.booleans(),
        allow=st.booleans(),
        cpumask=st.lists(st.integers(0, 3), max_size=3, unique=True).map(tuple),
        tid_arr=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    ),
    max_size=4,
)
some_reports = st.lists(
    st.fixed_dictionaries({"write": st.booleans(), "cpu": st.integers(-1, 4), "tid": st.integers(0, 5)}), max_size=20
)


@effort(100)
@given(some_reports, some_filters)
def test_a_batch_is_filtered_as_report_after_report(
    reports: list[dict[str, Any]], filters: list[damon_sample_filter]
) -> None:
    batch = report_array(len(reports), **{name: [r[name] for r in reports] for name in ("write", "cpu", "tid")})
    expected = [not passes(r, filters) for r in reports]
    assert expected == filter_out(batch, damon_sample_control(sample_filters=filters)).tolist()


def report(addr: int, **more: Any) -> damon_access_report:
    return damon_access_report(pid=more.pop("pid", 0), addr=addr, size=1, **more)


def test_filtered_reports_are_counted_as_such_and_ineligible_ones_are_not_filtered() -> None:
    """Also one that lies nowhere: it was discarded before anybody looked where it lies."""

    def prepare(_ctx: damon_ctx) -> None:
        for r in (report(5, write=True), report(5), report(1500), report(9999), report(5, pid=3)):
            damon_report_access(r)

    ctx = plain_ctx((0, 1000), (1000, 2000), ops=report_ops(prepare_access_checks=prepare))
    ctx.clock = SimMachine().clock
    damon_add_sample_filter(ctx.sample_control, damon_new_sample_filter(WRITE, True, True))
    run_ctx(ctx, 0.001)
    found = {name: n for name, n in asdict(report_counters(ctx)).items() if n}
    assert {"accepted": 5, "applied": 1, "filtered": 3, "ineligible": 1} == found


# Commit.


def test_a_commit_copies_filters() -> None:
    """What the source becomes afterwards is its own business."""
    src, dst = damon_sample_control(), damon_sample_control()
    src.primitives_enabled = PrimitivesEnabled(page_table=False, page_fault=True)
    damon_add_sample_filter(src, damon_new_sample_filter(CPUMASK, True, True, cpumask=(1,)))
    damon_commit_sample_control(dst, src)
    assert dst == src
    src.sample_filters[0].allow = False
    src.primitives_enabled.page_fault = False
    assert dst.sample_filters[0].allow
    assert dst.primitives_enabled.page_fault


def test_filters_change_under_a_running_kdamond() -> None:
    ctx = plain_ctx((0, 1000), aggr_interval=1_000_000)
    with stepped(ctx) as clock:
        for filters, expected in (([], 1), ([damon_new_sample_filter(WRITE, True, True)], 1), ([], 2)):
            src = plain_ctx((0, 1000), aggr_interval=1_000_000)
            src.sample_control.sample_filters = filters
            damon_commit_ctx_soon(ctx, src, clock)
            damon_report_access(report(5))
            clock.step()
            assert expected == int(first(ctx).regions.nr_accesses[0])


# Monitoring by faults.


def process_of(machine: SimMachine) -> SimProcess:
    """64 MiB; 16 are written by CPU 0, the next 16 by CPU 1, the next 16 only read, the rest is idle."""
    process = machine.spawn([(0x40_0000, 0x41_0000), (BASE, BASE + 64 * MIB), (0x7FFF_0000_0000, 0x7FFF_0001_0000)])
    process.access(BASE, BASE + 16 * MIB, rate=2000, cpu=0, tid=11)
    process.access(BASE + 16 * MIB, BASE + 32 * MIB, rate=2000, cpu=1, tid=12)
    process.access(BASE + 32 * MIB, BASE + 48 * MIB, rate=2000, write=False, cpu=1, tid=12)
    return process


def hot(ctx: damon_ctx, seconds: float = 2) -> list[float]:
    """Monitor; the mean share of samples that saw an access in each quarter of the 64 MiB, in the last second."""
    with recorded(ctx) as recorder:
        run_ctx(ctx, seconds)
    assert ctx.kdamond_error is None
    shares = np.zeros(4)
    snapshots = recorder.snapshots[-10:]
    for snapshot in snapshots:
        regions = snapshot.regions
        for i in range(4):
            low, high = np.uint64(BASE + 16 * i * MIB), np.uint64(BASE + 16 * (i + 1) * MIB)
            overlap = np.minimum(regions.end, high).astype(float) - np.maximum(regions.start, low).astype(float)
            shares[i] += (np.maximum(overlap, 0) * regions.nr_accesses).sum() / (16 * MIB * 20)
    return (shares / len(snapshots)).round(1).tolist()


def fault_ctx(*filters: damon_sample_filter) -> damon_ctx:
    machine = SimMachine(seed=3)
    ctx = sim_ctx(process_of(machine), machine)
    ctx.sample_control = damon_sample_control(PrimitivesEnabled(page_table=False, page_fault=True), list(filters))
    return ctx


def test_accessed_bits_see_reads_and_writes() -> None:
    machine = SimMachine(seed=3)
    assert [1.0, 1.0, 1.0, 0.0] == hot(sim_ctx(process_of(machine), machine))


def test_faults_see_writes() -> None:
    """Reads of memory that is there do not fault."""
    ctx = fault_ctx()
    assert [1.0, 1.0, 0.0, 0.0] == hot(ctx)
    counters = report_counters(ctx)
    assert counters.applied > 0.9 * counters.accepted > 0
    assert 0 == ctx.nr_unknown < ctx.nr_samples


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([damon_new_sample_filter(WRITE, True, True)], [1.0, 1.0, 0.0, 0.0]),
        ([damon_new_sample_filter(CPUMASK, True, True, cpumask=(0,))], [1.0, 0.0, 0.0, 0.0]),
        ([damon_new_sample_filter(CPUMASK, True, False, cpumask=(0,))], [0.0, 1.0, 0.0, 0.0]),
        ([damon_new_sample_filter(THREADS, True, True, tid_arr=(12, 13))], [0.0, 1.0, 0.0, 0.0]),
        ([damon_new_sample_filter(WRITE, False, True)], [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_faults_are_filtered_by_who_made_them(filters: list[damon_sample_filter], expected: list[float]) -> None:
    ctx = fault_ctx(*filters)
    assert expected == hot(ctx)
    assert (report_counters(ctx).filtered > 0) == (expected[:2] != [1.0, 1.0])


def test_what_cannot_be_armed_is_unknown_not_accessed() -> None:
    ctx = fault_ctx()
    assert ctx.machine is not None
    process = ctx.machine.get_task(first(ctx).pid)
    assert isinstance(process, SimProcess)
    process.unknown.append((BASE, BASE + 16 * MIB))
    assert [0.0, 1.0, 0.0, 0.0] == hot(ctx)
    assert 0 < ctx.nr_unknown < ctx.nr_samples


def test_with_no_primitive_only_what_others_report_counts() -> None:
    """Pages are neither sampled nor made to fault."""
    machine = SimMachine(seed=3)
    ctx = sim_ctx(process_of(machine), machine)
    ctx.sample_control.primitives_enabled = PrimitivesEnabled(page_table=False)
    assert [0.0, 0.0, 0.0, 0.0] == hot(ctx)
    assert 0 == ctx.nr_samples


def test_page_fault_goes_before_page_table() -> None:
    """Both on is what some clients write when they mean page_fault."""
    ctx = fault_ctx()
    ctx.sample_control.primitives_enabled.page_table = True
    assert [1.0, 1.0, 0.0, 0.0] == hot(ctx)


def test_the_primitive_changes_under_a_running_kdamond() -> None:
    """A commit that brings no process makes the kdamond take it anew, by the other primitive."""
    machine = SimMachine(seed=3)
    process = process_of(machine)
    ctx = sim_ctx(process, machine)
    ctx.clock = clock = SteppedClock()
    process.clock = clock  # type: ignore[assignment]
    with stepped(ctx):
        for page_fault, expected in ((True, "page_fault"), (False, "page_table")):
            src = damon_new_ctx()
            src.ops = ctx.ops
            damon_set_attrs(src, ctx.attrs)
            src.adaptive_targets.append(damon_new_target())
            first(src).pid = process.pid
            src.sample_control.primitives_enabled = PrimitivesEnabled(not page_fault, page_fault)
            damon_commit_ctx_soon(ctx, src, clock)
            clock.step()
            assert expected == process.primitive


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], "page_fault"),
        ([("write", True, True)], "page_fault_writes"),
        ([("write", False, False)], "page_fault_writes"),
        ([("write", False, True)], "page_fault"),
        ([("write", True, False)], "page_fault"),
        ([("cpumask", True, True), ("write", True, True)], "page_fault_writes"),
        ([("cpumask", True, True)], "page_fault"),
    ],
)
def test_reads_do_not_fault_where_only_writes_count(filters: list[tuple[str, bool, bool]], expected: str) -> None:
    """A filter on reads discards all of them, be it by what it allows or by what it rejects."""
    control = damon_sample_control(PrimitivesEnabled(page_table=True, page_fault=True))
    for kind, matching, allow in filters:
        damon_add_sample_filter(control, damon_new_sample_filter(damon_sample_filter_type(kind), matching, allow, (0,)))
    assert expected == sample_primitive(control)
    control.primitives_enabled.page_fault = False
    assert "page_table" == sample_primitive(control)


def damon_commit_ctx_soon(ctx: damon_ctx, src: damon_ctx, clock: SteppedClock) -> None:
    """Commit in the kdamond, which the caller's clock has to wake up."""
    thread = threading.Thread(target=lambda: in_kdamond(ctx, lambda: damon_commit_ctx(ctx, src)))
    thread.start()
    while thread.is_alive():
        clock.step()
        thread.join(0.05)


def test_the_set_for_reports_samples_nothing_and_needs_no_process() -> None:
    ctx = plain_ctx((0, 1000), (1000, 2000))
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_REPORTS)
    first(ctx).pid = 1 << 30
    assert ctx.ops is not None
    assert not ctx.ops.needs_task
    with stepped(ctx) as clock:
        damon_report_access(report(1500, pid=1 << 30))
        damon_report_access(report(1500, pid=5))
        clock.step()
        assert 1 == first(ctx).regions.nr_accesses.sum()
        assert 1 == report_counters(ctx).ineligible
