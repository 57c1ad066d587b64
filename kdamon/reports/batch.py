# SPDX-License-Identifier: GPL-2.0-only
"""Batches of access reports, cut and joined to the size that is best to work on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kdamon.access import damon_access_report
from kdamon.arrays import I32Array, Indexes, Records
from kdamon.reports.record import REPORT_DTYPE

__all__ = ["ReportColumns", "as_batches", "count_reports", "in_pieces"]


#: A batch is counted in pieces of so many reports: a piece and what is computed of it stay in the processor's cache.
_PIECE: Final = 16384


def _fits(single: tuple[Any, ...]) -> bool:
    """Return whether the fields of a batch can hold the values of one report."""
    try:
        np.array(single, REPORT_DTYPE)
    except (OverflowError, TypeError, ValueError):
        return False
    return True


def as_batches(entries: list[tuple[int, damon_access_report | Records]]) -> list[Records]:
    """The batches among the entries, and one of all single reports but those that its fields cannot hold."""
    batches = [e for _, e in entries if not isinstance(e, damon_access_report)]
    singles = [
        (r.pid, r.addr, r.size, r.nr_accesses, r.node_id, r.write, r.cpu, r.tid)
        for _, r in entries
        if isinstance(r, damon_access_report)
    ]
    if singles:
        try:
            batches.append(np.array(singles, REPORT_DTYPE))
        except (OverflowError, TypeError, ValueError):
            batches.append(np.array([single for single in singles if _fits(single)], REPORT_DTYPE))
    return batches


def in_pieces(batches: list[Records]) -> Iterator[Records]:
    """All reports of ``batches`` in arrays of a size that is best to work on."""
    parts: list[Records] = []
    n = 0
    for batch in batches:
        for at in range(0, len(batch), _PIECE):
            part = batch[at : at + _PIECE]
            if n + len(part) > _PIECE:
                yield _joined(parts)
                parts, n = [], 0
            parts.append(part)
            n += len(part)
    if parts:
        yield _joined(parts)


def _joined(parts: list[Records]) -> Records:
    if len(parts) == 1:
        return parts[0]
    # A record as a whole is copied twenty times as fast as one field after the other.
    return np.concatenate([part.view(f"V{REPORT_DTYPE.itemsize}") for part in parts]).view(REPORT_DTYPE)


def count_reports(entries: list[tuple[int, damon_access_report | Records]]) -> int:
    return sum(1 if isinstance(e, damon_access_report) else len(e) for _, e in entries)


class ReportColumns:
    """Reports as columns: each is copied out of its batch when it is first asked for, because the copy is contiguous.

    :param source: a batch or other columns.
    :param rows: which reports of it; None for all.
    """

    #: Columns are attributes and items; those that are named here some operations set needs.
    pid: I32Array

    __slots__ = ("_columns", "_rows", "_source")

    def __init__(self, source: Records | ReportColumns, rows: Indexes | None = None) -> None:
        self._source = source
        self._rows = rows
        self._columns: dict[str, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self._source) if self._rows is None else len(self._rows)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        column = self._columns.get(name)
        if column is None:
            whole: npt.NDArray[Any] = self._source[name]
            column = self._columns[name] = whole.copy() if self._rows is None else whole.take(self._rows)
        return column

    def __getattr__(self, name: str) -> npt.NDArray[Any]:
        if name in (REPORT_DTYPE.names or ()):
            return self[name]
        raise AttributeError(f"reports have no {name}")
