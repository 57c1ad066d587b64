# SPDX-License-Identifier: GPL-2.0-only
"""Tables of groups from literals."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kdamon.reports.groups import GROUP_ADDRESS, GROUP_REGION, GroupTable

__all__ = ["group_table"]


def group_table(
    rows: Iterable[tuple[int, int, int, float, int, int, int, int]], addresses: Iterable[tuple[int, int, int]] = ()
) -> GroupTable:
    """A table from rows (group, start, end, nr_accesses, nr_reports, nr_writes, first, last) and addresses
    (address, group, nr_writes), in any order."""
    regions = np.array(sorted(rows), GROUP_REGION)
    return GroupTable(regions, np.array(sorted(addresses), GROUP_ADDRESS))
