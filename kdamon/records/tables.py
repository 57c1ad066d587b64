# SPDX-License-Identifier: GPL-2.0-only
"""Tables of a record for other libraries: columns in parts, and Arrow streams of them by duckdb."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from attrs import frozen

from kdamon.arrays import F64Array, Records
from kdamon.lib.readable import readable
from kdamon.monitoring.snapshot import Snapshot
from kdamon.names.table import NameTable
from kdamon.records.schema import PROCESS
from kdamon.records.values import Run

__all__ = ["RESIDENT_COLUMNS", "Columns", "NamesOverTime", "Table", "process_table", "region_table", "snapshot_table"]

#: Columns by name, equally long.
Columns = Mapping[str, npt.NDArray[Any]]

_FIELDS: Final = ("start", "end", "nr_accesses", "age", "nr_unknown", "mean_accesses")
#: Columns of what was in memory, and the fields of :data:`kdamon.mm.RESIDENT`.
RESIDENT_COLUMNS: Final = {"resident_anon": "anon", "resident_file": "file", "swapped": "swapped"}
#: Rows that duckdb gets at once.
_AT_ONCE: Final = 1 << 16


class NamesOverTime:
    """What lies where, at times that ascend.

    :param tables: the names after each change, by time, see :meth:`kdamon.Record.name_tables`.
    """

    def __init__(self, tables: Iterator[NameTable]) -> None:
        self._tables = tables
        self._table = next(self._tables, NameTable())
        self._next = next(self._tables, None)

    def at(self, time: float) -> NameTable:
        """The names at ``time``, or the first ones if it is before those; none where none are recorded."""
        while self._next is not None and self._next.time <= time:
            self._table = self._next
            self._next = next(self._tables, None)
        return self._table


@frozen(eq=False)
class Table:
    """A table of a record, which pyarrow, polars, pandas and duckdb read by the Arrow PyCapsule interface::

    pyarrow.table(record.table("regions"))

    :ivar kinds: the SQL type of each column. NaN in a column of the type DOUBLE is null.
    :ivar parts: begins to read the record: its columns, in parts.
    """

    kinds: Mapping[str, str]
    parts: Callable[[], Iterator[Columns]]

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """A capsule with the table, which is read into memory.

        :raises ImportError: duckdb is not installed.
        """
        try:
            import duckdb  # noqa: PLC0415 (an extra)
        except ModuleNotFoundError as error:
            raise ImportError("Arrow tables need duckdb: install it with pip install 'kdamon[parquet]'") from error
        db = duckdb.connect()
        self.fill(db, "filled")
        return db.table("filled").__arrow_c_stream__(requested_schema)

    def fill(self, db: Any, name: str) -> None:
        """Make the table ``name`` in ``db``, a connection of duckdb."""
        kinds = ", ".join(f'"{column}" {kind}' for column, kind in self.kinds.items())
        db.execute(f'CREATE TABLE "{name}" ({kinds})')
        values = ", ".join(
            f"nullif(\"{column}\", 'NaN'::DOUBLE)" if kind == "DOUBLE" else f'"{column}"'
            for column, kind in self.kinds.items()
        )
        for rows in _joined(self.parts()):  # noqa: B007 (duckdb finds it by its name)
            db.execute(f'INSERT INTO "{name}" SELECT {values} FROM rows')


def region_table(
    snapshots: Callable[[], Iterable[Snapshot]],
    names: Callable[[], NamesOverTime],
    run: Run,
    extra: Sequence[str] = (),
    *,
    resident: bool = False,
) -> Table:
    """A row for each region of each snapshot, with the name of its largest part.

    :param snapshots: begins to read them.
    :param run: the run: times are seconds since it began.
    :param extra: names of further columns that the regions have.
    :param resident: whether it is known what was in memory.
    """
    in_memory = RESIDENT_COLUMNS if resident else {}

    def parts() -> Iterator[Columns]:
        found = names()
        for snapshot in snapshots():
            regions = snapshot.regions
            whole = np.ones(len(regions))
            texts = [readable(name) for name in found.at(snapshot.time).main(regions)]
            yield {
                "began": whole * round(snapshot.began - run.started, 6),
                "time": whole * round(snapshot.time - run.started, 6),
                **{name: regions[name] for name in _FIELDS},
                "aggr_us": np.full(len(regions), snapshot.aggr_us or run.config.aggr_us, np.uint64),
                **{name: regions[name] for name in extra},
                **{name: _in_memory(snapshot, kind) for name, kind in in_memory.items()},
                "name": np.array(texts, object),
            }

    kinds = {"began": "DOUBLE", "time": "DOUBLE", "start": "UBIGINT", "end": "UBIGINT", "nr_accesses": "FLOAT"}
    kinds |= {"age": "UINTEGER", "nr_unknown": "FLOAT", "mean_accesses": "DOUBLE", "aggr_us": "UBIGINT"}
    kinds |= {**dict.fromkeys((*extra, *in_memory), "DOUBLE"), "name": "VARCHAR"}
    return Table(kinds, parts)


def _in_memory(snapshot: Snapshot, kind: str) -> F64Array:
    """Bytes of a kind in each region, NaN where not all of it was looked at."""
    if snapshot.residency is None:
        return np.full(len(snapshot.regions), np.nan)
    sums = snapshot.residency.sums(snapshot.regions)
    return np.where(sums["unknown"] > 0, np.nan, sums[kind].astype(np.float64))


def snapshot_table(rows: Callable[[], Records], started: float) -> Table:
    """A row for each snapshot.

    :param rows: reads rows of :data:`kdamon.records.schema.TIMES`.
    :param started: when the run began, CLOCK_MONOTONIC seconds.
    """

    def parts() -> Iterator[Columns]:
        found = rows()
        times = {name: (found[name] - started).round(6) for name in ("began", "time")}
        yield {**times, "nr_regions": found["nr_regions"]}

    return Table({"began": "DOUBLE", "time": "DOUBLE", "nr_regions": "BIGINT"}, parts)


def process_table(rows: Callable[[], Records], started: float) -> Table:
    """A row for each second of the process.

    :param rows: reads rows of :data:`kdamon.records.schema.PROCESS`.
    :param started: when the run began, CLOCK_MONOTONIC seconds.
    """

    def parts() -> Iterator[Columns]:
        found = rows()
        columns = {name: found[name] for name in PROCESS.names or ()}
        yield {**columns, "time": (found["time"] - started).round(6)}

    return Table(dict.fromkeys(PROCESS.names or (), "DOUBLE"), parts)


def _joined(parts: Iterator[Columns]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Fewer parts, with more rows each."""
    waiting: list[Columns] = []
    rows = 0
    for part in parts:
        waiting.append(part)
        rows += len(next(iter(part.values())))
        if rows >= _AT_ONCE:
            yield {name: np.concatenate([one[name] for one in waiting]) for name in part}
            waiting, rows = [], 0
    if rows:
        yield {name: np.concatenate([one[name] for one in waiting]) for name in waiting[0]}
