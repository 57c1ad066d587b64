# SPDX-License-Identifier: GPL-2.0-only
"""What a picture is of, in words: raw, so that each form escapes them in its way."""

from __future__ import annotations

from kdamon_tools.snapshot import Recording
from kdamon_tools.units import format_seconds

__all__ = ["description_of", "subject_of"]


def subject_of(recording: Recording) -> str:
    """What was monitored."""
    config = recording.config
    if config.command:
        return " ".join(config.command)
    return "physical memory" if config.ops == "paddr" else f"process {config.pid}"


def description_of(recording: Recording) -> str:
    """When, for how long, and on which kernel."""
    origin = recording.origin
    began = None if origin.started_at is None else f"{origin.started_at:%Y-%m-%d %H:%M:%S %Z}"
    kernel = None if origin.kernel_release is None else f"Linux {origin.kernel_release}"
    words = (began, format_seconds(recording.seconds), kernel, recording.note)
    return " · ".join(word for word in words if word)
