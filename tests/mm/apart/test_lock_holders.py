# SPDX-License-Identifier: GPL-2.0-only
"""A process that holds the lock of its memory for ever costs what it maps, and nothing else."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.lib.helpers import LostHelpers
from kdamon.mm import UNKNOWN
from kdamon.mm.apart import objects as apart
from kdamon.mm.doctor import processes as doctor_processes
from kdamon.mm.linux import memory_apart
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.linux.task import LinuxTask
from kdamon.mm.proc import maps
from kdamon.mm.proc.pagemap import entries_at
from kdamon.mm.sampling import frames
from kdamon_fs.sysfs import damon_sysfs_init
from tests.support.capabilities import needs_dev_fuse, needs_root
from tests.support.lock_holders import LockHolder, lock_holder
from tests.support.paths import ROOT
from tests.support.waiting import eventually

PAGE = np.uint64(4096)

pytestmark = [
    pytest.mark.real,
    needs_dev_fuse,
    needs_root("mounting in these tests needs root"),
]


def state(pid: int) -> bytes:
    """The letter of a process's state."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]


@pytest.fixture(name="holder")
def _holder() -> Iterator[LockHolder]:
    with lock_holder() as holder:
        yield holder


@pytest.fixture(name="machine")
def _machine() -> Iterator[LinuxMachine]:
    frames._say_left_out.cache_clear()
    with closing(linux_machine()) as machine:
        yield machine


def heap(pid: int) -> list[list[int]]:
    """Where its anonymous memory is that it wrote to."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    heaps = [line.split()[0].split("-") for line in lines if line.endswith("[heap]")]
    return [[int(end, 16) for end in ends] for ends in heaps]


@contextmanager
def closing_task(task: LinuxTask) -> Iterator[LinuxTask]:
    """Give it back in the end."""
    try:
        yield task
    finally:
        task.put()


def addresses(pid: int) -> U64Array:
    """Physical addresses of up to 2000 pages that a process alone maps."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    try:
        ranges = maps.parse(Path(f"/proc/{pid}/maps").read_bytes())
        pages = np.concatenate([np.arange(s, min(e, s + (1 << 22)), 4096, np.uint64) for s, e in ranges.tolist()])
        found = frames.exclusive_frames(entries_at(fd, pages))
    finally:
        os.close(fd)
    return found[found > 0][:2000] * PAGE


def test_one_that_holds_it_already_is_passed_by(
    machine: LinuxMachine, holder: LockHolder, caplog: pytest.LogCaptureFixture
) -> None:
    """No helper process is lost, others' memory is known, and it is said once."""
    holder.hold()
    memory = machine.physical_memory()
    try:
        memory.update()
        helper = memory._helper
        memory.update()
        assert 0 < memory.known()[0]
        assert memory._helper is helper
    finally:
        memory.put()
    assert 1 == caplog.text.count(f"process {holder.pid} holds the lock of its memory")


def test_one_that_takes_it_while_it_is_sampled_is_left_out(
    machine: LinuxMachine, holder: LockHolder, caplog: pytest.LogCaptureFixture
) -> None:
    """The helper process is lost, a new one goes on with the others' memory, and nothing stays."""
    its = addresses(holder.pid)
    memory = machine.physical_memory()
    try:
        memory.update()
        memory.begin_sample(its)
        assert (memory.end_sample(its) != UNKNOWN).any()
        lost = memory._helper
        assert lost is not None
        holder.hold()
        # No sample is taken, as others wait for the lock; but a scheme looks where the pages are.
        assert [] == list(memory.owners(np.column_stack((its, its + PAGE))))
        assert memory._helper is not lost
        memory.update()
        assert 0 < memory.known()[0]
        memory.begin_sample(its)
        assert (memory.end_sample(its) == UNKNOWN).all()
    finally:
        memory.put()
    assert 1 == caplog.text.count(f"process {holder.pid} holds the lock of its memory")
    assert eventually(lambda: lost._process.poll() is not None)


def test_users_whose_processes_do_it_again_and_again(
    machine: LinuxMachine, holder: LockHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some of them, no process of that user is looked at any more."""
    monkeypatch.setattr(memory_apart, "_OF_USER", 1)
    with subprocess.Popen(["sleep", "3600"], user=65534, group=65534, extra_groups=[]) as another:
        try:
            memory = machine.physical_memory()
            try:
                memory.update()
                its, others = addresses(holder.pid), addresses(another.pid)
                memory.begin_sample(its)
                holder.hold()
                assert [] == list(memory.owners(np.column_stack((its, its + PAGE))))
                memory.update()
                memory.begin_sample(others)
                assert (memory.end_sample(others) == UNKNOWN).all()
            finally:
                memory.put()
        finally:
            another.kill()


def test_not_many_helpers_are_lost(machine: LinuxMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once too many are, memory is unknown, and known again when they ended."""
    monkeypatch.setattr(apart, "_lost", LostHelpers(1))
    with subprocess.Popen(["sleep", "3600"]) as lost:
        try:
            apart._lost.add(lost)
            memory = machine.physical_memory()
            try:
                memory.update()
                assert 0 == memory.known()[0]
                lost.kill()
                assert eventually(lambda: memory.update() or memory.known()[0])
            finally:
                memory.put()
        finally:
            lost.kill()


def test_a_helper_ends_with_kdamon(holder: LockHolder) -> None:
    """Also one that waits for the lock, and whatever ended kdamon."""
    script = (
        "import sys\n"
        "from kdamon.mm.apart.objects import Apart\n"
        "helper = Apart('builtins', 'open', sys.argv[1], 'rb', 0)\n"
        "print(helper._process.pid, flush=True)\n"
        "helper.call('read', 8)\n"
    )
    holder.hold()
    with subprocess.Popen(
        [sys.executable, "-c", script, f"/proc/{holder.pid}/pagemap"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as kdamon:
        try:
            assert kdamon.stdout is not None
            helper = int(kdamon.stdout.readline())
            assert eventually(lambda: "pagemap_read" in Path(f"/proc/{helper}/wchan").read_text())
        finally:
            kdamon.kill()
    assert eventually(lambda: not Path(f"/proc/{helper}/wchan").exists() or state(helper) == b"Z")


def test_doctor_looks_at_another_one(holder: LockHolder) -> None:
    """It says what can be done, and ends."""
    holder.hold()
    own = {"page_table": None, "page_fault": None}
    strangers = doctor_processes._strangers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor_processes, "_strangers", lambda: iter((holder.pid, *strangers())))
        assert own == doctor_processes._looked_at(own)


def test_a_target_that_holds_it_already_is_refused(machine: LinuxMachine, holder: LockHolder) -> None:
    """With the reason, by each primitive."""
    holder.hold()
    for primitive in ("page_table", "page_fault"):
        with pytest.raises(OSError, match=f"process {holder.pid} holds the lock of its memory") as info:
            machine.get_task(holder.pid, primitive)
        assert errno.EBUSY == info.value.errno


def test_a_target_that_takes_it_is_unknown(
    machine: LinuxMachine, holder: LockHolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Its samples are, and it is looked at again once it let go."""
    pages = np.concatenate([np.arange(*ends, 4096, np.uint64) for ends in heap(holder.pid)])
    with closing_task(machine.get_task(holder.pid)) as task:
        mm = task.get_mm()
        assert mm is not None
        holder.hold()
        mm.begin_sample(pages)
        assert (mm.end_sample(pages) == UNKNOWN).any()
        assert eventually(lambda: task.get_mm() is None)
        assert eventually(lambda: task.get_mm() is None)
        holder.let_go()
        assert eventually(lambda: not task.valid() or task.get_mm() is mm)
    assert 1 == caplog.text.count(f"process {holder.pid} holds the lock of its memory")


def test_other_targets_of_the_same_kdamond_are_monitored(machine: LinuxMachine, holder: LockHolder) -> None:
    """Samples of them are taken, commands are handled, and it ends."""
    tree = damon_sysfs_init(machine)
    kdamond = "/admin/kdamonds/0"

    def write(path: str, value: object) -> None:
        tree.write(f"{kdamond}/{path}", str(value).encode())

    with subprocess.Popen(["sleep", "3600"]) as another:
        try:
            tree.write("/admin/kdamonds/nr_kdamonds", b"1")
            write("contexts/nr_contexts", 1)
            write("contexts/0/targets/nr_targets", 2)
            write("contexts/0/targets/0/pid_target", holder.pid)
            write("contexts/0/targets/1/pid_target", another.pid)
            write("contexts/0/schemes/nr_schemes", 1)
            write("contexts/0/schemes/0/action", "stat")
            for name in ("sz", "nr_accesses", "age"):
                write(f"contexts/0/schemes/0/access_pattern/{name}/max", (1 << 64) - 1)
            write("state", "on")
            holder.hold()

            def tried() -> int:
                write("state", "update_schemes_stats")
                return int(tree.read(f"{kdamond}/contexts/0/schemes/0/stats/nr_tried"))

            before = tried()
            assert eventually(lambda: tried() > before)
            write("state", "commit")
            before = tried()
            assert eventually(lambda: tried() > before)
            write("state", "off")
            assert b"off\n" == tree.read(f"{kdamond}/state")
        finally:
            another.kill()
            holder.let_go()
            tree.shutdown()
