# SPDX-License-Identifier: GPL-2.0-only
"""A view as text, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kdamon_tools.origin import Origin, origin_fields
from kdamon_tools.output.readable import cell_of, json_text
from kdamon_tools.output.terminal import cut
from kdamon_tools.reporters.names import shortened, visible
from kdamon_tools.snapshot import Recording
from kdamon_tools.units import format_bytes, format_seconds
from kdamon_tools.views import report_of
from kdamon_tools.views.table import Column, Kind, Order, Report, Table, number_or_none

__all__ = ["REPORT", "cell_text", "render_csv", "render_fitting", "render_report", "render_report_json", "render_view"]

#: Name and version of the schema.
REPORT: Final = "kdamon.report/1"
_UNKNOWN: Final = "unknown"
#: A change from nothing, which has no share.
_NEW: Final = "new"
#: Columns of a figure; of a name, at least.
_CELL: Final = 11
_LEAST_NAME: Final = 16
#: Rows of the tables of a view together, where there is no terminal.
_MOST_ROWS: Final = 40


def cell_text(value: Any, kind: Kind, raw: bool = False) -> str:
    """A value as text: one line, whatever a name contains."""
    if value is None:
        return _UNKNOWN
    if number_or_none(value) is None:
        return _NEW
    if kind is Kind.TEXT:
        return visible(str(value))
    if kind is Kind.ADDRESS:
        return f"{value:x}"
    if raw or kind is Kind.COUNT:
        return str(value)
    if kind is Kind.BYTES:
        return format_bytes(value)
    return format_seconds(value) if kind is Kind.SECONDS else f"{100 * value:z.1f}%"


def render_report(
    report: Report,
    *,
    width: int | None = None,
    height: int | None = None,
    all_names: bool = False,
    raw: bool = False,
) -> str:
    """Figures, tables and notes.

    :param width: maximum columns of a line; None: names are whole.
    :param height: maximum rows of a table that has ranks or a course of time, at least 2; None: all.
    :param all_names: all rows of a table that has ranks, whatever the height.
    :param raw: numbers as in JSON, instead of with units.
    """
    sentences = width or 80
    width = width or 1 << 16
    parts = []
    if report.facts:
        titles = max(len(title) for _, title, _, _ in report.facts)
        lines = [
            f"{title:<{titles}}  {cell_text(value, kind, raw):>{_CELL if kind is not Kind.TEXT else 0}}"
            + (f"  {report.beside[key]}" if key in report.beside and not raw else "")
            for key, title, kind, value in report.facts
            if title and (value is not None or kind is not Kind.TEXT)
        ]
        parts += ["\n".join(cut(line, width) for line in lines)] if lines else []
    for table in report.tables:
        rows = None if all_names and table.order is Order.RANK else height
        parts.append(_table(table, width, rows, raw))
    parts += ["\n".join(textwrap.wrap(visible(note), sentences, subsequent_indent="  ")) for note in report.notes]
    return "\n\n".join(parts)


def render_view(view: str, recording: Recording, width: int | None, height: int | None, *, json: bool = False) -> str:
    """A view of a recording that has snapshots, as text for a terminal, or as JSON.

    :param view: as for :func:`kdamon_tools.views.report_of`.
    :param width: columns of the terminal; None: there is none, so that names are whole and tables long.
    :param height: its lines.
    """
    report = report_of(view, recording)
    return render_report_json(report, recording.origin) if json else render_fitting(report, width, height)


def render_fitting(
    report: Report, width: int | None, height: int | None, *, all_names: bool = False, raw: bool = False
) -> str:
    """A view as text for a terminal, see :func:`render_report`.

    :param width: its columns; None: there is none.
    :param height: its lines.
    """
    tables = max(1, len(report.tables))
    rows = (_MOST_ROWS if height is None else height) // tables
    while True:
        text = render_report(report, width=width, height=rows, all_names=all_names, raw=raw)
        # The last line is the prompt's.
        over = 0 if height is None or all_names else text.count("\n") + 2 - height
        if over <= 0 or rows <= 2:
            return text
        rows = max(2, rows - -(-over // tables))


def _table(table: Table, width: int, height: int | None, raw: bool) -> str:
    rows, others, more = _fitting(table, height)
    shown = [(place, column) for place, column in enumerate(table.columns) if not column.hidden]
    texts = {
        place: [column.title, *(cell_text(row[place], column.kind, raw) for row in rows)] for place, column in shown
    }
    sizes = {place: max(map(len, texts[place])) for place, _ in shown}
    # The name is last: it may take the rest of the line, and a long one does not move numbers.
    shown.sort(key=lambda one: one[1].kind is Kind.TEXT)
    room = _room_for_names(shown, sizes, width)
    while room < _LEAST_NAME and (least := max(column.optional for _, column in shown)):
        shown = [(place, column) for place, column in shown if column.optional < least]
        room = _room_for_names(shown, sizes, width)
    room = max(_LEAST_NAME, room)
    if others:
        sums = (
            f"{format_bytes(sum(row[place] or 0 for row in others))} {column.title}"
            for place, column in shown
            if column.kind is Kind.BYTES
        )
        more += f": {', '.join(sums)}"
    lines = []
    for number in range(len(rows) + 1):
        line = "  ".join(_aligned(texts[place][number], column, sizes[place], room) for place, column in shown)
        lines.append(cut(line.rstrip(), width))
    return "\n".join([*lines, *(textwrap.wrap(more, width, subsequent_indent="  ") if more else [])])


def _room_for_names(shown: Sequence[tuple[int, Column]], sizes: Mapping[int, int], width: int) -> int:
    """What the numbers leave of a line."""
    return width - sum(sizes[place] + 2 for place, column in shown if column.kind is not Kind.TEXT)


def _aligned(text: str, column: Column, size: int, room: int) -> str:
    if column.kind is Kind.TEXT:
        return shortened(text, room)
    return f"{text:>{size}}"


def _fitting(table: Table, height: int | None) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], str]:
    """The rows that text has, those that are summed up, and a line about these."""
    rows = list(table.rows)
    if height is None or len(rows) <= height or table.order is Order.ADDRESS:
        return rows, [], ""
    if table.order is Order.TIME:
        chosen = [rows[round(place * (len(rows) - 1) / (height - 1))] for place in range(height)]
        return chosen, [], f"{height} of {len(rows)} {table.more}"
    return rows[:height], rows[height:], f"and {len(rows) - height} more {table.more}"


def render_report_json(report: Report, origin: Origin, schema: str = REPORT) -> str:
    """One object on one line, as docs/schemas has it.

    :param schema: its name and version.
    """
    return json_text(
        {
            **origin_fields(schema, origin),
            "view": report.view,
            **{key: value for key, _, _, value in report.facts},
            **{table.key: table.records() for table in report.tables},
            "notes": list(report.notes),
        }
    )


def render_csv(report: Report) -> str:
    """The last table, the most detailed one, with a heading; or the figures, if there is no table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if report.tables:
        table = report.tables[-1]
        writer.writerow([column.key for column in table.columns])
        writer.writerows([_csv_cell(value) for value in row] for row in table.rows)
    else:
        writer.writerow([key for key, _, _, _ in report.facts])
        writer.writerow([_csv_cell(value) for _, _, _, value in report.facts])
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, str):
        return cell_of(value)
    return "" if number_or_none(value) is None else value
