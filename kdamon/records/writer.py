# SPDX-License-Identifier: GPL-2.0-only
"""Writes a record while monitoring goes on, in whole transactions: it can be read at any time, and after a kill."""

from __future__ import annotations

import errno
import json
import os
import resource
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from attrs import define, field

from kdamon.arrays import Records
from kdamon.mm.proc.maps import NamedMapping
from kdamon.monitoring.residency import Residency
from kdamon.monitoring.snapshot import Snapshot
from kdamon.monitoring.use import MemoryUse
from kdamon.names.table import NameChanges
from kdamon.records.columns import pack, pack_bytes, pack_regions
from kdamon.records.files import create, open_to_write
from kdamon.records.memory import INSERT as _INSERT_MEMORY
from kdamon.records.memory import ResidencyChanges, look_rows, use_rows
from kdamon.records.schema import GROUPS, PROCESS, SNAPSHOTS

__all__ = ["RecordWriter"]

#: Rows of regions and groups after which a chunk ends.
_MOST_ROWS: Final = 1 << 17
_INSERT: Final = {
    "process": f"INSERT OR REPLACE INTO process VALUES ({', '.join('?' * len(PROCESS.names or ()))})",
    "counters": "INSERT OR REPLACE INTO counters VALUES (?, ?)",
    "clocks": "INSERT OR REPLACE INTO clocks VALUES (?, ?, ?)",
    "threads": "INSERT INTO threads (time, tid, name) VALUES (?, ?, ?)",
    "names": "INSERT INTO names (time, first_name, names, gone, new) VALUES (?, ?, ?, ?, ?)",
    "run": "INSERT OR REPLACE INTO run VALUES (?, ?)",
    "columns": "INSERT INTO columns VALUES (?, ?, ?, ?, ?)",
    **_INSERT_MEMORY,
}
_MAPPING: Final = "INSERT INTO mappings VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)"
_UNSEEN: Final = "UPDATE mappings SET last_seen = ? WHERE id = ?"

#: Half of the last bit that stays of a float of 32 bits, as an integer.
_HALF_STEP: Final = np.uint32(1 << 11)

#: A snapshot and further columns of its regions.
_Added = tuple[Snapshot, Mapping[str, np.ndarray[Any, Any]]]


@define
class _Waiting:
    """What :meth:`RecordWriter.flush` is to write next."""

    snapshots: list[_Added] = field(factory=list)
    rows: dict[str, list[tuple[Any, ...]]] = field(factory=dict)
    mappings: list[tuple[Any, ...]] = field(factory=list)
    unseen: list[tuple[int, int]] = field(factory=list)

    def row(self, table: str, values: tuple[Any, ...]) -> None:
        """Queue a row."""
        self.rows.setdefault(table, []).append(values)

    def __bool__(self) -> bool:
        return bool(self.snapshots or self.rows or self.mappings or self.unseen)


class RecordWriter:
    """Writes a new record. What is added is kept until :meth:`flush`, which any thread may call.

    After an error nothing more is written, and what was written stays readable; see :attr:`error`.

    :param path: the file, which must not exist.
    :param run: values of the table ``run``, which become JSON.
    :param replace: an earlier record may have the name; it is removed when something is written.
    :raises OSError: EEXIST there is a file; or it cannot be made.
    :ivar path: the file.
    :ivar error: why writing failed; None while it works.
    :ivar snapshots: the number of snapshots that were written.
    """

    def __init__(
        self, path: str | os.PathLike[str], run: Mapping[str, Any] | None = None, *, replace: bool = False
    ) -> None:
        self.path = os.fspath(path)
        self.error: OSError | None = None
        self.snapshots = 0
        self._chunks = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._waiting = _Waiting()
        self._mappings: dict[NamedMapping, int] = {}
        self._residency = ResidencyChanges()
        self._mapping_ids = 0
        name, self._descriptor, self._earlier = create(path, replace=replace)
        try:
            self._connection = open_to_write(name, self._descriptor)
        except (OSError, sqlite3.Error) as error:
            os.unlink(name)
            os.close(self._descriptor)
            self._restore()
            raise self._failure(error, "the record cannot be written there") from error
        self.set(**(run or {}))

    # What is added. Times are CLOCK_MONOTONIC seconds.

    def set(self, **values: Any) -> None:
        """Set values of the table ``run``."""
        with self._lock:
            for key, value in values.items():
                self._waiting.row("run", (key, json.dumps(value)))

    def add(self, snapshot: Snapshot, extra: Mapping[str, np.ndarray[Any, Any]] | None = None) -> None:
        """Add a snapshot, which is newer than all others.

        :param extra: further columns of its regions by their names: integers or floats, shape (n,); NaN is unknown.
        """
        with self._lock:
            self._waiting.snapshots.append((snapshot, extra or {}))

    def change_mappings(
        self, time: float, gone: Iterable[NamedMapping], new: Iterable[NamedMapping], seen: float
    ) -> None:
        """Add changes of the list of mappings.

        :param time: when it was read.
        :param gone: mappings that it had before; they were there last at ``seen``.
        """
        with self._lock:
            for mapping in gone:
                if (number := self._mappings.pop(mapping, None)) is not None:
                    self._waiting.unseen.append((_ns(seen), number))
            for mapping in new:
                self._mapping_ids += 1
                self._mappings[mapping] = self._mapping_ids
                self._waiting.mappings.append((self._mapping_ids, *_mapping_row(mapping), _ns(time)))

    def change_names(self, changed: NameChanges) -> None:
        """Add changes of the names of memory."""
        names = b"\0".join(os.fsencode(name) for name in changed.names)
        gone, new = (pack_bytes(rows.tobytes()) for rows in (changed.gone, changed.new))
        with self._lock:
            row = (_ns(changed.time), changed.first_name, pack_bytes(names), gone, new)
            self._waiting.row("names", row)

    def name_thread(self, time: float, tid: int, name: str) -> None:
        """Add the name of a thread."""
        with self._lock:
            self._waiting.row("threads", (_ns(time), tid, os.fsencode(name)))

    def add_use(self, use: MemoryUse) -> None:
        """Add an estimate of how much memory is in use."""
        self._add_rows(use_rows(use))

    def add_looks(self, looks: Records) -> None:
        """Add the looks at watched pages that were chosen together, at the end of one window."""
        self._add_rows(look_rows(looks))

    def change_residency(self, now: Residency) -> int:
        """Add how what is in memory changed since the last call; returns about how many bytes that takes."""
        return self._add_rows(self._residency.rows(now))

    def _add_rows(self, rows: Iterable[tuple[str, tuple[Any, ...]]]) -> int:
        found = list(rows)
        with self._lock:
            for table, row in found:
                self._waiting.row(table, row)
        return sum(len(value) for _, row in found for value in row if isinstance(value, bytes))

    def add_process(self, time: float, values: Mapping[str, int | None]) -> None:
        """Add how the process is now.

        :param values: by the names of :data:`kdamon.records.schema.PROCESS`; None and missing ones are unknown.
        """
        with self._lock:
            names = (PROCESS.names or ())[1:]
            self._waiting.row("process", (_ns(time), *(values.get(name) for name in names)))

    def add_counters(self, time: float, values: Mapping[str, Any]) -> None:
        """Add the totals of monitoring, which become JSON."""
        with self._lock:
            self._waiting.row("counters", (_ns(time), json.dumps(values, separators=(",", ":"))))

    def add_clocks(self, time: int, realtime: int, boottime: int) -> None:
        """Add what the clocks showed at one time, nanoseconds."""
        with self._lock:
            self._waiting.row("clocks", (time, realtime, boottime))

    # What is written.

    def flush(self) -> None:
        """Write what was added, in one transaction; an error is kept in :attr:`error`."""
        with self._writing:
            with self._lock:
                waiting, self._waiting = self._waiting, _Waiting()
            if self.error is None and waiting:
                try:
                    self._write(waiting)
                except sqlite3.Error as error:
                    self.error = self._failure(error, "the record ends before the run")

    def _write(self, waiting: _Waiting) -> None:
        # Outside of the transaction, which readers of the lock wait for.
        chunks = [_chunk(part) for part in _parts(waiting.snapshots)]
        db = self._connection
        db.execute("BEGIN IMMEDIATE")
        try:
            for values, columns in chunks:
                self._chunks += 1
                db.execute("INSERT INTO chunks VALUES (?, ?, ?, ?)", (self._chunks, *values))
                db.executemany(_INSERT["columns"], [(self._chunks, *column) for column in columns])
            for table, rows in waiting.rows.items():
                db.executemany(_INSERT[table], rows)
            db.executemany(_MAPPING, waiting.mappings)
            db.executemany(_UNSEEN, waiting.unseen)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self.snapshots += len(waiting.snapshots)
        if self._earlier is not None:
            self._earlier.remove()

    def close(self, **values: Any) -> None:
        """Write what was added and the last values of the table ``run``, and make one file of it; may be repeated.

        Where readers have the record open, or there is no room, a second file (``-wal``) stays beside it.

        :raises OSError: it could not be written.
        """
        if self._descriptor < 0:
            return
        self.set(**values)
        self.flush()
        with self._writing:
            try:
                # Otherwise a reader in a directory that it cannot write to would need the other files.
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
            except sqlite3.Error:
                pass
            finally:
                self._connection.close()
                os.close(self._descriptor)
                self._descriptor = -1
        if self.error is not None:
            raise self.error
        if self._earlier is not None:
            self._earlier.remove()

    def discard(self) -> None:
        """Close and remove the record, of a run that never began."""
        name = os.readlink(f"/proc/self/fd/{self._descriptor}")
        self.error = self.error or OSError(errno.ECANCELED, "it is discarded", self.path)
        try:
            self.close()
        except OSError:
            os.unlink(name)
        self._restore()

    def _restore(self) -> None:
        if self._earlier is not None:
            self._earlier.restore()

    def _failure(self, error: Exception, what: str) -> OSError:
        """An error for the user."""
        if isinstance(error, OSError):
            return OSError(error.errno, f"{what}: {error.strerror}", self.path)
        code = errno.EIO
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            code = errno.ENOSPC
        elif self._beyond_limit():
            code = errno.EFBIG
        reason = f"{os.strerror(code)}" if code != errno.EIO else str(error)
        return OSError(code, f"{what}: {reason}", self.path)

    def _beyond_limit(self) -> bool:
        """Whether a file of the record has reached the largest size that this process may write."""
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        name = os.readlink(f"/proc/self/fd/{self._descriptor}")
        sizes = [os.stat(one).st_size for one in (name, f"{name}-wal") if os.path.exists(one)]
        return limit != resource.RLIM_INFINITY and max(sizes, default=0) + (1 << 15) >= limit


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _signed(number: int) -> int:
    """A number of 64 bits as SQLite has it."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _mapping_row(mapping: NamedMapping) -> tuple[Any, ...]:
    return (
        _signed(mapping.start),
        _signed(mapping.end),
        mapping.permissions,
        _signed(mapping.offset),
        _signed(mapping.inode),
        os.fsencode(mapping.name),
    )


def _parts(added: Sequence[_Added]) -> list[list[_Added]]:
    """``added`` in parts for chunks, each of snapshots with the same columns."""
    parts: list[list[_Added]] = []
    rows, form = 0, None
    for one in added:
        snapshot = one[0]
        if not parts or rows > _MOST_ROWS or snapshot.regions.dtype != form:
            parts.append([])
            rows = 0
        parts[-1].append(one)
        form = snapshot.regions.dtype
        rows += len(snapshot.regions) + (0 if snapshot.groups is None else len(snapshot.groups.regions))
    return parts


def _chunk(added: Sequence[_Added]) -> tuple[tuple[int, int, int], list[tuple[str, str, int, bytes]]]:
    """The row of a chunk without its number, and its columns."""
    snapshots = [snapshot for snapshot, _ in added]
    head = np.zeros(len(snapshots), SNAPSHOTS)
    head["began"] = [_ns(snapshot.began) for snapshot in snapshots]
    head["time"] = [_ns(snapshot.time) for snapshot in snapshots]
    head["merged"] = [snapshot.merged for snapshot in snapshots]
    head["regions"] = [len(snapshot.regions) for snapshot in snapshots]
    head["groups"] = [-1 if one.groups is None else len(one.groups.regions) for one in snapshots]
    head["aggr_us"] = [snapshot.aggr_us for snapshot in snapshots]
    columns = {f"snapshots.{name}": head[name] for name in SNAPSHOTS.names or ()}
    if not head["aggr_us"].any():
        del columns["snapshots.aggr_us"]
    # Times differ by little.
    began = int(head["began"].min())
    for name in ("began", "time"):
        columns[f"snapshots.{name}"] = head[name] - began
    regions = np.concatenate([snapshot.regions for snapshot in snapshots])
    columns |= _named("regions", pack_regions(regions, head["regions"]))
    means = _coarse(regions["mean_accesses"])
    columns["regions.mean_accesses"] = means
    if (means == _coarse(regions["nr_accesses"])).all():
        del columns["regions.mean_accesses"]
    columns |= _named("regions", _extra(added))
    if (head["groups"] >= 0).any():
        columns |= _named("groups", _groups(snapshots))
    packed = [(name, kind, len(values), data) for name, values in columns.items() for kind, data in [pack(values)]]
    return (began, int(head["time"].max()), len(snapshots)), packed


def _coarse(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Floats of 32 bits with 12 bits of precision: more of a mean over some samples is chance, and takes room."""
    found = values.astype("<f4")
    bits = found.view("<u4")
    bits += _HALF_STEP
    bits &= ~np.uint32(2 * _HALF_STEP - 1)
    return found


def _named(table: str, columns: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    return {f"{table}.{name}": values for name, values in columns.items()}


def _extra(added: Sequence[_Added]) -> dict[str, np.ndarray[Any, Any]]:
    """Further columns of regions; where a snapshot has not one that others have, it is unknown there."""
    names = sorted({name for _, extra in added for name in extra})
    return {
        name: np.concatenate(
            [extra[name] if name in extra else np.full(len(snapshot.regions), np.nan) for snapshot, extra in added]
        )
        for name in names
    }


def _groups(snapshots: Sequence[Snapshot]) -> dict[str, np.ndarray[Any, Any]]:
    tables: list[Records] = [np.empty(0, GROUPS) if one.groups is None else one.groups.regions for one in snapshots]
    table = np.concatenate(tables)
    return {name: table[name] for name in GROUPS.names or ()}
