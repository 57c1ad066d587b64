# SPDX-License-Identifier: GPL-2.0-only
"""/proc/PID/status and /proc/PID/stat, or those of a thread (``fs/proc/array.c``)."""

from __future__ import annotations

from typing import Final

__all__ = ["is_kernel_thread", "stat_fields", "stat_name", "status_fields"]

#: In the flags of a stat file (include/linux/sched.h).
_PF_KTHREAD: Final = 0x0020_0000


def status_fields(contents: bytes) -> dict[str, str]:
    """The fields of a status file by their names; the values without blanks at their ends.

    A name of a thread may hold any byte: what is not UTF-8 becomes U+FFFD.
    """
    # Not splitlines(): a thread's name may hold a carriage return.
    lines = contents.decode("utf-8", "replace").split("\n")
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


def stat_fields(contents: bytes) -> list[bytes]:
    """The fields of a stat file after the name: the first one, proc(5)'s third, is the state.

    :returns: an empty list for an empty file, which a thread that ended has.
    """
    # The name is in parentheses, and may hold blanks and parentheses itself.
    return contents.rpartition(b")")[2].split()


def stat_name(contents: bytes) -> bytes:
    """The name in a stat file: 15 bytes at most, of any values."""
    return contents.partition(b"(")[2].rpartition(b")")[0]


def is_kernel_thread(contents: bytes) -> bool:
    """Return whether a stat file is that of a thread of the kernel.

    Lines that are missing in a status file do not show this: a process that is just ending has no memory either.
    """
    fields = stat_fields(contents)
    return bool(fields) and bool(int(fields[6]) & _PF_KTHREAD)
