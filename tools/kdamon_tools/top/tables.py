# SPDX-License-Identifier: GPL-2.0-only
"""The tables and the heading of ``kdamon top`` as plain values, and as text of a width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from attrs import evolve, field, frozen

from kdamon_tools.reporters.names import shortened, visible
from kdamon_tools.reporters.views import cell_text
from kdamon_tools.snapshot import Recording
from kdamon_tools.units import format_bytes, format_seconds
from kdamon_tools.views.table import Column, Kind, Order, Table
from kdamon_tools.views.where import idle_view, where_view
from kdamon_tools.views.working_set import course_of

__all__ = ["ORDERS", "Heading", "Process", "Sizes", "arranged", "fitted", "names_table", "processes_table", "sizes_of"]

#: Seconds without an access after which memory is idle here.
IDLE_S: Final = 10
#: Columns to sort by, in the order of the key: of tables of memory, and of those of threads and CPUs.
ORDERS: Final = {
    "names": ("hot_bytes", "working_set_bytes", "idle_bytes"),
    "processes": ("hot_bytes", "working_set_bytes", "idle_bytes"),
    "threads": ("reports", "writes"),
    "cpus": ("reports", "writes"),
}
#: Rows that a screen scrolls through; a text sums up the others.
MOST_ROWS: Final = 200
_LEAST_NAME: Final = 18
#: Columns in the order in which a narrow terminal leaves them out.
_LEFT_OUT: Final = ("bytes", "unknown_bytes", "share", "writes", "idle_bytes", "working_set_bytes", "hot_bytes")
_SIZES: Final = (
    Column("bytes", "size", Kind.BYTES, optional=True),
    Column("hot_bytes", "hot", Kind.BYTES),
    Column("working_set_bytes", "accessed", Kind.BYTES),
    Column("idle_bytes", f"idle {IDLE_S} s", Kind.BYTES),
    Column("unknown_bytes", "unknown", Kind.BYTES, optional=True),
)
_NAMES: Final = (*_SIZES, Column("name", "name", Kind.TEXT))
_PROCESSES: Final = (Column("pid", "pid", Kind.COUNT), *_SIZES, Column("name", "process", Kind.TEXT))


@frozen
class Sizes:
    """Bytes of a process or of a part of it: the mean of the last seconds, but what is idle at their end.

    :ivar monitored: all of it.
    :ivar hot: accessed in at least half of the samples of an aggregation interval.
    :ivar working_set: accessed at all in an aggregation interval.
    :ivar idle: not accessed for :data:`IDLE_S` seconds or longer; None: not monitored for so long.
    :ivar unknown: most samples could not be taken, and the others found no access.
    """

    monitored: int = 0
    hot: int = 0
    working_set: int = 0
    idle: int | None = None
    unknown: int = 0


@frozen
class Process:
    """A process that is monitored, as a row.

    :ivar name: of its program, raw.
    :ivar sizes: None: nothing is known yet.
    :ivar ended: the process ended; its sizes are the last ones.
    """

    pid: int
    name: str
    sizes: Sizes | None = None
    ended: bool = False


@frozen
class Heading:
    """What the lines above a table say.

    :ivar what: what is monitored, raw: ``process 12 (python3)``.
    :ivar accesses: which accesses count, such as ``reads and writes``.
    :ivar seconds: for how long.
    :ivar states: short remarks, such as ``paused``.
    :ivar sizes: of all that is monitored; None: nothing is known yet.
    :ivar resident: bytes in memory; None: unknown.
    :ivar missed: sampling intervals that were missed, of ``intervals``.
    :ivar cpu: CPU time of monitoring, as a share of one CPU; None: not measured.
    """

    what: str
    accesses: str = ""
    seconds: float = 0.0
    states: tuple[str, ...] = ()
    sizes: Sizes | None = None
    resident: int | None = None
    missed: int = 0
    intervals: int = 0
    cpu: float | None = None

    def lines(self, width: int) -> list[str]:
        """As text; parts that do not fit on a line go to the next one, and the name of what is monitored is shortened.

        :param width: columns of the terminal.
        """
        rest = filter(None, [self.accesses, format_seconds(self.seconds), *map(visible, self.states)])
        first = f"kdamon: {shortened(visible(self.what), max(_LEAST_NAME, width - len('kdamon: ')))}"
        return [*_joined([first, *rest], width), *_joined(self._figures(), width)]

    def _figures(self) -> list[str]:
        sizes = self.sizes
        if sizes is None:
            return ["nothing is known before the first aggregation interval ends"]
        share = f"{100 * sizes.unknown / sizes.monitored:.0f}%" if sizes.monitored else "0%"
        resident = "unknown" if self.resident is None else format_bytes(self.resident)
        return [
            f"accessed {format_bytes(sizes.working_set)} of {format_bytes(sizes.monitored)}",
            f"in memory {resident}",
            f"unknown {share}",
            f"missed {self._missed()} of intervals",
            f"kdamond {'unknown' if self.cpu is None else f'{100 * self.cpu:.1f}%'} of a CPU",
        ]

    def _missed(self) -> str:
        share = self.missed / max(1, self.intervals)
        return "<0.1%" if 0 < share < 0.001 else f"{100 * min(1.0, share):.1f}%"


def _joined(parts: Sequence[str], width: int) -> list[str]:
    """Parts with commas between them in lines of at most ``width`` columns; a longer part is wrapped."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f", {part}"
        else:
            lines += textwrap.wrap(part, max(1, width)) or [""]
    return lines


def sizes_of(recording: Recording) -> Sizes:
    """The sizes of all that a recording, which has snapshots, is about."""
    course = course_of(recording)
    total = max(1.0, float(course.weights.sum()))
    monitored, hot, working_set, unknown = (
        int(np.rint((values * course.weights).sum() / total))
        for values in (course.monitored, course.hot, course.accessed, course.unknown)
    )
    idle = idle_view(evolve(recording, names=None)).facts
    return Sizes(monitored, hot, working_set, next((size for key, _, _, size in idle if key == _IDLE), None), unknown)


#: The column of the view ``idle``.
_IDLE: Final = f"idle_{IDLE_S}s_bytes"


def names_table(recording: Recording) -> Table:
    """A row for each name of a recording that has snapshots."""
    (where,), (idle,) = where_view(recording).tables, idle_view(recording).tables
    idle_of = {row["name"]: row.get(_IDLE) for row in idle.records()}
    known = any(column.key == _IDLE for column in idle.columns)
    rows = tuple(
        (
            row["bytes"],
            row["hot_bytes"],
            row["hot_bytes"] + row["warm_bytes"],
            # Memory that is not mapped any more is none.
            idle_of.get(row["name"], 0) if known else None,
            row["unknown_bytes"],
            row["name"],
        )
        for row in where.records()
    )
    return Table("names", _NAMES, rows, "names", Order.RANK)


def processes_table(processes: Sequence[Process]) -> Table:
    """A row for each process."""
    rows = []
    for process in processes:
        sizes = process.sizes
        values = (
            (None,) * 5 if sizes is None else (sizes.monitored, sizes.hot, sizes.working_set, sizes.idle, sizes.unknown)
        )
        rows.append((process.pid, *values, f"{process.name} (ended)" if process.ended else process.name))
    return Table("processes", _PROCESSES, tuple(rows), "processes", Order.RANK)


def arranged(table: Table, order: str, text: str = "") -> Table:
    """The table with its largest rows first, and only those with ``text``, in any case, in what they name.

    :param order: key of the column to sort by.
    """
    keys = [column.key for column in table.columns]
    by = keys.index(order)
    named = [place for place, column in enumerate(table.columns) if column.kind is Kind.TEXT or column.key == "pid"]
    wanted = text.casefold()
    rows = [row for row in table.rows if any(wanted in visible(str(row[place])).casefold() for place in named)]
    # Rows that are equal keep their places.
    rows.sort(key=lambda row: -1 if row[by] is None else row[by], reverse=True)
    return evolve(table, rows=tuple(rows))


@frozen
class Fitted:
    """A table as text.

    :ivar titles: of the columns.
    :ivar widths: of the columns, cells of a terminal.
    :ivar sorted_by: place of the column that the rows are sorted by; None: it is left out.
    :ivar rows: the cells of each row, as wide as their columns.
    :ivar keys: what identifies each row.
    :ivar more: a line about the rows that are left out.
    """

    titles: tuple[str, ...]
    widths: tuple[int, ...]
    sorted_by: int | None
    rows: list[tuple[str, ...]]
    keys: list[str]
    more: str = field(default="")


def fitted(table: Table, order: str, width: int, between: int = 2) -> Fitted:
    """A table in ``width`` columns of a terminal; the name is last and takes what the numbers leave.

    :param order: key of the column that it is sorted by.
    :param between: columns of a terminal beside each column of the table.
    """
    rows = table.rows[:MOST_ROWS]
    shown = [place for place, column in enumerate(table.columns) if not column.hidden]
    texts = {place: [_text(row[place], table.columns[place].kind) for row in rows] for place in shown}
    sizes = {
        place: max([len(table.columns[place].title), _usual(table.columns[place].kind), *map(len, texts[place])])
        for place in shown
    }
    # Texts are last: a long one does not move numbers.
    shown.sort(key=lambda place: table.columns[place].kind is Kind.TEXT)
    left_out = list(_LEFT_OUT)
    while (room := _room(table, shown, sizes, width, between)) < _LEAST_NAME and left_out:
        key = left_out.pop(0)
        shown = [place for place in shown if table.columns[place].key != key or key == order]
    last = shown[-1]
    # Names of threads are short.
    for place in shown:
        if table.columns[place].kind is Kind.TEXT:
            sizes[place] = max(4, room) if place == last else min(sizes[place], _THREAD_NAME)
    cells = [
        tuple(
            shortened(texts[place][number], sizes[place])
            if table.columns[place].kind is Kind.TEXT
            else f"{texts[place][number]:>{sizes[place]}}"
            for place in shown
        )
        for number in range(len(rows))
    ]
    titles = tuple(
        table.columns[place].title
        if table.columns[place].kind is Kind.TEXT
        else f"{table.columns[place].title:>{sizes[place]}}"
        for place in shown
    )
    keys = [row_key(table, row) for row in rows]
    by = next((at for at, place in enumerate(shown) if table.columns[place].key == order), None)
    left = len(table.rows) - len(rows)
    more = f"and {left} more {table.more}" if left else ""
    return Fitted(titles, tuple(sizes[place] for place in shown), by, cells, keys, more)


#: Columns of the name of a thread, which has 15 bytes.
_THREAD_NAME: Final = 15


def _usual(kind: Kind) -> int:
    """Columns of most values: a table that does not change its shape each second is easier to read."""
    return {Kind.BYTES: 10, Kind.SHARE: 6}.get(kind, 0)


def _room(table: Table, shown: Sequence[int], sizes: dict[int, int], width: int, between: int) -> int:
    """What the others leave for the last column, the name."""
    others = [min(sizes[place], _THREAD_NAME) for place in shown[:-1]]
    return width - sum(others) - between * len(shown)


def _text(value: Any, kind: Kind) -> str:
    return "-" if value is None and kind is not Kind.TEXT else cell_text("" if value is None else value, kind)


def row_key(table: Table, row: tuple[Any, ...]) -> str:
    """What identifies a row while its numbers change: its process, thread or CPU, and its name."""
    named = ("pid", "thread", "cpu", "name")
    return "\0".join(str(value) for column, value in zip(table.columns, row, strict=True) if column.key in named)
