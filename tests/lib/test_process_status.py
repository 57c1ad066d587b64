# SPDX-License-Identifier: GPL-2.0-only
"""The fields of /proc/PID/stat."""

from __future__ import annotations

import pytest

from kdamon.lib.process_status import stat_fields, stat_name


@pytest.mark.parametrize("name", [b"sleep", b"", b"a) R (b", b"(x) ", b"\xff\n"])
def test_a_name_may_hold_blanks_and_parentheses(name: bytes) -> None:
    contents = b"7 (" + name + b") S 1 7 7 0 -1"
    assert name == stat_name(contents)
    assert [b"S", b"1", b"7", b"7", b"0", b"-1"] == stat_fields(contents)


def test_an_empty_file_has_no_field_and_no_name() -> None:
    assert (b"", []) == (stat_name(b""), stat_fields(b""))
