# SPDX-License-Identifier: GPL-2.0-only
"""Escapes names for output: a name may contain any byte except NUL, text and JSON may not.

``\\xff`` stands for a byte that is not valid UTF-8, and ``\\x0a`` for a character that would move a terminal's cursor.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

__all__ = ["cell_of", "json_text", "readable"]

#: Surrogates, which stand for bytes that are not UTF-8; control characters, and what ends a line for some programs;
#: and what turns the direction of writing round, so that a line shows other words than it has.
_UNREADABLE: Final = re.compile(
    "[\ud800-\udfff\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def readable(text: str) -> str:
    """``text`` on one line, whatever names it contains."""
    return _UNREADABLE.sub(_escaped, text)


def cell_of(text: str) -> str:
    """``text`` for a spreadsheet, which must not take a name for a formula."""
    text = readable(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def json_text(document: Any, **options: Any) -> str:
    """``document`` as JSON without surrogates, which many readers reject."""
    return json.dumps(_with_text(document), **options)


def _escaped(character: re.Match[str]) -> str:
    code = ord(character[0])
    if 0xDC80 <= code <= 0xDCFF:
        code &= 0xFF
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def _with_text(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub(_escaped, value)
    if isinstance(value, dict):
        return {_with_text(key): _with_text(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text(one) for one in value]
    return value
