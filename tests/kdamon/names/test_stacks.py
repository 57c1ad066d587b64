# SPDX-License-Identifier: GPL-2.0-only
"""Which memory is a thread's stack."""

from __future__ import annotations

import pytest

from kdamon.names.mappings import read_names
from kdamon.names.stacks import stack_rows
from kdamon.names.texts import NameList

MIB = 1 << 20
#: Two stacks with guards, the second next to other memory; memory without a guard; a file.
MAPS = b"""\
7f0000000000-7f0000001000 ---p 00000000 00:00 0
7f0000001000-7f0000801000 rw-p 00000000 00:00 0
7f0000801000-7f0000802000 ---p 00000000 00:00 0
7f0000802000-7f0004000000 rw-p 00000000 00:00 0
7f1000000000-7f1000100000 rw-p 00000000 00:00 0
7f2000000000-7f2010000000 rw-p 00000000 00:00 0
7f3000000000-7f3000100000 rw-p 00000000 fe:00 1 /a/file
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
"""


@pytest.mark.parametrize(
    ("pointer", "expected"),
    [
        (0x7F0000800F00, [(0x7F0000001000, 0x7F0000801000)]),
        # Only as much as a stack has.
        (0x7F0000900000, [(0x7F0000802000, 0x7F0000802000 + 8 * MIB + 65536)]),
        # Above that it is not known where the stack begins.
        (0x7F0003000000, []),
        (0x7F1000080000, [(0x7F1000000000, 0x7F1000100000)]),
        # Too large for a stack, and without a guard.
        (0x7F2000001000, []),
        # Not in anonymous memory, in a guard, in no mapping.
        (0x7F3000000100, []),
        (0x7FFC00001000, []),
        (0x7F0000801800, []),
        (0x1000, []),
        (0xFFFFFFFFFFFFFFFF, []),
    ],
)
def test_rows(pointer: int, expected: list[tuple[int, int]]) -> None:
    """By the stack pointer of a thread."""
    names = NameList()
    mappings = read_names(lambda size, at: MAPS[at : at + size], names)
    rows = stack_rows(mappings, [(12, pointer, "worker\x1b")], 8 * MIB, names)
    assert expected == [row[:2] for row in rows.tolist()]
    assert ["[stack of 12 worker\x1b]"] * len(expected) == [names.name(number) for number in rows["name"].tolist()]
