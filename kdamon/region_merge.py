# SPDX-License-Identifier: GPL-2.0-only
"""Merges of neighbours in a region table, with the means of ``damon_merge_two_regions()``.

The greedy merge is sequential by nature, because each decision depends on the one before: it walks plain lists of those
neighbours that may be merged. The merged rows leave the table all at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdamon.arrays import Indexes, Mask, U32Array
from kdamon.kernel import UINT_MAX, ULONG_MAX
from kdamon.regions import DAMON_MAX_PROBES, INHERITED, Regions

__all__ = ["merge_equal", "merge_runs", "merge_similar"]


def merge_similar(
    regions: Regions,
    threshold: int,
    sz_limit: int,
    weights: U32Array | None = None,
    unknown: Mask | None = None,
    *,
    unknown_apart: bool = True,
) -> None:
    """Merge neighbours whose nr_accesses differ by at most ``threshold`` (``damon_merge_regions_of()``).

    :param sz_limit: largest region to make, core address units.
    :param weights: compare the weighted sums of probe hits instead, see :meth:`Regions.merge_scores`.
    :param unknown: which are mostly unknown, shape (n,); so is what they are merged into.
    :param unknown_apart: merge these with each other only.
    """
    if len(regions) < 2:
        return
    touching = regions.start[1:] == regions.end[:-1]
    if unknown is not None and unknown_apart:
        touching &= unknown[1:] == unknown[:-1]
    if weights is not None:
        _merge_similar_hits(regions, threshold, sz_limit, weights, touching=touching, unknown=unknown)
        return
    # A merged region's score lies within threshold of its last part's: so a pair that differs by more than
    # twice the threshold is never merged, whatever was merged before it.
    now = regions.nr_accesses
    apart = np.maximum(now[1:], now[:-1]) - np.minimum(now[1:], now[:-1])
    close = apart <= min(2 * threshold, 0xFFFF_FFFF)
    close &= touching
    pairs = close.nonzero()[0].tolist()
    if not pairs:
        return
    # Each decision depends on the one before: only what is left of the pairs is worth a loop.
    scores, sizes = now.tolist(), regions.sizes().tolist()
    merged = []
    head = right = -1
    score = size = 0
    for left in pairs:
        if left != right:
            head, score, size = left, scores[left], sizes[left]
        right = left + 1
        right_score, right_size = scores[right], sizes[right]
        both = size + right_size
        if right_score - score > threshold or score - right_score > threshold or both > sz_limit:
            head, score, size = right, right_score, right_size
            continue
        score = scores[head] = ((score * size + right_score * right_size) & ULONG_MAX) // both
        size = both
        merged.append(right)
    if merged:
        _keep_means(regions, merged)
        regions.nr_accesses = np.array(scores, np.uint32)
        _merge_into_left(regions, merged, sizes, unknown)


def _merge_similar_hits(
    regions: Regions, threshold: int, sz_limit: int, weights: U32Array, *, touching: Mask, unknown: Mask | None
) -> None:
    """:func:`merge_similar` by probe hits: what regions are compared by is computed anew after each merge.

    :param touching: whether each region may be merged with the one after it, shape (n - 1,).
    """
    pairs = touching.nonzero()[0].tolist()
    regions.use_probes()
    assert regions.probe_hits is not None
    hits, scores = regions.probe_hits.tolist(), regions.merge_scores(weights).tolist()
    sizes, weight = regions.sizes().tolist(), weights.tolist()
    merged = []
    head = right = -1
    score = size = 0
    for left in pairs:
        if left != right:
            head, score, size = left, scores[left], sizes[left]
        right = left + 1
        both = size + sizes[right]
        if abs(scores[right] - score) > threshold or both > sz_limit:
            head, score, size = right, scores[right], sizes[right]
            continue
        hits[head] = [
            ((mine * size + theirs * sizes[right]) & ULONG_MAX) // both
            for mine, theirs in zip(hits[head], hits[right], strict=True)
        ]
        score = sum(h * w for h, w in zip(hits[head], weight, strict=True)) & UINT_MAX
        size = both
        merged.append(right)
    if merged:
        _keep_means(regions, merged)
        regions.nr_accesses = _means(regions.nr_accesses, sizes, merged)
        _merge_into_left(regions, merged, sizes, unknown)


def merge_runs(regions: Regions, heads: Indexes) -> None:
    """Merge all regions from each of the rows ``heads`` to before the next one; the first row is one of them.

    Counters become means weighted by size, rounded down, but for ``nr_unknown``: what was unknown stays so.
    ``density`` is the caller's.
    """
    if len(heads) == len(regions):
        return
    size = regions.sizes().astype(np.float64)
    total = np.add.reduceat(size, heads)
    means = {name: np.add.reduceat(getattr(regions, name) * size, heads) // total for name in INHERITED}
    means["nr_unknown"] = np.maximum.reduceat(regions.nr_unknown, heads)
    since = None if regions.density_since is None else np.maximum.reduceat(regions.density_since, heads)
    hits = None
    if regions.probe_hits is not None:
        hits = np.add.reduceat(regions.probe_hits * size[:, None], heads) // total[:, None]
    end = regions.end.take(np.append(heads[1:], len(regions)) - 1)
    mask = np.zeros(len(regions), np.bool_)
    mask[heads] = True
    regions.keep(mask)
    regions.end = end
    regions.density_since = since
    if hits is not None:
        regions.probe_hits = hits.astype(np.uint8)
    for name, column in means.items():
        setattr(regions, name, column.astype(np.uint32))


def merge_equal(regions: Regions, sz_limit: int) -> None:
    """Merge neighbours that hold the same information, as DAMOS does after a region (``damos_apply_target()``)."""
    if len(regions) < 2:
        return
    same = regions.start[1:] == regions.end[:-1]
    # Deviation: docs/deviations.md#neighbours-of-schemes-merge-without-loss
    for name in INHERITED:
        column = getattr(regions, name)
        same &= column[1:] == column[:-1]
    for hits in (regions.probe_hits, regions.last_probe_hits):
        if hits is not None:
            same &= (hits[1:] == hits[:-1]).all(axis=1)
    pairs = same.nonzero()[0].tolist()
    if not pairs:
        return
    sizes = regions.sizes().tolist()
    merged = []
    right = -1
    size = 0
    for left in pairs:
        if left != right:
            size = sizes[left]
        right = left + 1
        size += sizes[right]
        if size > sz_limit:
            size = sizes[right]
        else:
            merged.append(right)
    if merged:
        _keep_means(regions, merged)
        _remove(regions, merged)


def _merge_into_left(regions: Regions, merged: list[int], sizes: list[int], unknown: Mask | None = None) -> None:
    """Merge each row of ``merged`` into the one before it; nr_accesses has its means already.

    :param unknown: as for :func:`merge_similar`.
    """
    regions.age = _means(regions.age, sizes, merged)
    if np.count_nonzero(regions.unknown_age):
        regions.unknown_age = _means(regions.unknown_age, sizes, merged)
    nr_unknown = regions.nr_unknown
    if np.count_nonzero(nr_unknown):
        regions.nr_unknown = _means(nr_unknown, sizes, merged)
    if unknown is not None:
        heads = np.delete(np.arange(len(regions)), merged)
        stays = np.logical_or.reduceat(unknown, heads)
        rows = heads[stays]
        regions.nr_unknown[rows] = np.maximum.reduceat(nr_unknown, heads)[stays]
        regions.unknown_age[rows] = regions.age[rows]
    if regions.probe_hits is not None:
        for i in range(DAMON_MAX_PROBES):
            regions.probe_hits[:, i] = _means(regions.probe_hits[:, i], sizes, merged)
    _remove(regions, merged)


def _keep_means(regions: Regions, merged: list[int]) -> None:
    """Let each row that some of ``merged`` will be merged into have the mean of their accesses, which is not rounded.

    ``damon_merge_two_regions()`` rounds down each time: what is accessed once in many samples is lost.
    """
    heads = np.delete(np.arange(len(regions)), merged)
    sizes = regions.sizes().astype(np.float64)
    means = regions.exact_accesses().copy()
    means[heads] = np.add.reduceat(means * sizes, heads) / np.add.reduceat(sizes, heads)
    regions.mean_accesses = means


def _remove(regions: Regions, merged: list[int]) -> None:
    """Remove the rows of ``merged``; the rows before them reach to their ends."""
    mask = np.ones(len(regions), np.bool_)
    mask[merged] = False
    last = np.empty(len(regions) - len(merged), np.intp)
    last[:-1] = mask.nonzero()[0][1:]
    last[-1] = len(regions)
    end = regions.end.take(last - 1)
    regions.keep(mask)
    regions.end = end


def _means(column: npt.NDArray[Any], sizes: list[int], merged: list[int]) -> npt.NDArray[Any]:
    """``column`` with the mean, weighted by size, in each row that some of ``merged`` are merged into.

    Rounded down after each merge, and with products that wrap, as ``damon_merge_two_regions()`` does it.
    """
    values = column.tolist()
    head = after = -1
    mean = size = 0
    for right in merged:
        if right != after:
            head = right - 1
            mean, size = values[head], sizes[head]
        after = right + 1
        both = size + sizes[right]
        mean = values[head] = ((mean * size + values[right] * sizes[right]) & ULONG_MAX) // both
        size = both
    return np.array(values, column.dtype)
