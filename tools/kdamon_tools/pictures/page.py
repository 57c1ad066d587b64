# SPDX-License-Identifier: GPL-2.0-only
"""One HTML file with the heatmap, the working set and the tables; it needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import html
import string
import zlib
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Final

import attrs
import numpy as np
import numpy.typing as npt

from kdamon import __version__
from kdamon.arrays import F64Array, Mask, U8Array
from kdamon.monitoring.use import WINDOWS
from kdamon_tools.errors import CommandError
from kdamon_tools.output.readable import json_text, readable
from kdamon_tools.pictures.colours import DARK, LIGHT
from kdamon_tools.pictures.subject import description_of, subject_of
from kdamon_tools.reporters.views import cell_text
from kdamon_tools.snapshot import Recording, Snapshot
from kdamon_tools.views.axis import Axis, axis_of
from kdamon_tools.views.grid import NEGLIGIBLE, Columns, Grid, columns_of, grid_of
from kdamon_tools.views.table import Kind, Table
from kdamon_tools.views.use import is_watched
from kdamon_tools.views.where import where_view
from kdamon_tools.views.working_set import Course, course_of, summary_view

__all__ = ["LARGEST", "render_page"]

#: Maximum bytes of a page.
LARGEST: Final = 1_000_000
#: Columns and pieces of the finest grid, and those that are tried if that is too large.
_RESOLUTIONS: Final = ((2048, 1024), (2048, 512), (1024, 512), (512, 512), (512, 256), (256, 128))
#: Each level of the pyramid has one column for so many of the level below.
_FACTOR: Final = 4
_UNKNOWN, _ABSENT = 254, 255
#: Steps of an age in which it doubles.
_AGE_STEPS: Final = 8
#: Idle memory is drawn as large as this part of all other memory at most, each other range at least a part of it.
_IDLE_PART: Final = 0.06
_LEAST_PART: Final = 0.03
#: Names in the table.
_MOST_NAMES: Final = 200


def render_page(recording: Recording) -> str:
    """The page of a recording that has regions.

    :raises CommandError: it would be too large.
    """
    for columns, pieces in _RESOLUTIONS:
        text = _page(recording, columns, pieces)
        if len(text.encode()) <= LARGEST:
            return text
    raise CommandError(f"the page would be larger than {LARGEST} bytes: choose a shorter --time or a --range")


def _page(recording: Recording, columns: int, pieces: int) -> str:
    here = files(__package__)
    js = here.joinpath("page.js").read_text(encoding="utf-8")
    uplot = here.joinpath("uplot/dist/uPlot.iife.min.js").read_text(encoding="utf-8")
    licence = here.joinpath("uplot/LICENSE").read_text(encoding="utf-8")
    scripts = {"uplot_js": f"/*!\nuPlot\n{licence}*/\n{uplot}", "js": js}
    data = _data(recording, columns, pieces)
    return string.Template(here.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        scripts,
        script_hashes=" ".join(f"'sha256-{_hash(text)}'" for text in scripts.values()),
        version=html.escape(__version__),
        title=_escaped(subject_of(recording)),
        about=_escaped(description_of(recording)),
        label=_escaped(f"{subject_of(recording)}: accesses by address and time"),
        cards="".join(_cards(recording)),
        tables="".join(_tables(recording)),
        uplot_css=here.joinpath("uplot/dist/uPlot.min.css").read_text(encoding="utf-8"),
        css=here.joinpath("page.css").read_text(encoding="utf-8"),
        data=_embedded(data),
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _escaped(text: str) -> str:
    return html.escape(readable(text))


def _embedded(document: Any) -> str:
    """JSON within a script element, which "<" could end."""
    return json_text(document, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


_USED: Final = tuple((f"used_{window:.0f}s_bytes", f"used within {window:.0f} s") for window in WINDOWS)
_ACCESSED: Final = (
    ("working_set_p50_bytes", "working set, median"),
    ("working_set_p95_bytes", "working set, p95"),
)
_CARDS: Final = (
    ("hot_p50_bytes", "hot, median"),
    ("resident_p50_bytes", "in memory, median"),
    ("unknown_share", "samples unknown"),
    ("missed_intervals", "sampling intervals missed"),
    ("cpu_share", "CPU of monitoring"),
)


def _cards(recording: Recording) -> Iterator[str]:
    facts = {key: (kind, value) for key, _, kind, value in summary_view(recording).facts}
    for key, title in (*(_USED if is_watched(recording) else _ACCESSED), *_CARDS):
        kind, value = facts[key]
        if value is not None:
            bounds = [facts[of][1] for of in (f"{key[:-6]}_low_bytes", f"{key[:-6]}_high_bytes") if of in facts]
            beside = f" (95 %: {' to '.join(cell_text(size, kind) for size in bounds)})" if bounds else ""
            yield f"<li><b>{html.escape(cell_text(value, kind))}</b><span>{html.escape(title + beside)}</span></li>"


def _tables(recording: Recording) -> Iterator[str]:
    report = where_view(recording)
    for table in report.tables:
        yield "<h2>By name</h2>"
        yield from _table(table)
    for note in report.notes:
        yield f'<p class="help">{_escaped(note)}</p>'


def _table(table: Table) -> Iterator[str]:
    shown = (place for place, column in enumerate(table.columns) if not column.hidden)
    order = sorted(shown, key=lambda place: table.columns[place].kind is Kind.TEXT)
    heading = "".join(f'<th scope="col">{html.escape(table.columns[place].title)}</th>' for place in order)
    yield f'<div class="scroll"><table class="names"><thead><tr>{heading}</tr></thead><tbody>'
    for row in table.rows[:_MOST_NAMES]:
        cells = "".join(f"<td>{html.escape(cell_text(row[place], table.columns[place].kind))}</td>" for place in order)
        yield f"<tr>{cells}</tr>"
    yield "</tbody></table></div>"
    if len(table.rows) > _MOST_NAMES:
        yield f'<p class="help">and {len(table.rows) - _MOST_NAMES} more</p>'


def _packed(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()


def _data(recording: Recording, most_columns: int, most_pieces: int) -> dict[str, Any]:
    axis = axis_of(recording.snapshots, recording.config, recording.names, most_pieces)
    columns = columns_of(recording, most_columns)
    grid = grid_of(columns.snapshots, axis.pieces, recording.config)
    levels, factor = [], 1
    level = grid
    while True:
        levels.append({"factor": factor, "columns": level.covered.shape[1], "cells": _packed(_cells(level))})
        if level.covered.shape[1] <= _FACTOR * _FACTOR:
            break
        factor *= _FACTOR
        level = level.joined(_FACTOR)
    sizes = (axis.pieces[:, 1] - axis.pieces[:, 0]).astype(np.float64)
    idle = _idle_runs(axis, grid)
    compact, folded = _compact(axis, sizes, idle)
    labels, names = _labels(recording, axis)
    unit = recording.config.aggr_us / 1e6
    ages = np.minimum(_ABSENT - 1, np.rint(_AGE_STEPS * np.log2(1 + np.maximum(grid.age, 0) / unit)))
    return {
        "seconds": float(columns.edges[-1] - columns.edges[0]),
        "columns": len(columns),
        "age_unit": unit,
        "levels": levels,
        "ages": _packed(np.where(grid.age < 0, _ABSENT, ages).astype(np.uint8)),
        "age_steps": _AGE_STEPS,
        "sizes": _packed(sizes),
        "compact": _packed(compact),
        "folded": folded,
        "segments": _segments(axis),
        "labels": labels,
        "names": names,
        "curves": _curves(course_of(recording), columns, recording.snapshots),
        "themes": {"light": attrs.asdict(LIGHT), "dark": attrs.asdict(DARK)},
    }


def _cells(grid: Grid) -> U8Array:
    """Shares in percent, rounded up so that no access is lost, and the codes of unknown and absent cells."""
    cells = np.ceil(100 * grid.shares - 1e-6).astype(np.uint8)
    cells[grid.mostly_unknown] = _UNKNOWN
    cells[grid.absent] = _ABSENT
    return cells


def _idle_runs(axis: Axis, grid: Grid) -> list[tuple[int, int, bool]]:
    """Neighbouring pieces in one segment that are all idle, or all not: first, last, and which."""
    active: Mask = np.where(grid.absent, 0, grid.shares).max(axis=1) >= NEGLIGIBLE
    active |= grid.mostly_unknown.sum(axis=1) > 0
    apart = np.append(True, axis.pieces[1:, 0] != axis.pieces[:-1, 1])
    starts = np.flatnonzero(apart | np.append(True, active[1:] != active[:-1]))
    ends = np.append(starts[1:], len(active)) - 1
    return [(first, last, not active[first]) for first, last in zip(starts.tolist(), ends.tolist(), strict=True)]


def _compact(axis: Axis, sizes: F64Array, runs: list[tuple[int, int, bool]]) -> tuple[F64Array, list[tuple[int, int]]]:
    """The height of each piece where idle memory is drawn smaller, and the runs that are."""
    weights = sizes.copy()
    in_use = sum(sizes[first : last + 1].sum() for first, last, idle in runs if not idle)
    folded = []
    if in_use:
        most = _IDLE_PART * in_use
        least = min(_LEAST_PART, 0.5 / len(runs)) * in_use
        for first, last, idle in runs:
            size = sizes[first : last + 1].sum()
            height = min(max(size, least), most) if idle else max(size, least)
            weights[first : last + 1] *= height / size
            if height < size:
                folded.append((first, last))
    return weights, folded


def _labels(recording: Recording, axis: Axis) -> tuple[list[str], list[int]]:
    """The different names, and the place of the name of each piece; -1 without one."""
    if recording.names is None:
        return [], [-1] * len(axis.pieces)
    texts = [readable(name) for name in recording.names.main(axis.pieces)]
    labels = sorted(set(texts) - {""})
    places = {label: place for place, label in enumerate(labels)}
    return labels, [places.get(text, -1) for text in texts]


def _segments(axis: Axis) -> list[dict[str, Any]]:
    """The address of each segment, and its first piece; the others follow one another."""
    firsts = np.searchsorted(axis.pieces[:, 0], axis.segments[:, 0])
    return [
        {"start": f"{start:x}", "first": first}
        for start, first in zip(axis.segments[:, 0].tolist(), firsts.tolist(), strict=True)
    ]


def _curves(course: Course, columns: Columns, snapshots: list[Snapshot]) -> list[dict[str, Any]]:
    """The mean of each size in each column; NaN where nothing was sampled."""
    places = {id(snapshot): place for place, snapshot in enumerate(snapshots)}
    rows = np.array([places[id(snapshot)] for of_column in columns.snapshots for snapshot in of_column], np.intp)
    column = np.repeat(np.arange(len(columns)), [len(of_column) for of_column in columns.snapshots])
    curves = []
    used = ("used within 10 s", course.used) if not np.isnan(course.used).all() else ("accessed", course.accessed)
    for label, values, line, filled, dashed in (
        (*used, 0, True, False),
        ("hot", course.hot, 1, False, False),
        ("in memory", course.resident, 2, False, False),
        ("unknown", course.unknown, 3, False, True),
    ):
        known = ~np.isnan(values[rows])
        if not values[rows][known].any():
            continue
        weights = np.bincount(column[known], course.weights[rows][known], len(columns))
        sums = np.bincount(column[known], (course.weights * values)[rows][known], len(columns))
        means = np.where(weights > 0, sums / np.where(weights > 0, weights, 1), np.nan)
        curves.append({"label": label, "line": line, "filled": filled, "dashed": dashed, "values": _packed(means)})
    return curves
