# SPDX-License-Identifier: GPL-2.0-only
"""Which addresses there can be: ranges from a command line are refused, or doubted, before they are monitored."""

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
    """The first address that no process can have; more than that where this machine's limit is not known.

    :param cpuinfo: contents of /proc/cpuinfo; None reads it.
    """
    if platform.machine() == "x86_64":
        if cpuinfo is None:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        # The kernel shows the flag only if it uses page tables of five levels.
        if not re.search(r"^flags\s*:.*\bla57\b", cpuinfo, re.MULTILINE):
            return 1 << 47
    return 1 << 56


def check_user_addresses(ranges: Sequence[Range]) -> None:
    """Refuse ranges that reach beyond user space: CommandError with status 2."""
    _check_end(ranges, end_of_user_space(), "user space")


def check_physical_addresses(ranges: Sequence[Range], ram: U64Array) -> None:
    """Refuse ranges that reach beyond the machine's memory: CommandError with status 2.

    :param ram: what is memory, bytes, ascending, shape (n, 2).
    """
    _check_end(ranges, int(ram[-1, 1]) if len(ram) else 0, "the machine's memory")


def _check_end(ranges: Sequence[Range], limit: int, what: str) -> None:
    for start, end in ranges:
        if end > limit:
            beyond = start if start >= limit else end
            why = f"{beyond:#x} is beyond {what}, which ends at {limit:#x}"
            raise CommandError(f"--range {start:x}-{end:x}: {why}; {_HEXADECIMAL}", 2)


def doubtful_ranges(ranges: Sequence[Range], present: U64Array, what: str) -> Iterator[str]:
    """A sentence about each of ``ranges`` in which nothing of ``present`` is: it need not be a mistake.

    :param present: what is there, bytes, ascending and disjoint, shape (n, 2).
    :param what: what is not the case then, such as ``nothing is mapped``.
    """
    for start, end in ranges:
        if not size_within([(start, end)], present):
            yield f"--range {start:x}-{end:x}: {what} there now, and without that no access is seen; {_HEXADECIMAL}"


def size_within(ranges: Sequence[Range], present: U64Array) -> int:
    """How many bytes of ``ranges`` are ``present``, see :func:`doubtful_ranges`."""
    import numpy as np  # noqa: PLC0415 (a mistake on the command line must not wait for it)

    from kdamon.mm.ranges import overlaps  # noqa: PLC0415

    return int(overlaps(np.array(ranges, np.uint64).reshape(-1, 2), present).sum())
