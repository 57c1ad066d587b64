# SPDX-License-Identifier: GPL-2.0-only
"""What a record holds besides snapshots, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import field, frozen

from kdamon.mm.proc.maps import NamedMapping
from kdamon.monitoring.config import Config

__all__ = ["Run", "SeenMapping"]


@frozen
class SeenMapping:
    """A mapping, with the times of its first and last observation, CLOCK_MONOTONIC seconds."""

    mapping: NamedMapping
    first_seen: float
    last_seen: float


@frozen
class Run:
    """The run that a record is of. None stands for unknown.

    :ivar config: what was monitored, and how.
    :ivar started: CLOCK_MONOTONIC seconds when monitoring began.
    :ivar ended: the same for the end of sampling; in a record that is not complete, that of the last snapshot.
    :ivar complete: whether the run ended; False: it still runs, it was killed, or there was no room for the rest.
    :ivar started_at: the wall clock time at which it began, with a time zone.
    :ivar command: the command that was started for it, empty for a process that already ran.
    :ivar name: of the process's program, as ``/proc/PID/comm`` has it.
    :ivar note: why it ended, a sentence without capital and full stop.
    :ivar remarks: further remarks for the user, in the same form.
    :ivar host: the name of the machine.
    :ivar kernel_release: as ``uname -r`` prints it.
    :ivar architecture: as ``uname -m`` prints it.
    :ivar boot_id: times of one boot can be compared.
    :ivar kdamon_version: of kdamon that wrote the record.
    :ivar nr_cpus: CPUs of the machine.
    :ivar memory_bytes: memory of the machine.
    :ivar part: the number of this record among those of a run that is split, from 1 on.
    :ivar values: all of it as the file has it.
    """

    config: Config
    started: float
    ended: float
    complete: bool
    started_at: datetime | None = None
    command: tuple[str, ...] = ()
    name: str | None = None
    note: str = ""
    remarks: tuple[str, ...] = ()
    host: str | None = None
    kernel_release: str | None = None
    architecture: str | None = None
    boot_id: str | None = None
    kdamon_version: str | None = None
    nr_cpus: int | None = None
    memory_bytes: int | None = None
    part: int = 1
    values: Mapping[str, Any] = field(factory=dict, repr=False)

    @property
    def pid(self) -> int:
        """The process, 0 for physical memory."""
        return self.config.pid

    @property
    def seconds(self) -> float:
        """The duration of monitoring, seconds."""
        return max(0.0, self.ended - self.started)
