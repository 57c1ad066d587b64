# SPDX-License-Identifier: GPL-2.0-only
"""The regions of one snapshot as a table, and the summary of a whole recording in a few lines."""

from __future__ import annotations

import textwrap
from typing import Final

import numpy as np

from kdamon.arrays import F64Array, Mask
from kdamon.kstrtox import bitmap_list
from kdamon.mm import Observed
from kdamon.monitoring.config import Config
from kdamon.names.table import NameTable, Part
from kdamon.sample_control import READS_UNSEEN
from kdamon_tools.groups import GroupLog
from kdamon_tools.reporters.groups import render_group_lines
from kdamon_tools.reporters.names import fitting
from kdamon_tools.reporters.rest import describe_rest
from kdamon_tools.reporters.shades import LEVELS, UNKNOWN, level_of, paint
from kdamon_tools.reporters.unknown import explain_unknown
from kdamon_tools.reporters.use import render_use, render_use_lines
from kdamon_tools.snapshot import Recording, Snapshot
from kdamon_tools.units import format_bytes, format_seconds
from kdamon_tools.views.measures import aggr_seconds
from kdamon_tools.views.regions import HOT

__all__ = ["render_line", "render_summary", "render_table", "summarize"]

_MOST_BAR: Final = 10
#: A run begins and ends within an aggregation interval; pauses longer than that by this much get a line.
_NOTABLE_S: Final = 0.5
_NOTABLE_AGGRS: Final = 3
#: Minimum number of lines of a table with a line of explanation.
_LINES_PER_NOTE: Final = 10
#: A table that is narrower has no names.
_LEAST_FOR_NAMES: Final = 56
#: Groups take one line in so many at most.
_PART_FOR_GROUPS: Final = 3


def render_table(
    snapshot: Snapshot,
    config: Config,
    *,
    since: float,
    width: int = 80,
    height: int = 24,
    colour: bool = False,
    groups: GroupLog | None = None,
    names: NameTable | None = None,
) -> str:
    """The regions of ``snapshot`` in address order; if not all of them fit, hot ones first, and a text about the rest.

    :param since: CLOCK_MONOTONIC seconds from which the time is counted.
    :param width: maximum columns of a line, at least 30; a narrow table leaves out the least important columns.
    :param height: maximum lines of the table, at least 1.
    :param groups: those of the run so far; the most active ones get up to a third of the lines.
    :param names: what lies there; None: that is not known.
    """
    layout = _Layout(width) if names is None else _NamedLayout(width, snapshot)
    line = render_line(snapshot, config, since)
    lines = [line] if len(line) <= width else textwrap.wrap(line.strip(), width)
    if groups is not None:
        lines += render_group_lines(snapshot, groups, config, width=width, most=height // _PART_FOR_GROUPS)
    lines.append(layout.heading())
    explained = textwrap.wrap(explain_unknown([snapshot], config), width)
    if len(explained) > height // _LINES_PER_NOTE:
        explained = []
    room = max(0, height - len(lines) - len(explained))
    chosen, rest = np.ones(len(snapshot.regions), bool), list[str]()
    if len(chosen) > room:
        # The text takes lines from regions, which the text then describes too: it has a few lines at most.
        for reserved in range(1, 6):
            chosen = _choose(snapshot, config, room - reserved)
            rest = layout.wrap(_rest(snapshot, config, ~chosen))
            if len(rest) <= reserved:
                break
    shown = snapshot.regions[chosen]
    parts = names.parts_of(shown) if names is not None else [[] for _ in shown]
    interval = aggr_seconds(snapshot, config)
    lines += [layout.line(region, config, interval, colour, of) for region, of in zip(shown, parts, strict=True)]
    return "\n".join((lines + rest + explained)[: max(1, height)])


class _Layout:
    """The columns of a table that is ``width`` wide."""

    #: Columns of the names; 0: there are none.
    _name = 0

    def __init__(self, width: int) -> None:
        self._unknown = width >= 67
        self._age = width >= 57
        narrow = width < 46
        self._start, self._space = (12, " ") if narrow else (16, "  ")
        self._bar = min(_MOST_BAR, max(1, width - 29)) if narrow else _MOST_BAR
        self._width = width

    def heading(self) -> str:
        """The names of the columns."""
        columns = [f"{'start':>{self._start}}", f"{'size':>10}", f"{'accessed'[: self._bar + 5]:<{self._bar + 5}}"]
        columns += [f"{'age':>10}"] if self._age else []
        columns += ["unknown"] if self._unknown else []
        columns += ["name"] if self._name else []
        return self._space.join(columns).rstrip()

    def wrap(self, text: str) -> list[str]:
        """Lines of text below the regions."""
        indent = " " * (self._start + 2 if self._age else 0)
        return textwrap.wrap(text, self._width, initial_indent=indent, subsequent_indent=indent)

    def line(self, region: np.void, config: Config, interval: float, colour: bool, parts: list[Part]) -> str:
        """A row of :data:`kdamon_tools.snapshot.REGION`, whose age counts ``interval``, seconds.

        :param parts: what lies there.
        """
        share = min(1.0, float(region["mean_accesses"]) / config.max_nr_accesses)
        unknown = min(1.0, float(region["nr_unknown"]) / config.max_nr_accesses)
        filled = max(1, round(share * self._bar))
        character = UNKNOWN if unknown > 0.5 else level_of(share)
        bar = paint(character * filled, colour and character in LEVELS) + " " * (self._bar - filled)
        start, end = int(region["start"]), int(region["end"])
        columns = [f"{start:{self._start}x}", f"{format_bytes(end - start):>10}", f"{bar} {share:4.0%}"]
        columns += [f"{format_seconds(int(region['age']) * interval):>10}"] if self._age else []
        if self._name:
            columns += [f"{unknown:7.0%}" if unknown else " " * 7] if self._unknown else []
            columns += [fitting(parts, self._name)]
        else:
            columns += [f"{unknown:7.0%}"] if self._unknown and unknown else []
        return self._space.join(columns).rstrip()


class _NamedLayout(_Layout):
    """The columns of a table with names, for which other columns are narrower, or left out."""

    def __init__(self, width: int, snapshot: Snapshot) -> None:
        super().__init__(width)
        if width < _LEAST_FOR_NAMES:
            return
        self._unknown, self._age, self._space = width >= 78, width >= 66, "  "
        highest = int(snapshot.regions["start"].max(initial=0))
        self._start = max(12, len(f"{highest:x}"))
        self._bar = _MOST_BAR if width >= 100 else _MOST_BAR // 2
        others = self._start + 2 + 10 + 2 + self._bar + 5 + 2 + 12 * self._age + 9 * self._unknown
        self._name = width - others


def _shares(snapshot: Snapshot, config: Config) -> F64Array:
    return snapshot.regions["mean_accesses"].astype(np.float64) / config.max_nr_accesses


def _choose(snapshot: Snapshot, config: Config, room: int) -> Mask:
    """Which regions to show in ``room`` lines: hot ones first, then by accessed bytes."""
    shares = _shares(snapshot, config)
    chosen = np.zeros(len(shares), bool)
    chosen[np.lexsort((-shares * snapshot.sizes, shares < HOT))[: max(0, room)]] = True
    return chosen


def _rest(snapshot: Snapshot, config: Config, which: Mask) -> str:
    """The text about regions that are not shown."""
    unknown = snapshot.regions["nr_unknown"] > 0.5 * config.max_nr_accesses
    about = describe_rest(snapshot.sizes[which], _shares(snapshot, config)[which], unknown[which])
    return f"and {int(which.sum())} more: {about}"


def render_line(snapshot: Snapshot, config: Config, since: float) -> str:
    """One line about ``snapshot``: time, regions, bytes accessed often, and the memory in use if that is known."""
    regions = f"{snapshot.time - since:7.1f} s  {len(snapshot.regions)} regions"
    hot = format_bytes(snapshot.working_set(config.max_nr_accesses / 2))
    if snapshot.use is not None and (used := render_use(snapshot.use)):
        return f"{regions}, hot {hot}; {used}"
    covered, accessed = format_bytes(snapshot.sizes.sum()), format_bytes(snapshot.working_set(1))
    return f"{regions} of {covered}, accessed {accessed}, hot {hot}"


def summarize(recording: Recording) -> dict[str, float | None]:
    """The figures of a recording; bytes, percent and counts. None stands for unknown: not sampled, or not measured.

    Bytes are medians over the snapshots: the first ones of a run are inaccurate, and a median is robust against them.
    """
    config, counters = recording.config, recording.counters
    watching_s = counters.watching_cpu_s
    unsampled = sum(end - begin for begin, end in recording.pauses())
    sampled = recording.seconds - unsampled
    accessed = [snapshot.working_set(1) for snapshot in recording.snapshots]
    hot = [snapshot.working_set(config.max_nr_accesses / 2) for snapshot in recording.snapshots]
    return {
        "working_set_bytes": int(np.median(accessed)) if accessed else None,
        "hot_bytes": int(np.median(hot)) if hot else None,
        "unknown_percent": 100 * counters.unknown / counters.samples if counters.samples else None,
        "missed_intervals": counters.missed_intervals,
        "unsampled_seconds": round(unsampled, 6),
        "kdamond_cpu_percent": 100 * counters.cpu_s / sampled if sampled > 0 and counters.cpu_s is not None else None,
        "watching_cpu_percent": None
        if watching_s is None or not recording.seconds
        else 100 * watching_s / recording.seconds,
    }


def render_summary(recording: Recording, *, width: int = 80) -> str:
    """The summary of the recording: working set, hot bytes, and the quality of the monitoring.

    :param width: maximum columns of a line.
    """
    config, counters = recording.config, recording.counters
    figures = summarize(recording)
    aggregations = sum(snapshot.merged for snapshot in recording.snapshots)
    what = "physical addresses" if config.ops == "paddr" else f"pid {config.pid}"
    lines = [
        f"monitored {what} for {format_seconds(recording.seconds)}, "
        f"{aggregations} aggregations" + (f"; {recording.note}" if recording.note else ""),
        *_what_counted(config, bool(counters.faults_of_reads)),
        *(render_use_lines(counters.use) if counters.use is not None else [_accessed(figures)]),
        f"hot (half of the samples or more) {_bytes(figures['hot_bytes']):>10}  median",
    ]
    if config.primitive and (unknown := figures["unknown_percent"]) is not None:
        lines.append(f"samples unknown                   {unknown:>9.1f}%  of {counters.samples}")
    lines += _reports(recording)
    lines += _intervals(recording)
    lines.append(f"sampling intervals missed         {counters.missed_intervals:>10}")
    if counters.never_mapped:
        size = sum(end - start for start, end in config.ranges)
        what = "no memory" if config.ops == "paddr" else "never mapped"
        lines.append(f"{what:<34}{format_bytes(counters.never_mapped):>10}  of the {format_bytes(size)} of the ranges")
    if counters.sparse:
        covered, populated = map(format_bytes, counters.sparse)
        remedy = "use --vaddr-regions mappings" if config.vaddr_regions == "kernel" else "raise --max-regions"
        lines.append(
            f"the regions covered {covered}, of which {populated} were populated: hardly any access was found; {remedy}"
        )
    if (unsampled_s := figures["unsampled_seconds"] or 0.0) > max(_NOTABLE_S, _NOTABLE_AGGRS * config.aggr_us / 1e6):
        unsampled = format_seconds(unsampled_s)
        lines.append(f"nothing was sampled for           {unsampled:>10}  of the {format_seconds(recording.seconds)}")
    if counters.suspended_s:
        lines.append(f"the machine was suspended for     {format_seconds(counters.suspended_s):>10}  besides")
    if counters.cpu_s and (cpu := figures["kdamond_cpu_percent"]) is not None:
        watching = figures["watching_cpu_percent"]
        rest = "" if watching is None else f", and {watching:.1f}% to watch pages"
        lines.append(f"CPU time of kdamond               {cpu:>9.1f}%  of one CPU{rest}")
    lines += filter(None, (explain_unknown(recording.snapshots, config), *recording.remarks))
    return "\n".join(part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  "))


def _accessed(figures: dict[str, float | None]) -> str:
    return (
        f"accessed within an aggregation    {_bytes(figures['working_set_bytes']):>10}  median, by samples of regions"
    )


def _bytes(size: float | None) -> str:
    return "unknown" if size is None else format_bytes(size)


def _intervals(recording: Recording) -> list[str]:
    """The intervals at the end, where they are tuned."""
    sample_us = recording.counters.sample_us
    if sample_us is None:
        return []
    sample, aggr = (f"{us / 1e3:.0f} ms" for us in (sample_us, sample_us * recording.config.max_nr_accesses))
    return [f"sampling interval, at the end     {sample:>10}  tuned; aggregation interval {aggr}"]


def _what_counted(config: Config, faults_of_reads: bool) -> list[str]:
    """The accesses that the figures cover, if not all of them."""
    lines = []
    if config.filtered:
        by = [f"by {'CPUs' if len(config.cpus) > 1 else 'CPU'} {bitmap_list(config.cpus)}"] if config.cpus else []
        threads = ",".join(map(str, config.tids))
        by += [f"by {'threads' if len(config.tids) > 1 else 'thread'} {threads}"] if config.tids else []
        kind = "writes" if config.write_only else "reads" if config.read_only else "accesses"
        lines.append(f"only {' '.join([kind, *by])} counted")
    if config.misses_reads(faults_of_reads):
        lines.append(READS_UNSEEN)
    return lines


def _what_faulted(observed: Observed) -> str:
    """Of how much memory faults showed what, where they show more than writes."""
    others = [(observed.writes, "writes only of"), (observed.neither, "neither of")]
    rest = ", ".join(f"{what} {format_bytes(size)}" for size, what in others if size)
    return f"faults show reads and writes of   {format_bytes(observed.accesses):>10}  {rest}".rstrip()


def _reports(recording: Recording) -> list[str]:
    """The counters of reports, if reports counted or any arrived."""
    config, counters = recording.config, recording.counters
    lines = []
    if any(counters.reports.values()) or config.primitive != "page_table":
        lines.append(_counted("reports accepted", "accepted", counters.reports))
    if config.primitive == "page_fault":
        if counters.faults_of_reads and not config.write_only and counters.observed is not None:
            lines.append(_what_faulted(counters.observed))
        lines.append(f"faults lost                       {counters.faults_lost:>10}")
    if counters.producers:
        lines.append(_counted("received from producers", "received", counters.producers))
    if counters.recorded:
        lines.append(_counted("reports recorded", "written", counters.recorded))
    return lines


def _counted(label: str, first: str, counters: dict[str, int]) -> str:
    """A line with the counter ``first``, and the nonzero others of ``counters``."""
    others = [(name.replace("_", " "), number) for name, number in counters.items() if number and name != first]
    rest = ", ".join(f"{name} {number}" for name, number in others)
    return f"{label:<34}{counters.get(first, 0):>10}  {rest}".rstrip()
