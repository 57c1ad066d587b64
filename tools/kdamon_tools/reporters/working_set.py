# SPDX-License-Identifier: GPL-2.0-only
"""An exact working set as a table and as JSON, and the sentences on its cost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import frozen

from kdamon.sample_control import READS_UNSEEN
from kdamon_tools.origin import Origin, origin_fields
from kdamon_tools.output.readable import json_text, readable
from kdamon_tools.output.terminal import cut
from kdamon_tools.units import format_bytes

if TYPE_CHECKING:
    from kdamon.mm.working_set.observation import Cost
    from kdamon.mm.working_set.sets import Counts, MappingCounts, WorkingSet

__all__ = ["WSS", "Window", "describe_cost", "render_working_set", "render_working_set_json"]

#: Name and version of the schema.
WSS: Final = "kdamon.wss/1"
#: Columns of a size: 1023.9 KiB.
_COLUMN: Final = 11


@frozen
class Window:
    """The result of ``kdamon wss``.

    :ivar pid: the process.
    :ivar primitive: how its pages were observed.
    :ivar reads: whether reads were observed.
    :ivar origin: the machine, and when the window began.
    :ivar begin_seconds: how long it took to arm all pages, or to make them old.
    :ivar seconds: the window from then on.
    :ivar count_seconds: how long it took to count the pages after it.
    :ivar note: the reason for its end, a sentence without capital and full stop.
    """

    pid: int
    primitive: str
    reads: bool
    origin: Origin
    begin_seconds: float
    seconds: float
    count_seconds: float
    note: str
    working_set: WorkingSet


def describe_cost(cost: Cost, primitive: str, *, reads: bool) -> Iterator[str]:
    """Sentences on the cost, before it arises."""
    resident, observed = format_bytes(cost.resident), format_bytes(cost.observed)
    if primitive == "page_table":
        yield (
            f"of {resident} in memory, {observed} were accessed lately and move to the inactive list, from which the "
            "kernel reclaims memory first"
        )
        return
    unknown = f"; {format_bytes(cost.unknown)} cannot be observed" if cost.unknown else ""
    what = "use" if reads else "write"
    yield (
        f"of {resident} in memory, {observed} are armed: the process has a fault at its first {what} of each page, "
        f"{cost.faults} at most, of one or two microseconds each{unknown}"
    )
    if not reads:
        yield f"{READS_UNSEEN}, or --primitive page_table"


def render_working_set(window: Window, width: int = 80, height: int = 24) -> str:
    """A line for each mapping that is in use or unknown, and the sums.

    :param width: maximum columns of a line.
    :param height: maximum lines for mappings.
    """
    rows = [row for row in window.working_set.mappings if row.counts.used or row.counts.unknown]
    rows.sort(key=lambda row: row.counts.used + row.counts.unknown, reverse=True)
    shown, more = rows[:height], rows[height:]
    names = ("touched" if window.reads else "written", "new", "unknown", "in memory")
    lines = [
        f"process {window.pid}: {'reads and writes' if window.reads else 'writes'} by {window.primitive} in "
        f"{window.seconds:.1f} s, {window.note}",
        "".join(f"{name:>{_COLUMN}}" for name in names) + "  mapping",
        *(cut(_line(row), width) for row in shown),
    ]
    if more:
        lines.append(f"and {len(more)} more {'mappings' if len(more) > 1 else 'mapping'}: {_together(more)}")
    return "\n".join([*lines, "", *_sums(window)])


def _line(row: MappingCounts) -> str:
    counts, mapping = row.counts, row.mapping
    accessed = (counts.touched or 0) + (counts.written or 0)
    cells = (accessed, counts.new + counts.mapped_since, counts.unknown)
    texts = [format_bytes(cell) if cell else "" for cell in cells]
    name = readable(os.path.basename(mapping.name)) or "anonymous"
    places = "".join(f"{text:>{_COLUMN}}" for text in (*texts, format_bytes(counts.resident)))
    return f"{places}  {mapping.start:12x} {mapping.permissions} {name}"


def _together(rows: Sequence[MappingCounts]) -> str:
    used, unknown = sum(row.counts.used for row in rows), sum(row.counts.unknown for row in rows)
    return f"{format_bytes(used)} in use, {format_bytes(unknown)} unknown"


def _sums(window: Window) -> Iterator[str]:
    total = window.working_set.total
    parts = (
        (total.touched, "read or written"),
        (total.written, "written where reads are not seen" if window.reads else "written"),
        (total.new, "came into memory"),
        (total.mapped_since, "mapped since"),
    )
    listed = ", ".join(f"{format_bytes(size)} {what}" for size, what in parts if size is not None)
    share = 100 * total.used / total.resident if total.resident else 0.0
    yield f"in use: {format_bytes(total.used)} of {format_bytes(total.resident)} in memory ({share:.1f} %):"
    yield f"    {listed}"
    reasons = (
        (total.unknown_huge, "huge pages"),
        (total.unknown_other, "other pages that cannot be observed"),
        (total.unknown_reads, "pages of files, whose reads are not seen"),
        (total.unknown_left, "pages that left memory meanwhile"),
    )
    why = ", ".join(f"{format_bytes(size)} {what}" for size, what in reasons if size)
    yield f"unknown: {format_bytes(total.unknown)}{f': {why}' if why else ''}"
    if total.swapped:
        yield f"in swap at the end: {format_bytes(total.swapped)}"
    if not window.reads:
        yield READS_UNSEEN
    yield f"{1e3 * window.begin_seconds:.0f} ms to begin, {1e3 * window.count_seconds:.0f} ms to count"


def render_working_set_json(window: Window) -> str:
    """One object on one line, as docs/schemas has it."""
    found = window.working_set
    return json_text(
        {
            **origin_fields(WSS, window.origin),
            "pid": window.pid,
            "primitive": window.primitive,
            "reads": window.reads,
            "begin_seconds": round(window.begin_seconds, 6),
            "seconds": round(window.seconds, 6),
            "count_seconds": round(window.count_seconds, 6),
            "note": window.note,
            "resident_before_bytes": found.resident_before,
            "total": _counts(found.total),
            "mappings": [
                {**attrs.asdict(row.mapping, filter=attrs.filters.exclude("inode")), **_counts(row.counts)}
                for row in found.mappings
            ],
        }
    )


def _counts(counts: Counts) -> dict[str, Any]:
    return {
        **{f"{name}_bytes": size for name, size in attrs.asdict(counts).items()},
        "unknown_bytes": counts.unknown,
        "used_bytes": counts.used,
    }
