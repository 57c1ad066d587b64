# SPDX-License-Identifier: GPL-2.0-only
"""Filters on the pages of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.mm import AddressSpace, PageFilter, ranges
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.proc.kpageflags import COMPOUND_HEAD, COMPOUND_TAIL, Folios
from tests.support.capabilities import needs_memory_cgroup, needs_page_cgroups, needs_root
from tests.support.paths import ROOT
from tests.support.process_memory import (
    EVERYTHING,
    HUGE,
    IN_BATCHES,
    PAGE,
    PAGES,
    pages,
    present,
    smaps,
    space_of,
)
from tests.support.workload import Workload

pytestmark = pytest.mark.real


def only(kind: str, **more: int) -> list[PageFilter]:
    """Lets pages of a type pass, and no others."""
    return [PageFilter(kind, True, True, **more)]


def passing(mm: AddressSpace, wanted: U64Array, filters: list[PageFilter]) -> int:
    """How many pages pass; what no filter matches does not."""
    found = mm.page_filter(wanted, filters, True)
    assert np.array_equal(ranges.intersect(found, wanted), found)
    return ranges.total(found) // PAGE


@pytest.mark.parametrize(("kind", "expected"), [("anon", PAGES), ("thp", PAGES), ("shmem", 0), ("zero", 0)])
def test_anonymous_memory(machine: LinuxMachine, program: Path, kind: str, expected: int) -> None:
    """Shared memory is not, nor is the page of zeros."""
    with Workload([program], kind, PAGES) as work, space_of(machine, work.pid) as mm:
        assert expected == passing(mm, pages(work, 0, PAGES), only("anon"))
        others = [PageFilter("anon", False, True)]
        assert passing(mm, pages(work, 0, PAGES), others) == (PAGES if kind == "shmem" else 0)


def test_only_mapped_pages_pass(machine: LinuxMachine, program: Path) -> None:
    """Each of them, as ranges, of several gibibytes of addresses."""
    with Workload([program], "untouched", 3 << 18) as work, space_of(machine, work.pid) as mm:
        touched = [0, 1, 5, 600, 1 << 18, (3 << 18) - 1]
        work.order("w", touched)
        found = mm.page_filter(pages(work, 0, 3 << 18), only("anon"), True)
        numbers = (found - np.uint64(work.base)) // np.uint64(PAGE)
        assert numbers.tolist() == [[0, 2], *([page, page + 1] for page in touched[2:])]


def test_filters_decide_in_their_order(machine: LinuxMachine, program: Path, directory: Path) -> None:
    """Of a whole process: anonymous and other memory are all that is mapped."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        anon = passing(mm, EVERYTHING, only("anon"))
        other = passing(mm, EVERYTHING, [PageFilter("anon", False, True)])
        everything = passing(mm, EVERYTHING, [PageFilter("anon", True, True), PageFilter("unmapped", False, True)])
        assert anon >= PAGES
        assert other > 0
        assert everything == anon + other
        rejected = [PageFilter("anon", True, False)]
        assert ranges.total(mm.page_filter(EVERYTHING, rejected, False)) == other * PAGE
        assert [] == mm.page_filter(EVERYTHING, rejected, True).tolist()
        assert 0 == passing(mm, EVERYTHING, only("unmapped"))


def test_young_is_asked_and_answered_once(machine: LinuxMachine, program: Path) -> None:
    """Pages pass that were accessed since it was asked before."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(PAGES))
        assert passing(mm, pages(work, 0, PAGES), only("young")) >= PAGES - IN_BATCHES
        assert passing(mm, pages(work, 0, PAGES), only("young")) <= IN_BATCHES
        work.order("r", range(0, PAGES, 2))
        assert abs(passing(mm, pages(work, 0, PAGES), only("young")) - PAGES // 2) <= IN_BATCHES
        assert 0 == work.spoilt(range(PAGES))


def test_a_page_that_another_filter_decided_about_stays_young(machine: LinuxMachine, program: Path) -> None:
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(PAGES))
        filters = [PageFilter("anon", True, False), *only("young")]
        assert 0 == passing(mm, pages(work, 0, PAGES), filters)
        assert passing(mm, pages(work, 0, PAGES), only("young")) >= PAGES - IN_BATCHES


def test_a_huge_page_is_young_as_a_whole_and_never_split(machine: LinuxMachine, program: Path) -> None:
    """A part of one is found, but stays young: the whole could not be made old without its other part."""
    many = HUGE // PAGE
    with Workload([program], "thp", PAGES) as work, space_of(machine, work.pid) as mm:
        passing(mm, pages(work, 0, PAGES), only("young"))
        work.order("w", [5, many + 5])
        for expected in (many + 100, 100):
            assert expected == passing(mm, pages(work, 0, many + 100), only("young"))
        assert PAGES * PAGE == smaps(work, "AnonHugePages")


def test_a_range_that_begins_inside_a_folio_counts_its_own_pages(machine: LinuxMachine, program: Path) -> None:
    """Neither what the folio has before it, nor as many pages after the folio's end."""
    many = HUGE // PAGE
    with Workload([program], "thp", PAGES) as work, space_of(machine, work.pid) as mm:
        for first, stop in ((100, 150), (100, many + 100), (many - 1, many + 1)):
            assert stop - first == passing(mm, pages(work, first, stop), only("anon"))


@pytest.mark.parametrize(("kind", "size"), [("anon", PAGE), ("thp", HUGE)])
def test_sizes_of_folios(machine: LinuxMachine, program: Path, kind: str, size: int) -> None:
    """Both bounds included; also when only a part of a huge page is asked about."""
    with Workload([program], kind, PAGES) as work, space_of(machine, work.pid) as mm:
        wanted = pages(work, 100, PAGES - 100)
        for low, high, expected in ((0, size - 1, 0), (size, size, PAGES - 200), (size + 1, 1 << 40, 0)):
            assert expected == passing(mm, wanted, only("hugepage_size", min_size=low, max_size=high))


def test_active_pages(machine: LinuxMachine, program: Path) -> None:
    """Cold ones are not."""
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        mm.advise("cold", pages(work, 0, PAGES))
        assert passing(mm, pages(work, 0, PAGES), only("active")) <= IN_BATCHES
        assert passing(mm, pages(work, 0, PAGES), [PageFilter("active", False, True)]) >= PAGES - IN_BATCHES


@needs_page_cgroups
@needs_memory_cgroup
def test_pages_of_a_control_group(machine: LinuxMachine, program: Path) -> None:
    """Memory is charged to the group of the process that touched it first."""
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    paths = [path for _, controllers, path in groups if controllers in {"memory", ""}]
    inode = machine.memcg_id(paths[0])
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        assert PAGES == passing(mm, pages(work, 0, PAGES), only("memcg", memcg_id=inode))
        assert 0 == passing(mm, pages(work, 0, PAGES), only("memcg", memcg_id=inode + 1))


def test_only_what_passed_is_paged_out(machine: LinuxMachine, program: Path, directory: Path) -> None:
    """Half of a file that was not accessed since it was asked, and not the rest."""
    path = directory / "half"
    path.write_bytes(bytes(PAGES * PAGE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Workload([program], "readonly", PAGES, str(path)) as work, space_of(machine, work.pid) as mm:
        wanted = pages(work, 0, PAGES)
        passing(mm, wanted, only("young"))
        work.order("r", range(PAGES // 2))
        old = mm.page_filter(wanted, [PageFilter("young", True, False)], False)
        out = int(mm.advise("pageout", old).sum())
        assert out >= (PAGES // 2 - IN_BATCHES) * PAGE
        # The kernel's own DAMON may have cleared an accessed bit meanwhile.
        assert np.count_nonzero(~present(work, 0, PAGES // 2)) <= IN_BATCHES
        assert out == PAGE * np.count_nonzero(~present(work))


def test_a_process_that_ended_has_no_pages(machine: LinuxMachine, program: Path) -> None:
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        work.process.kill()
        work.process.wait()
        assert [] == mm.page_filter(EVERYTHING, only("anon"), True).tolist()


WITHOUT_FRAMES = """
import errno, os
import numpy as np
from kdamon.mm import PageFilter
from kdamon.mm.linux.machine import linux_machine
try:
    mm = linux_machine().get_task(os.getpid()).get_mm()
    mm.page_filter(np.array([[0, 1 << 47]], np.uint64), [PageFilter("anon", True, True)], True)
except OSError as error:
    print(errno.errorcode[error.errno], error.strerror)
"""


@needs_root("needs root, to give capabilities up")
def test_without_page_frames_it_says_so(machine: LinuxMachine) -> None:
    """In one sentence that says how to get them."""
    less = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    said = subprocess.run(
        [*less, sys.executable, "-c", WITHOUT_FRAMES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("EPERM the numbers of page frames, for filters on pages, need CAP_SYS_ADMIN")


def test_folios_are_the_same_one_by_one_and_all_at_once(tmp_path: Path) -> None:
    """On a copy of the flags of this machine's pages, because they change."""
    copy = tmp_path / "kpageflags"
    with open("/proc/kpageflags", "rb", buffering=0) as kpageflags:
        copy.write_bytes(b"".join(kpageflags.read(1 << 20) for _ in range(64)))
    flags = np.fromfile(copy, np.uint64)
    compound = np.flatnonzero(flags & np.uint64(COMPOUND_HEAD | COMPOUND_TAIL))
    rng = np.random.default_rng(1)
    pfns = np.concatenate((rng.choice(compound, 1000), rng.integers(1, len(flags), 1000))).astype(np.uint64)
    folios = Folios(str(copy))
    table = folios.table(pfns)
    extents = list(zip(table.heads.tolist(), table.pages.tolist(), strict=True))
    assert extents == [folios.extent(pfn) or (pfn, 1) for pfn in pfns.tolist()]
    folios.close()
