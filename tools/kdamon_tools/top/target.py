# SPDX-License-Identifier: GPL-2.0-only
"""A process that ``kdamon top`` monitors: begun again where other accesses are to count, and recorded where wanted."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

import kdamon
from kdamon.names.process import ProcessNames
from kdamon_tools.cpu_watch import CpuWatch
from kdamon_tools.gathered import Gathered
from kdamon_tools.history import merge_many
from kdamon_tools.mapping_history import MappingHistory
from kdamon_tools.origin import this_machine
from kdamon_tools.process_data import ProcessData, program_name
from kdamon_tools.process_tree import ProcessStat
from kdamon_tools.recorded.totals import added
from kdamon_tools.run_record import RecordFile, RunRecord
from kdamon_tools.snapshot import Config, Recording, Snapshot
from kdamon_tools.top.tables import Process, Sizes, sizes_of

if TYPE_CHECKING:
    from kdamon.mm import Machine

__all__ = ["Target"]

#: Snapshots that may queue while the terminal, or the machine, delays this process.
_KEPT: Final = 4096
#: Seconds of a heatmap, and of one of its snapshots at least.
HEATMAP_S: Final = 60.0
_STEP_S: Final = 1.0
#: Seconds until CPU times show whether the process or a child does the work.
_WORK_S: Final = 2.0
_RESIDENT: Final = ("rss_anon", "rss_file", "rss_shmem")


@frozen
class _Part:
    """The part of a run that begins now, for a record of it.

    :ivar started: CLOCK_MONOTONIC seconds.
    """

    monitor: kdamon.Monitor
    started: float
    before: kdamon.Counters

    @classmethod
    def of(cls, monitor: kdamon.Monitor) -> _Part:
        return cls(monitor, time.monotonic(), monitor.counters())

    def counters(self) -> kdamon.Counters:
        """What was counted since it began."""
        return added(self.before, self.monitor.counters())


class Target:
    """One process, while it is monitored; only one thread uses it at a time.

    :param config: what is monitored, and how.
    :param machine: where the process is.
    :param birth: of the process, see :meth:`kdamon.mm.Machine.get_task`; None: any.
    :param family: the process and its descendants, now.
    :ivar config: as it is now.
    :ivar ended: whether monitoring ended.
    :ivar gone: whether the process ended, too.
    :ivar sizes: of the last seconds; None before the first aggregation interval ended.
    :ivar resident: bytes in memory, as they were read last; None: unknown.
    :ivar aggregations: how many ended since monitoring began.
    """

    def __init__(
        self, config: Config, machine: Machine, birth: int | None, family: Callable[[], list[ProcessStat]]
    ) -> None:
        self.config = config
        self.pid = config.pid
        self.name = config.command[0] if config.command else ""
        self.ended = self.gone = False
        self.sizes: Sizes | None = None
        self.resident: int | None = None
        self.aggregations = 0
        self._machine = machine
        self._birth = birth
        self._data: ProcessData | None = None
        self._release = ExitStack()
        self._recording = ExitStack()
        self._part: _Part | None = None
        self._began: list[Snapshot] = []
        self._heat: deque[Snapshot] = deque()
        self._work = CpuWatch(self.pid, family)
        self._make()

    # Begin and end.

    def _make(self) -> None:
        self.monitor = kdamon.Monitor(self.config, machine=self._machine, birth=self._birth, kept=_KEPT)
        self._gathered = Gathered(self.monitor, self.config)
        self._began, self._heat = [], deque()

    def begin(self) -> None:
        """Begin to monitor.

        :raises OSError: it cannot be monitored; the message says why and what to do.
        """
        self.name = program_name(self.pid) or self.name
        with ExitStack() as stack:
            self.monitor.__enter__()
            stack.callback(self.monitor.stop)
            # A process that ended meanwhile ends its monitoring by itself.
            with suppress(ProcessLookupError):
                self._gathered.names = stack.enter_context(ProcessNames(self.pid, self._birth))
                self._data = stack.enter_context(ProcessData(self.pid, self._birth))
            self._release = stack.pop_all()

    def begin_again(self, config: Config) -> str:
        """Monitor with another ``config``; return a sentence about a record that ended by that.

        :raises OSError: it cannot be monitored so; it is monitored as before.
        """
        sentence = self.end_record("other accesses are monitored")
        self.stop()
        before, self.config = self.config, config
        self._make()
        try:
            self.begin()
        except OSError:
            self.config = before
            self._make()
            self.begin()
            raise
        return sentence

    def stop(self) -> None:
        """End monitoring; may be repeated.

        :raises OSError: EBUSY the process blocks the kdamond.
        """
        release, self._release, self._data = self._release, ExitStack(), None
        release.close()

    # Records.

    @property
    def record(self) -> str:
        """The file of the record that is being written; empty without one."""
        return "" if self._gathered.record is None else self._gathered.record.path

    def begin_record(self) -> str:
        """Begin a record; return its file.

        :raises OSError: it cannot be made.
        """
        with ExitStack() as stack:
            record = stack.enter_context(RunRecord(RecordFile()))
            mappings = MappingHistory(self.pid, self._birth, changed=record.change_mappings)
            self._gathered.mappings = stack.enter_context(mappings)
            self._part = _Part.of(self.monitor)
            record.begin(self._part, self.config, this_machine(), self._birth)
            # What has arrived until now is no part of it.
            self._keep(self._gathered.gather())
            self._gathered.record = record
            self._recording = stack.pop_all()
        return record.path

    def end_record(self, why: str) -> str:
        """End the record, if one is being written; return a sentence about it, else an empty one.

        :param why: the reason for its end.
        """
        gathered, part, record = self._gathered, self._part, self._gathered.record
        if record is None or part is None:
            return ""
        self._keep(gathered.gather())
        gathered.record = gathered.mappings = self._part = None
        counters = added(part.before, self.monitor.counters())
        recording = Recording(self.config, [], counters, part.started, time.monotonic(), why)
        with self._recording:
            try:
                record.finish(recording)
            except OSError as error:
                return f"{error.filename or record.path}: {error.strerror}"
            return record.sentence()

    # What is known.

    def gather(self) -> str:
        """Take what has arrived; return a sentence where there is something to say, else an empty one."""
        if self.ended:
            return ""
        self._keep(self._gathered.gather())
        if self._data is not None and (data := self._data.read()):
            found = [data[name] for name in _RESIDENT]
            self.resident = None if None in found else sum(filter(None, found))
        self._work.look()
        sentence = self._work.sentence_once() if self.seconds >= _WORK_S else ""
        if self._gathered.failure() is not None:
            sentence = self.end_record("the record could not be written any more")
        if not self.monitor.running():
            sentence = self.end_record("the process ended")
            self.ended = True
            self.gone = self._data is None or not self._data.read()
        return sentence

    def error(self) -> BaseException | None:
        """The exception that ended monitoring; None where the process ended."""
        return self.monitor.error()

    def _keep(self, arrived: list[Snapshot]) -> None:
        """Keep the last minute with about a snapshot a second."""
        for snapshot in arrived:
            self.aggregations += snapshot.merged
            self._began.append(snapshot)
            if snapshot.time - self._began[0].began >= _STEP_S:
                self._heat.append(merge_many(self._began))
                self._began = []
        while self._heat and self._heat[-1].time - self._heat[0].began > HEATMAP_S:
            self._heat.popleft()

    def recent(self) -> Recording | None:
        """The last seconds; None before the first aggregation interval ended."""
        return None if self._gathered.latest is None else self._gathered.recent()

    def minute(self) -> Recording | None:
        """The last minute, with few snapshots; None before the first aggregation interval ended."""
        snapshots = [*self._heat, *([merge_many(self._began)] if self._began else [])]
        if not snapshots:
            return None
        recent = self._gathered.recent()
        return evolve(recent, snapshots=snapshots, started=snapshots[0].began, ended=snapshots[-1].time)

    def groups(self, recent: Recording) -> Recording:
        """``recent`` with the names of threads."""
        grouping = self._gathered.grouping
        return recent if grouping is None else evolve(recent, groups=grouping.log(shared=False))

    def process(self) -> Process:
        """It as a row."""
        if not self.ended and (recent := self.recent()) is not None:
            self.sizes = sizes_of(recent)
        return Process(self.pid, self.name, self.sizes, self.ended)

    @property
    def seconds(self) -> float:
        """For how long it has been monitored."""
        end = self.monitor.ended if self.ended else time.monotonic()
        return max(0.0, end - self.monitor.started)
