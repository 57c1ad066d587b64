# SPDX-License-Identifier: GPL-2.0-only
"""The origin of a recording: machine, boot and time."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import frozen

from kdamon import __version__

__all__ = ["Origin", "origin_fields", "this_machine"]


@frozen
class Origin:
    """The machine and the time of a recording; None stands for unknown.

    :ivar kernel_release: as ``uname -r`` prints it.
    :ivar architecture: as ``uname -m`` prints it.
    :ivar boot_id: from /proc/sys/kernel/random; CLOCK_MONOTONIC times of one boot can be compared.
    :ivar started_at: the wall clock time at which the recording began.
    """

    kernel_release: str | None = None
    architecture: str | None = None
    boot_id: str | None = None
    started_at: datetime | None = None


def this_machine(started_at: datetime | None = None) -> Origin:
    """The origin of a recording on the running kernel.

    :param started_at: see :class:`Origin`; None: now.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        boot_id = None
    name = os.uname()
    return Origin(name.release, name.machine, boot_id, started_at or datetime.now(UTC))


def origin_fields(schema: str, origin: Origin) -> dict[str, Any]:
    """The first fields of each JSON object of kdamon.

    :param schema: the name and the version of the object's JSON Schema.
    """
    at = origin.started_at
    return {
        "schema": schema,
        "kdamon_version": __version__,
        "kernel_release": origin.kernel_release,
        "architecture": origin.architecture,
        "boot_id": origin.boot_id,
        "started_at": None if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
