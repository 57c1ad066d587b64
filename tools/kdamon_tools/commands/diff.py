# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon diff``: compare two records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Final

import kdamon
from kdamon_tools.commands.common import check_files, refused
from kdamon_tools.errors import CommandError
from kdamon_tools.options.diff import Condition
from kdamon_tools.output.pager import page, pager
from kdamon_tools.output.progress import Progress
from kdamon_tools.output.readable import readable
from kdamon_tools.output.result import ResultFile
from kdamon_tools.output.terminal import terminal_size
from kdamon_tools.privileges import capabilities_for, keep_only
from kdamon_tools.recorded.recording import recording_of
from kdamon_tools.recorded.selection import select
from kdamon_tools.reporters.views import render_csv, render_report, render_report_json
from kdamon_tools.snapshot import Recording
from kdamon_tools.units import format_bytes
from kdamon_tools.views.difference import Figure, difference_view, figures_of

__all__ = ["DIFF", "run"]

Span = tuple[float | None, float | None] | None
#: Name and version of the schema.
DIFF: Final = "kdamon.diff/1"
#: The exit status if a condition is met.
_MET: Final = 3
_ROWS: Final = 30


def run(arguments: argparse.Namespace) -> int:
    """Compare, and return 0, or 3 if a condition is met."""
    check_files(("A", arguments.before), ("--output", arguments.output))
    check_files(("B", arguments.after), ("--output", arguments.output))
    csv = arguments.output is not None and arguments.output.suffix.lower() == ".csv"
    if csv and arguments.json:
        raise CommandError("a .csv file is a table: leave --json out", 2)
    with ExitStack() as stack:
        with refused("--output"):
            result = stack.enter_context(ResultFile(arguments.output))
        records = [stack.enter_context(kdamon.open(path)) for path in (arguments.before, arguments.after)]
        keep_only(*capabilities_for(arguments.output))
        progress, names = Progress(), [readable(str(path)) for path in (arguments.before, arguments.after)]
        stack.callback(progress.clear)

        def show(place: int, done: float) -> None:
            progress.show_share((place + done) / 2, names[place])

        before, after = (
            _recording(records[place], names[place], arguments.time, partial(show, place)) for place in (0, 1)
        )
        progress.show_last("both are read, the result follows")
        report = difference_view(before, after)
        words: list[str] = []
        if arguments.json:
            text = render_report_json(report, after.origin, DIFF) + "\n"
        elif csv:
            text = render_csv(report)
        else:
            words = pager(arguments.output)
            width = terminal_size()[0] if result.isatty() else None
            text = render_report(report, width=width, height=_ROWS, all_names=bool(words), raw=arguments.raw) + "\n"
        figures = figures_of(before, after)
        met = [condition for condition in arguments.fail_if if _is_met(condition, figures[condition.figure])]
        progress.clear()
        if not page(text, words):
            result.write(lambda: [text])
        for condition in met:
            print(f"kdamon: {condition.text}: {_change(figures[condition.figure])}", file=sys.stderr)
    return _MET if met else 0


def _recording(record: kdamon.Record, name: str, span: Span, progress: Callable[[float], None]) -> Recording:
    recording = recording_of(select(record, span, (), progress))
    if not recording.snapshots:
        when = "" if span is None else " in --time"
        raise CommandError(f"{name}: the record holds no snapshot{when}: no aggregation interval ended")
    return recording


def _is_met(condition: Condition, figure: Figure) -> bool:
    """Whether the change is beyond the limit.

    :raises CommandError: one of the records does not know the figure.
    """
    change = figure.share if condition.relative else figure.change
    if change is None:
        which = "A" if figure.before is None else "B"
        raise CommandError(f"--fail-if {condition.text!r}: record {which} does not know {condition.figure}")
    return change > condition.limit if condition.above else change < condition.limit


def _change(figure: Figure) -> str:
    return f"{format_bytes(figure.before or 0)} before, {format_bytes(figure.after or 0)} after"
