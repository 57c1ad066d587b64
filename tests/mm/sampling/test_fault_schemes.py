# SPDX-License-Identifier: GPL-2.0-only
"""Reports drive schemes on real processes: faults, filtered faults, and what others report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdamon.core import damon_call, damos_walk, report_counters
from kdamon.damon import (
    PrimitivesEnabled,
    damon_call_control,
    damon_ctx,
    damon_filter,
    damon_filter_type,
    damon_probe,
    damon_region,
    damon_sample_control,
    damon_sample_filter,
    damon_sample_filter_type,
    damon_target,
    damos,
    damos_access_pattern,
    damos_filter,
    damos_filter_type,
    damos_quota,
    damos_walk_control,
)
from kdamon.mm import OLD
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.reports.deliver import report_accesses
from kdamon.reports.record import report_array
from kdamon.sample_control import damon_new_sample_filter
from tests.support.process_memory import IN_BATCHES, PAGE, SIZE, present, smaps
from tests.support.process_memory import PAGES as ALL
from tests.support.process_schemes import HOT, monitoring, pageout, poll, stat_of
from tests.support.sampling import mm_of, pages_of, sample, task_of
from tests.support.workload import MONITOR_CPU, TARGET_CPU, Workload

pytestmark = pytest.mark.real


WRITE = damon_sample_filter_type.DAMON_FILTER_TYPE_WRITE
CPUMASK = damon_sample_filter_type.DAMON_FILTER_TYPE_CPUMASK
THREADS = damon_sample_filter_type.DAMON_FILTER_TYPE_THREADS


def by_faults(*filters: damon_sample_filter) -> damon_sample_control:
    return damon_sample_control(PrimitivesEnabled(page_table=False, page_fault=True), list(filters))


def in_kdamond(ctx: damon_ctx, act: Callable[[], None]) -> None:
    damon_call(ctx, damon_call_control(lambda _: act()))


def tried_pages(ctx: damon_ctx, work: Workload) -> npt.NDArray[np.bool_]:
    """Which pages of the workload's memory the scheme tried when it was next applied, shape (ALL,)."""
    tried = np.zeros(ALL, np.bool_)

    def walk(_: object, _ctx: damon_ctx, _t: damon_target, r: damon_region, _s: damos, _passed: int) -> None:
        tried[(r.start - work.base) // PAGE : (r.end - work.base) // PAGE] = True

    damos_walk(ctx, damos_walk_control(walk))
    return tried


# Nothing is sampled, but the processes are watched.


def test_faults_are_fetched_beside_weights(faulting: LinuxMachine, program: Path) -> None:
    """Weights turn the check of accesses off; first touches are reports all the same, and none piles up."""
    anon = damon_filter(damon_filter_type.DAMON_FILTER_TYPE_ANON, True, True)
    with Workload([program], "untouched", ALL) as work:
        probes = [damon_probe(weight=1, filters=[anon])]
        with monitoring(faulting, work, primitive="page_fault", probes=probes) as ctx:
            work.order("w", range(HOT))
            poll(lambda: report_counters(ctx).applied >= HOT)
            assert 0 == report_counters(ctx).late


def test_faults_of_a_pause_are_late(faulting: LinuxMachine, program: Path) -> None:
    """They are not taken for accesses of the time after it, and none piles up."""
    with Workload([program], "untouched", ALL) as work, monitoring(faulting, work, primitive="page_fault") as ctx:
        in_kdamond(ctx, lambda: setattr(ctx, "pause", True))
        work.order("w", range(HOT))
        poll(lambda: report_counters(ctx).late >= HOT)
        in_kdamond(ctx, lambda: setattr(ctx, "pause", False))
        work.order("w", range(HOT, 2 * HOT))
        poll(lambda: report_counters(ctx).applied >= HOT)
        assert report_counters(ctx).applied < 2 * HOT


# Faults.


@pytest.mark.parametrize(
    ("sample_filter", "seen"),
    [
        (lambda _: damon_new_sample_filter(WRITE, True, True), True),
        (lambda _: damon_new_sample_filter(CPUMASK, True, True, cpumask=(TARGET_CPU,)), True),
        (lambda _: damon_new_sample_filter(CPUMASK, True, True, cpumask=(MONITOR_CPU,)), False),
        (lambda work: damon_new_sample_filter(THREADS, True, True, tid_arr=(work.pid,)), True),
        (lambda work: damon_new_sample_filter(THREADS, True, False, tid_arr=(work.pid,)), False),
    ],
    ids=["writes", "its CPU", "another CPU", "its thread", "other threads"],
)
def test_filters_on_faults_say_what_is_idle(
    faulting: LinuxMachine, program: Path, sample_filter: Callable[[Workload], damon_sample_filter], seen: bool
) -> None:
    """What counts as accessed is not tried by a scheme on idle memory; all the rest is, and a walk shows it."""
    with Workload([program], "anon", ALL) as work:
        idle = damos(damos_access_pattern(max_nr_accesses=0, min_age_region=2))
        with monitoring(
            faulting, work, idle, primitive="page_fault", sample_control=by_faults(sample_filter(work))
        ) as ctx:

            def found() -> bool:
                for _ in range(20):
                    work.order("w", range(HOT))
                    time.sleep(0.005)
                tried = tried_pages(ctx, work)
                return bool(tried[2 * HOT :].all()) and np.count_nonzero(tried[:HOT]) in (range(64) if seen else [HOT])

            poll(found)
            assert (report_counters(ctx).filtered > 0) is not seen


def test_a_quota_a_young_filter_and_writes_go_together(
    faulting: LinuxMachine,
    program: Path,
    data: Path,
) -> None:
    """Of a file, what is not written is paged out, but for what is read, and no more than the quota allows."""
    allowed = 1024 * PAGE
    young = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_YOUNG, matching=True, allow=False)
    with Workload([program], "readonly", ALL, str(data)) as work:
        work.order("h", range(HOT))
        out = pageout(ops_filters=[young], quota=damos_quota(reset_interval=200, sz=allowed))
        control = by_faults(damon_new_sample_filter(WRITE, True, True))
        with monitoring(faulting, work, out, primitive="page_fault", sample_control=control) as ctx:
            poll(lambda: np.count_nonzero(present(work, HOT)) <= IN_BATCHES)
            stat = stat_of(ctx, out)
        assert (ALL - HOT - IN_BATCHES) * PAGE <= stat.sz_applied <= (stat.qt_exceeds + 1) * allowed
        assert np.count_nonzero(present(work, 0, HOT)) >= HOT - IN_BATCHES


@pytest.mark.parametrize("kind", ["anon", "thp"])
def test_huge_pages_are_not_taken_for_cold(faulting: LinuxMachine, program: Path, kind: str) -> None:
    """They cannot be sampled unless reads fault; small pages beside them can."""
    with Workload([program], kind, ALL) as work, task_of(faulting, work.pid) as task:
        huge = int(smaps(work, "AnonHugePages"))
        if kind == "thp" and not huge:
            pytest.skip("kernel lacks: transparent huge pages, or free ones")
        ranges = np.array([[0, work.base], [work.base, work.base + SIZE]], np.uint64)
        _, applied = mm_of(task).advise("cold", ranges).tolist()
        assert applied <= SIZE - (0 if faulting.faults_of_reads else huge)
        assert ("thp" == kind and not faulting.faults_of_reads) or applied >= SIZE - IN_BATCHES * PAGE
        assert int(smaps(work, "AnonHugePages")) == huge


def test_huge_pages_of_a_file_that_is_mapped_privately_are_known(
    faulting: LinuxMachine, program: Path, directory: Path
) -> None:
    """A write makes a copy of a page, which faults without our help."""
    path = directory / "private"
    with path.open("wb") as file:
        file.write(b"\1" * SIZE)
        file.flush()
        os.fsync(file.fileno())
    with Workload([program], "private", ALL, str(path)) as work, task_of(faulting, work.pid) as task:
        mm, every = mm_of(task), np.arange(ALL)
        if smaps(work, "FilePmdMapped") < SIZE:
            pytest.skip("kernel lacks: huge pages of files on this file system")
        faults, answers = sample(faulting, mm, work, every, lambda: work.order("r", every))
        assert (0, [OLD] * ALL) == (len(faults), answers.tolist())
        faults, answers = sample(faulting, mm, work, every, lambda: work.order("w", range(100)))
        assert (list(range(100)), [OLD] * ALL) == (pages_of(work, faults), answers.tolist())
        assert faults["write"].all()
        huge = smaps(work, "FilePmdMapped")
        assert 0 < huge < SIZE
        (applied,) = mm.advise("pageout", np.array([[work.base, work.base + SIZE]], np.uint64)).tolist()
        assert huge <= applied
        assert 0 == smaps(work, "FilePmdMapped")


def test_a_process_that_is_not_sampled_any_more_is_not_taken_for_cold(
    faulting: LinuxMachine, program: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It made a userfaultfd of its own, which needs the place."""
    with Workload([program], "readonly", ALL, str(data)) as work, task_of(faulting, work.pid) as task:
        work.order("T")
        mm = mm_of(task)
        poll(lambda: len(mm.vmas()) and "is no longer sampled" in caplog.text)
        everything = np.array([[work.base, work.base + SIZE]], np.uint64)
        assert mm.advise("pageout", everything).tolist() == mm.advise("cold", everything).tolist() == [0]
        assert present(work).all()


# What others report.


def test_pushed_reports_alone_drive_a_pageout(machine: LinuxMachine, program: Path, data: Path) -> None:
    """With neither primitive: memory without reports goes, accessed or not."""
    neither = damon_sample_control(PrimitivesEnabled(page_table=False, page_fault=False))
    with Workload([program], "readonly", ALL, str(data)) as work:
        reports = report_array(HOT, pid=work.pid, addr=work.addrs(range(HOT)) & ~np.uint64(4095), size=PAGE)
        out = pageout()
        with monitoring(machine, work, out, sample_control=neither) as ctx:

            def rest_went() -> bool:
                report_accesses(reports)
                return np.count_nonzero(present(work, 2 * HOT)) <= IN_BATCHES

            poll(rest_went)
            stat, counters = stat_of(ctx, out), report_counters(ctx)
            assert 0 == ctx.nr_samples
        assert counters.applied > 0
        assert np.count_nonzero(~present(work)) * PAGE <= stat.sz_applied <= SIZE
