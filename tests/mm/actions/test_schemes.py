# SPDX-License-Identifier: GPL-2.0-only
"""Schemes of a running kdamond on real processes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kdamon.core import (
    damon_is_running,
)
from kdamon.damon import (
    damos,
    damos_access_pattern,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_quota,
)
from kdamon.mm.linux.machine import LinuxMachine
from tests.support.process_memory import IN_BATCHES, PAGE, SIZE, present, smaps
from tests.support.process_memory import PAGES as ALL
from tests.support.process_schemes import HOT, monitoring, pageout, poll, stat_of
from tests.support.workload import Workload

pytestmark = pytest.mark.real


def test_the_cold_part_of_a_process_is_paged_out(machine: LinuxMachine, program: Path, data: Path) -> None:
    """What it uses stays or comes back, nothing in it changes, and no more is applied than was tried."""
    with Workload([program], "readonly", ALL, str(data)) as work:
        work.order("h", range(HOT))
        s = pageout()
        with monitoring(machine, work, s) as ctx:
            poll(lambda: np.count_nonzero(present(work, 2 * HOT)) <= IN_BATCHES)
            stat = stat_of(ctx, s)
        assert (ALL - 2 * HOT - IN_BATCHES) * PAGE <= stat.sz_applied <= stat.sz_tried
        assert 0 < stat.nr_applied <= stat.nr_tried
        assert smaps(work, "Rss") <= SIZE // 2 + IN_BATCHES * PAGE
        poll(lambda: bool(present(work, 0, HOT).all()))
        assert 0 == work.spoilt(range(ALL))


def test_a_quota_holds_the_pageout_back(machine: LinuxMachine, program: Path, data: Path) -> None:
    """In a window that does not end no more goes than it allows."""
    allowed = 256 * PAGE
    with Workload([program], "readonly", ALL, str(data)) as work:
        s = pageout(quota=damos_quota(reset_interval=3_600_000, sz=allowed))
        with monitoring(machine, work, s) as ctx:
            poll(lambda: stat_of(ctx, s).sz_tried >= allowed)
            stat = stat_of(ctx, s)
            passed = ctx.passed_sample_intervals
            poll(lambda: ctx.passed_sample_intervals > passed + 60)
            assert stat_of(ctx, s).sz_applied == stat.sz_applied <= allowed
        assert np.count_nonzero(~present(work)) * PAGE == stat.sz_applied


def test_a_filter_on_pages_holds_it_back(machine: LinuxMachine, program: Path, data: Path) -> None:
    """No anonymous memory, which all of this is; stat counts what passes."""
    only_files = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON, matching=True, allow=False)
    with Workload([program], "anon", ALL) as work:
        counting, out = damos(ops_filters=[only_files]), pageout(ops_filters=[only_files])
        anonymous = damos(ops_filters=[damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON, True, True)])
        with monitoring(machine, work, counting, out, anonymous) as ctx:
            poll(lambda: stat_of(ctx, anonymous).nr_snapshots >= 3 and stat_of(ctx, out).nr_tried > 0)
            assert 0 == stat_of(ctx, counting).sz_ops_filter_passed
            assert 0 == stat_of(ctx, out).sz_applied
            stat = stat_of(ctx, anonymous)
        assert stat.sz_ops_filter_passed == stat.sz_tried > 0
        assert present(work).all()


def test_what_is_not_written_is_paged_out(machine: LinuxMachine, program: Path, data: Path) -> None:
    """By the faults of writes: however much the rest is read."""
    try:
        machine.get_task(os.getpid(), "page_fault").put()
    except OSError as error:
        pytest.skip(f"kernel lacks: {error.strerror}")
    with Workload([program], "file", ALL, str(data)) as work:
        s = pageout()
        with monitoring(machine, work, s, primitive="page_fault") as ctx:

            def rest_went() -> bool:
                work.order("w", range(HOT))
                work.order("r", range(2 * HOT, ALL))
                return stat_of(ctx, s).sz_applied >= (ALL - 2 * HOT) * PAGE

            poll(rest_went)
        assert 0 == work.spoilt(range(ALL))


@pytest.mark.parametrize("end", ["exec", "exit"])
@pytest.mark.parametrize("action", ["pageout", "cold", "collapse", "willneed"])
def test_a_process_that_leaves_under_a_scheme(machine: LinuxMachine, program: Path, action: str, end: str) -> None:
    """Nothing but the end of the process ends the kdamond."""
    with Workload([program], "small", ALL) as work:
        s = damos(damos_access_pattern(), damos_action(action))
        with monitoring(machine, work, s) as ctx:
            poll(lambda: stat_of(ctx, s).nr_tried > 0)
            if end == "exec":
                work.send("x")
                work.greet()
                tried = stat_of(ctx, s).nr_tried
                poll(lambda: stat_of(ctx, s).nr_tried > tried)
            else:
                work.process.kill()
                work.process.wait()
                poll(lambda: not damon_is_running(ctx))
            assert ctx.kdamond_error is None
        if end == "exec":
            work.order("w", range(ALL))
            assert 0 == work.spoilt(range(ALL))
