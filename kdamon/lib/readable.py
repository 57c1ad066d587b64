# SPDX-License-Identifier: GPL-2.0-only
"""Escapes names for text: a name may contain any byte except NUL.

``\\xff`` stands for a byte that is not valid UTF-8, and ``\\x0a`` for a character that would move a terminal's cursor.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["escaped", "readable"]

#: Surrogates, which stand for bytes that are not UTF-8; control characters, and what ends a line for some programs;
#: and what turns the direction of writing round, so that a line shows other words than it has.
_UNREADABLE: Final = re.compile(
    "[\ud800-\udfff\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def readable(text: str) -> str:
    """``text`` on one line, whatever names it contains."""
    return _UNREADABLE.sub(escaped, text)


def escaped(character: re.Match[str]) -> str:
    """The escape of a character that was found."""
    code = ord(character[0])
    if 0xDC80 <= code <= 0xDCFF:
        code &= 0xFF
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"
