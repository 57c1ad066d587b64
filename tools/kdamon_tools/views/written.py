# SPDX-License-Identifier: GPL-2.0-only
"""How much of what has a name was written, in records that know it."""

from __future__ import annotations

import numpy as np
from attrs import evolve

from kdamon.arrays import F64Array, distinct
from kdamon_tools.snapshot import REGION, Recording, Snapshot
from kdamon_tools.views.measures import weight_of
from kdamon_tools.views.profile import swept
from kdamon_tools.views.regions import Named

__all__ = ["Written"]


class Written:
    """Adds up written memory by name.

    It is known where only writes were counted, and where accesses were grouped: those reports say what was written.
    Merged snapshots do not say where in a region the reports of a group were, and are left out.

    :param named: the names.
    """

    def __init__(self, recording: Recording, named: Named) -> None:
        self._named = named
        self._config = recording.config
        self._write_only = recording.config.write_only
        self._grouped = bool(recording.config.by) and not recording.config.read_only
        self._written, self._known = np.zeros((2, len(named.names)))
        self._some = False

    def add(self, snapshot: Snapshot, kinds: F64Array) -> None:
        """Add a snapshot.

        :param kinds: its bytes by name: hot, warm, cold and unknown, shape (4, number of names).
        """
        if self._write_only:
            written = kinds[:2].sum(axis=0)
        elif self._grouped and snapshot.groups is not None and snapshot.merged == 1:
            written = self._in_groups(snapshot)
        else:
            return
        self._some = True
        weight = weight_of(snapshot, self._config)
        self._written += weight * written
        self._known += weight * kinds[:3].sum(axis=0)

    def _in_groups(self, snapshot: Snapshot) -> F64Array:
        """Bytes by name of the regions that any group wrote."""
        assert snapshot.groups is not None
        tables = (snapshot.groups.regions, snapshot.regions)
        edges = distinct(np.concatenate([table[side] for table in tables for side in ("start", "end")]))
        if len(edges) < 2:
            return np.zeros(len(self._named.names))
        writes, inside = (
            swept([np.searchsorted(edges, table[side]) for side in ("start", "end")], values, len(edges))
            for table, values in zip(
                tables, (tables[0]["nr_writes"].astype(np.float64), np.ones(len(tables[1]))), strict=True
            )
        )
        pieces = np.flatnonzero((writes > 0.5) & (inside > 0.5))
        regions = np.zeros(len(pieces), REGION)
        regions["start"], regions["end"] = edges[pieces], edges[pieces + 1]
        return self._named.sums(evolve(snapshot, regions=regions), np.ones((1, len(regions))))[0]

    def shares(self) -> list[float | None] | None:
        """The share of each name that was written in an aggregation interval, 0 to 1, the mean over time.

        None instead of a share: all of it is unknown; None instead of the list: the recording does not know.
        """
        if not self._some:
            return None
        shares = np.minimum(1.0, self._written / np.maximum(self._known, 1.0)).round(6)
        return [float(share) if known >= 1 else None for share, known in zip(shares, self._known.tolist(), strict=True)]
