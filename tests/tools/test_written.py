# SPDX-License-Identifier: GPL-2.0-only
"""The view where says how much of what has a name was written, if the record knows, and nothing otherwise."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from kdamon_tools.history import merge_many
from kdamon_tools.reporters.views import render_csv, render_report, render_report_json
from kdamon_tools.snapshot import Config, Recording
from kdamon_tools.views.where import where_view
from tests.support.groups import group_table
from tests.support.json_schemas import validate
from tests.support.views import MIB, name_table, recording, write_record

NAMES = name_table((0, 8 * MIB, "[heap]"), (8 * MIB, 10 * MIB, "[stack]"))
#: Half of the heap is accessed, a quarter of it unknown; the stack is idle.
ROWS = [(0, 4 * MIB, 20, 0, 0), (4 * MIB, 6 * MIB, 0, 0, 20), (6 * MIB, 10 * MIB, 0, 0, 0)]


def written(of: Recording) -> dict[str, float | None]:
    """The shares by name; empty if there is no such column."""
    rows = where_view(of).tables[0].records()
    return {row["name"]: row["written_share"] for row in rows if "written_share" in row}


def grouped(*tables: list[tuple[int, int, int, float, int, int, int, int]], **config: Any) -> Recording:
    """A recording by thread with the groups of each snapshot."""
    of = recording([ROWS] * len(tables), NAMES)
    snapshots = [evolve(one, groups=group_table(table)) for one, table in zip(of.snapshots, tables, strict=True)]
    return evolve(of, config=Config(pid=42, by="thread", **config), snapshots=snapshots)


def test_a_record_that_does_not_know_has_no_column() -> None:
    """Accessed bits see reads and writes alike."""
    of = recording([ROWS], NAMES)
    assert {} == written(of)
    assert "written" not in render_report(where_view(of))


def test_where_only_writes_count_all_that_is_accessed_is_written() -> None:
    """Of the 6 MiB of the heap that are known, 4 were."""
    of = evolve(recording([ROWS] * 3, NAMES), config=Config(pid=42, write_only=True))
    assert {"[heap]": 0.666667, "[stack]": 0.0} == written(of)


def test_where_only_reads_count_writes_are_not_known() -> None:
    assert {} == written(grouped([(7, 0, 4 * MIB, 20.0, 20, 0, 0, 0)], read_only=True))
    assert {} == written(evolve(recording([ROWS], NAMES), config=Config(pid=42, read_only=True)))


def test_what_several_threads_write_counts_once_and_what_they_read_does_not() -> None:
    """2 of 6 MiB in the first snapshot, 3 in the second one: the stack is outside of the heap."""
    first = [
        (7, 0, 2 * MIB, 9.0, 9, 3, 0, 1),
        (8, MIB, 2 * MIB, 9.0, 9, 1, MIB, MIB),
        (8, 2 * MIB, 4 * MIB, 9.0, 9, 0, 0, 0),
    ]
    second = [(7, 0, 3 * MIB, 9.0, 9, 9, 0, 1)]
    assert {"[heap]": round(2.5 / 6, 6), "[stack]": 0.0} == written(grouped(first, second))


def test_only_what_was_selected_counts() -> None:
    """The region of a group reaches beyond it."""
    of = grouped([(7, 0, 4 * MIB, 9.0, 9, 9, 0, 1)])
    (snapshot,) = of.snapshots
    part = recording([[(0, MIB, 20, 0, 0), (6 * MIB, 8 * MIB, 0, 0, 0)]], NAMES).snapshots[0]
    assert {"[heap]": round(1 / 3, 6)} == written(evolve(of, snapshots=[evolve(part, groups=snapshot.groups)]))


def test_unknown_memory_has_no_share() -> None:
    of = recording([[(0, 8 * MIB, 0, 0, 20)]], NAMES)
    assert {"[heap]": None} == written(evolve(of, config=Config(pid=42, write_only=True)))


def test_merged_groups_do_not_say_where() -> None:
    of = grouped([(7, 0, MIB, 9.0, 9, 3, 0, 1)], [(7, 0, 4 * MIB, 9.0, 9, 9, 0, 1)])
    assert {} == written(evolve(of, snapshots=[merge_many(of.snapshots)]))


def test_forms() -> None:
    report = where_view(evolve(recording([ROWS], NAMES), config=Config(pid=42, write_only=True)))
    text = render_report(report)
    assert "66.7%" in next(line for line in text.splitlines() if line.endswith("[heap]"))
    assert "written: the part of it that was written" in " ".join(text.split())
    document = validate(json.loads(render_report_json(report, recording([ROWS]).origin)), "kdamon.report")
    assert [0.666667, 0.0] == [row["written_share"] for row in document["names"]]
    assert ["0.666667", "0.0"] == [row["written_share"] for row in csv.DictReader(render_csv(report).splitlines())]


@pytest.mark.real
def test_a_record_keeps_what_was_written(tmp_path: Path) -> None:
    """Groups come back from a file."""
    from tests.support.cli import run

    write_record(str(tmp_path / "a"), grouped([(7, 0, 3 * MIB, 9.0, 9, 9, 0, 1)]))
    found = json.loads(run("report", str(tmp_path / "a"), "where", "--json").stdout)
    assert [0.5, 0.0] == [row["written_share"] for row in found["names"]]
