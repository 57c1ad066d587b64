# SPDX-License-Identifier: GPL-2.0-only
"""Terminals, and numbers as people read and write them."""

from __future__ import annotations

import argparse
import io

import pytest

from kdamon_tools.terminal import LiveView, terminal_size, use_colour
from kdamon_tools.units import format_bytes, format_seconds, parse_range


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


@pytest.mark.parametrize(
    ("when", "environment", "terminal", "expected"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"TERM": "dumb"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {}, True, False),
    ],
)
def test_colours(
    monkeypatch: pytest.MonkeyPatch, when: str, environment: dict[str, str], terminal: bool, expected: bool
) -> None:
    """On a terminal unless NO_COLOR says otherwise; the option decides before both."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert expected == use_colour(when, Terminal() if terminal else io.StringIO())


def test_the_size_comes_from_the_environment_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As everywhere; and too small ones are not believed."""
    monkeypatch.setenv("COLUMNS", "133")
    monkeypatch.setenv("LINES", "5")
    assert (133, 10) == terminal_size()


def test_a_view_is_redrawn_in_place() -> None:
    """The cursor goes up as many lines as were drawn, and what was there is erased."""
    stream = Terminal()
    view = LiveView(stream, in_place=True)
    view.show("one\ntwo")
    view.show("three")
    view.clear()
    view.clear()
    assert "one\ntwo\n\x1b[2F\x1b[Jthree\n\x1b[1F\x1b[J" == stream.getvalue()


def test_elsewhere_lines_follow_each_other() -> None:
    """A log file gets no escape sequences."""
    stream = io.StringIO()
    view = LiveView(stream, in_place=False)
    view.show("one")
    view.show("two")
    view.clear()
    assert "one\ntwo\n" == stream.getvalue()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (20 << 20, "20.0 MiB"),
        (1 << 47, "128.0 TiB"),
        (1 << 64, "16.0 EiB"),
    ],
)
def test_bytes(size: int, text: str) -> None:
    """The largest unit that leaves at least 1."""
    assert text == format_bytes(size)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (125, "2 min 5 s"), (7500, "2 h 5 min")]
)
def test_seconds(seconds: float, text: str) -> None:
    """Coarser as they grow."""
    assert text == format_seconds(seconds)


def test_ranges_are_written_as_in_maps() -> None:
    """Hexadecimal, with or without 0x."""
    assert (0x1000, 0x2F00) == parse_range("1000-2f00") == parse_range("0x1000-0x2F00")
    with pytest.raises(argparse.ArgumentTypeError):
        parse_range("1000")


def test_a_view_that_nobody_can_see_does_not_end_what_it_shows() -> None:
    """A full disk or a closed pipe behind standard error must not cost the result of a run."""

    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    view = LiveView(Broken(), in_place=True)
    view.show("one\ntwo")
    view.show("three")
    view.clear()
    assert not view.in_place
