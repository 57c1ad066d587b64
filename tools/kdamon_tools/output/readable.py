# SPDX-License-Identifier: GPL-2.0-only
"""Escapes names for output: a name may contain any byte except NUL, text and JSON may not.

``\\xff`` stands for a byte that is not valid UTF-8, and ``\\x0a`` for a character that would move a terminal's cursor.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from kdamon.lib.readable import escaped, readable

__all__ = ["cell_of", "json_text", "readable"]

_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def cell_of(text: str) -> str:
    """``text`` for a spreadsheet, which must not take a name for a formula."""
    text = readable(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def json_text(document: Any, **options: Any) -> str:
    """``document`` as JSON without surrogates, which many readers reject."""
    return json.dumps(_with_text(document), **options)


def _with_text(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub(escaped, value)
    if isinstance(value, dict):
        return {_with_text(key): _with_text(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text(one) for one in value]
    return value
