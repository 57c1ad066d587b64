# SPDX-License-Identifier: GPL-2.0-only
"""The kernel versions whose files the tree can show."""

from __future__ import annotations

from typing import Final

__all__ = ["ABI_VERSIONS"]

#: Oldest first; files older than the first have no version. The last one is no release: it adds the files of DAMON's
#: development tree (damon/next) and those that only kdamon has.
ABI_VERSIONS: Final = (
    "6.12", "6.13", "6.14", "6.15", "6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3", "next",
)  # fmt: skip
