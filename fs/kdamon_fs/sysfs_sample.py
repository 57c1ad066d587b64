# SPDX-License-Identifier: GPL-2.0-only
"""The directory ``monitoring_attrs/sample`` (``mm/damon/sysfs-sample.c`` of the development tree): sources and filters.

``primitives`` selects the access source, ``filters`` the reports that count. ``reports`` and ``density`` are kdamon's
own: counters of accepted, applied and other reports, and an estimator based on the number of reported pages per region.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import fields

from kdamon.apply_reports import report_counters
from kdamon.damon import (
    PrimitivesEnabled,
    ReportCounters,
    damon_ctx,
    damon_sample_control,
    damon_sample_filter,
    damon_sample_filter_type,
)
from kdamon.density.estimator import reports_are_random
from kdamon.kstrtox import bitmap_list, bitmap_parselist, parse_int_array
from kdamon.mm import Primitive
from kdamon.sample_control import READS_UNSEEN, damon_add_sample_filter, damon_new_sample_filter, sample_primitive
from kdamon_fs.kobject import NumberedDirectories, Tree, kobj_attribute, kobject, nr_attribute
from kdamon_fs.sysfs_common import bool_attribute, keyword_attribute

__all__ = [
    "RunningContext",
    "SampleWarnings",
    "build_sample_control",
    "damon_sysfs_sample",
    "nr_cpu_ids",
]

log = logging.getLogger("kdamon")

#: Returns the context that is monitored or was monitored last, None before the first start.
RunningContext = Callable[[], damon_ctx | None]

#: Size in bytes of the kernel's buffer for the list of threads, with its terminating NUL.
_TID_ARR_SIZE: Final = 2048


@functools.cache
def nr_cpu_ids() -> int:
    """The number of possible CPU numbers of this machine: the largest possible one plus one."""
    try:
        possible = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
        return int(possible.replace("-", ",").rstrip().rpartition(",")[2]) + 1
    except (OSError, ValueError):
        return os.cpu_count() or 1


# Primitives.


class damon_sysfs_primitives(kobject):
    """The access sources."""

    __slots__ = ("page_fault", "page_table")

    default_attributes = (bool_attribute("page_table"), bool_attribute("page_fault"))

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.page_table = True
        self.page_fault = False


# Filters.


def _cpumask_show(f: damon_sysfs_sample_filter) -> str:
    return f"{bitmap_list(f.cpumask)}\n"


def _cpumask_store(f: damon_sysfs_sample_filter, text: str) -> None:
    f.cpumask = bitmap_parselist(text, nr_cpu_ids())


def _tid_arr_show(f: damon_sysfs_sample_filter) -> str:
    return f"{','.join(map(str, f.tid_arr))[: _TID_ARR_SIZE - 1]}\n"


def _tid_arr_store(f: damon_sysfs_sample_filter, text: str) -> None:
    f.tid_arr = parse_int_array(text)


class damon_sysfs_sample_filter(kobject):
    """A condition on reports."""

    __slots__ = ("allow", "cpumask", "matching", "tid_arr", "type")

    default_attributes = (
        keyword_attribute("type", tuple(kind.value for kind in damon_sample_filter_type)),
        bool_attribute("matching"),
        bool_attribute("allow"),
        kobj_attribute("cpumask", _cpumask_show, _cpumask_store),
        kobj_attribute("tid_arr", _tid_arr_show, _tid_arr_store),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.type = "cpumask"
        self.matching = self.allow = False
        self.cpumask: tuple[int, ...] = ()
        self.tid_arr: tuple[int, ...] = ()

    def build(self) -> damon_sample_filter:
        """The filter that the files describe.

        :raises OSError: EINVAL a filter by thread names no threads.
        """
        kind = damon_sample_filter_type(self.type)
        try:
            return damon_new_sample_filter(kind, self.matching, self.allow, self.cpumask, self.tid_arr)
        except OSError as error:
            raise OSError(error.errno, f"{self.location()}: {error.strerror}") from None


class damon_sysfs_sample_filters(NumberedDirectories[damon_sysfs_sample_filter]):
    """The conditions on reports: a report must pass all of them, in their order."""

    __slots__ = ()

    default_attributes = (nr_attribute("nr_filters"),)

    def new_child(self) -> damon_sysfs_sample_filter:
        """A filter."""
        return damon_sysfs_sample_filter(self.tree)

    def build(self) -> list[damon_sample_filter]:
        """The filters that the directories describe.

        :raises OSError: as :meth:`damon_sysfs_sample_filter.build`.
        """
        return [made_of.build() for made_of in self]


# What became of the reports.


def _counter_attribute(name: str) -> kobj_attribute:
    def show(reports: ReportsDirectory) -> str:
        ctx = reports.running_context()
        counters = ReportCounters() if ctx is None else report_counters(ctx)
        return f"{getattr(counters, name)}\n"

    return kobj_attribute(name, show)


# Deviation: docs/deviations.md#additional-files-of-the-sample-directory
class ReportsDirectory(kobject):
    """Counters of the reports to the kdamond's context, as of now; after its end the last values stay."""

    __slots__ = ("running_context",)

    default_attributes = tuple(_counter_attribute(counter.name) for counter in fields(ReportCounters))

    def __init__(self, tree: Tree, running_context: RunningContext) -> None:
        super().__init__(tree)
        self.running_context = running_context


# The directory.


class damon_sysfs_sample(kobject):
    """The sample control: primitives and filters."""

    __slots__ = ("density", "filters", "primitives", "reports")

    default_attributes = (bool_attribute("density"),)

    def __init__(self, tree: Tree, running_context: RunningContext) -> None:
        super().__init__(tree)
        self.density = False
        self.primitives = damon_sysfs_primitives(tree)
        self.filters = damon_sysfs_sample_filters(tree)
        self.reports = ReportsDirectory(tree, running_context)
        self.add("primitives", self.primitives)
        self.add("filters", self.filters)
        self.add("reports", self.reports)


# From the files to a context.


def build_sample_control(sample: damon_sysfs_sample) -> damon_sample_control:
    """The sample control that the directories describe (``damon_sysfs_set_sample_control()``).

    :raises OSError: EINVAL a filter by thread names no threads.
    """
    primitives = sample.primitives
    control = damon_sample_control(PrimitivesEnabled(primitives.page_table, primitives.page_fault))
    for f in sample.filters.build():
        damon_add_sample_filter(control, f)
    return control


def _misses_reads(ctx: damon_ctx) -> bool:
    """Return whether page_fault samples ``ctx`` without observing reads."""
    seen = ctx.machine is not None and ctx.machine.faults_of_reads
    primitive = sample_primitive(ctx.sample_control)
    return primitive == Primitive.PAGE_FAULT_WRITES or (primitive == Primitive.PAGE_FAULT and not seen)


def _warnings_of(ctx: damon_ctx) -> list[str]:
    warnings = []
    writes = damon_sample_filter_type.DAMON_FILTER_TYPE_WRITE
    misses_reads = _misses_reads(ctx)
    if misses_reads and all(f.type is not writes for f in ctx.sample_control.sample_filters):
        warnings.append(READS_UNSEEN)
    taken = ", ".join({s.action.value: None for s in ctx.schemes if s.needs_known})
    if taken and ctx.sample_control.primitives_enabled.page_fault:
        what = "memory that is only read looks" if misses_reads else "files that are only read look"
        warnings.append(f"{what} cold to page_fault, so {taken} applies: use page_table")
    if ctx.density and not reports_are_random(ctx):
        warnings.append("density has no effect with page_fault, which samples one page per region")
    return warnings


class SampleWarnings:
    """Logs which accesses a context cannot observe, and which actions this makes wrong; each once while it is true."""

    __slots__ = ("_logged",)

    def __init__(self) -> None:
        self._logged: list[str] = []

    def log(self, ctx: damon_ctx, location: str) -> None:
        """Log the warnings about ``ctx`` that are new; ``location`` names its kdamond."""
        warnings = _warnings_of(ctx)
        for warning in warnings:
            if warning not in self._logged:
                log.warning("%s: %s", location, warning)
        self._logged = warnings
