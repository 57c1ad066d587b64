# SPDX-License-Identifier: GPL-2.0-only
"""The heatmap as numbers: what was not monitored, and what is unknown, is no 0."""

from __future__ import annotations

import csv
import json

import numpy as np

from kdamon_tools.origin import Origin
from kdamon_tools.reporters.heat import render_heat_csv, render_heat_json
from kdamon_tools.views.heat import heat_of
from tests.support.json_schemas import validate
from tests.support.views import HOSTILE, MIB, name_table, recording


def test_what_was_not_monitored_and_what_is_unknown_is_no_zero() -> None:
    """The second MiB appears in the second snapshot, and cannot be sampled; nothing is sampled in the third."""
    of = recording([[(0, MIB, 5, 0, 0)], [(0, MIB, 0, 0, 0), (MIB, 2 * MIB, 0, 0, 20)], [], [(0, MIB, 20, 0, 0)]])
    heat = heat_of(of)
    assert [[0, MIB], [MIB, 2 * MIB]] == heat.ranges.tolist()
    assert [0.0, 0.1, 0.2, 0.3, 0.4] == heat.times.tolist()
    nan = np.nan
    assert np.array_equal([[0.25, 0.0, nan, 1.0], [nan, nan, nan, nan]], heat.shares, equal_nan=True)
    assert np.array_equal([[0.0, 0.0, nan, 0.0], [nan, 1.0, nan, nan]], heat.unknown, equal_nan=True)
    rows = list(csv.reader("".join(render_heat_csv(heat)).splitlines()))[1:]
    assert [["0.0", "0.25"], ["0.1", "0.0"], ["0.3", "1.0"], ["0.1", ""]] == [[row[0], row[5]] for row in rows]


def test_a_long_recording_of_many_regions_is_coarser() -> None:
    of = recording(
        [[(at * MIB, (at + 1) * MIB, (at + number) % 21, 0, 0) for at in range(900)] for number in range(600)]
    )
    heat = heat_of(of)
    assert (513, 1) == (len(heat.times), int(len(heat.ranges) <= 520))
    assert (0, 900 * MIB) == (heat.ranges[0, 0], heat.ranges[-1, 1])


def test_nothing_monitored_is_an_empty_list() -> None:
    heat = heat_of(recording([[], []]))
    assert [] == validate(json.loads("".join(render_heat_json(heat, Origin()))), "kdamon.report")["ranges"]
    assert 1 == len("".join(render_heat_csv(heat)).splitlines())


def test_a_hostile_name_is_one_cell() -> None:
    names = name_table((0, MIB, HOSTILE), (MIB, 2 * MIB, "=1+1"))
    heat = heat_of(recording([[(0, MIB, 5, 0, 0), (MIB, 2 * MIB, 5, 0, 0)]], names))
    text = "".join(render_heat_csv(heat))
    assert ["'=1+1"] == [row[4] for row in csv.reader(text.splitlines())][2:]
    assert not {"\x1b", "\udcff"} & set(text + "".join(render_heat_json(heat, Origin())))
