# SPDX-License-Identifier: GPL-2.0-only
"""What actions do to the memory of real processes, and what they say that they did."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdamon.arrays import U64Array
from kdamon.lib.pidfd import pidfd_open
from kdamon.mm.actions.advice import Advice
from kdamon.mm.actions.madvise import Adviser
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.proc.kpageflags import shared_folios
from kdamon.mm.proc.pagemap import Pagemap, entries_at, frames
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.sampling.page_table import PageTableSpace
from tests.support.capabilities import needs_root, needs_swap
from tests.support.paths import ROOT, SUPPORT
from tests.support.process_memory import (
    EVERYTHING,
    HUGE,
    IN_BATCHES,
    PAGE,
    PAGES,
    SIZE,
    pages,
    present,
    smaps,
    space_of,
)
from tests.support.workload import Workload

pytestmark = pytest.mark.real


SCRIPT = SUPPORT / "workload_script.py"

ACTIONS = ["pageout", "cold", "willneed", "collapse"]


def accessed(machine: LinuxMachine, work: Workload, first: int, last: int) -> int:
    """How many pages have their accessed bit set."""
    with space_of(machine, work.pid) as mm:
        assert isinstance(mm, PageTableSpace)
        addrs = np.arange(work.base + first * PAGE, work.base + last * PAGE, PAGE, dtype=np.uint64)
        return int(np.count_nonzero(Pagemap(mm.pagemap).accessed(addrs)))


def major_faults(work: Workload) -> int:
    return int(Path(f"/proc/{work.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[9])


# Pageout and willneed.


@pytest.mark.parametrize("kind", ["file", "readonly"])
def test_a_cold_half_is_paged_out_and_comes_back(machine: LinuxMachine, program: Path, data: Path, kind: str) -> None:
    """Of a mapped file; the other half stays, nothing changes, and what comes back is there before it is touched."""
    half = PAGES // 2
    with Workload([program], kind, PAGES, str(data)) as work, space_of(machine, work.pid) as mm:
        rss = smaps(work, "Rss")
        out = int(mm.advise("pageout", pages(work, 0, half)).sum())
        left = rss - smaps(work, "Rss")
        assert left == PAGE * np.count_nonzero(~present(work))
        # A page that some CPU holds on to for a moment is unmapped, and stays in memory.
        assert left - IN_BATCHES * PAGE <= out <= left
        assert out >= (half - IN_BATCHES) * PAGE
        assert present(work, half).all()
        assert mm.advise("pageout", pages(work, 0, half)).sum() <= IN_BATCHES * PAGE

        back = int(mm.advise("willneed", pages(work, 0, half)).sum())
        assert back >= (half - IN_BATCHES) * PAGE
        assert 0 == mm.advise("willneed", pages(work, 0, half)).sum()
        before = major_faults(work)
        assert 0 == work.spoilt(range(PAGES))
        assert present(work).all()
        assert major_faults(work) == before


@pytest.mark.parametrize("action", ["cold", "pageout", "willneed"])
def test_it_is_told_for_each_range(machine: LinuxMachine, program: Path, data: Path, action: str) -> None:
    """How much of it the action was applied to, also where ranges touch each other or hold nothing."""
    with Workload([program], "file", PAGES, str(data)) as work, space_of(machine, work.pid) as mm:
        whole = PAGES // 512
        edges = [pages(work, first * 512, last * 512) for first, last in ((0, 1), (1, 2), (2, whole - 1))]
        nothing = np.array([[PAGE, 2 * PAGE]], np.uint64)
        if action == "willneed":
            mm.advise("pageout", pages(work, 512, 1024))
        applied = mm.advise(action, np.concatenate((nothing, *edges))).tolist()
        slack = IN_BATCHES * PAGE
        if action == "willneed":
            assert [0, 0] == applied[:2]
            assert HUGE - slack <= applied[2] <= HUGE
            assert 0 == applied[3]
        else:
            assert 0 == applied[0]
            assert all(
                size - slack <= one <= size
                for one, size in zip(applied[1:], (HUGE, HUGE, (whole - 3) * HUGE), strict=True)
            )


def test_small_pages_are_paged_out_piece_by_piece(
    machine: LinuxMachine, program: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no call takes long, and no folio is cut: private copies of pages are folios of their own."""
    batches = []
    each = Adviser.advise_each

    def noted(self: Adviser, starts: U64Array, sizes: U64Array, *rest: object) -> npt.NDArray[np.bool_]:
        batches.append((starts, sizes))
        return each(self, starts, sizes, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Adviser, "advise_each", noted)
    with Workload([program], "file", PAGES, str(data)) as work, space_of(machine, work.pid) as mm:
        with open(f"/proc/{work.pid}/pagemap", "rb") as pagemap:
            addrs = np.arange(work.base, work.base + SIZE, PAGE, dtype=np.uint64)
            table = shared_folios().table(frames(entries_at(pagemap.fileno(), addrs)))
        mm.advise("pageout", pages(work, 0, PAGES))
        # Two batches where the mapping crosses a multiple of 1 GiB.
        starts, sizes = map(np.concatenate, zip(*batches, strict=True))
        cut = np.isin(addrs, starts)
        assert (table.heads[cut] == table.pfns[cut]).all()
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            inside = (addrs >= start) & (addrs < start + size)
            assert size <= 1 << 18 or (table.pages[inside] > 1).any()


def test_a_huge_page_of_a_file_is_paged_out_as_a_whole(machine: LinuxMachine, program: Path, data: Path) -> None:
    """To page a part of it out would take the whole from the process, and leave it in memory."""
    with Workload([program], "file", PAGES, str(data)) as work, space_of(machine, work.pid) as mm:
        assert isinstance(mm, PageTableSpace)
        work.order("r", range(PAGES))
        before = present(work)
        out = int(mm.advise("pageout", pages(work, 600, 700)).sum())
        assert out == PAGE * np.count_nonzero(before & ~present(work)) <= 100 * PAGE
        assert 0 == work.spoilt(range(PAGES))


TWO_VIEWS = """
import ctypes, mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(file, os.urandom(4096) * 2048)
os.fsync(file)
views = [mmap.mmap(file, 8 << 20) for _ in range(2)]
for view in views:
    sum(view[at] for at in range(0, 8 << 20, 4096))
print(*(ctypes.addressof(ctypes.c_char.from_buffer(view)) for view in views), flush=True)
sys.stdin.read()
"""


def test_a_file_that_a_process_maps_twice_is_not_paged_out(machine: LinuxMachine, tmp_path: Path) -> None:
    """By the view that is not accessed the other one would go, too."""
    command = [sys.executable, "-c", TWO_VIEWS, str(tmp_path / "views")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        starts = list(map(int, process.stdout.readline().split()))
        task = machine.get_task(process.pid)
        mm = task.get_mm()
        assert mm is not None
        second = np.array([[starts[1], starts[1] + (8 << 20)]], np.uint64)
        assert [0] == mm.advise("pageout", second).tolist()
        task.put()
        with open(f"/proc/{process.pid}/pagemap", "rb") as pagemap:
            for start in starts:
                addrs = np.arange(start, start + (8 << 20), 4096, dtype=np.uint64)
                assert (entries_at(pagemap.fileno(), addrs) >> np.uint64(63)).all()


def test_dirty_pages_of_a_file_are_not_paged_out_before_they_are_written(
    machine: LinuxMachine, program: Path, data: Path
) -> None:
    """The kernel unmaps them and keeps them in memory: that does not count."""
    with Workload([program], "file", PAGES, str(data)) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(PAGES))
        rss = smaps(work, "Rss")
        out = int(mm.advise("pageout", pages(work, 0, PAGES)).sum())
        assert out <= rss - smaps(work, "Rss")
        assert 0 == work.spoilt(range(PAGES))
        with data.open("rb") as file:
            os.fsync(file.fileno())
        work.order("r", range(PAGES))
        assert mm.advise("pageout", pages(work, 0, PAGES)).sum() >= SIZE - IN_BATCHES * PAGE
        assert 0 == work.spoilt(range(PAGES))


@pytest.mark.parametrize("kind", ["anon", "thp", "shmem"])
def test_memory_without_a_file_needs_swap(machine: LinuxMachine, program: Path, kind: str) -> None:
    """Without swap nothing is paged out, and no huge page is split; with it, the returned bytes are in swap."""
    with Workload([program], kind, PAGES) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(PAGES))
        huge = smaps(work, "AnonHugePages")
        out = int(mm.advise("pageout", pages(work, 0, PAGES)).sum())
        if len(Path("/proc/swaps").read_text(encoding="utf-8").splitlines()) > 1:
            assert out == smaps(work, "Swap") > 0
        else:
            assert 0 == out
            assert smaps(work, "AnonHugePages") == huge
        assert 0 == work.spoilt(range(PAGES))


@needs_swap
def test_swapped_memory_comes_back_unchanged(machine: LinuxMachine, program: Path) -> None:
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(PAGES))
        assert mm.advise("pageout", pages(work, 0, PAGES // 2)).sum() > 0
        mm.advise("willneed", pages(work, 0, PAGES // 2))
        assert 0 == work.spoilt(range(PAGES))
        assert present(work).all()


# Cold.


@pytest.mark.parametrize("kind", ["anon", "thp", "shmem", "file"])
def test_cold_clears_accessed_bits_of_one_half(machine: LinuxMachine, program: Path, data: Path, kind: str) -> None:
    half = PAGES // 2
    with Workload([program], kind, PAGES, str(data)) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(PAGES))
        assert accessed(machine, work, 0, half) > half - IN_BATCHES
        applied = int(mm.advise("cold", pages(work, 0, half)).sum())
        assert applied == (half - accessed(machine, work, 0, half)) * PAGE >= (half - IN_BATCHES) * PAGE
        assert accessed(machine, work, half, PAGES) > half - IN_BATCHES
        assert 0 == work.spoilt(range(PAGES))


def test_cold_of_a_python_program(machine: LinuxMachine) -> None:
    with Workload([sys.executable, SCRIPT], "anon", 512) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(512))
        assert mm.advise("cold", pages(work, 0, 512)).sum() >= (512 - IN_BATCHES) * PAGE
        assert accessed(machine, work, 0, 512) <= IN_BATCHES


def test_pages_that_others_map_stay_accessed_and_do_not_count(machine: LinuxMachine, program: Path) -> None:
    with Workload([program], "fork", PAGES) as work, space_of(machine, work.pid) as mm:
        work.order("r", range(PAGES))
        applied = int(mm.advise("cold", pages(work, 0, PAGES)).sum())
        assert applied == (PAGES - accessed(machine, work, 0, PAGES)) * PAGE <= IN_BATCHES * PAGE


# Collapse.


def test_collapse_makes_huge_pages(machine: LinuxMachine, program: Path) -> None:
    """Whole ones within the range; what was huge before does not count."""
    with Workload([program], "small", PAGES) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(PAGES))
        assert 0 == smaps(work, "AnonHugePages")
        applied = int(mm.advise("collapse", pages(work, 1, PAGES // 2)).sum())
        assert applied == smaps(work, "AnonHugePages") == SIZE // 2 - HUGE
        applied = int(mm.advise("collapse", pages(work, 0, PAGES)).sum())
        assert SIZE // 2 + HUGE == applied
        assert SIZE == smaps(work, "AnonHugePages")
        assert 0 == mm.advise("collapse", pages(work, 0, PAGES)).sum()
        assert 0 == work.spoilt(range(PAGES))


def test_memory_that_shall_have_no_huge_pages_gets_none(machine: LinuxMachine, program: Path) -> None:
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        assert 0 == mm.advise("collapse", pages(work, 0, PAGES)).sum()
        assert 0 == smaps(work, "AnonHugePages")


# What is left out.


@pytest.mark.parametrize("action", ACTIONS)
def test_locked_memory_is_left_alone(machine: LinuxMachine, program: Path, action: str) -> None:
    """And does not keep the advice from what comes before and after it."""
    with Workload([program], "mlock", PAGES) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(PAGES))
        young = accessed(machine, work, 0, PAGES)
        assert 0 == mm.advise(action, pages(work, 0, PAGES)).sum()
        around = int(mm.advise(action, EVERYTHING).sum())
        assert around > 0 or action != "cold"
        assert present(work).all()
        assert accessed(machine, work, 0, PAGES) > young - IN_BATCHES
        assert 0 == work.spoilt(range(PAGES))


@pytest.mark.parametrize("action", ACTIONS)
def test_holes_and_wrong_addresses_are_left_out(machine: LinuxMachine, program: Path, data: Path, action: str) -> None:
    """Addresses that are not mapped, and the kernel's, before and after a mapping that is not page-aligned in 2 MiB."""
    with Workload([program], "file", PAGES, str(data)) as work, space_of(machine, work.pid) as mm:
        with space_of(machine, work.pid) as other:
            assert 0 == other.advise(action, np.empty((0, 2), np.uint64)).sum()
        assert 0 == mm.advise(action, np.array([[0, PAGE], [1 << 46, (1 << 46) + HUGE]], np.uint64)).sum()
        top = (1 << 64) - PAGE
        assert 0 == mm.advise(action, np.array([[1 << 47, top]], np.uint64)).sum()
        assert mm.advise(action, np.array([[0, work.base], [work.base, top]], np.uint64)).sum() >= 0
        assert 0 == work.spoilt(range(PAGES))


def test_more_than_two_gib_are_advised(machine: LinuxMachine, program: Path) -> None:
    """The kernel would cut a single call off; and what is only reserved costs nothing."""
    many = 3 << 18
    with Workload([program], "untouched", many) as work, space_of(machine, work.pid) as mm:
        touched = [0, 1, 1000, many // 2, many - 512, many - 1]
        work.order("w", touched)
        assert mm.advise("cold", pages(work, 0, many)).sum() <= len(touched) * PAGE
        work.order("w", range(many - 2000, many))
        assert mm.advise("cold", pages(work, 0, many)).sum() >= (2000 - IN_BATCHES) * PAGE
        assert accessed(machine, work, many - 2000, many) <= IN_BATCHES
        assert 0 == work.spoilt(touched)


# Processes that change meanwhile, and those that may not be touched.


def _space_in_steps(work: Workload) -> tuple[ProcessFiles, Advice]:
    directory = os.open(f"/proc/{work.pid}", os.O_RDONLY | os.O_DIRECTORY)
    files = ProcessFiles(directory)
    os.close(directory)
    return files, Advice(files, pidfd_open(work.pid))


@pytest.mark.parametrize("action", ["pageout", "cold", "collapse"])
@pytest.mark.parametrize("end", ["exec", "exit", "unmap"])
def test_a_process_that_changes_midway_is_no_error(program: Path, action: str, end: str) -> None:
    """What was mapped is gone between two steps, of which there is one for each gibibyte with anything in it."""
    with Workload([program], "anon", PAGES) as work:
        files, advice = _space_in_steps(work)
        steps = advice.apply(action, EVERYTHING)
        next(steps)
        if end == "exec":
            work.send("x")
            work.greet()
        elif end == "exit":
            work.process.kill()
            work.process.wait()
        else:
            work.order("u")
        left = sum(steps)
        if end == "unmap":
            assert left < SIZE
        else:
            assert 0 == left
            assert [] == list(advice.apply(action, EVERYTHING))
        files.close()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_process_that_ended_has_nothing_left(machine: LinuxMachine, program: Path, action: str) -> None:
    with Workload([program], "anon", PAGES) as work, space_of(machine, work.pid) as mm:
        work.process.kill()
        work.process.wait()
        assert 0 == mm.advise(action, EVERYTHING).sum()


@pytest.mark.parametrize("action", ACTIONS)
def test_the_first_thread_has_to_be_there(action: str) -> None:
    """The kernel finds the memory by it; else that is said."""
    script = """
import ctypes, sys, threading
threading.Thread(target=lambda: (print(threading.get_native_id(), flush=True), sys.stdin.read())).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while "State:\tZ" not in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"):
            time.sleep(0.01)
        directory = os.open(f"/proc/{process.pid}", os.O_RDONLY | os.O_DIRECTORY)
        files, pidfd = ProcessFiles(directory), pidfd_open(process.pid)
        with pytest.raises(ProcessLookupError, match="first thread, which ended"):
            list(Advice(files, pidfd).apply(action, EVERYTHING))
        files.close()
        os.close(pidfd)
        os.close(directory)
        process.kill()


def test_unknown_actions_are_refused(machine: LinuxMachine) -> None:
    with space_of(machine, os.getpid()) as mm, pytest.raises(OSError, match="use another action") as caught:
        mm.advise("lru_prio", EVERYTHING)
    assert errno.EOPNOTSUPP == caught.value.errno


UNPRIVILEGED = """
import errno, os, sys
import numpy as np
from kdamon.mm.actions.advice import Advice
from kdamon.lib.pidfd import pidfd_open
from kdamon.mm.proc.process_files import ProcessFiles
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
pid = int(sys.argv[1])
files = ProcessFiles(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY))
for action in ("pageout", "cold", "willneed", "collapse"):
    try:
        sum(Advice(files, pidfd_open(pid)).apply(action, np.array([[0, 1 << 47]], np.uint64)))
        print("was done")
    except OSError as error:
        print(action, errno.errorcode[error.errno], error.strerror)
"""


@needs_root("needs root, to become another user")
def test_who_may_not_is_told_what_is_missing(program: Path) -> None:
    """For a process of the same user that has no capability: a sentence for each action."""
    with Workload([program], "anon", PAGES, user=65534) as work:
        pid = str(work.pid)
        said = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, pid],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    assert len(said) == len(ACTIONS)
    for action, line in zip(ACTIONS, said, strict=True):
        assert line == (
            f"{action} EPERM {action} on another process's memory needs CAP_SYS_NICE; run as root or give that "
            "capability"
        )


WITHOUT_WALK = """
import errno, os, sys
import numpy as np
from kdamon.mm.actions.advice import Advice
from kdamon.lib.pidfd import pidfd_open
from kdamon.mm.proc.process_files import ProcessFiles
pid, base, size = map(int, sys.argv[1:])
files = ProcessFiles(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY))
for action in ("collapse", "cold", "pageout", "willneed"):
    try:
        print(int(sum(Advice(files, pidfd_open(pid)).apply(action, np.array([[base, base + size]], np.uint64)))[0]))
    except OSError as error:
        print(errno.errorcode[error.errno], error.strerror)
"""


@needs_root("needs root, to give capabilities up")
def test_without_the_page_table_walk(machine: LinuxMachine, program: Path, data: Path) -> None:
    """An action without a measurable effect is refused; pageout and willneed are measured even without page frames."""
    less = [f"--{name}=-bpf,-perfmon,-sys_admin" for name in ("bounding-set", "inh-caps")]
    with Workload([program], "readonly", PAGES, str(data)) as work:
        said = subprocess.run(
            ["setpriv", *less, sys.executable, "-c", WITHOUT_WALK, str(work.pid), str(work.base), str(SIZE)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert all(line.startswith("EPERM reading page tables needs CAP_BPF") for line in said[:2])
        assert int(said[2]) == PAGE * np.count_nonzero(~present(work)) >= SIZE - IN_BATCHES * PAGE
        assert int(said[3]) >= SIZE - IN_BATCHES * PAGE
        assert 0 == work.spoilt(range(PAGES))
