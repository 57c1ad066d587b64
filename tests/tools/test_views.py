# SPDX-License-Identifier: GPL-2.0-only
"""Views are tables of plain values; text, JSON and CSV of them have the same."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from kdamon_tools.groups import Group, GroupLog
from kdamon_tools.origin import Origin
from kdamon_tools.reporters.views import render_csv, render_report, render_report_json
from kdamon_tools.snapshot import Config, Counters, Recording, Resident, Snapshot
from kdamon_tools.views import report_of
from kdamon_tools.views.regions import NO_NAME, ages_of, idle_seconds, regions_view
from kdamon_tools.views.table import Report
from kdamon_tools.views.where import idle_view, where_view
from kdamon_tools.views.working_set import summary_view, wss_view
from tests.support.groups import group_table
from tests.support.json_schemas import validate
from tests.support.views import HOSTILE, MIB, name_table, recording, stairs

TABLES = ("where", "wss", "idle", "regions")
KIB = 1024


def rows(report: Report) -> list[dict[str, Any]]:
    """The rows of the last table."""
    return report.tables[-1].records()


def by_name(report: Report) -> dict[str, dict[str, Any]]:
    """The same by name."""
    return {row.pop("name"): row for row in rows(report)}


def test_where_has_the_kinds_of_memory_by_name() -> None:
    found = by_name(where_view(stairs()))
    assert ["[heap]", "[stack]", HOSTILE] == list(found)
    assert found["[heap]"] == {
        "bytes": 20 * MIB,
        "hot_bytes": MIB,
        "warm_bytes": 0,
        "cold_bytes": 19 * MIB,
        "unknown_bytes": 0,
        "idle_seconds": 0.0,
    }
    assert (32 * KIB, None) == (found["[stack]"]["warm_bytes"], found[HOSTILE]["idle_seconds"])
    assert MIB == found[HOSTILE]["unknown_bytes"]


def test_a_region_is_divided_between_the_names_in_it() -> None:
    names = name_table((0, 0x1000, "a"), (0x1000, 0x2000, "b"), (0x3000, 0x4000, "a"))
    found = by_name(where_view(recording([[(0, 0x8000, 20, 0, 0)]], names)))
    assert {"a": 0x2000, "b": 0x1000, NO_NAME: 0x5000} == {name: row["hot_bytes"] for name, row in found.items()}


def test_where_is_a_mean_over_time() -> None:
    """Hot in one of four snapshots, warm in one, cold in two."""
    found = by_name(where_view(recording([[(0, 0x4000, count, 5, 0)] for count in (20, 3, 0, 0)])))
    assert (0x1000, 0x1000, 0x2000) == tuple(found[NO_NAME][key] for key in ("hot_bytes", "warm_bytes", "cold_bytes"))
    assert 0.5 == found[NO_NAME]["idle_seconds"]


def test_what_was_seen_accessed_is_not_unknown() -> None:
    """Most samples failed, and one of the others found it accessed."""
    found = by_name(where_view(recording([[(0, 0x1000, 2, 0, 17)]])))
    assert (0x1000, 0) == (found[NO_NAME]["warm_bytes"], found[NO_NAME]["unknown_bytes"])


def test_idle_bytes_are_those_of_old_regions_without_accesses() -> None:
    rows_now = [
        (0, 0x1000, 0, 9, 0),
        (0x1000, 0x3000, 0, 15, 0),
        (0x3000, 0x4000, 5, 20, 0),
        (0x4000, 0x5000, 0, 20, 20),
    ]
    of = recording([rows_now] * 20)
    report = idle_view(of)
    assert [{"name": NO_NAME, "bytes": 0x5000, "idle_1s_bytes": 0x2000, "unknown_bytes": 0x1000}] == rows(report)
    assert any("longer idle times cannot be known" in note for note in report.notes)


def test_a_working_set_has_percentiles_by_time() -> None:
    """A snapshot that is the mean of nine aggregations counts nine times."""
    of = recording([[(0, 0x1000, 20, 0, 0)], [(0, 0x3000, 1, 0, 0)]])
    of.snapshots[0] = evolve(of.snapshots[0], merged=9)
    table = {row["percentile"]: row for row in wss_view(of).tables[0].records()}
    assert [0x1000, 0x1000, 0x1000, 0x3000, 0x3000] == [table[at]["accessed_bytes"] for at in (0, 50, 75, 95, 100)]
    assert (0x1000, None) == (table[95]["hot_bytes"], table[95]["resident_bytes"])


def test_resident_bytes_are_those_of_the_moment() -> None:
    of = recording([[(0, 0x1000, 20, 0, 0)]] * 4, seconds=1.0)
    resident = Resident(np.array([101.5, 103.0]), np.array([5.0, 7.0]) * MIB, np.zeros(2))
    found = [row["resident_bytes"] for row in rows(wss_view(evolve(of, resident=resident)))]
    assert [None, 5 * MIB, 7 * MIB, 7 * MIB] == found


def test_a_summary_has_the_cost_and_what_is_missing() -> None:
    of = evolve(stairs(), counters=Counters(samples=200, unknown=50, missed_intervals=3, cpu_s=0.4))
    del of.snapshots[10:20]
    facts = {key: value for key, _, _, value in summary_view(of).facts}
    assert (0.25, 3, 1.0) == (facts["unknown_share"], facts["missed_intervals"], round(facts["unsampled_seconds"], 6))
    assert 0.4 / 3 == pytest.approx(facts["cpu_share"], 1e-5)
    assert (MIB + 32 * KIB, MIB) == (facts["working_set_p50_bytes"], facts["hot_p95_bytes"])


def test_regions_are_those_of_a_time() -> None:
    of = stairs()
    assert (3.9, 4.0) == tuple(round(fact[3], 6) for fact in regions_view(of).facts)
    report = regions_view(of, 0.75)
    assert (0.7, 0.8) == tuple(round(fact[3], 6) for fact in report.facts)
    hot = next(row for row in rows(report) if row["accessed"] == 1)
    assert ("[heap]", MIB, 0.3, 0x7F00_0010_0000) == (
        hot["name"],
        hot["bytes"],
        round(hot["age_seconds"], 6),
        hot["start"],
    )
    assert regions_view(of, 99.0).facts == regions_view(of).facts


def grouped(by: str) -> Recording:
    """Thread (or CPU) 7 writes the heap and reads the library, 8 the library only; who accessed the rest is unknown."""
    names = name_table((0, MIB, "[heap]"), (MIB, 2 * MIB, "libfoo.so .data"))
    of = recording([[(0, 4 * MIB, 5, 0, 0)]] * 3, names)
    library = MIB, 2 * MIB
    rows = [(7, 0, MIB, 5.0, 50, 40, 0, 4096), (7, *library, 1.0, 10, 0, 0, 0), (8, *library, 3.0, 30, 5, MIB, MIB)]
    rows.append((0 if by == "thread" else -1, 2 * MIB, 4 * MIB, 1.0, 10, 10, 2 * MIB, 2 * MIB))
    shots = [evolve(shot, groups=group_table(rows)) for shot in of.snapshots]
    log = GroupLog(by, (Group(7, "worker", 180, 120), Group(8, None, 90, 15)))
    return evolve(of, snapshots=shots, groups=log)


@pytest.mark.parametrize(("view", "by"), [("threads", "thread"), ("cpus", "cpu")])
def test_threads_and_cpus_are_ranked_by_what_they_access(view: str, by: str) -> None:
    report = report_of(view, grouped(by))
    assert [
        (7, "[heap]", 150, 120, 0.5),
        (8, "libfoo.so .data", 90, 15, 0.3),
        (None, NO_NAME, 30, 30, 0.1),
        (7, "libfoo.so .data", 30, 0, 0.1),
    ] == [(row[by], row["name"], row["reports"], row["writes"], row["share"]) for row in rows(report)]
    validate(json.loads(render_report_json(report, Origin())), "kdamon.report")


def test_threads_have_their_names() -> None:
    assert ["worker", None, None, "worker"] == [
        row["thread_name"] for row in rows(report_of("threads", grouped("thread")))
    ]
    assert "worker" in render_report(report_of("threads", grouped("thread")))


@pytest.mark.parametrize("view", ["summary", *TABLES])
def test_json_is_valid(view: str) -> None:
    document = validate(json.loads(render_report_json(report_of(view, stairs()), Origin())), "kdamon.report")
    assert view == document["view"]


@pytest.mark.parametrize("view", TABLES)
def test_csv_has_the_rows_of_json(view: str) -> None:
    report = report_of(view, stairs())
    read = list(csv.DictReader(io.StringIO(render_csv(report))))
    assert len(rows(report)) == len(read)
    assert list(rows(report)[0]) == list(read[0])


@pytest.mark.parametrize("view", ["summary", *TABLES])
@pytest.mark.parametrize("width", [40, 80, None])
def test_text_shows_a_hostile_name_on_one_line(view: str, width: int | None) -> None:
    """No control character, no surrogate, and no line longer than the terminal."""
    text = render_report(report_of(view, stairs()), width=width, height=10)
    assert text.isascii() or "…" in text
    assert all(line.isprintable() for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= (width or 200)


@pytest.mark.parametrize("view", ["where", "idle", "regions"])
def test_a_narrow_terminal_shows_names_rather_than_all_numbers(view: str) -> None:
    assert "[heap]" in render_report(report_of(view, stairs()), width=54)


def test_a_name_is_no_formula_in_a_spreadsheet() -> None:
    names = name_table((0, 0x1000, '=cmd|"/c calc"!A1'))
    text = render_csv(where_view(recording([[(0, 0x1000, 0, 0, 0)]], names)))
    assert text.splitlines()[1].startswith("\"'=cmd")


def test_rows_without_room_are_summed_up() -> None:
    names = name_table(*((at * 0x1000, at * 0x1000 + 0x1000, f"name {at}") for at in range(30)))
    of = recording([[(0, 30 * 0x1000, 0, 0, 0)]], names)
    text = render_report(where_view(of), height=10)
    assert "and 20 more names: 80.0 KiB mapped, 0 B hot, 0 B warm, 80.0 KiB cold, 0 B unknown" in text


def test_regions_are_never_left_out() -> None:
    text = render_report(regions_view(recording([[(at << 12, at + 1 << 12, 0, 0, 0) for at in range(50)]])), height=10)
    assert 50 == text.count("4.0 KiB")


def test_raw_numbers_have_no_units() -> None:
    line = next(line for line in render_report(where_view(stairs()), raw=True).splitlines() if line.endswith("[heap]"))
    assert [str(20 * MIB), str(MIB), "0", str(19 * MIB), "0", "0.0", "[heap]"] == line.split()


def test_ages_of_many_hours_are_right() -> None:
    """In microseconds they are larger than 32 bits."""
    config = Config(pid=1, sample_us=5000, aggr_us=100_000)
    snapshot = Snapshot.of(80_000.0, [(0, MIB, 0, 72_000, 0)])
    assert [7200.0] == idle_seconds(snapshot, config).tolist()
    assert [7200.0] == ages_of(snapshot, config).tolist()


@pytest.mark.parametrize(("unknown", "accesses", "idle"), [(3, 0, None), (1, 0, 10.0), (3, 5, 0.0)])
def test_what_is_mostly_unknown_is_not_idle(unknown: int, accesses: int, idle: float | None) -> None:
    """Unless it was seen accessed."""
    regions = [(0, MIB, accesses, 100, 0), (MIB, (1 + unknown) * MIB, 0, 100, 20)]
    names = name_table((0, 8 * MIB, "[heap]"))
    if unknown == 1:
        regions = [(0, 2 * MIB, accesses, 100, 0), (2 * MIB, 3 * MIB, 0, 100, 20)]
    assert idle == by_name(where_view(recording([regions], names)))["[heap]"]["idle_seconds"]


def test_a_summary_without_counters_says_so() -> None:
    """No number of samples is not none of them."""
    of = recording([[(0, MIB, 20, 0, 0)]] * 3)
    facts = {key: value for key, _, _, value in summary_view(of).facts}
    assert [None] * 3 == [facts[name] for name in ("samples", "missed_intervals", "lost_snapshots")]
    validate(json.loads(render_report_json(summary_view(of), Origin())), "kdamon.report")
