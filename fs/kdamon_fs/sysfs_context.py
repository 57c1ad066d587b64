# SPDX-License-Identifier: GPL-2.0-only
"""The directory ``contexts`` of a kdamond (the first half of ``mm/damon/sysfs.c``): targets and monitoring attributes.

The files only store values; :func:`damon_sysfs_build_ctx` builds a context from them when monitoring starts and at each
commit.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable
from typing import Final

from kdamon.core import (
    damon_add_target,
    damon_destroy_ctx,
    damon_is_registered_ops,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_set_regions,
)
from kdamon.damon import (
    DAMON_MIN_REGION_SZ,
    OPS_KEYWORDS,
    damon_addr_range,
    damon_attrs,
    damon_ctx,
    damon_intervals_goal,
    damon_ops_id,
    damon_target,
)
from kdamon.kernel import Clock
from kdamon.kstrtox import kstrtoul
from kdamon.mm import Machine, Primitive
from kdamon.sample_control import check_fault_filters, sample_primitive
from kdamon_fs.abi import OWN
from kdamon_fs.kobject import NumberedDirectories, Tree, kobj_attribute, kobject, nr_attribute
from kdamon_fs.sysfs_common import (
    MachineTree,
    bool_attribute,
    damon_sysfs_ul_range,
    int_attribute,
    keyword_attribute,
    not_supported,
    ulong_attribute,
)
from kdamon_fs.sysfs_probes import damon_sysfs_probes, damon_sysfs_set_probes
from kdamon_fs.sysfs_sample import (
    RunningContext,
    build_sample_control,
    damon_sysfs_sample,
)
from kdamon_fs.sysfs_schemes import damon_sysfs_schemes
from kdamon_fs.sysfs_schemes_build import damon_sysfs_add_schemes

__all__ = ["damon_sysfs_build_ctx", "damon_sysfs_context", "damon_sysfs_contexts", "damon_sysfs_intervals"]

log = logging.getLogger("kdamon")

#: The version of the tree that an operations set came with, for those that not every version has.
_OPERATIONS_SINCE: Final = {"reports": OWN}


# Targets.


class damon_sysfs_region(kobject):
    """An initial monitoring region."""

    __slots__ = ("end", "start")

    default_attributes = (ulong_attribute("start"), ulong_attribute("end"))

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.start = self.end = 0


class damon_sysfs_regions(NumberedDirectories[damon_sysfs_region]):
    """The initial regions of a target; without any, the operations set chooses them."""

    __slots__ = ()

    default_attributes = (nr_attribute("nr_regions"),)

    def new_child(self) -> damon_sysfs_region:
        """A range."""
        return damon_sysfs_region(self.tree)


_PID_TARGET: Final = int_attribute("pid_target", squash=True, field="pid")


def _pid_target_store(target: damon_sysfs_target, text: str) -> None:
    assert _PID_TARGET.store is not None
    _PID_TARGET.store(target, text)
    try:
        target.birth = target.tree.machine().birth(target.pid)
    except OSError:
        target.birth = None


class damon_sysfs_target(kobject):
    """A process to monitor.

    :ivar birth: the start time of the process that had the number when it was written, see
        :meth:`kdamon.mm.Machine.birth`; None if there was none.
    """

    __slots__ = ("birth", "obsolete", "pid", "regions")

    tree: MachineTree

    default_attributes = (
        # Kernel: resolves the number at each start and each commit. Here: when it is written, because another
        # process may have the number later. (docs/deviations.md#a-pid-stands-for-the-process-it-names)
        kobj_attribute("pid_target", _PID_TARGET.show, _pid_target_store),
        bool_attribute("obsolete_target", since="6.19", field="obsolete"),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.pid = 0
        self.birth: int | None = None
        self.obsolete = False
        self.regions = damon_sysfs_regions(tree)
        self.add("regions", self.regions)


class damon_sysfs_targets(NumberedDirectories[damon_sysfs_target]):
    """The processes to monitor."""

    __slots__ = ()

    default_attributes = (nr_attribute("nr_targets"),)

    def new_child(self) -> damon_sysfs_target:
        """A target."""
        return damon_sysfs_target(self.tree)


# Attributes.


class damon_sysfs_intervals_goal(kobject):
    """The goal of the intervals' auto-tuning."""

    __slots__ = ("access_bp", "aggrs", "max_sample_us", "min_sample_us")

    default_attributes = (
        ulong_attribute("access_bp"),
        ulong_attribute("aggrs"),
        ulong_attribute("min_sample_us"),
        ulong_attribute("max_sample_us"),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.access_bp = self.aggrs = self.min_sample_us = self.max_sample_us = 0


class damon_sysfs_intervals(kobject):
    """The sampling, aggregation and update intervals, microseconds."""

    __slots__ = ("aggr_us", "goal", "sample_us", "update_us")

    default_attributes = (
        ulong_attribute("sample_us"),
        ulong_attribute("aggr_us"),
        ulong_attribute("update_us"),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.sample_us = 5000
        self.aggr_us = 100_000
        self.update_us = 60_000_000
        self.goal = damon_sysfs_intervals_goal(tree)
        self.add("intervals_goal", self.goal, since="6.15")


class damon_sysfs_attrs(kobject):
    """The monitoring attributes."""

    __slots__ = ("intervals", "nr_regions", "probes", "sample")

    def __init__(self, tree: Tree, running_context: RunningContext) -> None:
        super().__init__(tree)
        self.intervals = damon_sysfs_intervals(tree)
        self.nr_regions = damon_sysfs_ul_range(tree, 10, 1000)
        self.probes = damon_sysfs_probes(tree)
        self.add("intervals", self.intervals)
        self.add("nr_regions", self.nr_regions)
        self.add("probes", self.probes, since="7.2")
        self.sample = damon_sysfs_sample(tree, running_context)
        self.add("sample", self.sample, since=OWN)


# Contexts.


def _operations(context: damon_sysfs_context) -> tuple[str, ...]:
    return tuple(name for name in OPS_KEYWORDS if context.tree.has(_OPERATIONS_SINCE.get(name)))


def _available(context: damon_sysfs_context, name: str) -> bool:
    """Return whether this machine supports the operations set ``name``, whatever its targets are."""
    if name == "paddr":
        try:
            context.tree.machine().physical_memory().put()
        except OSError as error:
            log.info("%s: %s", name, error.strerror)
            return False
    return damon_is_registered_ops(OPS_KEYWORDS[name])


def _avail_operations_show(context: damon_sysfs_context) -> str:
    return "".join(f"{name}\n" for name in _operations(context) if _available(context, name))


def _addr_unit_show(context: damon_sysfs_context) -> str:
    return f"{context.addr_unit}\n"


def _addr_unit_store(context: damon_sysfs_context, text: str) -> None:
    addr_unit = kstrtoul(text)
    if not addr_unit:
        raise OSError(errno.EINVAL, "an address unit is at least one byte")
    context.addr_unit = addr_unit


class damon_sysfs_context(kobject):
    """One monitoring request: operations set, attributes, targets and schemes."""

    __slots__ = ("addr_unit", "attrs", "operations", "pause", "schemes", "targets")

    tree: MachineTree

    default_attributes = (
        kobj_attribute("avail_operations", _avail_operations_show),
        keyword_attribute("operations", _operations),
        kobj_attribute("addr_unit", _addr_unit_show, _addr_unit_store, since="6.18"),
        bool_attribute("pause", since="7.2"),
    )

    def __init__(self, tree: Tree, running_context: RunningContext) -> None:
        super().__init__(tree)
        self.operations = "vaddr"
        self.addr_unit = 1
        self.pause = False
        self.attrs = damon_sysfs_attrs(tree, running_context)
        self.targets = damon_sysfs_targets(tree)
        self.schemes = damon_sysfs_schemes(tree)
        self.add("monitoring_attrs", self.attrs)
        self.add("targets", self.targets)
        self.add("schemes", self.schemes)


class damon_sysfs_contexts(NumberedDirectories[damon_sysfs_context]):
    """The contexts of a kdamond: one, or none."""

    __slots__ = ("running_context",)

    default_attributes = (nr_attribute("nr_contexts"),)

    def __init__(self, tree: Tree, running_context: RunningContext) -> None:
        super().__init__(tree)
        self.running_context = running_context

    def new_child(self) -> damon_sysfs_context:
        """A context."""
        return damon_sysfs_context(self.tree, self.running_context)

    def check(self, nr: int) -> None:
        """Reject more than one context.

        :raises OSError: EINVAL.
        """
        if nr not in (0, 1):
            raise OSError(errno.EINVAL, f"a kdamond can have 0 or 1 contexts, not {nr}")

    def context(self) -> damon_sysfs_context:
        """The one context.

        :raises OSError: EINVAL there is none.
        """
        if self.nr != 1:
            raise OSError(errno.EINVAL, f"{self.location()}/nr_contexts is {self.nr}; this needs 1")
        return self.at(0)


# From the files to a context.


def _damon_sysfs_set_attrs(ctx: damon_ctx, attrs: damon_sysfs_attrs) -> None:
    intervals, goal = attrs.intervals, attrs.intervals.goal
    damon_set_attrs(
        ctx,
        damon_attrs(
            sample_interval=intervals.sample_us,
            aggr_interval=intervals.aggr_us,
            ops_update_interval=intervals.update_us,
            intervals_goal=damon_intervals_goal(
                access_bp=goal.access_bp,
                aggrs=goal.aggrs,
                min_sample_us=goal.min_sample_us,
                max_sample_us=goal.max_sample_us,
            ),
            min_nr_regions=attrs.nr_regions.min,
            max_nr_regions=attrs.nr_regions.max,
        ),
    )


def _damon_sysfs_set_regions(t: damon_target, regions: damon_sysfs_regions, min_region_sz: int) -> None:
    ranges: list[damon_addr_range] = []
    for region in regions:
        if region.start > region.end:
            raise OSError(errno.EINVAL, f"{region.location()}: start {region.start:#x} is after end {region.end:#x}")
        if ranges and ranges[-1].end > region.start:
            raise OSError(errno.EINVAL, f"{region.location()}: starts before the end of the region before it")
        ranges.append(damon_addr_range(region.start, region.end))
    if ranges:
        damon_set_regions(t, ranges, min_region_sz)


def _damon_sysfs_take_task(
    ctx: damon_ctx,
    t: damon_target,
    target: damon_sysfs_target,
    machine: Callable[[], Machine],
    monitored: damon_target | None,
    *,
    opening: list[Callable[[], None]],
) -> None:
    """Have the process of ``t`` opened, unless the target that it will be committed to already has it open.

    A target whose process ended while it was monitored stays unchanged until its number is written again.
    (docs/deviations.md#a-commit-while-a-target-ended)
    """
    if t.pid <= 0:
        raise OSError(errno.EINVAL, f"{target.location()}/pid_target: there is no process {t.pid}")
    ctx.machine = machine()
    primitive = sample_primitive(ctx.sample_control)
    if primitive != Primitive.PAGE_TABLE:
        check_fault_filters(ctx.sample_control, ctx.machine)
    # Kernel: takes a new reference at each commit, at no cost. Here: opening would stop the process once more for a
    # userfaultfd that it already has. (docs/deviations.md#a-commit-keeps-monitored-processes)
    task = None if monitored is None or monitored.pid != t.pid else monitored.task
    if task is not None and task.birth == target.birth and (task.primitive == primitive or not task.valid()):
        return
    try:
        # Other errors are reported after this one, as in the kernel, although the process is opened last.
        ctx.machine.birth(t.pid)
    except OSError as error:
        raise _no_process(target, error) from None
    opening.append(functools.partial(_damon_sysfs_open_task, ctx.machine, t, target, primitive, birth=target.birth))


def _no_process(target: damon_sysfs_target, error: OSError) -> OSError:
    """The error for a target's process that cannot be opened, with the kernel's errno and the file's name."""
    if error.errno != errno.ESRCH:
        return error
    return OSError(errno.EINVAL, f"{target.location()}/pid_target: {error.strerror}")


def _damon_sysfs_open_task(
    machine: Machine, t: damon_target, target: damon_sysfs_target, primitive: str, *, birth: int | None
) -> None:
    try:
        t.task = machine.get_task(t.pid, primitive, birth)
    except OSError as error:
        raise _no_process(target, error) from None
    # Another number may have been written meanwhile.
    if (target.pid, target.birth) == (t.pid, birth):
        target.birth = t.task.birth


def _damon_sysfs_take_memory(
    ctx: damon_ctx,
    t: damon_target,
    machine: Callable[[], Machine],
    monitored: damon_target | None,
    opening: list[Callable[[], None]],
) -> None:
    """Give ``t`` the machine's memory, unless the target that it will be committed to has it."""
    if sample_primitive(ctx.sample_control) != Primitive.PAGE_TABLE:
        raise OSError(
            errno.EOPNOTSUPP,
            "physical addresses are monitored with accessed bits only; write N to primitives/page_fault",
        )
    if monitored is None or monitored.task is None or monitored.task.physical is None:
        ctx.machine = machine()
        t.task = memory = ctx.machine.physical_memory()
        if monitored is not None:
            # This scans all processes; the kdamond does it itself when it starts.
            opening.append(memory.update)


def _damon_sysfs_add_target(
    ctx: damon_ctx,
    target: damon_sysfs_target,
    machine: Callable[[], Machine],
    monitored: damon_target | None,
    opening: list[Callable[[], None]],
) -> None:
    t = damon_new_target()
    t.obsolete = target.obsolete
    damon_add_target(ctx, t)
    if ctx.ops is not None and ctx.ops.target_has_pid:
        t.pid = target.pid
        if ctx.ops.needs_task:
            _damon_sysfs_take_task(ctx, t, target, machine, monitored, opening=opening)
        elif monitored is None and not target.regions.nr:
            raise OSError(
                errno.EINVAL,
                f"{target.location()}/regions: the operations set reports monitors only ranges that are written here",
            )
    else:
        _damon_sysfs_take_memory(ctx, t, machine, monitored, opening)
    _damon_sysfs_set_regions(t, target.regions, ctx.min_region_sz)


def _damon_sysfs_apply_inputs(
    ctx: damon_ctx,
    context: damon_sysfs_context,
    machine: Callable[[], Machine],
    running: damon_ctx | None,
    opening: list[Callable[[], None]],
) -> None:
    ops_id = OPS_KEYWORDS[context.operations]
    if not damon_is_registered_ops(ops_id):
        not_supported(context, "operations", f"the operations set {context.operations}")
    damon_select_ops(ctx, ops_id)
    if ops_id is damon_ops_id.DAMON_OPS_PADDR:
        if context.targets.nr > 1:
            raise OSError(errno.EINVAL, f"{context.location()}/targets: there is only one physical address space")
        ctx.addr_unit = context.addr_unit
        ctx.min_region_sz = max(DAMON_MIN_REGION_SZ // ctx.addr_unit, 1)
    ctx.pause = context.pause
    _damon_sysfs_set_attrs(ctx, context.attrs)
    damon_sysfs_set_probes(ctx, context.attrs.probes, machine)
    ctx.sample_control = build_sample_control(context.attrs.sample)
    ctx.density = context.attrs.sample.density
    # Its kdamond may end meanwhile and drop its targets.
    monitored = [] if running is None else list(running.adaptive_targets)
    for i, target in enumerate(context.targets):
        _damon_sysfs_add_target(ctx, target, machine, monitored[i] if i < len(monitored) else None, opening)
    damon_sysfs_add_schemes(ctx, context.schemes, machine)


def damon_sysfs_build_ctx(
    context: damon_sysfs_context,
    machine: Callable[[], Machine],
    clock: Clock | None,
    running: damon_ctx | None,
    opening: list[Callable[[], None]],
) -> damon_ctx:
    """Build the context that the directories describe. ``addr_unit`` is for physical addresses only, as in the kernel.

    :param machine: returns the machine whose processes are monitored, called when a target or scheme needs it.
    :param clock: the context's clock; None is the real one.
    :param running: the context that the new one will be committed to: processes that it has open are not opened again.
    :param opening: functions that open the targets' processes are appended. The caller calls them before it uses the
        context and without the tree's lock, because the process determines how long they take; they raise EINVAL if the
        process does not exist, and the errors of ``machine``'s ``get_task()``.
    :raises OSError: EINVAL the values do not fit together, or one has no effect here; ENOMEM a scheme cannot be built;
        the errors of ``machine``.
    """
    ctx = damon_new_ctx()
    if clock is not None:
        ctx.clock = clock
    try:
        _damon_sysfs_apply_inputs(ctx, context, machine, running, opening)
    except BaseException:
        damon_destroy_ctx(ctx)
        raise
    return ctx
