# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon replay``: monitor with recorded reports, and show which memory was accessed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from attrs import evolve

from kdamon_tools.commands.common import (
    FILTERS,
    REGIONS,
    STDOUT,
    check_files,
    check_monitoring,
    intervals_of,
    refused,
)
from kdamon_tools.errors import CommandError
from kdamon_tools.output.progress import Progress
from kdamon_tools.output.readable import readable
from kdamon_tools.output.result import ResultFile
from kdamon_tools.output.terminal import terminal_size, use_colour
from kdamon_tools.privileges import capabilities_for, keep_only
from kdamon_tools.report_files.report_file import open_reports
from kdamon_tools.reporters.json_object import REPLAY, render_json
from kdamon_tools.reporters.whole import render_parts
from kdamon_tools.snapshot import Config, Range, Recording
from kdamon_tools.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from kdamon_tools.report_files.records import TextNotes
    from kdamon_tools.report_files.stored_records import RecordSource

__all__ = ["run"]

#: Maximum number of processes to draw heatmaps of; JSON has all.
_MOST_PICTURES: Final = 8
#: Number of reports to examine for whether a recording holds faults.
_FIRST_REPORTS: Final = 1 << 16


def run(arguments: argparse.Namespace) -> int:
    """Replay, show the result, and return 0."""
    from kdamon_tools.replayer import Replay, Tape  # noqa: PLC0415 (not before the command line made sense)

    check_monitoring(_config(arguments, 0, arguments.ranges))
    output = ("--output", arguments.output) if arguments.output is not None else ("standard output", STDOUT)
    check_files(("FILE", None if str(arguments.file) == "-" else arguments.file), output)
    name = "standard input" if str(arguments.file) == "-" else readable(str(arguments.file))
    progress = _Progress(name)
    with ExitStack() as stack:
        with refused("--output"):
            result = stack.enter_context(ResultFile(arguments.output))
        records, notes = stack.enter_context(
            open_reports(
                arguments.file,
                arguments.format,
                pid=arguments.pid,
                rate=arguments.rate,
                instructions=arguments.instructions,
                progress=progress.reading,
                opened=partial(keep_only, *capabilities_for(arguments.output)),
            )
        )
        progress.clear()
        for sentence in _about_lines(notes):
            print(f"kdamon: {name}: {sentence}", file=sys.stderr)
        if not len(records):
            raise CommandError(f"{name}: the file contains no reports" + (f": {notes.cut}" if notes.cut else ""))
        tape = Tape(records)
        configs, left_out = _configs(arguments, records, name)
        if left_out:
            print(f"kdamon: {name}: {left_out}", file=sys.stderr)
        replay = Replay(tape, configs, arguments.seed, progress.replaying)
        progress.restart()
        try:
            recordings = replay.in_real_time() if arguments.realtime else replay.in_simulated_time()
        finally:
            progress.clear()
        remarks = tuple(filter(None, (left_out, _about_faults(records, notes))))
        recordings = [evolve(recording, remarks=(*recording.remarks, *remarks)) for recording in recordings]
        result.write(lambda: _rendered(recordings, result, arguments))
        if notes.cut:
            raise CommandError(f"{name}: truncated: {notes.cut}; the result covers the remaining part")
    return 0


def _config(arguments: argparse.Namespace, pid: int, ranges: Sequence[Range]) -> Config:
    options = {option: getattr(arguments, option) for option in (*REGIONS, *FILTERS)} | intervals_of(arguments)
    return Config(pid=pid, ops="reports", primitive="", ranges=tuple(ranges), **options)


def _configs(arguments: argparse.Namespace, records: RecordSource, name: str) -> tuple[list[Config], str]:
    """The monitoring request of each process, and a sentence about processes left out; empty if there are none."""
    from kdamon_tools.replayer import MOST_PROCESSES, processes_of, ranges_of  # noqa: PLC0415

    found = processes_of(records)
    pids = found[:MOST_PROCESSES].tolist() if arguments.pid is None else [arguments.pid]
    if arguments.pid is not None and arguments.pid not in found:
        others = ", ".join(map(str, found[:10].tolist())) + (" and others" if len(found) > 10 else "")
        raise CommandError(f"{name}: no report is about process {arguments.pid}; there are reports about {others}")
    left_out = ""
    if len(pids) < len(found) and arguments.pid is None:
        left_out = f"{len(found)} processes have reports; only the {len(pids)} with most are monitored: use --pid PID"
    ranges = dict.fromkeys(pids, arguments.ranges) if arguments.ranges else ranges_of(records, pids)
    if not ranges:
        raise CommandError(f"{name}: all addresses are kernel addresses; select memory with --range")
    return [_config(arguments, pid, areas) for pid, areas in ranges.items()], left_out


def _about_lines(notes: TextNotes) -> list[str]:
    """Sentences for the user about the lines of a text file."""
    left_out = {
        "lines that could not be parsed": notes.unparsable,
        "samples without a data address": notes.without_address,
    }
    sentences = [f"left out: {number} {what}" for what, number in left_out.items() if number]
    if notes.without_operation:
        sentences.append(f"counted as reads: {notes.without_operation} accesses that may have been writes")
    if notes.without_process:
        sentences.append(
            f"process unknown: {notes.without_process} accesses name the thread only, whose ID is used unless --pid is "
            "given; perf script -F comm,pid,tid,cpu,time,event,addr,data_src prints both"
        )
    if notes.remote:
        sentences.append(f"not kept: {notes.remote} accesses were served by another NUMA node")
    return sentences


def _about_faults(records: RecordSource, notes: TextNotes) -> str:
    """A sentence on why a replay of faults differs from the live run; empty for a file without faults.

    A fault names its thread and its CPU and is one access of one byte; no field of a report identifies it as a fault.
    """
    if not notes.recording:
        return ""
    first = records[:_FIRST_REPORTS]
    faults = (first["tid"] > 0) & (first["cpu"] >= 0) & (first["size"] == 1)
    if not faults.any():
        return ""
    return (
        "a file of reports holds no regions, so replay splits memory anew; if these reports are faults (--primitive "
        "page_fault, --write-only, --by and the like), each is about the one page that the live run sampled of a "
        "region, and less memory shows as accessed here than in the live run"
    )


class _Progress(Progress):
    """The progress of a replay of a file."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def reading(self, done: int, size: int) -> None:
        """Show the number of bytes read from a file."""
        if size:
            self.show_share(done / size, f"reading {self._name}")
        else:
            self.show(lambda: f"read {format_bytes(done)}: {self._name}")

    def replaying(self, done: int, duration: int) -> None:
        """Show the replayed time, nanoseconds."""
        self.show(
            lambda: (
                f"{format_seconds(done / 1e9)} of {format_seconds(duration / 1e9)} replayed"
                f"{self.left(done / duration if duration else 1.0)}"
            )
        )


def _rendered(recordings: Sequence[Recording], result: ResultFile, arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.json:
        for recording in recordings:
            yield from render_json(recording, schema=REPLAY)
            yield "\n"
        return
    width, height = terminal_size()
    parts = []
    for recording in recordings[:_MOST_PICTURES]:
        colour = use_colour(arguments.color, result)
        parts += render_parts(recording, width=width, height=max(20, height - 16), colour=colour)
    if len(recordings) > _MOST_PICTURES:
        rest = len(recordings) - _MOST_PICTURES
        parts.append(f"and {rest} processes with fewer reports: --pid shows one of them, --json all monitored ones")
    yield "\n\n".join(parts) + "\n"
