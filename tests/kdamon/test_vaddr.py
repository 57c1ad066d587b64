# SPDX-License-Identifier: GPL-2.0-only
"""vaddr between a sample's two halves: what was not prepared is not believed."""

from __future__ import annotations

import numpy as np

from kdamon.arrays import U64Array
from kdamon.core import damon_add_target, damon_new_ctx, damon_new_target, damon_select_ops
from kdamon.damon import damon_ops_id
from kdamon.mm import YOUNG, Answers
from kdamon.regions import Regions
from kdamon.vaddr import damon_va_check_accesses, damon_va_prepare_access_checks


class AllYoung:
    """An address space in which every accessed bit is set."""

    def vmas(self) -> U64Array:
        return np.zeros((0, 2), np.uint64)

    def begin_sample(self, addrs: U64Array) -> None:
        pass

    def end_sample(self, addrs: U64Array) -> Answers:
        return np.full(len(addrs), YOUNG, np.uint8)


class Execing:
    """A process that calls exec() on request."""

    pid = 1
    primitive = "page_table"

    def __init__(self) -> None:
        self.mm = AllYoung()

    def valid(self) -> bool:
        return True

    def get_mm(self) -> AllYoung:
        return self.mm

    def put(self) -> None:
        pass


def test_an_exec_between_the_halves_of_a_sample_leaves_it_unknown() -> None:
    """The new program's accessed bits were never cleared: they say nothing about this sampling interval."""
    ctx = damon_new_ctx(seed=1)
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_FVADDR)
    task = Execing()
    t = damon_new_target()
    t.task, t.regions = task, Regions([0, 4096], [4096, 8192])
    damon_add_target(ctx, t)

    damon_va_prepare_access_checks(ctx)
    damon_va_check_accesses(ctx)
    assert [1, 1] == t.regions.nr_accesses.tolist()

    damon_va_prepare_access_checks(ctx)
    task.mm = AllYoung()
    damon_va_check_accesses(ctx)
    assert [1, 1] == t.regions.nr_accesses.tolist()
    assert [1, 1] == t.regions.nr_unknown.tolist()
    assert (4, 2) == (ctx.nr_samples, ctx.nr_unknown)
