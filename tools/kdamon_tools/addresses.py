# SPDX-License-Identifier: GPL-2.0-only
"""Checks address ranges of a command line: impossible ones are errors, empty ones get a warning."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdamon_tools.errors import CommandError
from kdamon_tools.snapshot import Range

if TYPE_CHECKING:
    from kdamon.arrays import U64Array

__all__ = ["check_physical_addresses", "check_user_addresses", "doubtful_ranges", "end_of_user_space", "size_within"]

_HEXADECIMAL = "addresses are hexadecimal"


def end_of_user_space(cpuinfo: str | None = None) -> int:
    """The end (exclusive) of user addresses; an upper bound where this machine's limit is unknown.

    :param cpuinfo: contents of /proc/cpuinfo; None reads it.
    """
    if platform.machine() == "x86_64":
        if cpuinfo is None:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        # The kernel shows the flag only if it uses five-level page tables.
        if not re.search(r"^flags\s*:.*\bla57\b", cpuinfo, re.MULTILINE):
            return 1 << 47
    return 1 << 56


def check_user_addresses(ranges: Sequence[Range]) -> None:
    """Reject ranges that reach beyond user space: CommandError with status 2."""
    _check_end(ranges, end_of_user_space(), "user space")


def check_physical_addresses(ranges: Sequence[Range], ram: U64Array) -> None:
    """Reject ranges that reach beyond the machine's memory: CommandError with status 2.

    :param ram: the address ranges of memory, bytes, ascending, shape (n, 2).
    """
    _check_end(ranges, int(ram[-1, 1]) if len(ram) else 0, "the machine's memory")


def _check_end(ranges: Sequence[Range], limit: int, what: str) -> None:
    for start, end in ranges:
        if end > limit:
            beyond = start if start >= limit else end
            why = f"{beyond:#x} is beyond {what}, which ends at {limit:#x}"
            raise CommandError(f"--range {start:x}-{end:x}: {why}; {_HEXADECIMAL}", 2)


def doubtful_ranges(ranges: Sequence[Range], present: U64Array, what: str) -> Iterator[str]:
    """A warning about each of ``ranges`` that does not overlap ``present``, which may be intended.

    :param present: the present address ranges, bytes, ascending and disjoint, shape (n, 2).
    :param what: the beginning of the warning, such as ``nothing is mapped``.
    """
    for start, end in ranges:
        if not size_within([(start, end)], present):
            yield f"--range {start:x}-{end:x}: {what} there now, so no access can be observed; {_HEXADECIMAL}"


def size_within(ranges: Sequence[Range], present: U64Array) -> int:
    """The number of bytes of ``ranges`` that are ``present``, see :func:`doubtful_ranges`."""
    import numpy as np  # noqa: PLC0415 (a mistake on the command line must not wait for it)

    from kdamon.mm.ranges import overlaps  # noqa: PLC0415

    return int(overlaps(np.array(ranges, np.uint64).reshape(-1, 2), present).sum())
