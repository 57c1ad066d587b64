# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's parsers of written values: numbers, words (``lib/kstrtox.c``, ``sysfs_streq()``), lists of numbers."""

from __future__ import annotations

import errno
import re

from kdamon.kernel import INT_MAX, PAGE_SIZE, UINT_MAX, ULONG_MAX, uint

__all__ = [
    "KMALLOC_MAX_SIZE",
    "bitmap_list",
    "bitmap_parselist",
    "kstrtobool",
    "kstrtoint",
    "kstrtouint",
    "kstrtoul",
    "parse_int_array",
    "sysfs_streq",
]

#: The largest allocation that the kernel makes in one piece on x86-64, bytes.
KMALLOC_MAX_SIZE = 1024 * PAGE_SIZE

_NUMBER = re.compile(r"0[xX]([0-9a-fA-F]+)|0([0-7]*)|([1-9][0-9]*)")


def _kstrtoull(text: str, signs: str) -> int:
    """Parse a number that may have one of ``signs`` before and one newline after it; its prefix decides the base."""
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
    """Return whether ``written`` is ``keyword``; one newline at its end does not count."""
    return written.removesuffix("\n") == keyword


# Sets of bits (lib/bitmap-str.c).


#: White space by the kernel's isspace(), in Latin-1.
_SPACES = frozenset("\t\n\v\f\r \xa0")
_DIGITS = re.compile(r"[0-9]*")


def _bit_number(text: str, at: int, nr_bits: int) -> tuple[int, int]:
    """The number at ``text[at]`` (``N`` is the largest number) and the position after it (``bitmap_getnum()``)."""
    if text[at : at + 1] == "N":
        return nr_bits - 1, at + 1
    match = _DIGITS.match(text, at)
    assert match is not None
    digits = match[0]
    if not digits:
        raise OSError(errno.EINVAL, f"a number or a range of numbers is expected at {text[at : at + 40]!r}")
    if len(digits.lstrip("0")) > 10 or int(digits) > UINT_MAX:
        raise OSError(errno.EOVERFLOW, f"{digits[:40]} does not fit in 32 bits")
    return int(digits), match.end()


def _bit_range(text: str, at: int, nr_bits: int) -> tuple[range, int, int | None]:
    """The piece of a list that begins at ``text[at]`` (``bitmap_parse_region()`` and ``bitmap_check_region()``).

    :returns: the first bits of its groups, how many bits to take of each, and where to go on, None nowhere.
    """

    def ends(place: int) -> bool:
        return place >= len(text) or text[place] in _SPACES or text[place] == ","

    begun = at
    if text[at : at + 3].lower() == "all":
        start, end, at = 0, nr_bits - 1, at + 3
    else:
        start, at = _bit_number(text, at, nr_bits)
        end = start
        if not ends(at):
            if text[at] != "-":
                raise OSError(errno.EINVAL, f"{text[begun : at + 1]!r} is neither a number nor a range")
            end, at = _bit_number(text, at + 1, nr_bits)
    used = group = uint(end + 1)
    follows: int | None = None
    if ends(at):
        if at < len(text) and text[at] != "\n":
            follows = at
    else:
        if text[at] != ":":
            raise OSError(errno.EINVAL, f"only :USED/GROUP can follow a range, not {text[at : at + 40]!r}")
        used, at = _bit_number(text, at + 1, nr_bits)
        if text[at : at + 1] != "/":
            raise OSError(errno.EINVAL, f"{text[begun : at + 1]!r} lacks the size of its groups, as in 0-31:2/8")
        group, follows = _bit_number(text, at + 1, nr_bits)
    if start > end or not group or used > group:
        raise OSError(errno.EINVAL, f"{text[begun:follows]!r} is not an ascending range whose groups fit")
    if end >= nr_bits:
        raise OSError(errno.ERANGE, f"{end} is too large; {nr_bits - 1} is the largest number")
    return range(start, end + 1, group), used, follows


def bitmap_parselist(text: str, nr_bits: int) -> tuple[int, ...]:
    """Parse a list of bits, such as ``0-3,5``, ``0-31:2/8`` (two of every eight), ``all``, ``4-N``.

    White space separates as commas do, also after a newline that follows one or a group, as in the kernel.

    :param nr_bits: how many bits there are.
    :returns: the numbers of the bits, ascending, each once.
    :raises OSError: EINVAL no list; EOVERFLOW a number that does not fit in 32 bits; ERANGE one that is no bit.
    """
    bits: set[int] = set()
    at: int | None = 0
    while at is not None:
        while at < len(text) and (text[at] in _SPACES or text[at] == ","):
            at += 1
        if at == len(text):
            break
        starts, used, at = _bit_range(text, at, nr_bits)
        for start in starts:
            bits.update(range(start, min(start + used, starts.stop)))
    return tuple(sorted(bits))


def bitmap_list(bits: tuple[int, ...]) -> str:
    """``bits`` (ascending) as the kernel prints them (``%*pbl``): ``0-3,5``."""
    runs: list[list[int]] = []
    for bit in bits:
        if runs and runs[-1][1] == bit - 1:
            runs[-1][1] = bit
        else:
            runs.append([bit, bit])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


# Arrays of integers (lib/cmdline.c, lib/string_helpers.c).


_INTEGER = re.compile(r"(-?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")


def _int(value: int) -> int:
    """Truncate ``value`` as an assignment to ``int`` does (32 bit)."""
    return (value + INT_MAX + 1) % (UINT_MAX + 1) - INT_MAX - 1


def _get_option(text: str, at: int) -> tuple[int, int] | None:
    """The integer at ``text[at]`` and the position after it; None where there is none (``get_option()``)."""
    match = _INTEGER.match(text, at)
    if match is None:
        return None
    sign, hexadecimal, octal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    return _int(-value if sign else value), match.end()


def parse_int_array(text: str) -> tuple[int, ...]:
    """Parse a list of integers and ascending ranges of them: ``12,0x10,20-25`` (``parse_int_array()``).

    The list ends where something else follows; the rest is ignored.

    :raises OSError: ENOENT there is no number at the beginning; ENOMEM more than the kernel could keep.
    """
    values: list[int] = []
    at = 0
    while (option := _get_option(text, at)) is not None:
        value, at = option
        following = text[at : at + 1]
        if following == "-":
            at += 1
            option_after = _get_option(text, at)
            upper = 0 if option_after is None else option_after[0]
            if _int(upper - value) < 0:
                break
            # One more for the upper end, and one for the length in front.
            if (len(values) + upper - value + 2) * 4 > KMALLOC_MAX_SIZE:
                raise OSError(errno.ENOMEM, f"{upper - value} numbers are too many")
            # The upper end is a number of its own, if it is there.
            values += range(value, upper)
            continue
        values.append(value)
        if following != ",":
            break
        at += 1
    if not values:
        raise OSError(errno.ENOENT, f"{text[:40]!r} does not begin with a number")
    return tuple(values)
