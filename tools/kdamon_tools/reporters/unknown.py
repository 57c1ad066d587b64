# SPDX-License-Identifier: GPL-2.0-only
"""Explains ``?``, memory that cannot be sampled, in a sentence."""

from __future__ import annotations

from collections.abc import Iterable

from kdamon.monitoring.config import Config
from kdamon_tools.reporters.shades import UNKNOWN
from kdamon_tools.snapshot import Snapshot

__all__ = ["explain_unknown"]

_ACCESSED_BITS = "pages that are mapped more than once (shared, or twice by one process), locked, or huge TLB"
_FAULTS = "huge pages, new mappings, memory with a userfaultfd of the process's own"
_PHYSICAL = "pages that no process maps, or more than one, locked ones, and huge TLB"


def explain_unknown(snapshots: Iterable[Snapshot], config: Config) -> str:
    """The meaning and the cause of the sign of unknown regions; empty if ``snapshots`` have no such region."""
    if not any((shot.regions["nr_unknown"] > 0.5 * config.max_nr_accesses).any() for shot in snapshots):
        return ""
    reason = _PHYSICAL if config.ops == "paddr" else _FAULTS if config.primitive == "page_fault" else _ACCESSED_BITS
    return f"{UNKNOWN} cannot be sampled: {reason}"
