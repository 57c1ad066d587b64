# SPDX-License-Identifier: GPL-2.0-only
"""Which threads or CPUs access which named memory, ranked by their reports."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdamon.reports.groups import GROUP_REGION
from kdamon_tools.defaults import BY
from kdamon_tools.groups import known_number
from kdamon_tools.snapshot import Recording
from kdamon_tools.views.regions import NO_NAME
from kdamon_tools.views.table import Column, Kind, Order, Report, Table

__all__ = ["actors_view"]


def actors_view(view: str, recording: Recording) -> Report:
    """A row for each thread or CPU and each name of memory that it accessed; those with most reports first.

    :param view: one of :data:`kdamon_tools.defaults.BY`. The recording has groups of that kind.
    """
    by = BY[view]
    rows = _sums(recording)
    total = sum(row[2] for row in rows)
    names = {} if recording.groups is None else {one.number: one.name for one in recording.groups.groups}
    table = []
    for number, name, reports, writes in rows:
        known = known_number(by, number)
        first = (known, names.get(known)) if by == "thread" else (known,)
        table.append((*first, reports, writes, round(reports / total, 6) if total else None, name))
    columns = (
        Column(by, by, Kind.COUNT),
        *([Column("thread_name", "thread name", Kind.TEXT)] if by == "thread" else []),
        Column("reports", "accesses", Kind.COUNT),
        Column("writes", "writes", Kind.COUNT),
        Column("share", "share", Kind.SHARE),
        Column("name", "name", Kind.TEXT),
    )
    return Report(
        view,
        (),
        (Table(view, columns, tuple(table), "rows", Order.RANK),),
        (
            "accesses and writes: reports that were counted, of one sampled page in each region and sampling interval; "
            "they rank, and are no count of all accesses",
        ),
    )


def _sums(recording: Recording) -> list[tuple[int, str, int, int]]:
    """Number of the group, name of the memory, reports and writes; those with most reports first."""
    tables = [snapshot.groups.regions for snapshot in recording.snapshots if snapshot.groups is not None]
    rows = np.concatenate([np.empty(0, GROUP_REGION), *tables])
    places: Any = np.stack([rows["start"], rows["end"]], axis=1)
    unique, which = np.unique(places, axis=0, return_inverse=True)
    texts = [""] * len(unique) if recording.names is None else recording.names.main(unique)
    names = list(dict.fromkeys(texts))
    number_of = {name: number for number, name in enumerate(names)}
    of_row = np.array([number_of[text] for text in texts], np.int64)[which.ravel()]
    keys = rows["group"].astype(np.int64) << 32 | of_row
    found, of_key = np.unique(keys, return_inverse=True)
    reports, writes = (np.bincount(of_key, rows[name], len(found)) for name in ("nr_reports", "nr_writes"))
    order = np.argsort(-reports, kind="stable")
    return [
        (
            int(found[place] >> 32),
            names[int(found[place]) & 0xFFFF_FFFF] or NO_NAME,
            int(reports[place]),
            int(writes[place]),
        )
        for place in order.tolist()
        if reports[place] > 0
    ]
