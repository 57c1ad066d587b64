# SPDX-License-Identifier: GPL-2.0-only
"""Lists of numbers mean what they mean to the kernel, with its errno where they mean nothing."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.kstrtox import bitmap_list, bitmap_parselist, parse_int_array
from tests.support.tables import effort

BITS = 40


def result(parse: object, *arguments: object) -> object:
    """What ``parse`` returns, or the name of the errno."""
    try:
        return parse(*arguments)  # type: ignore[operator]
    except OSError as error:
        assert error.strerror
        return errno.errorcode[error.errno or 0]


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("", []),
        ("\n", []),
        (" , ,\t", []),
        ("0", [0]),
        ("39", [39]),
        ("007", [7]),
        ("0-3,5", [0, 1, 2, 3, 5]),
        ("0-3,5\n", [0, 1, 2, 3, 5]),
        ("5,0-3", [0, 1, 2, 3, 5]),
        ("3,3,1-4", [1, 2, 3, 4]),
        (",1,,2, ,3,", [1, 2, 3]),
        ("1 2\t3\v4\f5\r6\xa07", [1, 2, 3, 4, 5, 6, 7]),
        ("1\n2", [1]),
        ("1 \n2", [1, 2]),
        ("\n2", [2]),
        ("0-15:2/8", [0, 1, 8, 9]),
        ("0-15:2/8,39", [0, 1, 8, 9, 39]),
        ("0-15:2/8\n39", [0, 1, 8, 9, 39]),
        ("0-15:2/8N", [0, 1, 8, 9, 39]),
        ("1-5:3/3", [1, 2, 3, 4, 5]),
        ("0-4:2/3", [0, 1, 3, 4]),
        ("0-7:0/2", []),
        ("0-3:1/9999", [0]),
        ("all", list(range(BITS))),
        ("ALL\n", list(range(BITS))),
        ("aLl:1/20", [0, 20]),
        ("N", [BITS - 1]),
        ("38-N", [38, 39]),
        ("N-N", [39]),
        ("0-N:1/N", [0, 39]),
    ],
)
def test_a_list_of_bits(text: str, bits: list[int]) -> None:
    """Numbers, ranges, groups, all, N for the last one; white space and commas separate."""
    assert result(bitmap_parselist, text, BITS) == tuple(bits)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("-1", "EINVAL"),
        ("-0", "EINVAL"),
        ("+1", "EINVAL"),
        ("0x1", "EINVAL"),
        ("10-1", "EINVAL"),
        ("1-", "EINVAL"),
        ("0-\n", "EINVAL"),
        ("1.2", "EINVAL"),
        ("a-31", "EINVAL"),
        ("0-a1", "EINVAL"),
        ("al", "EINVAL"),
        ("alll", "EINVAL"),
        ("all-3", "EINVAL"),
        ("n", "EINVAL"),
        ("0-31:", "EINVAL"),
        ("0-31:0", "EINVAL"),
        ("0-31:0/", "EINVAL"),
        ("0-31:0/0", "EINVAL"),
        ("0-31:1/0", "EINVAL"),
        ("0-31:10/1", "EINVAL"),
        ("0-31:a/1", "EINVAL"),
        ("0-31:1/2x", "EINVAL"),
        ("0:1/2", "EINVAL"),
        ("0-3 x", "EINVAL"),
        ("40", "ERANGE"),
        ("40-40", "ERANGE"),
        ("0-40", "ERANGE"),
        ("39-41:1/2", "ERANGE"),
        ("4294967294", "ERANGE"),
        ("4294967295", "EINVAL"),
        ("41-40", "EINVAL"),
        ("4294967296", "EOVERFLOW"),
        ("0-98765432123456789:10/1", "EOVERFLOW"),
        ("0-3:1/4294967296", "EOVERFLOW"),
        ("18446744073709551617", "EOVERFLOW"),
        ("9" * 4000, "EOVERFLOW"),
        ("0" * 4000 + "1-", "EINVAL"),
        ("1,40", "ERANGE"),
    ],
)
def test_what_is_no_list_of_bits(text: str, error: str) -> None:
    """EINVAL is another form, ERANGE no bit, EOVERFLOW no number of 32 bits."""
    assert result(bitmap_parselist, text, BITS) == error


@effort(100)
@given(st.sets(st.integers(0, 200)))
def test_a_printed_list_reads_back(bits: set[int]) -> None:
    """Runs are joined: two numbers that follow each other are a range."""
    text = bitmap_list(tuple(sorted(bits)))
    assert bitmap_parselist(text, 201) == tuple(sorted(bits))
    assert text.count(",") == sum(bit - 1 not in bits for bit in bits) - bool(bits)


@effort(100)
@given(st.text("0123456789,- :/Nal\n", max_size=12))
def test_any_text_is_a_list_of_bits_or_refused(text: str) -> None:
    """Nothing else is raised, and no bit is beyond the last."""
    found = result(bitmap_parselist, text, BITS)
    assert found in ("EINVAL", "ERANGE", "EOVERFLOW") or set(found) <= set(range(BITS))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("12", [12]),
        ("12\n", [12]),
        ("12,13\n", [12, 13]),
        ("12,", [12]),
        ("12,13,", [12, 13]),
        ("12,12", [12, 12]),
        ("9,5", [9, 5]),
        ("0x10,010,08,0x", [16, 8, 0]),
        ("12, 13", [12]),
        ("12 13", [12]),
        ("12,abc", [12]),
        ("12abc", [12]),
        ("12,+13", [12]),
        ("3-5", [3, 4, 5]),
        ("3-5,9", [3, 4, 5, 9]),
        ("1-3-5", [1, 2, 3, 4, 5]),
        ("5-5", [5]),
        ("7,0-", [7]),
        ("7,5-3,9", [7]),
        ("-1,-2", [-1, -2]),
        ("-3--1", [-3, -2, -1]),
        ("-1-1", [-1, 0, 1]),
        ("4294967295", [-1]),
        ("2147483648", [-(1 << 31)]),
        ("99999999999999999999", [1661992959]),
    ],
)
def test_an_array_of_integers(text: str, values: list[int]) -> None:
    """Any base, any order, ranges; it ends with what is none; numbers are cut to 32 bits."""
    assert result(parse_int_array, text) == tuple(values)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("\n", "ENOENT"),
        ("abc", "ENOENT"),
        (" 12", "ENOENT"),
        (",12", "ENOENT"),
        ("+12", "ENOENT"),
        ("-", "ENOENT"),
        ("--1", "ENOENT"),
        ("5-3", "ENOENT"),
        ("5-", "ENOENT"),
        ("0-", "ENOENT"),
        ("-2000000000-2000000000", "ENOENT"),
        ("1-2000000000", "ENOMEM"),
    ],
)
def test_what_is_no_array_of_integers(text: str, error: str) -> None:
    """ENOENT there is no number, ENOMEM there are too many."""
    assert result(parse_int_array, text) == error
