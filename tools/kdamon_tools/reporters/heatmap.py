# SPDX-License-Identifier: GPL-2.0-only
"""Address x time as text: what was accessed how often, and when."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from attrs import frozen

from kdamon_tools.reporters.shades import ABSENT, UNKNOWN, legend, level_of, paint
from kdamon_tools.snapshot import Config, Range, Recording, Snapshot
from kdamon_tools.units import format_bytes, format_seconds

__all__ = ["render_heatmap", "worthwhile_ranges"]

_LABEL: Final = 18
#: An address is worth a line if it was accessed in this share of all samples.
_WORTHWHILE: Final = 0.02
#: It is worth one too if it was unknown most of the time, and there for at least this share of the run.
_LONG: Final = 0.1
_PAGE: Final = 4096

Floats = npt.NDArray[np.float64]
Edges = npt.NDArray[np.uint64]


def render_heatmap(
    recording: Recording, *, width: int = 80, height: int = 24, colour: bool = False, show_legend: bool = True
) -> str:
    """The recording as a picture: a line is a range of addresses, a column a span of time.

    Address ranges that were hardly accessed are cut out, and a line says how much; those that were asked for are not.

    :param width: columns that a line may take, at least 40.
    :param height: about how many lines of addresses to draw.
    """
    snapshots = recording.snapshots
    if not any(len(snapshot.regions) for snapshot in snapshots):
        return (
            "nothing to draw: the process has no memory of its own, or the run was shorter than an aggregation interval"
        )
    columns = _columns(recording, max(10, width - _LABEL))
    ranges, monitored = worthwhile_ranges(snapshots, recording.config)
    if recording.config.ranges:
        # Whoever chose the addresses wants to see them, in all pictures at the same place.
        ranges = monitored
    ranges, line_bytes = _fit(ranges, height)
    heading = f"a line is {format_bytes(line_bytes)}, a column {format_seconds(recording.seconds / len(columns))}"
    lines = [f"{'address':>{_LABEL - 2}}  {heading}"[:width]]
    previous_end = 0
    for start, end in ranges:
        lines += _cut_line(monitored, previous_end, start)
        edges = np.append(np.arange(start, end, line_bytes, dtype=np.uint64), np.uint64(end))
        cells = _cells(columns, edges, recording.config)
        for edge, line in zip(edges, cells, strict=False):
            lines.append(f"{int(edge):{_LABEL - 2}x}  {paint(line, colour)}".rstrip())
        previous_end = end
    lines += _cut_line(monitored, previous_end, 1 << 64)
    lines.append(_time_axis(recording.seconds, len(columns)))
    if show_legend:
        lines += legend(colour)
    return "\n".join(lines)


@frozen(eq=False)
class _Profile:
    """What happened at each address over a whole recording: piece i is [edges[i], edges[i + 1])."""

    edges: Edges
    covered: Floats
    accesses: Floats
    unknown: Floats


def _profile(snapshots: list[Snapshot]) -> _Profile:
    """Sum up all snapshots per address, by one sweep over the edges of all regions."""
    tables = [snapshot.regions for snapshot in snapshots]
    weights = np.repeat([float(snapshot.merged) for snapshot in snapshots], [len(table) for table in tables])
    rows = np.concatenate(tables)
    addresses = np.concatenate([rows["start"], rows["end"]])
    edges, index = np.unique(addresses, return_inverse=True)
    sums = []
    for values in (weights, weights * rows["nr_accesses"], weights * rows["nr_unknown"]):
        steps = np.bincount(index, np.concatenate([values, -values]), len(edges))
        sums.append(np.maximum(np.cumsum(steps)[:-1], 0))
    return _Profile(edges, *sums)


def worthwhile_ranges(snapshots: list[Snapshot], config: Config) -> tuple[list[Range], list[Range]]:
    """The address ranges worth showing, and all that were ever monitored; both in address order and disjoint.

    Worth showing is what was accessed, or could not be sampled, during a noticeable share of the run, with some
    of its surroundings; everything if nothing was.
    """
    profile = _profile(snapshots)
    total = sum(snapshot.merged for snapshot in snapshots)
    monitored = _ranges_where(profile.edges, profile.covered > 0.5)
    possible = config.max_nr_accesses * total
    long_unknown = (profile.covered >= _LONG * total) & (
        profile.unknown > 0.5 * config.max_nr_accesses * profile.covered
    )
    wanted = (profile.accesses >= _WORTHWHILE * possible) | long_unknown
    if not wanted.any():
        wanted = profile.accesses > 0.5
    ranges = _ranges_where(profile.edges, wanted)
    if not ranges:
        return monitored, monitored
    margin = max(1, sum(end - start for start, end in ranges) // 16 // _PAGE) * _PAGE
    return _widen(ranges, monitored, margin), monitored


def _ranges_where(edges: Edges, wanted: npt.NDArray[np.bool_]) -> list[Range]:
    """Touching pieces for which ``wanted`` is true, joined."""
    flags = np.concatenate([[False], wanted, [False]]).astype(np.int8)
    steps = np.diff(flags)
    return [
        (int(start), int(end))
        for start, end in zip(edges[np.flatnonzero(steps == 1)], edges[np.flatnonzero(steps == -1)], strict=True)
    ]


def _widen(ranges: list[Range], monitored: list[Range], margin: int) -> list[Range]:
    """``ranges`` with ``margin`` bytes around, within the monitored area of each; joined where they meet."""
    widened: list[Range] = []
    for start, end in ranges:
        area_start, area_end = next(area for area in monitored if area[0] <= start < area[1])
        start, end = max(area_start, start - margin), min(area_end, end + margin)  # noqa: PLW2901
        if widened and start <= widened[-1][1]:
            widened[-1] = (widened[-1][0], max(end, widened[-1][1]))
        else:
            widened.append((start, end))
    return widened


def _fit(ranges: list[Range], height: int) -> tuple[list[Range], int]:
    """The ranges that ``height`` lines can show, and the bytes of a line, whole pages and the same everywhere."""
    height = max(4, height)
    if len(ranges) > height // 2:
        largest = sorted(ranges, key=lambda area: area[0] - area[1])[: height // 2]
        ranges = sorted(largest)
    total = sum(end - start for start, end in ranges)
    # Each range may leave its last line partly filled.
    line_bytes = max(_PAGE, total // max(1, height - len(ranges)))
    # Three significant bits: labels are easier to read, and the picture is hardly smaller.
    step = max(_PAGE, 1 << max(0, line_bytes.bit_length() - 4))
    return ranges, -(-line_bytes // step) * step


def _columns(recording: Recording, room: int) -> list[list[Snapshot]]:
    """The snapshots of each column; a column without one of its own takes the one whose time it falls into."""
    snapshots = recording.snapshots
    count = min(room, len(snapshots))
    times = np.array([snapshot.time for snapshot in snapshots])
    edges = np.linspace(recording.started, max(recording.ended, times[-1]), count + 1)[1:]
    edges[-1] = np.inf
    column_of = np.searchsorted(edges, times, side="left")
    columns: list[list[Snapshot]] = [[] for _ in range(count)]
    for snapshot, column in zip(snapshots, column_of, strict=True):
        columns[column].append(snapshot)
    for column in range(count - 1, -1, -1):
        if not columns[column]:
            columns[column] = columns[column + 1][:1] if column + 1 < count else [snapshots[-1]]
    return columns


def _cells(columns: list[list[Snapshot]], edges: Edges, config: Config) -> list[str]:
    """One string for each of the lines between ``edges``, one character for each column."""
    levels = np.full((len(edges) - 1, len(columns)), ABSENT)
    for column, snapshots in enumerate(columns):
        covered, accesses, unknown = np.sum([_integrals(snapshot, edges) for snapshot in snapshots], axis=0)
        for line in np.flatnonzero(covered > 0):
            possible = covered[line] * config.max_nr_accesses
            levels[line, column] = UNKNOWN if unknown[line] > 0.5 * possible else level_of(accesses[line] / possible)
    return ["".join(line) for line in levels]


def _integrals(snapshot: Snapshot, edges: Edges) -> Floats:
    """Covered bytes, bytes x accesses and bytes x unknown samples between neighbouring edges, shape (3, n)."""
    regions = snapshot.regions
    if not len(regions):
        return np.zeros((3, len(edges) - 1))
    # Relative to the first edge: addresses near 2**64 leave a double no room for pages.
    base = edges[0]
    points = np.empty(2 * len(regions))
    points[0::2] = (regions["start"] - base).view(np.int64)
    points[1::2] = (regions["end"] - base).view(np.int64)
    where = (edges - base).astype(np.float64)
    rows = []
    for values in (1.0, regions["nr_accesses"], regions["nr_unknown"]):
        sums = np.cumsum(snapshot.sizes * values * snapshot.merged)
        integral = np.empty(2 * len(regions))
        integral[0], integral[1::2], integral[2::2] = 0, sums, sums[:-1]
        rows.append(np.diff(np.interp(where, points, integral)))
    return np.array(rows)


def _cut_line(monitored: list[Range], start: int, end: int) -> list[str]:
    """A line for what was monitored between ``start`` and ``end`` but is not shown; none if there is nothing."""
    hidden = sum(max(0, min(area[1], end) - max(area[0], start)) for area in monitored)
    if hidden:
        return [f"{'...':>{_LABEL - 2}}  {format_bytes(hidden)} hardly accessed"]
    if start and end < 1 << 64:
        return [f"{'...':>{_LABEL - 2}}"]
    return []


def _time_axis(seconds: float, columns: int) -> str:
    """Times below the columns: the start, the end, and the middle where there is room."""
    end = format_seconds(seconds)
    axis = list(" " * max(columns, len(end) + 4))
    axis[:3] = "0 s"
    if columns >= 30:
        middle = format_seconds(seconds / 2)
        axis[columns // 2 : columns // 2 + len(middle)] = middle
    axis[len(axis) - len(end) :] = end
    return " " * _LABEL + "".join(axis)
