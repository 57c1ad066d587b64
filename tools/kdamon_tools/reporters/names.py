# SPDX-License-Identifier: GPL-2.0-only
"""Names in pictures and tables: escaped, and as long as there is room."""

from __future__ import annotations

import unicodedata
from typing import Final

from kdamon.names.table import Part, describe
from kdamon_tools.output.readable import readable

__all__ = ["fitting", "shortened", "visible"]

#: Categories of characters without a width of their own: marks, format characters, and what has no meaning.
_WITHOUT_WIDTH: Final = frozenset({"Mn", "Me", "Cf", "Cn", "Co"})
_WIDE: Final = frozenset({"W", "F"})


def visible(text: str) -> str:
    """``text`` on one line, with each character as a terminal shows it, or escaped."""
    return "".join(
        f"\\u{ord(one):04x}" if unicodedata.category(one) in _WITHOUT_WIDTH else one for one in readable(text)
    )


def fitting(parts: list[Part], width: int) -> str:
    """The names of a range's parts in at most ``width`` columns, 6 or more.

    All of them if there is room, else the largest part alone, without its middle if need be.
    """
    if not parts:
        return ""
    whole = visible(describe(parts))
    if _columns(whole) <= width:
        return whole
    name, share = visible(str(parts[0])), parts[0].percent
    return shortened(name, width - len(share)) + share


def shortened(text: str, width: int) -> str:
    """``text`` in ``width`` columns: a long one loses its middle, of which ``…`` is left."""
    if _columns(text) <= width:
        return text
    end = (width - 1) // 2
    return _first(text, width - 1 - end) + "…" + _first(text[::-1], end)[::-1]


def _first(text: str, width: int) -> str:
    """The first characters of ``text`` that have room."""
    at = used = 0
    while at < len(text) and used + _columns(text[at]) <= width:
        used += _columns(text[at])
        at += 1
    return text[:at]


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(one) in _WIDE else 1 for one in text)
