# SPDX-License-Identifier: GPL-2.0-only
"""Reads a record into the plain values that views and reporters take."""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import numpy as np
from attrs import evolve

from kdamon.arrays import Records
from kdamon.mm.ranges import inside
from kdamon.monitoring.use import LOOK
from kdamon.records.reader import Record
from kdamon.records.values import Run
from kdamon_tools.groups import Grouping, GroupLog
from kdamon_tools.history import merge_many
from kdamon_tools.origin import Origin
from kdamon_tools.recorded.selection import Selection
from kdamon_tools.recorded.totals import counters_of
from kdamon_tools.snapshot import KEPT_LOOKS_S, Config, Recording, Resident, Snapshot

__all__ = ["config_of", "origin_of", "recording_of", "with_thread_names"]

#: Snapshots and regions that are kept of a record. Neighbouring snapshots of a longer one are merged.
_MOST_SNAPSHOTS = 16_384
_MOST_ROWS = 4_000_000


def recording_of(chosen: Selection) -> Recording:
    """The selected part of a record."""
    record = chosen.record
    run = record.run
    config = config_of(run)
    snapshots = list(_snapshots(chosen))
    begin, end = chosen.span
    return Recording(
        evolve(config, ranges=tuple(chosen.ranges)) if chosen.ranges else config,
        snapshots,
        counters_of(chosen),
        begin,
        max(begin, end),
        run.note if run.complete else "the record has no end",
        (*run.remarks, *_lost(run)),
        origin_of(run),
        groups=_groups(record, snapshots),
        names=record.names,
        resident=_resident(record),
        looks=_within(np.concatenate([np.empty(0, LOOK), *record.looks(end - KEPT_LOOKS_S, end + 1)]), chosen),
    )


def _within(looks: Records, chosen: Selection) -> Records:
    """Those of the pages that were asked for."""
    if not chosen.ranges:
        return looks
    return looks[inside(np.array(chosen.ranges, np.uint64), looks["addr"])]


def _snapshots(chosen: Selection) -> Iterator[Snapshot]:
    """The snapshots of a part; as many neighbours in one as it takes to keep them all in memory."""
    times = chosen.record.times(chosen.since, chosen.until)
    factor = max(1, math.ceil(len(times) / _MOST_SNAPSHOTS), math.ceil(int(times["nr_regions"].sum()) / _MOST_ROWS))
    neighbours: list[Snapshot] = []
    for snapshot in chosen.snapshots():
        neighbours.append(snapshot)
        if len(neighbours) == factor:
            yield merge_many(neighbours)
            neighbours = []
    if neighbours:
        yield merge_many(neighbours)


def _groups(record: Record, snapshots: list[Snapshot]) -> GroupLog | None:
    """Which CPUs, threads or nodes made the accesses; None where that was not asked for."""
    by = record.run.config.by
    if not by:
        return None
    grouping = Grouping(by)
    for snapshot in snapshots:
        if snapshot.groups is not None:
            grouping.add(snapshot.groups)
    return with_thread_names(grouping.log(), record)


def with_thread_names(log: GroupLog, record: Record) -> GroupLog:
    """``log`` with the names that threads had."""
    if log.by != "thread":
        return log
    names = record.threads
    named = [evolve(one, name=None if one.number is None else names.get(one.number)) for one in log.groups]
    return evolve(log, groups=tuple(named))


def config_of(run: Run) -> Config:
    """The options of a run."""
    return Config(**attrs.asdict(run.config, recurse=False), command=run.command)


def _lost(run: Run) -> list[str]:
    """What the disk was too slow for, in words."""
    lost = run.values.get("lost_snapshots")
    return [f"{lost} snapshots are not in the record: the disk was too slow"] if isinstance(lost, int) and lost else []


def origin_of(run: Run) -> Origin:
    """The machine of a run, and when that was."""
    return Origin(run.kernel_release, run.architecture, run.boot_id, run.started_at)


def _resident(record: Record) -> Resident | None:
    rows = record.process_data()
    if not len(rows):
        return None
    return Resident(rows["time"], rows["rss_anon"] + rows["rss_file"] + rows["rss_shmem"], rows["swap"])
