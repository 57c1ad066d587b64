# SPDX-License-Identifier: GPL-2.0-only
"""Writes the record of a run in a thread of its own, once a second: monitoring never waits for the disk."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import asdict, evolve, frozen

import kdamon
from kdamon import __version__
from kdamon.kernel import PAGE_SIZE
from kdamon.mm.proc.maps import NamedMapping
from kdamon.names.table import NameTable, changes
from kdamon.records.parts import free_name, part_name, remove_old
from kdamon.records.writer import RecordWriter
from kdamon_tools.mapping_history import KERNEL_HALF
from kdamon_tools.origin import Origin
from kdamon_tools.output.readable import readable
from kdamon_tools.process_data import ProcessData, program_name
from kdamon_tools.snapshot import Config, Recording, Snapshot
from kdamon_tools.units import format_bytes

if TYPE_CHECKING:
    from kdamon.arrays import Records
    from kdamon.monitoring.residency import Residency
    from kdamon.monitoring.use import MemoryUse

__all__ = ["Monitored", "RecordFile", "RunRecord"]

log = logging.getLogger("kdamon")

#: Seconds between two transactions, and between two readings of the clocks.
_WRITE_S: Final = 1.0
_CLOCKS_S: Final = 60.0
#: Time limit in seconds for the last transaction.
_END_S: Final = 20.0
#: Snapshots that wait for a slow disk at most.
_MOST_WAITING: Final = 4096
#: Changes of the list of mappings in a second at most, after the first list.
_MOST_CHANGES: Final = 4096
#: Bytes a second that changes of what is in memory take; where they are more, they are written less often.
_RESIDENCY_BYTES: Final = 4096
#: There is one a second; of more that wait, the last one is written.
_MOST_RESIDENCIES: Final = 2
#: The name of a record without -o.
_NAME: Final = "run.kdamon"


class Monitored(Protocol):
    """What a record needs of a monitor, or of the part of a run that it records."""

    @property
    def started(self) -> float:
        """CLOCK_MONOTONIC seconds when it began."""

    def counters(self) -> kdamon.Counters:
        """How well monitoring went since then."""


@frozen
class RecordFile:
    """Where a record goes.

    :ivar path: None: run.kdamon, or another name if there is one.
    :ivar replace: an earlier record may be replaced.
    :ivar split_s: seconds after which another file begins; None: never.
    :ivar keep_s: seconds after which files of a split run are removed; None: never.
    """

    path: str | None = None
    replace: bool = False
    split_s: float | None = None
    keep_s: float | None = None


class RunRecord:
    """The record of a run; a context manager, which removes the file again if monitoring never began.

    :param file: where it goes.
    :raises OSError: on entering, it cannot be made.
    :ivar lost: snapshots that the disk was too slow for.
    :ivar left_out: changes of mappings that were too many to be recorded.
    :ivar removed: files that were too old to be kept.
    """

    def __init__(self, file: RecordFile) -> None:
        self._file = file
        self._base = file.path or _NAME
        self._writer: RecordWriter | None = None
        self._values: dict[str, Any] = {}
        #: Guards the writer, which another one follows where the run is split, and what is queued for it.
        self._lock = threading.Lock()
        self._present: dict[bytes, NamedMapping] = {}
        self._names: NameTable | None = None
        self._threads: dict[int, str] = {}
        self._use: MemoryUse | None = None
        self._residencies: list[Residency] = []
        self._residency: Residency | None = None
        self._residency_at = float("-inf")
        self._waiting = self._changes = 0
        self._earlier = 0
        self._began = 0.0
        self._clocks_at = float("-inf")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._monitor: Monitored | None = None
        self._process = ExitStack()
        self._data: ProcessData | None = None
        self.lost = self.left_out = 0
        self.removed: list[str] = []

    # Begin and end.

    def __enter__(self) -> RunRecord:
        name = self._base
        if self._file.split_s is not None:
            name = part_name(self._base, datetime.now(UTC))
        elif self._file.path is None:
            name = free_name(self._base)
        self._writer = RecordWriter(name, replace=self._file.replace)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        if self._thread is None:
            self._writer.discard()
            return
        self._end()
        with suppress(OSError):
            self._writer.close()

    @property
    def path(self) -> str:
        """The file that is written now."""
        assert self._writer is not None
        return self._writer.path

    @property
    def snapshots(self) -> int:
        """The number of snapshots in all files."""
        assert self._writer is not None
        return self._earlier + self._writer.snapshots

    def begin(self, monitor: Monitored, config: Config, origin: Origin, birth: int | None = None) -> None:
        """Write from now on; monitoring has begun.

        :param config: the monitoring request.
        :param birth: see :class:`kdamon_tools.process_data.ProcessData`.
        """
        assert self._writer is not None
        self._monitor = monitor
        self._values = _run_values(config, monitor.started, origin)
        if config.pid and config.ops != "reports":
            with suppress(OSError):
                self._data = self._process.enter_context(ProcessData(config.pid, birth))
        self._began = time.monotonic()
        with self._lock:
            self._set()
            self._writer.flush()
        self._thread = threading.Thread(target=self._run, name="kdamon-record", daemon=True)
        self._thread.start()

    def _set(self) -> None:
        assert self._writer is not None
        self._writer.set(**self._values)

    def sentence(self) -> str:
        """What was written, for the user."""
        path = self.path
        with suppress(OSError):
            size = sum(os.stat(one).st_size for one in (path, f"{path}-wal") if os.path.exists(one))
            parts = f", the last of {number} files" if (number := self._values.get("part", 1)) > 1 else ""
            lost = f"; {self.lost} more were lost, as the disk was too slow" if self.lost else ""
            lost += f"; {self.left_out} changes of mappings were too many to record" if self.left_out else ""
            return readable(f"recorded {self.snapshots} snapshots in {path} ({format_bytes(size)}){parts}{lost}")
        return readable(f"{path} is gone")

    def error(self) -> OSError | None:
        """Why nothing more can be written; None while it works."""
        return None if self._writer is None else self._writer.error

    def finish(self, recording: Recording) -> None:
        """Write the rest, once monitoring ended.

        :raises OSError: the record is not whole; the part until then is readable.
        """
        assert self._writer is not None
        if not self._end():
            raise OSError(errno.ETIMEDOUT, "the record ends before the run: writing takes too long", self.path)
        self._writer.add_counters(recording.ended, asdict(recording.counters))
        self._writer.close(
            ended=recording.ended,
            note=recording.note,
            remarks=list(recording.remarks),
            lost_snapshots=self.lost,
            mappings_left_out=self.left_out,
        )

    def _end(self) -> bool:
        """End the thread; returns whether it has ended."""
        if self._thread is None:
            return True
        self._stop.set()
        self._thread.join(_END_S)
        return not self._thread.is_alive()

    # What is recorded.

    def add(self, snapshot: Snapshot) -> None:
        """Record a snapshot; it is lost if the disk is too slow."""
        with self._lock:
            if self._waiting >= _MOST_WAITING or self._writer is None:
                self.lost += 1
                return
            self._waiting += 1
            self._writer.add(snapshot)
            if snapshot.use is not None and snapshot.use is not self._use:
                self._use = snapshot.use
                self._writer.add_use(snapshot.use)
            if snapshot.residency is not None and snapshot.residency is not self._residency:
                self._residency = snapshot.residency
                self._residencies.append(snapshot.residency)

    def add_looks(self, looks: Records) -> None:
        """Record the looks at watched pages that were chosen together, at the end of one window."""
        with self._lock:
            if self._writer is not None:
                self._writer.add_looks(looks)

    def change_mappings(self, gone: list[bytes], new: list[bytes], seen: float, now: float) -> None:
        """Record how the list of mappings changed, see :class:`kdamon_tools.mapping_history.MappingHistory`."""
        with self._lock:
            room = max(0, _MOST_CHANGES - self._changes) if self._present else len(new)
            self.left_out += max(0, len(new) - room)
            self._changes += len(new[:room])
            before = [mapping for line in gone if (mapping := self._present.pop(line, None)) is not None]
            found = {line: NamedMapping.parse(line) for line in new[:room]}
            # [vsyscall] is in every list, but is not a mapping of the process.
            found = {line: mapping for line, mapping in found.items() if mapping.start < KERNEL_HALF}
            self._present |= found
            if self._writer is not None:
                self._writer.change_mappings(now, before, found.values(), seen)

    def change_names(self, table: NameTable) -> None:
        """Record the names of memory, if they changed since the last time."""
        with self._lock:
            if table is not self._names and self._writer is not None:
                self._writer.change_names(changes(self._names, table))
                self._names = table

    def name_threads(self, names: Mapping[int, str]) -> None:
        """Record the names of threads that are new or changed."""
        with self._lock:
            for tid, name in names.items():
                if self._threads.get(tid) != name and self._writer is not None:
                    self._threads[tid] = name
                    self._writer.name_thread(time.monotonic(), tid, name)

    # The thread.

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            due = max(due + _WRITE_S, time.monotonic())
            ended = self._stop.wait(due - time.monotonic())
            try:
                self._write()
            except Exception as error:
                log.exception("the record cannot be written")
                self._fail(error)
                ended = True
            if ended:
                self._process.close()
                return

    def _fail(self, error: Exception) -> None:
        """Note an internal error, which ends the run."""
        assert self._writer is not None
        sentence = f"the record ends before the run, by an internal error: {error!r}"
        self._writer.error = self._writer.error or OSError(errno.EIO, sentence, self.path)

    def _write(self) -> None:
        """Write what was added, and how the process, the clocks and monitoring are now."""
        assert self._writer is not None
        assert self._monitor is not None
        writer, now = self._writer, time.monotonic()
        values = {} if self._data is None else self._data.read()
        self._write_residencies(now)
        with self._lock:
            self._waiting = self._changes = 0
        if values:
            writer.add_process(now, values)
        writer.add_counters(now, asdict(self._monitor.counters()))
        if now - self._clocks_at >= _CLOCKS_S:
            self._clocks_at = now
            writer.add_clocks(*_clocks())
        writer.flush()
        split_s = self._file.split_s
        if split_s is not None and now - self._began >= split_s and writer.error is None and not self._stop.is_set():
            self._split(writer)

    def _write_residencies(self, now: float) -> None:
        """Write what was in memory; only the newest state where changes are large."""
        assert self._writer is not None
        if now < self._residency_at and not self._stop.is_set():
            return
        with self._lock:
            found, self._residencies = self._residencies, []
        if len(found) > _MOST_RESIDENCIES:
            found = found[-1:]
        size = sum(self._writer.change_residency(one) for one in found)
        self._residency_at = now + size / _RESIDENCY_BYTES

    def _split(self, writer: RecordWriter) -> None:
        """Go on in another file."""
        name = part_name(self._base, datetime.now(UTC))
        try:
            following = RecordWriter(name)
        except OSError as error:
            writer.error = OSError(error.errno, f"the next part of the record cannot be made: {error.strerror}", name)
            return
        now = time.monotonic()
        self._values["part"] = self._values.get("part", 1) + 1
        with self._lock:
            self._writer = following
            self._set()
            following.change_mappings(now, (), self._present.values(), now)
            if self._residency is not None:
                following.change_residency(evolve(self._residency, time=now))
            if self._names is not None:
                following.change_names(evolve(changes(None, self._names), time=now))
            for tid, thread in self._threads.items():
                following.name_thread(now, tid, thread)
        self._began, self._clocks_at = now, float("-inf")
        with suppress(OSError):
            writer.close(ended=now, note=f"{os.path.basename(name)} is the next part")
        self._earlier += writer.snapshots
        if self._file.keep_s is not None:
            with suppress(OSError):
                self.removed += remove_old(self._base, self._file.keep_s)


def _clocks() -> tuple[int, int, int]:
    """Nanoseconds of CLOCK_MONOTONIC, CLOCK_REALTIME and CLOCK_BOOTTIME."""
    return (
        time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        time.clock_gettime_ns(time.CLOCK_REALTIME),
        time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    )


def _run_values(config: Config, started: float, origin: Origin) -> dict[str, Any]:
    """The values of the table ``run`` that are known when a run begins."""
    monitored = asdict(config)
    return {
        "command": list(monitored.pop("command")),
        "config": monitored,
        "started": started,
        "started_at": None if origin.started_at is None else origin.started_at.isoformat(),
        "name": program_name(config.pid) if config.pid and config.ops != "reports" else None,
        "host": os.uname().nodename,
        "kernel_release": origin.kernel_release,
        "architecture": origin.architecture,
        "boot_id": origin.boot_id,
        "kdamon_version": __version__,
        "nr_cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * PAGE_SIZE,
    }
