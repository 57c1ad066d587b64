# SPDX-License-Identifier: GPL-2.0-only
"""Physical memory of this machine: page frames whose only process is known, and the answers about all others."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdamon.arrays import U64Array
from kdamon.core import (
    damon_add_scheme,
    damon_add_target,
    damon_call,
    damon_destroy_ctx,
    damon_is_running,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_start,
    damon_stop,
)
from kdamon.damon import damon_attrs, damon_call_control, damon_ctx, damon_ops_id, damos, damos_action
from kdamon.kernel import ULONG_MAX
from kdamon.lib.once import warn_once
from kdamon.mm import OLD, UNKNOWN, YOUNG, PhysicalMemory
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.proc.pagemap import entries_at, frames
from kdamon.mm.ranges import of_pages
from kdamon.mm.sampling import frames as frames_module
from kdamon.paddr import damon_pa_apply_scheme, pa_init
from kdamon.regions import Regions
from tests.support.sampling import open_files, wait_until
from tests.support.workload import Pages, Workload

pytestmark = pytest.mark.real


PAGES = 4096
ROUNDS = 20
#: How often a process is started and ends while memory is monitored.
ENDS = int(os.environ.get("KDAMON_SOAK", "30"))


@contextmanager
def looked_through(machine: LinuxMachine) -> Iterator[PhysicalMemory]:
    """The memory, as the processes that run now map it."""
    memory = machine.physical_memory()
    try:
        memory.update()
        yield memory
    finally:
        memory.put()


def physical(pid: int, addrs: U64Array) -> U64Array:
    """Where the memory of a process is, as its pagemap shows it; 0 where it is not there."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found: U64Array = frames(entries_at(fd, addrs)) << np.uint64(12)
    finally:
        os.close(fd)
    return found


def everything(work: Workload) -> U64Array:
    """The physical addresses of all pages of a workload."""
    return physical(work.pid, work.addrs(np.arange(work.pages)))


def sample(memory: PhysicalMemory, addrs: U64Array, work: Workload, touched: Pages, mode: str = "w") -> list[int]:
    """One sample, during which ``touched`` pages are accessed."""
    memory.begin_sample(addrs)
    work.order(mode, touched)
    found: list[int] = memory.end_sample(addrs).tolist()
    return found


# Samples.


@pytest.mark.parametrize("kind", ["anon", "thp", "shmem"])
@pytest.mark.parametrize("mode", ["r", "w"])
def test_accesses_are_seen_by_physical_addresses(machine: LinuxMachine, program: Path, kind: str, mode: str) -> None:
    """None is invented; hardly any is missed or unknown but in the two worst rounds."""
    rng = np.random.default_rng(7)
    outcome: Counter[str] = Counter()
    missed = []
    with Workload([program], kind, PAGES) as work, looked_through(machine) as memory:
        where = everything(work)
        for _ in range(ROUNDS):
            sampled = rng.integers(0, PAGES, 500)
            # The halves of 2 MiB pages are sampled as one.
            half = rng.permutation(PAGES // 512)[: PAGES // 1024]
            touched = np.flatnonzero(
                np.isin((work.base // 4096 + np.arange(PAGES)) // 512 - work.base // 4096 // 512, half)
            )
            answers = np.array(sample(memory, where[sampled], work, touched, mode))
            truth = np.isin(sampled, touched)
            outcome["accesses"] += int(truth.sum())
            outcome["seen"] += int(((answers == YOUNG) & truth).sum())
            outcome["invented"] += int(((answers == YOUNG) & ~truth).sum())
            missed.append(int(((answers == OLD) & truth).sum()))
    assert 0 == outcome["invented"]
    assert sum(sorted(missed)[:-2]) <= 0.02 * outcome["accesses"]
    assert outcome["seen"] >= 0.75 * outcome["accesses"]


def test_memory_that_a_child_shares_is_unknown(machine: LinuxMachine, program: Path) -> None:
    """After a fork() nothing is claimed about it."""
    with Workload([program], "fork", PAGES) as work, looked_through(machine) as memory:
        assert {UNKNOWN} == set(sample(memory, everything(work), work, np.arange(PAGES), "r"))


def test_memory_that_became_shared_since_the_update_is_unknown(machine: LinuxMachine) -> None:
    """The fork() comes between the update and the sample."""
    script = (
        "import mmap, os, sys\n"
        "memory = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "memory.write(b'x' * (1 << 20))\n"
        "import ctypes\n"
        "print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)\n"
        "sys.stdin.readline()\n"
        "if os.fork() == 0:\n"
        "    print('forked', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        base = int(child.stdout.readline())
        with looked_through(machine) as memory:
            where = physical(child.pid, np.uint64(base) + np.arange(256, dtype=np.uint64) * np.uint64(4096))
            memory.begin_sample(where)
            assert UNKNOWN not in Counter(memory.end_sample(where).tolist()).most_common(1)[0]
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert b"forked\n" == child.stdout.readline()
            memory.begin_sample(where)
            assert {UNKNOWN} == set(memory.end_sample(where).tolist())
            child.stdin.close()
            child.stdin = None
        child.wait()


def test_a_child_that_borrows_the_memory_does_not_share_it(machine: LinuxMachine, program: Path) -> None:
    """Between vfork() and exec() two processes have one address space."""
    with Workload([program], "anon", PAGES) as work:
        where = everything(work)
        work.send("v")
        with looked_through(machine) as memory:
            memory.begin_sample(where)
            assert Counter(memory.end_sample(where).tolist())[OLD] > 0.9 * PAGES
        child = int.from_bytes(work.receive(4), "little")
        os.kill(child, 9)


def test_memory_of_a_process_that_ended_was_not_accessed(machine: LinuxMachine, program: Path) -> None:
    """It is free, or of a process that is not known yet."""
    with looked_through(machine) as memory:
        with Workload([program], "anon", PAGES) as work:
            where = everything(work)
            memory.update()
            assert YOUNG in sample(memory, where, work, np.arange(PAGES))
            memory.begin_sample(where)
        assert YOUNG not in memory.end_sample(where)
        memory.begin_sample(where)
        assert YOUNG not in memory.end_sample(where)


def test_memory_that_was_mapped_since_the_update_is_unknown(machine: LinuxMachine, program: Path) -> None:
    """Until the next one."""
    with looked_through(machine) as memory, Workload([program], "anon", PAGES) as work:
        where = everything(work)
        assert Counter(sample(memory, where, work, np.arange(PAGES)))[UNKNOWN] > 0.9 * PAGES
        memory.update()
        assert Counter(sample(memory, where, work, np.arange(PAGES)))[YOUNG] > 0.75 * PAGES


def test_the_kernels_memory_and_none_at_all_is_old(machine: LinuxMachine) -> None:
    """Its code, and what lies after the end of memory: the kernel's paddr answers the same."""
    lines = Path("/proc/iomem").read_text().splitlines()
    code = next(int(line.split("-")[0], 16) for line in lines if line.endswith("Kernel code"))
    with looked_through(machine) as memory:
        addrs = np.array([code, 1 << 51, 0xFFFF_FFFF_FFFF_FFFF], np.uint64)
        memory.begin_sample(addrs)
        assert [OLD, OLD, OLD] == memory.end_sample(addrs).tolist()


def test_page_cache_that_nobody_maps_is_unknown(machine: LinuxMachine, program: Path, directory: Path) -> None:
    """It is accessed by read() and write(), which leave no accessed bit. Once it is free it is old."""
    path = directory / "physical-cache"
    path.write_bytes(b"\1" * 4096 * 256)
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink)
        with Workload([program], "readonly", 256, str(path)) as work:
            work.order("r", np.arange(256))
            where = everything(work)
            where = where[where != 0]
        assert len(where) > 200
        memory = stack.enter_context(looked_through(machine))
        memory.begin_sample(where)
        assert {UNKNOWN} == set(memory.end_sample(where).tolist())


def test_most_of_the_machines_memory_is_told_about(machine: LinuxMachine) -> None:
    """Unknown is a part of what processes and files have, and nothing else."""
    with looked_through(machine) as memory:
        known, reachable = memory.known()
        assert 0 < known < reachable
        rng = np.random.default_rng(1)
        ram = memory.ram()
        sizes = (ram[:, 1] - ram[:, 0]).astype(np.float64)
        which = rng.choice(len(ram), 2000, p=sizes / sizes.sum())
        addrs = ram[which, 0] + (rng.random(2000) * sizes[which]).astype(np.uint64)
        memory.begin_sample(addrs)
        found = Counter(memory.end_sample(addrs).tolist())
    assert found.keys() <= {OLD, YOUNG, UNKNOWN}
    # Processes come and go, and a sample of 2000 is a few off.
    assert found[UNKNOWN] <= 1.5 * 2000 * reachable / sizes.sum() + 20


def test_all_memory_is_whole_pages_and_not_less_than_the_kernel_manages(machine: LinuxMachine) -> None:
    """Pieces in order, apart from each other; a sentence says what /proc/iomem hides."""
    with looked_through(machine) as memory:
        ram = memory.ram()
    assert (ram % np.uint64(4096) == 0).all()
    assert (np.diff(ram.ravel().astype(np.int64)) > 0).all()
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert (ram[:, 1] - ram[:, 0]).sum() >= 1024 * int(total.split()[1])
    hidden = "00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n"
    assert [] == frames_module._system_ram(hidden).tolist()
    assert [[0x1000, 0x9F000]] == frames_module._system_ram("00000001-0009fbff : System RAM\n").tolist()


def test_what_is_known_of_all_memory_lies_on_the_nodes(machine: LinuxMachine) -> None:
    """As much on all of them together as is known at all; page frames after the end of memory are on none."""
    online = {int(path.name[4:]) for path in Path("/sys/devices/system/node").glob("node[0-9]*")}
    with looked_through(machine) as memory:
        found = memory.node_mem(np.array([[0, 1 << 50]], np.uint64))
        assert found.keys() <= online
        assert memory.known()[0] == sum(found.values()) > 0
        assert {} == memory.node_mem(np.array([[1 << 50, 1 << 51], [5, 7]], np.uint64))


@pytest.mark.parametrize("limit", ["_MAX_PROCESSES", "_MAX_PAGES"])
def test_an_update_is_bounded(
    machine: LinuxMachine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    """With more processes or pages the first ones are known, and that is said."""
    warn_once.cache_clear()
    monkeypatch.setattr(frames_module, limit, 2)
    memory = machine.physical_memory_here(lambda pid: False)
    try:
        memory.update()
        assert memory.known()[0] > 0
    finally:
        memory.put()
    assert "there are too many" in caplog.text


def test_an_update_besides_samples_finds_what_was_mapped_since(machine: LinuxMachine, program: Path) -> None:
    """In pieces; nothing is known of it before, and as much as by one at once afterwards."""
    with looked_through(machine) as memory, Workload([program], "anon", PAGES) as work:
        where = everything(work)
        before = open_files()
        memory.begin_update()
        answers = sample(memory, where, work, np.arange(PAGES))
        assert Counter(answers)[UNKNOWN] > 0.9 * PAGES
        for _ in range(10_000):
            answers = sample(memory, where, work, np.arange(PAGES))
            if Counter(answers)[YOUNG] > 0.75 * PAGES:
                break
        assert Counter(answers)[YOUNG] > 0.75 * PAGES
        memory.update()
        assert before == open_files()
        memory.begin_update()
        sample(memory, where, work, [1])


# Safety.


def test_nothing_stays_open(machine: LinuxMachine, program: Path) -> None:
    with Workload([program], "anon", PAGES) as work:
        before = open_files()
        with looked_through(machine) as memory:
            where = everything(work)
            sample(memory, where, work, [1])
            memory.update()
            sample(memory, where, work, [1])
        assert before == open_files()


def test_huge_pages_stay_whole_and_contents_what_they_were(machine: LinuxMachine, program: Path) -> None:
    with Workload([program], "thp", PAGES) as work, looked_through(machine) as memory:
        smaps = Path(f"/proc/{work.pid}/smaps_rollup")

        def huge() -> int:
            return next(int(line.split()[1]) for line in smaps.read_text().splitlines() if "AnonHugePages" in line)

        before = huge()
        work.order("w", np.arange(PAGES))
        for _ in range(ROUNDS):
            sample(memory, everything(work)[::7], work, [1, 2, 3])
        assert before == huge()
        assert 0 == work.spoilt(np.arange(PAGES))


def test_processes_may_come_and_go(machine: LinuxMachine) -> None:
    """Whenever a process ends, nothing fails and nothing is left open."""
    before = open_files()
    rng = np.random.default_rng(3)
    with looked_through(machine) as memory:
        for round_ in range(ENDS):
            with subprocess.Popen(["sleep", "60"]) as child:
                if round_ % 3 == 0:
                    memory.update()
                elif round_ % 3 == 1:
                    memory.begin_update()
                stack = next(
                    line for line in Path(f"/proc/{child.pid}/maps").read_text().splitlines() if "[stack]" in line
                )
                end = int(stack.split("-")[1].split()[0], 16)
                where = physical(child.pid, np.array([end - 4096 * i for i in range(1, 9)], np.uint64))
                addrs = np.concatenate((where[where != 0], rng.integers(0, 1 << 32, 50).astype(np.uint64)))
                memory.begin_sample(addrs)
                if round_ % 2:
                    child.kill()
                    child.wait()
                assert len(memory.end_sample(addrs)) == len(addrs)
                child.kill()
    assert before == open_files()


@pytest.mark.parametrize("capability", ["sys_admin", "sys_ptrace", "dac_read_search,-dac_override", "sys_nice"])
def test_what_is_missing_is_told(capability: str) -> None:
    """Without any one of these nearly everything would be unknown, so that it is not on offer at all."""
    script = (
        "from kdamon.mm.linux.machine import linux_machine\n"
        "try:\n"
        "    linux_machine('page_fault').physical_memory()\n"
        "except OSError as error:\n"
        "    print(error.errno, error.strerror)\n"
    )
    less = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"]
    named = capability.split(",", maxsplit=1)[0].upper()
    done = subprocess.run([*less, sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"1 physical addresses need CAP_{named}, which root lacks here; start kdamon with that capability, as by a "
        "container's --cap-add\n"
    ), done


# Monitoring.


def monitored(machine: LinuxMachine, ranges: npt.ArrayLike, *schemes: damos) -> damon_ctx:
    """A running context that monitors physical ``ranges``."""
    ctx = damon_new_ctx(seed=1)
    ctx.machine = machine
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_PADDR)
    damon_set_attrs(ctx, damon_attrs(5000, 100_000, 1_000_000, min_nr_regions=10, max_nr_regions=1000))
    t = damon_new_target()
    pairs = np.asarray(ranges, np.uint64)
    t.regions = Regions(pairs[:, 0], pairs[:, 1])
    damon_add_target(ctx, t)
    for s in schemes:
        damon_add_scheme(ctx, s)
    damon_start([ctx], exclusive=False)
    return ctx


def heat(ctx: damon_ctx, where: U64Array) -> npt.NDArray[np.float64]:
    """How often the regions at ``where`` were accessed in the last aggregation interval, of 20 times."""
    found: list[npt.NDArray[np.float64]] = []

    def look(_: object) -> None:
        regions = ctx.adaptive_targets[0].regions
        at = np.searchsorted(regions.start, where, side="right") - 1
        found.append(regions.last_nr_accesses[at].astype(float))

    damon_call(ctx, damon_call_control(look))
    return found[0]


def test_hot_frames_are_hot_and_cold_ones_cold(machine: LinuxMachine, program: Path) -> None:
    """A kdamond finds both parts of a process in physical memory."""
    with Workload([program], "anon", PAGES) as work:
        where = everything(work)
        order = np.argsort(where)
        hot, cold = where[:1024], where[1024:]
        work.send("h", np.arange(1024))
        ctx = monitored(machine, of_pages(where[order]))
        try:
            wait_until(
                lambda: heat(ctx, hot).mean() > 8 and heat(ctx, cold).mean() < 3 and ctx.passed_sample_intervals > 60,
            )
            assert damon_is_running(ctx)
        finally:
            damon_stop([ctx])


def test_all_memory_is_monitored_while_a_process_works(machine: LinuxMachine, program: Path) -> None:
    """As damo asks for: nothing goes wrong in the process, and what is not known is counted."""
    before = open_files()
    with Workload([program], "anon", PAGES) as work:
        work.order("w", np.arange(PAGES))
        memory = machine.physical_memory()
        ctx = monitored(machine, memory.ram())
        memory.put()
        try:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                work.order("w", np.arange(PAGES))
            wait_until(lambda: ctx.nr_samples > 1000)
            assert damon_is_running(ctx)
        finally:
            damon_stop([ctx])
        assert ctx.kdamond_error is None
        assert 0 < ctx.nr_unknown < ctx.nr_samples
        assert 0 == work.spoilt(np.arange(PAGES))
    assert before == open_files()


def test_regions_side_by_side_are_acted_on_as_one(machine: LinuxMachine, program: Path, directory: Path) -> None:
    """A huge page of a file that lies in two of them goes as well, and counts for both; no other page does."""
    path = directory / "physical-cut"
    path.write_bytes(b"\1" * 4096 * PAGES)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink)
        work = stack.enter_context(Workload([program], "readonly", PAGES, str(path)))
        work.order("r", np.arange(PAGES))
        where = everything(work)
        wanted = of_pages(np.sort(where[where < np.median(where)]))
        cut = np.concatenate([np.arange(start, end, 4096 * 301, np.uint64) for start, end in wanted])
        ends = np.append(cut[1:], wanted[-1, 1])
        ends = np.minimum(ends, wanted[np.searchsorted(wanted[:, 0], cut, side="right") - 1, 1])
        ctx = damon_new_ctx(seed=1)
        ctx.machine = machine
        damon_select_ops(ctx, damon_ops_id.DAMON_OPS_PADDR)
        t = damon_new_target()
        t.regions = Regions(cut, ends)
        damon_add_target(ctx, t)
        stack.callback(damon_destroy_ctx, ctx)
        pa_init(ctx)
        s = damos(action=damos_action.DAMOS_PAGEOUT)
        # The first time they were accessed lately.
        rows = np.arange(len(cut))
        done = [damon_pa_apply_scheme(ctx, t, rows, s)[0] for _ in range(3)]
        gone = np.flatnonzero(everything(work) == 0)
        assert gone.size > 0.9 * PAGES / 2
        assert (where[gone] < np.median(where)).all()
        assert 4096 * gone.size == pytest.approx(int(np.sum(done)), rel=0.02)
        assert (np.sum(done, axis=0) <= ends - cut).all()


def test_cold_file_memory_is_paged_out_by_its_process(machine: LinuxMachine, program: Path, directory: Path) -> None:
    """A scheme for physical memory shrinks the process that maps it."""
    path = directory / "physical-data"
    path.write_bytes(b"\1" * 4096 * PAGES)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    s = damos(action=damos_action.DAMOS_PAGEOUT)
    s.pattern.max_sz_region = s.pattern.max_age_region = ULONG_MAX
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink)
        work = stack.enter_context(Workload([program], "readonly", PAGES, str(path)))
        where = np.sort(everything(work))
        ctx = monitored(machine, of_pages(where[where != 0]), s)
        stack.callback(damon_stop, [ctx])
        wait_until(lambda: s.stat.sz_applied > 4096 * PAGES // 2)
        assert np.count_nonzero(everything(work)) < PAGES // 2
        work.order("r", np.arange(PAGES))
