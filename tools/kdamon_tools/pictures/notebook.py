# SPDX-License-Identifier: GPL-2.0-only
"""A record in a notebook: its heatmap as an image within HTML."""

from __future__ import annotations

import base64
import html

from kdamon import Record
from kdamon_tools.output.readable import readable
from kdamon_tools.pictures.scene import scene_of
from kdamon_tools.pictures.subject import description_of, subject_of
from kdamon_tools.pictures.svg import render_svg
from kdamon_tools.recorded.recording import recording_of
from kdamon_tools.recorded.selection import select

__all__ = ["html_of"]


def html_of(record: Record) -> str:
    """The heatmap of a whole record, or a sentence on why there is none.

    An image has styles of its own, which would hold for the whole page otherwise, and no script of it would run.
    """
    try:
        recording = recording_of(select(record, None, ()))
    except OSError as error:
        return f"<p>{_escaped(f'{record.path}: {error.strerror}')}</p>"
    if not any(len(snapshot.regions) for snapshot in recording.snapshots):
        return f"<p>{_escaped(f'{record.path}: there is nothing to draw')}</p>"
    picture = base64.b64encode("".join(render_svg(scene_of(recording))).encode()).decode()
    about = _escaped(f"{subject_of(recording)}, {description_of(recording)}")
    return f'<img alt="{about}" style="max-width: 100%" src="data:image/svg+xml;base64,{picture}">'


def _escaped(text: str) -> str:
    return html.escape(readable(text))
