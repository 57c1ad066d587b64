# SPDX-License-Identifier: GPL-2.0-only
"""The operations set for reports alone: it samples nothing, and counts the reports of other sources.

The series lets an operations set without ``check_accesses`` be driven by
:func:`kdamon.reports.deliver.damon_report_access`; this one is for sources that need nothing else. A target is a number
that reports carry as their ``pid``: a process, or anything else that has addresses. Its regions have to be given.
Schemes only select regions: to act on a process by reports, use vaddr without any primitive.
(docs/deviations.md#the-operations-set-for-reports-alone)
"""

from __future__ import annotations

import logging

import numpy as np

from kdamon.arrays import Indexes, U64Array
from kdamon.damon import damon_ctx, damon_operations, damon_ops_id, damon_target, damos
from kdamon.lib.once import warn_once
from kdamon.vaddr import damon_va_eligible_report

__all__ = ["OPERATIONS"]

log = logging.getLogger("kdamon")


def _apply_scheme(_ctx: damon_ctx, _t: damon_target, rows: Indexes, s: damos) -> tuple[U64Array, U64Array]:
    """Apply ``s`` to no memory: there are no pages, so none passes its filters on pages."""
    warn_once(
        f"{s.action.value} has no effect: the operations set reports knows numbers only; "
        "to act on a process by reports, use vaddr and neither primitive"
    )
    return np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64)


#: The operations sets of this module.
OPERATIONS = (
    damon_operations(
        id=damon_ops_id.DAMON_OPS_REPORTS,
        eligible_report=damon_va_eligible_report,
        apply_scheme=_apply_scheme,
        target_has_pid=True,
    ),
)
