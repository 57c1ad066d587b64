# SPDX-License-Identifier: GPL-2.0-only
"""Different values by sorting are those of numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdamon.arrays import distinct


@pytest.mark.parametrize(
    "values", [[], [7], [3, 3, 3], [2**64 - 1, 0, 4096, 0], [[4, 1], [1, 2]], np.repeat(np.arange(50)[::-1] << 12, 3)]
)
def test_distinct_values_ascend(values: Any) -> None:
    """None of them is lost, and their type stays."""
    given = np.array(values, np.uint64)
    found = distinct(given)
    assert np.uint64 == found.dtype
    assert sorted(set(given.ravel().tolist())) == found.tolist()
