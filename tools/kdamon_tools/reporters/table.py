# SPDX-License-Identifier: GPL-2.0-only
"""The regions of one snapshot as a table, and what a whole recording comes to in a few lines."""

from __future__ import annotations

import numpy as np

from kdamon_fs.kstrtox import bitmap_list
from kdamon_tools.reporters.shades import LEVELS, UNKNOWN, level_of, paint
from kdamon_tools.snapshot import Config, Recording, RegionTable, Snapshot
from kdamon_tools.units import format_bytes, format_seconds

__all__ = ["SEES_WRITES_ONLY", "render_line", "render_summary", "render_table", "summarize"]

#: Said where it could be taken for something else.
SEES_WRITES_ONLY = "page_fault sees writes and first touches, not reads of memory that is mapped"

_BAR = 10


def render_table(
    snapshot: Snapshot, config: Config, *, since: float, width: int = 80, height: int = 24, colour: bool = False
) -> str:
    """The regions of ``snapshot``, hottest ones first when not all of them fit, always in address order.

    :param since: CLOCK_MONOTONIC seconds from which the time is counted.
    :param width: columns that a line may take.
    :param height: lines that the table may take, the heading and the line of totals included.
    """
    regions = snapshot.regions
    shown, left_out = _choose(regions, snapshot, max(1, height - 3))
    lines = [render_line(snapshot, config, since)]
    lines.append(f"{'start':>16}  {'size':>10}  {'accessed':<{_BAR + 6}}  {'age':>10}  unknown")
    for region in shown:
        share = min(1.0, float(region["nr_accesses"]) / config.max_nr_accesses)
        unknown = float(region["nr_unknown"]) / config.max_nr_accesses
        filled = round(share * _BAR)
        character = UNKNOWN if unknown > 0.5 else level_of(share)
        bar = paint(character * max(1, filled), colour and character in LEVELS) + " " * (_BAR - max(1, filled))
        age = format_seconds(int(region["age"]) * config.aggr_us / 1e6)
        size = format_bytes(int(region["end"]) - int(region["start"]))
        unknown_text = f"{min(1.0, unknown):7.0%}" if unknown else ""
        lines.append(f"{int(region['start']):16x}  {size:>10}  {bar} {share:4.0%}  {age:>10}  {unknown_text}".rstrip())
    if left_out:
        lines.append(f"{'':16}  and {left_out} smaller or colder regions")
    if colour:
        return "\n".join(lines)
    return "\n".join(line[:width] for line in lines)


def _choose(regions: RegionTable, snapshot: Snapshot, room: int) -> tuple[RegionTable, int]:
    """The regions to show in ``room`` lines, and how many are left out."""
    if len(regions) <= room:
        return regions, 0
    order = np.lexsort((-snapshot.sizes, -regions["nr_accesses"].astype(np.float64)))
    chosen = np.sort(order[: room - 1])
    return regions[chosen], len(regions) - len(chosen)


def render_line(snapshot: Snapshot, config: Config, since: float) -> str:
    """One line about ``snapshot``: time, regions, and the bytes accessed at all and often."""
    accessed = snapshot.bytes_at_least(1)
    hot = snapshot.bytes_at_least(config.max_nr_accesses / 2)
    return (
        f"{snapshot.time - since:7.1f} s  {len(snapshot.regions)} regions of {format_bytes(snapshot.sizes.sum())}, "
        f"accessed {format_bytes(accessed)}, hot {format_bytes(hot)}"
    )


def summarize(recording: Recording) -> dict[str, float]:
    """The figures of a recording; bytes, percent and counts.

    Bytes are medians over the snapshots: the first ones of a run know little yet, and a median forgives them.
    """
    config, counters = recording.config, recording.counters
    accessed = [snapshot.bytes_at_least(1) for snapshot in recording.snapshots]
    hot = [snapshot.bytes_at_least(config.max_nr_accesses / 2) for snapshot in recording.snapshots]
    return {
        "working_set_bytes": int(np.median(accessed)) if accessed else 0,
        "hot_bytes": int(np.median(hot)) if hot else 0,
        "unknown_percent": 100 * counters.unknown / counters.samples if counters.samples else 0.0,
        "missed_intervals": counters.missed_intervals,
        "kdamond_cpu_percent": 100 * counters.cpu_s / recording.seconds if recording.seconds else 0.0,
    }


def render_summary(recording: Recording) -> str:
    """What the recording comes to: working set, hot bytes, and how well the monitoring went."""
    config, counters = recording.config, recording.counters
    figures = summarize(recording)
    aggregations = sum(snapshot.merged for snapshot in recording.snapshots)
    what = "physical addresses" if config.ops == "paddr" else f"pid {config.pid}"
    lines = [
        f"monitored {what} for {format_seconds(recording.seconds)}, "
        f"{aggregations} aggregations" + (f"; {recording.note}" if recording.note else ""),
        *_what_counted(config),
        f"working set (accessed at all)     {format_bytes(figures['working_set_bytes']):>10}  median",
        f"hot (half of the samples or more) {format_bytes(figures['hot_bytes']):>10}  median",
    ]
    if config.primitive:
        lines.append(f"samples unknown                   {figures['unknown_percent']:>9.1f}%  of {counters.samples}")
    lines += _reports(recording)
    lines.append(f"sampling intervals missed         {counters.missed_intervals:>10}")
    if counters.cpu_s:
        lines.append(f"CPU time of kdamond               {figures['kdamond_cpu_percent']:>9.1f}%  of one CPU")
    return "\n".join(lines)


def _what_counted(config: Config) -> list[str]:
    """Which accesses the figures are about, where that is not all of them."""
    lines = []
    if config.filtered:
        by = [f"by {'CPUs' if len(config.cpus) > 1 else 'CPU'} {bitmap_list(config.cpus)}"] if config.cpus else []
        threads = ",".join(map(str, config.tids))
        by += [f"by {'threads' if len(config.tids) > 1 else 'thread'} {threads}"] if config.tids else []
        lines.append(f"only {' '.join(['writes' if config.write_only else 'accesses', *by])} counted")
    if config.sees_writes_only:
        lines.append(SEES_WRITES_ONLY)
    return lines


def _reports(recording: Recording) -> list[str]:
    """What became of reports, if reports were what counted or there were any."""
    config, counters = recording.config, recording.counters
    lines = []
    if any(counters.reports.values()) or config.primitive != "page_table":
        lines.append(_counted("reports accepted", "accepted", counters.reports))
    if config.primitive == "page_fault":
        lines.append(f"faults lost                       {counters.faults_lost:>10}")
    if counters.producers:
        lines.append(_counted("received from producers", "received", counters.producers))
    if counters.recorded:
        lines.append(_counted("reports recorded", "written", counters.recorded))
    return lines


def _counted(label: str, first: str, counters: dict[str, int]) -> str:
    """A line with the ``first`` of ``counters``, and those of the others that are not zero."""
    others = [(name.replace("_", " "), number) for name, number in counters.items() if number and name != first]
    rest = ", ".join(f"{name} {number}" for name, number in others)
    return f"{label:<34}{counters.get(first, 0):>10}  {rest}".rstrip()
