# SPDX-License-Identifier: GPL-2.0-only
"""Describes memory that does not fit into a picture or table, so that no hot memory is omitted silently."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kdamon.arrays import F64Array, Mask
from kdamon_tools.units import format_bytes
from kdamon_tools.views.regions import HOT

__all__ = ["describe_rest"]


def describe_rest(sizes: F64Array, shares: F64Array, unknown: Mask, apart: npt.NDArray[Any] | None = None) -> str:
    """The hot bytes and the number of their areas, the unknown bytes, and the highest share of the remaining memory.

    :param sizes: bytes of each piece, shape (n,), n at least 1.
    :param shares: the share (0 to 1) of the sampling intervals in which each was accessed, shape (n,).
    :param unknown: whether each piece is mostly unknown, shape (n,).
    :param apart: whether each piece does not touch the one before, shape (n,); None: each is a separate area.
    """
    hot = shares >= HOT
    unknown = unknown & ~hot
    other = ~hot & ~unknown
    parts = []
    if hot.any():
        # A piece begins an area if the one before is not hot, or not adjacent.
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
