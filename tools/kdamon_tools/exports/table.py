# SPDX-License-Identifier: GPL-2.0-only
"""A table with a row for each region of each snapshot: CSV, and Parquet by duckdb."""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
from typing import Any

import numpy.typing as npt

from kdamon.records.tables import RESIDENT_COLUMNS, NamesOverTime, Table, region_table
from kdamon_tools.errors import CommandError
from kdamon_tools.exports import Write
from kdamon_tools.output.readable import cell_of
from kdamon_tools.output.temporary import temporary_directory
from kdamon_tools.recorded.selection import Selection

__all__ = ["export_csv", "export_parquet"]


def export_csv(selection: Selection, write: Write) -> list[str]:
    """Write comma-separated values with a head line."""
    table = _table(selection)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.kinds)
    for columns in table.parts():
        lists = [_cells(name, table.kinds[name], column) for name, column in columns.items()]
        writer.writerows(zip(*lists, strict=True))
        write(text.getvalue().encode())
        text.seek(0)
        text.truncate()
    # The head line, where there was no snapshot.
    write(text.getvalue().encode())
    return []


def export_parquet(selection: Selection, write: Write) -> list[str]:
    """Write a Parquet file with the same columns.

    :raises CommandError: duckdb is not installed.
    """
    try:
        import duckdb  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise CommandError("Parquet files need duckdb: install it with pip install 'kdamon[parquet]'") from error
    with tempfile.TemporaryDirectory(prefix="kdamon-", dir=temporary_directory()) as directory:
        target = os.path.join(directory, "result.parquet")
        # In a file, so that the table may be larger than the memory.
        with duckdb.connect(os.path.join(directory, "table")) as db:
            _table(selection).fill(db, "regions")
            db.execute(f"COPY regions TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
        with open(target, "rb") as file:
            while part := file.read(1 << 20):
                write(part)
    return []


def _cells(name: str, kind: str, column: npt.NDArray[Any]) -> list[Any]:
    """The values of a column; None, an empty cell, where they are unknown."""
    if kind == "VARCHAR":
        return [cell_of(text) for text in column.tolist()]
    if kind != "DOUBLE":
        return column.tolist()
    whole = name in RESIDENT_COLUMNS
    return [None if math.isnan(value) else int(value) if whole else value for value in column.tolist()]


def _table(selection: Selection) -> Table:
    record = selection.record
    extra = sorted(record.columns)
    return region_table(
        lambda: selection.snapshots(extra),
        lambda: NamesOverTime(record.name_tables()),
        record.run,
        extra,
        resident=record.has_residency,
    )
