# SPDX-License-Identifier: GPL-2.0-only
"""The heatmap of ``kdamon top``, of a process and of parts of it."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

from kdamon.reports.groups import GROUP_ADDRESS, GROUP_REGION, UNKNOWN_GROUP, GroupTable
from kdamon_tools.snapshot import Config
from kdamon_tools.top.heatmap import Wanted, heatmap_of
from tests.support.views import HOSTILE, stairs

STAIRS = stairs()
NAMES = Wanted("names", 42, heatmap=True, width=79, height=20)


def levels(picture: str) -> set[str]:
    """The characters of all lines of addresses."""
    lines = [line.split("  ") for line in picture.splitlines() if line[:1] in "78"]
    return set("".join(line[1] for line in lines))


@pytest.mark.parametrize("height", [10, 16, 20, 50])
@pytest.mark.parametrize("part", [None, "[heap]", "[stack]", HOSTILE, "[unnamed]"])
def test_it_fits(part: str | None, height: int) -> None:
    """No line is too long, and there are not too many."""
    lines = heatmap_of(STAIRS, evolve(NAMES, part=part, height=height)).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= NAMES.width
    assert "\x1b" not in "".join(lines)


def test_a_name() -> None:
    """Only what lies there is drawn, all of it."""
    assert {"@", "."} == levels(heatmap_of(STAIRS, evolve(NAMES, part="[heap]")))
    assert {"-"} == levels(heatmap_of(STAIRS, evolve(NAMES, part="[stack]")))
    assert {"?"} == levels(heatmap_of(STAIRS, evolve(NAMES, part=HOSTILE)))


def test_a_name_that_is_gone() -> None:
    """It was shown a moment ago."""
    wanted = evolve(NAMES, part="[gone]")
    assert "nothing with this name was monitored in the last minute" == heatmap_of(STAIRS, wanted)


def test_time_is_counted_back() -> None:
    """Monitoring goes on."""
    axis = heatmap_of(STAIRS, NAMES).splitlines()[-1].split()
    assert ("-4.0 s", "now") == (" ".join(axis[:2]), axis[-1])


def grouped(by: str, numbers: tuple[int, ...]) -> GroupTable:
    """Of each group, accesses of its own MiB of the heap."""
    rows = np.zeros(len(numbers), GROUP_REGION)
    rows["group"] = numbers
    rows["start"] = STAIRS.snapshots[0].regions["start"][0] + (np.arange(len(numbers)) << 20)
    rows["end"], rows["nr_accesses"], rows["nr_reports"] = rows["start"] + (1 << 20), 20, 20
    assert by in UNKNOWN_GROUP
    return GroupTable(rows, np.empty(0, GROUP_ADDRESS))


@pytest.mark.parametrize(("view", "by"), [("threads", "thread"), ("cpus", "cpu")])
def test_a_thread_or_a_cpu(view: str, by: str) -> None:
    """Only its own accesses count; those of an unknown one can be shown, too."""
    table = grouped(by, tuple(sorted((7, 9, UNKNOWN_GROUP[by]))))
    snapshots = [evolve(one, groups=table) for one in STAIRS.snapshots]
    of = evolve(STAIRS, snapshots=snapshots, config=Config(pid=42, by=by, primitive="page_fault"))
    pictures = [heatmap_of(of, evolve(NAMES, view=view, part=part)) for part in ("7", "9", "None")]
    assert 3 == len(set(pictures))
    assert all("@" in levels(picture) for picture in pictures)
