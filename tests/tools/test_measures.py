# SPDX-License-Identifier: GPL-2.0-only
"""Ages and means follow the aggregation interval of each snapshot, in all that reads a record."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest

import kdamon
from kdamon_tools import cli
from kdamon_tools.damo_record import read_damo_record
from kdamon_tools.history import merge_many, merge_snapshots
from kdamon_tools.pictures.page import render_page
from kdamon_tools.recorded.recording import recording_of
from kdamon_tools.recorded.selection import select
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.snapshot import Config, Recording, Snapshot
from kdamon_tools.views.grid import grid_of
from kdamon_tools.views.measures import ages_of, aggr_seconds, shares_of, weight_of
from kdamon_tools.views.profile import profile_of
from kdamon_tools.views.regions import regions_view
from kdamon_tools.views.where import idle_view, where_view
from kdamon_tools.views.working_set import summary_view, wss_view
from tests.support.views import MIB, tuned, write_record
from tests.tools.test_pictures import data_of, unpacked

#: Seconds that the memory with this name is idle at the end.
IDLE = {"early": 8.0, "idle": 9.6, "hot": 0.0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record of it."""
    write_record(str(tmp_path / "run.kdamon"), tuned())
    return tmp_path / "run.kdamon"


@pytest.fixture
def recorded(path: Path) -> Iterator[Recording]:
    """What views get of the record."""
    with kdamon.open(path) as record:
        yield recording_of(select(record, None, ()))


def test_a_snapshot_without_an_interval_has_that_of_the_configuration() -> None:
    snapshot, config = Snapshot.of(1.0, [(0, MIB, 0, 3, 0)], merged=2), Config(pid=1, aggr_us=200_000)
    assert (0.2, 2.0, [0.6]) == (
        aggr_seconds(snapshot, config),
        weight_of(snapshot, config),
        ages_of(snapshot, config).round(6).tolist(),
    )
    longer = attrs.evolve(snapshot, aggr_us=600_000)
    assert (0.6, 6.0, [1.8]) == (
        aggr_seconds(longer, config),
        weight_of(longer, config),
        ages_of(longer, config).round(6).tolist(),
    )


def test_shares_are_of_means_that_merging_did_not_round() -> None:
    snapshot = Snapshot.of(1.0, [(0, MIB, 1, 0, 0)])
    snapshot.regions["mean_accesses"] = 1.5
    assert [0.075] == shares_of(snapshot, Config(pid=1)).tolist()


def test_a_record_keeps_the_interval_of_each_snapshot(recorded: Recording) -> None:
    assert [100_000] * 8 + [200_000] * 4 + [1_600_000] * 5 == [one.aggr_us for one in recorded.snapshots]
    assert "tuned" == recorded.config.intervals


def test_idle_times_where(recorded: Recording) -> None:
    found = {row[0]: row[-1] for row in where_view(recorded).tables[0].rows}
    assert IDLE == pytest.approx(found)


def test_idle_bytes(recorded: Recording) -> None:
    """Ten seconds could have been seen at the end of a run of 9.6 s, with an interval of 1.6 s."""
    table = idle_view(recorded).tables[0]
    assert ["name", "bytes", "idle_1s_bytes", "idle_10s_bytes", "unknown_bytes"] == [one.key for one in table.columns]
    assert {"early": (MIB, 0), "idle": (MIB, 0), "hot": (0, 0)} == {row[0]: row[2:4] for row in table.rows}


@pytest.mark.parametrize(("at", "age"), [(0.75, 0.8), (1.55, 1.6), (9.5, 9.6)])
def test_ages_at_any_time(recorded: Recording, at: float, age: float) -> None:
    rows = regions_view(recorded, at).tables[0].rows
    assert age == pytest.approx(next(row[4] for row in rows if row[-1] == "idle"))


def test_means_are_over_time(recorded: Recording) -> None:
    """What was hot for 0.8 s of 9.6 s was so for a twelfth, though in eight of seventeen snapshots."""
    rows = {
        row[0]: dict(zip(("hot", "warm", "cold"), row[2:5], strict=True)) for row in where_view(recorded).tables[0].rows
    }
    assert {"hot": round(MIB / 12), "warm": 0, "cold": round(MIB * 11 / 12)} == rows["early"]
    percentiles = {row[0]: row[1] for row in wss_view(recorded).tables[0].rows}
    assert {0: MIB, 75: MIB, 95: 2 * MIB, 100: 2 * MIB} == {
        percent: percentiles[percent] for percent in (0, 75, 95, 100)
    }
    facts = {key: value for key, _, _, value in summary_view(recorded).facts}
    assert (17, MIB) == (facts["aggregations"], facts["working_set_p75_bytes"])
    assert "in an aggregation interval of 0.1 to 1.6 s" in summary_view(recorded).notes[0]
    profile = profile_of(recorded.snapshots, recorded.config)
    assert [8, 0, 96] == (profile.accesses / 20).round().tolist()


def test_pictures_have_the_ages(recorded: Recording) -> None:
    """The page's are in steps of a ninth."""
    rows = np.array([[(1 << 30) + n * MIB, (1 << 30) + (n + 1) * MIB] for n in range(3)], np.uint64)
    assert [8.0, 9.6, 9.6] == grid_of([recorded.snapshots], rows, recorded.config).age[:, 0].round(6).tolist()
    page = render_page(recorded)
    data = data_of(page)
    ages = unpacked(data["ages"], np.uint8).reshape(-1, data["columns"])[:, -1]
    found = ((2.0 ** (ages / data["age_steps"]) - 1) * data["age_unit"]).tolist()
    assert max(abs(age / 9.6 - 1) for age in found if age > 8.5) < 0.05
    assert "<td>9.6 s</td>" in page
    assert "<td>8.0 s</td>" in page
    assert render_heatmap(recorded, width=80)


def test_damo_gets_the_ages(path: Path, tmp_path: Path) -> None:
    """And kdamon reads them back."""
    assert 0 == cli.main(["export", str(path), "--to", "damo", "-o", str(tmp_path / "damon.data")])
    found, _ = read_damo_record(tmp_path / "damon.data")
    assert [one.aggr_us for one in tuned().snapshots] == [one.aggr_us for one in found.snapshots]
    assert [one.regions.tolist() for one in tuned().snapshots] == [one.regions.tolist() for one in found.snapshots]


def exported(path: Path, form: str) -> str:
    """What ``kdamon export`` writes."""
    target = path.with_name(f"exported.{form}")
    assert 0 == cli.main(["export", str(path), "--to", form, "-o", str(target)])
    return target.read_text()


def test_tables_have_the_interval(path: Path) -> None:
    """Ages in CSV are in its units; in lines of JSON as well."""
    rows = [row for row in csv.DictReader(io.StringIO(exported(path, "csv"))) if row["name"] == "idle"]
    seconds = [int(row["age"]) * int(row["aggr_us"]) / 1e6 for row in rows]
    assert [float(row["time"]) for row in rows] == pytest.approx(seconds)
    lines = [json.loads(line) for line in exported(path, "json").splitlines()]
    assert [one.aggr_us for one in tuned().snapshots] == [
        line["aggr_us"] for line in lines if line["type"] == "aggregation"
    ]


def test_a_pause_is_long_by_the_present_interval(path: Path) -> None:
    """Nothing was sampled for 1.6 s before each long aggregation, which is no pause."""
    apart = tuned()
    snapshots = [attrs.evolve(one, began=one.began + (1.5 if one.aggr_us > 1e6 else 0)) for one in apart.snapshots]
    write_record(str(path.with_name("apart")), attrs.evolve(apart, snapshots=snapshots))
    events = json.loads(exported(path.with_name("apart"), "perfetto"))["traceEvents"]
    assert {0} == {event["args"]["unknown"] for event in events if event["ph"] == "C" and "unknown" in event["args"]}


def test_merged_snapshots_have_the_ages_of_the_newest_interval() -> None:
    """And means over time, however they are merged."""
    shots = tuned().snapshots
    whole = merge_many(shots)
    assert (1_600_000, 109.6) == (whole.aggr_us, round(whole.time, 6))
    assert [8.0, 9.6, 9.6] == (whole.regions["age"].astype(float) * 1.6).round(6).tolist()
    assert [20 / 12, 0.0, 20.0] == pytest.approx(whole.regions["mean_accesses"].tolist())
    assert 6 == whole.merged
    few = [merge_snapshots(shots[7], other).regions["mean_accesses"][0] for other in (shots[12], shots[8])]
    assert [20 / 17, 20 / 3] == pytest.approx(few)


def test_the_newer_interval_counts_where_one_region_is_gone() -> None:
    """Memory that only an older snapshot has keeps its age, in the newer one's units."""
    old = attrs.evolve(Snapshot.of(1.0, [(0, MIB, 0, 32, 0)]), aggr_us=100_000)
    new = attrs.evolve(Snapshot.of(2.6, [(2 * MIB, 3 * MIB, 0, 1, 0)], seconds=1.6), aggr_us=1_600_000)
    for merged in (merge_snapshots(old, new), merge_many([old, old, new])):
        assert [2, 1] == merged.regions["age"].tolist()
