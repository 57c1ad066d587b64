# SPDX-License-Identifier: GPL-2.0-only
"""The live table of ``kdamon run`` in a terminal emulator: it fits, stays in place, and erases nothing but itself."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.support.terminals import Emulator

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("monitoring")]


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    """A process of many mappings, some of them hot; it ends with its standard input."""
    script = """
import mmap, sys, threading
areas = [mmap.mmap(-1, 1 << 22) for _ in range(30)]
threading.Thread(target=sys.stdin.read, daemon=False).start()
while threading.active_count() > 1:
    for area in areas[::3]:
        for page in range(0, len(area), 4096):
            area[page] = 1
    threading.Event().wait(0.001)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        yield process.pid


class Tables(Emulator):
    """A terminal with live tables."""

    def tables(self) -> list[str]:
        """The times of the tables that can be seen or were scrolled away."""
        return [found[1] for line in self.all_lines() if (found := re.match(r" *(\d+\.\d) s +\d+ regions", line))]

    def regions(self) -> list[str]:
        """The lines that say how often a region was accessed."""
        return [line for line in self.all_lines() if re.search(r"\d%", line)]

    def wait_for_tables(self, count: int = 3) -> None:
        """Until the table was redrawn."""
        seen: set[str] = set()

        def enough() -> bool:
            seen.update(self.tables()[-1:])
            return len(seen) >= count

        self.wait(enough, "another table")


Start = Callable[..., Tables]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start programs in terminals; end them afterwards."""
    started = []

    def start_one(words: list[str], columns: int, lines: int, reported: tuple[int, int] | None = None) -> Tables:
        started.append(Tables(words, columns, lines, reported))
        return started[-1]

    yield start_one
    for emulator in started:
        emulator.close()


def kdamon(pid: int, *options: str) -> list[str]:
    """The command."""
    return [sys.executable, "-m", "kdamon_tools", "run", "--pid", str(pid), *options]


@pytest.mark.parametrize(
    ("size", "reported", "colour"),
    [
        ((60, 24), None, "always"),
        ((80, 12), None, "never"),
        ((30, 24), None, "always"),
        ((30, 5), None, "never"),
        ((20, 3), None, "always"),
        ((80, 24), (0, 0), "always"),
    ],
)
def test_it_fits(
    start: Start, target: int, size: tuple[int, int], reported: tuple[int, int] | None, colour: str
) -> None:
    """One table, below what was there before, however often it is redrawn; a terminal of size 0 is one of 80 x 24."""
    emulator = start(kdamon(target, "--color", colour), *size, reported)
    emulator.wait_for_tables()
    emulator.wait(lambda: len(emulator.tables()) == 1, "one table")
    everything = emulator.all_lines()
    assert "others' output" == everything[0]
    # Scrolled was once, when the first table was drawn.
    assert len(everything) <= size[1] + 1
    # What is on the screen may be half of a table, or one of a target that a busy machine did not run yet.
    emulator.wait(lambda: len(emulator.regions()) >= min(15, size[1] - 5), "regions")
    emulator.type("\x03")
    emulator.wait(lambda: "monitored pid" in "".join(emulator.all_lines()), "the result")
    assert [] == emulator.tables()
    assert "others' output" == emulator.all_lines()[0]


@pytest.mark.parametrize("size", [(80, 24), (60, 20)])
def test_a_view_is_redrawn_in_its_place(start: Start, target: int, size: tuple[int, int]) -> None:
    """The names of the last seconds while monitoring, those of the whole run at the end; nothing else is lost."""
    emulator = start(kdamon(target, "--view", "where"), *size)

    def shown() -> list[str]:
        return [line for line in emulator.all_lines() if re.search(r"\bcold\b.*\bidle for\b", line)]

    def average() -> bool:
        return any(re.match(r"average of (?:[2-9]\.\d|\d\d) s", line) for line in emulator.lines())

    emulator.wait(lambda: len(shown()) == 1 and average(), "a table by name that was redrawn")
    assert "others' output" == emulator.all_lines()[0]
    emulator.type("\x03")
    emulator.wait(lambda: len(shown()) == 1 and "others' output" == emulator.all_lines()[0], "the result")


def test_it_follows_the_size(start: Start, target: int) -> None:
    """Wider, narrower, higher, lower while it goes on: it stays in its place, and no one else's line is lost."""
    emulator = start(kdamon(target), 80, 30)
    emulator.wait_for_tables()
    for columns, lines in ((120, 30), (50, 40)):
        emulator.resize(columns, lines)
        emulator.wait_for_tables()
        # A table that was drawn for the size before, and came after the terminal had another one, leaves a part.
        left = len(emulator.tables()) - 1
        emulator.wait_for_tables()
        assert len(emulator.tables()) - 1 <= left <= 1
        assert "others' output" == emulator.all_lines()[0]
    emulator.resize(40, 10)
    emulator.wait_for_tables()
    everything = emulator.all_lines()
    emulator.wait_for_tables()
    assert len(everything) == len(emulator.all_lines())
    assert "" == emulator.lines()[-1]


def test_stopped_and_continued(start: Start, target: int) -> None:
    """Ctrl-Z, another program's output, fg: the table begins anew below it; standard output is no terminal."""
    emulator = start(["bash", "--norc", "-i"], 80, 40)
    emulator.type(shlex.join(kdamon(target)) + " >/dev/null\n")
    emulator.wait_for_tables()
    emulator.type("\x1a")
    emulator.wait(lambda: any("Stopped" in line for line in emulator.lines()), "the shell's message")
    emulator.type("echo precious; echo out''put\n")
    emulator.wait(lambda: "output" in emulator.all_lines(), "output")
    emulator.type("fg\n")
    emulator.wait_for_tables()
    everything = emulator.all_lines()
    assert ["precious", "output"] == [line for line in everything if line in ("precious", "output")]
    assert any("Stopped" in line for line in everything)
    # The one that was there when it was stopped, and the present one.
    assert 2 == len(emulator.tables())


def test_in_the_background_nothing_is_drawn(start: Start, target: int) -> None:
    """The terminal belongs to another process then; back in the foreground, the table begins anew."""
    emulator = start(["bash", "--norc", "-i"], 80, 40)
    emulator.type(shlex.join(kdamon(target)) + "\n")
    emulator.wait_for_tables()
    emulator.type("\x1abg\n")
    emulator.wait(lambda: any("&" in line for line in emulator.lines()), "the background")
    # An answer of the shell after a second: kdamon draws twice in that time.
    emulator.type("sleep 1; echo do''ne\n")
    emulator.wait(lambda: "done" in emulator.all_lines(), "an answer")
    before = emulator.tables()
    emulator.type("fg\n")
    emulator.wait_for_tables()
    assert before == emulator.tables()[:-1]
    assert "done" in emulator.all_lines()
