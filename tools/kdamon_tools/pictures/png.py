# SPDX-License-Identifier: GPL-2.0-only
"""The heatmap as PNG, by Pillow."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from kdamon_tools.errors import CommandError
from kdamon_tools.pictures.colours import LIGHT, Theme, colour_of
from kdamon_tools.pictures.scene import LEVELS, Scene

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = ["render_png"]

#: Pixels for one of the picture: printed, letters are sharp.
_SCALE: Final = 2
_ANCHORS: Final = {"start": "ls", "middle": "ms", "end": "rs"}


def render_png(scene: Scene, theme: Theme = LIGHT) -> bytes:
    """The picture as a file's content.

    :raises CommandError: Pillow is missing.
    """
    try:
        from PIL import Image, ImageDraw  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise CommandError(
            "a .png file needs the Python package 'pillow': pip install 'kdamon[png]', or write a .svg file"
        ) from error
    image = Image.new("RGB", (scene.width * _SCALE, scene.height * _SCALE), theme.ground)
    draw = ImageDraw.Draw(image)
    for x, y, width, height, colour in scene.rectangles:
        left, top, right, bottom = (round(edge * _SCALE) for edge in (x, y, x + width, y + height))
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=_colour(colour, theme))
    for one in scene.texts:
        fill = theme.faint if one.faint else theme.text
        place = (one.x * _SCALE, one.y * _SCALE)
        draw.text(place, one.text, fill=fill, font=_font(one.size * _SCALE), anchor=_ANCHORS[one.anchor])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont  # noqa: PLC0415 (an extra)

    try:
        # Pillow's own font has few letters beside Latin ones.
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def _colour(name: str, theme: Theme) -> str:
    if name.isdecimal():
        return colour_of((int(name) + 0.5) / LEVELS, theme)
    return {"idle": theme.idle, "unknown": theme.unknown[1], "rule": theme.rule}[name]
