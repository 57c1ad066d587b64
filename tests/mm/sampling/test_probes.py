# SPDX-License-Identifier: GPL-2.0-only
"""Probes on real processes: what their pages are, and what a kdamond counts of it."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from attrs import define, field

from kdamon import trace
from kdamon.arrays import U64Array
from kdamon.core import (
    damon_add_target,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_start,
    damon_stop,
    validate_ctx,
)
from kdamon.damon import (
    damon_attrs,
    damon_ctx,
    damon_filter,
    damon_filter_type,
    damon_ops_id,
    damon_prep,
    damon_probe,
)
from kdamon.mm import OLD, YOUNG, PageFilter
from kdamon.mm.actions import page_samples
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.regions import Regions
from tests.support.capabilities import needs_memory_cgroup, needs_page_cgroups
from tests.support.process_memory import HUGE, PAGE, PAGES, space_of
from tests.support.two_halves import HALF, SCRIPT
from tests.support.workload import Workload

pytestmark = pytest.mark.real


ANON = PageFilter("anon", True, True)


@pytest.fixture(scope="module", name="two_halves")
def _two_halves(directory: Path) -> Iterator[tuple[int, int]]:
    """Number and address of a process whose memory is half anonymous, half a file's."""
    path = directory / "probed"
    path.write_bytes(b"\7" * HALF)
    command = [sys.executable, "-c", SCRIPT, str(path), str(HALF)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.stdin.close()


def some(start: int, size: int, seed: int = 1, count: int = 500) -> U64Array:
    """Addresses in [start, start + size), in any order."""
    return np.random.default_rng(seed).integers(start, start + size, count, dtype=np.uint64)


# What pages are.


@pytest.mark.parametrize("walking", [True, False])
def test_anonymous_and_file_memory(
    machine: LinuxMachine, two_halves: tuple[int, int], monkeypatch: pytest.MonkeyPatch, walking: bool
) -> None:
    """With and without the page table walk; addresses where nothing is are of no type."""
    if not walking:

        def lacking() -> None:
            raise OSError(errno.EOPNOTSUPP, "there is no walk")

        monkeypatch.setattr(page_samples, "shared_walker", lacking)
    pid, base = two_halves
    addrs = np.concatenate([some(base, 2 * HALF), np.array([0, 4096, (1 << 47) - 1, (1 << 64) - 1], np.uint64)])
    with space_of(machine, pid) as mm:
        (anon,) = mm.page_match(addrs, [ANON])
        assert np.array_equal(anon, (addrs >= base) & (addrs < base + HALF))
        assert mm.page_match(addrs, []).shape == (0, len(addrs))
        assert (1, 0) == mm.page_match(addrs[:0], [ANON]).shape


@pytest.mark.parametrize(("kind", "size"), [("anon", PAGE), ("thp", HUGE)])
def test_sizes_of_folios(machine: LinuxMachine, program: Path, kind: str, size: int) -> None:
    with Workload([program], kind, PAGES) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(PAGES))
        filters = [PageFilter("hugepage_size", True, True, 0, wanted, wanted) for wanted in (size, 2 * PAGE)]
        of_size, others = mm.page_match(work.addrs(range(0, PAGES, 7)), filters)
        assert of_size.mean() > 0.95
        assert not others.any()


def test_the_page_of_zeros_and_shared_memory_are_not_anonymous(machine: LinuxMachine, program: Path) -> None:
    for kind in ("zero", "shmem"):
        with Workload([program], kind, PAGES) as work, space_of(machine, work.pid) as mm:
            assert not mm.page_match(work.addrs(range(PAGES)), [ANON]).any()


@needs_page_cgroups
@needs_memory_cgroup
def test_memory_control_groups(machine: LinuxMachine, program: Path) -> None:
    """Pages are of the group that they are charged to."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        groups = [line.split(":") for line in Path(f"/proc/{work.pid}/cgroup").read_text().splitlines()]
        path = next((path for _, controllers, path in groups if "memory" in controllers.split(",")), groups[-1][2])
        number = machine.memcg_id(path)
        filters = [PageFilter("memcg", True, True, memcg_id) for memcg_id in (number, number + 1_000_000)]
        mine, others = mm.page_match(work.addrs(range(PAGES)), filters)
        assert mine.mean() > 0.95
        assert not others.any()


def test_accessed_and_idle_pages(machine: LinuxMachine, program: Path) -> None:
    """As the samples say; nothing is changed by asking."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        addrs = work.addrs(range(0, PAGES, 4))
        mm.begin_sample(addrs)
        work.order("w", range(0, PAGES, 8))
        answers = mm.end_sample(addrs)
        filters = [PageFilter("young", True, True), PageFilter("idle", True, True)]
        assert not mm.page_match(addrs, filters).any()
        for _ in range(2):
            young, idle = mm.page_match(addrs, filters, answers)
            assert np.array_equal(young, answers == YOUNG)
            assert np.array_equal(idle, answers == OLD)
            assert 0.3 < young.mean() < 0.7


def test_other_types_are_refused(machine: LinuxMachine, two_halves: tuple[int, int]) -> None:
    with space_of(machine, two_halves[0]) as mm, pytest.raises(OSError, match="filter type active is not supported"):
        mm.page_match(some(two_halves[1], HALF), [PageFilter("active", True, True)])


def test_page_frames(machine: LinuxMachine, two_halves: tuple[int, int]) -> None:
    """By physical addresses the answers for the same pages are the same, and no memory matches nothing."""
    pid, base = two_halves
    addrs = some(base, 2 * HALF)
    with space_of(machine, pid) as mm:
        pfns = mm.frames(addrs)
    known = pfns != 0
    assert known.mean() > 0.9
    memory = machine.physical_memory()
    try:
        (anon,) = memory.page_match(pfns[known] << np.uint64(12), [ANON])
        beyond = memory.page_match(np.array([1 << 51, 0], np.uint64), [ANON])
    finally:
        memory.put()
    # A page that was just made may not be on its list yet.
    assert not anon[addrs[known] >= base + HALF].any()
    assert anon[addrs[known] < base + HALF].mean() > 0.9
    assert not beyond.any()


# A running kdamond.


@define
class Watch:
    """Looks at each aggregation until ``enough`` are as they should be."""

    ctx: damon_ctx
    seen: list[Regions] = field(factory=list)
    arrived: threading.Event = field(factory=threading.Event)

    def aggregated(self, ctx: damon_ctx, _target: int, regions: Regions) -> None:
        if ctx is self.ctx:
            validate_ctx(ctx)
            self.seen.append(regions.copy())
            self.arrived.set()

    def until(self, condition: object) -> Regions:
        """The first aggregation for which ``condition`` holds."""
        assert callable(condition)
        for _ in range(300):
            assert self.arrived.wait(30), "the kdamond does nothing"
            self.arrived.clear()
            if self.seen and condition(self.seen[-1]):
                return self.seen[-1]
        raise AssertionError("never came true")


@contextmanager
def probing(machine: LinuxMachine, pid: int, start: int, end: int, *probes: damon_probe) -> Iterator[Watch]:
    """A kdamond with ``probes`` on [start, end) of a process."""
    ctx = damon_new_ctx(seed=1)
    ctx.machine = machine
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_FVADDR)
    damon_set_attrs(ctx, damon_attrs(sample_interval=2000, aggr_interval=40_000, min_nr_regions=8, max_nr_regions=200))
    t = damon_new_target()
    t.pid, t.task = pid, machine.get_task(pid)
    t.regions = Regions([start], [end])
    damon_add_target(ctx, t)
    ctx.probes = list(probes)
    watch = Watch(ctx)
    hook = watch.aggregated
    trace.damon_region_aggregated.register(hook)
    try:
        damon_start([ctx], exclusive=False)
        try:
            yield watch
        finally:
            damon_stop([ctx])
    finally:
        trace.damon_region_aggregated.unregister(hook)
    assert ctx.kdamond_error is None


def kind(name: str, matching: bool = True, allow: bool = True) -> damon_filter:
    return damon_filter(damon_filter_type(name), matching, allow)


def test_hits_tell_which_half_is_anonymous(machine: LinuxMachine, two_halves: tuple[int, int]) -> None:
    """Each sample in the one half hits, none in the other; regions come to end where the halves meet."""
    pid, base = two_halves
    middle = np.uint64(base + HALF)
    probes = [
        damon_probe(100, filters=[kind("anon")]),
        damon_probe(0, filters=[kind("anon", allow=False)]),
        damon_probe(0, filters=[kind("anon", matching=False)]),
        damon_probe(),
    ]

    def sharp(regions: Regions) -> bool:
        across = (regions.start < middle) & (regions.end > middle)
        return len(watch.seen) >= 20 and int(regions.sizes()[across].sum()) <= HALF // 16

    # No cut into equal parts is where the halves meet.
    with probing(machine, pid, base + 301 * PAGE, base + 2 * HALF - 5 * PAGE, *probes) as watch:
        watch.until(sharp)
    for regions in watch.seen:
        hits = regions.probe_hits
        assert hits is not None
        anon, file = regions.end <= middle, regions.start >= middle
        assert (hits[anon] == [20, 0, 0, 20]).all()
        assert (hits[file] == [0, 20, 20, 20]).all()
        # Each is rounded down where regions were merged.
        assert (hits[:, 0].astype(int) + hits[:, 1] >= 19).all()
        assert not regions.nr_accesses.any()


def test_accesses_are_a_property_like_others(machine: LinuxMachine, program: Path) -> None:
    """With a prep, without the check of accesses: what is accessed all the time is hit."""
    with Workload([program], "anon", 4096) as work:
        stop = threading.Event()

        def touch() -> None:
            while not stop.is_set():
                work.order("w", range(2048))

        toucher = threading.Thread(target=touch)
        toucher.start()
        try:
            prepared = damon_probe(1, [damon_prep()], [kind("pgidle_unset")])
            with probing(machine, work.pid, work.base, work.base + 4096 * PAGE, prepared) as watch:

                def separate(regions: Regions) -> bool:
                    assert regions.probe_hits is not None
                    first = regions.end <= np.uint64(work.base + 2048 * PAGE)
                    last = regions.start >= np.uint64(work.base + 2048 * PAGE)
                    hits = regions.probe_hits[:, 0]
                    return bool(first.any() and last.any() and hits[first].mean() > 10 and hits[last].mean() < 2)

                regions = watch.until(separate)
        finally:
            stop.set()
            toucher.join()
        assert not regions.nr_accesses.any()
