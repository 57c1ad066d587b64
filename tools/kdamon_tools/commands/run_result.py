# SPDX-License-Identifier: GPL-2.0-only
"""What ``kdamon run`` shows or writes when it has monitored."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from attrs import evolve

from kdamon_tools.errors import CommandError
from kdamon_tools.gathered import Gathered
from kdamon_tools.line_stream import LineStream
from kdamon_tools.output.result import ResultFile
from kdamon_tools.output.terminal import terminal_size, use_colour
from kdamon_tools.reporters.json_object import render_end, render_json
from kdamon_tools.reporters.table import render_summary
from kdamon_tools.reporters.views import render_view
from kdamon_tools.reporters.whole import render_parts
from kdamon_tools.snapshot import Recording
from kdamon_tools.stopping import StopSignals

if TYPE_CHECKING:
    from kdamon_tools.compare import Accuracy
    from kdamon_tools.run_record import RunRecord
    from kdamon_tools.sources import ReportSources

__all__ = ["deliver"]

#: Time limit in seconds for the whole end, for unexpected delays; its parts have their own limits.
_END_S: Final = 60.0
#: Time limit in seconds for the reader to take the waiting lines, and then the last one.
_READER_S: Final = 5.0
_SOURCES_WAIT: Final = "the last reports of producers, or those of --reports-to, did not arrive in time"


def deliver(  # noqa: PLR0917 -- what a run consists of
    recording: Recording,
    gathered: Gathered,
    sources: ReportSources,
    result: ResultFile,
    stop: StopSignals,
    arguments: argparse.Namespace,
) -> None:
    """Close the sources of reports, and show the result with their counters."""
    try:
        if not stop.wait_for(sources.close, _END_S):
            print(f"kdamon: {_SOURCES_WAIT}", file=sys.stderr)
    finally:
        # A failed recording is an error, but no reason to lose the result.
        counters = evolve(recording.counters, producers=sources.producers(), recorded=sources.recorded())
        recording = evolve(recording, counters=counters)
        if gathered.record is not None:
            _finish_record(gathered.record, recording, result, arguments)
        elif gathered.lines is None:
            _show(recording, result, arguments)
        else:
            _finish(gathered.lines, recording, result, stop, arguments)
        stop.let_through()


def _show(recording: Recording, result: ResultFile, arguments: argparse.Namespace) -> None:
    """Write the result; if the truth file is unreadable by now, raise that error afterwards."""
    accuracy, failure = _compared(recording, arguments)
    result.write(lambda: _rendered(recording, accuracy, result, arguments))
    if failure is not None:
        raise failure


def _finish(
    lines: LineStream, recording: Recording, result: ResultFile, stop: StopSignals, arguments: argparse.Namespace
) -> None:
    """Write the last of the lines, as :func:`_show` does a result."""
    accuracy, failure = _compared(recording, arguments)
    end = partial(render_end, recording, accuracy)
    stop.wait_for(lambda: lines.finish(end, _READER_S), 3 * _READER_S)
    if (error := lines.error()) is not None:
        result.keep_part()
        raise error
    if not lines.ended:
        result.keep_part()
        raise CommandError("the last line was not written: the reader of the result does not read")
    if lines.dropped:
        print(
            f"kdamon: {lines.dropped} of {lines.taken} aggregations have no line: the reader was too slow",
            file=sys.stderr,
        )
    result.commit()
    if failure is not None:
        raise failure


def _finish_record(record: RunRecord, recording: Recording, result: ResultFile, arguments: argparse.Namespace) -> None:
    """Write the rest of the record, and show what it holds."""
    failure = None
    try:
        record.finish(recording)
    except OSError as error:
        failure = error
    if not arguments.quiet:
        width, _ = terminal_size()
        result.write(lambda: [render_summary(recording, width=width), "\n", record.sentence(), "\n"])
    if failure is not None:
        raise failure


def _compared(recording: Recording, arguments: argparse.Namespace) -> tuple[Accuracy | None, Exception | None]:
    """The comparison of the recording with the truth, if one is given; and the reason why it failed."""
    if arguments.truth is None:
        return None, None
    from kdamon_tools.compare import compare  # noqa: PLC0415 (most runs have no truth)
    from kdamon_tools.workloads.truth import load_truth  # noqa: PLC0415 (likewise)

    try:
        return compare(recording, load_truth(arguments.truth)), None
    except OSError as error:
        return None, error
    except ValueError as error:
        return None, CommandError(str(error))


def _rendered(
    recording: Recording, accuracy: Accuracy | None, result: ResultFile, arguments: argparse.Namespace
) -> Iterator[str]:
    if arguments.view not in (None, "heatmap") and recording.snapshots:
        shape = terminal_size() if result.isatty() else (None, None)
        yield render_view(arguments.view, recording, *shape, json=bool(arguments.json)) + "\n"
        return
    if arguments.json:
        yield from render_json(recording, accuracy)
        yield "\n"
        return
    width, height = terminal_size()
    colour = use_colour(arguments.color, result)
    parts = render_parts(recording, width=width, height=max(20, height - 16), colour=colour)
    if accuracy is not None:
        from kdamon_tools.reporters.comparison import render_comparison  # noqa: PLC0415 (likewise)

        parts.append(render_comparison(accuracy, recording.started))
    yield "\n\n".join(parts) + "\n"
