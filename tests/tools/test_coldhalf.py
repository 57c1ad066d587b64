# SPDX-License-Identifier: GPL-2.0-only
"""The workload with a cold half does what its truth file says."""

from __future__ import annotations

import io
import json
import tempfile

import numpy as np
import pytest

from kdamon_tools.workloads import coldhalf
from kdamon_tools.workloads.memory import MIB, PAGE

pytestmark = pytest.mark.real


def test_the_parts_follow_each_other_and_are_swept() -> None:
    """What is written, what is read, what is cold; it counts sweeps each second."""
    out = io.StringIO()
    with tempfile.TemporaryFile() as file:
        coldhalf.run(coldhalf.Pattern(total=8 * MIB, written=2 * MIB, read=3 * MIB, duration=3), file, out)
    events = {event["event"]: event for event in map(json.loads, out.getvalue().splitlines())}
    base = events["map"]["start"]
    places = [
        ((events[name]["start"] - base) // MIB, (events[name]["end"] - base) // MIB)
        for name in ("writes", "reads", "cold")
    ]
    assert [(0, 2), (2, 5), (5, 8)] == places
    assert events["sweeps"]["sweeps"] > 0
    assert events["map"]["rss"] >= 8 * MIB


def test_what_it_writes_does_not_reach_the_file() -> None:
    """Its pages can be dropped at any time, and come back as they were."""
    with tempfile.TemporaryFile() as file:
        memory = coldhalf.map_file(file, MIB)
        memory[::PAGE] = 7
        file.seek(0)
        assert {1} == set(np.frombuffer(file.read(), np.uint8).tolist())


def test_parts_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == coldhalf.main(["--total", "4", "--written", "3", "--read", "2"])
    assert "must fit into the total" in capsys.readouterr().err
