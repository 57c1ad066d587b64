# SPDX-License-Identifier: GPL-2.0-only
"""A recording as one JSON object, for programs."""

from __future__ import annotations

from typing import Any

import attrs

from kdamon_tools.compare import Accuracy
from kdamon_tools.output.readable import json_text
from kdamon_tools.reporters.table import summarize
from kdamon_tools.snapshot import Recording, Snapshot

__all__ = ["render_json"]


def render_json(recording: Recording, accuracy: Accuracy | None = None) -> str:
    """One object on one line.

    Keys: ``config``; ``started`` (CLOCK_MONOTONIC seconds) and ``seconds``; ``note``; ``remarks`` (sentences);
    ``snapshots``, each with ``began`` and ``time`` (from when to when samples were taken, seconds since ``started``),
    ``merged`` (of how many aggregations it is the mean) and ``regions``; ``counters``; ``summary``; and ``accuracy``
    where the truth was known.
    """
    document: dict[str, Any] = {
        "config": attrs.asdict(recording.config) | {"max_nr_accesses": recording.config.max_nr_accesses},
        "started": recording.started,
        "seconds": recording.seconds,
        "note": recording.note,
        "remarks": list(recording.remarks),
        "snapshots": [_snapshot(snapshot, recording.started) for snapshot in recording.snapshots],
        "counters": attrs.asdict(recording.counters),
        "summary": summarize(recording),
    }
    if accuracy is not None:
        document["accuracy"] = attrs.asdict(accuracy)
    return json_text(document, separators=(",", ":"))


def _snapshot(snapshot: Snapshot, since: float) -> dict[str, Any]:
    names = snapshot.regions.dtype.names or ()
    rows = snapshot.regions.tolist()
    return {
        "began": round(snapshot.began - since, 6),
        "time": round(snapshot.time - since, 6),
        "merged": snapshot.merged,
        "regions": [{name: _number(value) for name, value in zip(names, row, strict=True)} for row in rows],
    }


def _number(value: float) -> float:
    """Counts are integers unless snapshots were merged."""
    return int(value) if value == int(value) else round(value, 3)
