# SPDX-License-Identifier: GPL-2.0-only
"""Access reports (the seed series' part of ``mm/damon/core.c``): records, queues, and how they count for regions."""
