# SPDX-License-Identifier: GPL-2.0-only
"""Views of a recording as plain values: grids of address x time, tables by name. Reporters and pictures render them."""

from __future__ import annotations

from kdamon_tools.defaults import BY
from kdamon_tools.snapshot import Recording
from kdamon_tools.views.actors import actors_view
from kdamon_tools.views.regions import regions_view
from kdamon_tools.views.table import Report
from kdamon_tools.views.where import idle_view, where_view
from kdamon_tools.views.working_set import summary_view, wss_view

__all__ = ["report_of"]


def report_of(view: str, recording: Recording, at: float | None = None) -> Report:
    """A view of ``recording``, which has snapshots.

    :param view: one of :data:`kdamon_tools.defaults.VIEWS`, but ``heatmap``.
    :param at: for the regions, see :func:`regions_view`.
    """
    if view in BY:
        return actors_view(view, recording)
    if view == "regions":
        return regions_view(recording, at)
    return {"summary": summary_view, "where": where_view, "wss": wss_view, "idle": idle_view}[view](recording)
