# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon report``: show what a record holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Final

import kdamon
from kdamon_tools.commands.common import check_files, refused
from kdamon_tools.damo_record import is_damo_record, part_of, read_damo_record
from kdamon_tools.defaults import BY
from kdamon_tools.errors import CommandError
from kdamon_tools.output.pager import page, pager
from kdamon_tools.output.progress import Progress
from kdamon_tools.output.readable import readable
from kdamon_tools.output.result import ResultFile
from kdamon_tools.output.terminal import terminal_size, use_colour
from kdamon_tools.pictures.page import render_page
from kdamon_tools.pictures.png import render_png
from kdamon_tools.pictures.scene import scene_of
from kdamon_tools.pictures.svg import render_svg
from kdamon_tools.privileges import capabilities_for, keep_only
from kdamon_tools.recorded.recording import recording_of
from kdamon_tools.recorded.selection import select
from kdamon_tools.reporters.heat import render_heat_csv, render_heat_json
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.reporters.views import render_csv, render_fitting, render_report_json
from kdamon_tools.snapshot import Recording
from kdamon_tools.views import report_of
from kdamon_tools.views.heat import heat_of

__all__ = ["run"]

#: Ends of file names, with the form of the result; other files hold text.
_PICTURES: Final = (".html", ".svg", ".png")
_CSV: Final = ".csv"


def run(arguments: argparse.Namespace) -> int:
    """Show a view, and return 0."""
    form = "" if arguments.output is None else arguments.output.suffix.lower()
    _check(arguments, form)
    name = readable(str(arguments.file))
    with ExitStack() as stack:
        with refused("--output"):
            result = stack.enter_context(ResultFile(arguments.output))
        progress = Progress()
        # What is printed begins where the progress was.
        stack.callback(progress.clear)
        recording, seconds, sentence = _read(arguments, name, progress)
        if not recording.snapshots:
            raise CommandError(f"{name}: {_why_nothing(arguments, seconds)}")
        if (by := BY.get(arguments.view)) is not None and recording.config.by != by:
            raise CommandError(f"{name}: the record does not say which {by} it was: use kdamon record --by {by}")
        progress.show_last(f"{name} is read, the result follows")
        write = _made(recording, form, result, arguments)
        progress.clear()
        if sentence:
            print(f"kdamon: {name}: {sentence}", file=sys.stderr)
        write()
    return 0


def _read(arguments: argparse.Namespace, name: str, progress: Progress) -> tuple[Recording, float, str]:
    """What the file holds, for how long it was monitored, and a sentence for the user; empty without."""
    if is_damo_record(arguments.file):
        whole, sentence = read_damo_record(arguments.file)
        keep_only(*capabilities_for(arguments.output))
        return part_of(whole, arguments.time, arguments.ranges), whole.seconds, sentence
    with kdamon.open(arguments.file) as record:
        keep_only(*capabilities_for(arguments.output))
        chosen = select(record, arguments.time, arguments.ranges, lambda done: progress.show_share(done, name))
        recording = recording_of(chosen)
        run = record.run
    return recording, run.seconds, "" if run.complete else "the record has no end; it may be in progress"


def _check(arguments: argparse.Namespace, form: str) -> None:
    """Reject contradictory options.

    :raises CommandError: with the exit status 2.
    """
    check_files(("FILE", arguments.file), ("--output", arguments.output))
    view = arguments.view or ("heatmap" if form in _PICTURES else "summary")
    if form in _PICTURES and view != "heatmap":
        raise CommandError(f"a {form} file holds the heatmap: leave {view} out, or name a .csv or text file", 2)
    if form in _PICTURES and (arguments.json or arguments.raw):
        raise CommandError(f"a {form} file is a picture: leave --json and --raw out", 2)
    if form == _CSV and arguments.json:
        raise CommandError("a .csv file is a table: leave --json out", 2)
    if arguments.at is not None and view != "regions":
        raise CommandError("--at is a time of the view regions: name it, or use --time", 2)
    if arguments.at is not None and arguments.time is not None:
        raise CommandError("--at is a time of the whole record: leave --time out", 2)
    arguments.view = view


def _why_nothing(arguments: argparse.Namespace, seconds: float) -> str:
    if arguments.time is None:
        return "the record holds no snapshot: no aggregation interval ended"
    return f"the record holds no snapshot in --time; it ends at {seconds:.1f} s"


def _nothing_to_draw(recording: Recording) -> bool:
    return not any(len(snapshot.regions) for snapshot in recording.snapshots)


def _made(recording: Recording, form: str, result: ResultFile, arguments: argparse.Namespace) -> Callable[[], None]:
    """Make the result, and return what writes it."""
    if form in _PICTURES:
        return _picture(recording, form, result)
    if form == _CSV or arguments.json:
        render = _data(recording, form, arguments)
        return lambda: result.write(render)
    return _text(recording, result, arguments)


def _picture(recording: Recording, form: str, result: ResultFile) -> Callable[[], None]:
    if _nothing_to_draw(recording):
        raise CommandError("there is nothing to draw: the record has no regions there")
    if form == ".html":
        text = render_page(recording)
        return lambda: result.write(lambda: [text])
    scene = scene_of(recording)
    if form == ".svg":
        return lambda: result.write(lambda: render_svg(scene))
    picture = render_png(scene)

    def write() -> None:
        result.append_bytes(picture)
        result.commit()

    return write


def _data(recording: Recording, form: str, arguments: argparse.Namespace) -> Callable[[], Iterable[str]]:
    """CSV or JSON, in parts."""
    if arguments.view == "heatmap":
        heat = heat_of(recording)
        return lambda: render_heat_csv(heat) if form == _CSV else [*render_heat_json(heat, recording.origin), "\n"]
    report = report_of(arguments.view, recording, arguments.at)
    return lambda: [render_csv(report)] if form == _CSV else [render_report_json(report, recording.origin), "\n"]


def _text(recording: Recording, result: ResultFile, arguments: argparse.Namespace) -> Callable[[], None]:
    """Text, in a pager where there is no room for it."""
    words = pager(arguments.output)
    width, height = terminal_size()
    if arguments.view == "heatmap":
        colour = use_colour(arguments.color, result)
        text = render_heatmap(recording, width=width, height=max(20, height - 8), colour=colour)
    else:
        report = report_of(arguments.view, recording, arguments.at)
        shape = (width, height) if result.isatty() else (None, None)
        text = render_fitting(report, *shape, all_names=bool(words), raw=arguments.raw)

    def write() -> None:
        if not page(f"{text}\n", words):
            result.write(lambda: [text, "\n"])

    return write
