# SPDX-License-Identifier: GPL-2.0-only
"""Default values of monitoring, for those that load nothing else, such as a command line."""

from __future__ import annotations

from typing import Final

__all__ = ["AGGR_US", "LONGEST_SAMPLE_US", "MAX_REGIONS", "MIN_REGIONS", "SAMPLE_US", "UPDATE_US"]

#: Intervals in microseconds, and the bounds of the number of regions: those of damon_new_ctx(), but for the update.
SAMPLE_US: Final = 5000
AGGR_US: Final = 100_000
UPDATE_US: Final = 1_000_000
MIN_REGIONS: Final = 10
MAX_REGIONS: Final = 1000
#: Sampling intervals that are tuned do not become longer.
LONGEST_SAMPLE_US: Final = 10_000_000
