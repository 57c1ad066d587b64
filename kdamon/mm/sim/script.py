# SPDX-License-Identifier: GPL-2.0-only
"""The script of a simulated process: which memory is accessed, when and how often."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from attrs import define

from kdamon.arrays import U64Array
from kdamon.mm.ranges import NO_RANGES, union

__all__ = ["SimAccess", "touched"]


@define(slots=True, frozen=True)
class SimAccess:
    """A piece of a script: every page of [start, end) is accessed at random moments.

    The bounds should be multiples of the page size: the script knows addresses only.

    :ivar start: first address, bytes.
    :ivar end: end (exclusive).
    :ivar rate: mean accesses per page and second; infinity means always.
    :ivar begin: when it begins, seconds of the virtual clock.
    :ivar until: when it ends.
    :ivar write: whether the accesses are writes; only those fault where pages are armed.
    :ivar cpu: the CPU that makes them.
    :ivar tid: the thread that makes them, 0 the process's first.
    """

    start: int
    end: int
    rate: float = math.inf
    begin: float = 0.0
    until: float = math.inf
    write: bool = True
    cpu: int = 0
    tid: int = 0


def touched(script: Sequence[SimAccess], since: int, now: int) -> U64Array:
    """The memory that ``script`` is expected to access from ``since`` to ``now`` (nanoseconds), as ranges of bytes."""
    found = NO_RANGES
    for piece in script:
        overlap = min(now / 1e9, piece.until) - max(since / 1e9, piece.begin)
        if overlap > 0 and piece.rate * overlap >= 1:
            found = union(found, np.array([[piece.start, piece.end]], np.uint64))
    return found
