# SPDX-License-Identifier: GPL-2.0-only
"""A process ends, and another program gets its number: no user named that one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from kdamon.damon import damon_ctx
from kdamon.reports.deliver import report_accesses
from kdamon.reports.record import report_array
from tests.support.capabilities import needs_pid_namespace, needs_root
from tests.support.contexts import in_kdamond
from tests.support.modules import shut_down
from tests.support.paths import ROOT
from tests.support.tree import CONTEXT, KDAMOND
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


SAMPLE = f"{CONTEXT}/monitoring_attrs/sample"


@pytest.fixture
def session(make_session: Callable[..., Any]) -> Any:
    """Two processes are monitored, 141 and 150."""
    session = make_session("kdamon")
    session.context()
    session.put(f"{CONTEXT}/monitoring_attrs/intervals/update_us", 100_000)
    session.put(f"{CONTEXT}/targets/nr_targets", 2)
    for place, pid in enumerate((141, 150)):
        session.put(f"{CONTEXT}/targets/{place}/pid_target", pid)
    session.scheme_for_all()
    assert "OK" == session.state("on")
    return session


def ctx_of(session: Any) -> damon_ctx:
    ctx: damon_ctx = session.tree.kdamonds.at(0).damon_ctx
    return ctx


def monitored(session: Any) -> list[tuple[int, Any]]:
    """Number and task of each target."""
    ctx = ctx_of(session)
    targets: list[tuple[int, Any]] = in_kdamond(ctx, lambda: [(t.pid, t.task) for t in ctx.adaptive_targets])
    return targets


def replace(session: Any, pid: int = 141, reused: bool = True) -> Any:
    """End process ``pid``; if ``reused`` a stranger gets its number. Returns what had it before."""
    before = session.machine.processes[pid]
    before.exit()
    if reused:
        session.spawn(pid)
    return before


# The tree.


@pytest.mark.parametrize("reused", [False, True])
def test_a_commit_leaves_a_target_ended(session: Any, reused: bool) -> None:
    """The other target is committed to as before."""
    before = replace(session, reused=reused)
    for _ in range(2):
        assert "OK" == session.state("commit")
        assert [(141, before), (150, session.machine.processes[150])] == monitored(session)
    session.put(f"{CONTEXT}/monitoring_attrs/intervals/sample_us", 4000)
    assert "OK" == session.state("commit")
    assert 4000 == in_kdamond(ctx_of(session), lambda: ctx_of(session).attrs.sample_interval)


def test_another_primitive_does_not_look_for_the_number_either(session: Any) -> None:
    """By faults a stranger would even be stopped."""
    before = replace(session)
    for answer in ("Y", "N"):
        session.put(f"{SAMPLE}/primitives/page_fault", answer)
        assert "OK" == session.state("commit")
        assert before is monitored(session)[0][1]
    assert "page_table" == session.machine.processes[141].primitive


def test_the_number_written_again_names_the_new_process(session: Any) -> None:
    replace(session)
    session.put(f"{CONTEXT}/targets/0/pid_target", 141)
    assert "OK" == session.state("commit")
    assert (141, session.machine.processes[141]) == monitored(session)[0]


def test_an_ended_target_can_be_removed(session: Any) -> None:
    """And the other one's place in the tree is not its place among the targets any more."""
    replace(session)
    session.put(f"{CONTEXT}/targets/0/obsolete_target", "Y")
    assert "OK" == session.state("commit")
    assert [(150, session.machine.processes[150])] == monitored(session)


@pytest.mark.parametrize("written_again", [False, True])
def test_a_start_takes_no_stranger(session: Any, written_again: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Neither after off, nor where the number was another's when it was written."""
    assert "OK" == session.state("off")
    replace(session)
    if written_again:
        session.put(f"{CONTEXT}/targets/0/pid_target", 141)
    assert session.state("on") == ("OK" if written_again else "EINVAL")
    said = "targets/0/pid_target: process 141 ended, and another one has its number now"
    assert (said in caplog.text) != written_again


def test_a_first_start_takes_no_stranger(make_session: Callable[..., Any]) -> None:
    """The process that had the number when it was written is meant."""
    session = make_session()
    session.monitor()
    replace(session, 150)
    assert "EINVAL" == session.state("on")
    session.put(f"{CONTEXT}/targets/0/pid_target", 150)
    assert "OK" == session.state("on")


def test_a_number_may_be_written_before_there_is_a_process(make_session: Callable[..., Any]) -> None:
    """The one that has it at the start is meant then, and stays so."""
    session = make_session()
    session.monitor(7)
    assert "EINVAL" == session.state("on")
    session.spawn(7)
    assert "OK" == session.state("on")
    before = session.machine.processes[7]
    assert [(7, before)] == monitored(session)
    replace(session, 7)
    eventually(lambda: session.read(f"{KDAMOND}/state") == "off\n", "the end of the kdamond")
    assert "EINVAL" == session.state("on")


def test_reports_about_the_stranger_are_not_about_the_target(session: Any) -> None:
    """They carry the number only."""
    assert "OK" == session.state("commit")
    ctx = ctx_of(session)
    start = in_kdamond(ctx, lambda: int(ctx.adaptive_targets[0].regions.start[0]))
    reports = f"{SAMPLE}/reports"

    def counted(name: str) -> int:
        return int(session.read(f"{reports}/{name}"))

    report_accesses(report_array(1, pid=141, addr=start, size=1))
    eventually(lambda: counted("applied") == 1, "a report of the process")
    replace(session)
    report_accesses(report_array(1, pid=141, addr=start, size=1))
    eventually(lambda: counted("ineligible") == 1, "a report of the stranger")
    assert 1 == counted("applied")


# Modules.


def enabled(session: Any, name: str, pids: str) -> tuple[str, Any]:
    """Enable a module; returns the directory of its parameters, and the module."""
    parameters = f"/module/{name}/parameters"
    session.put(f"{parameters}/monitor_pids", pids)
    if name != "damon_stat":
        session.put(f"{parameters}/wmarks_interval", 1000)  # a commit waits so long
    session.put(f"{parameters}/enabled", "Y")
    [module] = [module for module in session.tree.modules.modules if module.name == name]
    return parameters, module


def tasks(module: Any) -> list[Any]:
    """What a module monitors, whether it ended or not."""
    found: list[Any] = in_kdamond(module.ctx, lambda: [t.task for t in module.ctx.adaptive_targets])
    return found


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("name", ["damon_reclaim", "damon_lru_sort"])
def test_a_commit_of_inputs_takes_no_stranger(make_session: Callable[..., Any], name: str, reused: bool) -> None:
    """Until the numbers are written again, as they are or otherwise."""
    session = make_session()
    parameters, module = enabled(session, name, "141,150")
    with shut_down(module):
        replace(session, reused=reused)
        for _ in range(2):
            session.put(f"{parameters}/commit_inputs", "Y")
            assert session.machine.processes[150] in tasks(module)
            assert not reused or session.machine.processes[141] not in tasks(module)
        session.put(f"{parameters}/monitor_pids", "141,150")
        assert session.write(f"{parameters}/commit_inputs", "Y") == ("OK" if reused else "EINVAL")
        assert not reused or session.machine.processes[141] in tasks(module)


@pytest.mark.parametrize("name", ["damon_stat", "damon_reclaim", "damon_lru_sort"])
def test_a_module_that_is_enabled_again_takes_no_stranger(make_session: Callable[..., Any], name: str) -> None:
    session = make_session()
    parameters, module = enabled(session, name, "141,150")
    with shut_down(module):
        session.put(f"{parameters}/enabled", "N")
        replace(session)
        assert "EINVAL" == session.write(f"{parameters}/enabled", "Y")
        session.put(f"{parameters}/monitor_pids", "141,150")
        session.put(f"{parameters}/enabled", "Y")


def test_a_number_of_a_control_group_that_is_a_strangers_by_now(make_session: Callable[..., Any]) -> None:
    """The group is read once more after its processes were opened."""
    session = make_session()
    session.machine.cgroups = {"/service": (141, 150)}
    read = session.machine.cgroup_processes

    def read_then_end(path: str) -> Any:
        found = read(path)
        if 141 in found:
            replace(session)
            session.machine.cgroups = {"/service": (150,)}
        return found

    session.put("/module/damon_stat/parameters/monitor_cgroup", "/service")
    session.machine.cgroup_processes = read_then_end
    _, module = enabled(session, "damon_stat", "")
    with shut_down(module):
        assert [session.machine.processes[150]] == tasks(module)


# Real processes.


SCRIPT = """
import os, signal, sys, time
from kdamon.mm.linux.machine import linux_machine
from kdamon_fs.sysfs import damon_sysfs_init

def child(pid=None):
    if pid:
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1))
    new = os.fork()
    if not new:
        os.execv("/bin/sleep", ["sleep", "60"])
    assert pid in (None, new), (pid, new)
    return new

def registered(pid):
    with open(f"/proc/{pid}/smaps") as smaps:
        return any(line.startswith("VmFlags:") and " uw" in line for line in smaps)

context = "/admin/kdamonds/0/contexts/0"
machine = linux_machine("page_fault")
try:
    probe = child()
    machine.get_task(probe, sys.argv[1]).put()
except OSError as error:
    sys.exit(f"skip: {error.strerror}")
tree = damon_sysfs_init(machine)
for path, value in (("/admin/kdamonds/nr_kdamonds", 1), ("/admin/kdamonds/0/contexts/nr_contexts", 1),
                    (f"{context}/targets/nr_targets", 2)):
    tree.write(path, str(value).encode())
if sys.argv[1] == "page_fault":
    tree.write(f"{context}/monitoring_attrs/sample/primitives/page_fault", b"Y")
pids = [child(), child()]
time.sleep(0.1)
for place, pid in enumerate(pids):
    tree.write(f"{context}/targets/{place}/pid_target", str(pid).encode())
tree.write("/admin/kdamonds/0/state", b"on")
time.sleep(0.1)
os.kill(pids[0], signal.SIGKILL)
os.waitpid(pids[0], 0)
child(pids[0])
time.sleep(0.1)
tree.write("/admin/kdamonds/0/state", b"commit")
targets = tree.kdamonds.at(0).damon_ctx.adaptive_targets
assert [t.task.valid() for t in targets] == [False, True], targets
assert not registered(pids[0]), "the stranger's memory is watched"
tree.write(f"{context}/targets/0/pid_target", str(pids[0]).encode())
tree.write("/admin/kdamonds/0/state", b"commit")
assert [t.task.valid() for t in targets] == [True, True], targets
assert registered(pids[0]) == (sys.argv[1] == "page_fault")
tree.shutdown()
print("done")
"""


@pytest.mark.real
@needs_root("a PID namespace needs root")
@needs_pid_namespace
@pytest.mark.parametrize("primitive", ["page_table", "page_fault"])
def test_a_real_commit_takes_no_stranger(primitive: str) -> None:
    """In a PID namespace, which has a counter of its own."""
    script = textwrap.dedent(SCRIPT)
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", script, primitive]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    if done.stderr.startswith("skip: "):
        pytest.skip(done.stderr)
    assert (0, "done\n") == (done.returncode, done.stdout), done.stderr
