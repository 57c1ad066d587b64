# SPDX-License-Identifier: GPL-2.0-only
"""A heatmap for documents as shapes, which SVG and PNG draw alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen

from kdamon_tools.output.readable import readable
from kdamon_tools.pictures.subject import description_of, subject_of
from kdamon_tools.reporters.areas import choose_areas, line_size, monitored_ranges, rests_of
from kdamon_tools.snapshot import Range, Recording
from kdamon_tools.units import format_bytes, format_seconds
from kdamon_tools.views.grid import Grid, columns_of, grid_of
from kdamon_tools.views.measures import weight_of
from kdamon_tools.views.profile import profile_of

__all__ = ["LEVELS", "Scene", "Text", "scene_of"]

#: Colours of shares: the first is the smallest one above 0.
LEVELS: Final = 16
#: The whole picture, and its parts, in pixels.
_WIDTH: Final = 960
_LEFT, _RIGHT, _TOP, _BOTTOM = 250, 16, 62, 56
_MAP: Final = 420
_GAP: Final = 4
_COLUMN: Final = 3
_LINES: Final = 140
_LETTER: Final = 7.0
_SMALL: Final = 6.2


@frozen
class Text:
    """Words in a picture.

    :ivar x: where they begin, or end, or their middle, by ``anchor``: ``start``, ``end`` or ``middle``.
    :ivar y: the base line.
    :ivar size: of the letters, pixels.
    """

    x: float
    y: float
    text: str
    anchor: str = "start"
    size: int = 12
    faint: bool = False
    bold: bool = False


@define
class Scene:
    """The shapes of a picture. Colours are names: ``idle``, ``unknown``, ``rule``, or the number of a level.

    :ivar rectangles: x, y, width, height and colour of each.
    """

    width: int
    height: int
    title: str
    rectangles: list[tuple[float, float, float, float, str]] = field(factory=list)
    texts: list[Text] = field(factory=list)


def scene_of(recording: Recording) -> Scene:
    """The heatmap of a recording that has regions, as the terminal shows it, but finer.

    All hot memory is drawn; what there is no room for is summed up below.
    """
    config = recording.config
    profile = profile_of(recording.snapshots, config)
    if config.ranges:
        areas = monitored_ranges(profile)
    else:
        total = sum(weight_of(snapshot, config) for snapshot in recording.snapshots)
        areas = choose_areas(profile, total, config, _LINES // 4)
    columns = columns_of(recording, (_WIDTH - _LEFT - _RIGHT) // _COLUMN)
    line = line_size(areas, _LINES)
    spans = [[(edge, min(edge + line, end)) for edge in range(start, end, line)] for start, end in areas]
    rows = np.array([row for of_area in spans for row in of_area], np.uint64)
    grid = grid_of(columns.snapshots, rows, config)
    rest = rests_of(profile, areas, config, together=True)[-1]
    scene = Scene(_WIDTH, _TOP + _MAP + _BOTTOM + (18 if rest else 0), readable(subject_of(recording)))
    scene.texts.append(Text(16, 26, _short(subject_of(recording), _WIDTH - 32, 9.0), size=16, bold=True))
    scene.texts.append(Text(16, 44, _short(description_of(recording), _WIDTH - 32, _SMALL), size=11, faint=True))
    _legend(scene)
    height = (_MAP - _GAP * (len(areas) - 1)) / len(rows)
    tops = _tops([len(of_area) for of_area in spans], height)
    _cells(scene, grid, tops, height, (_WIDTH - _LEFT - _RIGHT) / len(columns))
    _labels(scene, recording, spans, tops, height)
    _times(scene, recording.seconds)
    if rest:
        scene.texts.append(
            Text(_LEFT, scene.height - 10, _short(f"not drawn: {rest}", _WIDTH - _LEFT, _SMALL), size=11, faint=True)
        )
    return scene


def _short(text: str, room: float, letter: float) -> str:
    """``text`` escaped, without its middle if there is no room for it."""
    text = readable(text)
    most = max(4, int(room / letter))
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - most + most // 2 + 1 :]}"


def _tops(counts: Sequence[int], height: float) -> list[float]:
    """Where each line begins; there is a gap between areas."""
    tops, top = [], float(_TOP)
    for count in counts:
        tops += [top + height * number for number in range(count)]
        top += height * count + _GAP
    return tops


def _colours(grid: Grid) -> npt.NDArray[np.int16]:
    """The level of each cell; 0 idle, -1 unknown, -2 not monitored."""
    levels = np.ceil(np.where(grid.shares < 1e-9, 0, grid.shares) * LEVELS).astype(np.int16)
    levels[grid.mostly_unknown] = -1
    levels[grid.absent] = -2
    return levels


def _cells(scene: Scene, grid: Grid, tops: Sequence[float], height: float, width: float) -> None:
    for top, levels in zip(tops, _colours(grid), strict=True):
        starts = np.flatnonzero(np.append(True, levels[1:] != levels[:-1]))
        ends = np.append(starts[1:], len(levels))
        for start, end, level in zip(starts.tolist(), ends.tolist(), levels[starts].tolist(), strict=True):
            if level != -2:
                colour = "idle" if level == 0 else "unknown" if level == -1 else str(level - 1)
                scene.rectangles.append((_LEFT + start * width, top, (end - start) * width, height, colour))


def _labels(
    scene: Scene,
    recording: Recording,
    spans: Sequence[Sequence[Range]],
    tops: Sequence[float],
    height: float,
) -> None:
    """Name and address of each area, where there is room; names within an area, if they take some lines."""
    taken: list[tuple[float, float]] = []
    wanted: list[tuple[float, float, str, str]] = []
    at = 0
    for lines in spans:
        names = [""] * len(lines) if recording.names is None else recording.names.main(lines)
        begin = 0
        for place in range(1, len(lines) + 1):
            if place == len(lines) or names[place] != names[begin]:
                size = lines[place - 1][1] - lines[begin][0]
                middle = (tops[at + begin] + tops[at + place - 1] + height) / 2
                address = f"{lines[begin][0]:x}"
                wanted.append(
                    (height * (place - begin), middle, names[begin] or address, f"{address}  {format_bytes(size)}")
                )
                begin = place
        at += len(lines)
    for tall, middle, name, address in sorted(wanted, key=lambda one: -one[0]):
        two = tall >= 28
        half = 14.0 if two else 7.0
        if any(middle - half < high and middle + half > low for low, high in taken):
            continue
        taken.append((middle - half, middle + half))
        scene.texts.append(Text(_LEFT - 8, middle + (-2 if two else 4), _short(name, _LEFT - 24, _LETTER), "end"))
        if two:
            scene.texts.append(Text(_LEFT - 8, middle + 12, address, "end", 10, faint=True))


def _times(scene: Scene, seconds: float) -> None:
    bottom = _TOP + _MAP
    if seconds <= 0:
        return
    each = _nice(seconds / 6)
    for number in range(int(seconds / each + 1e-9) + 1):
        x = _LEFT + number * each / seconds * (_WIDTH - _LEFT - _RIGHT)
        scene.rectangles.append((x, bottom + 2, 1, 5, "rule"))
        anchor = "start" if not number else "end" if x > _WIDTH - 40 else "middle"
        scene.texts.append(Text(x, bottom + 20, format_seconds(number * each), anchor, 11, faint=True))


def _nice(seconds: float) -> float:
    """A time of at least ``seconds`` that is easy to read."""
    for step in (10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200):
        if 5 < seconds <= step:
            return float(step)
    if seconds > 5:
        return 86400.0 * math.ceil(seconds / 86400)
    power = 10.0 ** math.floor(math.log10(seconds))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= seconds * (1 - 1e-9))


def _legend(scene: Scene) -> None:
    x, y = 120.0, _TOP + _MAP + 32.0
    scene.rectangles.append((x, y, 14, 10, "idle"))
    scene.texts.append(Text(x + 19, y + 9, "not accessed", size=11, faint=True))
    x += 112
    for level in range(LEVELS):
        scene.rectangles.append((x + 7 * level, y, 7, 10, str(level)))
    scene.texts.append(
        Text(x + 7 * LEVELS + 6, y + 9, "to 100% of the samples, the hottest part of a line", size=11, faint=True)
    )
    x += 7 * LEVELS + 306
    scene.rectangles.append((x, y, 14, 10, "unknown"))
    scene.texts.append(Text(x + 19, y + 9, "unknown", size=11, faint=True))
    scene.texts.append(Text(x + 84, y + 9, "blank: not monitored", size=11, faint=True))
