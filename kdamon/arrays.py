# SPDX-License-Identifier: GPL-2.0-only
"""Names for numpy arrays in signatures, one for each kind of element; their shapes are in the docstrings.

And what numpy does too slowly.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "F64Array",
    "I32Array",
    "I64Array",
    "Indexes",
    "Mask",
    "Records",
    "U8Array",
    "U32Array",
    "U64Array",
    "distinct",
]

U8Array = npt.NDArray[np.uint8]
U32Array = npt.NDArray[np.uint32]
#: Addresses and sizes, which wrap as the kernel's ``unsigned long`` does.
U64Array = npt.NDArray[np.uint64]
I32Array = npt.NDArray[np.int32]
I64Array = npt.NDArray[np.int64]
F64Array = npt.NDArray[np.float64]
#: Which rows of another array.
Mask = npt.NDArray[np.bool_]
#: The numbers of rows of another array.
Indexes = npt.NDArray[np.intp]
#: Rows of a structured array.
Records = npt.NDArray[np.void]

Number = TypeVar("Number", bound=np.generic)


def distinct(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """The different ``values``, ascending, shape (n,): :func:`numpy.unique` by sorting.

    Since numpy 2.3 that function hashes, which takes fifty times as long for a million addresses of pages. It also
    loads ``numpy.ma``, 10 ms in which no kdamond runs.
    """
    ordered = np.sort(values, axis=None)
    first = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]
