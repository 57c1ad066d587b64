# SPDX-License-Identifier: GPL-2.0-only
"""Views, differences and exports of recordings that say what was in memory, and how much was in use."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

import kdamon
from kdamon.arrays import Records
from kdamon.mm import RESIDENT, Resident
from kdamon.monitoring.residency import Residency
from kdamon.monitoring.use import LOOK, MemoryUse, WindowUse
from kdamon_tools.exports import folded, perfetto, table
from kdamon_tools.origin import Origin
from kdamon_tools.pictures.page import render_page
from kdamon_tools.recorded.recording import recording_of
from kdamon_tools.recorded.selection import select
from kdamon_tools.reporters.json_object import render_aggregation
from kdamon_tools.reporters.views import render_csv, render_report, render_report_json
from kdamon_tools.snapshot import Recording
from kdamon_tools.views import report_of
from kdamon_tools.views.difference import difference_view, figures_of
from kdamon_tools.views.table import Report
from kdamon_tools.views.where import idle_view, where_view
from tests.support.json_schemas import validate
from tests.support.views import MIB, name_table, recording, write_record

BASE = 0x7F00_0000_0000
NAMES = name_table((BASE, BASE + 100 * MIB, "[heap]"), (BASE + 100 * MIB, BASE + 120 * MIB, "data.bin"))


def residency(*runs: tuple[float, float, str], time: float = 100.05) -> Residency:
    """Runs of one kind in MiB after the base."""
    rows = np.zeros(len(runs), RESIDENT)
    for row, (start, end, kind) in zip(rows, runs, strict=True):
        row["start"], row["end"] = BASE + int(start * MIB), BASE + int(end * MIB)
        row[kind] = row["end"] - row["start"]
    return Residency(time, rows)


#: 40 MiB of the heap and 10 MiB of the file; something is in swap, and something not known.
SOME = residency((0, 30, "anon"), (50, 60, "anon"), (60, 61, "swapped"), (70, 72, "unknown"), (100, 110, "file"))


def some_recording(residency: Residency | None = SOME, seconds: float = 20.0) -> Recording:
    """20 MiB are hot, the rest has not been accessed for 15 s."""
    regions = [(BASE, BASE + 20 * MIB, 20, 5, 0), (BASE + 20 * MIB, BASE + 120 * MIB, 0, 15, 0)]
    made = recording([regions] * 2, NAMES, seconds / 2)
    made = evolve(made, config=evolve(made.config, aggr_us=1_000_000, sample_us=50_000))
    return evolve(made, snapshots=[evolve(one, residency=residency) for one in made.snapshots])


def by_name(report: Report) -> dict[str, dict[str, Any]]:
    return {row.pop("name"): row for row in report.tables[-1].records()}


def facts(report: Report) -> dict[str, Any]:
    return {key: value for key, _, _, value in report.facts}


def test_where_is_of_what_is_in_memory() -> None:
    report = where_view(some_recording())
    assert by_name(report) == {
        "[heap]": {
            "bytes": 100 * MIB,
            "resident_bytes": 40 * MIB,
            "anon_bytes": 40 * MIB,
            "file_bytes": 0,
            "swapped_bytes": MIB,
            "hot_bytes": 20 * MIB,
            "warm_bytes": 0,
            "cold_bytes": 20 * MIB,
            "unknown_bytes": 2 * MIB,
            "idle_seconds": 0.0,
        },
        "data.bin": {
            "bytes": 20 * MIB,
            "resident_bytes": 10 * MIB,
            "anon_bytes": 0,
            "file_bytes": 10 * MIB,
            "swapped_bytes": 0,
            "hot_bytes": 0,
            "warm_bytes": 0,
            "cold_bytes": 10 * MIB,
            "unknown_bytes": 0,
            "idle_seconds": 15.0,
        },
    }
    assert ("memory", 30 * MIB) == (facts(report)["basis"], facts(report)["cold_bytes"])
    assert "bytes are of what is in memory" in report.notes[0]


def test_where_it_is_not_known_what_is_in_memory_bytes_are_mapped_ones() -> None:
    report = where_view(some_recording(None))
    assert ("mapped", 100 * MIB) == (facts(report)["basis"], facts(report)["cold_bytes"])
    assert "bytes are of what is mapped: how much of it is in memory is not known" in report.notes[0]
    idle = idle_view(some_recording(None))
    assert ("mapped", 100 * MIB) == (facts(idle)["basis"], facts(idle)["idle_10s_bytes"])


def test_a_snapshot_before_anything_was_known_does_not_count() -> None:
    made = some_recording()
    made = evolve(made, snapshots=[evolve(made.snapshots[0], residency=None), made.snapshots[1]])
    assert 20 * MIB == by_name(where_view(made))["[heap]"]["cold_bytes"]


def test_swap_has_a_column_only_if_there_is_any() -> None:
    report = where_view(some_recording(residency((0, 40, "anon"))))
    assert "swapped_bytes" not in facts(report)
    assert "swapped_bytes" not in by_name(report)["[heap]"]


def test_memory_that_is_given_back_is_not_cold_any_more() -> None:
    made = some_recording()
    later = residency((0, 20, "anon"), time=110.0)
    made = evolve(made, snapshots=[made.snapshots[0], evolve(made.snapshots[1], residency=later)])
    assert 15 * MIB == facts(where_view(made))["cold_bytes"]
    assert 0 == facts(idle_view(made))["idle_10s_bytes"]


def test_idle_is_of_what_is_in_memory_by_kind() -> None:
    report = idle_view(some_recording())
    found = by_name(report)
    assert (20 * MIB, 20 * MIB, 0) == tuple(
        found["[heap]"][f"idle_10s_{key}"] for key in ("bytes", "anon_bytes", "file_bytes")
    )
    assert (10 * MIB, 0, 10 * MIB) == tuple(
        found["data.bin"][f"idle_10s_{key}"] for key in ("bytes", "anon_bytes", "file_bytes")
    )
    assert 2 * MIB == found["[heap]"]["unknown_bytes"]
    assert "20.0 MiB anonymous, 10.0 MiB of files" in render_report(report)


def looks(window: float, *pages: tuple[float, int]) -> Records:
    """Of the addresses (MiB after the base) and states."""
    found = np.zeros(len(pages), LOOK)
    found["addr"] = [BASE + int(place * MIB) for place, _ in pages]
    found["state"] = [state for _, state in pages]
    found["window"], found["began"] = window, 119.0 - window
    return found


def test_watched_pages_say_how_much_of_a_name_is_idle() -> None:
    """Regions say that 20 of 40 MiB are idle; of 40 watched pages 10 were not accessed, within a minute 5."""
    made = evolve(some_recording(), looks=looks(10.0, *((place, int(place >= 10)) for place in range(40))))
    found = by_name(idle_view(made))
    assert 10 * MIB == found["[heap]"]["idle_10s_bytes"]
    # There are none of the file.
    assert 10 * MIB == found["data.bin"]["idle_10s_bytes"]
    assert "by watched pages" in idle_view(made).notes[0]


def test_few_watched_pages_correct_the_age_of_regions() -> None:
    """One of two pages of an idle region was accessed; what was accessed in a region in use says nothing."""
    made = evolve(some_recording(), looks=looks(10.0, (25, 0), (26, 1), (3, 1), (4, 1), (5, 1)))
    assert 10 * MIB == by_name(idle_view(made))["[heap]"]["idle_10s_bytes"]


def test_what_is_idle_for_long_is_so_for_less() -> None:
    made = evolve(some_recording(seconds=70.0), looks=looks(10.0, *((place, 1) for place in range(40))))
    regions = np.copy(made.snapshots[-1].regions)
    regions["age"] = 65
    made = evolve(made, snapshots=[*made.snapshots[:-1], evolve(made.snapshots[-1], regions=regions)])
    found = by_name(idle_view(made))
    assert [20 * MIB, 0, 0] == [found["[heap]"][f"idle_{seconds}s_bytes"] for seconds in (1, 10, 60)]


@pytest.mark.parametrize("view", ["where", "idle", "wss", "summary", "regions"])
def test_json_and_tables(view: str) -> None:
    made = with_use(some_recording())
    report = report_of(view, made)
    document = validate(json.loads(render_report_json(report, Origin())), "kdamon.report")
    assert view == document["view"]
    assert max(map(len, render_report(report, width=80).splitlines())) <= 80
    [head, *_] = csv.reader(io.StringIO(render_csv(report)))
    assert len(head) == len(set(head))


def use(accessed: int, time: float = 110.0) -> MemoryUse:
    window = WindowUse(
        10.0, accessed, accessed - 2 * MIB, accessed + 2 * MIB, 3 * MIB, 17 * MIB, 12 * MIB, 5 * MIB, 900
    )
    return MemoryUse(time, Resident(40 * MIB, 10 * MIB, MIB), (window,))


def with_use(made: Recording) -> Recording:
    snapshots = [evolve(one, use=use((20 + number) * MIB, one.time)) for number, one in enumerate(made.snapshots)]
    return evolve(made, snapshots=snapshots, counters=evolve(made.counters, use=use(20 * MIB)))


def test_where_is_the_mean_of_the_time_that_was_looked_at() -> None:
    """Not of snapshots before the first pass was over, unless there are no others."""
    early = residency((0, 2, "anon"), (2, 120, "unknown"))
    made = some_recording(residency((0, 40, "anon")))
    mixed = evolve(made, snapshots=[evolve(made.snapshots[0], residency=early), *made.snapshots[1:]])
    found = [facts(where_view(one)) for one in (made, mixed, some_recording(early))]
    assert [(40 * MIB, 0), (40 * MIB, 0), (2 * MIB, 118 * MIB)] == [
        (one["resident_bytes"], one["unknown_bytes"]) for one in found
    ]


def test_shares_are_of_what_was_in_memory_in_the_windows(tmp_path: Path) -> None:
    """A reading before the first window ended, as before a program had its memory, is no base of them."""
    made = with_use(some_recording())
    first = evolve(made.snapshots[0], use=MemoryUse(100.03, Resident(MIB, 0, 0)))
    path = str(tmp_path / "run.kdamon")
    write_record(path, evolve(made, snapshots=[first, *made.snapshots[1:]]))
    with kdamon.open(path) as opened:
        use = recording_of(select(opened, (0.0, 90.0), ())).counters.use
    assert use is not None
    assert Resident(40 * MIB, 10 * MIB, MIB) == use.resident


def test_windows_have_names_and_bounds() -> None:
    text = render_report(report_of("summary", with_use(some_recording())), width=80)
    assert "used within 10 s" in text
    assert "20.0 MiB  95 %: 18.0 MiB to 22.0 MiB, by 900 pages" in text
    assert "idle for 10 s" in text
    assert "17.0 MiB  12.0 MiB anonymous, 5.0 MiB of files" in text
    assert "working set" not in text
    assert re.search(r"used within 10 s, p95 +21.0 MiB\nin memory, p50", text)
    found = facts(report_of("summary", with_use(some_recording())))
    assert (18 * MIB, None) == (found["used_10s_low_bytes"], found["used_60s_bytes"])


def test_the_course_of_windows() -> None:
    report = report_of("wss", with_use(some_recording()))
    rows = report.tables[-1].records()
    assert [20 * MIB, 21 * MIB] == [row["used_10s_bytes"] for row in rows]
    assert (18 * MIB, None, 3 * MIB) == tuple(
        rows[0][key] for key in ("used_10s_low_bytes", "used_1s_bytes", "use_unknown_bytes")
    )
    assert 21 * MIB == report.tables[0].records()[-1]["used_10s_bytes"]


def test_without_watched_pages_the_working_set_is_of_an_aggregation_interval() -> None:
    text = render_report(report_of("summary", some_recording()))
    assert "working set, p50" in text
    assert "used within" not in text


def test_a_difference_is_of_what_was_in_memory_if_both_know_it() -> None:
    report = difference_view(some_recording(), some_recording(residency((0, 40, "anon"))))
    titles = {row["figure"]: row["title"] for row in report.tables[0].records()}
    assert ("cold (in memory)", "idle for 10 s (in memory)") == (titles["cold"], titles["idle"])
    figures = figures_of(some_recording(), some_recording(residency((0, 40, "anon"))))
    assert (30 * MIB, 20 * MIB) == (figures["cold"].before, figures["cold"].after)
    assert (30 * MIB, 20 * MIB) == (figures["idle"].before, figures["idle"].after)
    mapped = figures_of(some_recording(), some_recording(None))
    assert (100 * MIB, 100 * MIB) == (mapped["cold"].before, mapped["idle"].after)


def test_a_difference_is_of_what_was_used_within_ten_seconds_if_both_know_it() -> None:
    """Else of what was accessed in an aggregation interval."""
    watched, other = with_use(some_recording()), some_recording()
    titles = [
        {row["figure"]: row["title"] for row in difference_view(watched, two).tables[0].records()}["wss"]
        for two in (watched, other)
    ]
    assert ["working set, used within 10 s", "working set"] == titles
    assert (20 * MIB, 20 * MIB) == (figures_of(watched, watched)["wss"].before, figures_of(other, watched)["wss"].after)
    grown = evolve(watched, snapshots=[evolve(one, use=use(30 * MIB, one.time)) for one in watched.snapshots])
    assert 30 * MIB == figures_of(watched, grown)["wss"].after


def test_a_difference_by_name_is_of_what_was_in_memory_if_both_know_it() -> None:
    """The largest change comes first, also of memory that nothing accessed."""
    report = difference_view(some_recording(), some_recording(residency((0, 40, "anon"))))
    first, *_ = rows = report.tables[1].records()
    assert ("data.bin", 10 * MIB, 0, -10 * MIB) == tuple(
        first[key] for key in ("name", "before_resident_bytes", "after_resident_bytes", "resident_change_bytes")
    )
    assert (40 * MIB, 40 * MIB, 20 * MIB) == tuple(
        rows[1][key] for key in ("before_resident_bytes", "after_resident_bytes", "before_accessed_bytes")
    )
    validate(json.loads(render_report_json(report, Origin(), "kdamon.diff/1")), "kdamon.diff")
    assert max(map(len, render_report(report, width=80).splitlines())) <= 80


def test_the_curve_of_a_page_is_of_what_was_used_within_ten_seconds() -> None:
    labels = [
        re.findall(r'"label":\s*"([^"]*)"', "".join(render_page(made)))
        for made in (with_use(some_recording()), some_recording())
    ]
    assert [["used within 10 s", "hot"], ["accessed", "hot"]] == [found[-2:] for found in labels]


@pytest.fixture(name="record")
def _record(tmp_path: Path) -> str:
    path = str(tmp_path / "run.kdamon")
    write_record(path, with_use(some_recording()))
    return path


@pytest.mark.parametrize("view", ["where", "idle", "wss"])
def test_a_record_has_the_views_of_its_run(record: str, view: str) -> None:
    made = with_use(some_recording())
    with kdamon.open(record) as opened:
        # It also has what the process had in memory.
        found = report_of(view, evolve(recording_of(select(opened, None, ())), resident=None))
    wanted = report_of(view, made)
    assert (wanted.tables, wanted.facts) == (found.tables, found.facts)


def exported(record: str, export: Any) -> str:
    parts: list[bytes] = []
    with kdamon.open(record) as opened:
        export(select(opened, None, ()), parts.append)
    return b"".join(parts).decode()


def test_tables_of_regions_have_columns(record: str) -> None:
    rows = list(csv.DictReader(io.StringIO(exported(record, table.export_csv))))
    wanted = [(f"{20 * MIB}", "0", "0"), ("", "", "")]
    assert wanted == [(row["resident_anon"], row["resident_file"], row["swapped"]) for row in rows[:2]]


def test_stacks_are_of_what_is_in_memory(record: str) -> None:
    lines = dict(line.rsplit(" ", 1) for line in exported(record, folded.export).splitlines())
    [cold] = [int(size) for stack, size in lines.items() if stack.endswith("data.bin;cold")]
    assert 10 * MIB == cold


def test_counters_of_names_in_memory(record: str) -> None:
    events = json.loads(exported(record, perfetto.export))["traceEvents"]
    [heap] = [event["args"] for event in events if event["name"] == "[heap] in memory"]
    assert {"anonymous": 40 * MIB, "of files": 0, "swapped": MIB} == heap


def test_regions_in_json_say_what_is_in_memory() -> None:
    text = render_aggregation(some_recording().snapshots[0], 100.0, 0, 0)
    document = validate(json.loads(text), "kdamon.run.lines")
    first, second = document["regions"]
    assert (20 * MIB, 0, 0) == (first["resident_anon"], first["resident_file"], first["swapped"])
    # Two MiB of it were not looked at yet.
    assert second["resident_anon"] is None
