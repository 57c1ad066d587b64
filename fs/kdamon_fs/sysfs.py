# SPDX-License-Identifier: GPL-2.0-only
"""The directory ``kdamonds`` and the commands of its ``state`` files (the second half of ``mm/damon/sysfs.c``).

:func:`damon_sysfs_init` creates the whole tree, which works without a mount::

    tree = damon_sysfs_init()
    tree.write("/admin/kdamonds/nr_kdamonds", b"1")
    tree.read("/admin/kdamonds/0/state")    # b"off\\n"
    tree.shutdown()
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from typing import Final

from kdamon import wait_limits as patience
from kdamon.commit import call_commit
from kdamon.core import (
    damon_call,
    damon_destroy_ctx,
    damon_is_running,
    damon_kdamond_pid,
    damon_start,
    damon_stop,
    load_operations,
    wait_end,
)
from kdamon.damon import damon_call_control, damon_ctx, damos_walk_control
from kdamon.damos import damos_walk
from kdamon.kernel import Clock
from kdamon.kstrtox import sysfs_streq
from kdamon.mm import Machine, Primitive
from kdamon_fs.abi import DEFAULT_ABI
from kdamon_fs.kobject import NumberedDirectories, kobj_attribute, kobject, nr_attribute
from kdamon_fs.module_params import ModuleParams
from kdamon_fs.sysfs_common import MachineTree, uint_attribute
from kdamon_fs.sysfs_context import damon_sysfs_build_ctx, damon_sysfs_contexts
from kdamon_fs.sysfs_sample import SampleWarnings
from kdamon_fs.sysfs_schemes import (
    damon_sysfs_schemes_clear_regions,
    damon_sysfs_schemes_update_stats,
    damon_sysfs_schemes_walk_data,
    damos_sysfs_populate_region_dir,
    damos_sysfs_update_effective_quotas,
)
from kdamon_fs.sysfs_schemes_build import QuotaScores

__all__ = ["SysfsTree", "damon_sysfs_init", "damon_sysfs_kdamond", "damon_sysfs_kdamonds"]

log = logging.getLogger("kdamon")

_NSEC_PER_MSEC: Final = 1_000_000

#: Time limit in seconds for the end of a canceled command or a kdamond.
_SHUTDOWN_TIMEOUT: Final = 5.0


def _this_machine() -> Machine:
    # A way to read accessed bits is searched only when a kdamond uses them: page faults may be enough.
    from kdamon.mm.linux.machine import linux_machine  # noqa: PLC0415 -- looks at the kernel, which may not be needed

    return linux_machine(Primitive.PAGE_FAULT)


class SysfsTree(MachineTree):
    """The whole tree, with the machine and the clock of its kdamonds.

    :param machine: the machine whose processes are monitored, or a function that returns it, called at the first use.
    :param clock: the clock of all contexts; None is the real one.
    :ivar closing: no kdamond may be started any more.
    :ivar modules: the directory ``module`` of modules' parameters; not listed unless :meth:`list_modules` was called.
    """

    def __init__(self, machine: Machine | Callable[[], Machine], abi: str, clock: Clock | None) -> None:
        super().__init__(abi)
        self.clock = clock
        self.closing = False
        self._machine = machine
        self._machine_lock = threading.Lock()
        self.kdamonds = damon_sysfs_kdamonds(self)
        admin = kobject(self)
        admin.add("kdamonds", self.kdamonds)
        self.root.add("admin", admin)
        # The kernel has it at another path: the function that mounts the tree decides where it is visible.
        self.modules = ModuleParams(self, self.machine, clock)
        self.modules.hidden = True
        self.root.add("module", self.modules)

    def list_modules(self) -> None:
        """List the directory ``module`` beside ``admin``."""
        self.modules.hidden = False
        self.forget_paths()

    def machine(self) -> Machine:
        """The machine whose processes are monitored.

        :raises OSError: EOPNOTSUPP, EPERM a requirement is missing; the message names it.
        """
        # Several files ask for it, each in the thread of its writer: all kdamonds have to have the same one.
        with self._machine_lock:
            if callable(self._machine):
                self._machine = self._machine()
            return self._machine

    def shutdown(self) -> None:
        """Stop all kdamonds permanently: none can be started again. Commands that wait for one are canceled."""
        self.closing = True
        ended = self._stop_kdamonds()
        self.modules.shutdown()
        if not ended:
            # A command may wait for it, with the lock.
            return
        # A command that was under way may have started one since.
        if self.acquire(_SHUTDOWN_TIMEOUT):
            try:
                self._stop_kdamonds()
            finally:
                self.release()
        else:
            log.error("a command is still waiting, although all kdamonds were stopped")

    def _stop_kdamonds(self) -> bool:
        contexts = (kdamond.damon_ctx for kdamond in self.kdamonds.present())
        try:
            damon_stop([ctx for ctx in contexts if ctx is not None])
        except OSError as error:
            log.error("%s", error.strerror)
            return False
        return True


def _state_show(kdamond: damon_sysfs_kdamond) -> str:
    with kdamond.tree.trylock():
        return "on\n" if kdamond.running() else "off\n"


def _state_store(kdamond: damon_sysfs_kdamond, text: str) -> None:
    names = ("off", *_BUILDING, *_COMMANDS)
    name = next((name for name in names if sysfs_streq(text, name)), None)
    if name is None:
        raise OSError(errno.EINVAL, f"{text[:40]!r} is not a command; the commands are {', '.join(names)}")
    try:
        kdamond.command(name)
    except OSError as error:
        # The writer receives the errno only.
        level = logging.WARNING if name in ("on", "commit") and error.errno != errno.EBUSY else logging.INFO
        log.log(level, "%s: %s: %s", kdamond.location(), name, error.strerror)
        raise


def _pid_show(kdamond: damon_sysfs_kdamond) -> str:
    with kdamond.tree.trylock():
        try:
            return f"{-1 if kdamond.damon_ctx is None else damon_kdamond_pid(kdamond.damon_ctx)}\n"
        except OSError:
            return "-1\n"


class damon_sysfs_kdamond(kobject):
    """A kdamond.

    :ivar damon_ctx: the context it monitors or monitored last; None before the first start.
    :ivar refresh_ms: how often results are updated without a command, 0 never.
    """

    __slots__ = ("_building", "_next_refresh", "_warnings", "contexts", "damon_ctx", "refresh_ms")

    tree: SysfsTree

    default_attributes = (
        kobj_attribute("state", _state_show, _state_store),
        kobj_attribute("pid", _pid_show),
        uint_attribute("refresh_ms", since="6.17"),
    )

    def __init__(self, tree: SysfsTree) -> None:
        super().__init__(tree)
        self.contexts = damon_sysfs_contexts(tree, lambda: self.damon_ctx)
        self.damon_ctx: damon_ctx | None = None
        self.refresh_ms = 0
        self._next_refresh = 0
        self._warnings = SampleWarnings()
        #: A command that builds a context goes on without the tree's lock.
        self._building = False
        self.add("contexts", self.contexts)

    def running(self) -> bool:
        """Return whether it is monitoring."""
        return self.damon_ctx is not None and damon_is_running(self.damon_ctx)

    def in_use(self) -> bool:
        """Return whether it is monitoring, or a command is starting it."""
        return self._building or self.running()

    def release(self) -> None:
        """Destroy the last context."""
        ctx, self.damon_ctx = self.damon_ctx, None
        if ctx is not None:
            damon_destroy_ctx(ctx)

    # The commands.

    def command(self, name: str) -> None:
        """Handle a write of ``name`` to ``state`` (``damon_sysfs_handle_cmd()``).

        :raises OSError: EINVAL the files have unusable values, or the kdamond was never started; EBUSY it runs already,
            its targets delay it, or another command is being handled; ECANCELED it does not run any more, or is paused.
        """
        if name in _BUILDING:
            self._build_and(*_BUILDING[name])
            return
        with self.tree.trylock():
            self._check_free()
            if name == "off":
                self.turn_off()
                return
            self.contexts.context()
            _COMMANDS[name](self)

    def _check_free(self) -> None:
        if self.removed:
            # Kernel: a directory goes when all writes to its files are over. Here: one may begin before, end after.
            # (docs/deviations.md#removed-directories)
            raise OSError(errno.ENODEV, f"{self.location()} was removed")
        if self._building:
            raise OSError(errno.EBUSY, f"another command for {self.location()} is being handled; try again")

    def _build_and(
        self,
        begin: Callable[[damon_sysfs_kdamond], damon_ctx | None],
        finish: Callable[[damon_sysfs_kdamond, damon_ctx], None],
    ) -> None:
        """Build a context, and pass it to ``finish``.

        Kernel: all under one lock, and for a commit in the kdamond. Here: this thread opens and closes processes
        without the lock, because they determine how long that takes, and neither the kdamond nor any other file may
        wait for them. Meanwhile all other commands for this kdamond fail with EBUSY, as in the kernel.
        (docs/deviations.md#processes-are-opened-without-the-lock)

        :param begin: checks the conditions that need no new context; returns the context that the new one will be
            committed to.
        :param finish: starts or commits the new context, which is destroyed unless it is the monitored one afterwards.
        """
        opening: list[Callable[[], None]] = []
        with self.tree.trylock():
            self._check_free()
            context = self.contexts.context()
            running = begin(self)
            ctx = damon_sysfs_build_ctx(context, self.tree.machine, self.tree.clock, running, opening)
            self._building = True
        try:
            for open_task in opening:
                self._check_open()
                open_task()
            if not self.tree.acquire(patience.PATIENCE):
                raise OSError(errno.EBUSY, "another command is being handled; try again")
        except BaseException:
            self._building = False
            damon_destroy_ctx(ctx)
            raise
        taken = False
        try:
            self._building = False
            finish(self, ctx)
            taken = self.damon_ctx is ctx
        finally:
            self.tree.release()
            if not taken:
                damon_destroy_ctx(ctx)

    def _check_open(self) -> None:
        if self.tree.closing:
            raise OSError(errno.ESHUTDOWN, "the tree is being unmounted")

    def begin_turning_on(self) -> None:
        """Refuse to start a running kdamond, and destroy the last context.

        :raises OSError: EBUSY it runs; ESHUTDOWN the tree is being unmounted.
        """
        if self.running():
            raise OSError(errno.EBUSY, f"{self.location()} is on already; commit applies changes")
        self._check_open()
        self.release()

    def turn_on(self, ctx: damon_ctx) -> None:
        """Start monitoring ``ctx``, built from the files (``damon_sysfs_turn_damon_on()``).

        :raises OSError: ESHUTDOWN the tree is being unmounted; the errors of :func:`kdamon.core.damon_start`; from 7.4
            on ECANCELED the kdamond ended at once.
        """
        self._check_open()
        damon_start([ctx], exclusive=False)
        self.damon_ctx = ctx
        self._warnings = SampleWarnings()
        self._warnings.log(ctx, self.location())
        try:
            damon_call(ctx, damon_call_control(fn=_refresh, data=self, repeat=True))
        except OSError as error:
            if self.tree.has("7.4"):
                raise
            log.debug("%s ended at once: %s", self.location(), error.strerror)

    def turn_off(self) -> None:
        """Stop monitoring (``damon_sysfs_turn_damon_off()``).

        Its results stay, and a kdamond that is off already, or ended by itself, stays off.

        :raises OSError: EINVAL it was never on; EBUSY it does not end in time.
        """
        damon_stop([self._started()])

    def _started(self) -> damon_ctx:
        if self.damon_ctx is None:
            raise OSError(errno.EINVAL, f"{self.location()} was not turned on")
        return self.damon_ctx

    def begin_commit(self) -> damon_ctx:
        """The running context, to commit to.

        :raises OSError: EINVAL it was never on; ECANCELED it does not run any more.
        """
        if not self.running():
            self.call(lambda _: None)
        return self._started()

    def commit(self, wanted: damon_ctx) -> None:
        """Apply ``wanted``, built from the files, to the running context (``damon_sysfs_commit_input()``).

        A kdamond that has no target after it is off when this returns.
        """
        ctx = self._started()
        call_commit(ctx, wanted)
        if not ctx.adaptive_targets and ctx.ops is not None and ctx.ops.target_valid is not None:
            wait_end(ctx)
        self._warnings.log(ctx, self.location())

    def commit_schemes_quota_goals(self) -> None:
        """Apply the goals alone.

        :raises OSError: EINVAL a memory cgroup does not exist: the goals of the schemes before it are applied then; the
            errors of :meth:`call`.
        """
        ctx = self.begin_commit()
        scores = QuotaScores(self.contexts.context().schemes, ctx, self.tree.machine)
        self.call(lambda _: scores.set(ctx))
        if scores.error is not None:
            raise scores.error

    def update_schemes_stats(self) -> None:
        """Show the schemes' statistics; runs in the kdamond."""
        ctx = self.damon_ctx
        assert ctx is not None
        damon_sysfs_schemes_update_stats(self.contexts.context().schemes, ctx)

    def update_schemes_effective_quotas(self) -> None:
        """Show the schemes' effective quotas, 0 where there is no limit; runs in the kdamond."""
        ctx = self.damon_ctx
        assert ctx is not None
        damos_sysfs_update_effective_quotas(self.contexts.context().schemes, ctx)

    def update_tuned_intervals(self) -> None:
        """Show the intervals that the auto-tuning chose; runs in the kdamond."""
        ctx = self.damon_ctx
        assert ctx is not None
        intervals = self.contexts.context().attrs.intervals
        intervals.sample_us = ctx.attrs.sample_interval
        intervals.aggr_us = ctx.attrs.aggr_interval

    def update_schemes_tried_regions(self, total_bytes_only: bool) -> None:
        """Wait for the next application of each scheme, and show the regions that it tried.

        :raises OSError: EINVAL it was never on; the errors of :func:`kdamon.damos.damos_walk`.
        """
        ctx = self._started()
        schemes = self.contexts.context().schemes
        damon_sysfs_schemes_clear_regions(schemes)
        data = damon_sysfs_schemes_walk_data(schemes, total_bytes_only)
        try:
            damos_walk(ctx, damos_walk_control(walk_fn=damos_sysfs_populate_region_dir, data=data))
        finally:
            self.tree.forget_paths()

    def clear_schemes_tried_regions(self) -> None:
        """Remove the tried regions of all schemes."""
        damon_sysfs_schemes_clear_regions(self.contexts.context().schemes)

    def call(self, fn: Callable[[damon_sysfs_kdamond], None]) -> None:
        """Call ``fn`` in the kdamond and wait for it (``damon_sysfs_damon_call()``).

        :raises OSError: EINVAL it was never on; the errors of :func:`kdamon.core.damon_call`.
        """
        damon_call(self._started(), damon_call_control(fn=fn, data=self))

    def refresh(self) -> None:
        """Update results if ``refresh_ms`` is over; called each iteration (``damon_sysfs_repeat_call_fn()``).

        Kernel: one time of the next update for all kdamonds, so that they take turns. Here: each has its own.
        (docs/deviations.md#one-refresh-time-per-kdamond)
        """
        ctx = self.damon_ctx
        if not self.refresh_ms or ctx is None:
            return
        now = ctx.clock.now()
        if now < self._next_refresh:
            return
        self._next_refresh = now + self.refresh_ms * _NSEC_PER_MSEC
        if not self.tree.acquire():
            return
        try:
            if self.contexts.nr:
                self.update_tuned_intervals()
                self.update_schemes_stats()
                self.update_schemes_effective_quotas()
        finally:
            self.tree.release()


def _refresh(kdamond: damon_sysfs_kdamond) -> None:
    kdamond.refresh()


def _calling(fn: Callable[[damon_sysfs_kdamond], None]) -> Callable[[damon_sysfs_kdamond], None]:
    return lambda kdamond: kdamond.call(fn)


#: The commands for ``state`` that build a context, with their functions ``begin`` and ``finish``.
_BUILDING: Final[
    dict[
        str, tuple[Callable[[damon_sysfs_kdamond], damon_ctx | None], Callable[[damon_sysfs_kdamond, damon_ctx], None]]
    ]
] = {
    "on": (damon_sysfs_kdamond.begin_turning_on, damon_sysfs_kdamond.turn_on),
    "commit": (damon_sysfs_kdamond.begin_commit, damon_sysfs_kdamond.commit),
}

#: The other commands for ``state``, except ``off``.
_COMMANDS: Final[dict[str, Callable[[damon_sysfs_kdamond], None]]] = {
    "commit_schemes_quota_goals": damon_sysfs_kdamond.commit_schemes_quota_goals,
    "update_schemes_stats": _calling(damon_sysfs_kdamond.update_schemes_stats),
    "update_schemes_tried_bytes": lambda kdamond: kdamond.update_schemes_tried_regions(total_bytes_only=True),
    "update_schemes_tried_regions": lambda kdamond: kdamond.update_schemes_tried_regions(total_bytes_only=False),
    "clear_schemes_tried_regions": damon_sysfs_kdamond.clear_schemes_tried_regions,
    "update_schemes_effective_quotas": _calling(damon_sysfs_kdamond.update_schemes_effective_quotas),
    "update_tuned_intervals": _calling(damon_sysfs_kdamond.update_tuned_intervals),
}


class damon_sysfs_kdamonds(NumberedDirectories[damon_sysfs_kdamond]):
    """All kdamonds."""

    __slots__ = ()

    tree: SysfsTree

    default_attributes = (nr_attribute("nr_kdamonds"),)

    def new_child(self) -> damon_sysfs_kdamond:
        """A kdamond."""
        return damon_sysfs_kdamond(self.tree)

    def present(self) -> list[damon_sysfs_kdamond]:
        """The kdamonds whose directories were used at least once; no other can be running."""
        return list(self.children.values())

    def rm_dirs(self) -> None:
        """Remove all kdamonds.

        :raises OSError: EBUSY one of them is running.
        """
        kdamonds = self.present()
        if any(kdamond.in_use() for kdamond in kdamonds):
            raise OSError(errno.EBUSY, "a kdamond is on; turn it off first")
        super().rm_dirs()
        for kdamond in kdamonds:
            kdamond.release()


def damon_sysfs_init(
    machine: Machine | Callable[[], Machine] | None = None,
    abi: str = DEFAULT_ABI,
    clock: Clock | None = None,
) -> SysfsTree:
    """Create the tree; its top is ``/sys/kernel/mm/damon``.

    :param machine: the machine whose processes are monitored, or a function that returns it, called when a kdamond with
        processes is turned on. An error of that function fails this command only, so the tree can be used where nothing
        can be monitored. None is the machine that this process runs on.
    :param abi: version of the tree, one of :data:`kdamon_fs.abi.ABI_VERSIONS`.
    :param clock: the clock of all contexts; None is the real one.
    :raises OSError: EINVAL for an unknown ``abi``.
    """
    load_operations()
    return SysfsTree(machine or _this_machine, abi, clock)
