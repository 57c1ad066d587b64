# SPDX-License-Identifier: GPL-2.0-only
"""The axis of addresses of a picture: only what was monitored, in pieces that follow the borders of regions.

Hundreds of terabytes may lie between two mappings, so that gaps have no length here.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import F64Array, Indexes, Mask, U64Array, distinct
from kdamon.names.table import NameTable
from kdamon_tools.snapshot import Config, Snapshot
from kdamon_tools.views.measures import shares_of, weight_of

__all__ = ["Axis", "axis_of"]

#: Borders of segments and of names take at most one part in so many of the pieces each.
_PART_FOR_BORDERS: Final = 4
#: Regions of this many snapshots are handled at once.
_AT_ONCE: Final = 1024


@frozen(eq=False)
class Axis:
    """The monitored addresses.

    :ivar segments: start and end (exclusive) of each, ascending and disjoint, shape (n, 2). A short gap may be in one.
    :ivar pieces: the segments in pieces, ascending and disjoint, shape (m, 2).
    """

    segments: U64Array
    pieces: U64Array


def axis_of(snapshots: list[Snapshot], config: Config, names: NameTable | None, most: int) -> Axis:
    """The addresses of ``snapshots``, which have regions, in at most about ``most`` pieces.

    Pieces end at borders of regions. If there are more borders, half of the pieces end where accesses differ most
    between neighbours, and the others are about equally long.

    :param most: at least 16.
    """
    edges, covered, jumps = _borders(snapshots, config)
    segments = _segments(edges, covered, max(1, most // _PART_FOR_BORDERS))
    kept = distinct(segments.ravel())
    if names is not None:
        of_names = distinct(np.stack([names.rows["start"], names.rows["end"]]))
        of_names = of_names[(of_names > edges[0]) & (of_names < edges[-1])]
        if len(of_names) <= most // _PART_FOR_BORDERS:
            kept = np.union1d(kept, of_names)
    if len(edges) + len(kept) > most:
        room = max(2, (most - len(kept)) // 2)
        edges = edges[np.union1d(_quantiles(jumps, room), _quantiles(_lengths(edges, covered), room))]
    edges = np.union1d(edges, kept)
    inside = np.searchsorted(segments[:, 0], edges[:-1], side="right") != np.searchsorted(
        segments[:, 1], edges[:-1], side="right"
    )
    return Axis(segments, np.stack([edges[:-1][inside], edges[1:][inside]], axis=1))


def _borders(snapshots: list[Snapshot], config: Config) -> tuple[U64Array, Mask, F64Array]:
    """Where regions of any snapshot begin or end.

    :returns: addresses, ascending, shape (n,); whether there are regions between each and the next one, shape
        (n - 1,); and the sum of the differences of the accesses at each, shape (n,).
    """
    edges = np.empty(0, np.uint64)
    counts: F64Array = np.empty(0)
    jumps: F64Array = np.empty(0)
    for at in range(0, len(snapshots), _AT_ONCE):
        part = [snapshot for snapshot in snapshots[at : at + _AT_ONCE] if len(snapshot.regions)]
        if not part:
            continue
        starts = np.concatenate([snapshot.regions["start"] for snapshot in part])
        ends = np.concatenate([snapshot.regions["end"] for snapshot in part])
        weights = np.repeat(
            [weight_of(snapshot, config) for snapshot in part], [len(snapshot.regions) for snapshot in part]
        )
        shares = weights * np.concatenate([shares_of(snapshot, config) for snapshot in part])
        # Regions of one snapshot touch, or they have a gap; the next snapshot begins below.
        touching = ends[:-1] == starts[1:]
        before = np.append(0.0, np.where(touching, shares[:-1], 0.0))
        after = np.append(~touching, True) * shares
        here, which = np.unique(np.concatenate([starts, ends, edges]), return_inverse=True)
        counts = _added(which, [np.ones(len(starts)), -np.ones(len(ends)), counts], len(here))
        jumps = _added(which, [np.abs(shares - before), after, jumps], len(here))
        edges = here
    return edges, np.cumsum(counts)[:-1] > 0.5, jumps


def _added(places: Indexes, values: list[F64Array], count: int) -> F64Array:
    """The sums of the values at each place, shape (count,)."""
    return np.bincount(places, np.concatenate(values), count).astype(np.float64)


def _segments(edges: U64Array, covered: Mask, most: int) -> U64Array:
    """The covered ranges; if there are more than ``most``, those with the shortest gaps are joined. Shape (n, 2)."""
    flags = np.concatenate([[False], covered, [False]]).astype(np.int8)
    bounds = edges[np.flatnonzero(np.diff(flags))].reshape(-1, 2)
    if len(bounds) > most:
        gaps = bounds[1:, 0] - bounds[:-1, 1]
        kept = np.sort(np.argsort(gaps, kind="stable")[len(gaps) - (most - 1) :]) if most > 1 else np.empty(0, np.intp)
        bounds = np.stack([bounds[np.append(0, kept + 1), 0], bounds[np.append(kept, len(bounds) - 1), 1]], axis=1)
    return bounds


def _lengths(edges: U64Array, covered: Mask) -> F64Array:
    """The monitored bytes between each of ``edges`` and the one before."""
    return np.append(0.0, np.diff(edges).astype(np.float64) * covered)


def _quantiles(weights: F64Array, count: int) -> U64Array:
    """The places at which ``count`` equal parts of the sum of ``weights`` end, ascending."""
    sums = np.cumsum(weights)
    targets = (np.arange(count) + 0.5) / count * sums[-1]
    return distinct(np.minimum(np.searchsorted(sums, targets), len(weights) - 1))
