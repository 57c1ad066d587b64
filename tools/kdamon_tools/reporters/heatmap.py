# SPDX-License-Identifier: GPL-2.0-only
"""The heatmap, address x time, as text: how often memory was accessed, and when."""

from __future__ import annotations

import itertools
import textwrap
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import U64Array
from kdamon.names.table import NameTable
from kdamon_tools.reporters.areas import choose_areas, line_size, monitored_ranges, rests_of
from kdamon_tools.reporters.names import fitting
from kdamon_tools.reporters.shades import ABSENT, UNKNOWN, legend, level_of, paint
from kdamon_tools.snapshot import Config, Range, Recording, Snapshot
from kdamon_tools.units import format_bytes, format_seconds
from kdamon_tools.views.grid import columns_of, grid_of
from kdamon_tools.views.measures import weight_of
from kdamon_tools.views.profile import Profile, profile_of

__all__ = ["areas_of", "render_heatmap"]

_LABEL: Final = 18
#: The same beside names, for which an address of a process leaves room; and the columns of the names.
_NARROW_LABEL: Final = 14
_LEAST_NAME: Final = 20
_MOST_NAME: Final = 40
#: A picture that is narrower has no names.
_LEAST_FOR_NAMES: Final = 56
_LEAST_COLUMNS: Final = 10
_LEAST_LINES: Final = 4


def _why_nothing(recording: Recording) -> str:
    if recording.snapshots:
        return "the process has no memory of its own"
    config = recording.config
    if recording.seconds * 1e6 < config.aggr_us:
        return "the run was shorter than an aggregation interval"
    return (
        f"no aggregation interval ended, {recording.counters.missed_intervals} sampling intervals were missed; "
        "use a longer --sample-us and --aggr-us"
    )


def render_heatmap(
    recording: Recording,
    *,
    width: int = 80,
    height: int = 24,
    colour: bool = False,
    show_legend: bool = True,
    areas: list[Range] | None = None,
    until_now: bool = False,
) -> str:
    """The recording as a picture: a line is a range of addresses, a column a span of time.

    All hot memory is drawn if there are enough lines; the rest is left out, and a text gives its size and its hottest
    share. All address ranges that the user selected are drawn, each with at least one line.

    :param width: maximum columns of a line, at least 28.
    :param height: maximum lines of addresses, at least 4; up to half as many more may describe memory not drawn.
    :param areas: what to draw, as :func:`areas_of` chose it for another recording.
    :param until_now: monitoring goes on, so that times are counted back from now.
    """
    snapshots = recording.snapshots
    if not any(len(snapshot.regions) for snapshot in snapshots):
        return f"nothing to draw: {_why_nothing(recording)}"
    config = recording.config
    room = _Room.of(recording, width)
    columns = columns_of(recording, max(_LEAST_COLUMNS, width - room.label - room.name))
    profile = profile_of(snapshots, config)
    height = max(_LEAST_LINES, height)
    ranges = _choose(recording, profile, height) if areas is None else areas
    # Only a picture of few ranges has lines between them; otherwise the labels show where the next one begins.
    apart = 2 * len(ranges) + 1 <= height
    line_bytes = line_size(ranges, height)
    rests = rests_of(profile, ranges, config, together=not apart)
    heading = f"a line is {format_bytes(line_bytes)}, a column {format_seconds(recording.seconds / len(columns))}"
    labelled = f"{'address':>{room.label - 2}}  {heading}"
    lines = [labelled] if len(labelled) <= width else textwrap.wrap(heading, width)
    spans = [[(edge, min(edge + line_bytes, end)) for edge in range(start, end, line_bytes)] for start, end in ranges]
    cells = iter(_cells(columns.snapshots, np.array(list(itertools.chain(*spans)), np.uint64), config))
    named = iter(_names(recording.names if room.name else None, list(itertools.chain(*spans)), room.name - 2))
    for place, of_range in enumerate(spans):
        lines += _rest_lines(rests[place], width, apart and place > 0, room.label)
        for start, _ in of_range:
            line = f"{start:{room.label - 2}x}  {paint(next(cells), colour)}"
            lines.append(f"{line}  {name}" if (name := next(named)) else line.rstrip())
    lines += _rest_lines(rests[-1], width, False, room.label)
    lines.append(" " * room.label + _time_axis(recording.seconds, len(columns), until_now))
    if show_legend:
        lines += legend(colour, width)
    return "\n".join(lines)


@frozen
class _Room:
    """Columns of a picture.

    :ivar label: of the addresses, with the blanks beside them.
    :ivar name: of the names, likewise; 0: there are none.
    """

    label: int = _LABEL
    name: int = 0

    @classmethod
    def of(cls, recording: Recording, width: int) -> _Room:
        """The columns of a picture that is ``width`` wide."""
        if recording.names is None or width < _LEAST_FOR_NAMES:
            return cls()
        highest = max(int(snapshot.regions["end"].max(initial=0)) for snapshot in recording.snapshots)
        return cls(max(_NARROW_LABEL, len(f"{highest:x}") + 2), min(max(width // 4, _LEAST_NAME), _MOST_NAME) + 2)


def _names(names: NameTable | None, lines: list[Range], width: int) -> list[str]:
    """What lies at each of ``lines``, in ``width`` columns; ``"`` stands for the name of the line above."""
    if names is None:
        return [""] * len(lines)
    shown = [fitting(parts, width) for parts in names.parts_of(lines)]
    return ['"' if name and before == name else name for before, name in zip(["", *shown], shown, strict=False)]


def areas_of(recording: Recording, height: int) -> list[Range]:
    """The addresses that :func:`render_heatmap` draws of a recording that has regions."""
    return _choose(recording, profile_of(recording.snapshots, recording.config), max(_LEAST_LINES, height))


def _choose(recording: Recording, profile: Profile, height: int) -> list[Range]:
    if recording.config.ranges:
        # Selected addresses are all drawn, and at the same place in all pictures.
        return monitored_ranges(profile)
    total = sum(weight_of(snapshot, recording.config) for snapshot in recording.snapshots)
    return choose_areas(profile, total, recording.config, height)


def _cells(columns: list[list[Snapshot]], lines: U64Array, config: Config) -> list[str]:
    """One string for each of ``lines`` (start and end, shape (n, 2)), one character for each column.

    A line is as hot as its hottest part, averaged over the column's snapshots.
    """
    grid = grid_of(columns, lines, config)
    absent, unknown = grid.absent.tolist(), grid.mostly_unknown.tolist()
    return [
        "".join(
            ABSENT if absent[line][column] else UNKNOWN if unknown[line][column] else level_of(share)
            for column, share in enumerate(shares)
        )
        for line, shares in enumerate(grid.shares.tolist())
    ]


def _rest_lines(rest: str, width: int, separates: bool, label: int) -> list[str]:
    """Lines for memory that is not drawn here; without any, a mark if the place ``separates`` two ranges.

    :param label: columns of the addresses.
    """
    mark = f"{'...':>{label - 2}}  "
    if not rest:
        return [mark.rstrip()] if separates else []
    text = f"not drawn: {rest}"
    if len(mark) + len(text) <= width:
        return [mark + text]
    return textwrap.wrap(text, max(20, width), initial_indent="... ", subsequent_indent="    ")


def _time_axis(seconds: float, columns: int, until_now: bool = False) -> str:
    """Times below the columns: the start, the end, and the middle where there is room."""
    start, end = ("0 s", format_seconds(seconds)) if not until_now else (f"-{format_seconds(seconds)}", "now")
    axis = list(" " * max(columns, len(start) + len(end) + 1))
    axis[: len(start)] = start
    if columns >= 30:
        middle = f"{'-' if until_now else ''}{format_seconds(seconds / 2)}"
        axis[columns // 2 : columns // 2 + len(middle)] = middle
    axis[len(axis) - len(end) :] = end
    return "".join(axis)
