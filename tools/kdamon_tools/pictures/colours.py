# SPDX-License-Identifier: GPL-2.0-only
"""The colours of pictures, on light and on dark ground: the lightness of shares rises or falls all along."""

from __future__ import annotations

from typing import Final

from attrs import frozen

__all__ = ["DARK", "LIGHT", "Theme", "colour_of"]


@frozen
class Theme:
    """Colours as ``#rrggbb``.

    :ivar ramp: of shares from the smallest one to all; colours between two of them are mixed.
    :ivar idle: not accessed.
    :ivar unknown: unknown memory, and the stripes on it.
    :ivar ground: of the picture, also where nothing was monitored.
    :ivar lines: of the curves: accessed, hot, in memory, unknown.
    """

    ramp: tuple[str, ...]
    idle: str
    unknown: tuple[str, str]
    ground: str
    text: str
    faint: str
    rule: str
    lines: tuple[str, str, str, str]


LIGHT: Final = Theme(
    ramp=("#fff3bf", "#fed976", "#feb24c", "#fd8d3c", "#f4522c", "#d1101f", "#9b0025", "#560024"),
    idle="#e6ebf1",
    unknown=("#c9d0d9", "#aab4c0"),
    ground="#ffffff",
    text="#1f2733",
    faint="#5d6876",
    rule="#d3dae3",
    lines=("#e8590c", "#9b0025", "#1c7ed6", "#868e96"),
)
DARK: Final = Theme(
    ramp=("#33194f", "#57157e", "#8b2981", "#c43c75", "#f1605d", "#fd9567", "#feca8d", "#fcfdbf"),
    idle="#1c2330",
    unknown=("#39424f", "#525d6c"),
    ground="#0e131b",
    text="#e4e9f0",
    faint="#97a3b3",
    rule="#2d3746",
    lines=("#fd9567", "#fcfdbf", "#4dabf7", "#868e96"),
)


def colour_of(share: float, theme: Theme) -> str:
    """The colour of a share above 0, at most 1."""
    place = min(1.0, share) * (len(theme.ramp) - 1)
    first = min(int(place), len(theme.ramp) - 2)
    # Halves rounded up, as in JavaScript.
    mixed = (
        int(int(low, 16) + (place - first) * (int(high, 16) - int(low, 16)) + 0.5)
        for low, high in zip(_parts(theme.ramp[first]), _parts(theme.ramp[first + 1]), strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _parts(colour: str) -> tuple[str, str, str]:
    return colour[1:3], colour[3:5], colour[5:7]
