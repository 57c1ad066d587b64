# SPDX-License-Identifier: GPL-2.0-only
"""The heatmap as SVG: it follows the reader's choice of light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from kdamon_tools.pictures.colours import DARK, LIGHT, Theme, colour_of
from kdamon_tools.pictures.scene import LEVELS, Scene

__all__ = ["render_svg"]

#: Characters that XML cannot have.
_NO_XML: Final = {0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"}
_FONT: Final = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


def render_svg(scene: Scene) -> Iterator[str]:
    """The picture, in parts."""
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{scene.width}" height="{scene.height}" '
        f'viewBox="0 0 {scene.width} {scene.height}" role="img" font-family="{_FONT}">\n'
    )
    yield f"<title>{_text(scene.title)}</title>\n"
    yield f"<style>\n{_style(LIGHT)}@media (prefers-color-scheme: dark) {{\n{_style(DARK)}}}\n</style>\n"
    yield f'<rect class="ground" width="{scene.width}" height="{scene.height}"/>\n'
    shapes: dict[str, list[str]] = {}
    for x, y, width, height, colour in scene.rectangles:
        path = f"M{_number(x)} {_number(y)}h{_number(width)}v{_number(height)}h-{_number(width)}z"
        shapes.setdefault(colour, []).append(path)
    for colour, paths in shapes.items():
        # Edges that were smoothed would leave seams between cells.
        yield f'<path shape-rendering="crispEdges" class="{_class(colour)}" d="{"".join(paths)}"/>\n'
    for one in scene.texts:
        kind = "faint" if one.faint else "text"
        weight = ' font-weight="600"' if one.bold else ""
        yield (
            f'<text class="{kind}" x="{_number(one.x)}" y="{_number(one.y)}" font-size="{one.size}" '
            f'text-anchor="{one.anchor}"{weight}>{_text(one.text)}</text>\n'
        )
    yield "</svg>\n"


def _class(colour: str) -> str:
    return f"l{colour}" if colour.isdecimal() else colour


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _text(text: str) -> str:
    """Escaped; XML has no control characters, which are escaped before, and two others are missing."""
    return escape(text.encode("utf-8", "replace").decode()).translate(_NO_XML)


def _style(theme: Theme) -> str:
    rules = {
        "ground": theme.ground,
        "idle": theme.idle,
        "unknown": theme.unknown[1],
        "rule": theme.rule,
        "text": theme.text,
        "faint": theme.faint,
        **{f"l{level}": colour_of((level + 0.5) / LEVELS, theme) for level in range(LEVELS)},
    }
    return "".join(f".{name} {{ fill: {colour} }}\n" for name, colour in rules.items())
