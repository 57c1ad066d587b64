# SPDX-License-Identifier: GPL-2.0-only
"""What kdamon needs and DAMON has no file for: text to numbers, capabilities, mounts, names, helper processes."""
