# SPDX-License-Identifier: GPL-2.0-only
"""The screen of ``kdamon top`` on fixed contents: what is seen at 80x24 and 60x20, and what keys do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from attrs import evolve

from kdamon_tools.top.app import HELP, TopApp
from kdamon_tools.top.heatmap import Wanted, heatmap_of
from kdamon_tools.top.session import Content
from kdamon_tools.top.tables import Heading, Process, Sizes, names_table, processes_table, sizes_of
from kdamon_tools.views.table import Table
from tests.support.screens import shown
from tests.support.views import MIB, stairs

SIZES = [(80, 24), (60, 20)]
#: The end of a scroll bar, and blanks.
SCROLL_BAR = "▁▂▃▄▅▆▇█ "
STAIRS = stairs(30)
HEADING = Heading("process 42 (server)", "reads and writes", 12, (), sizes_of(STAIRS), 3 * MIB, 3, 2400, 0.031)
NAMES = Content(Wanted("names", 42), HEADING, names_table(STAIRS))
PROCESSES = Content(
    Wanted("processes"),
    evolve(HEADING, what="2 processes"),
    processes_table([Process(42, "server", Sizes(9 * MIB, MIB, MIB)), Process(43, "worker", Sizes(8 * MIB, 0, MIB))]),
)


class Asked:
    """Takes what the screen asks for."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.one = wanted.pid is not None
        self.all: list[Any] = []

    def want(self, wanted: Wanted) -> None:
        """Note it."""
        self.all.append(wanted)

    def toggle_writes(self) -> None:
        """Note it."""
        self.all.append("writes")

    def toggle_records(self) -> None:
        """Note it."""
        self.all.append("record")


class Screen:
    """A screen in a test."""

    def __init__(self, app: TopApp, asked: Asked, pilot: Any) -> None:
        self.app, self.asked, self._pilot = app, asked, pilot

    async def show(self, content: Content) -> list[str]:
        """Let ``content`` arrive, and return the lines that are seen."""
        self.app.show(content)
        return await self.lines()

    async def press(self, *keys: str) -> list[str]:
        """Press keys, and return the lines that are seen."""
        await self._pilot.press(*keys)
        return await self.lines()

    async def resize(self, width: int, height: int) -> list[str]:
        """Resize the terminal, and return the lines that are seen."""
        await self._pilot.resize_terminal(width, height)
        return await self.lines()

    async def lines(self) -> list[str]:
        """The lines that are seen."""
        await self._pilot.pause()
        return shown(self.app)


def on_screen(
    do: Callable[[Screen], Awaitable[None]],
    size: tuple[int, int] = (80, 24),
    wanted: Wanted = NAMES.wanted,
    over: Callable[[], object] = lambda: False,
) -> TopApp:
    """Run ``do`` on a screen; return the application, which ended."""
    asked = Asked(wanted)
    app = TopApp(asked, over, colour=False)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await do(Screen(app, asked, pilot))

    asyncio.run(run())
    return app


def test_a_process_at_80x24() -> None:
    """As a user sees it."""

    async def do(screen: Screen) -> None:
        assert [
            "kdamon: process 42 (server), reads and writes, 12 s",
            "accessed 1.0 MiB of 61.0 MiB, in memory 3.0 MiB, unknown 2%",
            "missed 0.1% of intervals, kdamond 3.1% of a CPU",
            "        hot    accessed   idle 10 s     unknown  name",
            "    1.0 MiB     1.0 MiB    59.0 MiB         0 B  [heap]",
            "        0 B    32.0 KiB         0 B         0 B  [stack]",
            r"        0 B         0 B         0 B     1.0 MiB  [anon: </scrip…b[31m\x0a\xff]",
            *[""] * 16,
            "? help  q quit  s sort  / filter  Enter heatmap  w writes  t threads  c CPUs",
        ] == await screen.show(NAMES)

    on_screen(do)


def test_a_process_at_60x20() -> None:
    """With fewer columns and keys."""

    async def do(screen: Screen) -> None:
        assert [
            "kdamon: process 42 (server), reads and writes, 12 s",
            "accessed 1.0 MiB of 61.0 MiB, in memory 3.0 MiB, unknown 2%",
            "missed 0.1% of intervals, kdamond 3.1% of a CPU",
            "        hot    accessed   idle 10 s  name",
            "    1.0 MiB     1.0 MiB    59.0 MiB  [heap]",
            "        0 B    32.0 KiB         0 B  [stack]",
            r"        0 B         0 B         0 B  [anon: </s…m\x0a\xff]",
            *[""] * 12,
            "? help  q quit  s sort  / filter  Enter heatmap  w writes",
        ] == await screen.show(NAMES)

    on_screen(do, (60, 20))


def test_processes() -> None:
    """One in each row; Enter shows the heatmap of one, m its memory by name, t its threads."""

    async def do(screen: Screen) -> None:
        lines = await screen.show(PROCESSES)
        assert "kdamon: 2 processes, reads and writes, 12 s" == lines[0]
        assert [
            " pid         hot    accessed   idle 10 s     unknown  process",
            "  42     1.0 MiB     1.0 MiB           -         0 B  server",
            "  43         0 B     1.0 MiB           -         0 B  worker",
        ] == lines[3:6]
        await screen.press("down", "enter", "m", "t", "c")
        assert [
            Wanted("processes", 43, heatmap=True, width=79, height=20),
            *(Wanted(view, 43, width=79, height=20) for view in ("names", "threads", "cpus")),
        ] == screen.asked.all

    on_screen(do, wanted=PROCESSES.wanted)


@pytest.mark.parametrize("size", SIZES)
def test_the_heatmap_of_a_row(size: tuple[int, int]) -> None:
    """It fills the screen, Escape leaves it, and nothing is cut off."""

    async def do(screen: Screen) -> None:
        await screen.show(NAMES)
        await screen.press("enter")
        (wanted,) = screen.asked.all
        assert (True, "[heap]", size[0] - 1) == (wanted.heatmap, wanted.part, wanted.width)
        picture = heatmap_of(STAIRS, wanted)
        lines = await screen.show(Content(wanted, HEADING, heatmap=picture))
        assert picture.splitlines() == [line.rstrip() for line in lines[3 : 3 + len(picture.splitlines())]]
        assert "Esc back  ? help  q quit  w writes  r record" == lines[-1]
        await screen.press("escape")
        assert NAMES.wanted == evolve(screen.asked.all[-1], width=80, height=20)

    on_screen(do, size)


def test_sorting() -> None:
    """s takes the next column, and the first one after the last."""

    async def do(screen: Screen) -> None:
        await screen.show(PROCESSES)
        sizes = [
            Process(1, "a", Sizes(0, 3, 3, 1)),
            Process(2, "b", Sizes(0, 2, 4, 2)),
            Process(3, "c", Sizes(0, 1, 1, 3)),
        ]
        await screen.show(evolve(PROCESSES, table=processes_table(sizes)))
        seen = []
        for _ in range(4):
            seen.append("".join(line.split()[-1] for line in (await screen.lines())[4:7]))
            await screen.press("s")
        assert ["abc", "bac", "cba", "abc"] == seen

    on_screen(do, wanted=PROCESSES.wanted)


def test_filtering() -> None:
    """/ takes a text, Enter keeps it, Escape shows all rows again; keys are text meanwhile."""

    async def do(screen: Screen) -> None:
        await screen.show(NAMES)
        lines = await screen.press("slash", "s", "t", "a", "c")
        assert ["[stack]"] == [line.split()[-1] for line in lines[4:7] if line]
        lines = await screen.press("k", "enter")
        assert lines[0].endswith("only stack")
        assert [] == screen.asked.all
        lines = await screen.press("escape")
        assert "[heap]" == lines[4].split()[-1]
        lines = await screen.press("slash", "x", "escape")
        assert "[heap]" == lines[4].split()[-1]
        assert "only" not in lines[0]

    on_screen(do)


def test_requests() -> None:
    """w, r, t and c are for what monitors; t and c go back to names where these are shown."""

    async def do(screen: Screen) -> None:
        await screen.show(NAMES)
        await screen.press("w", "r", "t", "c")
        assert ["writes", "record"] == screen.asked.all[:2]
        assert ["threads", "cpus"] == [wanted.view for wanted in screen.asked.all[2:]]
        await screen.show(evolve(NAMES, wanted=Wanted("cpus", 42), table=None))
        await screen.press("c", "escape")
        assert ["names", "names"] == [wanted.view for wanted in screen.asked.all[4:]]

    on_screen(do)


def test_a_pause() -> None:
    """Nothing that is shown changes, but what is asked for is shown."""

    async def do(screen: Screen) -> None:
        await screen.show(NAMES)
        later = evolve(NAMES, heading=evolve(HEADING, seconds=13))
        await screen.press("space")
        assert "kdamon: process 42 (server), reads and writes, 12 s, paused" == (await screen.show(later))[0]
        other = evolve(later, wanted=evolve(NAMES.wanted, heatmap=True), heatmap="a picture", table=None)
        assert "a picture" == (await screen.show(other))[3]
        await screen.press("space")
        assert "kdamon: process 42 (server), reads and writes, 13 s" == (await screen.show(later))[0]

    on_screen(do)


@pytest.mark.parametrize("size", SIZES)
def test_help(size: tuple[int, int]) -> None:
    """All of it can be read; any of its keys leads back."""

    async def do(screen: Screen) -> None:
        await screen.show(NAMES)
        lines = await screen.press("question_mark")
        assert HELP.splitlines()[: size[1]] == [line.rstrip(SCROLL_BAR) for line in lines][: len(HELP.splitlines())]
        lines = await screen.press("end")
        assert HELP.splitlines()[-1] in [line.rstrip(SCROLL_BAR) for line in lines]
        assert "kdamon: process" in (await screen.press("escape"))[0]

    assert max(map(len, HELP.splitlines())) < 60
    on_screen(do, size)


def test_the_cursor_stays_on_its_row() -> None:
    """While others overtake it; on the first one it stays at the top."""

    async def do(screen: Screen) -> None:
        await screen.show(NAMES)
        await screen.press("down")
        table = NAMES.table
        assert isinstance(table, Table)
        stack_first = evolve(
            table, rows=tuple((*row[:1], row[0] if "stack" in row[-1] else 0, *row[2:]) for row in table.rows)
        )
        await screen.show(evolve(NAMES, table=stack_first))
        await screen.press("enter")
        assert "[stack]" == screen.asked.all[-1].part
        await screen.show(NAMES)
        await screen.press("home", "enter")
        assert "[heap]" == screen.asked.all[-1].part
        await screen.show(evolve(NAMES, table=stack_first))
        await screen.press("enter")
        assert "[stack]" == screen.asked.all[-1].part

    on_screen(do)


def test_a_sentence_is_whole() -> None:
    """It takes lines from the table, whatever is in it."""

    async def do(screen: Screen) -> None:
        await screen.show(NAMES)
        screen.app.say("this sentence is longer than the screen is wide: it goes on in [bold]another\x1b[31m line")
        lines = await screen.lines()
        assert r"this sentence is longer than the screen is wide: it goes on in" in " ".join(lines[-4:])
        assert r"[bold]another\x1b[31m line" in " ".join(lines[-4:])

    on_screen(do, (60, 20))


@pytest.mark.parametrize("size", [(80, 24), (60, 20), (20, 5), (300, 90)])
def test_any_size(size: tuple[int, int]) -> None:
    """Also while it changes."""

    async def do(screen: Screen) -> None:
        await screen.show(NAMES)
        await screen.show(evolve(NAMES, wanted=evolve(NAMES.wanted, heatmap=True), heatmap="x" * 30, table=None))
        await screen.resize(30, 8)
        assert 29 == screen.asked.all[-1].width

    on_screen(do, size)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_the_end(key: str) -> None:
    """By a key, also in help."""

    async def do(screen: Screen) -> None:
        await screen.show(NAMES)
        if key == "ctrl+c":
            await screen.press("question_mark")
        await screen.press(key)

    assert 0 == on_screen(do).return_code


def test_the_end_from_outside() -> None:
    """A signal, or the time."""
    ends: list[bool] = []

    async def do(screen: Screen) -> None:
        await screen.show(NAMES)
        ends.append(True)
        while screen.app.is_running:
            await asyncio.sleep(0.01)

    assert 0 == on_screen(do, over=lambda: ends).return_code


def test_what_arrives_after_the_end_is_dropped() -> None:
    """The thread that computes it may be late."""

    async def do(screen: Screen) -> None:
        await screen.press("q")

    app = on_screen(do)
    app.show(NAMES)
    app.say("too late")
