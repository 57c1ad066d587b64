# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon diff`` compares what has the same name, wherever it was mapped, and judges by conditions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kdamon_tools.origin import Origin
from kdamon_tools.reporters.views import cell_text, render_report, render_report_json
from kdamon_tools.views.difference import difference_view, figures_of
from kdamon_tools.views.table import Kind
from tests.support.cli import run
from tests.support.json_schemas import validate
from tests.support.views import HOSTILE, MIB, name_table, recording, stairs, write_record


def names_of(report: Any) -> dict[str, dict[str, Any]]:
    return {row.pop("name"): row for row in report.tables[1].records()}


def heap(base: int, hot: int, size: int = 10) -> Any:
    """A heap of ``size`` MiB at ``base``, of which the MiB ``hot`` is hot."""
    edges = [base, base + hot * MIB, base + (hot + 1) * MIB, base + size * MIB]
    parts = list(zip(edges[:-1], edges[1:], (0, 20, 0), strict=True))
    rows = [(start, end, count, 5, 0) for start, end, count in parts if start < end]
    return recording([rows] * 20, name_table((base, base + size * MIB, "[heap]")))


def test_the_same_memory_at_another_address_is_the_same() -> None:
    """Addresses are random in each run."""
    found = names_of(difference_view(heap(0x5555_0000_0000, 3), heap(0x7777_0000_0000, 3)))
    assert (0, MIB, 0, 0) == tuple(
        found["[heap]"][key] for key in ("change_bytes", "both_bytes", "only_before_bytes", "only_after_bytes")
    )


def test_another_place_in_the_same_memory_is_seen() -> None:
    """As much is hot, elsewhere in the heap."""
    found = names_of(difference_view(heap(0x5555_0000_0000, 3), heap(0x7777_0000_0000, 7)))
    assert (0, 0, MIB, MIB) == tuple(
        found["[heap]"][key] for key in ("change_bytes", "both_bytes", "only_before_bytes", "only_after_bytes")
    )


def test_a_name_that_only_one_has() -> None:
    one = recording([[(0, MIB, 20, 0, 0)]] * 3, name_table((0, MIB, "libone.so .data")))
    other = recording([[(0, MIB, 20, 0, 0)]] * 3, name_table((0, MIB, "libtwo.so .data")))
    found = names_of(difference_view(one, other))
    assert {"libone.so .data": -MIB, "libtwo.so .data": MIB} == {
        name: row["change_bytes"] for name, row in found.items()
    }


def test_stacks_of_threads_are_matched_by_the_name_of_the_thread() -> None:
    one = recording([[(0, MIB, 20, 0, 0)]] * 3, name_table((0, MIB, "[stack of 17 worker]")))
    other = recording([[(0, MIB, 20, 0, 0)]] * 3, name_table((0, MIB, "[stack of 99 worker]")))
    assert {"[stack of worker]": 0} == {
        name: row["change_bytes"] for name, row in names_of(difference_view(one, other)).items()
    }


def test_figures_have_the_spread_between_snapshots() -> None:
    steady = recording([[(0, 10 * MIB, 20, 0, 0)]] * 20)
    varied = recording([[(0, number * MIB, 20, 0, 0), (number * MIB, 40 * MIB, 0, 0, 0)] for number in range(1, 21)])
    found = figures_of(steady, varied)["wss"]
    assert (10 * MIB, 10 * MIB, 10 * MIB, 0.0) == (found.before, found.after, found.spread, found.share)


def test_a_short_record_does_not_know_what_is_idle() -> None:
    assert None is figures_of(stairs(), stairs())["idle"].change


def test_nothing_before_and_something_after_is_infinitely_more() -> None:
    nothing = recording([[(0, MIB, 0, 0, 0)]] * 3)
    assert float("inf") == figures_of(nothing, stairs())["wss"].share
    assert 0.0 == figures_of(nothing, nothing)["wss"].share


def test_what_was_nothing_is_new_and_only_the_unknown_is_unknown() -> None:
    """A change from 0 has no share, a change that rounds to 0 has no sign, and 0 is a number."""
    nothing = recording([[(0, MIB, 0, 0, 0)]] * 3)
    some = recording([[(0, MIB, 20, 0, 0)]] * 3)
    report = difference_view(nothing, some)
    cells = [re.split(" {2,}", line.strip()) for line in render_report(report).splitlines()[1:7]]
    lines = {title: share for *_, share, _spread, title in cells}
    wanted = {"working set": "new", "hot": "new", "cold (mapped)": "-100.0%", "unknown": "0.0%"}
    wanted |= {"in memory": "unknown", "idle for 10 s (mapped)": "unknown"}
    assert wanted == {title: lines[title] for title in wanted}
    figures = {row["figure"]: row["change_share"] for row in report.tables[0].records()}
    assert (None, -1.0, 0.0, None) == tuple(figures[name] for name in ("wss", "cold", "unknown", "resident"))
    json.loads(render_report_json(report, Origin(), "kdamon.diff/1"), parse_constant=pytest.fail)
    assert "0.0%" == cell_text(-0.0001, Kind.SHARE)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two records: of the second one, twice as much is hot."""
    directory = tmp_path_factory.mktemp("records")
    before, after = (
        recording([[(0, size * MIB, 20, 0, 0)]] * 10, name_table((0, size * MIB, HOSTILE))) for size in (4, 8)
    )
    write_record(str(directory / "a.kdamon"), before)
    write_record(str(directory / "b.kdamon"), after)
    return str(directory / "a.kdamon"), str(directory / "b.kdamon")


@pytest.mark.real
@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ("wss > +10%", 3),
        ("wss>+99%", 3),
        ("wss > +100%", 0),
        ("hot > +4095K", 3),
        ("hot > +4M", 0),
        ("wss < -5%", 0),
        ("cold < -0%", 0),
        ("resident > +0%", 0),
    ],
)
def test_conditions_choose_the_status(records: tuple[str, str], condition: str, status: int) -> None:
    found = run("diff", "--fail-if", condition, *records)
    assert status == found.returncode
    said = f"kdamon: {condition}: 4.0 MiB before, 8.0 MiB after\n"
    assert (said if status else "") == found.stderr
    assert "working set" in found.stdout


@pytest.mark.real
def test_a_condition_on_what_is_not_known_fails(records: tuple[str, str]) -> None:
    found = run("diff", *records, "--fail-if", "idle > +1%")
    assert (1, "kdamon: --fail-if 'idle > +1%': record A does not know idle\n") == (found.returncode, found.stderr)


@pytest.mark.real
@pytest.mark.parametrize("condition", ["", "wss", "wss > 10%", "speed > +1%", "wss > +1.2.3%", "wss > +1Q"])
def test_conditions_that_are_none_are_refused(records: tuple[str, str], condition: str) -> None:
    found = run("diff", *records, "--fail-if", condition)
    assert (2, 1) == (found.returncode, found.stderr.count("\n"))


@pytest.mark.real
def test_forms(records: tuple[str, str], tmp_path: Path) -> None:
    """JSON by its schema, CSV by its rows, and text without what a name could do to a terminal."""
    document = validate(json.loads(run("diff", *records, "--json").stdout), "kdamon.diff")
    assert 4 * MIB == next(row["change_bytes"] for row in document["figures"] if row["figure"] == "wss")
    assert 0 == run("diff", *records, "-o", str(tmp_path / "diff.csv")).returncode
    assert 2 == len((tmp_path / "diff.csv").read_text().splitlines())
    assert "\x1b" not in run("diff", *records).stdout


@pytest.mark.real
def test_a_part_of_both(tmp_path: Path) -> None:
    """Such as without the start; a part without snapshots is an error."""
    path = str(tmp_path / "run.kdamon")
    early, late = [(0, 8 * MIB, 20, 0, 0)], [(0, 2 * MIB, 20, 0, 0)]
    write_record(path, recording([early] * 30 + [late] * 20))
    found = []
    for words in ([], ["--time", "3.5-"]):
        document = json.loads(run("diff", "--json", *words, path, path).stdout)
        [hot] = [row for row in document["figures"] if row["figure"] == "hot"]
        found.append(hot["before_bytes"])
    assert [8 * MIB, 2 * MIB] == found
    late_part = run("diff", "--time", "90-", path, path)
    assert 1 == late_part.returncode
    assert "holds no snapshot in --time" in late_part.stderr
