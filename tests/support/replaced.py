# SPDX-License-Identifier: GPL-2.0-only
"""A file that kdamon replaces."""

from __future__ import annotations

from pathlib import Path

from kdamon_tools.output.replacement import Replacement

__all__ = ["replaced"]


def replaced(path: Path, content: bytes = b"new") -> None:
    """Write ``content`` and put it in place."""
    with Replacement(path) as replacement:
        replacement.file.write(content)
        replacement.commit()
