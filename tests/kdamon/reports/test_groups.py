# SPDX-License-Identifier: GPL-2.0-only
"""Reports are grouped by CPU, thread or node for each region; a plain loop says what has to come out."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from kdamon.kernel import PAGE_SIZE
from kdamon.reports.groups import COLUMNS, GroupedReports, GroupTable
from kdamon.reports.record import report_array

START = np.array([0x1000, 0x20_0000, 0x4000_0000], np.uint64)
END = np.array([0x3000, 0x40_0000, 0x8000_0000], np.uint64)
BOUNDS = (START, END)


def rows_of(table: GroupTable) -> dict[tuple[int, int, int], tuple[int, int, int]]:
    """Accesses, reports and writes by group, start and end of the region."""
    return {
        (int(row["group"]), int(row["start"]), int(row["end"])): (
            int(row["nr_accesses"]),
            int(row["nr_reports"]),
            int(row["nr_writes"]),
        )
        for row in table.regions
    }


def take(groups: GroupedReports, bounds: Any, rows: list[int], **columns: Any) -> None:
    """Add reports of regions ``rows``, at their starts unless said otherwise."""
    index = np.array(rows)
    addr = columns.pop("addr", bounds[0][np.maximum(index, 0)])
    groups.add(bounds, index, report_array(len(rows), **columns), np.array(addr, np.uint64))


@pytest.mark.parametrize("by", COLUMNS)
def test_one_report_counts_for_its_group(by: str) -> None:
    """By the column of its property; unknown is a group, too."""
    groups = GroupedReports(by)
    groups.begin_interval()
    take(groups, BOUNDS, [1, 0], cpu=[3, -1], tid=[30, 0], node_id=[1, -1], write=[True, False])
    known, unknown = {"cpu": (3, -1), "thread": (30, 0), "node": (1, -1)}[by]
    expected = {(known, 0x20_0000, 0x40_0000): (1, 1, 1), (unknown, 0x1000, 0x3000): (1, 1, 0)}
    assert expected == rows_of(groups.take().table())
    assert {} == rows_of(groups.take().table())


@pytest.mark.parametrize("waiting", [1, 1000, 1 << 16])
def test_many_reports_are_counted_as_a_loop_counts_them(waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accesses are sampling intervals; reports and writes add up; a report in no region is in no row."""
    monkeypatch.setattr("kdamon.reports.groups._WAITING", waiting)
    rng = np.random.default_rng(1)
    groups = GroupedReports("thread")
    intervals = defaultdict(set)
    reports: dict[Any, int] = defaultdict(int)
    writes: dict[Any, int] = defaultdict(int)
    written: dict[Any, list[int]] = defaultdict(list)
    small: dict[Any, int] = defaultdict(int)
    for interval in range(20):
        groups.begin_interval()
        for _ in range(3):
            n = int(rng.integers(0, 40))
            row = rng.integers(-1, 3, n)
            tid, write = rng.integers(0, 5, n), rng.random(n) < 0.5
            addr = START[row] + rng.integers(0, 0x2000, n).astype(np.uint64) // np.uint64(512) * np.uint64(512)
            groups.add(BOUNDS, row, report_array(n, tid=tid, write=write), addr)
            for r, t, w, a in zip(row.tolist(), tid.tolist(), write.tolist(), addr.tolist(), strict=True):
                if r < 0:
                    continue
                key = (t, int(START[r]), int(END[r]))
                intervals[key].add(interval)
                reports[key] += 1
                writes[key] += w
                if w:
                    written[key].append(a)
                    small[a, t] += r == 0
    table = groups.take().table()
    assert {key: (len(intervals[key]), reports[key], writes[key]) for key in reports} == rows_of(table)
    assert [(min(written[key]), max(written[key])) for key in sorted(written)] == [
        (int(row["first"]), int(row["last"])) for row in table.regions if row["nr_writes"]
    ]
    assert sorted((a, t, n) for (a, t), n in small.items() if n) == table.addresses.tolist()
    assert table.regions[["group", "start"]].tolist() == sorted(table.regions[["group", "start"]].tolist())


def test_regions_that_change_in_between() -> None:
    """What is in the new regions counts for them; the rest keeps its region, as far as none has it now."""
    groups = GroupedReports("cpu")
    groups.begin_interval()
    take(groups, BOUNDS, [0, 1, 2, 2], cpu=[7, 7, 7, 8])
    now = (np.array([0x0, 0x3C_0000, 0x4000_0000], np.uint64), np.array([0x8000, 0x50_0000, 0x5000_0000], np.uint64))
    take(groups, now, [0, 1], cpu=[7, 7])
    groups.begin_interval()
    take(groups, now, [0], cpu=[7])
    expected = {
        (7, 0x0, 0x8000): (2, 3, 0),
        (7, 0x20_0000, 0x3C_0000): (1, 1, 0),
        (7, 0x3C_0000, 0x50_0000): (1, 1, 0),
        (7, 0x5000_0000, 0x8000_0000): (1, 1, 0),
        (8, 0x5000_0000, 0x8000_0000): (1, 1, 0),
    }
    assert expected == rows_of(groups.take().table())


def test_addresses_of_small_regions_alone_are_kept() -> None:
    """A place in a large region is hardly ever sampled twice."""
    groups = GroupedReports("cpu")
    bounds = (np.array([0, 0x10_0000], np.uint64), np.array([16 * PAGE_SIZE, 0x10_0000 + 17 * PAGE_SIZE], np.uint64))
    for _ in range(3):
        groups.begin_interval()
        take(groups, bounds, [0, 0, 1, 0], cpu=[1, 0, 1, 1], write=[1, 1, 1, 0], addr=[8, 8, 0x10_0008, 16])
    assert [(8, 0, 3), (8, 1, 3)] == groups.take().table().addresses.tolist()
    assert 0 == len(groups.take().table().addresses)
