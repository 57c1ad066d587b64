# SPDX-License-Identifier: GPL-2.0-only
"""Actions on simulated memory have exact effects, and vaddr's schemes count them."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.core import damon_add_target, damon_new_ctx, damon_new_target, damon_select_ops
from kdamon.damon import (
    DAMOS_MAX_SCORE,
    damon_ctx,
    damon_ops_id,
    damon_region,
    damon_size_range,
    damos,
    damos_action,
    damos_filter,
    damos_filter_type,
    damos_quota,
)
from kdamon.lib.once import warn_once
from kdamon.mm import PageFilter
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.ops_common import scheme_score
from kdamon.regions import Regions, damon_addr_range
from kdamon.vaddr import damon_va_apply_scheme

MIB = 1 << 20
ANON = damos_filter_type.DAMOS_FILTER_TYPE_ANON


def ranges(*pairs: tuple[int, int]) -> U64Array:
    """Ranges given in MiB."""
    return np.array(pairs, np.uint64).reshape(-1, 2) * np.uint64(MIB)


def mib(found: U64Array) -> list[list[float]]:
    return (found / MIB).tolist()


def spawn(*pairs: tuple[int, int]) -> SimProcess:
    return SimMachine(seed=1).spawn(ranges(*(pairs or [(0, 100)])).tolist())


def wait(process: SimProcess, seconds: float) -> None:
    process.clock.sleep_until(process.clock.now() + int(seconds * 1e9), threading.Event())


# Simulated memory.


def test_what_is_paged_out_is_gone_until_it_is_needed() -> None:
    """Twice the same is once; only what is gone can come back."""
    process = spawn((0, 50), (60, 100))
    assert 15 * MIB == process.advise("pageout", ranges((40, 65))).sum()
    assert 0 == process.advise("pageout", ranges((45, 62))).sum()
    assert [[0, 40], [65, 100]] == mib(process.resident())
    assert 5 * MIB == process.advise("willneed", ranges((45, 60), (70, 80))).sum()
    assert [[0, 40], [45, 50], [65, 100]] == mib(process.resident())


def test_what_is_accessed_comes_back() -> None:
    process = spawn()
    process.access(10 * MIB, 20 * MIB, rate=1)
    process.access(0, 5 * MIB, rate=100, begin=10)
    assert 100 * MIB == process.advise("pageout", ranges((0, 100))).sum()
    wait(process, 0.5)
    assert [] == mib(process.resident())
    wait(process, 1)
    assert [[10, 20]] == mib(process.resident())


def test_huge_pages_are_whole() -> None:
    """Blocks of which only a part is meant, or mapped, stay as they are; a page that is paged out is not huge."""
    process = spawn((0, 9), (10, 20))
    assert 10 * MIB == process.advise("collapse", ranges((1, 15))).sum()
    assert 0 == process.advise("collapse", ranges((1, 15))).sum()
    assert 2 * MIB == process.advise("pageout", ranges((2, 4))).sum()
    assert 2 * MIB == process.advise("collapse", ranges((1, 15))).sum()


def test_cold_is_applied_to_what_is_there() -> None:
    process = spawn((0, 50), (60, 100))
    process.advise("pageout", ranges((0, 10)))
    assert 42 * MIB == process.advise("cold", ranges((5, 62))).sum()


def test_the_first_filter_that_matches_decides() -> None:
    """And what none matches goes by the default."""
    process = spawn()
    process.mark("anon", [(0, 50 * MIB)])
    process.mark("active", [(40 * MIB, 60 * MIB)])
    filters = [PageFilter("anon", True, True), PageFilter("active", True, False)]
    assert [[0, 50], [60, 100]] == mib(process.page_filter(ranges((0, 100)), filters, default_reject=False))
    assert [[0, 50]] == mib(process.page_filter(ranges((0, 100)), filters, default_reject=True))
    assert [[0, 40], [60, 100]] == mib(process.page_filter(ranges((0, 100)), filters[::-1], default_reject=False))
    outside = [PageFilter("anon", False, False)]
    assert [[30, 50]] == mib(process.page_filter(ranges((30, 80)), outside, default_reject=False))


def test_filters_of_every_type() -> None:
    process = spawn()
    process.access(0, 10 * MIB)
    process.mark("memcg", [(20 * MIB, 30 * MIB)], memcg_id=7)
    process.advise("collapse", ranges((50, 60)))
    process.advise("pageout", ranges((90, 100)))
    wait(process, 1)

    def passing(*args: object, **more: int) -> list[list[float]]:
        return mib(process.page_filter(ranges((0, 100)), [PageFilter(*args, True, True, **more)], True))  # type: ignore[arg-type]

    assert [[0, 90]] == passing("anon")
    assert [] == passing("active")
    assert [[20, 30]] == passing("memcg", memcg_id=7)
    assert [] == passing("memcg", memcg_id=8)
    assert [[50, 60]] == passing("hugepage_size", min_size=2 * MIB, max_size=2 * MIB)
    assert [[0, 50], [60, 90]] == passing("hugepage_size", min_size=0, max_size=4096)
    assert [] == passing("unmapped")
    assert [[0, 10]] == passing("young")
    # Asked again at once, nothing was accessed in between.
    assert [] == passing("young")


# Schemes.


def monitoring(process: SimProcess, *pairs: tuple[int, int]) -> damon_ctx:
    """A context with the regions ``pairs`` (MiB) of ``process``."""
    ctx = damon_new_ctx(seed=1)
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_VADDR)
    t = damon_new_target()
    found = ranges(*pairs)
    t.task, t.regions = process, Regions(found[:, 0], found[:, 1])
    damon_add_target(ctx, t)
    return ctx


def apply(ctx: damon_ctx, action: str, filters: Sequence[damos_filter] = (), **more: bool) -> list[tuple[float, float]]:
    """What each region of the only target had applied and passed, MiB."""
    s = damos(action=damos_action(action), ops_filters=list(filters), **more)  # type: ignore[arg-type]
    t = ctx.adaptive_targets[0]
    applied, passed = damon_va_apply_scheme(ctx, t, np.arange(len(t.regions)), s)
    return list(zip((applied / MIB).tolist(), (passed / MIB).tolist(), strict=True))


@pytest.fixture(autouse=True)
def _nothing_said_before() -> None:
    warn_once.cache_clear()


def test_a_region_counts_what_happened_in_it() -> None:
    """Kernel: the region with a hole counts as not applied, the other one as a whole."""
    ctx = monitoring(spawn((0, 40), (60, 100)), (0, 20), (20, 80))
    assert [(20, 0), (40, 0)] == apply(ctx, "pageout")
    assert [(0, 0), (0, 0)] == apply(ctx, "pageout")
    assert [(20, 0), (40, 0)] == apply(ctx, "willneed")


def test_filters_restrict_every_action() -> None:
    process = spawn()
    process.mark("anon", [(0, 50 * MIB)])
    ctx = monitoring(process, (0, 30), (30, 80))
    reject = damos_filter(ANON, matching=True, allow=False)
    assert [(0, 0), (0, 30)] == apply(ctx, "stat", [reject])
    assert [(0, 0), (30, 30)] == apply(ctx, "pageout", [reject])
    allow = damos_filter(ANON, matching=True, allow=True)
    assert [(30, 30), (20, 20)] == apply(ctx, "cold", [allow], ops_filters_default_reject=True)


def test_sizes_of_a_filter_are_both_included() -> None:
    process = spawn()
    process.advise("collapse", ranges((0, 10)))
    ctx = monitoring(process, (0, 30))
    huge = damos_filter(
        damos_filter_type.DAMOS_FILTER_TYPE_HUGEPAGE_SIZE, True, True, sz_range=damon_size_range(2 * MIB, 2 * MIB)
    )
    assert [(0, 10)] == apply(ctx, "stat", [huge], ops_filters_default_reject=True)


def test_what_the_core_allowed_passes_all_filters() -> None:
    ctx = monitoring(spawn(), (0, 30))
    reject = damos_filter(ANON, matching=True, allow=False)
    assert [(30, 30)] == apply(ctx, "pageout", [reject], core_filters_allowed=True)


def test_stat_without_filters_passes_nothing() -> None:
    """As in the kernel."""
    assert [(0, 0)] == apply(monitoring(spawn(), (0, 30)), "stat")


def test_lru_deprio_is_cold() -> None:
    assert [(30, 0)] == apply(monitoring(spawn(), (0, 30)), "lru_deprio")


@pytest.mark.parametrize("action", ["hugepage", "nohugepage", "lru_prio", "migrate_hot", "migrate_cold"])
def test_what_cannot_be_done_is_applied_to_nothing_and_said_once(action: str, caplog: pytest.LogCaptureFixture) -> None:
    ctx = monitoring(spawn(), (0, 30), (30, 60))
    assert [(0, 0), (0, 0)] == apply(ctx, action)
    assert [(0, 0), (0, 0)] == apply(ctx, action)
    assert [f"{action} has no effect: "] == [record.message[: len(action) + 16] for record in caplog.records]


def test_a_refusal_is_applied_to_nothing_and_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EPERM, "no; run as root")

    monkeypatch.setattr(SimProcess, "advise", refuse)
    assert [(0, 0), (0, 0)] == apply(monitoring(spawn(), (0, 30), (30, 60)), "pageout")
    assert ["pageout has no effect: no; run as root"] == [record.message for record in caplog.records]


def test_nothing_is_applied_to_a_process_that_ended() -> None:
    process = spawn()
    ctx = monitoring(process, (0, 30))
    process.exit()
    assert [(0, 0)] == apply(ctx, "pageout")


@pytest.mark.parametrize("action", list(damos_action))
def test_which_action_goes_by_which_score(action: damos_action) -> None:
    """What is for cold memory begins with the coldest, what is for hot memory with the hottest."""
    ctx = monitoring(spawn(), (0, 30))
    s = damos(action=action, quota=damos_quota(weight_nr_accesses=1, weight_age=1))
    hot, cold = (scheme_score(ctx, damon_region(damon_addr_range(0, 4096), nr_accesses), s) for nr_accesses in (20, 0))
    cold_first, hot_first = ("pageout", "migrate_cold", "lru_deprio"), ("migrate_hot", "lru_prio")
    expected = dict.fromkeys(cold_first, (25, 75)) | dict.fromkeys(hot_first, (74, 24))
    assert expected.get(action.value, (DAMOS_MAX_SCORE, DAMOS_MAX_SCORE)) == (hot, cold)
