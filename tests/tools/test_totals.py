# SPDX-License-Identifier: GPL-2.0-only
"""The totals of a part of a run."""

from __future__ import annotations

import kdamon
from kdamon.mm import Resident
from kdamon.monitoring.use import MemoryUse, WindowUse
from kdamon_tools.recorded.totals import added
from kdamon_tools.snapshot import Counters

USE = MemoryUse(12.0, Resident(8, 4, 0), (WindowUse(1.0, 4, 2, 6, 0, 8, 4, 4, 20),))


def test_totals_since_a_reading_leave_out_the_use_since_the_begin() -> None:
    before = kdamon.Counters(samples=10, cpu_s=1.0, sample_us=5000, use=USE)
    after = kdamon.Counters(samples=30, cpu_s=1.5, sample_us=10000, use=USE)
    assert Counters(samples=20, cpu_s=0.5, sample_us=10000) == added(before, after)
