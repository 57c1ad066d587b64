# SPDX-License-Identifier: GPL-2.0-only
"""Watched pages of a real process, also while samples of regions make the same pages old."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kdamon.arrays import Mask, U64Array
from kdamon.mm import AddressSpace, IntervalTarget, PageWatch
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.bpf.watched_pages import WatchedPages
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.sampling.intervals import LinuxIntervals
from tests.support.process_memory import HUGE, IN_BATCHES, space_of
from tests.support.workload import Workload

pytestmark = pytest.mark.real

PAGES = 256


def watch_of(mm: AddressSpace) -> PageWatch:
    watch = mm.watch()
    assert watch is not None
    return watch


def pages_of(work: Workload) -> U64Array:
    """Pages of ``work`` with different places, but for the last ones, which may sit in a CPU's batch."""
    pages = np.uint64(work.base) + 4096 * np.arange(PAGES - IN_BATCHES, dtype=np.uint64)
    first = np.unique(WatchedPages.places(pages), return_index=True)[1]
    found: U64Array = pages[np.sort(first)]
    return found


def numbers(work: Workload, pages: U64Array) -> list[int]:
    """The numbers of ``pages`` for orders."""
    return ((pages - np.uint64(work.base)) // np.uint64(4096)).astype(int).tolist()


def begun(watch: PageWatch, pages: U64Array) -> np.ndarray:
    """The places of ``pages``."""
    watched = watch.begin(pages)
    assert watched.present.all()
    assert (watched.places >= 0).all()
    assert not watched.unknown.any()
    return watched.places


@pytest.fixture(name="work")
def _work(program: Path) -> Iterator[Workload]:
    with Workload([program], "anon", PAGES) as work:
        yield work


def test_accessed_pages_are_found(machine: LinuxMachine, work: Workload) -> None:
    with space_of(machine, work.pid) as mm, closing(watch_of(mm)) as watch:
        pages = pages_of(work)
        places = begun(watch, pages)
        work.order("w", numbers(work, pages[[3, 77]]))
        work.order("r", numbers(work, pages[[150]]))
        there, young = watch.look(pages, places)
        assert there.all()
        assert [3, 77, 150] == np.flatnonzero(young).tolist()


@pytest.mark.parametrize("way", ["one sample", "whole intervals"])
def test_what_a_sample_makes_old_was_accessed(machine: LinuxMachine, work: Workload, way: str) -> None:
    """The sample clears the accessed bit of a watched page that was accessed; a later look finds the access."""
    with space_of(machine, work.pid) as mm, closing(watch_of(mm)) as watch:
        pages = pages_of(work)
        places = begun(watch, pages)
        work.order("w", numbers(work, pages[[3, 77]]))
        sample(mm, pages, way)
        assert not bits(mm, pages)[[3, 77]].any()
        assert [3, 77] == np.flatnonzero(watch.look(pages, places)[1]).tolist()
        # A look takes note of it once.
        assert not watch.look(pages, places)[1].any()


def test_a_new_choice_of_a_page_says_what_was_seen(machine: LinuxMachine, work: Workload) -> None:
    """Pages that are chosen again are made old again, and those that were accessed until then are named."""
    with space_of(machine, work.pid) as mm, closing(watch_of(mm)) as watch:
        pages = pages_of(work)
        places = begun(watch, pages)
        work.order("w", numbers(work, pages[[5]]))
        sample(mm, pages, "one sample")
        work.order("w", numbers(work, pages[[9]]))
        again = watch.begin(pages)
        assert places.tolist() == again.places.tolist()
        assert [5, 9] == np.flatnonzero(again.young).tolist()
        assert not watch.look(pages, places)[1].any()


def test_two_watches_of_a_process_are_apart(machine: LinuxMachine, work: Workload) -> None:
    """A page has one watch: the other one does without."""
    with space_of(machine, work.pid) as mm, closing(watch_of(mm)) as one, closing(watch_of(mm)) as other:
        pages = pages_of(work)
        places = begun(one, pages[:100])
        found = other.begin(pages)
        assert (found.places[:100] == -1).all()
        assert (found.places[100:] >= 0).all()
        one.end(places)
        assert (other.begin(pages).places >= 0).all()


def test_huge_pages_have_one_place(machine: LinuxMachine, program: Path) -> None:
    """Any page of a huge page stands for it, and stays a part of it."""
    with (
        Workload([program], "thp", 2 * HUGE // 4096) as work,
        space_of(machine, work.pid) as mm,
        closing(watch_of(mm)) as watch,
    ):
        start = -(-work.base // HUGE) * HUGE
        pages = np.array([start, start + 4096, start + HUGE - 4096], np.uint64)
        watched = watch.begin(pages)
        if len(set(watched.places.tolist())) != 1:
            pytest.skip("there is no huge page")
        assert not watched.unknown.any()
        work.order("w", [(start - work.base) // 4096 + 7])
        assert watch.look(pages, watched.places)[1].all()


def test_pages_that_are_not_there_can_come(machine: LinuxMachine, work: Workload) -> None:
    with space_of(machine, work.pid) as mm, closing(watch_of(mm)) as watch:
        pages = pages_of(work)
        work.order("d", numbers(work, pages[:10]))
        watched = watch.begin(pages)
        assert not watched.present[:10].any()
        work.order("w", numbers(work, pages[[4]]))
        assert [4] == np.flatnonzero(watch.look(pages[:10], watched.places[:10])[0]).tolist()


def test_a_process_that_ended_has_no_pages(machine: LinuxMachine, program: Path) -> None:
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        pages = pages_of(work)
        with closing(watch_of(mm)) as watch:
            places = begun(watch, pages)
            work.process.kill()
            work.process.wait()
            assert not watch.look(pages, places)[0].any()
            assert not watch.begin(pages).present.any()


def test_kinds(machine: LinuxMachine, work: Workload) -> None:
    with space_of(machine, work.pid) as mm, closing(watch_of(mm)) as watch:
        text = next(
            line for line in Path(f"/proc/{work.pid}/maps").read_text(encoding="utf-8").splitlines() if " r-xp " in line
        )
        pages = np.array([work.base, int(text.split("-")[0], 16), 4096], np.uint64)
        assert [1, 2, 0] == watch.kinds(pages).tolist()


def test_nothing_is_left_of_a_closed_watch(machine: LinuxMachine, work: Workload) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with space_of(machine, work.pid) as mm:
        watch = watch_of(mm)
        watch.begin(pages_of(work))
        assert shared_walker().watched.in_use
        watch.close()
    assert not shared_walker().watched.in_use
    assert before == set(os.listdir("/proc/self/fd"))


def sample(mm: AddressSpace, pages: U64Array, way: str) -> None:
    """Sample ``pages`` as regions are, and end it."""
    if way == "one sample":
        mm.begin_sample(pages)
        mm.end_sample(pages)
        return
    random = np.zeros((2, len(pages)), np.uint64)
    with closing(LinuxIntervals(shared_walker())) as sampler:
        assert sampler.begin([IntervalTarget(mm, pages, np.full(len(pages), 4096, np.uint64), wide=False)], random)
        sampler.end()


def bits(mm: AddressSpace, pages: U64Array) -> Mask:
    """Which of ``pages`` have their accessed bit set."""
    return (shared_walker().young(mm.pagemap, pages) & 32) != 0  # type: ignore[attr-defined]
