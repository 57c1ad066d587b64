# SPDX-License-Identifier: GPL-2.0-only
"""One access report as a record of numpy, and whole batches of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdamon.arrays import I32Array, Mask, Records

__all__ = ["REPORT_DTYPE", "pick_reports", "report_array", "reports_about"]


#: Deviation: docs/deviations.md#fields-of-a-report
#: One report in a batch: the fields of :class:`kdamon.damon.damon_access_report` in their order, each where a C
#: compiler puts it.
REPORT_DTYPE = np.dtype(
    [
        ("pid", np.int32),
        ("addr", np.uint64),
        ("size", np.uint64),
        ("nr_accesses", np.int32),
        ("node_id", np.int32),
        ("write", np.bool_),
        ("cpu", np.int32),
        ("tid", np.int32),
    ],
    align=True,
)


def reports_about(reports: Records, pids: I32Array, chosen: frozenset[int]) -> Records:
    """Those of ``reports`` that are about any of ``chosen``.

    :param pids: what of each, shape (n,); or of all of them, shape (1,).
    """
    if len(pids) == 1:
        return reports if int(pids[0]) in chosen else reports[:0]
    return pick_reports(reports, np.isin(pids, list(chosen)))


def pick_reports(reports: Records, mask: Mask) -> Records:
    """The reports where ``mask`` is true: as a whole, not field by field."""
    if mask.all():
        return reports
    opaque = reports.view(f"V{REPORT_DTYPE.itemsize}")
    return opaque[mask].view(REPORT_DTYPE)


def report_array(n: int = 0, **columns: Any) -> Records:
    """A batch of ``n`` reports with the defaults of one, and ``columns`` (numbers or shape (n,)) set."""
    reports = np.zeros(n, REPORT_DTYPE)
    reports["nr_accesses"] = 1
    reports["size"] = 1
    reports["node_id"] = reports["cpu"] = -1
    for name, column in columns.items():
        reports[name] = column
    return reports
