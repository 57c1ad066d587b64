# SPDX-License-Identifier: GPL-2.0-only
"""Default values of monitoring, for those that load nothing else, such as a command line."""

from __future__ import annotations

from typing import Final

__all__ = [
    "AGGR_US",
    "LONGEST_SAMPLE_US",
    "MAX_REGIONS",
    "MIN_REGIONS",
    "SAMPLE_US",
    "TUNING_AGGRS",
    "TUNING_BP",
    "UPDATE_US",
]

#: Intervals in microseconds, and the bounds of the number of regions: those of damon_new_ctx(), but for the update.
SAMPLE_US: Final = 5000
AGGR_US: Final = 100_000
UPDATE_US: Final = 1_000_000
MIN_REGIONS: Final = 10
MAX_REGIONS: Final = 1000
#: The goal of tuned intervals, which the documentation of the kernel recommends: so many of 10000 possible accesses are
#: found, and it is looked after so many aggregations.
TUNING_BP: Final = 400
TUNING_AGGRS: Final = 3
#: Sampling intervals that are tuned do not become longer.
LONGEST_SAMPLE_US: Final = 10_000_000
