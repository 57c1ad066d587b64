# SPDX-License-Identifier: GPL-2.0-only
""":func:`monitor`: begins to monitor, by arguments."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index

import attrs

from kdamon.damon import damon_operations, damos
from kdamon.mm import Machine, Primitive
from kdamon.monitoring.config import Config, Range
from kdamon.monitoring.defaults import AGGR_US, LONGEST_SAMPLE_US, MAX_REGIONS, MIN_REGIONS, SAMPLE_US, UPDATE_US
from kdamon.monitoring.monitor import KEPT, Monitor

__all__ = ["monitor"]


def monitor(
    pid: int | None = None,
    *,
    ops: str | damon_operations = "vaddr",
    ranges: Iterable[Range] = (),
    primitive: str | None = None,
    write_only: bool = False,
    read_only: bool = False,
    cpus: Iterable[int] = (),
    tids: Iterable[int] = (),
    by: str = "",
    density: bool = False,
    sample_us: int = SAMPLE_US,
    aggr_us: int = AGGR_US,
    update_us: int = UPDATE_US,
    min_regions: int = MIN_REGIONS,
    max_regions: int = MAX_REGIONS,
    vaddr_regions: str = "mappings",
    intervals: str = "fixed",
    longest_sample_us: int = LONGEST_SAMPLE_US,
    watch: bool = False,
    schemes: Iterable[damos] = (),
    machine: Machine | None = None,
    kept: int = KEPT,
) -> Monitor:
    """Monitor a process, physical memory, or whatever reports are about::

        with kdamon.monitor(pid=1234) as m:
            for snapshot in m:
                print(snapshot.time, snapshot.working_set())

    Nothing is opened before the ``with`` block begins. Intervals are microseconds, as in the kernel and on the command
    line.

    :param pid: the process, or one of its threads; with ``ops="reports"`` the number that reports carry.
    :param ops: the operations set. ``vaddr``: all memory of the process. ``fvaddr``: ``ranges`` of it. ``paddr``: the
        memory of the machine by physical addresses, or ``ranges`` of it. ``reports``: ``ranges``, by reports alone.
        Or an operations set of your own.
    :param ranges: start and end (exclusive) of each, bytes, disjoint, in any order.
    :param primitive: ``page_table`` samples accessed bits: reads and writes. ``page_fault`` samples faults: writes,
        from Linux 7.3 on also reads, with CPU and thread. ``""`` samples nothing: reports alone count. Default:
        ``page_fault`` with ``write_only``, ``read_only``, ``cpus``, ``tids`` or ``by``, else
        ``page_table``.
    :param write_only: only writes count.
    :param read_only: only reads count; faults show them from Linux 7.3 on.
    :param cpus: numbers of CPUs; only their accesses count.
    :param tids: ids of threads; only their accesses count.
    :param by: ``"cpu"``, ``"thread"`` or ``"node"``: snapshots also say which of these made the accesses, in
        :attr:`Snapshot.groups`.
    :param density: estimate from reports how densely each region is accessed.
    :param sample_us: sampling interval.
    :param aggr_us: aggregation interval: time between two snapshots.
    :param update_us: time between updates of the regions from the process's mappings.
    :param min_regions: smallest number of regions, 3 or more.
    :param max_regions: largest number of regions.
    :param vaddr_regions: the memory that ``vaddr`` monitors: ``mappings``, the populated parts; or ``kernel``, all
        between the first and the last mapping except the two biggest gaps.
    :param intervals: ``fixed``; or ``tuned`` by the kernel's algorithm, so that 4 % of all possible accesses are found:
        ``sample_us`` and ``aggr_us`` are the shortest then, and :attr:`Snapshot.aggr_us` says what they became.
    :param longest_sample_us: the longest sampling interval, where they are tuned.
    :param watch: also watch a random set of pages, to estimate how much memory is in use within a second, ten seconds
        and a minute, in :attr:`Snapshot.use`, and look at what is in memory, in :attr:`Snapshot.residency`; for
        ``vaddr`` and ``fvaddr`` by ``page_table``.
    :param schemes: applied in this order, see :func:`kdamon.damon_new_scheme`.
    :param machine: where the process is; default is the running machine.
    :param kept: snapshots that wait for a slow consumer; beyond that the oldest ones are lost and counted.
    :raises OSError: EINVAL the arguments do not fit together.
    :raises TypeError: a number is no integer.
    """
    name = ops if isinstance(ops, str) else "own"
    # Integers of any kind: those of numpy would overflow where the kernel's wrap around.
    config = Config(
        pid=index(pid or 0),
        ops=name,
        sample_us=index(sample_us),
        aggr_us=index(aggr_us),
        update_us=index(update_us),
        min_regions=index(min_regions),
        max_regions=index(max_regions),
        ranges=tuple((index(start), index(end)) for start, end in ranges),
        vaddr_regions=vaddr_regions,
        primitive=Primitive.PAGE_TABLE if primitive is None else primitive,
        write_only=write_only,
        read_only=read_only,
        cpus=tuple(map(index, cpus)),
        tids=tuple(map(index, tids)),
        by=by,
        density=density,
        intervals=intervals,
        longest_sample_us=index(longest_sample_us),
        watch=watch,
    )
    if primitive is None:
        default = "" if name == "reports" else Primitive.PAGE_FAULT if config.needs_faults else Primitive.PAGE_TABLE
        config = attrs.evolve(config, primitive=default)
    operations = None if isinstance(ops, str) else ops
    return Monitor(config, operations=operations, schemes=schemes, machine=machine, kept=kept)
