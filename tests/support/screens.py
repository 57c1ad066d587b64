# SPDX-License-Identifier: GPL-2.0-only
"""What a screen of textual shows, as text."""

from __future__ import annotations

import html
import re
from typing import Any

from textual.app import App

__all__ = ["shown"]

#: Of the picture that textual makes of its screen.
_TEXT = re.compile(r'<text class="[^"]*-r\d+" x="([\d.]+)" y="([\d.]+)" textLength="[\d.]+"[^>]*>(.*?)</text>')
_COLUMN, _LINE = 12.2, 24.4


def shown(app: App[Any]) -> list[str]:
    """The lines of the screen, without blanks at their ends."""
    width, height = app.size
    lines = [[" "] * width for _ in range(height)]
    for x, y, text in _TEXT.findall(app.export_screenshot()):
        at, line = round(float(x) / _COLUMN), int(float(y) / _LINE)
        plain = html.unescape(text).replace("\xa0", " ")
        lines[line][at : at + len(plain)] = plain
    return ["".join(line).rstrip() for line in lines]
