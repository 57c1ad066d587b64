# SPDX-License-Identifier: GPL-2.0-only
"""The heatmap of ``kdamon top``: of a process, of what has one name in it, or of a thread or CPU."""

from __future__ import annotations

from typing import Final

import numpy as np
from attrs import evolve, frozen

from kdamon.kernel import ULONG_MAX
from kdamon_tools.defaults import BY
from kdamon_tools.groups import raw_number
from kdamon_tools.recorded.selection import clipped
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.snapshot import Recording
from kdamon_tools.views.regions import NO_NAME

__all__ = ["Wanted", "heatmap_of"]

#: The smallest heatmap.
_LEAST_WIDTH: Final = 28
_LEAST_LINES: Final = 4
#: How often it is drawn until it has as many lines as there are.
_ATTEMPTS: Final = 3


@frozen
class Wanted:
    """What the screen is to show.

    :ivar view: ``processes``, ``names``, ``threads`` or ``cpus``.
    :ivar pid: the process; None: all of them, as a table.
    :ivar heatmap: whether it is a heatmap, of all of the process or of ``part`` of it.
    :ivar part: name of memory, number of a thread or a CPU; None: all.
    :ivar width: columns of a heatmap, and ``height`` its lines.
    """

    view: str
    pid: int | None = None
    heatmap: bool = False
    part: str | None = None
    width: int = 80
    height: int = 20
    colour: bool = False


def heatmap_of(recording: Recording, wanted: Wanted) -> str:
    """The heatmap of a process, or of a part of it, in as many lines as there are."""
    part = wanted.part
    if part is not None and wanted.view in BY:
        snapshots = [snapshot.of_groups([_number(wanted, part)]) for snapshot in recording.snapshots]
        recording = evolve(recording, snapshots=snapshots)
    elif part is not None:
        recording = _of_name(recording, part, wanted.height)
        if not any(len(snapshot.regions) for snapshot in recording.snapshots):
            return "nothing with this name was monitored in the last minute"
    height = wanted.height - _LEAST_LINES
    for _ in range(_ATTEMPTS):
        width = max(_LEAST_WIDTH, wanted.width)
        picture = render_heatmap(
            recording,
            width=width,
            height=max(_LEAST_LINES, height),
            colour=wanted.colour,
            show_legend=False,
            until_now=True,
        )
        # Memory that is not drawn is described in further lines.
        over = picture.count("\n") + 1 - wanted.height
        if over <= 0 or height <= _LEAST_LINES:
            break
        height -= over
    return picture


def _of_name(recording: Recording, name: str, height: int) -> Recording:
    """What lies where ``name`` does; all of it is drawn if there are lines for that."""
    table = recording.names
    if table is None:
        return recording
    rows, all_names = table.rows, name == NO_NAME
    if not all_names:
        which = [number for number, one in enumerate(table.names) if one == name]
        rows = rows[np.isin(rows["name"], which)]
    ranges: list[tuple[int, int]] = []
    for start, end in zip(rows["start"].tolist(), rows["end"].tolist(), strict=True):
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    if all_names:
        edges = [0, *(edge for one in ranges for edge in one), ULONG_MAX]
        ranges = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
    if not ranges:
        return evolve(recording, snapshots=[])
    snapshots = [evolve(one, regions=clipped(one.regions, ranges)) for one in recording.snapshots]
    drawn = tuple(ranges) if len(ranges) <= height // 2 and not all_names else ()
    return evolve(recording, snapshots=snapshots, config=evolve(recording.config, ranges=drawn))


def _number(wanted: Wanted, part: str) -> int:
    """The number of a thread or CPU; that of an unknown one is ``None`` in tables."""
    return raw_number(BY[wanted.view], None if part == str(None) else int(part))
