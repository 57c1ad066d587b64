# SPDX-License-Identifier: GPL-2.0-only
"""A monitor: a context manager that yields a snapshot after each aggregation interval."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from kdamon import trace
from kdamon.apply_reports import report_counters
from kdamon.arrays import Records, U64Array
from kdamon.core import (
    damon_add_scheme,
    damon_call,
    damon_destroy_ctx,
    damon_is_running,
    damon_set_regions,
    damon_start,
    damon_stop,
)
from kdamon.damon import (
    OPS_KEYWORDS,
    damon_addr_range,
    damon_call_control,
    damon_ctx,
    damon_operations,
    damon_target,
    damos,
    damos_stat,
)
from kdamon.kernel import NSEC_PER_USEC, RealClock
from kdamon.mm import Machine, Observed, Primitive, Task
from kdamon.mm.ranges import NO_RANGES, overlaps
from kdamon.monitoring.config import Config, check_config, check_intervals
from kdamon.monitoring.context import add_target, new_context
from kdamon.monitoring.machines import get_machine, put_machine
from kdamon.monitoring.process_names import process_names
from kdamon.monitoring.residency import Residency
from kdamon.monitoring.sampled_time import SampledTime
from kdamon.monitoring.snapshot import Collected, Counters, Snapshot, snapshot_of
from kdamon.monitoring.task_checks import check_memory, check_threads
from kdamon.monitoring.use import MemoryUse
from kdamon.monitoring.watching import Watching
from kdamon.regions import Regions
from kdamon.sample_control import check_attribution, check_fault_filters, check_reads, sample_primitive

if TYPE_CHECKING:
    from kdamon.names.process import ProcessNames
    from kdamon.names.table import NameTable

__all__ = ["KEPT", "Monitor"]

log = logging.getLogger("kdamon")

#: Snapshots that wait for a slow consumer at most.
KEPT: Final = 256
#: Snapshots that wait with their reports one by one at most, where these are grouped; others wait with tables.
_UNCOUNTED: Final = 16
#: Seconds that reading the mappings may take.
_LOOK_S: Final = 1.0
#: Seconds that the kdamond may take to give everything back after its last sample.
_END_S: Final = 20.0


class Monitor:
    """Monitors while its ``with`` block runs; an iterator of :class:`Snapshot`. Make it with :func:`monitor`.

    ``next()`` waits for the end of the next aggregation interval. The iteration ends when the process ended, after
    :meth:`stop`, and when the block ended. Any thread may use it. The kdamond, a thread of this process, never waits
    for the consumer: it drops the oldest snapshots and counts them in :attr:`lost`. Signal handlers and other state of
    this process stay as they are.

    :param config: what and how.
    :param operations: an operations set instead of the one that ``config`` names.
    :param machine: where the process is; default is the running machine.
    :param birth: of the process that is meant, see :meth:`kdamon.mm.Machine.get_task`; default is any.
    :param schemes: applied in this order.
    :param kept: snapshots that wait for a slow consumer.
    :raises OSError: EINVAL the arguments do not fit together.
    :ivar ctx: the context, for the functions of :mod:`kdamon.core`.
    :ivar lost: snapshots that were dropped because the consumer was too slow.
    :ivar started: CLOCK_MONOTONIC seconds when monitoring began; 0 before.
    """

    def __init__(
        self,
        config: Config,
        *,
        operations: damon_operations | None = None,
        machine: Machine | None = None,
        birth: int | None = None,
        schemes: Iterable[damos] = (),
        kept: int = KEPT,
    ) -> None:
        if operations is None:
            check_config(config)
        else:
            check_intervals(config)
        self.config = config
        self.lost = 0
        self.started = 0.0
        self._given_machine = machine
        self._birth = birth
        self._kept = max(kept, 1)
        # None ends it, and stays in it.
        self._queue: queue.SimpleQueue[Collected | None] = queue.SimpleQueue()
        self._clock = SampledTime(RealClock(), config.max_nr_accesses * config.sample_us * NSEC_PER_USEC)
        self._suspended = _suspended()
        self._cpu_s: float | None = None
        self._faults_lost = 0
        self._faults_of_reads: bool | None = None
        self._observed: Observed | None = None
        self._mapped: int | None = None
        self._looking: threading.Thread | None = None
        self._watching: Watching | None = None
        self._present: U64Array | None = None
        self._names: ProcessNames | None = None
        self._beginner: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._pid = 0
        self._stopped = False
        self._release = contextlib.ExitStack()
        #: Set when everything is given back.
        self._over = threading.Event()
        self.ctx: damon_ctx = new_context(config, operations=operations)
        self.ctx.clock = self._clock
        self._target: damon_target = add_target(self.ctx, config)
        for s in schemes:
            damon_add_scheme(self.ctx, s)

    # Begin and end.

    def __enter__(self) -> Monitor:
        """Open the process and begin.

        :raises OSError: it cannot be monitored; the message says why and what to do.
        """
        if self._beginner is not None:
            raise OSError(errno.EBUSY, "a monitor can be used once; make another one")
        self._pid = os.getpid()
        # In a thread of its own, because KeyboardInterrupt comes in the main thread, at any point: what was opened must
        # not be lost there.
        self._beginner = threading.Thread(target=self._begin, name="kdamon-begin", daemon=True)
        try:
            self._beginner.start()
            self._beginner.join()
        except BaseException:
            self.stop()
            raise
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except OSError as lingering:
            if kind is None:
                raise
            log.warning("%s", lingering.strerror)

    def _begin(self) -> None:
        try:
            self._open()
            trace.damon_aggregated.register(self._aggregated)
            self._release.callback(trace.damon_aggregated.unregister, self._aggregated)
            self.ctx.ended = self._ended
            self.started = self._clock.now() / 1e9
            damon_start([self.ctx], exclusive=False)
            if self._watching is not None:
                self._watching.start()
        except BaseException as error:
            self._failure = error
            try:
                damon_destroy_ctx(self.ctx)
            finally:
                self._ended()
        if self._stopped:
            damon_stop([self.ctx])

    def _open(self) -> None:
        config, target = self.config, self._target
        assert self.ctx.ops is not None
        if config.ops not in OPS_KEYWORDS and not self.ctx.ops.needs_task:
            return
        if config.ops == "reports":
            return
        machine = self._given_machine
        if machine is None:
            machine = get_machine()
            self._release.callback(put_machine)
        self.ctx.machine = machine
        self._faults_lost = self.ctx.faults_lost = machine.faults_lost
        if config.ops == "paddr":
            target.task = memory = machine.physical_memory()
            if not config.ranges:
                ranges = [damon_addr_range(start, end) for start, end in memory.ram().tolist()]
                damon_set_regions(target, ranges, self.ctx.min_region_sz)
            return
        if config.primitive == Primitive.PAGE_FAULT:
            check_fault_filters(self.ctx.sample_control, machine)
            if config.by:
                check_attribution(machine)
            if config.read_only:
                check_reads(machine)
            self._faults_of_reads = machine.faults_of_reads
        target.task = task = machine.get_task(config.pid, sample_primitive(self.ctx.sample_control), self._birth)
        check_memory(task)
        if config.primitive == Primitive.PAGE_FAULT:
            check_threads(config.tids, task)
        self._end_with(task)
        if config.watch:
            given = np.array(config.ranges, np.uint64).reshape(-1, 2) if config.ranges else None
            self._watching = Watching(task, given)

    def _end_with(self, task: Task) -> None:
        """Let monitoring end with the process. In the kernel it goes on until the process is reaped, which may be this
        one's to do."""
        assert self.ctx.ops is not None
        valid = self.ctx.ops.target_valid

        def target_valid(t: damon_target) -> bool:
            return not task.ended() and (valid is None or valid(t))

        self.ctx.ops = attrs.evolve(self.ctx.ops, target_valid=target_valid)

    def _ended(self) -> None:
        """Give everything back; runs in the kdamond as the last thing."""
        if self._watching is not None:
            self._watching.stop()
        try:
            self._release.close()
        finally:
            self._queue.put(None)
            self._over.set()

    def _inherited(self) -> bool:
        """Return whether this process is a child of the one that monitors, by fork(): threads stay with the parent."""
        return self._beginner is not None and self._pid != os.getpid()

    def _check_process(self) -> None:
        if self._inherited():
            raise OSError(
                errno.ECHILD,
                f"this is a child of process {self._pid}, which goes on monitoring; make a monitor in the child",
            )

    def stop(self) -> None:
        """End monitoring and wait until nothing of it is left; may be repeated. Snapshots so far can still be read.

        In a child of the process that monitors, by fork(), this does nothing: the parent goes on. KeyboardInterrupt is
        raised when monitoring ended; a second one is raised at once.

        :raises OSError: EBUSY the process blocks the kdamond, or the thread that watches pages; they end as soon as
            they can.
        """
        if self._inherited():
            return
        self._stopped = True
        if self._beginner is None or self._beginner.ident is None:
            return  # if it begins all the same, it ends by itself
        try:
            self._wait_for_end(self._beginner)
        except OSError:
            raise
        except BaseException:
            # An exception of a signal handler, which may have come before the kdamond was asked to stop.
            self._wait_for_end(self._beginner)
            raise

    def _wait_for_end(self, beginner: threading.Thread) -> None:
        beginner.join()
        if self._watching is not None:
            self._watching.stop()
        damon_stop([self.ctx])
        self._over.wait(_END_S)
        if self._watching is not None and not self._watching.join(_END_S):
            raise OSError(
                errno.EBUSY,
                f"the thread that watches pages did not end within {_END_S:g} seconds; it will end as soon as it can "
                f"({self._watching.where()})",
            )

    def whereabouts(self) -> str:
        """Where the threads are that did not end after :meth:`stop`, for an error; empty if there is none."""
        kdamond = self.ctx.kdamond
        places = [kdamond.where()] if kdamond is not None and kdamond.alive() else []
        if self._watching is not None and not self._watching.join(0):
            places.append(self._watching.where())
        return "; ".join(places)

    # Snapshots.

    def __iter__(self) -> Monitor:
        return self

    def __next__(self) -> Snapshot:
        """Wait for the next snapshot.

        :raises OSError: monitoring ended by an error; EINVAL it did not begin; ECHILD in a child, by fork().
        """
        self._check_process()
        if self._beginner is None:
            raise OSError(errno.EINVAL, "nothing is monitored yet: use 'with kdamon.monitor(...) as m'")
        collected = self._queue.get()
        if collected is not None:
            return snapshot_of(*collected)
        self._queue.put(None)
        error = self.error()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"monitoring ended: {error.strerror}") from error
        if error is not None:
            raise OSError(errno.EIO, f"monitoring ended by an internal error: {error!r}") from error
        raise StopIteration

    def drain(self) -> list[Snapshot]:
        """The snapshots that wait to be read, oldest first, without waiting for others.

        :raises OSError: ECHILD in a child of the process that monitors, by fork().
        """
        self._check_process()
        snapshots: list[Snapshot] = []
        with contextlib.suppress(queue.Empty):
            while (collected := self._queue.get_nowait()) is not None:
                snapshots.append(snapshot_of(*collected))
            self._queue.put(None)
        return snapshots

    def use(self, *, overall: bool = False) -> MemoryUse | None:
        """How much memory is in use; None before the first estimate, and without ``watch``.

        :param overall: the mean since monitoring began, instead of the latest estimate.
        """
        return None if self._watching is None else self._watching.use(overall=overall)

    def residency(self) -> Residency | None:
        """What is in memory and in swap, by addresses, as it was seen last; None before that, and without ``watch``."""
        return None if self._watching is None else self._watching.residency()

    def drain_looks(self) -> list[Records]:
        """The looks at watched pages since the last call, arrays of :data:`kdamon.LOOK`, one for the pages that were
        chosen together and a window; the oldest are lost where too many wait."""
        return [] if self._watching is None else self._watching.drain()

    def _aggregated(self, ctx: damon_ctx, _target: int, regions: Regions) -> None:
        """Runs in the kdamond: only copy, so that its next sample is not late."""
        if ctx is not self.ctx:
            return
        groups = None if self._target.groups is None else self._target.groups.take()
        # Where the consumer is slow, a table takes much less memory.
        counted = groups.table() if groups is not None and self._queue.qsize() >= _UNCOUNTED else groups
        seen = (ctx.attrs.aggr_interval, self.use(), self.residency())
        self._queue.put((*self._clock.take_span(), regions.copy(), counted, *seen))
        if self._queue.qsize() > self._kept:
            with contextlib.suppress(queue.Empty):
                self._queue.get_nowait()
                self.lost += 1
        task = self._target.task
        # Physical memory has a helper process.
        self._cpu_s = time.thread_time() + getattr(task, "cpu_s", 0.0)

    # How it goes.

    def running(self) -> bool:
        """Return whether monitoring goes on."""
        return not self._inherited() and damon_is_running(self.ctx)

    def error(self) -> BaseException | None:
        """The exception that ended monitoring, normally None."""
        return self.ctx.kdamond_error

    @property
    def ended(self) -> float:
        """CLOCK_MONOTONIC seconds until which samples were taken."""
        return self._clock.reached / 1e9 or self.started

    def scheme_stats(self) -> list[damos_stat]:
        """The statistics of the schemes, in their order; a copy.

        :raises OSError: EBUSY the process blocks the kdamond; ECHILD in a child, by fork().
        """
        self._check_process()
        found: list[damos_stat] = []

        def copy(_: object) -> None:
            found[:] = [attrs.evolve(s.stat) for s in self.ctx.schemes]

        try:
            damon_call(self.ctx, damon_call_control(copy))
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
            copy(None)  # the kdamond does not touch them any more
        return found

    def counters(self) -> Counters:
        """How well monitoring went so far."""
        ctx = self.ctx
        return Counters(
            missed_intervals=ctx.missed_intervals,
            samples=ctx.nr_samples,
            unknown=ctx.nr_unknown,
            cpu_s=self._cpu_s,
            reports=attrs.asdict(report_counters(ctx)),
            sparse=self._target.sparse,
            never_mapped=self._never_mapped(),
            faults_of_reads=self._faults_of_reads,
            observed=self._look_observed(),
            faults_lost=0 if ctx.machine is None else ctx.machine.faults_lost - self._faults_lost,
            suspended_s=_suspended() - self._suspended,
            lost_snapshots=self.lost,
            watching_cpu_s=None if self._watching is None else self._watching.cpu_s,
            use=self.use(overall=True),
            sample_us=None if self.config.intervals == "fixed" else ctx.attrs.sample_interval,
        )

    def _look_observed(self) -> Observed | None:
        """Of how many bytes faults show which accesses, by the last look while there was memory."""
        mm = self._target.mm
        self._observed = (mm.observed() if mm is not None else None) or self._observed
        return self._observed

    def mapped(self) -> U64Array | None:
        """The mappings of the process now, or the machine's memory, if ranges were given.

        :returns: bytes, ascending and disjoint, shape (n, 2); None without ranges, where reports alone count, and
            where the process does not answer within a second.
        """
        if not self.config.ranges or self._target.task is None or self._inherited():
            return None
        if self._looking is None:
            self._looking = threading.Thread(target=self._look, daemon=True)
            self._looking.start()
        # The process decides how long a look takes; the caller must be able to end.
        self._looking.join(_LOOK_S)
        if self._looking.is_alive():
            return None
        self._looking = None
        if self._present is not None:
            ranges = np.array(self.config.ranges, np.uint64).reshape(-1, 2)
            self._mapped = max(self._mapped or 0, int(overlaps(ranges, self._present).sum()))
        return self._present

    def names(self, wait: float = 0.0) -> NameTable | None:
        """What lies at the addresses of the process::

            for snapshot in m:
                if (names := m.names()) is not None:
                    print(names.named(snapshot.regions))

        A thread reads the names while this is called, at most once a second, and not where no mapping changed.

        :param wait: seconds to wait for names that are being read.
        :returns: as they were read last; None before that, after the end, and where the addresses are of no process.
        """
        if self._names is None:
            self._names = process_names(self._target.task) if self.running() else None
            if self._names is None:
                return None
            self._release.callback(self._names.close)
        self._names.look(wait)
        return self._names.table()

    def _look(self) -> None:
        task = self._target.task
        self._present = None
        with contextlib.suppress(OSError):
            if task is not None and task.physical is not None:
                self._present = task.physical.ram()
            else:
                mm = None if task is None else task.get_mm()
                self._present = NO_RANGES if mm is None else mm.vmas()

    def _never_mapped(self) -> int | None:
        """Bytes of the ranges that were not mapped at any look; None: there was no look."""
        size = sum(end - start for start, end in self.config.ranges)
        return None if self._mapped is None else size - self._mapped


def _suspended() -> float:
    """How long the machine was suspended since it was booted, seconds, to a hundredth."""
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic(), 2)
