# SPDX-License-Identifier: GPL-2.0-only
"""What the counters of a snapshot's regions mean: shares of time, and seconds."""

from __future__ import annotations

import numpy as np

from kdamon.arrays import F64Array
from kdamon.monitoring.config import Config
from kdamon_tools.snapshot import Snapshot

__all__ = ["ages_of", "aggr_seconds", "shares_of", "weight_of"]


def aggr_seconds(snapshot: Snapshot, config: Config) -> float:
    """The aggregation interval that the ages of a snapshot count, seconds."""
    return (snapshot.aggr_us or config.aggr_us) / 1e6


def weight_of(snapshot: Snapshot, config: Config) -> float:
    """How much a snapshot counts in means over time: its aggregations, in units of the configuration's interval."""
    return snapshot.merged * (snapshot.aggr_us or config.aggr_us) / config.aggr_us


def shares_of(snapshot: Snapshot, config: Config) -> F64Array:
    """The share, 0 to 1, of the sampling intervals in which each region was accessed."""
    return np.minimum(1.0, snapshot.regions["mean_accesses"].astype(np.float64) / config.max_nr_accesses)


def ages_of(snapshot: Snapshot, config: Config) -> F64Array:
    """The age of each region, seconds, shape (n,)."""
    # In microseconds it is too large for the integers of the table after 71 minutes.
    return snapshot.regions["age"].astype(np.float64) * aggr_seconds(snapshot, config)
