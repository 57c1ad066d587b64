# SPDX-License-Identifier: GPL-2.0-only
"""A commit takes its processes in the writer's thread: nothing else waits, and nothing stays of one that fails."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from attrs import define, field

from kdamon.damon import damon_ctx
from kdamon.mm import AddressSpace
from kdamon.mm.linux.machine import linux_machine
from kdamon.mm.sampling.page_fault import PageFaultSpace
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon_fs.sysfs import SysfsTree, damon_sysfs_init
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


KDAMONDS = "/admin/kdamonds"
KDAMOND = f"{KDAMONDS}/0"
CONTEXT = f"{KDAMOND}/contexts/0"
TARGETS = f"{CONTEXT}/targets"
FIRST, SECOND, THIRD = 150, 141, 1


@define(eq=False)
class Reference:
    """A task that a context has; counts what is taken and given back, and in which thread."""

    process: SimProcess
    machine: SlowMachine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.process, name)

    def get_mm(self) -> AddressSpace | None:
        return self.process.get_mm()

    def put(self) -> None:
        self.machine.held.remove(self)
        self.machine.put_by.append(threading.get_ident())


@define(eq=False, init=False)
class SlowMachine(SimMachine):
    """A machine one of whose processes cannot be taken right now.

    :ivar slow: its number.
    :ivar asked: it is wanted.
    :ivar answer: it can be taken, or not: then ``refusal`` is why.
    :ivar held: the references to processes that were not put.
    """

    slow: int = 0
    asked: threading.Event = field(factory=threading.Event)
    answer: threading.Event = field(factory=threading.Event)
    refusal: OSError | None = None
    held: list[Reference] = field(factory=list)
    taken_by: list[int] = field(factory=list)
    put_by: list[int] = field(factory=list)

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.__attrs_init__()

    def get_task(self, pid: int, primitive: str = "page_table", birth: int | None = None) -> Any:
        """See :class:`SimMachine`."""
        self.taken_by.append(threading.get_ident())
        if pid == self.slow:
            self.asked.set()
            assert self.answer.wait(300)
            if self.refusal is not None:
                raise self.refusal
        self.held.append(Reference(super().get_task(pid, primitive, birth), self))
        return self.held[-1]


@define(eq=False)
class Commit:
    """A kdamond that monitors the first of two processes, and a commit that is about to take the second one."""

    session: Any
    pool: ThreadPoolExecutor = field(factory=lambda: ThreadPoolExecutor(4))

    @property
    def machine(self) -> SlowMachine:
        """Its machine."""
        machine: SlowMachine = self.session.machine
        return machine

    @property
    def ctx(self) -> damon_ctx:
        """What runs."""
        ctx: damon_ctx = self.session.tree.kdamonds.present()[0].damon_ctx
        return ctx

    def begin(self, *pids: int) -> Future[str]:
        """Commit the targets ``pids``, the last of which cannot be taken yet."""
        self.session.put(f"{TARGETS}/nr_targets", len(pids))
        for i, pid in enumerate(pids):
            self.session.put(f"{TARGETS}/{i}/pid_target", pid)
        self.machine.slow = pids[-1]
        future = self.pool.submit(self.session.state, "commit")
        assert self.machine.asked.wait(120)
        return future

    def monitored(self) -> list[int]:
        """The targets of what runs."""
        return [t.pid for t in self.ctx.adaptive_targets]


@pytest.fixture(name="commit")
def _commit(make_session: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Commit]:
    import tests.fs.conftest as sessions

    monkeypatch.setattr(sessions, "SimMachine", lambda seed: SlowMachine())
    session = make_session()
    session.monitor(FIRST)
    # A missed interval then means that half of this was lost.
    session.put(f"{CONTEXT}/monitoring_attrs/intervals/sample_us", 50_000)
    session.put(f"{CONTEXT}/monitoring_attrs/intervals/aggr_us", 200_000)
    assert "OK" == session.state("on")
    found = Commit(session)
    try:
        yield found
    finally:
        found.machine.answer.set()
        found.pool.shutdown()


def goes_on(ctx: damon_ctx, waiting: Callable[[], bool]) -> bool:
    """Return whether a kdamond takes ten samples in a row, and misses none, while something waits.

    A busy machine makes it miss some: only the best stretch counts.
    """

    end = time.monotonic() + 120
    before, missed = ctx.passed_sample_intervals, ctx.missed_intervals
    while waiting() and ctx.passed_sample_intervals < before + 10:
        if time.monotonic() > end:
            return False
        if ctx.missed_intervals != missed:
            before, missed = ctx.passed_sample_intervals, ctx.missed_intervals
        time.sleep(0.01)
    return waiting()


def test_the_kdamond_misses_nothing_and_other_files_do_not_wait(commit: Commit) -> None:
    """While a process cannot be taken, and then the commit is done."""
    session = commit.session
    future = commit.begin(FIRST, SECOND)

    assert goes_on(commit.ctx, lambda: not future.done())
    assert "on\n" == session.read(f"{KDAMOND}/state")
    assert int(session.read(f"{KDAMOND}/pid")) > 0
    assert session.read(f"{TARGETS}/1/pid_target") == f"{SECOND}\n"
    assert "OK" == session.write(f"{CONTEXT}/schemes/0/action", "stat")
    assert [FIRST] == commit.monitored()
    assert not future.done()

    commit.machine.answer.set()
    assert "OK" == future.result(120)
    assert [FIRST, SECOND] == commit.monitored()
    assert [FIRST, SECOND] == [reference.pid for reference in commit.machine.held]


def test_other_commands_for_its_kdamond_get_ebusy(commit: Commit) -> None:
    """As in the kernel, where the lock is held; those for others are handled."""
    future = commit.begin(FIRST, SECOND)
    session = commit.session
    commands = (
        "on",
        "off",
        "commit",
        "commit_schemes_quota_goals",
        "update_schemes_stats",
        "clear_schemes_tried_regions",
    )
    assert [session.state(command) for command in commands] == ["EBUSY"] * len(commands)
    assert "EBUSY" == session.write(f"{KDAMONDS}/nr_kdamonds", "1")
    assert "on\n" == session.read(f"{KDAMOND}/state")
    commit.machine.answer.set()
    assert "OK" == future.result(120)
    assert "OK" == session.state("off")
    assert "OK" == session.write(f"{KDAMONDS}/nr_kdamonds", "1")
    assert [] == commit.machine.held


def test_what_is_written_meanwhile_is_for_the_next_commit(commit: Commit) -> None:
    """A commit is based on the files as they were when it began, even if their directories are gone."""
    future = commit.begin(FIRST, SECOND)
    session = commit.session
    session.put(f"{TARGETS}/0/pid_target", THIRD)
    session.put(f"{TARGETS}/nr_targets", 1)
    commit.machine.answer.set()
    assert "OK" == future.result(120)
    assert [FIRST, SECOND] == commit.monitored()


def test_a_process_that_cannot_be_taken_changes_nothing(commit: Commit) -> None:
    """The writer gets the reason, the context stays as it is, and what was taken is given back."""
    commit.machine.refusal = OSError(errno.EPERM, "it is not to be had")
    commit.session.put(f"{CONTEXT}/monitoring_attrs/intervals/aggr_us", 300_000)
    future = commit.begin(FIRST, THIRD, SECOND)
    commit.machine.answer.set()
    assert "EPERM" == future.result(120)
    assert [FIRST] == commit.monitored()
    assert 200_000 == commit.ctx.attrs.aggr_interval
    assert [FIRST] == [reference.pid for reference in commit.machine.held]
    # The same once more.
    commit.machine.refusal = None
    assert "OK" == commit.session.state("commit")
    assert [FIRST, THIRD, SECOND] == commit.monitored()


def test_the_kdamond_ends_meanwhile(commit: Commit) -> None:
    """ECANCELED, as for every command for one that ended, and nothing is held."""
    future = commit.begin(FIRST, SECOND)
    commit.machine.processes[FIRST].exit()
    assert eventually(lambda: commit.session.read(f"{KDAMOND}/state") == "off\n")
    assert "EBUSY" == commit.session.state("on")
    commit.machine.answer.set()
    assert "ECANCELED" == future.result(120)
    assert [] == commit.machine.held
    assert "off\n" == commit.session.read(f"{KDAMOND}/state")


def test_the_tree_is_shut_down_meanwhile(commit: Commit) -> None:
    """Its kdamond ends at once, not when the process is taken; no other one is taken."""
    future = commit.begin(FIRST, SECOND)
    commit.session.tree.shutdown()
    assert "off\n" == commit.session.read(f"{KDAMOND}/state")
    commit.machine.answer.set()
    assert future.result(120) in {"ECANCELED", "ESHUTDOWN"}
    assert [] == commit.machine.held


def test_processes_are_let_go_by_the_writer(commit: Commit) -> None:
    """Also those that were monitored: what is armed in them goes, which can take long."""
    session, machine = commit.session, commit.machine
    session.put(f"{TARGETS}/nr_targets", 3)
    for i, pid in enumerate((FIRST, SECOND, THIRD)):
        session.put(f"{TARGETS}/{i}/pid_target", pid)
    assert "OK" == session.state("commit")
    assert [] == machine.put_by
    # One is replaced, one marked as obsolete, one is missing.
    session.put(f"{TARGETS}/0/pid_target", SECOND)
    session.put(f"{TARGETS}/1/obsolete_target", "Y")
    assert "OK" == session.state("commit")
    assert [SECOND, THIRD] == commit.monitored()
    session.put(f"{TARGETS}/nr_targets", 1)
    session.put(f"{TARGETS}/0/pid_target", SECOND)
    assert "OK" == session.state("commit")
    assert [SECOND] == commit.monitored()
    assert machine.put_by == [threading.get_ident()] * 3
    assert set(machine.taken_by) == {threading.get_ident()}
    assert [SECOND] == [reference.pid for reference in machine.held]


def test_a_process_that_does_not_exist_comes_before_what_else_is_wrong(commit: Commit) -> None:
    """In the kernel's order: targets, then schemes, though a process is taken after all of that was looked at."""
    session = commit.session
    session.put(f"{CONTEXT}/schemes/0/quotas/goals/nr_goals", 1)
    goal = f"{CONTEXT}/schemes/0/quotas/goals/0"
    for name, value in (("target_metric", "node_memcg_used_bp"), ("path", "/missing"), ("target_value", 1)):
        session.put(f"{goal}/{name}", value)
    assert "ENOMEM" == session.state("commit")
    session.put(f"{TARGETS}/0/pid_target", 77)
    assert "EINVAL" == session.state("commit")
    assert [FIRST] == commit.monitored()


def test_memory_cgroups_of_goals_are_looked_for_by_the_writer(commit: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    """By commit_schemes_quota_goals, too, which commits the goals before the one that is wrong."""
    session, looked_by = commit.session, []
    memcg_id = commit.machine.memcg_id
    monkeypatch.setattr(commit.machine, "memcg_id", lambda p: looked_by.append(threading.get_ident()) or memcg_id(p))
    session.put(f"{CONTEXT}/schemes/nr_schemes", 2)
    assert "OK" == session.state("commit")
    for i, path in enumerate(("/foo", "/missing")):
        goals = f"{CONTEXT}/schemes/{i}/quotas/goals"
        session.put(f"{goals}/nr_goals", 1)
        for name, value in (("target_metric", "node_memcg_used_bp"), ("path", path), ("target_value", 1)):
            session.put(f"{goals}/0/{name}", value)
    assert "EINVAL" == session.state("commit_schemes_quota_goals")
    assert [1, 0] == [len(s.quota.goals) for s in commit.ctx.schemes]
    assert looked_by == [threading.get_ident()] * 2


# A real process.


@pytest.fixture(name="tree")
def _tree() -> Iterator[SysfsTree]:
    """A tree of this machine, which has to have page_fault."""
    with contextlib.closing(linux_machine("page_fault")) as machine:
        with subprocess.Popen(["sleep", "3600"]) as child:
            try:
                machine.get_task(child.pid, "page_fault").put()
            except OSError as error:
                pytest.skip(f"{error.strerror}")
            finally:
                child.kill()
        tree = damon_sysfs_init(machine)
        yield tree
        tree.shutdown()


@pytest.fixture(name="processes")
def _processes() -> Iterator[list[int]]:
    """Two processes."""
    with contextlib.ExitStack() as stack:
        pids = []
        for _ in range(2):
            process = stack.enter_context(subprocess.Popen(["sleep", "3600"]))
            stack.callback(process.kill)
            pids.append(process.pid)
        yield pids


#: Traces the process whose number is its argument, until it is killed.
TRACER = """
import ctypes, signal, sys
PTRACE_SEIZE = 0x4206
assert not ctypes.CDLL(None).ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None)
print("traces", flush=True)
signal.pause()
"""


def test_the_kdamond_does_not_wait_for_a_traced_process(tree: SysfsTree, processes: list[int]) -> None:
    """It cannot be asked for a userfaultfd before its tracer ends; the kdamond samples the other one meanwhile."""
    first, second = processes

    def write(path: str, value: object) -> None:
        tree.write(path, str(value).encode())

    write(f"{KDAMONDS}/nr_kdamonds", 1)
    write(f"{KDAMOND}/contexts/nr_contexts", 1)
    write(f"{CONTEXT}/monitoring_attrs/intervals/sample_us", 50_000)
    write(f"{CONTEXT}/monitoring_attrs/intervals/aggr_us", 200_000)
    write(f"{CONTEXT}/monitoring_attrs/sample/primitives/page_fault", "Y")
    write(f"{TARGETS}/nr_targets", 1)
    write(f"{TARGETS}/0/pid_target", first)
    write(f"{KDAMOND}/state", "on")
    ctx = tree.kdamonds.present()[0].damon_ctx
    assert ctx is not None
    space = ctx.adaptive_targets[0].task

    write(f"{TARGETS}/nr_targets", 2)
    write(f"{TARGETS}/0/pid_target", first)
    write(f"{TARGETS}/1/pid_target", second)
    over = threading.Event()

    def commit() -> list[int | None]:
        """Commit until it is taken: it is waited for some seconds each time."""
        refusals: list[int | None] = []
        while not over.is_set():
            try:
                write(f"{KDAMOND}/state", "commit")
                break
            except OSError as error:
                refusals.append(error.errno)
        return refusals

    words = [sys.executable, "-c", TRACER, str(second)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as tracer, ThreadPoolExecutor(1) as pool:
        assert tracer.stdout is not None
        assert b"traces\n" == tracer.stdout.readline()
        future = pool.submit(commit)
        try:
            assert goes_on(ctx, lambda: not future.done())
            assert tree.read(f"{TARGETS}/1/pid_target") == f"{second}\n".encode()
            assert [t.pid for t in ctx.adaptive_targets] == [first]
            tracer.kill()
            assert eventually(future.done)
        finally:
            over.set()
            tracer.kill()
        assert set(future.result()) <= {errno.EBUSY}
    assert [t.pid for t in ctx.adaptive_targets] == [first, second]
    assert ctx.adaptive_targets[0].task is space
    assert ctx.adaptive_targets[1].task is not None
    assert isinstance(ctx.adaptive_targets[1].task.get_mm(), PageFaultSpace)
    write(f"{KDAMOND}/state", "off")
