# SPDX-License-Identifier: GPL-2.0-only
"""The heatmap as numbers: times, ranges of addresses with their names, and how often each was accessed when."""

from __future__ import annotations

from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import F64Array, U64Array
from kdamon_tools.snapshot import Recording
from kdamon_tools.views.axis import axis_of
from kdamon_tools.views.grid import columns_of, grid_of
from kdamon_tools.views.regions import NO_NAME

__all__ = ["Heat", "heat_of"]

#: Spans of time, and ranges of addresses, at most.
_MOST_TIMES: Final = 512
_MOST_RANGES: Final = 512


@frozen(eq=False)
class Heat:
    """The accesses in each of n ranges of addresses and each of m spans of time.

    :ivar times: when the spans begin, and the end of the last one, seconds since the start, shape (m + 1,).
    :ivar ranges: start and end (exclusive) of all that was monitored, bytes, ascending, shape (n, 2).
    :ivar names: that of the largest part of each range, raw.
    :ivar shares: the share, 0 to 1, of the samples that found the hottest part of the range accessed, shape (n, m); NaN
        where it is unknown, or was not monitored.
    :ivar unknown: the share of the bytes of which most samples could not be taken, shape (n, m); NaN where nothing was
        monitored.
    """

    times: F64Array
    ranges: U64Array
    names: list[str]
    shares: F64Array
    unknown: F64Array


def heat_of(recording: Recording) -> Heat:
    """The heatmap of a recording that has snapshots; longer times and larger ranges where it has very many."""
    columns = columns_of(recording, _MOST_TIMES)
    times = (columns.edges - recording.started).round(6)
    if not any(len(snapshot.regions) for snapshot in recording.snapshots):
        return Heat(times, np.empty((0, 2), np.uint64), [], *np.empty((2, 0, len(columns))))
    pieces = axis_of(recording.snapshots, recording.config, recording.names, _MOST_RANGES).pieces
    grid = grid_of(columns.snapshots, pieces, recording.config)
    names = [""] * len(pieces) if recording.names is None else recording.names.main(pieces)
    return Heat(
        times,
        pieces,
        [name or NO_NAME for name in names],
        np.where((grid.known > 0) & ~grid.mostly_unknown, grid.shares, np.nan).round(6),
        np.where(grid.absent, np.nan, grid.unknown / np.where(grid.absent, 1, grid.covered)).round(6),
    )
