# SPDX-License-Identifier: GPL-2.0-only
"""Sets of addresses as ranges: arrays of [start, end) in bytes, ascending and disjoint, shape (n, 2)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from kdamon.mm import U64Array

__all__ = ["NO_RANGES", "blocks", "inside", "intersect", "of_pages", "subtract", "total", "union"]

_PAGE_SIZE: Final = np.uint64(4096)
_ULONG_MAX: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)

#: No addresses.
NO_RANGES: Final[U64Array] = np.empty((0, 2), dtype=np.uint64)


def total(ranges: U64Array) -> int:
    """How many bytes ``ranges`` are."""
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def inside(ranges: U64Array, addrs: U64Array) -> npt.NDArray[np.bool_]:
    """Which of ``addrs`` (shape (n,), any order) are in ``ranges``, shape (n,)."""
    if not len(ranges):
        return np.zeros(len(addrs), dtype=np.bool_)
    at = np.searchsorted(ranges[:, 0], addrs, side="right") - 1
    found: npt.NDArray[np.bool_] = (at >= 0) & (addrs < ranges[at, 1])
    return found


def intersect(left: U64Array, right: U64Array) -> U64Array:
    """What is in both; ranges are cut wherever one of either side begins or ends."""
    first = np.searchsorted(right[:, 1], left[:, 0], side="right")
    counts = np.maximum(np.searchsorted(right[:, 0], left[:, 1], side="left") - first, 0)
    rows = np.repeat(np.arange(len(left)), counts)
    others = np.arange(len(rows)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    found = np.empty((len(rows), 2), dtype=np.uint64)
    np.maximum(left[rows, 0], right[others, 0], out=found[:, 0])
    np.minimum(left[rows, 1], right[others, 1], out=found[:, 1])
    return found


def subtract(left: U64Array, right: U64Array) -> U64Array:
    """What is in ``left`` only."""
    edges = np.concatenate(([np.uint64(0)], right.ravel(), [_ULONG_MAX])).reshape(-1, 2)
    return intersect(left, edges[edges[:, 0] < edges[:, 1]])


def union(left: U64Array, right: U64Array) -> U64Array:
    """What is in one of them; neighbours become one range."""
    every = np.concatenate((left, right))
    every = every[every[:, 0].argsort(kind="stable")]
    if not len(every):
        return every
    reach = np.maximum.accumulate(every[:, 1])
    last = np.flatnonzero(np.append(every[1:, 0] > reach[:-1], True))
    first = np.append(0, last[:-1] + 1)
    return np.stack((every[first, 0], reach[last]), axis=1)


def of_pages(pages: U64Array) -> U64Array:
    """The ranges that ``pages`` (addresses of 4 KiB pages, ascending, shape (n,)) make up."""
    if not len(pages):
        return NO_RANGES
    last = np.flatnonzero(np.append(pages[1:] != pages[:-1] + _PAGE_SIZE, True))
    first = np.append(0, last[:-1] + 1)
    return np.stack((pages[first], pages[last] + _PAGE_SIZE), axis=1)


def blocks(ranges: U64Array, size: int) -> U64Array:
    """The aligned blocks of ``size`` bytes that ``ranges`` touch, each once, as ranges."""
    width = np.uint64(size)
    first = ranges[:, 0] // width
    counts = ((ranges[:, 1] - np.uint64(1)) // width - first + np.uint64(1)).astype(np.intp)
    before = np.cumsum(counts) - counts
    numbers = np.repeat(first, counts) + (np.arange(int(counts.sum())) - np.repeat(before, counts)).astype(np.uint64)
    if len(numbers):
        numbers = numbers[np.append(True, numbers[1:] != numbers[:-1])]
    return np.stack((numbers * width, (numbers + np.uint64(1)) * width), axis=1)
