# SPDX-License-Identifier: GPL-2.0-only
"""The memory in use that ``kdamon run`` estimates is what ``kdamon wss`` counts, on programs of different kinds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.cli import ENVIRONMENT
from tests.support.programs import stairs, web, zipf

pytestmark = pytest.mark.real

#: Seconds of the window, and of the run: two choices of pages have windows that end in it.
WINDOW, SECONDS = 10, 13
#: Of the exact count. The 3000 pages that these windows have give bounds of 95 % of 5 to 30 %, the fewer pages are in
#: use the wider; and on a busy machine a program does more in one window than in the next. ``make bench
#: BENCH=working_set`` measures for longer, and alone: docs/working-set.md.
NEAR = 0.3
#: A page or two more count where little is in use.
MIB = 1 << 20


def at_once(*commands: Sequence[object]) -> list[dict[str, Any]]:
    """What kdamon commands print as JSON that run at the same time."""
    words = [[sys.executable, "-m", "kdamon_tools", *map(str, command)] for command in commands]
    started = [
        subprocess.Popen(each, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for each in words
    ]
    found = []
    for process in started:
        shown, complaints = process.communicate(timeout=120)
        assert 0 == process.returncode, complaints
        found.append(json.loads(shown))
    return found


def test_the_estimates_are_near_the_exact_counts() -> None:
    """Of memory in use for ten seconds: of a third of the memory, by Zipf's law, and of a server's hundredth."""
    with ExitStack() as stack:
        pids = [stack.enter_context(program()) for program in (stairs, lambda: zipf(128), web)]
        how = ("--seconds", WINDOW, "--primitive", "page_table", "--json")
        exact = at_once(*(("wss", "--pid", pid, *how) for pid in pids))
        runs = at_once(*(("run", "--pid", pid, "--seconds", SECONDS, "--json", "--quiet") for pid in pids))
    for name, window, run in zip(("stairs", "zipf", "web"), exact, runs, strict=True):
        used = window["total"]["used_bytes"]
        found = next(one for one in run["counters"]["use"]["windows"] if one["seconds"] == WINDOW)
        assert pytest.approx(used, rel=NEAR, abs=2 * MIB) == found["accessed_bytes"], (name, found)
        assert found["low_bytes"] <= found["accessed_bytes"] <= found["high_bytes"]
