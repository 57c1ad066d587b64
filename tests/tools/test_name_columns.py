# SPDX-License-Identifier: GPL-2.0-only
"""Names in tables, pictures and JSON: what does not fit loses its middle, and nothing moves the cursor."""

from __future__ import annotations

import json

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kdamon.names.table import NAMED_RANGE, NO_OFFSET, NameTable, Part
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.reporters.json_object import render_aggregation, render_json
from kdamon_tools.reporters.names import fitting, visible
from kdamon_tools.reporters.table import render_table
from kdamon_tools.snapshot import Config, Counters, Recording, Snapshot
from tests.support.json_schemas import validate

MIB = 1 << 20
LOW, HIGH = 0x55A0_0000_0000, 0x7FFC_0000_0000
CONFIG = Config(pid=42)
REPORTS = dict.fromkeys(
    ("accepted", "applied", "ineligible", "filtered", "straddling", "outside", "late", "dropped", "pending"), 0
)
NAMES = NameTable(
    np.array(
        [
            (LOW, LOW + 3 * MIB, NO_OFFSET, 0),
            (LOW + 3 * MIB, LOW + 4 * MIB, NO_OFFSET, 1),
            (HIGH, HIGH + 8 * MIB, 0, 2),
        ],
        NAMED_RANGE,
    ),
    ("[heap]", "libfoo.so .data", "a\x1b[31m\u202e\nfile\udcff"),
    100.0,
)
SNAPSHOT = Snapshot.of(
    101.0,
    [(LOW, LOW + 4 * MIB, 20, 3, 0), (HIGH, HIGH + 4 * MIB, 10, 3, 12), (HIGH + 32 * MIB, HIGH + 36 * MIB, 9, 3, 0)],
)
RECORDING = Recording(CONFIG, [SNAPSHOT], Counters(reports=REPORTS), 100.9, 101.0, names=NAMES)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (60, "[heap] 75%, libfoo.so .data 25%"),
        (31, "[heap] 75%, libfoo.so .data 25%"),
        (30, "[heap] 75%"),
        (10, "[heap] 75%"),
        (9, "[h…p] 75%"),
    ],
)
def test_parts_as_there_is_room(width: int, expected: str) -> None:
    """All of them, or the largest."""
    parts = [Part("[heap]", 3, 0.75), Part("libfoo.so .data", 1, 0.25)]
    found = fitting(parts, width)
    assert len(found) <= width
    assert expected == found


def test_a_long_name_keeps_its_end() -> None:
    """Where the section is."""
    assert "libverylon….so .data" == fitting([Part("libverylongname-of-some-kind-and-more.so .data", 1, 1.0)], 20)


@given(st.text(max_size=60), st.integers(6, 40))
def test_no_text_is_wider(text: str, width: int) -> None:
    """With escapes, and characters that take two columns."""
    found = fitting([Part(text, 1, 1.0)], width)
    assert len(found) <= width
    assert found.isprintable() or not set(found) & set("\x1b\n\r\t\u202e\u2066")


def test_characters_of_two_columns() -> None:
    """Count as two."""
    assert "日本…本語" == fitting([Part("日本語日本語", 1, 1.0)], 9)


def test_characters_without_a_width() -> None:
    """Are escaped, as they would hide or move others."""
    assert "a\\u200bb\\u0301\\x1b" == visible("a\u200bb\u0301\x1b")


class TestTable:
    @pytest.mark.parametrize("width", [56, 60, 66, 78, 80, 100, 132])
    def test_a_column_of_names(self, width: int) -> None:
        """At each width from 56 on."""
        lines = render_table(SNAPSHOT, CONFIG, since=100.0, width=width, names=NAMES).splitlines()
        at = next(at for at, line in enumerate(lines) if line.endswith("name"))
        heading, first, second, third = lines[at : at + 4]
        at = heading.index("name")
        assert first[at:].startswith("[heap] 75%")
        assert second[at:].startswith("a\\x1b[3")
        assert "" == third[at:]
        assert max(map(len, lines)) <= width

    def test_a_narrow_table_has_none(self) -> None:
        """Other columns say more."""
        lines = render_table(SNAPSHOT, CONFIG, since=100.0, width=50, names=NAMES)
        assert render_table(SNAPSHOT, CONFIG, since=100.0, width=50) == lines

    def test_the_column_of_unknown_samples_stays(self) -> None:
        """At 80 columns, in its place."""
        lines = render_table(SNAPSHOT, CONFIG, since=100.0, names=NAMES).splitlines()
        assert "60%" == lines[3][lines[1].index("unknown") :].split()[0]


class TestHeatmap:
    @pytest.mark.parametrize("width", [60, 80, 132])
    def test_names_beside_lines(self, width: int) -> None:
        """A line with the name of the one above has a mark."""
        lines = render_heatmap(RECORDING, width=width, height=12, show_legend=False).splitlines()
        assert max(map(len, lines)) <= width
        assert any("[heap]" in line for line in lines)
        assert any("libfoo.so .data" in line for line in lines)
        assert any(line.endswith('  "') for line in lines)
        assert not {"\x1b", "\u202e"} & set("".join(lines))

    def test_without_names(self) -> None:
        """As it always was; so is a narrow one."""
        plain = evolve(RECORDING, names=None)
        assert "heap" not in render_heatmap(plain)
        assert render_heatmap(plain, width=50) == render_heatmap(RECORDING, width=50)


class TestJson:
    def test_a_field_for_each_region(self) -> None:
        """With all characters; empty where nothing is mapped."""
        document = validate(json.loads("".join(render_json(RECORDING))), "kdamon.run")
        expected = ["[heap] 75%, libfoo.so .data 25%", "a\x1b[31m\u202e\nfile\\xff+0x0", ""]
        assert expected == [region["name"] for region in document["snapshots"][0]["regions"]]

    def test_a_line(self) -> None:
        """Likewise; where names are unknown there is no field."""
        line = validate(json.loads(render_aggregation(SNAPSHOT, 100.0, 0, 0, names=NAMES)), "kdamon.run.lines")
        assert "[heap] 75%, libfoo.so .data 25%" == line["regions"][0]["name"]
        line = validate(json.loads(render_aggregation(SNAPSHOT, 100.0, 0, 0)), "kdamon.run.lines")
        assert "name" not in line["regions"][0]
