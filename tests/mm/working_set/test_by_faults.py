# SPDX-License-Identifier: GPL-2.0-only
"""Exact working sets of real processes by faults: each page that is accessed counts, and nothing stays armed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.working_set.by_faults import FaultObservation
from kdamon.mm.working_set.sets import Counts, WorkingSet
from tests.support.cli import ENVIRONMENT
from tests.support.process_memory import HUGE, PAGE, PAGES, smaps
from tests.support.sampling import armed, open_files, wait_until
from tests.support.workload import Workload

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("faulting")]

EVERY = range(PAGES)
SOME = range(0, PAGES, 3)


def never() -> bool:
    """Nothing interrupts."""
    return False


@contextmanager
def observed(work: Workload) -> Iterator[FaultObservation]:
    """The workload, in the middle of a window."""
    with FaultObservation(work.pid) as observation:
        observation.cost(never)
        observation.begin(never)
        yield observation


def window(work: Workload, act: Callable[[], object]) -> WorkingSet:
    """The pages that ``act`` has the workload access."""
    with observed(work) as observation:
        act()
        return observation.end()


def of(found: WorkingSet, work: Workload, base: int | None = None) -> Counts:
    """The counts of the mapping at the workload's memory, or at ``base``."""
    address = work.base if base is None else base
    return next(row.counts for row in found.mappings if row.mapping.start <= address < row.mapping.end)


def accessed(counts: Counts) -> int:
    """Bytes of observed memory that were accessed: read or written where both are seen, else written."""
    return (counts.touched or 0) + (counts.written or 0)


@pytest.mark.parametrize("kind", ["anon", "shmem", "file", "private", "zero"])
def test_written_pages_are_counted(program: Path, data: Path, kind: str) -> None:
    """All of them, and no others; the data is as it was written."""
    with Workload([program], kind, PAGES, str(data)) as work:
        found = window(work, lambda: work.order("w", SOME))
        counts = of(found, work)
        assert len(SOME) * PAGE == accessed(counts)
        assert (PAGES * PAGE, PAGES * PAGE, 0, counts.unknown_reads) == (
            counts.resident, counts.observed, counts.new, counts.unknown,
        )  # fmt: skip
        assert 0 == work.spoilt(SOME)
        assert not len(armed(work))
        assert found.total.used >= len(SOME) * PAGE


@pytest.mark.parametrize("kind", ["anon", "shmem", "file", "private", "zero"])
def test_pages_that_are_read_count_where_reads_fault(program: Path, data: Path, kind: str) -> None:
    """Elsewhere nothing is said of them, or it is unknown whether there were any."""
    with Workload([program], kind, PAGES, str(data)) as work, observed(work) as observation:
        work.order("r", SOME)
        counts = of(observation.end(), work)
        if counts.touched is not None:
            assert (len(SOME) * PAGE, None, 0) == (counts.touched, counts.written, counts.unknown)
        else:
            assert (0, PAGES * PAGE if observation.reads else 0) == (counts.written, counts.unknown_reads)


def test_memory_that_is_not_used(program: Path) -> None:
    """An idle process has no working set, and other mappings have their own rows."""
    with Workload([program], "anon", PAGES) as work:
        found = window(work, lambda: None)
        assert (0, 0) == (accessed(of(found, work)), of(found, work).used)
        names = [row.mapping.name for row in found.mappings]
        assert {"[heap]", "[stack]", str(program)} <= set(names)


def test_files_that_may_not_be_written(program: Path, data: Path) -> None:
    """Nothing is armed there, so that reading stays as fast as it is; no page was written."""
    with Workload([program], "readonly", PAGES, str(data)) as work, observed(work) as observation:
        work.order("r", EVERY)
        counts = of(observation.end(), work)
        assert (counts.resident, None, 0) == (counts.observed, counts.touched, counts.written)
        assert (counts.resident if observation.reads else 0) == counts.unknown == counts.unknown_reads


def test_a_mapping_may_lose_the_right_to_write(program: Path) -> None:
    """Writes until then count."""
    with Workload([program], "anon", PAGES) as work:
        found = window(work, lambda: (work.order("w", SOME), work.order("p")))
        assert (len(SOME) * PAGE, 0) == (accessed(of(found, work)), of(found, work).unknown)


def test_huge_pages_stay_whole(program: Path) -> None:
    """Where the kernel would split an armed one at the first write, it is unknown."""
    with Workload([program], "thp", 4 * 512) as work:
        huge = smaps(work, "AnonHugePages")
        if not huge:
            pytest.skip("kernel lacks: transparent huge pages, or free ones")
        with observed(work) as observation:
            unknown = 0 if observation.reads else huge
            assert unknown <= observation.cost(never).unknown
            assert huge == smaps(work, "AnonHugePages")
            work.order("w", range(4 * 512))
            counts = of(observation.end(), work)
            assert huge == smaps(work, "AnonHugePages")
        assert (unknown, 0) == (counts.unknown_huge, counts.unknown_other)
        assert 4 * HUGE - unknown == accessed(counts)
        assert huge == smaps(work, "AnonHugePages")


def test_first_touches_are_new(program: Path) -> None:
    """By a write or a read."""
    with Workload([program], "untouched", PAGES) as work:
        found = window(work, lambda: (work.order("w", range(100)), work.order("r", range(100, 150))))
        counts = of(found, work)
        assert (150 * PAGE, 0, 0) == (counts.new, accessed(counts), counts.unknown)


@pytest.mark.parametrize("order", ["m", "M", "u", "d"])
def test_memory_that_goes_away_is_unknown(program: Path, order: str) -> None:
    """Replaced by another mapping or by one that is moved there, unmapped, given back: no page of it counts as idle."""
    with Workload([program], "anon", PAGES) as work:
        found = window(work, lambda: (work.order("w", SOME), work.order(order)))
        assert PAGES * PAGE == found.total.unknown_left
        if order != "u":
            counts = of(found, work)
            assert (PAGES * PAGE, 0) == (counts.unknown_left, accessed(counts))
            assert (PAGES * PAGE if order == "M" else 0) == counts.mapped_since


def test_mappings_that_come_are_counted_apart(program: Path) -> None:
    """And so is memory that was moved elsewhere: it is not armed there."""
    with Workload([program], "anon", PAGES) as work:
        places: list[int] = []
        found = window(work, lambda: places.append(int.from_bytes(work.order("n", answer=8), "little")))
        assert PAGES * PAGE == of(found, work, places[0]).mapped_since
        assert 0 == of(found, work).unknown
        work.base = places[0]
        found = window(work, lambda: places.append(int.from_bytes(work.order("R", answer=8), "little")))
        assert (PAGES * PAGE, PAGES * PAGE) == (of(found, work, places[1]).mapped_since, found.total.unknown_left)


def test_a_child_is_no_part_of_it(program: Path) -> None:
    """fork() copies armed pages; the child writes to its own."""
    with Workload([program], "anon", PAGES) as work:
        fine: list[bytes] = []
        found = window(work, lambda: fine.append(work.order("f", EVERY)))
        assert ([b"\1"], 0) == (fine, accessed(of(found, work)))


def test_the_cost_is_what_is_armed(program: Path) -> None:
    """Each page that is there, and a fault for each. Where reads fault, those of files without writers are unknown."""
    with Workload([program], "anon", PAGES) as work, FaultObservation(work.pid) as observation:
        cost = observation.cost(never)
        assert PAGES * PAGE <= cost.observed <= cost.resident
        assert cost.observed // PAGE == cost.faults
        assert (cost.resident - cost.observed if observation.reads else 0) == cost.unknown
        assert not len(armed(work))
        observation.begin(never)
        assert PAGES == len(armed(work))


def test_a_sparse_process_costs_what_it_holds(program: Path) -> None:
    """Terabytes of reserved addresses get no page tables."""
    with Workload([program], "reserved", PAGES) as work:

        def tables() -> int:
            lines = Path(f"/proc/{work.pid}/status").read_text(encoding="utf-8").splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmPTE"))

        before = tables()
        found = window(work, lambda: work.order("w", SOME))
        assert len(SOME) * PAGE == accessed(of(found, work))
        # A page of the stack that was not there may need one; those would need two million.
        assert tables() - before <= 4 * PAGE >> 10


def test_exec_takes_the_memory_away(program: Path) -> None:
    """With it goes what there was to count."""
    with Workload([program], "anon", PAGES) as work, observed(work) as observation:
        assert observation.alive()
        work.send("x")
        work.greet()
        assert not observation.alive()
        assert 0 == observation.end().total.resident


def test_a_process_with_a_userfaultfd_of_its_own_is_refused(program: Path) -> None:
    """What it protects stays so; one that makes it later gets the memory back."""
    with Workload([program], "anon", PAGES) as work:
        with observed(work) as observation:
            observation.look()
            work.order("T")
            wait_until(lambda: refuses(observation))
            work.order("U", SOME)
        assert list(SOME) == armed(work).tolist()
        before = open_files()
        with pytest.raises(OSError, match="uses a userfaultfd of its own"):
            FaultObservation(work.pid)
        assert list(SOME) == armed(work).tolist()
        assert before == open_files()


def refuses(observation: FaultObservation) -> bool:
    """Whether the process was seen to have a userfaultfd."""
    try:
        observation.look()
    except OSError as error:
        assert errno.EBUSY == error.errno
        assert "uses a userfaultfd of its own" in str(error)
        return True
    return False


def test_stopped_before_it_began(program: Path) -> None:
    """Nothing is armed afterwards."""
    with Workload([program], "anon", PAGES) as work:
        with FaultObservation(work.pid) as observation:
            observation.begin(lambda: True)
        assert not len(armed(work))


@pytest.mark.parametrize(("pid", "why"), [(2, "kernel thread"), (4_194_305, "there is no process")])
def test_what_is_no_process(pid: int, why: str) -> None:
    """The reason is said, and nothing stays open."""
    before = open_files()
    with pytest.raises(OSError, match=why):
        FaultObservation(pid)
    assert before == open_files()


def test_a_monitor_that_is_killed_leaves_nothing_armed(program: Path, faulting: LinuxMachine) -> None:
    """In the middle of a window, with everything armed."""
    script = textwrap.dedent(
        """
        import sys, time
        from kdamon.mm.working_set.by_faults import FaultObservation
        observation = FaultObservation(int(sys.argv[1]))
        observation.begin(lambda: False)
        print("armed", flush=True)
        time.sleep(300)
        """
    )
    with Workload([program], "anon", PAGES) as work:
        words = [sys.executable, "-c", script, str(work.pid)]
        with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE) as monitor:
            assert monitor.stdout is not None
            assert b"armed\n" == monitor.stdout.readline()
            assert PAGES == len(armed(work))
            os.kill(monitor.pid, signal.SIGKILL)
        wait_until(lambda: not len(armed(work)))
        work.order("w", EVERY)
        assert 0 == work.spoilt(EVERY)
