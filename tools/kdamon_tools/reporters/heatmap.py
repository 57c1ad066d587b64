# SPDX-License-Identifier: GPL-2.0-only
"""The heatmap, address x time, as text: how often memory was accessed, and when."""

from __future__ import annotations

import itertools
import textwrap
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import F64Array, U64Array
from kdamon.names.table import NameTable
from kdamon_tools.reporters.areas import Profile, choose_areas, line_size, monitored_ranges, profile_of, rests_of
from kdamon_tools.reporters.names import fitting
from kdamon_tools.reporters.shades import ABSENT, LEVELS, UNKNOWN, legend, level_of, paint
from kdamon_tools.snapshot import Config, Range, Recording, Snapshot
from kdamon_tools.units import format_bytes, format_seconds

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
) -> str:
    """The recording as a picture: a line is a range of addresses, a column a span of time.

    All hot memory is drawn if there are enough lines; the rest is left out, and a text gives its size and its hottest
    share. All address ranges that the user selected are drawn, each with at least one line.

    :param width: maximum columns of a line, at least 28.
    :param height: maximum lines of addresses, at least 4; up to half as many more may describe memory not drawn.
    :param areas: what to draw, as :func:`areas_of` chose it for another recording.
    """
    snapshots = recording.snapshots
    if not any(len(snapshot.regions) for snapshot in snapshots):
        return f"nothing to draw: {_why_nothing(recording)}"
    config = recording.config
    room = _Room.of(recording, width)
    columns = _columns(recording, max(_LEAST_COLUMNS, width - room.label - room.name))
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
    cells = iter(_cells(columns, np.array(list(itertools.chain(*spans)), np.uint64), config))
    named = iter(_names(recording.names if room.name else None, list(itertools.chain(*spans)), room.name - 2))
    for place, of_range in enumerate(spans):
        lines += _rest_lines(rests[place], width, apart and place > 0, room.label)
        for start, _ in of_range:
            line = f"{start:{room.label - 2}x}  {paint(next(cells), colour)}"
            lines.append(f"{line}  {name}" if (name := next(named)) else line.rstrip())
    lines += _rest_lines(rests[-1], width, False, room.label)
    lines.append(" " * room.label + _time_axis(recording.seconds, len(columns)))
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
    total = sum(snapshot.merged for snapshot in recording.snapshots)
    return choose_areas(profile, total, recording.config, height)


def _columns(recording: Recording, room: int) -> list[list[Snapshot]]:
    """For each column the snapshots whose middle it contains, else the one that contains the column's middle, if any.

    The number of columns is that of snapshots without pauses, if there is room for them.
    """
    snapshots = recording.snapshots
    began = np.array([snapshot.began for snapshot in snapshots])
    ended = np.array([snapshot.time for snapshot in snapshots])
    start, end = min(recording.started, began[0]), max(recording.ended, ended[-1])
    usual = max(float(np.median(ended - began)), (end - start) / room)
    count = max(1, round((end - start) / usual)) if usual else 1
    edges = np.linspace(start, end, count + 1)
    columns: list[list[Snapshot]] = [[] for _ in range(count)]
    for snapshot, column in zip(
        snapshots, np.searchsorted(edges[1:-1], (began + ended) / 2, side="right"), strict=True
    ):
        columns[column].append(snapshot)
    for column, middle in enumerate((edges[:-1] + edges[1:]) / 2):
        around = int(np.searchsorted(ended, middle))
        if not columns[column] and around < len(snapshots) and began[around] <= middle:
            columns[column] = [snapshots[around]]
    return columns


def _cells(columns: list[list[Snapshot]], lines: U64Array, config: Config) -> list[str]:
    """One string for each of ``lines`` (start and end, shape (n, 2)), one character for each column.

    A line is as hot as its hottest part, averaged over the column's snapshots.
    """
    levels = np.full((len(lines), len(columns)), ABSENT)
    for column, snapshots in enumerate(columns):
        sums = np.zeros((4, len(lines)))
        for snapshot in snapshots:
            if len(snapshot.regions):
                sums += snapshot.merged * _measure(snapshot, lines, config)
        covered, unknown, hottest, known = sums
        shares = hottest / np.maximum(known, 1)
        for line in np.flatnonzero(covered > 0):
            level = level_of(shares[line])
            levels[line, column] = UNKNOWN if level == LEVELS[0] and unknown[line] > 0.5 * covered[line] else level
    return ["".join(line) for line in levels]


def _measure(snapshot: Snapshot, lines: U64Array, config: Config) -> F64Array:
    """The values of ``snapshot``, which has regions, for each of ``lines``, shape (4, n).

    Rows: covered bytes; mostly unknown bytes; the share, 0 to 1, of sampling intervals in which the hottest known
    region was accessed; and 1 where there is a known region.
    """
    regions = snapshot.regions
    known = regions["nr_unknown"] <= 0.5 * config.max_nr_accesses
    shares = np.append(np.where(known, np.minimum(1.0, regions["nr_accesses"] / config.max_nr_accesses), -1.0), -1.0)
    # The regions of each line, first and end (exclusive); one more region makes every end an index.
    first = np.searchsorted(regions["end"], lines[:, 0], side="right")
    end = np.searchsorted(regions["start"], lines[:, 1], side="left")
    hottest = np.maximum.reduceat(shares, np.stack([first, end], axis=1).ravel())[::2]
    sampled = (first < end) & (hottest >= 0)
    covered = _bytes_in(snapshot, lines, np.ones(len(regions)))
    unknown = _bytes_in(snapshot, lines, (~known).astype(np.float64))
    return np.stack([covered, unknown, np.where(sampled, hottest, 0.0), sampled.astype(np.float64)])


def _bytes_in(snapshot: Snapshot, lines: U64Array, factors: F64Array) -> F64Array:
    """Bytes of the regions of ``snapshot`` in each of ``lines``, each times its region's factor, shape (n,)."""
    regions = snapshot.regions
    # Relative to the first line: addresses near 2**64 leave a double no room for pages.
    base = lines[0, 0]
    points = np.empty(2 * len(regions))
    points[0::2] = (regions["start"] - base).view(np.int64)
    points[1::2] = (regions["end"] - base).view(np.int64)
    sums = np.cumsum(snapshot.sizes * factors)
    integral = np.empty(2 * len(regions))
    integral[0], integral[1::2], integral[2::2] = 0, sums, sums[:-1]
    at_edges = np.interp((lines - base).astype(np.float64), points, integral)
    return at_edges[:, 1] - at_edges[:, 0]


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


def _time_axis(seconds: float, columns: int) -> str:
    """Times below the columns: the start, the end, and the middle where there is room."""
    end = format_seconds(seconds)
    axis = list(" " * max(columns, len(end) + 4))
    axis[:3] = "0 s"
    if columns >= 30:
        middle = format_seconds(seconds / 2)
        axis[columns // 2 : columns // 2 + len(middle)] = middle
    axis[len(axis) - len(end) :] = end
    return "".join(axis)
