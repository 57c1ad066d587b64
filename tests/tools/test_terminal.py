# SPDX-License-Identifier: GPL-2.0-only
"""Terminals, and numbers as people read and write them."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import termios
from collections.abc import Callable

import pytest

from kdamon_tools.output.terminal import LiveView, cut, terminal_size, use_colour
from kdamon_tools.units import (
    format_bytes,
    format_seconds,
    parse_cpus,
    parse_interval,
    parse_number,
    parse_positive,
    parse_range,
    parse_seconds,
    parse_tids,
    parse_unsigned,
)


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
        ("auto", {"FORCE_COLOR": "1"}, False, True),
        ("auto", {"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ("auto", {"FORCE_COLOR": ""}, False, False),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ("never", {"FORCE_COLOR": "1"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {}, True, False),
    ],
)
def test_colours(
    monkeypatch: pytest.MonkeyPatch, when: str, environment: dict[str, str], terminal: bool, expected: bool
) -> None:
    """On a terminal unless NO_COLOR or FORCE_COLOR says otherwise; the option decides before them."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert expected == use_colour(when, Terminal() if terminal else io.StringIO())


def test_the_size_is_that_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error may be a terminal and standard output none; what is no terminal has the environment's size."""
    master, slave = os.openpty()
    try:
        with os.fdopen(slave, "w") as stream:
            for variables, expected in (({}, (80, 24)), ({"COLUMNS": "133", "LINES": "5"}, (133, 5))):
                for name, value in variables.items():
                    monkeypatch.setenv(name, value)
                termios.tcsetwinsize(stream.fileno(), (0, 0))
                assert expected == terminal_size(stream) == terminal_size(io.StringIO())
                termios.tcsetwinsize(stream.fileno(), (12, 60))
                assert (60, 12) == terminal_size(stream)
                assert (60, 11) == LiveView(stream, in_place=True).size()
    finally:
        os.close(master)
    for nonsense in ("0", "-5", "x", "", "1e3", "999999"):
        monkeypatch.setenv("COLUMNS", nonsense)
        assert 80 == terminal_size(io.StringIO())[0]


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcde"),
        ("", 5, ""),
        # Colours take no room, and the last one is always taken back.
        ("a\x1b[48;5;17mbcd\x1b[0mef", 3, "a\x1b[48;5;17mbc\x1b[0m"),
        # Wide characters are not halved, and nothing slips into the column that they leave.
        ("日本語", 5, "日本"),
        ("a日b", 2, "a"),
        ("e\u0301e\u0301e", 2, "e\u0301e\u0301"),
        # What would move the cursor.
        ("a\tb\nc\x1b]0;title\x07", 99, "a?b?c?]0;title?"),
        ("\udc80", 5, "?"),
    ],
)
def test_a_line_is_cut_to_the_columns_that_it_takes(text: str, width: int, expected: str) -> None:
    """Not to so many characters."""
    assert expected == cut(text, width)


def test_nothing_is_erased_once_the_cursor_may_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped and continued, after a message, and in the background; what was before is as before."""
    monkeypatch.setattr(os, "tcgetpgrp", lambda _descriptor: groups.pop(0) if groups else os.getpgrp())
    groups: list[int] = []
    handlers = logging.getLogger().handlers.copy()
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    stream = Terminal()
    stream.fileno = lambda: 2  # type: ignore[method-assign]
    view = LiveView(stream, in_place=True)
    view.show("one")
    os.kill(os.getpid(), signal.SIGCONT)
    view.show("two")
    logging.getLogger("kdamon").error("a message of the test")
    view.show("three")
    groups = [1, 1]
    view.show("in the background")
    view.show("four")
    view.show("five")
    view.clear()
    assert "one\ntwo\nthree\nfour\n\x1b[1F\x1b[Jfive\n\x1b[1F\x1b[J" == stream.getvalue()
    assert signal.SIG_DFL == signal.getsignal(signal.SIGCONT)
    assert handlers == logging.getLogger().handlers


def test_a_view_is_not_higher_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would scroll, and what scrolled away can no longer be erased."""
    monkeypatch.setenv("COLUMNS", "4")
    monkeypatch.setenv("LINES", "3")
    stream = Terminal()
    LiveView(stream, in_place=True).show("12345\n2\n3\n4")
    assert "1234\n2\n" == stream.getvalue()


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
    """Standard error on a full disk or a closed pipe must not cost the result of a run."""

    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    view = LiveView(Broken(), in_place=True)
    view.show("one\ntwo")
    view.show("three")
    view.clear()
    assert not view.in_place


def taken(parse: Callable[[str], object], text: str) -> object:
    """What ``parse`` makes of ``text``, None where it refuses it."""
    try:
        return parse(text)
    except argparse.ArgumentTypeError:
        return None


@pytest.mark.parametrize(
    "text", ["5_000", "\uff15", "0b1", "0o7", "+5", " 5", "5 ", "5\n", "-5", "", "0x", "08", "1e3", "\u0665", "x5"]
)
def test_numbers_of_other_languages_are_none(text: str) -> None:
    """Python's among them, wherever a command line has a number."""
    parsers = [parse_unsigned, parse_positive, parse_number, parse_interval, parse_seconds, parse_cpus, parse_tids]
    # Each as it takes them, leading zeros, lists and hexadecimal digits.
    exceptions = {parse_seconds: ["08"], parse_cpus: ["08"]}
    for parse in parsers:
        assert text in exceptions.get(parse, []) or taken(parse, text) is None, parse
    assert text in {"08", "1e3", "0b1"} or taken(parse_range, f"{text}-6000") is None


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_unsigned, "0x1388", 5000),
        (parse_unsigned, "0", 0),
        (parse_unsigned, "011610", 5000),
        (parse_unsigned, "18446744073709551615", 2**64 - 1),
        (parse_unsigned, "18446744073709551616", None),
        (parse_number, "2147483647", 2**31 - 1),
        (parse_number, "2147483648", None),
        (parse_interval, "5000", 5000),
        (parse_interval, "5ms", 5000),
        (parse_interval, "0.1s", 100_000),
        (parse_interval, "2m", 120_000_000),
        (parse_interval, "1h", 3_600_000_000),
        (parse_interval, "300us", 300),
        (parse_interval, "0.5us", None),
        (parse_interval, "0ms", None),
        (parse_interval, "5 ms", None),
        (parse_interval, "18446744073709551615", None),
        (parse_interval, "99999999999999999999h", None),
        (parse_seconds, "30", 30.0),
        (parse_seconds, "0.5", 0.5),
        (parse_seconds, "500ms", 0.5),
        (parse_seconds, "2m", 120.0),
        (parse_seconds, "inf", None),
        (parse_seconds, "0.0000001", None),
        (parse_range, "4G-6GiB", (4 << 30, 6 << 30)),
        (parse_range, "0x1000-2000", (0x1000, 0x2000)),
        (parse_range, "4K-8K", (4096, 8192)),
        (parse_range, "93824992231424-140737488355328", (0x555555554000, 1 << 47)),
        (parse_range, "0-140737488355328", (0, 1 << 47)),
        (parse_range, "1000000000000-9999999999999", (0x1000000000000, 0x9999999999999)),
        (parse_range, "0x10000000000000-0x99999999999999", (0x10000000000000, 0x99999999999999)),
        (parse_range, "0000000000400000-0000000000500000", (0x400000, 0x500000)),
        (parse_range, "140737488355328-93824992231424", None),
        (parse_range, "18446744073709551616-18446744073709551617", None),
        (parse_range, "4K-4K", None),
        (parse_range, "4.5G-6G", None),
    ],
)
def test_numbers_are_the_trees_and_may_have_units(parse: Callable[[str], object], text: str, expected: object) -> None:
    """As damo's users type them."""
    assert expected == taken(parse, text)
