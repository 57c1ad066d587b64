# SPDX-License-Identifier: GPL-2.0-only
"""Gathers the data of a run while it monitors, and passes them on."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import asdict, evolve

from kdamon.monitoring.use import LOOK
from kdamon_tools.groups import Grouping, GroupLog, ThreadNames
from kdamon_tools.history import History
from kdamon_tools.line_stream import LineStream
from kdamon_tools.origin import this_machine
from kdamon_tools.output.result import ResultFile
from kdamon_tools.reporters.json_object import render_header
from kdamon_tools.snapshot import KEPT_LOOKS_S, Config, Counters, Recording, Snapshot

if TYPE_CHECKING:
    from kdamon import Monitor
    from kdamon.arrays import Records
    from kdamon.names.process import ProcessNames
    from kdamon.names.table import NameTable
    from kdamon_tools.mapping_history import MappingHistory
    from kdamon_tools.run_record import RunRecord

__all__ = ["Gathered"]

#: Seconds to wait for the list of mappings, which a process can keep locked, before the first line and at the end.
_LOOK_S: Final = 1.0
#: Seconds that a view shows while monitoring.
_RECENT_S: Final = 10.0


def _ended(looks: Records) -> float:
    """When the window of some looks ended, CLOCK_MONOTONIC seconds."""
    return float(looks["began"][0] + looks["window"][0]) if len(looks) else 0.0


class Gathered:
    """The snapshots of a monitor, the mappings of its process, and the lines that are written meanwhile.

    :param config: the monitoring request.
    :ivar monitor: the monitor; it has begun.
    :ivar mappings: None where they are not needed.
    :ivar names: what lies at the addresses of the process; None where that cannot be known.
    :ivar lines: None where there is one result at the end.
    :ivar record: None where none is written.
    :ivar grouping: the groups of accesses, None where they were not asked for.
    :ivar latest: the last snapshot, None before the first one.
    """

    def __init__(self, monitor: Monitor, config: Config) -> None:
        self.monitor = monitor
        self._config = config
        self._origin = this_machine()
        self.mappings: MappingHistory | None = None
        self.names: ProcessNames | None = None
        self.lines: LineStream | None = None
        self.record: RunRecord | None = None
        self.latest: Snapshot | None = None
        self._history = History()
        self._looks: deque[Records] = deque()
        names = ThreadNames(config.pid) if config.pid and config.ops != "reports" else None
        self.grouping = Grouping(config.by, names) if config.by else None

    def stream(self, result: ResultFile) -> None:
        """Write a line for each aggregation to ``result`` from now on; monitoring has begun."""
        monitor = self.monitor
        if self.mappings is not None:
            self.mappings.look(_LOOK_S)
        found = None if self.mappings is None else self.mappings.found()
        self.lines = LineStream(result.append, result.no_reader)
        header = render_header(self._config, monitor.started, self._origin, found)
        self.lines.begin(header, monitor.started, self._config.by)

    def keep(self, record: RunRecord, birth: int | None) -> None:
        """Write all to ``record`` from now on; monitoring has begun.

        :param birth: of the process, see :meth:`kdamon.mm.Machine.get_task`; None: any.
        """
        self.record = record
        record.begin(self.monitor, self._config, self._origin, birth)

    def failure(self) -> OSError | None:
        """Why the lines or the record cannot be written any more; None while that works."""
        lines = None if self.lines is None else self.lines.error()
        return lines or (None if self.record is None else self.record.error())

    def gather(self) -> list[Snapshot]:
        """Take the snapshots that have arrived, and return them, oldest first."""
        arrived = self.monitor.drain()
        for snapshot in arrived:
            self.latest = snapshot
            if self.grouping is not None and snapshot.groups is not None:
                self.grouping.add(snapshot.groups)
            self._history.add(snapshot)
            if self.lines is not None:
                self.lines.add(snapshot, self.present_names())
            if self.record is not None:
                self.record.add(snapshot)
        for looks in self.monitor.drain_looks():
            self._looks.append(looks)
            if self.record is not None:
                self.record.add_looks(looks)
        while self._looks and _ended(self._looks[0]) < _ended(self._looks[-1]) - KEPT_LOOKS_S:
            self._looks.popleft()
        if self.mappings is not None:
            self.mappings.look_when_due()
        # Not before there is something to show: that would come later.
        if self.names is not None and self.latest is not None:
            self.names.look()
        if self.record is not None:
            self._keep_names(self.record)
        return arrived

    def _keep_names(self, record: RunRecord) -> None:
        if (names := self.present_names()) is not None:
            record.change_names(names)
        if self.grouping is not None:
            record.name_threads(self.grouping.thread_names())

    def recent(self) -> Recording:
        """The last seconds as a recording, while monitoring."""
        monitor, snapshots = self.monitor, self._history.snapshots
        began = snapshots[-1].time - _RECENT_S
        first = len(snapshots) - 1
        while first and snapshots[first - 1].began >= began:
            first -= 1
        recent = snapshots[first:]
        counters = Counters(**asdict(monitor.counters(), recurse=False))
        return Recording(
            self._config,
            recent,
            counters,
            recent[0].began,
            recent[-1].time,
            names=self.present_names(),
            looks=self._recent_looks(),
        )

    def _recent_looks(self) -> Records:
        return np.concatenate([np.empty(0, LOOK), *self._looks])

    def present_names(self) -> NameTable | None:
        """The names as they were read last; None: they are not known."""
        return None if self.names is None else self.names.table()

    def recording(self, note: str, remarks: tuple[str, ...]) -> Recording:
        """All gathered data, once monitoring ended.

        :param note: the reason for the end.
        :param remarks: further sentences for the user.
        """
        self._look_again()
        self.gather()
        monitor = self.monitor
        counters = Counters(**asdict(monitor.counters(), recurse=False))
        return Recording(
            self._config,
            self._history.snapshots,
            counters,
            monitor.started,
            monitor.ended,
            note,
            remarks,
            self._origin,
            None if self.mappings is None else self.mappings.found(),
            self._groups(counters.reports.get("applied", 0)),
            None if self.names is None else self.names.whole(),
            looks=self._recent_looks(),
        )

    def _look_again(self) -> None:
        """Read mappings and names at the end: what was mapped late has a name, unless the process is gone."""
        if self.mappings is not None:
            self.mappings.look(_LOOK_S)
        if self.names is not None:
            self.names.look_again(_LOOK_S)

    def _groups(self, applied: int) -> GroupLog | None:
        """The groups of the run, where ``applied`` reports were counted for regions."""
        if self.grouping is None:
            return None
        log = self.grouping.log()
        return evolve(log, nr_missing=max(0, applied - log.nr_reports))
