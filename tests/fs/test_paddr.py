# SPDX-License-Identifier: GPL-2.0-only
"""Physical addresses through the tree."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from kdamon.mm.sampling.physical import Physical
from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.sysfs import damon_sysfs_init

pytestmark = pytest.mark.real


CONTEXT = "/admin/kdamonds/0/contexts/0"
MIB = 1 << 20


def monitor(session: Any, *settings: tuple[str, int | str]) -> None:
    """A kdamond for 64 MiB of physical memory."""
    session.context()
    session.put(f"{CONTEXT}/operations", "paddr")
    session.put(f"{CONTEXT}/targets/nr_targets", 1)
    session.put(f"{CONTEXT}/targets/0/regions/nr_regions", 1)
    session.put(f"{CONTEXT}/targets/0/regions/0/end", 64 * MIB)
    for path, value in settings:
        session.put(f"{CONTEXT}/{path}", value)


def running(session: Any) -> Any:
    (kdamond,) = session.tree.kdamonds.present()
    return kdamond.damon_ctx


def test_it_is_on_offer_only_where_it_works() -> None:
    """The machine is asked, not the program."""

    class Lacking(SimMachine):
        def physical_memory(self) -> Physical:
            raise OSError(errno.EPERM, "page frames may not be seen")

    for machine, names in ((SimMachine(), "vaddr\nfvaddr\npaddr\n"), (Lacking(), "vaddr\nfvaddr\n")):
        tree = damon_sysfs_init(machine, "7.3")
        tree.write("/admin/kdamonds/nr_kdamonds", b"1")
        tree.write("/admin/kdamonds/0/contexts/nr_contexts", b"1")
        assert names == tree.read(f"{CONTEXT}/avail_operations").decode()
        tree.shutdown()


def test_a_machine_that_cannot_refuses_to_start(session: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With the reason in the log."""

    def refuse() -> Physical:
        raise OSError(errno.EPERM, "page frames may not be seen")

    session.machine.physical_memory = refuse
    monitor(session)
    assert "EPERM" == session.state("on")
    assert "page frames may not be seen" in caplog.text


@pytest.mark.real
@pytest.mark.parametrize(("unit", "smallest"), [(1, 4096), (1024, 4), (8192, 1)])
def test_the_unit_of_addresses_takes_effect(session: Any, unit: int, smallest: int) -> None:
    monitor(session, ("addr_unit", unit), ("targets/0/regions/0/end", 64 * MIB // unit))
    assert "OK" == session.state("on")
    assert (unit, smallest) == (running(session).addr_unit, running(session).min_region_sz)
    assert "OK" == session.state("off")


@pytest.mark.real
def test_the_unit_of_addresses_is_nothing_to_processes(session: Any) -> None:
    session.monitor()
    session.put(f"{CONTEXT}/addr_unit", 1024)
    assert "OK" == session.state("on")
    assert (1, 4096) == (running(session).addr_unit, running(session).min_region_sz)


def test_a_unit_that_does_not_divide_a_page_is_refused(session: Any) -> None:
    monitor(session, ("addr_unit", 3))
    assert "EINVAL" == session.state("on")


@pytest.mark.real
def test_there_is_only_one_physical_address_space(session: Any) -> None:
    """Two targets are refused, and the kdamond goes on with the one that it has."""
    monitor(session, ("targets/nr_targets", 2))
    assert "EINVAL" == session.state("on")
    monitor(session)
    assert "OK" == session.state("on")
    session.put(f"{CONTEXT}/targets/nr_targets", 2)
    assert "EINVAL" == session.state("commit")
    assert 1 == len(running(session).adaptive_targets)
    assert "on\n" == session.read("/admin/kdamonds/0/state")


def test_eligible_memory_is_refused_where_it_is_unknown(session: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Only physical addresses have a node; a commit of goals alone takes it, as the kernel's does, and logs that."""
    monitor(session, ("schemes/nr_schemes", 1), ("schemes/0/quotas/goals/nr_goals", 1))
    session.put(f"{CONTEXT}/schemes/0/quotas/goals/0/target_metric", "node_eligible_mem_bp")
    session.put(f"{CONTEXT}/schemes/0/quotas/goals/0/target_value", 100)
    assert "OK" == session.state("on")
    assert "OK" == session.state("commit_schemes_quota_goals")
    assert "node_eligible_mem_bp" not in caplog.text
    session.put(f"{CONTEXT}/operations", "vaddr")
    session.put(f"{CONTEXT}/targets/0/pid_target", 150)
    assert "EINVAL" == session.state("commit")
    assert "the quota goal node_eligible_mem_bp needs the operations set paddr" in caplog.text
    assert "OK" == session.state("off")
    assert "EINVAL" == session.state("on")
    session.put(f"{CONTEXT}/schemes/0/quotas/goals/0/target_metric", "user_input")
    assert "OK" == session.state("on")
    session.put(f"{CONTEXT}/schemes/0/quotas/goals/0/target_metric", "node_eligible_mem_bp")
    assert "OK" == session.state("commit_schemes_quota_goals")
    assert "node_eligible_mem_bp is always 0 here" in caplog.text
    assert "EINVAL" == session.state("commit")
    session.put(f"{CONTEXT}/schemes/0/quotas/goals/0/target_metric", "user_input")
    assert "OK" == session.state("commit")


def test_faults_are_refused(make_session: Callable[..., Any]) -> None:
    """They belong to processes."""
    session = make_session("kdamon")
    monitor(session, ("monitoring_attrs/sample/primitives/page_fault", "Y"))
    assert session.state("on") == errno.errorcode[errno.EOPNOTSUPP]


@pytest.mark.real
def test_a_commit_keeps_what_is_known_and_another_operations_set_gives_it_back(session: Any) -> None:
    monitor(session)
    assert "OK" == session.state("on")
    (target,) = running(session).adaptive_targets
    memory = target.task
    assert memory is not None
    assert memory.physical is memory
    assert "OK" == session.state("commit")
    assert memory is target.task
    session.put(f"{CONTEXT}/operations", "vaddr")
    session.put(f"{CONTEXT}/targets/0/pid_target", 150)
    assert "OK" == session.state("commit")
    assert session.machine.processes[150] is target.task
    session.put(f"{CONTEXT}/operations", "paddr")
    assert "OK" == session.state("commit")
    assert target.task is not None
    assert target.task.physical is target.task
