# SPDX-License-Identifier: GPL-2.0-only
"""How much memory was used within a second, ten seconds and a minute: figures, and columns over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from kdamon.arrays import F64Array
from kdamon.monitoring.use import WINDOWS, MemoryUse, WindowUse
from kdamon_tools.snapshot import Recording
from kdamon_tools.units import format_bytes
from kdamon_tools.views.table import Column, Kind

__all__ = ["NOTE", "USE_COLUMNS", "is_watched", "use_columns", "use_facts", "used_over_time"]

Fact = tuple[str, str, Kind, Any]
_TEXTS: Final = {1.0: "1 s", 10.0: "10 s", 60.0: "1 min"}
#: The window that the lines about idle and unknown memory are about, or a shorter one.
_MIDDLE: Final = 10.0
NOTE: Final = (
    "used within 1 s, 10 s and 1 min: memory that was read, written or came within that time, by watched pages; "
    "95 %: bounds of it as far as the choice of these pages decides"
)
_PARTS: Final = ("low", "high", "unknown", "idle", "idle_anon", "idle_file")


def is_watched(recording: Recording) -> bool:
    """Whether pages were watched."""
    return recording.counters.use is not None or any(one.use is not None for one in recording.snapshots)


def _latest(recording: Recording) -> MemoryUse | None:
    found = (one.use for one in reversed(recording.snapshots) if one.use is not None)
    return recording.counters.use or next(found, None)


def use_facts(recording: Recording) -> tuple[list[Fact], dict[str, str]]:
    """Figures of the whole recording, and what text has beside them; those without a title are in JSON and CSV."""
    use = _latest(recording)
    if use is None:
        return [], {}
    facts, beside = [], {}
    for seconds, text in _TEXTS.items():
        window, key = use.window(seconds), f"used_{seconds:.0f}s"
        facts.append((f"{key}_bytes", f"used within {text}", Kind.BYTES, None if window is None else window.accessed))
        facts += [
            (f"{key}_{part}_bytes", "", Kind.BYTES, None if window is None else getattr(window, part))
            for part in _PARTS
        ]
        facts.append((f"{key}_pages", "", Kind.COUNT, None if window is None else window.pages))
        beside[f"{key}_bytes"] = "no window was long enough" if window is None else _bounds(window)
    facts += _of_middle(use, beside)
    if use.resident is not None:
        facts += [
            (f"resident_{name}_bytes", "", Kind.BYTES, getattr(use.resident, name))
            for name in ("anon", "file", "swapped")
        ]
    return facts, beside


def _bounds(window: WindowUse) -> str:
    return f"95 %: {format_bytes(window.low)} to {format_bytes(window.high)}, by {window.pages} pages"


def _of_middle(use: MemoryUse, beside: dict[str, str]) -> list[Fact]:
    """What was idle and what is not known, in a window of ten seconds, or a shorter one."""
    known = [window for window in use.windows if window.seconds <= _MIDDLE]
    if not known:
        return []
    window = known[-1]
    text = _TEXTS[window.seconds]
    anon, file = map(format_bytes, (window.idle_anon, window.idle_file))
    beside["idle_bytes"] = f"{anon} anonymous, {file} of files"
    beside["use_unknown_bytes"] = "accesses cannot be observed"
    return [
        ("idle_bytes", f"idle for {text}", Kind.BYTES, window.idle),
        ("use_unknown_bytes", "unknown", Kind.BYTES, window.unknown),
    ]


def _of_window(seconds: float, name: str) -> Callable[[MemoryUse], float | None]:
    def value(use: MemoryUse) -> float | None:
        window = use.window(seconds)
        return None if window is None else getattr(window, name)

    return value


def _unknown(use: MemoryUse) -> float | None:
    known = [window for window in use.windows if window.seconds <= _MIDDLE]
    return known[-1].unknown if known else None


def _memory(name: str) -> Callable[[MemoryUse], float | None]:
    return lambda use: None if use.resident is None else getattr(use.resident, name)


#: Columns over time, and how each is found.
_OVER_TIME: Final[tuple[tuple[Column, Callable[[MemoryUse], float | None]], ...]] = (
    *(
        (Column(f"used_{seconds:.0f}s{end}_bytes", title, Kind.BYTES, hidden=not title), _of_window(seconds, part))
        for seconds in WINDOWS
        for part, end, title in (
            ("accessed", "", f"used {_TEXTS[seconds]}"),
            ("low", "_low", ""),
            ("high", "_high", ""),
        )
    ),
    (Column("use_unknown_bytes", "unknown", Kind.BYTES), _unknown),
    (Column("anon_bytes", "anonymous", Kind.BYTES, optional=1), _memory("anon")),
    (Column("file_bytes", "of files", Kind.BYTES, optional=1), _memory("file")),
    (Column("swapped_bytes", "swapped", Kind.BYTES, hidden=True), _memory("swapped")),
)
USE_COLUMNS: Final = tuple(column for column, _ in _OVER_TIME)


def use_columns(recording: Recording) -> list[F64Array]:
    """The values of :data:`USE_COLUMNS` of each snapshot, NaN where unknown."""
    return [
        np.array([np.nan if one.use is None else _number(value(one.use)) for one in recording.snapshots])
        for _, value in _OVER_TIME
    ]


def used_over_time(recording: Recording, seconds: float = _MIDDLE) -> F64Array:
    """Bytes that were used within a window, of each snapshot; NaN where unknown."""
    value = _of_window(seconds, "accessed")
    return np.array([np.nan if one.use is None else _number(value(one.use)) for one in recording.snapshots], np.float64)


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
