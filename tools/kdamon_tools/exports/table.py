# SPDX-License-Identifier: GPL-2.0-only
"""A table with a row for each region of each snapshot: CSV, and Parquet by duckdb."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from kdamon.arrays import F64Array
from kdamon_tools.errors import CommandError
from kdamon_tools.exports import Write
from kdamon_tools.output.readable import cell_of, readable
from kdamon_tools.output.temporary import temporary_directory
from kdamon_tools.recorded.selection import NamesOverTime, Selection
from kdamon_tools.snapshot import Snapshot

__all__ = ["export_csv", "export_parquet"]

_FIELDS = ("start", "end", "nr_accesses", "age", "nr_unknown")
#: Columns of records that say what was in memory, and the fields of :data:`kdamon.mm.RESIDENT`.
_RESIDENT = {"resident_anon": "anon", "resident_file": "file", "swapped": "swapped"}
#: Rows that duckdb gets at once.
_AT_ONCE = 1 << 16


def export_csv(selection: Selection, write: Write) -> list[str]:
    """Write comma-separated values with a head line."""
    extra = sorted(selection.record.columns)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["began", "time", *_FIELDS, *extra, *_resident_columns(selection), "name"])
    for columns in _tables(selection, extra):
        columns["name"] = np.array([cell_of(name) for name in columns["name"]], object)
        lists = [_cells(column) if name in _RESIDENT else column.tolist() for name, column in columns.items()]
        writer.writerows(zip(*lists, strict=True))
        write(text.getvalue().encode())
        text.seek(0)
        text.truncate()
    # The head line, where there was no snapshot.
    write(text.getvalue().encode())
    return []


def _resident_columns(selection: Selection) -> list[str]:
    return list(_RESIDENT) if next(selection.record.residencies(), None) is not None else []


def _cells(values: Any) -> list[int | str]:
    """Bytes as integers, and empty where they are unknown."""
    return ["" if np.isnan(value) else int(value) for value in values.tolist()]


def export_parquet(selection: Selection, write: Write) -> list[str]:
    """Write a Parquet file with the same columns.

    :raises CommandError: duckdb is not installed.
    """
    try:
        import duckdb  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise CommandError("Parquet files need duckdb: install it with pip install 'kdamon[parquet]'") from error
    extra = sorted(selection.record.columns)
    with tempfile.TemporaryDirectory(prefix="kdamon-", dir=temporary_directory()) as directory:
        target = os.path.join(directory, "result.parquet")
        # In a file, so that the table may be larger than the memory.
        with duckdb.connect(os.path.join(directory, "table")) as db:
            kinds = ["began DOUBLE", "time DOUBLE", '"start" UBIGINT', '"end" UBIGINT', "nr_accesses FLOAT"]
            kinds += ["age UINTEGER", "nr_unknown FLOAT"]
            kinds += [f'"{name}" DOUBLE' for name in (*extra, *_resident_columns(selection))]
            kinds += ["name VARCHAR"]
            db.execute(f"CREATE TABLE regions ({', '.join(kinds)})")
            for rows in _joined(_tables(selection, extra)):  # noqa: B007 (duckdb finds it by its name)
                db.execute("INSERT INTO regions SELECT * FROM rows")
            db.execute(f"COPY regions TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
        with open(target, "rb") as file:
            while part := file.read(1 << 20):
                write(part)
    return []


def _joined(tables: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Fewer tables, with more rows each."""
    waiting: list[dict[str, Any]] = []
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += len(table["start"])
        if rows >= _AT_ONCE:
            yield {name: np.concatenate([one[name] for one in waiting]) for name in table}
            waiting, rows = [], 0
    if waiting:
        yield {name: np.concatenate([one[name] for one in waiting]) for name in waiting[0]}


def _tables(selection: Selection, extra: list[str]) -> Iterator[dict[str, Any]]:
    """The columns of each snapshot; times in seconds since the run began."""
    started = selection.record.run.started
    names = NamesOverTime(selection.record)
    resident = _resident_columns(selection)
    for snapshot in selection.snapshots(extra):
        regions = snapshot.regions
        whole = np.ones(len(regions))
        columns: dict[str, Any] = {
            "began": whole * round(snapshot.began - started, 6),
            "time": whole * round(snapshot.time - started, 6),
            **{name: regions[name] for name in (*_FIELDS, *extra)},
        }
        for name in resident:
            columns[name] = _resident(snapshot, _RESIDENT[name])
        columns["name"] = np.array([readable(name) for name in names.at(snapshot.time).main(regions)], object)
        yield columns


def _resident(snapshot: Snapshot, kind: str) -> F64Array:
    """Bytes of a kind in each region, NaN where they are not known."""
    if snapshot.residency is None:
        return np.full(len(snapshot.regions), np.nan)
    sums = snapshot.residency.sums(snapshot.regions)
    return np.where(sums["unknown"] > 0, np.nan, sums[kind].astype(np.float64))
