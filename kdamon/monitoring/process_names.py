# SPDX-License-Identifier: GPL-2.0-only
"""The names of a monitored process's memory, where it is a process of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdamon.mm import Task

if TYPE_CHECKING:
    from kdamon.names.process import ProcessNames

__all__ = ["process_names"]


def process_names(task: Task | None) -> ProcessNames | None:
    """What names the memory of ``task``, the caller's to close; None where it is no process, or ended."""
    from kdamon.mm.linux.task import LinuxTask  # noqa: PLC0415 (reports and simulated memory do without)
    from kdamon.names.process import ProcessNames  # noqa: PLC0415 (most users need no names)

    if not isinstance(task, LinuxTask):
        return None
    try:
        return ProcessNames(task.pid, task.birth)
    except ProcessLookupError:
        return None
