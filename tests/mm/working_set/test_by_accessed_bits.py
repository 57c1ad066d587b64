# SPDX-License-Identifier: GPL-2.0-only
"""Exact working sets of real processes by accessed bits: reads and writes alike."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kdamon.mm.working_set.by_accessed_bits import AccessedBitObservation
from kdamon.mm.working_set.sets import Counts, WorkingSet
from tests.support.capabilities import compiler
from tests.support.paths import ROOT
from tests.support.process_memory import HUGE, IN_BATCHES, PAGE, PAGES, smaps
from tests.support.sampling import open_files
from tests.support.waiting import eventually
from tests.support.workload import Workload

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("machine")]

EVERY = range(PAGES)
#: Bytes of pages that may wait in batches of other CPUs, or that a DAMON of the machine makes old meanwhile.
FEW = IN_BATCHES * PAGE


def never() -> bool:
    """Nothing interrupts."""
    return False


def window(work: Workload, act: Callable[[], object]) -> WorkingSet:
    """The pages that ``act`` has the workload access."""
    with AccessedBitObservation(work.pid) as observation:
        observation.begin(never)
        act()
        observation.look()
        assert observation.alive()
        return observation.end()


def of(found: WorkingSet, work: Workload) -> Counts:
    """The counts of the mapping at the workload's memory."""
    return next(row.counts for row in found.mappings if row.mapping.start <= work.base < row.mapping.end)


@pytest.mark.parametrize("kind", ["anon", "shmem", "file", "private"])
@pytest.mark.parametrize("order", ["r", "w"])
def test_accessed_pages_are_counted(program: Path, data: Path, kind: str, order: str) -> None:
    """By reads as by writes. Only pages that wait in a CPU's batch cannot be made old, and those are unknown."""
    some = range(0, PAGES, 3)
    with Workload([program], kind, PAGES, str(data)) as work:
        window(work, lambda: None)
        counts = of(window(work, lambda: work.order(order, some)), work)
        assert counts.written is None
        assert counts.touched is not None
        assert counts.touched <= len(some) * PAGE <= counts.touched + counts.unknown + FEW
        assert counts.unknown <= FEW
        assert PAGES * PAGE == counts.resident == counts.observed + counts.unknown


def test_an_idle_process_has_no_working_set(program: Path) -> None:
    """What it used before does not count."""
    with Workload([program], "anon", PAGES) as work:
        work.order("w", EVERY)
        counts = of(window(work, lambda: None), work)
        assert (0, 0) == (counts.touched, counts.used)
        assert counts.unknown <= FEW


def test_huge_pages_are_counted_whole(program: Path) -> None:
    """And stay whole."""
    with Workload([program], "thp", 4 * 512) as work:
        huge = smaps(work, "AnonHugePages")
        if huge != 4 * HUGE:
            pytest.skip("kernel lacks: transparent huge pages, or free ones")
        window(work, lambda: None)
        counts = of(window(work, lambda: work.order("r", [3, 512 * 2 + 100])), work)
        assert (2 * HUGE, 4 * HUGE, 0) == (counts.touched, counts.resident, counts.unknown)
        assert huge == smaps(work, "AnonHugePages")


@pytest.mark.parametrize("kind", ["fork", "mlock", "zero"])
def test_pages_that_cannot_be_made_old_are_unknown(program: Path, kind: str) -> None:
    """Shared with a child, locked, and the zero page: they count neither as idle nor as accessed."""
    with Workload([program], kind, PAGES) as work:
        counts = of(window(work, lambda: work.order("r", EVERY)), work)
        assert PAGES * PAGE == counts.resident
        # What another DAMON made old before is observed.
        assert PAGES * PAGE - FEW <= counts.unknown_other
        assert counts.observed == counts.resident - counts.unknown_other


def test_what_comes_and_goes(program: Path) -> None:
    """First touches are new, memory elsewhere is mapped since, and what was given back is unknown."""
    with Workload([program], "untouched", PAGES) as work:
        counts = of(window(work, lambda: work.order("w", range(100))), work)
        assert (100 * PAGE, 0) == (counts.new, counts.unknown)
        found = window(work, lambda: work.order("d"))
        assert 100 * PAGE <= found.total.unknown <= 100 * PAGE + found.total.unknown_other
        assert (0, 100 * PAGE) == (of(found, work).touched, of(found, work).unknown)


def test_the_cost_is_what_is_young(program: Path) -> None:
    """Those pages move on their LRU list; nothing changes until the window begins."""
    with Workload([program], "anon", PAGES) as work, AccessedBitObservation(work.pid) as observation:
        cost = observation.cost(never)
        assert PAGES * PAGE - FEW <= cost.observed <= cost.resident
        assert PAGES * PAGE - 2 * FEW <= observation.cost(never).observed
        observation.begin(never)
        assert observation.cost(never).observed < PAGES * PAGE // 2


def test_a_process_that_maps_all_the_time(tmp_path: Path) -> None:
    """Others wait for the lock of its memory again and again, which is no reason to give up."""
    mapper, data = tmp_path / "mapper", tmp_path / "data"
    data.write_bytes(bytes(8 << 20))
    subprocess.run([compiler(), "-O1", "-pthread", "-o", mapper, ROOT / "tests/bench/mapper.c"], check=True)
    with subprocess.Popen([mapper, data, "8"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert b"ready\n" == process.stdout.readline()
            statm = Path(f"/proc/{process.pid}/statm")
            eventually(lambda: int(statm.read_text().split()[1]) * PAGE >= 16 << 20, "all of its memory in use")
            with AccessedBitObservation(process.pid) as observation:
                for _ in range(20):
                    observation.begin(never)
                    assert observation.end().total.resident >= 16 << 20
        finally:
            process.kill()


@pytest.mark.parametrize(("pid", "why"), [(2, "kernel thread"), (4_194_305, "there is no process")])
def test_what_is_no_process(pid: int, why: str) -> None:
    """The reason is said, and nothing stays open."""
    before = open_files()
    with pytest.raises(OSError, match=why):
        AccessedBitObservation(pid)
    assert before == open_files()
