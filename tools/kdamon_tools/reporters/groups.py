# SPDX-License-Identifier: GPL-2.0-only
"""What each CPU, thread or node accessed: pictures, a table, and the memory that several of them write."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from attrs import evolve, frozen

from kdamon.monitoring.config import Config
from kdamon.names.table import NameTable, Part
from kdamon_tools.groups import Group, GroupLog, raw_number
from kdamon_tools.output.readable import readable
from kdamon_tools.reporters.heatmap import areas_of, render_heatmap
from kdamon_tools.reporters.names import fitting
from kdamon_tools.shared_writes import SharedRange
from kdamon_tools.snapshot import Recording, Snapshot
from kdamon_tools.units import format_bytes

__all__ = ["group_bytes", "render_group_heatmaps", "render_group_lines", "render_group_tables", "render_most_active"]

#: Lines of a table, and pictures.
_MOST: Final = 8
#: Groups with a smaller share of the reports than this are summed up, if it is also less than this part of the mean.
_WORTHWHILE: Final = 0.01
_OF_MEAN: Final = 0.5
_READS_FIRST: Final = (
    "a write after a read of its page in the same sampling interval is not among the writes; --write-only counts all"
)
_MOST_RANGES: Final = 10
_MOST_WRITERS: Final = 4
#: Columns of a name.
_LONGEST_NAME: Final = 40
_NAMES: Final = {"cpu": ("CPU", "CPUs"), "thread": ("tid", "threads"), "node": ("node", "nodes")}
_ONE: Final = {"cpu": "CPU", "thread": "thread", "node": "node"}


@frozen
class _Shown:
    """A line or picture: one group, or the rest of them."""

    label: str
    groups: tuple[Group, ...]

    @property
    def nr_reports(self) -> int:
        return sum(group.nr_reports for group in self.groups)

    @property
    def nr_writes(self) -> int:
        return sum(group.nr_writes for group in self.groups)


def _label(by: str, group: Group) -> str:
    if group.number is None:
        return f"{_ONE[by]} unknown"
    name = f" ({readable(group.name)})" if group.name is not None else ""
    return f"{_NAMES[by][0]} {group.number}{name}"


def _shown(log: GroupLog, most: int = _MOST) -> list[_Shown]:
    """The most active groups, and the rest in one."""
    shown = [_Shown(_label(log.by, group), (group,)) for group in log.groups]
    least = min(_WORTHWHILE, _OF_MEAN / max(1, len(shown))) * log.nr_reports
    count = sum(one.nr_reports >= least for one in shown)
    count = count if count == len(shown) <= most else min(count, most - 1)
    rest = log.groups[count:]
    if len(rest) <= 1:
        return shown
    return [*shown[:count], _Shown(f"others ({len(rest)} {_NAMES[log.by][1]})", rest)]


def _raw_numbers(log: GroupLog, groups: Sequence[Group]) -> list[int]:
    return [raw_number(log.by, group.number) for group in groups]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def render_group_heatmaps(recording: Recording, *, width: int = 80, height: int = 24, colour: bool = False) -> str:
    """A picture for each of the most active groups and one for the others, of the addresses of the whole picture.

    :param width: as of :func:`render_heatmap`, and so are the others.
    """
    log = recording.groups
    if log is None or not log.groups or not any(len(snapshot.regions) for snapshot in recording.snapshots):
        return ""
    areas = areas_of(recording, height)
    parts = []
    for shown in _shown(log):
        numbers = _raw_numbers(log, shown.groups)
        own = evolve(recording, snapshots=[snapshot.of_groups(numbers) for snapshot in recording.snapshots])
        text = f"{shown.label}: {shown.nr_reports} reports, {_share(shown.nr_reports, log.nr_reports)} of all"
        picture = render_heatmap(own, width=width, height=height, colour=colour, show_legend=False, areas=areas)
        parts.append("\n".join([*textwrap.wrap(text, width), picture]))
    return "\n\n".join(parts)


def group_bytes(recording: Recording) -> dict[int, tuple[int, int]]:
    """Bytes that each group accessed at all, and in at least half of the sampling intervals, medians over snapshots.

    :returns: by the groups' numbers in reports.
    """
    tables = [np.empty(0) if s.groups is None else s.groups.regions for s in recording.snapshots]
    lengths = [len(table) for table in tables]
    if not sum(lengths):
        return {}
    rows = np.concatenate([table for table in tables if len(table)])
    numbers, group = np.unique(rows["group"], return_inverse=True)
    cell = np.repeat(np.arange(len(tables)), lengths) * len(numbers) + group
    sizes = (rows["end"] - rows["start"]).astype(np.float64)
    medians = []
    for least in (1, recording.config.max_nr_accesses / 2):
        sums = np.bincount(cell, sizes * (rows["nr_accesses"] >= least), len(tables) * len(numbers))
        medians.append(np.median(sums.reshape(len(tables), len(numbers)), axis=0).astype(np.int64).tolist())
    return dict(zip(numbers.tolist(), zip(*medians, strict=True), strict=True))


def render_group_tables(recording: Recording, *, width: int = 80) -> str:
    """The groups with their reports, and the memory that several of them write.

    :param width: maximum columns of a line.
    """
    log = recording.groups
    if log is None:
        return ""
    parts = [_group_table(recording, log, width)]
    if not recording.config.read_only:
        parts.append(_shared_table(log, width, recording.names))
    return "\n\n".join("\n".join(part) for part in parts)


def _group_table(recording: Recording, log: GroupLog, width: int) -> Iterator[str]:
    sizes = group_bytes(recording)
    rows = []
    for shown in _shown(log):
        found = [sizes.get(number) for number in _raw_numbers(log, shown.groups)]
        one = found[0] if len(found) == 1 else None
        rows.append(
            (
                shown.label,
                str(shown.nr_reports),
                _share(shown.nr_reports, log.nr_reports),
                str(shown.nr_writes),
                *(("", "") if one is None else map(format_bytes, one)),
            )
        )
    all_writes = str(sum(group.nr_writes for group in log.groups))
    rows.append((f"all {_NAMES[log.by][1]}", str(log.nr_reports), _share(log.nr_reports, log.nr_reports), all_writes))
    yield from _columns((f"by {log.by}", "reports", "share", "writes", "accessed", "hot"), rows, width)
    if log.nr_missing:
        text = f"{log.nr_missing} more reports are of intervals that did not end, or of lost snapshots"
        yield from textwrap.wrap(text, width, subsequent_indent="  ")
    config = recording.config
    if recording.counters.faults_of_reads and not config.write_only and not config.read_only:
        yield from textwrap.wrap(_READS_FIRST, width, subsequent_indent="  ")


def _columns(heading: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """A table; a narrow one leaves out the last columns, and cuts labels."""
    widths = [max(len(row[at]) for row in (heading, *rows) if at < len(row)) for at in range(len(heading))]
    count = len(heading)
    while count > 2 and min(widths[0], 20) + sum(2 + size for size in widths[1:count]) > width:
        count -= 1
    widths[0] = max(1, min(widths[0], width - sum(2 + size for size in widths[1:count])))
    for row in (heading, *rows):
        cells = [f"{row[0][: widths[0]]:<{widths[0]}}"]
        cells += [f"{cell:>{size}}" for cell, size in zip(row[1:count], widths[1:count], strict=False)]
        yield "  ".join(cells).rstrip()


def _shared_table(log: GroupLog, width: int, names: NameTable | None) -> Iterator[str]:
    what = _NAMES[log.by][1]
    if not log.shared:
        yield from textwrap.wrap(f"no memory was found that several {what} write at the same time", width)
        return
    heading = f"written by several {what} at the same time; most writes by others than the main writer first"
    yield from textwrap.wrap(heading, width)
    ranges = log.shared[:_MOST_RANGES]
    bounds = [(shared.start, shared.end) for shared in ranges]
    parts: list[list[Part]] = [[] for _ in ranges] if names is None else names.parts_of(bounds)
    for shared, of in zip(ranges, parts, strict=True):
        text = _shared_text(log, shared, fitting(of, _LONGEST_NAME))
        yield from textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="      ")
    if (rest := len(log.shared) - _MOST_RANGES) > 0:
        yield from textwrap.wrap(f"and {rest} more ranges, which --json has", width)


def _shared_text(log: GroupLog, shared: SharedRange, name: str) -> str:
    writers = [
        f"{_label(log.by, log.group(writer.number))} {writer.nr_writes / shared.nr_writes:.0%}"
        for writer in shared.writers[:_MOST_WRITERS]
    ]
    rest = shared.writers[_MOST_WRITERS:]
    if rest:
        writers.append(f"{len(rest)} others {sum(w.nr_writes for w in rest) / shared.nr_writes:.0%}")
    where = f"{shared.start:x}-{shared.end:x} {format_bytes(shared.end - shared.start)}{name and ' of ' + name}"
    text = f"{where}, {shared.nr_writes} writes: "
    return text + ", ".join(writers) + _lines_text(shared)


def _lines_text(shared: SharedRange) -> str:
    """What is known of the cache lines of a small range."""
    if not shared.lines:
        return ""
    text = f"; {shared.lines} cache {'lines' if shared.lines > 1 else 'line'} seen, {shared.shared_lines} shared"
    return f"{text}, {shared.apart} at different places" if shared.shared_lines else text


def render_group_lines(snapshot: Snapshot, log: GroupLog, config: Config, *, width: int, most: int) -> list[str]:
    """At most ``most`` lines for a live table: the groups in ``snapshot``, those most active in the run first."""
    if most < 2 or not log.groups:
        return []
    rows = []
    table = None if snapshot.groups is None else snapshot.groups.regions
    for shown in _shown(log, min(_MOST, most - 1)):
        cells: tuple[str, ...] = ()
        if table is not None:
            own = table[np.isin(table["group"], _raw_numbers(log, shown.groups))]
            sizes = (own["end"] - own["start"]).astype(np.float64)
            hot = own["nr_accesses"] >= config.max_nr_accesses / 2
            if len(shown.groups) == 1:
                cells = format_bytes(sizes.sum()), format_bytes(sizes[hot].sum())
        rows.append((shown.label, _share(shown.nr_reports, log.nr_reports), *cells))
    return list(_columns((f"by {log.by}", "share", "accessed", "hot"), rows, width))[:most]


def render_most_active(log: GroupLog) -> str:
    """The three most active groups, in a few words."""
    words = [f"{_label(log.by, group)} {group.nr_reports / log.nr_reports:.0%}" for group in log.groups[:3]]
    return ", ".join(words)
