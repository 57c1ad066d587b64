# SPDX-License-Identifier: GPL-2.0-only
"""Faults of huge pages that are armed as a whole stand for all sampled pages in them.

Several regions may share a huge page, and each of them samples it as its own. The first access anywhere in it takes
the protection off. Reported at its own address it would count for one region alone, which need not be one that sampled
this page in this interval. So it is reported at the sampled addresses, as an accessed bit would show it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdamon.arrays import U64Array
from kdamon.mm import Faults

__all__ = ["spread"]


# Deviation: docs/deviations.md#huge-pages-with-page_fault
def spread(faults: Faults, pid: int, whole: Sequence[U64Array]) -> Faults:
    """Return ``faults`` with one at each sampled page instead of each that is in a huge page that was armed.

    :param faults: of any processes, shape (n,).
    :param pid: the process whose pages these are.
    :param whole: start and end of a huge page and a sampled page in it, bytes, arrays of shape (k, 3), none empty.
    """
    if not whole:
        return faults
    rows = np.unique(np.concatenate(whole), axis=0)
    starts, first, counts = np.unique(rows[:, 0], return_index=True, return_counts=True)
    at = np.searchsorted(starts, faults["addr"], side="right") - 1
    hit = (faults["pid"] == pid) & (at >= 0) & (faults["addr"] < rows[first[at], 1])
    if not hit.any():
        return faults
    at = at[hit]
    more = np.repeat(faults[hit], counts[at])
    ends = np.cumsum(counts[at])
    nth = np.arange(len(more)) - np.repeat(ends - counts[at], counts[at])
    more["addr"] = rows[np.repeat(first[at], counts[at]) + nth, 2]
    return np.concatenate((faults[~hit], more))
