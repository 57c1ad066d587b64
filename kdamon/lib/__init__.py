# SPDX-License-Identifier: GPL-2.0-only
"""Parts that DAMON has no file for: numbers in text, capabilities, mounts, path names, helper processes."""
