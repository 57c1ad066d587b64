# SPDX-License-Identifier: GPL-2.0-only
"""The common part of the modules (``mm/damon/modules-common.c`` and ``.h``): each monitors on its own, by parameters.

A module is an object whose fields have the names of its parameters: writing them changes nothing until it is enabled or
its inputs are committed.

Kernel: modules monitor the machine's physical memory. Here: the virtual memory of the processes that the parameters
``monitor_pids`` and ``monitor_cgroup`` name, because user space cannot find the users of a page of physical memory.
With neither a module cannot be enabled. (docs/deviations.md#modules-monitor-named-processes)
"""

from __future__ import annotations

import errno
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import ClassVar

from attrs import define, evolve, field

from kdamon.commit import call_commit
from kdamon.core import (
    damon_call,
    damon_commit_ctx,
    damon_destroy_ctx,
    damon_destroy_target,
    damon_is_running,
    damon_kdamond_pid,
    damon_new_ctx,
    damon_select_ops,
    damon_set_attrs,
    damon_set_schemes,
    damon_start,
    damon_stop,
)
from kdamon.damon import (
    DAMON_MIN_REGION_SZ,
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_intervals_goal,
    damon_ops_id,
    damos,
    damos_watermarks,
    damos_wmark_metric,
)
from kdamon.kernel import NSEC_PER_MSEC, Clock, RealClock, is_power_of_2
from kdamon.mapped import follow_mappings
from kdamon.mm import Machine, Task
from kdamon.module_scope import ModuleScope, add_target, processes_of

__all__ = ["DamonModule", "SchemeModule"]

log = logging.getLogger("kdamon")

#: Time between two checks of a control group's processes and of the mappings, nanoseconds.
_FOLLOW_INTERVAL = 5000 * NSEC_PER_MSEC

#: Largest number of targets for a control group: each takes descriptors, and a user may have any number of processes.
_MOST_MEMBERS = 1000

#: How long a parameter's change that was canceled may take to end, seconds.
_SHUTDOWN_TIMEOUT = 5.0


def _note_births(module: DamonModule, _attribute: object, pids: tuple[int, ...]) -> tuple[int, ...]:
    """Remember which processes have the numbers that are written to ``monitor_pids``, and what is monitored by them."""
    module._births = {}
    for pid in pids:
        with suppress(OSError):
            module._births[pid] = module.machine().birth(pid)
    return pids


@define(slots=True, eq=False, kw_only=True)
class DamonModule(ABC):
    """A module: monitors while it is enabled, exclusively: no other kdamond can run then.

    :ivar machine: finds the machine; called when the module is enabled.
    :ivar clock: of its contexts.
    :ivar monitor_pids: parameter, numbers of the processes to monitor: those that have them when this is written, or
        when they are monitored first.
    :ivar monitor_cgroup: parameter, path of a control group, as ``/proc/PID/cgroup`` has it; its processes and those of
        the groups below are monitored, also those that come later.
    :ivar ctx: the present or last context.
    """

    name: ClassVar[str]

    machine: Callable[[], Machine]
    clock: Clock = field(factory=RealClock)
    monitor_pids: tuple[int, ...] = field(default=(), on_setattr=_note_births)
    monitor_cgroup: str = ""
    ctx: damon_ctx | None = None
    _scope: ModuleScope = field(factory=ModuleScope, init=False)
    #: When the processes of ``monitor_pids`` began, and those that were monitored.
    _births: dict[int, int] = field(factory=dict, init=False)
    _monitored: dict[int, int] = field(factory=dict, init=False)
    _next_follow: int = field(default=0, init=False)
    #: Whether it was said that not all processes are monitored.
    _crowded: bool = field(default=False, init=False)
    _closing: bool = field(default=False, init=False)
    #: Held while a parameter starts, stops or changes something (the kernel's ``kernel_param_lock()``).
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    #: Held while targets of the context that runs come or go, or are to keep their places.
    _places: threading.Lock = field(factory=threading.Lock, init=False)

    @abstractmethod
    def _start(self) -> None:
        """Start monitoring."""

    @abstractmethod
    def refresh(self, ctx: damon_ctx) -> None:
        """Take over the results; called in the kdamond at the end of each sampling interval."""

    # Parameters.

    def enabled(self) -> bool:
        """Return whether the module monitors; not so after the last process ended that ``monitor_pids`` alone named."""
        return self.ctx is not None and damon_is_running(self.ctx)

    def enable(self, on: bool) -> None:
        """Start or stop monitoring, unless that is its state already.

        :raises OSError: EINVAL nothing can be monitored with these parameters; EBUSY another kdamond runs; ECANCELED
            the processes ended meanwhile; errors of the machine.
        """
        # Kernel: disabling waits for a commit, which waits for the kdamond, for an hour if that sleeps so long. Here:
        # the kdamond ends and the commit with it. (docs/deviations.md#disabling-a-module-ends-its-commit)
        if not on:
            self._stop()
        with self._lock:
            if not on:
                self._stop()  # another thread may have started it before this one got the lock
            elif not self.enabled():
                if self._closing:
                    raise OSError(errno.ESHUTDOWN, "the parameters are being unmounted")
                self._start()

    def kdamond_pid(self) -> int:
        """Thread id of the kdamond, -1 while there is none."""
        try:
            return -1 if self.ctx is None else damon_kdamond_pid(self.ctx)
        except OSError:
            return -1

    def shutdown(self) -> None:
        """Stop monitoring, for good."""
        self._closing = True
        try:
            self._stop()
            # A write that was under way may have started it since.
            if self._lock.acquire(timeout=_SHUTDOWN_TIMEOUT):
                try:
                    self._stop()
                finally:
                    self._lock.release()
            else:
                log.error("%s: a parameter is still being changed, although monitoring was stopped", self.name)
        except OSError as error:
            log.error("%s: %s", self.name, error.strerror)

    def _stop(self) -> None:
        if self.ctx is not None:
            damon_stop([self.ctx])

    # Starting.

    def _run(self, ctx: damon_ctx) -> None:
        """Start ``ctx``, which has all it needs, as the only one."""
        self._next_follow = self.clock.now() + _FOLLOW_INTERVAL
        try:
            damon_start([ctx], exclusive=True)
        except OSError:
            for t in list(ctx.adaptive_targets):
                damon_destroy_target(t, ctx)
            raise
        damon_call(ctx, damon_call_control(fn=self.call_fn, data=ctx, repeat=True))

    def call_fn(self, ctx: damon_ctx) -> None:
        """The module's work in the kdamond at the end of each sampling interval."""
        # Not by the operations set's update interval, which stands still while watermarks deactivate everything.
        # Later where a commit is being made, for which the kdamond is not to wait.
        if ctx.clock.now() >= self._next_follow and self._places.acquire(blocking=False):
            try:
                self._next_follow = ctx.clock.now() + _FOLLOW_INTERVAL
                self._follow(ctx)
            finally:
                self._places.release()
            if ctx.ops is not None:
                ctx.ops.update(ctx)
        self.refresh(ctx)

    def scope(self) -> ModuleScope:
        """The memory to monitor, by the parameters.

        :raises OSError: EINVAL they name no process.
        """
        if not self.monitor_pids and not self.monitor_cgroup:
            raise OSError(
                errno.EINVAL,
                "nothing to monitor: name processes in monitor_pids or a control group in monitor_cgroup",
            )
        return ModuleScope(self.monitor_pids, self.monitor_cgroup)

    def _new_ctx(self, scope: ModuleScope) -> damon_ctx:
        """A context without targets (``damon_modules_new_paddr_ctx_target()`` without the target)."""
        ctx = damon_new_ctx()
        ctx.clock = self.clock
        ctx.machine = self.machine()
        damon_select_ops(ctx, damon_ops_id.DAMON_OPS_FVADDR if scope.fixed() else damon_ops_id.DAMON_OPS_VADDR)
        assert ctx.ops is not None
        if not scope.fixed():
            follow_mappings(ctx)
        if scope.cgroup:
            # A group without processes, as of a service that starts again, waits for the next one.
            ctx.ops = evolve(ctx.ops, target_valid=None)
        return ctx

    # Targets.

    def _add_targets(self, ctx: damon_ctx, scope: ModuleScope, running: damon_ctx | None) -> None:
        """Give ``ctx`` the targets of ``scope``, in the places that ``running``, to which it is committed, has them in.

        :raises OSError: EINVAL a process does not exist, or none of the control group's can be monitored; what the
            machine raises.
        """
        assert ctx.machine is not None
        members = dict.fromkeys(processes_of(ctx.machine, scope.cgroup))
        named = dict.fromkeys(scope.pids)
        # Its kdamond may end meanwhile.
        for t in list(running.adaptive_targets) if running is not None else ():
            task = t.task
            kept = (t.pid in named or t.pid in members) and task is not None and task.valid()
            add_target(ctx, scope, t.pid, None).obsolete = not kept
            if kept:
                named.pop(t.pid, None)
                members.pop(t.pid, None)
        for pid in named:
            if self._add_named(ctx, scope, pid, committing=running is not None and damon_is_running(running)):
                members.pop(pid, None)
        reason = self._add_members(ctx, scope, members)
        if reason and all(t.obsolete for t in ctx.adaptive_targets):
            raise OSError(errno.EINVAL, f"monitor_cgroup: no process of {scope.cgroup} can be monitored now{reason}")

    def _add_named(self, ctx: damon_ctx, scope: ModuleScope, pid: int, *, committing: bool) -> bool:
        """Give ``ctx`` the process that ``pid`` in ``monitor_pids`` means.

        :returns: whether it was given; not where it ended while it was monitored, and nothing else changes by a commit.
        """
        assert ctx.machine is not None
        birth = self._births.get(pid)
        try:
            task = ctx.machine.get_task(pid, birth=birth)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise
            if committing and birth is not None and birth == self._monitored.get(pid):
                log.info("%s: process %d ended; write its number again to monitor a new process", self.name, pid)
                return False
            raise OSError(errno.EINVAL, f"monitor_pids: {error.strerror}") from None
        self._births[pid] = self._monitored[pid] = task.birth
        add_target(ctx, scope, pid, task)
        return True

    def _add_members(self, ctx: damon_ctx, scope: ModuleScope, pids: Iterable[int]) -> str:
        """Give ``ctx`` those of ``pids`` that are in the control group; returns why the last one is left out."""
        assert ctx.machine is not None
        reason = ""
        opened: list[tuple[int, Task]] = []
        left = _MOST_MEMBERS - len(ctx.adaptive_targets)
        for pid in pids:
            if len(opened) >= left:
                self._say_crowded(scope)
                break
            try:
                opened.append((pid, ctx.machine.get_task(pid)))
            except OSError as error:
                reason = f": {error.strerror}"
                log.debug("%s: process %d is left out%s", self.name, pid, reason)
        # Another process may have got a number before it was opened. A process that is in the group now, and still is
        # the one that was opened, belongs to the group.
        members: frozenset[int] = frozenset()
        if opened:
            with suppress(OSError):
                members = frozenset(processes_of(ctx.machine, scope.cgroup))
        for pid, task in opened:
            if pid in members and task.valid():
                add_target(ctx, scope, pid, task)
            else:
                task.put()
        return reason

    def _say_crowded(self, scope: ModuleScope) -> None:
        if not self._crowded:
            self._crowded = True
            log.warning(
                "%s: of %s only %d processes are monitored at once; name a smaller control group",
                self.name,
                scope.cgroup,
                _MOST_MEMBERS,
            )

    def _follow(self, ctx: damon_ctx) -> None:
        """Leave the processes that ended or left the control group, begin with those that came to it."""
        assert ctx.machine is not None
        members: dict[int, None] = {}
        try:
            members = dict.fromkeys(processes_of(ctx.machine, self._scope.cgroup))
        except OSError as error:
            log.debug("%s: %s", self.name, error.strerror)
        for t in list(ctx.adaptive_targets):
            if (t.pid in members or t.pid in self._scope.pids) and t.task is not None and t.task.valid():
                members.pop(t.pid, None)
            else:
                damon_destroy_target(t, ctx)
        # A process of monitor_pids that ended is not opened again: its number may be another's by now.
        self._add_members(ctx, self._scope, members)


@define(slots=True, eq=False, kw_only=True)
class SchemeModule(DamonModule):
    """A module that applies schemes: the parameters that all of these have, under their names.

    Its context stays when it is disabled: statistics and the state of quotas continue when it is enabled again.

    :ivar monitor_region_start: Kernel: physical addresses. Here: virtual addresses of each process, bytes; together
        with ``monitor_region_end`` 0 for all that is mapped.
    :ivar addr_unit: Kernel: bytes of an address unit. Here: checked, otherwise without effect, as for every virtual
        address space. (docs/deviations.md#modules-monitor-named-processes)
    """

    sample_interval: int = 5000
    aggr_interval: int = 100_000
    min_nr_regions: int = 10
    max_nr_regions: int = 1000
    autotune_monitoring_intervals: bool = False
    quota_ms: int = 10
    quota_reset_interval_ms: int = 1000
    wmarks_interval: int = 5_000_000
    wmarks_high: int
    wmarks_mid: int
    wmarks_low: int
    monitor_region_start: int = 0
    monitor_region_end: int = 0
    addr_unit: int = 1
    _has_started: bool = field(default=False, init=False)

    @abstractmethod
    def new_schemes(self, attrs: damon_attrs) -> list[damos]:
        """The module's schemes.

        :raises OSError: EINVAL the parameters make no sense.
        """

    def scope(self) -> ModuleScope:
        """See :meth:`DamonModule.scope`; also EINVAL where the addresses end before they start."""
        start, end = self.monitor_region_start, self.monitor_region_end
        if start > end:
            raise OSError(errno.EINVAL, f"monitor_region_end, {end:#x}, lies before monitor_region_start, {start:#x}")
        return evolve(DamonModule.scope(self), start=start, end=end)

    def commit_inputs(self) -> None:
        """Apply the present parameters to the running module, and wait for it.

        :raises OSError: EINVAL the module never ran, or the parameters make no sense; nothing changed then; ECANCELED
            it does not run any more.
        """
        with self._lock:
            if not self._has_started:
                raise OSError(errno.EINVAL, f"{self.name} was never enabled, so there is nothing to commit to")
            ctx = self.ctx
            if ctx is None or not damon_is_running(ctx):
                damon_call(ctx, damon_call_control(fn=lambda _: None))
            assert ctx is not None
            # Kernel: the kdamond reads the parameters. Here: this thread, because processes are opened for them.
            # (docs/deviations.md#parameters-of-modules-are-read-by-the-writer)
            with self._places:
                scope, param_ctx = self._param_ctx()
                try:
                    call_commit(ctx, param_ctx, lambda: self._committed(ctx, scope))
                finally:
                    damon_destroy_ctx(param_ctx)

    def _committed(self, ctx: damon_ctx, scope: ModuleScope) -> None:
        """The module's work in the kdamond after a commit."""
        self._scope = scope
        # New targets have no regions yet, and those of fixed addresses may have become all that is mapped.
        if ctx.ops is not None:
            ctx.ops.update(ctx)

    def apply_parameters(self) -> damon_ctx:
        """Apply the parameters to the context, which does not run; returns it.

        That is ``damon_*_apply_parameters()``.

        :raises OSError: as :meth:`_param_ctx`; nothing changed then.
        """
        scope, param_ctx = self._param_ctx()
        try:
            ctx = self.ctx = self.ctx or self._new_ctx(scope)
            damon_commit_ctx(ctx, param_ctx)
        finally:
            damon_destroy_ctx(param_ctx)
        self._scope = scope
        return ctx

    def _param_ctx(self) -> tuple[ModuleScope, damon_ctx]:
        """A context by the parameters, to be committed to :attr:`ctx` and then destroyed.

        :raises OSError: EINVAL they make no sense, or name no process that exists; what the machine raises.
        """
        scope = self.scope()
        if not is_power_of_2(max(DAMON_MIN_REGION_SZ // self.addr_unit, 1)):
            raise OSError(errno.EINVAL, f"addr_unit, {self.addr_unit}, does not divide a page into a power of two")
        attrs = self._attrs()
        param_ctx = self._new_ctx(scope)
        try:
            damon_set_attrs(param_ctx, attrs)
            damon_set_schemes(param_ctx, self.new_schemes(attrs))
            self._add_targets(param_ctx, scope, self.ctx)
        except BaseException:
            damon_destroy_ctx(param_ctx)
            raise
        return scope, param_ctx

    def _start(self) -> None:
        self._run(self.apply_parameters())
        self._has_started = True

    def _attrs(self) -> damon_attrs:
        attrs = damon_attrs(
            sample_interval=self.sample_interval,
            aggr_interval=self.aggr_interval,
            min_nr_regions=self.min_nr_regions,
            max_nr_regions=self.max_nr_regions,
        )
        if self.autotune_monitoring_intervals:
            attrs.sample_interval, attrs.aggr_interval = 5000, 100_000
            attrs.intervals_goal = damon_intervals_goal(40, 3, 5000, 10_000_000)
        return attrs

    def wmarks(self) -> damos_watermarks:
        """The watermarks of each scheme."""
        return damos_watermarks(
            damos_wmark_metric.DAMOS_WMARK_FREE_MEM_RATE,
            self.wmarks_interval,
            self.wmarks_high,
            self.wmarks_mid,
            self.wmarks_low,
        )
