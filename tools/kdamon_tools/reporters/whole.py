# SPDX-License-Identifier: GPL-2.0-only
"""A whole result as text: pictures and figures."""

from __future__ import annotations

from kdamon_tools.reporters.groups import render_group_heatmaps, render_group_tables
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.reporters.table import render_summary
from kdamon_tools.snapshot import Recording

__all__ = ["render_parts"]


def render_parts(recording: Recording, *, width: int = 80, height: int = 24, colour: bool = False) -> list[str]:
    """The heatmap, those of CPUs, threads or nodes where they were asked for, the summary, and their table.

    :param width: maximum columns of a line, at least 28.
    :param height: maximum lines of addresses in each heatmap.
    """
    parts = [
        render_heatmap(recording, width=width, height=height, colour=colour),
        render_group_heatmaps(recording, width=width, height=height, colour=colour),
        render_summary(recording, width=width),
        render_group_tables(recording, width=width),
    ]
    return [part for part in parts if part]
