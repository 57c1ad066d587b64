# SPDX-License-Identifier: GPL-2.0-only
"""/proc/PID/status and /proc/PID/stat, or those of a thread (``fs/proc/array.c``)."""

from __future__ import annotations

__all__ = ["stat_fields", "stat_name", "status_fields"]


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
