# SPDX-License-Identifier: GPL-2.0-only
"""Access frequency as a character and a colour, the same in every picture."""

from __future__ import annotations

import math
import textwrap
from typing import Final

from kdamon_tools.views.grid import NEGLIGIBLE

__all__ = ["ABSENT", "LEVELS", "UNKNOWN", "legend", "level_of", "paint"]

#: From not accessed to accessed in every sampling interval.
LEVELS: Final = ".:-=+*#%@"
UNKNOWN: Final = "?"
ABSENT: Final = " "
#: Background and foreground of the levels in the 256 colour palette, cold to hot.
_COLOURS: Final = (
    (234, 242),
    (17, 250),
    (19, 252),
    (54, 254),
    (90, 255),
    (126, 255),
    (161, 255),
    (202, 16),
    (220, 16),
)


def level_of(share: float) -> str:
    """The character for a region that was accessed in ``share`` (0 to 1) of the sampling intervals."""
    if share < NEGLIGIBLE:
        return LEVELS[0]
    return LEVELS[min(len(LEVELS) - 1, math.ceil(share * (len(LEVELS) - 1)))]


def paint(text: str, colour: bool) -> str:
    """``text`` of level characters, each on its colour where ``colour`` is true."""
    if not colour:
        return text
    painted = []
    previous = ""
    for character in text:
        code = ""
        if character in LEVELS:
            background, foreground = _COLOURS[LEVELS.index(character)]
            code = f"\x1b[48;5;{background};38;5;{foreground}m"
        if code != previous:
            painted.append(code or "\x1b[0m")
        painted.append(character)
        previous = code
    if previous:
        painted.append("\x1b[0m")
    return "".join(painted)


def legend(colour: bool, width: int = 80) -> list[str]:
    """Lines that explain the characters.

    :param width: maximum columns of a line.
    """
    steps = len(LEVELS) - 1
    words = [(LEVELS[0], "below 1%")]
    words += [(character, f"{100 * level / steps:.0f}%") for level, character in enumerate(LEVELS) if level]
    lines = textwrap.wrap(
        "the hottest part of a line was accessed in at most this share of the sampling intervals:", width
    )
    room = 0
    for character, text in words:
        size = len(f"  {character} {text}")
        if size > room:
            lines.append("")
            room = width
        lines[-1] += f"  {paint(character, colour)} {text}"
        room -= size
    others = f"  {UNKNOWN} mostly not sampled, nothing is known   blank: not monitored then"
    return lines + textwrap.wrap(others, width, subsequent_indent="  ")
