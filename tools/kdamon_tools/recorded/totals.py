# SPDX-License-Identifier: GPL-2.0-only
"""The totals of monitoring in a part of a record."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from attrs import asdict, astuple, evolve, fields_dict

import kdamon
from kdamon import Record
from kdamon.mm import Observed, Resident
from kdamon.monitoring.use import WINDOWS, LookCounts, MemoryUse, WindowUse, estimate
from kdamon_tools.recorded.selection import Selection
from kdamon_tools.snapshot import Counters

__all__ = ["added", "counters_of"]


def counters_of(chosen: Selection) -> Counters:
    """The totals of the selected time; what this version does not know is left out.

    They are recorded once a second. Those of a part are a share of what was added between the readings around it.
    """
    record, run = chosen.record, chosen.record.run
    since, until = chosen.span
    if chosen.since is None and chosen.until is None:
        found = record.counters
        return evolve(_counters(found), use=_stored_use(found.get("use")) or _use(record, since, until))
    use = _use(record, since, until)
    log = record.counter_log()
    begin, before = next(((at, found) for at, found in reversed(log) if at <= since), (run.started, {}))
    later = ((at, found) for at, found in log if at >= until)
    end, after = next(later, log[-1] if log else (run.started, {}))
    share = min(1.0, max(0.0, until - since) / (end - begin)) if end > begin else 0.0
    return evolve(_counters(_part(_known(before), _known(after), share)), use=use)


def _use(record: Record, since: float, until: float) -> MemoryUse | None:
    """How much memory was in use, the mean of that time, from all looks of it."""
    # The last looks may be of the moment of the end.
    uses = list(record.uses(since, until + 1))
    if not uses:
        return None
    # Shares are of what was in memory when windows ended, not before the first one.
    seen = [one.resident for one in [use for use in uses if use.windows] or uses if one.resident is not None]
    resident = Resident(*(sum(sizes) // len(seen) for sizes in zip(*map(astuple, seen), strict=True))) if seen else None
    counts: dict[float, list[LookCounts]] = {window: [] for window in WINDOWS}
    for looks in record.looks(since, until + 1):
        counts.setdefault(float(looks["window"][0]), []).append(LookCounts.of(looks))
    whole = None if resident is None else resident.total
    found = (estimate(counts[window], window, whole) for window in WINDOWS)
    return MemoryUse(uses[-1].time, resident, tuple(window for window in found if window is not None))


def _stored_use(found: Any) -> MemoryUse | None:
    """The estimate of a whole run, as it is among its totals; None where it is none."""
    if not isinstance(found, dict) or not isinstance(found.get("windows"), list):
        return None
    memory = _dictionary(found.get("resident"))
    resident = Resident(**memory) if memory is not None and memory.keys() == fields_dict(Resident).keys() else None
    names, windows = fields_dict(WindowUse).keys(), []
    for window in found["windows"]:
        sizes = _dictionary(window) if isinstance(window, dict) else None
        seconds = _number(window.get("seconds")) if isinstance(window, dict) else None
        if sizes is None or seconds is None or seconds not in WINDOWS or {*sizes, "seconds"} != names:
            return None
        sizes.pop("seconds", None)
        windows.append(WindowUse(seconds, **sizes))
    return MemoryUse(_number(found.get("time")) or 0.0, resident, tuple(windows))


def added(before: kdamon.Counters, after: kdamon.Counters) -> Counters:
    """What was counted between two readings; what is no total is as it was at the second one.

    How much memory was in use is left out: that is the mean since monitoring began.
    """
    earlier, later = (
        {name: value for name, value in asdict(one, recurse=False).items() if name in _KINDS and value is not None}
        for one in (before, after)
    )
    return Counters(**_part(earlier, later, 1.0))


def _counters(found: dict[str, Any]) -> Counters:
    return Counters(**_known(found))


def _known(found: dict[str, Any]) -> dict[str, Any]:
    """Those of :class:`Counters` that are what they should be."""
    values = {name: _KINDS[name](found[name]) for name in fields_dict(Counters) if name in found and name in _KINDS}
    return {name: value for name, value in values.items() if value is not None}


def _part(before: dict[str, Any], after: dict[str, Any], share: float) -> dict[str, Any]:
    """A share of what was added; what is no total is as it was at the end."""
    values = dict(after)
    for name, value in after.items():
        if _KINDS[name] is _dictionary:
            earlier = before.get(name, {})
            values[name] = {key: round(share * max(0, number - earlier.get(key, 0))) for key, number in value.items()}
        elif _KINDS[name] in (_integer, _number) and name not in _LATEST:
            added = share * max(0, value - before.get(name, 0))
            values[name] = round(added) if _KINDS[name] is _integer else added
    return values


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e18 and math.isfinite(value) else None


def _dictionary(value: Any) -> dict[str, int] | None:
    if not isinstance(value, dict):
        return None
    return {name: number for name, number in value.items() if _integer(number) is not None}


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _pair(value: Any) -> tuple[int, int] | None:
    numbers = [_integer(one) for one in value] if isinstance(value, list) else []
    return (numbers[0], numbers[1]) if len(numbers) == 2 and numbers[0] is not None and numbers[1] is not None else None


def _observed(value: Any) -> Observed | None:
    sizes = _dictionary(value) or {}
    return Observed(**sizes) if sizes.keys() == fields_dict(Observed).keys() else None


_KINDS: Final[dict[str, Callable[[Any], Any]]] = {
    "missed_intervals": _integer,
    "samples": _integer,
    "unknown": _integer,
    "cpu_s": _number,
    "reports": _dictionary,
    "faults_lost": _integer,
    "sparse": _pair,
    "never_mapped": _integer,
    "suspended_s": _number,
    "lost_snapshots": _integer,
    "faults_of_reads": _truth,
    "observed": _observed,
    "watching_cpu_s": _number,
    "sample_us": _integer,
    "producers": _dictionary,
    "recorded": _dictionary,
}
#: Numbers that are no totals: what they were at the end.
_LATEST: Final = frozenset({"never_mapped", "sample_us"})
