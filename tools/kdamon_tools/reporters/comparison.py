# SPDX-License-Identifier: GPL-2.0-only
"""The comparison of a result with the truth, as a table."""

from __future__ import annotations

import numpy as np

from kdamon_tools.compare import Accuracy
from kdamon_tools.units import format_bytes

__all__ = ["render_comparison"]


def render_comparison(accuracy: Accuracy, since: float) -> str:
    """A line for each place of the hot window, and the means.

    :param since: CLOCK_MONOTONIC seconds from which the time is counted.
    """
    if not accuracy.phases:
        return "nothing to compare: the run was too short, or did not watch the workload of this truth file"
    lines = [
        "found next to what is true",
        f"{'time':>8} {'truly hot':<25} {'size':>8} {'found':>9} recall precision  seen after",
    ]
    for phase in accuracy.phases:
        size = format_bytes(phase.hot[1] - phase.hot[0])
        found = "" if phase.found_bytes is None else format_bytes(phase.found_bytes)
        delay = "" if phase.delay_s is None else f"{phase.delay_s:.2f} s"
        lines.append(
            f"{phase.begin - since:6.1f} s {f'{phase.hot[0]:x}-{phase.hot[1]:x}':<25} {size:>8} {found:>9} "
            f"{_share(phase.recall):>6} {_share(phase.precision):>9} {delay:>11}".rstrip()
        )
    lines.append(
        f"mean of {accuracy.nr_judged} snapshots: recall {_share(accuracy.recall)}, "
        f"precision {_share(accuracy.precision)}"
    )
    if accuracy.nr_moves:
        seen = accuracy.delays_s
        delays = f", seen after {np.median(seen):.2f} s (median), {max(seen):.2f} s at most" if seen else ""
        lines.append(f"{accuracy.nr_moves} moves, {accuracy.nr_moves_missed} missed{delays}")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
