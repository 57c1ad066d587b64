# SPDX-License-Identifier: GPL-2.0-only
"""A kdamond is where its target runs, and samples with real-time priority, as far as it may."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import kdamon
from kdamon.core import (
    damon_add_target,
    damon_kdamond_pid,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_start,
)
from kdamon.damon import PrimitivesEnabled, damon_ops_id
from kdamon.lib.housekeeping import choose_cpus
from kdamon.lib.process_status import stat_fields
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.linux.task import LinuxTask
from kdamon.mm.sampling import placement
from kdamon.mm.sampling.page_fault import PageFault, PageFaultSpace
from kdamon.mm.sampling.placement import FaultPlacement, Placement
from tests.support.capabilities import needs_root
from tests.support.contexts import in_kdamond, stopped
from tests.support.waiting import eventually

pytestmark = pytest.mark.real

OWN = sorted(os.sched_getaffinity(0))
needs_two_cpus = pytest.mark.skipif(len(OWN) < 2, reason="kernel lacks: a second CPU")

#: Touches its memory all the time; ends with its parent.
BUSY = """
import os
memory = bytearray(64 << 20)
print("ready", flush=True)
parent = os.getppid()
while os.getppid() == parent:
    for place in range(0, len(memory), 4096):
        memory[place] = 1
"""


@pytest.fixture(name="pinned", autouse=True)
def _not_pinned() -> Iterator[None]:
    """The kdamond may run anywhere here."""
    os.sched_setaffinity(0, OWN)
    yield
    choose_cpus(None)
    os.sched_setaffinity(0, OWN)


@pytest.fixture(name="busy")
def _busy() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def kdamond() -> int:
    """The thread of the only kdamond of this process."""
    found = []
    for path in Path("/proc/self/task").iterdir():
        # Other threads may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            if "kdamond" in (path / "comm").read_text():
                found.append(int(path.name))
    (only,) = found
    return only


def policy(tid: int) -> int:
    """The scheduling policy of a thread of this process, as it is now."""
    return int(stat_fields(Path(f"/proc/self/task/{tid}/stat").read_bytes())[41 - 3])


by_both_primitives = pytest.mark.parametrize("write_only", [False, True], ids=["page_table", "page_fault"])


@needs_root("monitors another process, with real-time priority")
@needs_two_cpus
@by_both_primitives
@pytest.mark.usefixtures("machine")
def test_a_kdamond_moves_to_the_cpu_of_its_target(busy: subprocess.Popen[str], write_only: bool) -> None:
    """Wherever that runs, and it follows."""
    with kdamon.monitor(pid=busy.pid, min_regions=50, max_regions=100, write_only=write_only):
        tid = kdamond()
        for cpu in (OWN[0], OWN[-1], OWN[0]):
            os.sched_setaffinity(busy.pid, {cpu})
            eventually(lambda cpu=cpu: os.sched_getaffinity(tid) == {cpu}, f"the kdamond on CPU {cpu}")
    assert set(OWN) == os.sched_getaffinity(0)


@needs_root("monitors another process, with real-time priority")
@needs_two_cpus
@by_both_primitives
@pytest.mark.usefixtures("machine")
def test_a_kdamond_stays_on_the_cpus_that_were_chosen(busy: subprocess.Popen[str], write_only: bool) -> None:
    """Also where its target runs on another one."""
    os.sched_setaffinity(busy.pid, {OWN[0]})
    choose_cpus(frozenset({OWN[-1]}))
    seen = set()
    with kdamon.monitor(pid=busy.pid, max_regions=100, write_only=write_only) as monitor:
        tid = kdamond()
        for _, _snapshot in zip(range(10), monitor, strict=False):
            seen.add(frozenset(os.sched_getaffinity(tid)))
    assert {frozenset({OWN[-1]})} == seen


@needs_root("monitors another process, with real-time priority")
@by_both_primitives
@pytest.mark.usefixtures("machine")
def test_a_kdamond_samples_with_real_time_priority(
    machine: LinuxMachine, busy: subprocess.Popen[str], write_only: bool
) -> None:
    """What others have it do it does without."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        pytest.skip("kernel lacks: real-time priority for this control group")
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    ctx = damon_new_ctx(1)
    ctx.machine = machine
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_VADDR)
    ctx.sample_control.primitives_enabled = PrimitivesEnabled(page_table=not write_only, page_fault=write_only)
    t = damon_new_target()
    t.pid = busy.pid
    damon_add_target(ctx, t)
    damon_start([ctx], exclusive=False)
    with stopped(ctx):
        tid = damon_kdamond_pid(ctx)
        for _ in range(3):
            eventually(lambda: policy(tid) == os.SCHED_FIFO, "real-time priority")
            assert os.SCHED_OTHER == in_kdamond(ctx, lambda: os.sched_getscheduler(0))


@needs_root("monitors another process, with real-time priority")
def test_samples_that_take_long_lose_real_time_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a while; other threads get the CPU."""
    monkeypatch.setattr(placement, "_SHARE", 0.0)
    monkeypatch.setattr(placement, "_WINDOW", 0)
    place = Placement()
    place.begin()
    if policy(os.getpid()) != os.SCHED_FIFO:
        pytest.skip("kernel lacks: real-time priority for this control group")
    sum(range(10000))
    place.rest()
    place.begin()
    place.rest()
    place.begin()
    assert os.SCHED_OTHER == policy(os.getpid())
    place.rest()


@needs_root("chooses a scheduling policy")
@pytest.mark.parametrize("chosen", [os.SCHED_BATCH, os.SCHED_IDLE, os.SCHED_RR])
def test_a_policy_that_was_chosen_stays(chosen: int) -> None:
    """As by chrt: it is the user's, whether it is more or less than kdamon would take."""
    try:
        os.sched_setscheduler(0, chosen, os.sched_param(5 if chosen == os.SCHED_RR else 0))
    except OSError:
        pytest.skip("kernel lacks: real-time priority for this control group")
    try:
        place = Placement()
        place.begin()
        during = policy(os.getpid())
        place.rest()
        assert (chosen, chosen) == (during, policy(os.getpid()))
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


#: Has no right any more to let its children have its priority, which it took from them before.
LIMITED = """
import os
from kdamon.mm.sampling.placement import Placement
place = Placement()
place.begin()
os.setresuid(65534, 65534, 65534)
print(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
place.rest()
print(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
"""


@needs_root("becomes another user")
def test_priority_is_given_back_without_rights() -> None:
    """As where a resource limit allows it (ulimit -r), not CAP_SYS_NICE."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=100, check=False)
    assert "" == done.stderr
    during, after = map(int, done.stdout.split())
    if during != os.SCHED_FIFO:
        pytest.skip("kernel lacks: real-time priority for this control group")
    assert os.SCHED_OTHER == after


@needs_two_cpus
def test_a_thread_that_rests_is_left_alone() -> None:
    """Where samples are taken one by one, each would move it otherwise."""
    place = Placement()
    place.begin()
    for _ in range(2):
        place.follow(1 << OWN[0])
    place.rest()
    os.sched_setaffinity(0, {OWN[0]})
    place.rest()
    assert {OWN[0]} == os.sched_getaffinity(0)


@needs_root("monitors another process, with real-time priority")
@needs_two_cpus
def test_samples_by_faults_begin_on_the_cpu_of_the_process(machine: LinuxMachine, busy: subprocess.Popen[str]) -> None:
    """Its pages are armed there as elsewhere; work in between is done on all CPUs, as before."""
    os.sched_setaffinity(busy.pid, {OWN[-1]})
    task = machine.get_task(busy.pid, "page_fault")
    place = FaultPlacement()
    try:
        space = task.get_mm()
        assert isinstance(space, PageFaultSpace)
        ranges, _ = space.protection.registered_reads
        mapped = ranges if len(ranges) else space.protection.registered
        largest = mapped[(mapped[:, 1] - mapped[:, 0]).argmax()]
        addrs = np.arange(largest[0], largest[1], 1 << 20, dtype=np.uint64)
        for _ in range(3):
            for _ in range(2):
                eventually(lambda: space.cpus() == 1 << OWN[-1], "the process at work")
                place.begin([space], len(addrs))
            assert {OWN[-1]} == os.sched_getaffinity(0)
            space.begin_sample(addrs)
            eventually(lambda: len(machine.faults()), "faults of armed pages")
            space.end_sample(addrs)
            place.rest()
            assert (set(OWN), os.SCHED_OTHER) == (os.sched_getaffinity(0), os.sched_getscheduler(0))
        # A few pages cost the process less than a kdamond beside it.
        for _ in range(2):
            place.begin([space], 15)
        assert set(OWN) == os.sched_getaffinity(0)
    finally:
        place.rest()
        task.put()


@needs_root("monitors another process, with real-time priority")
@pytest.mark.usefixtures("machine")
def test_a_process_is_asked_for_its_userfaultfd_without_real_time_priority(
    machine: LinuxMachine, busy: subprocess.Popen[str]
) -> None:
    """That takes long, in a child that runs where this thread does."""
    ready, other = machine.get_task(busy.pid, "page_fault"), LinuxTask(PageFault(), busy.pid)
    place = FaultPlacement()
    try:
        taken, not_yet = ready.get_mm(), other.get_mm()
        assert isinstance(taken, PageFaultSpace) and isinstance(not_yet, PageFaultSpace)
        place.begin([taken], 100)
        place.begin([taken, not_yet], 100)
        assert (set(OWN), os.SCHED_OTHER) == (os.sched_getaffinity(0), os.sched_getscheduler(0))
    finally:
        place.rest()
        ready.put()
        other.put()


def test_a_cpu_is_followed_when_it_is_seen_twice() -> None:
    """What the scheduler moves about is not; nor a CPU that this thread may not use, nor several."""
    place = Placement()
    place.begin()
    first = 1 << OWN[0]
    place.follow(first)
    assert set(OWN) == os.sched_getaffinity(0)
    place.follow(first)
    assert {OWN[0]} == os.sched_getaffinity(0)
    for mask in (0, 1 << 200, 0, first):
        place.follow(mask)
    assert {OWN[0]} == os.sched_getaffinity(0)
    place.rest()
    assert set(OWN) == os.sched_getaffinity(0)
    place.begin()
    assert {OWN[0]} == os.sched_getaffinity(0)
    place.follow(0b11 << 200)
    place.follow(0b11 << 200)
    assert set(OWN) == os.sched_getaffinity(0)
    place.rest()
