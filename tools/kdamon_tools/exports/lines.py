# SPDX-License-Identifier: GPL-2.0-only
"""The lines of JSON that ``kdamon run --json=lines`` would have printed."""

from __future__ import annotations

from kdamon import Record
from kdamon.records.tables import NamesOverTime
from kdamon.records.values import Run
from kdamon_tools.exports import Write
from kdamon_tools.groups import Grouping
from kdamon_tools.history import History
from kdamon_tools.mapping_history import MappingLog
from kdamon_tools.recorded.recording import config_of, origin_of, with_thread_names
from kdamon_tools.recorded.selection import Selection
from kdamon_tools.recorded.totals import counters_of
from kdamon_tools.reporters.json_object import render_aggregation, render_end, render_header
from kdamon_tools.snapshot import Recording

__all__ = ["export"]


def export(selection: Selection, write: Write) -> list[str]:
    """Write a line for the run, one for each snapshot, and one for the totals."""
    record = selection.record
    run = record.run
    config, origin = config_of(run), origin_of(run)
    mappings = _mappings(record, run)

    def line(text: str) -> None:
        write(text.encode("utf-8", "backslashreplace") + b"\n")

    line(render_header(config, run.started, origin, mappings))
    names, history, index = NamesOverTime(record.name_tables()), History(), 0
    grouping = Grouping(config.by) if config.by else None
    for snapshot in selection.snapshots():
        table = names.at(snapshot.time)
        line(render_aggregation(snapshot, run.started, index, 0, config.by, names=table if len(table) else None))
        if grouping is not None and snapshot.groups is not None:
            grouping.add(snapshot.groups)
        history.add(snapshot)
        index += 1
    recording = Recording(
        config,
        history.snapshots,
        counters_of(selection),
        *selection.span,
        run.note,
        run.remarks,
        origin,
        mappings,
        None if grouping is None else with_thread_names(grouping.log(), record),
    )
    line(render_end(recording, None, index, 0))
    return []


def _mappings(record: Record, run: Run) -> MappingLog | None:
    if run.config.ops in {"paddr", "reports"}:
        return None
    seen = tuple(record.mappings)
    times = [time for one in seen for time in (one.first_seen, one.last_seen)] or [run.started]
    if not seen:
        return None
    left_out = run.values.get("mappings_left_out")
    left_out = left_out if isinstance(left_out, int) else 0
    return MappingLog(seen, len(record.counter_log()), min(times), max(times), left_out)
