# SPDX-License-Identifier: GPL-2.0-only
"""Warnings that would come with every sampling interval are logged once."""

from __future__ import annotations

import functools
import logging

__all__ = ["warn_once"]

log = logging.getLogger("kdamon")


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, unless this process logged the same one before."""
    log.warning("%s", message)
