# SPDX-License-Identifier: GPL-2.0-only
"""What DAMOS actions do to the memory of a process, and the filters on pages."""
