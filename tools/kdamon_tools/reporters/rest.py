# SPDX-License-Identifier: GPL-2.0-only
"""What finds no room in a picture or table, in a few words: nothing that is hot disappears without them."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kdamon.arrays import F64Array, Mask
from kdamon_tools.units import format_bytes

__all__ = ["HOT", "describe_rest"]

#: Memory that was accessed in at least this share of the sampling intervals is hot.
HOT: Final = 0.5


def describe_rest(sizes: F64Array, shares: F64Array, unknown: Mask, apart: npt.NDArray[Any] | None = None) -> str:
    """How much is hot and in how many areas, how much is unknown, and how hot the remaining memory is at most.

    :param sizes: bytes of each piece, shape (n,), n at least 1.
    :param shares: in what share (0 to 1) of the sampling intervals each was accessed, shape (n,).
    :param unknown: which pieces were mostly not sampled, shape (n,).
    :param apart: which pieces do not touch the one before, shape (n,); None: each is an area of its own.
    """
    hot = shares >= HOT
    unknown = unknown & ~hot
    other = ~hot & ~unknown
    parts = []
    if hot.any():
        # A piece begins an area if the one before is not hot, or elsewhere.
        begins = hot & (np.concatenate([[True], ~hot[:-1]]) | (True if apart is None else apart))
        areas = int(begins.sum())
        parts.append(f"{format_bytes(sizes[hot].sum())} hot in {areas} {'areas' if areas > 1 else 'area'}")
    if unknown.any():
        parts.append(f"{format_bytes(sizes[unknown].sum())} unknown")
    if other.any():
        most = math.ceil(100 * float(shares[other].max()) - 1e-6)
        parts.append(
            f"{format_bytes(sizes[other].sum())} " + (f"accessed in at most {most}%" if most else "not accessed")
        )
    return ", ".join(parts)
