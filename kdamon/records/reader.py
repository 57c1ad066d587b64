# SPDX-License-Identifier: GPL-2.0-only
"""Reads records, also while they are written, and those of other users."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar

import numpy as np

from kdamon.arrays import Records
from kdamon.mm.proc.maps import NamedMapping
from kdamon.monitoring.residency import Residency
from kdamon.monitoring.snapshot import Snapshot
from kdamon.monitoring.use import MemoryUse
from kdamon.names.table import NAMED_RANGE, NameChanges, NameTable, apply, overlaid
from kdamon.records.checked import EVER, check_regions, checked_names, object_of, run_of, seen_mapping
from kdamon.records.columns import MOST_ROWS, Corrupt, unpack, unpack_bytes, unpack_regions
from kdamon.records.files import opened_to_read
from kdamon.records.memory import MemoryOverTime, last_use, looks_of, residencies_of, uses_of
from kdamon.records.schema import CLOCKS, GROUPS, OPTIONAL, PROCESS, REGIONS, SNAPSHOTS, TIMES
from kdamon.records.tables import NamesOverTime, Table, process_table, region_table, snapshot_table
from kdamon.records.values import Run, SeenMapping
from kdamon.reports.groups import GROUP_ADDRESS, GroupTable

__all__ = ["Record", "open"]

_Value = TypeVar("_Value")
#: Characters of what SQLite says.
_LONGEST_REASON: Final = 200
#: Names of memory, and characters of one, at most.
_MOST_NAMES: Final = 1 << 18
_LONGEST_NAME: Final = 1 << 12
#: Columns of regions that are no field of :data:`kdamon.REGION`.
_STORED: Final = frozenset({"gap", "size"})
#: What such columns may be called: other text in the file of another user could become a part of a sentence of SQL; and
#: columns that tables of regions have besides.
_COLUMN: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_OTHERS: Final = frozenset({"began", "time", "name", "snapshot", "resident_anon", "resident_file", "swapped"})


def open(path: str | os.PathLike[str]) -> Record:  # noqa: A001 (it is kdamon.open)
    """Open a record, see :class:`Record`::

    with kdamon.open("run.kdamon") as record:
        for snapshot in record.snapshots():
            print(snapshot.time - record.run.started, snapshot.working_set())
    """
    return Record(path)


class Record:
    """A record of a run, in a file that may be written meanwhile: what is there when a method is called is read.

    All times are CLOCK_MONOTONIC seconds, as in :class:`kdamon.Snapshot`; ``run.started`` is the begin. Use it in a
    ``with`` block, or call :meth:`close`. Any method raises OSError EBADMSG where the file is damaged.

    :param path: the file.
    :raises OSError: EINVAL it is no record, EBADMSG it is damaged, or as ``open(2)``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._stack = ExitStack()
        try:
            with self._named():
                self._db = self._stack.enter_context(opened_to_read(path))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kdamon.Record {self.path!r}>"

    def _repr_html_(self) -> str | None:
        """The heatmap, for notebooks; None, as where the tools are not installed, stands for the text of the object."""
        try:
            # By its name: this package does not depend on the tools.
            notebook = importlib.import_module("kdamon_tools.pictures.notebook")
        except ModuleNotFoundError:
            return None
        return notebook.html_of(self)

    def close(self) -> None:
        """Close the file; may be repeated."""
        self._stack.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn the errors of a damaged file into one with a sentence and the file's name."""
        try:
            yield
        except OSError as error:
            if error.filename is not None and error.filename == self.path:
                raise
            raise OSError(error.errno, error.strerror, self.path) from error
        except (sqlite3.Error, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            # It may quote all of a text.
            why = str(error)[:_LONGEST_REASON] if isinstance(error, sqlite3.Error) else "it holds what no record has"
            raise OSError(errno.EBADMSG, Corrupt(why).strerror, self.path) from error

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        # All at once: a query that is not read to its end would keep the writer's log from beginning anew.
        return self._db.rows(query, values)

    # The run.

    @property
    def run(self) -> Run:
        """The run as the file has it now.

        :raises OSError: ENODATA kdamon was killed before monitoring began, or it begins right now.
        """
        with self._named():
            values = {key: json.loads(value) for key, value in self._rows("SELECT key, value FROM run")}
            if not values:
                raise OSError(errno.ENODATA, "the record is empty: monitoring has not begun")
            last = self._rows("SELECT max(ended) FROM chunks")[0][0]
            return run_of(values, None if last is None else last / 1e9)

    @property
    def counters(self) -> dict[str, Any]:
        """The last totals of monitoring, by the names of :class:`kdamon.Counters`; empty without."""
        with self._named():
            rows = self._rows("SELECT data FROM counters ORDER BY time DESC LIMIT 1")
            return object_of(rows[0][0]) if rows else {}

    def counter_log(self) -> list[tuple[float, dict[str, Any]]]:
        """The totals of monitoring at each time that they were recorded."""
        with self._named():
            return [
                (at / 1e9, object_of(data)) for at, data in self._rows("SELECT time, data FROM counters ORDER BY time")
            ]

    def process_data(self) -> Records:
        """How the process was, about once a second: rows of :data:`kdamon.records.schema.PROCESS`, shape (n,)."""
        with self._named():
            names = PROCESS.names or ()
            rows = self._rows(f"SELECT {', '.join(names)} FROM process ORDER BY time")
            table = np.array([tuple(np.nan if v is None else v for v in row) for row in rows], PROCESS)
            table["time"] /= 1e9
            return table

    def clocks(self) -> Records:
        """What the clocks showed, about once a minute: rows of :data:`kdamon.records.schema.CLOCKS`, shape (n,)."""
        with self._named():
            return np.array(self._rows("SELECT time, realtime, boottime FROM clocks ORDER BY time"), CLOCKS)

    # Snapshots.

    @property
    def columns(self) -> frozenset[str]:
        """The names of the columns of regions that not each record has."""
        with self._named():
            query = (
                "SELECT DISTINCT name FROM columns WHERE name LIKE 'regions.%' AND chunk IN "
                "(SELECT id FROM chunks WHERE id <= 64 UNION SELECT max(id) FROM chunks)"
            )
            names = {str(name).removeprefix("regions.") for (name,) in self._rows(query)}
            names -= _STORED | _OTHERS | set(REGIONS.names or ())
            return frozenset(filter(_COLUMN.fullmatch, names))

    def snapshots(
        self, since: float | None = None, until: float | None = None, extra: Iterable[str] = ()
    ) -> Iterator[Snapshot]:
        """The snapshots whose sampling overlaps a time, oldest first; few of them are in memory at once.

        :param since: begin; None: that of the record.
        :param until: end, exclusive; None: that of the record.
        :param extra: names of :attr:`columns`, which become fields of the regions, ``<f8``, NaN where unknown.
        :raises KeyError: the record has no such column.
        """
        form = self._form(extra)
        memory = MemoryOverTime(self.uses(self._last_use(since), until), self.residencies(since))
        for chunk in self._chunks(since, until):
            yield from map(memory.added, self._read(chunk, form, _limits(since, until)))

    # Memory besides regions.

    def uses(self, since: float | None = None, until: float | None = None) -> Iterator[MemoryUse]:
        """The estimates of how much memory was in use, oldest first; none where no pages were watched."""
        if self._has("resident", "windows"):
            yield from self._guarded(uses_of(self._rows, *_limits(since, until)))

    def looks(self, since: float | None = None, until: float | None = None) -> Iterator[Records]:
        """The looks at watched pages whose windows ended in this time: rows of :data:`kdamon.LOOK`, an array for those
        that were chosen together and each window, oldest first."""
        if self._has("looks"):
            yield from self._guarded(looks_of(self._rows, *_limits(since, until)))

    def residencies(self, since: float | None = None) -> Iterator[Residency]:
        """What was in memory after each change, oldest first; none where that was not recorded.

        :param since: begin with that of this time, or an earlier one; None: with the first.
        """
        if self._has("residency"):
            yield from self._guarded(residencies_of(self._rows, _limits(since, None)[0]))

    def _guarded(self, values: Iterator[_Value]) -> Iterator[_Value]:
        """The same values; errors are those of a damaged file."""
        while True:
            with self._named():
                found = next(values, None)
            if found is None:
                return
            yield found

    @property
    def has_residency(self) -> bool:
        """Whether the record says what was in memory."""
        return next(self.residencies(), None) is not None

    def residency_at(self, time: float) -> Residency | None:
        """What was in memory at a time, as it was seen last; None where that is not known."""
        found = None
        for one in self.residencies(time):
            if one.time > time:
                break
            found = one
        return found

    def _last_use(self, since: float | None) -> float | None:
        """When the estimate of a time was made, CLOCK_MONOTONIC seconds."""
        if since is None or not self._has("resident"):
            return since
        with self._named():
            return last_use(self._rows, _limits(since, None)[0]) / 1e9

    def _has(self, *tables: str) -> bool:
        return set(tables) <= self._db.tables

    def times(self, since: float | None = None, until: float | None = None) -> Records:
        """Begin, end and number of regions of these snapshots: rows of :data:`kdamon.records.schema.TIMES`."""
        low, high = _limits(since, until)
        parts = [np.empty(0, TIMES)]
        for chunk in self._chunks(since, until):
            with self._named():
                head = self._head(chunk)
            head = head[(head["time"] > low) & (head["began"] < high)]
            part = np.empty(len(head), TIMES)
            part["began"], part["time"] = head["began"] / 1e9, head["time"] / 1e9
            part["nr_regions"] = head["regions"]
            parts.append(part)
        return np.concatenate(parts)

    def regions(self, since: float | None = None, until: float | None = None, extra: Iterable[str] = ()) -> Records:
        """The regions of all these snapshots in one array, shape (n,).

        :returns: rows of :data:`kdamon.REGION` with ``extra``, as of :meth:`snapshots`, and ``snapshot``, the number of
            its row in :meth:`times`.
        """
        form = self._form(extra)
        whole = np.dtype([("snapshot", "<u4"), *((name, form[name]) for name in form.names or ())])
        parts = [np.empty(0, whole)]
        for number, snapshot in enumerate(self.snapshots(since, until, extra)):
            part = np.empty(len(snapshot.regions), whole)
            part["snapshot"] = number
            for name in form.names or ():
                part[name] = snapshot.regions[name]
            parts.append(part)
        return np.concatenate(parts)

    def table(self, name: str = "regions", since: float | None = None, until: float | None = None) -> Table:
        """A table for pyarrow, polars, pandas or duckdb, which is read when one of them asks for it.

        Times in it are seconds since the run began, and what is unknown is null.

        :param name: ``regions``, a row for each region of each snapshot, with all columns and the name of what lies
            there; ``snapshots``; or ``process``, a row for each second.
        :param since: as for :meth:`snapshots`, and ``until``, too.
        :raises KeyError: there is no such table.
        """
        started = self.run.started
        if name == "regions":
            extra = sorted(self.columns)
            return region_table(
                lambda: self.snapshots(since, until, extra),
                lambda: NamesOverTime(self.name_tables()),
                self.run,
                extra,
                resident=self.has_residency,
            )
        if name == "snapshots":
            return snapshot_table(lambda: self.times(since, until), started)
        if name == "process":
            return process_table(lambda: _between(self.process_data(), since, until), started)
        raise KeyError(f"there is no table {name!r}: it is regions, snapshots or process")

    def _form(self, extra: Iterable[str]) -> np.dtype[Any]:
        extra = list(extra)
        missing = set(extra) - self.columns if extra else set()
        if missing:
            raise KeyError(f"the record has no column {sorted(missing)[0]!r}")
        known = REGIONS.names or ()
        return np.dtype([*((name, REGIONS[name]) for name in known), *((name, "<f8") for name in extra)])

    def _chunks(self, since: float | None, until: float | None) -> list[int]:
        low, high = _limits(since, until)
        with self._named():
            # What is no number is read, and refused there.
            where = "ended > ? AND began < ? OR typeof(began) <> 'integer'"
            query = f"SELECT id FROM chunks WHERE {where} ORDER BY id"
            return [number for (number,) in self._rows(query, low, high)]

    def _packed(self, chunk: int, names: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Some columns of a chunk by their names; those that it has."""
        wanted = list(names)
        marks = ", ".join("?" * len(wanted))
        query = f"SELECT name, type, rows, data FROM columns WHERE chunk = ? AND name IN ({marks})"
        return {name: unpack(kind, rows, data) for name, kind, rows, data in self._rows(query, chunk, *wanted)}

    def _head(self, chunk: int) -> Records:
        """Rows of :data:`SNAPSHOTS`."""
        ((began, number),) = self._rows("SELECT began, snapshots FROM chunks WHERE id = ?", chunk)
        found = self._packed(chunk, [f"snapshots.{name}" for name in SNAPSHOTS.names or ()])
        head = np.zeros(number if 0 <= number <= MOST_ROWS else 0, SNAPSHOTS)
        for name in SNAPSHOTS.names or ():
            if f"snapshots.{name}" in OPTIONAL - found.keys():
                continue
            column = found[f"snapshots.{name}"]
            if len(column) != number:
                raise Corrupt("the columns of a chunk do not fit together")
            head[name] = column
        for name in ("began", "time"):
            head[name] += began
        if (head["regions"] > MOST_ROWS).any() or (head["groups"] > MOST_ROWS).any():
            raise Corrupt("a snapshot has too many regions")
        if (head["time"] < head["began"]).any() or (head["began"] < 0).any() or not head["merged"].all():
            raise Corrupt("the times of a snapshot are none")
        if (head["aggr_us"] < 0).any() or (head["aggr_us"] > EVER).any():
            raise Corrupt("the interval of a snapshot is none")
        return head

    def _read(self, chunk: int, form: np.dtype[Any], limits: tuple[int, int]) -> Iterator[Snapshot]:
        with self._named():
            head = self._head(chunk)
            wanted = [*_STORED, *(name for name in form.names or () if name not in {"start", "end"})]
            columns = self._table(chunk, "regions", wanted)
            for name in set(form.names or ()) - set(REGIONS.names or ()):
                columns.setdefault(name, np.full(int(head["regions"].sum()), np.nan))
            if "nr_accesses" in columns:
                columns.setdefault("mean_accesses", columns["nr_accesses"])
            regions = unpack_regions(columns, head["regions"], form)
            check_regions(regions, head["regions"])
            counts = np.maximum(head["groups"], 0)
            groups = self._groups(chunk, int(counts.sum())) if (head["groups"] >= 0).any() else np.empty(0, GROUPS)
        ends, group_ends = np.cumsum(head["regions"]).tolist(), np.cumsum(counts).tolist()
        for row, end, group_end in zip(head.tolist(), ends, group_ends, strict=True):
            began, time, merged, nr_regions, nr_groups, aggr_us = row
            if time <= limits[0] or began >= limits[1]:
                continue
            table = None
            if nr_groups >= 0:
                table = GroupTable(groups[group_end - nr_groups : group_end], np.empty(0, GROUP_ADDRESS))
            yield Snapshot(began / 1e9, time / 1e9, regions[end - nr_regions : end], merged, table, aggr_us)

    def _table(self, chunk: int, table: str, names: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:
        found = self._packed(chunk, [f"{table}.{name}" for name in names])
        return {name.removeprefix(f"{table}."): column for name, column in found.items()}

    def _groups(self, chunk: int, total: int) -> Records:
        columns = self._table(chunk, "groups", GROUPS.names or ())
        rows = np.zeros(total if total <= MOST_ROWS else 0, GROUPS)
        for name in GROUPS.names or ():
            if len(columns[name]) != total:
                raise Corrupt("the columns of a chunk do not fit together")
            rows[name] = columns[name]
        return rows

    # Names.

    @property
    def mappings(self) -> list[SeenMapping]:
        """All mappings that were seen, by address; one that changed, such as a heap that grew, is another one."""
        return self._mappings("", ())

    def mappings_at(self, time: float) -> list[NamedMapping]:
        """The mappings at a time, by address."""
        at = round(time * 1e9)
        found = self._mappings("WHERE appeared <= ? AND (last_seen IS NULL OR last_seen >= ?)", (at, at))
        return [one.mapping for one in found]

    def _mappings(self, where: str, values: tuple[int, ...]) -> list[SeenMapping]:
        with self._named():
            last = self._rows("SELECT max(time) FROM (SELECT time FROM counters UNION SELECT ended FROM chunks)")[0][0]
            query = (
                "SELECT start_address, end_address, permissions, offset, inode, name, appeared, last_seen "
                f"FROM mappings {where} ORDER BY start_address, appeared"
            )
            return [seen_mapping(row, last or 0) for row in self._rows(query, *values)]

    def name_changes(self) -> Iterator[NameChanges]:
        """How the names of memory changed, oldest first."""
        last = 0
        while True:
            with self._named():
                query = "SELECT id, time, first_name, names, gone, new FROM names WHERE id > ? ORDER BY id LIMIT 1"
                rows = self._rows(query, last)
                if not rows:
                    return
                last, time, first_name, names, *tables = rows[0]
                text = unpack_bytes(names)
                gone, new = (np.frombuffer(unpack_bytes(table), NAMED_RANGE) for table in tables)
                if text.count(b"\0") >= _MOST_NAMES - max(0, first_name):
                    raise Corrupt("there are too many names")
                split = tuple(os.fsdecode(name[:_LONGEST_NAME]) for name in text.split(b"\0")) if text else ()
                changed = NameChanges(time / 1e9, first_name, split, gone, new)
            yield changed

    def name_tables(self) -> Iterator[NameTable]:
        """The names of memory after each change, oldest first; their ``time`` is that of the change."""
        table: NameTable | None = None
        for changed in self.name_changes():
            with self._named():
                table = checked_names(apply(table, changed))
            yield table

    def names_at(self, time: float) -> NameTable | None:
        """The names of memory at a time, or the first ones if it is before those; None where none are recorded."""
        found: NameTable | None = None
        for table in self.name_tables():
            if table.time > time and found is not None:
                break
            found = table
        return found

    @property
    def names(self) -> NameTable | None:
        """The last name that each address ever had, for a picture of the whole run; None where none are recorded."""
        table: NameTable | None = None
        for changed in self.name_changes():
            with self._named():
                before = NameTable() if table is None else table
                names = before.names[: changed.first_name] + changed.names
                table = checked_names(NameTable(overlaid(before.rows, changed.new), names, changed.time))
        return table

    @property
    def threads(self) -> dict[int, str]:
        """The last names of threads, by their numbers."""
        with self._named():
            return {
                int(tid): os.fsdecode(name) for tid, name in self._rows("SELECT tid, name FROM threads ORDER BY id")
            }


def _limits(since: float | None, until: float | None) -> tuple[int, int]:
    """Nanoseconds."""
    return -EVER if since is None else round(since * 1e9), EVER if until is None else round(until * 1e9)


def _between(rows: Records, since: float | None, until: float | None) -> Records:
    """The rows of a time, ``until`` exclusive."""
    low, high = -np.inf if since is None else since, np.inf if until is None else until
    return rows[(rows["time"] >= low) & (rows["time"] < high)]
