# SPDX-License-Identifier: GPL-2.0-only
"""Parses and formats numbers, sizes, times and ranges for users."""

from __future__ import annotations

import argparse
import errno
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "format_bytes",
    "format_seconds",
    "parse_cpus",
    "parse_file",
    "parse_interval",
    "parse_number",
    "parse_pids",
    "parse_positive",
    "parse_range",
    "parse_seconds",
    "parse_size",
    "parse_span",
    "parse_tids",
    "parse_unsigned",
]

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
# Spelled out: Python's own conversions also accept 5_000, +5, surrounding blanks, and the digits of any script.
_NUMBER: Final = re.compile(r"[0-9a-fA-FxX]+")
#: A range's end with this many digits is decimal, because no hexadecimal address is as long: damo and JSON write so.
_DECIMAL_RANGE: Final = re.compile(r"(?:0|[1-9][0-9]{0,19})-[1-9][0-9]{13,19}")
_HEXADECIMAL: Final = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,16}")
_DECIMAL: Final = r"[0-9]{1,20}(?:\.[0-9]{1,20})?|\.[0-9]{1,20}"
_TIME_UNITS: Final = {"us": 1, "ms": 1000, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}
_TIME: Final = re.compile(rf"({_DECIMAL})({'|'.join(_TIME_UNITS)})")
_SIZE_UNITS: Final = {name + suffix: 10 * (n + 1) for n, name in enumerate("KMGT") for suffix in ("", "iB", "B")}
_SIZE: Final = re.compile(rf"([0-9]{{1,20}})({'|'.join(_SIZE_UNITS)})")
_INT_MAX: Final = 2**31 - 1
#: The largest time that fits a signed 64-bit number of nanoseconds.
_LONGEST_US: Final = (1 << 63) // 1000 - 1


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


def parse_unsigned(text: str, least: int = 0) -> int:
    """A number from ``least`` to 2**64 - 1 as files of the tree accept it: decimal, 0x... hexadecimal, 0... octal."""
    try:
        value = _number(text)
    except OSError as error:
        what = "is too large" if error.errno == errno.ERANGE else f"is not a number from {least} on"
        raise argparse.ArgumentTypeError(f"{text!r} {what}") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} on")
    return value


def _number(text: str) -> int:
    """``text`` as the tree parses it, but without a plus and a newline.

    :raises OSError: EINVAL, ERANGE.
    """
    from kdamon.kstrtox import kstrtoul  # noqa: PLC0415 (not for --help)

    if not _NUMBER.fullmatch(text):
        raise OSError(errno.EINVAL, "not a number")
    return kstrtoul(text)


def parse_positive(text: str) -> int:
    """A number from 1 on, from a command line."""
    return parse_unsigned(text, 1)


def parse_number(text: str, least: int = 0) -> int:
    """A number from ``least`` to 2**31 - 1, from a command line: a process, or a number of regions."""
    value = parse_unsigned(text, least)
    if value > _INT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is too large: {_INT_MAX} is the largest")
    return value


def parse_interval(text: str) -> int:
    """A time in microseconds, from 1 on, from a command line: 5000, or with a unit as 5ms, 0.1s, 2m."""
    from decimal import Decimal  # noqa: PLC0415 (not for --help)

    try:
        match = _TIME.fullmatch(text)
        microseconds = Decimal(match[1]) * _TIME_UNITS[match[2]] if match else Decimal(_number(text))
    except OSError as error:
        microseconds = Decimal(_LONGEST_US + 1 if error.errno == errno.ERANGE else 0)
    if microseconds > _LONGEST_US:
        raise argparse.ArgumentTypeError(f"{text!r} is too large")
    if microseconds < 1 or microseconds % 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of microseconds from 1 on, such as 5000, or 5ms (us, ms, s, m, h, d)"
        )
    return int(microseconds)


def parse_seconds(text: str) -> float:
    """A positive time in seconds, from a command line: 30, 0.5, or with a unit as 500ms, 2m."""
    from decimal import Decimal  # noqa: PLC0415 (not for --help)

    match = _TIME.fullmatch(text) or re.fullmatch(rf"({_DECIMAL})()", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds, such as 30, 0.5 or 2m")
    microseconds = Decimal(match[1]) * _TIME_UNITS[match[2] or "s"]
    if microseconds > _LONGEST_US:
        raise argparse.ArgumentTypeError(f"{text!r} is too large")
    if microseconds < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds: a microsecond is the shortest")
    return float(microseconds / _TIME_UNITS["s"])


def parse_size(text: str) -> float:
    """A number of bytes, with a unit or without: 4096, 64M, 1.5GiB.

    :raises ValueError: it is none.
    """
    match = re.fullmatch(rf"({_DECIMAL})([A-Za-z]*)", text)
    if not match or (match[2] not in ("", "B") and match[2] not in _SIZE_UNITS):
        raise ValueError(f"{text!r} is not a size, such as 4096, 64M or 1.5G")
    return float(match[1]) * (1 << _SIZE_UNITS.get(match[2], 0))


def parse_span(text: str) -> tuple[float | None, float | None]:
    """Begin and end in seconds, from a command line: 10-20, 1m-, -90s; None where there is no bound."""
    begin, dash, end = text.partition("-")
    try:
        span = _second(begin), _second(end)
    except argparse.ArgumentTypeError:
        span = None, None
    if not dash or span == (None, None) or (None not in span and span[0] >= span[1]):  # type: ignore[operator]
        raise argparse.ArgumentTypeError(f"{text!r} is not a time from A to B, such as 10-20, 1m-2m, 30- or -30")
    return span


def _second(text: str) -> float | None:
    """A time in seconds, 0 among them; None for an empty text."""
    return None if not text else 0.0 if re.fullmatch(r"0+(\.0*)?(us|ms|s|m|h|d)?", text) else parse_seconds(text)


def _parse_address(text: str) -> int:
    """An address, hexadecimal, or a decimal number with a unit of bytes such as 4G; -1 if it is none."""
    if match := _SIZE.fullmatch(text):
        return int(match[1]) << _SIZE_UNITS[match[2]]
    return int(text, 16) if _HEXADECIMAL.fullmatch(text) else -1


def parse_file(text: str) -> Path:
    """The name of a file, from a command line."""
    from pathlib import Path  # noqa: PLC0415 (not for --help)

    if not text:
        raise argparse.ArgumentTypeError("the file name is empty")
    return Path(text)


def parse_range(text: str) -> tuple[int, int]:
    """START-END in bytes, hexadecimal as in /proc/PID/maps, with or without 0x; or with units of bytes, as 4G-6G.

    Two numbers of the digits 0 to 9 are decimal if the second one has 14 digits or more.
    """
    start_text, dash, end_text = text.partition("-")
    if _DECIMAL_RANGE.fullmatch(text):
        start, end = int(start_text), int(end_text)
    else:
        start, end = _parse_address(start_text), _parse_address(end_text)
    if not dash or not (0 <= start < 1 << 64 and 0 <= end < 1 << 64):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a range START-END of hexadecimal addresses, such as 7f0000000000-7f0001000000"
        )
    if start >= end:
        raise argparse.ArgumentTypeError(f"{text!r} is empty: the end of a range must be above its start")
    return start, end


def parse_cpus(text: str, nr_cpus: int | None = None) -> tuple[int, ...]:
    """Numbers of CPUs as the kernel writes them, such as 0-3,5, from a command line.

    :param nr_cpus: the number of possible CPUs; None: that of this machine.
    """
    from kdamon.kstrtox import bitmap_parselist  # noqa: PLC0415 (not for --help)
    from kdamon_fs.sysfs_sample import nr_cpu_ids  # noqa: PLC0415 (likewise)

    limit = nr_cpus or nr_cpu_ids()
    try:
        # White space separates in the tree.
        cpus = () if re.search(r"\s", text) else bitmap_parselist(text, limit)
    except OSError as error:
        if error.errno in (errno.ERANGE, errno.EOVERFLOW):
            raise argparse.ArgumentTypeError(
                f"{text!r} names a CPU that {'cannot be' if nr_cpus else 'this machine does not have'}: "
                f"the last one is {limit - 1}"
            ) from None
        cpus = ()
    if not cpus:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of CPUs, such as 0-3,5")
    return cpus


def parse_tids(text: str) -> tuple[int, ...]:
    """Numbers of threads, such as 12,13, from a command line; each as :func:`parse_unsigned` accepts it."""
    try:
        return tuple(parse_number(word, least=1) for word in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of threads, such as 12,13") from None


def parse_pids(text: str) -> tuple[int, ...]:
    """Numbers of processes, such as 12,13, from a command line; each as :func:`parse_unsigned` accepts it."""
    try:
        return tuple(parse_number(word, least=1) for word in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a process, or a list of them, such as 12,13") from None
