# SPDX-License-Identifier: GPL-2.0-only
"""The heatmap as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import numpy as np

from kdamon.arrays import F64Array
from kdamon_tools.origin import Origin, origin_fields
from kdamon_tools.output.readable import cell_of, json_text
from kdamon_tools.reporters.views import REPORT
from kdamon_tools.views.heat import Heat

__all__ = ["render_heat_csv", "render_heat_json"]

_NOTE = "the share of the samples that found the hottest part of a range accessed, the mean over a span of time"


def render_heat_json(heat: Heat, origin: Origin) -> Iterator[str]:
    """One object on one line, as docs/schemas has it, in parts."""
    head = {**origin_fields(REPORT, origin), "view": "heatmap", "notes": [_NOTE], "times": heat.times.tolist()}
    yield f'{json_text(head)[:-1]}, "ranges": ['
    rows = zip(heat.ranges.tolist(), heat.names, heat.shares, heat.unknown, strict=True)
    for number, ((start, end), name, shares, unknown) in enumerate(rows):
        lists = {"shares": _known(shares), "unknown_shares": _known(unknown)}
        yield (", " if number else "") + json_text({"start": start, "end": end, "name": name, **lists})
    yield "]}"


def _known(values: F64Array) -> list[float | None]:
    pairs = zip(values.tolist(), np.isnan(values).tolist(), strict=True)
    return [None if unknown else value for value, unknown in pairs]


def render_heat_csv(heat: Heat) -> Iterator[str]:
    """A row for each range and each span of time in which it was monitored, in parts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("from_seconds", "to_seconds", "start", "end", "name", "share", "unknown_share"))
    times = heat.times.tolist()
    rows = zip(heat.ranges.tolist(), map(cell_of, heat.names), heat.shares, heat.unknown, strict=True)
    for (start, end), name, shares, unknown in rows:
        cells = zip(times[:-1], times[1:], _known(shares), _known(unknown), strict=True)
        writer.writerows(
            (since, until, start, end, name, "" if share is None else share, of_unknown)
            for since, until, share, of_unknown in cells
            if of_unknown is not None
        )
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    # The head line, where there was no range.
    yield text.getvalue()
