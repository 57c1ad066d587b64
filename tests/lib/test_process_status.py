# SPDX-License-Identifier: GPL-2.0-only
"""The fields of /proc/PID/stat."""

from __future__ import annotations

import pytest

from kdamon.lib.process_status import is_kernel_thread, stat_fields, stat_name


@pytest.mark.parametrize("name", [b"sleep", b"", b"a) R (b", b"(x) ", b"\xff\n"])
def test_a_name_may_hold_blanks_and_parentheses(name: bytes) -> None:
    contents = b"7 (" + name + b") S 1 7 7 0 -1"
    assert name == stat_name(contents)
    assert [b"S", b"1", b"7", b"7", b"0", b"-1"] == stat_fields(contents)


def test_an_empty_file_has_no_field_and_no_name() -> None:
    assert (b"", []) == (stat_name(b""), stat_fields(b""))


def test_a_process_that_is_just_ending_is_no_kernel_thread() -> None:
    """Its memory is gone before it is a zombie; only its flags show what it is."""
    kernel = b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0"
    ending = b"27552 (true) R 27500 27552 27500 0 -1 4227084 90 0"
    assert [True, False, False] == [is_kernel_thread(stat) for stat in (kernel, ending, b"")]
