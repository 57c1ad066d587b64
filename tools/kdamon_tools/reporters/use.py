# SPDX-License-Identifier: GPL-2.0-only
"""How much memory is in use, as text; docs/working-set.md explains the figures."""

from __future__ import annotations

from typing import Final

from kdamon.monitoring.use import MemoryUse, WindowUse
from kdamon_tools.units import format_bytes

__all__ = ["render_use", "render_use_lines"]

#: The window that the text about idle memory is about, if it was observed, else a shorter one.
_IDLE_S: Final = 10.0


def render_use(use: MemoryUse) -> str:
    """The figures in a part of a line; empty while there are none."""
    found = [f"{format_bytes(window.accessed)} in {window.seconds:.0f} s" for window in use.windows]
    if not found:
        return ""
    memory = "" if use.resident is None else f" of {format_bytes(use.resident.total)} in memory"
    return f"used {', '.join(found)}{memory}"


def render_use_lines(use: MemoryUse) -> list[str]:
    """The figures in some lines, in the columns of the summary."""
    lines = []
    if use.resident is not None:
        parts = {"anonymous": use.resident.anon, "of files": use.resident.file}
        rest = ", ".join(f"{format_bytes(size)} {name}" for name, size in parts.items())
        swapped = f"; besides {format_bytes(use.resident.swapped)} swapped" if use.resident.swapped else ""
        lines.append(f"{'in memory':<34}{format_bytes(use.resident.total):>10}  {rest}{swapped}")
    if not use.windows:
        return [*lines, f"{'used within 1 s':<34}{'unknown':>10}  no window was long enough"]
    lines += [_used(window) for window in use.windows]
    shown = max((window for window in use.windows if window.seconds <= _IDLE_S), key=lambda window: window.seconds)
    parts = {"anonymous": shown.idle_anon, "of files": shown.idle_file}
    rest = ", ".join(f"{format_bytes(size)} {name}" for name, size in parts.items())
    lines.append(f"{f'idle for {shown.seconds:.0f} s':<34}{format_bytes(shown.idle):>10}  {rest}")
    lines.append(f"{'unknown':<34}{format_bytes(shown.unknown):>10}  accesses cannot be observed")
    return lines


def _used(window: WindowUse) -> str:
    between = f"95 %: {format_bytes(window.low)} to {format_bytes(window.high)}, by {window.pages} pages"
    return f"{f'used within {window.seconds:.0f} s':<34}{format_bytes(window.accessed):>10}  {between}"
