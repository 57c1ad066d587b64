# SPDX-License-Identifier: GPL-2.0-only
"""The exact working set of a process: every page is observed once, and all are counted at the end of a window.

:mod:`kdamon.mm.working_set.by_faults` arms all pages, :mod:`kdamon.mm.working_set.by_accessed_bits` makes them old.
Neither samples, and neither knows regions: it is what samples are compared with.
"""
