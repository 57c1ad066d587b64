# SPDX-License-Identifier: GPL-2.0-only
"""File descriptors that stand for processes (``kernel/pid.c: pidfd_open()``)."""

from __future__ import annotations

import select

from kdamon.lib.syscalls import NR_PIDFD_OPEN, checked, syscall

__all__ = ["exited", "pidfd_open"]


def exited(pidfd: int) -> bool:
    """Return whether the process ended that ``pidfd`` stands for, be it reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def pidfd_open(pid: int) -> int:
    """A file descriptor for process ``pid``; OSError as pidfd_open(2)."""
    return checked(syscall(NR_PIDFD_OPEN, pid, 0), f"pidfd_open({pid})")
