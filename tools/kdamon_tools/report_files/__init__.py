# SPDX-License-Identifier: GPL-2.0-only
"""Access reports in files: kdamon's own recording, and the texts of other tools."""
