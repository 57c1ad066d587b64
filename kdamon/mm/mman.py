# SPDX-License-Identifier: GPL-2.0-only
"""Advice about memory by number (``include/uapi/asm-generic/mman-common.h``)."""

from __future__ import annotations

from typing import Final

__all__ = ["MADV_COLD", "MADV_COLLAPSE", "MADV_HUGEPAGE", "MADV_NOHUGEPAGE", "MADV_PAGEOUT", "MADV_WILLNEED"]

MADV_WILLNEED: Final = 3
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_COLD: Final = 20
MADV_PAGEOUT: Final = 21
MADV_COLLAPSE: Final = 25
