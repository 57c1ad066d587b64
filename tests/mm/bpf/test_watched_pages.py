# SPDX-License-Identifier: GPL-2.0-only
"""Which pages can be watched does not depend on where they are."""

from __future__ import annotations

import numpy as np
import pytest

from kdamon.mm.bpf.watched_pages import PLACES, WatchedPages


@pytest.mark.parametrize("start", [1 << 30, 0x7F0012345000, 0x55D0AA000000])
@pytest.mark.parametrize("count", [5000, 51200, 400_000])
def test_pages_of_each_part_of_the_memory_share_their_place_alike(start: int, count: int) -> None:
    """Hot pages lie together: if they had more rivals for their places than others, fewer of them would be watched."""
    places = WatchedPages.places(np.uint64(start) + 4096 * np.arange(count, dtype=np.uint64))
    in_place = np.bincount(places, minlength=PLACES)
    rivals = [float(part.mean()) for part in np.array_split(in_place[places], 10)]
    expected = 1 + count / PLACES
    assert [pytest.approx(expected, rel=0.1)] * 10 == rivals
    # As by chance.
    assert 0.9 < in_place.var() / in_place.mean() < 1.1
