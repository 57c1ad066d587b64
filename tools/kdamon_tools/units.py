# SPDX-License-Identifier: GPL-2.0-only
"""Numbers as people write and read them."""

from __future__ import annotations

import argparse
import errno
import re
from typing import Final

from kdamon_fs.kstrtox import bitmap_parselist
from kdamon_fs.sysfs_sample import nr_cpu_ids

__all__ = [
    "format_bytes",
    "format_seconds",
    "parse_cpus",
    "parse_positive",
    "parse_range",
    "parse_seconds",
    "parse_tids",
    "parse_unsigned",
]

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def format_bytes(size: float) -> str:
    """``size`` bytes in the largest unit that leaves a number of at least 1."""
    for unit in _UNITS:
        if abs(size) < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """A time as a table shows it: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def parse_unsigned(text: str) -> int:
    """A number from 0 to 2**64 - 1, decimal or 0x..., from a command line."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 on")
    if value >= 1 << 64:
        raise argparse.ArgumentTypeError(f"'{text}' is too large")
    return value


def parse_positive(text: str) -> int:
    """A number from 1 on, from a command line."""
    value = parse_unsigned(text)
    if not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 on")
    return value


def parse_seconds(text: str) -> float:
    """A positive, finite time in seconds, from a command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number of seconds")
    return value


def parse_range(text: str) -> tuple[int, int]:
    """START-END in bytes, hexadecimal as in /proc/PID/maps, with or without 0x."""
    start_text, dash, end_text = text.partition("-")
    try:
        start, end = int(start_text, 16), int(end_text, 16)
    except ValueError:
        start, end = 0, 0
    if not dash or not 0 <= start < end < 1 << 64:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a range START-END of hexadecimal addresses, such as 7f0000000000-7f0001000000"
        )
    return start, end


def parse_cpus(text: str, nr_cpus: int | None = None) -> tuple[int, ...]:
    """Numbers of CPUs as the kernel writes them, such as 0-3,5, from a command line.

    :param nr_cpus: how many there can be; None: those of this machine.
    """
    limit = nr_cpus or nr_cpu_ids()
    try:
        cpus = bitmap_parselist(text, limit)
    except OSError as error:
        if error.errno in (errno.ERANGE, errno.EOVERFLOW):
            raise argparse.ArgumentTypeError(
                f"'{text}' names a CPU that {'cannot be' if nr_cpus else 'this machine does not have'}: "
                f"the last one is {limit - 1}"
            ) from None
        cpus = ()
    if not cpus:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of CPUs, such as 0-3,5")
    return cpus


def parse_tids(text: str) -> tuple[int, ...]:
    """Numbers of threads, such as 12,13, from a command line."""
    if re.fullmatch(r"[0-9]{1,10}(,[0-9]{1,10})*", text):
        tids = tuple(int(word) for word in text.split(","))
        if all(0 < tid < 1 << 31 for tid in tids):
            return tids
    raise argparse.ArgumentTypeError(f"'{text}' is not a list of threads, such as 12,13")
