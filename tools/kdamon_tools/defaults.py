# SPDX-License-Identifier: GPL-2.0-only
"""Values that the command line and the monitoring share, so that neither loads the other."""

from __future__ import annotations

from typing import Final

__all__ = ["BY", "FIGURES", "FORMATS", "LACKEY_RATE", "VIEWS"]

#: Names of the file formats that ``kdamon replay`` reads.
FORMATS: Final = ("reports", "perf", "lackey")
#: Accesses per second of a trace of valgrind's lackey, which has no times.
LACKEY_RATE: Final = 1_000_000
#: Names of the views of a recording.
VIEWS: Final = ("summary", "heatmap", "where", "wss", "idle", "regions", "threads", "cpus")
#: The figures that ``kdamon diff`` compares, and their titles.
FIGURES: Final = {
    "wss": "working set",
    "hot": "hot",
    "cold": "cold",
    "unknown": "unknown",
    "resident": "in memory",
    "idle": "idle for 10 s",
}
#: How accesses have to be grouped for a view.
BY: Final = {"threads": "thread", "cpus": "cpu"}
