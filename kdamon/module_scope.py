# SPDX-License-Identifier: GPL-2.0-only
"""The memory that a module monitors: addresses of named processes and of those in a control group.

No kernel counterpart: the modules of the kernel monitor physical memory.
(docs/deviations.md#modules-monitor-named-processes)
"""

from __future__ import annotations

import errno

from attrs import define

from kdamon.core import damon_add_target, damon_new_target, damon_set_regions
from kdamon.damon import damon_addr_range, damon_ctx, damon_target
from kdamon.mm import Machine, Task

__all__ = ["ModuleScope", "add_target", "check_cgroup", "processes_of"]


@define(slots=True, frozen=True)
class ModuleScope:
    """The memory that a module monitors.

    :ivar pids: numbers of processes.
    :ivar cgroup: path of a control group whose processes are followed, "" for none.
    :ivar start: first virtual address, bytes.
    :ivar end: end of the addresses (exclusive); 0 with ``start`` 0 is all that is mapped.
    """

    pids: tuple[int, ...] = ()
    cgroup: str = ""
    start: int = 0
    end: int = 0

    def fixed(self) -> bool:
        """Return whether the addresses are given."""
        return bool(self.start or self.end)


def check_cgroup(machine: Machine, cgroup: str) -> None:
    """Refuse a control group that does not exist.

    :param cgroup: its path, as ``/proc/PID/cgroup`` has it.
    :raises OSError: EINVAL there is none.
    """
    try:
        machine.cgroup_processes(cgroup)
    except OSError as error:
        raise OSError(errno.EINVAL, error.strerror) from None


def processes_of(machine: Machine, cgroup: str) -> tuple[int, ...]:
    """The numbers of the processes in ``cgroup`` and the groups below it; none for "".

    :raises OSError: EINVAL the group does not exist.
    """
    if not cgroup:
        return ()
    try:
        return machine.cgroup_processes(cgroup)
    except OSError as error:
        raise OSError(errno.EINVAL, f"monitor_cgroup: {error.strerror}") from None


def add_target(ctx: damon_ctx, scope: ModuleScope, pid: int, task: Task | None) -> damon_target:
    """Add a target for the process ``pid`` to ``ctx``, with the addresses of ``scope`` if these are fixed.

    :param task: the process, whose reference the target takes; None if it is to be opened later.
    """
    t = damon_new_target()
    t.pid, t.task = pid, task
    damon_add_target(ctx, t)
    if scope.fixed():
        damon_set_regions(t, [damon_addr_range(scope.start, scope.end)], ctx.min_region_sz)
    return t
