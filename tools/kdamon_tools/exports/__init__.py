# SPDX-License-Identifier: GPL-2.0-only
"""Records as files of other tools: one module for each form, with the function ``export``."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Write"]

#: Writes a part of the file.
Write = Callable[[bytes], None]
