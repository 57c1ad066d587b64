# SPDX-License-Identifier: GPL-2.0-only
"""Updates of the regions of real processes from what they map and populate."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.core import damon_add_target, damon_new_ctx, damon_new_target, damon_select_ops, damon_set_attrs
from kdamon.damon import damon_addr_range, damon_attrs, damon_ctx, damon_ops_id, damon_target
from kdamon.kernel import PMD_SIZE
from kdamon.mapped import follow_mappings, mapped_ranges
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.ranges import inside
from tests.support.sampling import wait_until
from tests.support.workload import Workload

pytestmark = pytest.mark.real

PAGES = 1024


@pytest.fixture(name="work")
def _work(program: Path) -> Iterator[Workload]:
    with Workload([program], "anon", PAGES) as work:
        yield work


def context(machine: LinuxMachine, pid: int) -> tuple[damon_ctx, damon_target]:
    ctx = damon_new_ctx(seed=1)
    ctx.machine = machine
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_VADDR)
    damon_set_attrs(ctx, damon_attrs(5000, 100_000))
    follow_mappings(ctx)
    t = damon_new_target()
    t.pid, t.task = pid, machine.get_task(pid)
    damon_add_target(ctx, t)
    return ctx, t


def covered(t: damon_target, addrs: U64Array) -> bool:
    edges = np.stack((t.regions.start, t.regions.end), axis=1)
    return bool(inside(edges, addrs).all())


def test_an_update_without_changes_leaves_the_regions(
    machine: LinuxMachine, work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is mapped and populated is not looked at; a new mapping is, and memory that nothing shows in the end."""
    ctx, t = context(machine, work.pid)
    assert t.task is not None
    assert ctx.ops is not None
    update = ctx.ops.update
    looks = []

    def counted(vmas: U64Array, *rest: Any) -> list[damon_addr_range]:
        looks.append(vmas)
        return mapped_ranges(vmas, *rest)

    def skipped() -> bool:
        # The kernel itself changes mappings to make huge pages, but not all the time.
        before = len(looks)
        work.order("w", np.arange(PAGES))
        update(ctx)
        return before == len(looks)

    monkeypatch.setattr("kdamon.mapped.mapped_ranges", counted)
    try:
        update(ctx)
        with open(f"/proc/{work.pid}/pagemap", "rb") as pagemap:
            if shared_walker().changes(pagemap.fileno()) is None:
                pytest.skip("this kernel does not count changes of the mappings")
        assert 1 == len(looks)
        wait_until(skipped)
        assert covered(t, work.addrs(np.arange(PAGES)))
        before = len(looks)
        t.mapped_until = 0
        update(ctx)
        assert before + 1 == len(looks)
        work.base = int.from_bytes(work.order("n", answer=8), "little")
        work.order("w", np.arange(PAGES))
        update(ctx)
        assert before + 2 == len(looks)
        assert covered(t, work.addrs(np.arange(PAGES)))
    finally:
        t.task.put()


@pytest.mark.usefixtures("machine")
def test_page_tables_are_counted() -> None:
    """Each new one, also of memory that was mapped before."""
    walker = shared_walker()
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, 64 * PMD_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
            own.madvise(mmap.MADV_NOHUGEPAGE)
            before = walker.table_bytes(fd)
            for block in range(1, 63):
                own[block * PMD_SIZE] = 1
            after = walker.table_bytes(fd)
    finally:
        os.close(fd)
    assert before is not None
    assert after is not None
    assert after - before >= 62 * 4096
