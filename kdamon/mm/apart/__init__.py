# SPDX-License-Identifier: GPL-2.0-only
"""Helper processes that look at or act on memory, and may be lost where a call never returns."""
