# SPDX-License-Identifier: GPL-2.0-only
"""Long work shows on a terminal how much is done and how long the rest takes, and nothing elsewhere."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdamon_tools import cli
from kdamon_tools.commands.replay import _Progress
from kdamon_tools.output.progress import Progress
from tests.support.cli import DATA
from tests.support.views import stairs, write_record


class Screen(io.StringIO):
    """Standard error that is a terminal, or none."""

    terminal = True

    def isatty(self) -> bool:
        return self.terminal

    def lines(self) -> list[str]:
        return [line.removeprefix("\x1b[1F\x1b[J") for line in self.getvalue().splitlines()]


def screen_of(monkeypatch: pytest.MonkeyPatch, terminal: bool = True) -> Screen:
    """Standard error; the clock is a second further at each look."""
    screen, clock = Screen(), itertools.count()
    screen.terminal = terminal
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    clock_of_progress = SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr("kdamon_tools.output.progress.time", clock_of_progress)
    return screen


def test_the_time_left_follows_from_the_share_that_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two seconds a tenth was done: the rest takes 18; other work is estimated anew."""
    screen = screen_of(monkeypatch)
    progress = Progress()
    progress.show_share(0.1, "it")
    assert [" 10%, 18 s left: it"] == screen.lines()
    progress.restart()
    assert ", 1.0 s left" == progress.left(0.5)


def test_work_without_a_share_follows_only_what_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    progress = Progress()
    progress.show_last("the rest")
    assert [] == screen.lines()
    progress.show_share(1.0, "it")
    progress.show_last("the rest")
    progress.clear()
    assert ["100%, 1.0 s left: it", "the rest", ""] == screen.lines()


def test_a_replay_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    progress = _Progress("a")
    progress.reading(1, 10)
    progress.replaying(5 * 10**8, 10**9)
    progress.reading(1 << 20, 0)
    assert [" 10%, 18 s left: reading a", "0.5 s of 1.0 s replayed, 5.0 s left", "read 1.0 MiB: a"] == screen.lines()


def commands(record: str, folder: Path) -> dict[str, list[str]]:
    """All long work, on small files."""
    reports = str(DATA / "lackey_trace.txt")
    return {
        "export": ["export", record, "--to", "csv", "-o", str(folder / "x.csv")],
        "report": ["report", record, "where", "-o", str(folder / "x.txt")],
        "picture": ["report", record, "-o", str(folder / "x.svg")],
        "diff": ["diff", record, record, "-o", str(folder / "x.txt")],
        "replay": ["replay", reports, "--output", str(folder / "x.txt")],
    }


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("which", ["export", "report", "picture", "diff", "replay"])
def test_all_long_work_shows_its_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: str, terminal: bool
) -> None:
    """And erases it."""
    write_record(str(tmp_path / "a"), stairs())
    screen = screen_of(monkeypatch, terminal)
    assert 0 == cli.main(commands(str(tmp_path / "a"), tmp_path)[which])
    if not terminal:
        assert "left" not in screen.getvalue()
        return
    assert any(" s left" in line for line in screen.lines())
    assert screen.getvalue().rstrip("\n").endswith("\x1b[J")
