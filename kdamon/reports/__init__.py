# SPDX-License-Identifier: GPL-2.0-only
"""Access reports (the seed series' part of ``mm/damon/core.c``): records, queues, delivery, lookup and history.

No context is known here: :mod:`kdamon.damon` has queues and histories, and :mod:`kdamon.apply_reports` counts reports.
"""
