# SPDX-License-Identifier: GPL-2.0-only
"""Values that the command line and the monitoring share, where neither has to load the other."""

from __future__ import annotations

from typing import Final

__all__ = [
    "AGGR_US",
    "FORMATS",
    "LACKEY_RATE",
    "MAX_REGIONS",
    "MIN_REGIONS",
    "SAMPLE_US",
    "UPDATE_US",
]

#: Intervals in microseconds, and the bounds of the number of regions: the kernel's own defaults (damon_new_ctx()).
SAMPLE_US: Final = 5000
AGGR_US: Final = 100_000
UPDATE_US: Final = 1_000_000
MIN_REGIONS: Final = 10
MAX_REGIONS: Final = 1000

#: Names of the file formats that ``kdamon replay`` reads.
FORMATS: Final = ("recording", "perf", "lackey")
#: Accesses that make a second of a trace of valgrind's lackey, which has no times.
LACKEY_RATE: Final = 1_000_000
