# SPDX-License-Identifier: GPL-2.0-only
"""What a workload really did: one JSON object a line, written as it happens.

Keys: ``time`` (CLOCK_MONOTONIC seconds, as snapshots have it), ``event``, ``start`` and ``end`` (bytes). Events:
``map`` all memory of the workload, ``hot`` and ``warm`` from now on this range is, ``sweeps`` counts of the last
second, ``end`` the workload is over.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

from attrs import field, frozen

__all__ = ["Event", "load_truth", "write_event"]


@frozen
class Event:
    """One thing that a workload did.

    :ivar time: CLOCK_MONOTONIC seconds.
    :ivar detail: further figures, by name.
    """

    time: float
    event: str
    start: int
    end: int
    detail: dict[str, float] = field(factory=dict)


def write_event(out: TextIO | None, event: str, start: int, end: int, **detail: float) -> None:
    """Append an event that happens now to ``out``; None writes nothing."""
    if out is not None:
        line = {"time": time.monotonic(), "event": event, "start": start, "end": end} | detail
        out.write(json.dumps(line) + "\n")
        out.flush()


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def load_truth(path: Path | str) -> list[Event]:
    """Read the events of a truth file in their order.

    :raises OSError: the file cannot be read.
    :raises ValueError: it is not a truth file; the message says in which line.
    """
    events = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            values: dict[str, Any] = json.loads(line)
            name = values.pop("event")
            numbers = {name: _number(values.pop(name)) for name in ("time", "start", "end")}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} line {number} is not an event of a truth file") from error
        events.append(Event(event=name, **numbers, detail=values))
    return events
