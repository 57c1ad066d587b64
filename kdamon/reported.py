# SPDX-License-Identifier: GPL-2.0-only
"""The operations set for reports alone: nothing is sampled, what others report drives the monitoring.

The series lets an operations set without ``check_accesses`` be driven by :func:`kdamon.reports.damon_report_access`;
this is one for whoever has a source of reports and needs nothing else. A target is a number that reports carry as their
``pid``: a process, or anything else that has addresses. Its regions have to be given.
"""

from __future__ import annotations

from kdamon.core import damon_register_ops
from kdamon.damon import damon_operations, damon_ops_id
from kdamon.vaddr import damon_va_eligible_report

__all__: list[str] = []

damon_register_ops(
    damon_operations(
        id=damon_ops_id.DAMON_OPS_REPORTS,
        eligible_report=damon_va_eligible_report,
        target_has_pid=True,
    )
)
