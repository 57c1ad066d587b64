# SPDX-License-Identifier: GPL-2.0-only
"""What a truth file is compared with."""

from __future__ import annotations

from kdamon_tools.snapshot import Config, Counters, Recording, Snapshot

__all__ = ["recording"]


def recording(seconds: int = 10, a_second: int = 10) -> Recording:
    """A run of which every aggregation saw the same."""
    step = 1 / a_second
    times = [100 + n * step for n in range(1, seconds * a_second + 1)]
    table = [(0, 4096, 20.0, 0, 0.0), (4096, 1 << 47, 0.0, 9, 0.0)]
    return Recording(
        Config(pid=1), [Snapshot.of(time, table, seconds=step) for time in times], Counters(), 100.0, 100.0 + seconds
    )
