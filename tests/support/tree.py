# SPDX-License-Identifier: GPL-2.0-only
"""Paths of a tree."""

from __future__ import annotations

__all__ = ["CONTEXT", "KDAMOND", "KDAMONDS"]

KDAMONDS = "/admin/kdamonds"
KDAMOND = f"{KDAMONDS}/0"
CONTEXT = f"{KDAMOND}/contexts/0"
