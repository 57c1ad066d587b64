# SPDX-License-Identifier: GPL-2.0-only
"""How the kernel reads numbers and words that somebody wrote (``lib/kstrtox.c``, ``sysfs_streq()``)."""

from __future__ import annotations

import errno
import re

from kdamon.kernel import INT_MAX, UINT_MAX, ULONG_MAX

__all__ = ["kstrtobool", "kstrtoint", "kstrtouint", "kstrtoul", "sysfs_streq"]

_NUMBER = re.compile(r"0[xX]([0-9a-fA-F]+)|0([0-7]*)|([1-9][0-9]*)")


def _kstrtoull(text: str, signs: str) -> int:
    """Parse a number with one of ``signs`` in front and one newline behind; base 16, 8 or 10 by its prefix."""
    start = 1 if text[:1] and text[0] in signs else 0
    match = _NUMBER.match(text, start)
    if match is None:
        raise OSError(errno.EINVAL, f"{text[:40]!r} is not a number")
    hexadecimal, octal, decimal = match.groups()
    if decimal is not None:
        value = int(decimal) if len(decimal) <= 20 else ULONG_MAX + 1
    else:
        value = int(hexadecimal, 16) if hexadecimal is not None else int(octal or "0", 8)
    if value > ULONG_MAX:
        raise OSError(errno.ERANGE, f"{text[:40]!r} is too large for 64 bits")
    if text[match.end() :] not in ("", "\n"):
        raise OSError(errno.EINVAL, f"{text[:40]!r} is not a number")
    return -value if start and text[0] == "-" else value


def kstrtoul(text: str) -> int:
    """Parse an ``unsigned long`` (64 bit) of any base: ``5000``, ``0x1388``, ``011610``, one newline may follow.

    :raises OSError: EINVAL not a number; ERANGE too large.
    """
    return _kstrtoull(text, "+")


def kstrtouint(text: str) -> int:
    """Parse an ``unsigned int`` (32 bit), otherwise as :func:`kstrtoul`."""
    value = _kstrtoull(text, "+")
    if value > UINT_MAX:
        raise OSError(errno.ERANGE, f"{text[:40]!r} is too large for 32 bits")
    return value


def kstrtoint(text: str) -> int:
    """Parse a signed ``int`` (32 bit), otherwise as :func:`kstrtoul`."""
    value = _kstrtoull(text, "+-")
    if not -INT_MAX - 1 <= value <= INT_MAX:
        raise OSError(errno.ERANGE, f"{text[:40]!r} does not fit in a signed 32 bit number")
    return value


def kstrtobool(text: str) -> bool:
    """Parse a truth value by its first character, ``on`` and ``off`` by two.

    :raises OSError: EINVAL it is none.
    """
    first = text[:1].lower()
    if first == "o":
        first = {"n": "y", "f": "n"}.get(text[1:2].lower(), "")
    if first and first in "yte1":
        return True
    if first and first in "nfd0":
        return False
    raise OSError(errno.EINVAL, f"{text[:40]!r} is neither Y nor N")


def sysfs_streq(written: str, keyword: str) -> bool:
    """Tell whether ``written`` is ``keyword``, one newline at its end left aside."""
    return written.removesuffix("\n") == keyword
