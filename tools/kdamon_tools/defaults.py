# SPDX-License-Identifier: GPL-2.0-only
"""Values that the command line and the monitoring share, so that neither loads the other."""

from __future__ import annotations

from typing import Final

__all__ = ["FORMATS", "LACKEY_RATE"]

#: Names of the file formats that ``kdamon replay`` reads.
FORMATS: Final = ("reports", "perf", "lackey")
#: Accesses per second of a trace of valgrind's lackey, which has no times.
LACKEY_RATE: Final = 1_000_000
