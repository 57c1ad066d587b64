# SPDX-License-Identifier: GPL-2.0-only
"""Refuses processes and threads that cannot be monitored, before anything is armed in them."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from kdamon.mm import Task

__all__ = ["check_memory", "check_threads"]


def check_memory(task: Task) -> None:
    """Refuse threads of the kernel: OSError EINVAL."""
    from kdamon.mm.linux.task import LinuxTask  # noqa: PLC0415 (reports and simulated memory do without)

    if isinstance(task, LinuxTask) and task.is_kernel_thread():
        raise OSError(
            errno.EINVAL, f"process {task.pid} is a thread of the kernel: it has no memory of its own to monitor"
        )


def check_threads(tids: Sequence[int], task: Task) -> None:
    """Refuse threads that are none of the process: OSError ESRCH."""
    strange = [tid for tid in tids if not task.has_thread(tid)]
    if strange:
        names = " and ".join(map(str, strange))
        raise OSError(
            errno.ESRCH,
            f"process {task.pid} has no thread {names}, or it ended; name threads as /proc/{task.pid}/task does, by "
            "their numbers where kdamon runs",
        )
