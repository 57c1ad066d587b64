# SPDX-License-Identifier: GPL-2.0-only
"""Which addresses a heatmap shows, and what it says about the others: nothing that is hot disappears without a word."""

from __future__ import annotations

import re

import pytest
from attrs import evolve

from kdamon_tools.reporters.areas import choose_areas, line_size, monitored_ranges
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.snapshot import Config, Counters, Range, Recording, Snapshot
from kdamon_tools.views.profile import profile_of

Row = tuple[int, int, float, int, float]
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
CONFIG = Config(pid=42)
LOW = 0x7F00_0000_0000
ARENA = int(3.7 * MIB) // 4096 * 4096


def recording(*rows: Row, times: int = 30) -> Recording:
    """A recording in which the same is seen again and again."""
    snapshots = [Snapshot.of(100 + t / 10, rows) for t in range(1, times + 1)]
    return Recording(CONFIG, snapshots, Counters(), 100.0, 100.0 + times / 10)


def picture(of: Recording, width: int = 80, height: int = 20) -> tuple[dict[int, str], str]:
    """The lines of a heatmap by their addresses, and what it says about what is not drawn."""
    lines = render_heatmap(of, width=width, height=height, show_legend=False).splitlines()
    drawn = {int(line[:16], 16): line[18:] for line in lines if re.match(r" *[0-9a-f]+  ", line[:18])}
    rest = " ".join(line for line in lines[1:-1] if not re.match(r" *[0-9a-f]+  ", line[:18]))
    return drawn, " ".join(rest.replace("...", " ").split())


def chosen(snapshots: list[Snapshot], lines: int = 20) -> list[Range]:
    """The ranges worth showing."""
    profile = profile_of(snapshots, CONFIG)
    return choose_areas(profile, sum(snapshot.merged for snapshot in snapshots), CONFIG, lines)


def arenas(count: int, distance: int = 64 * MIB, size: int = ARENA, gap: float = 0) -> list[Row]:
    """Areas that are always accessed, and between them memory that is accessed ``gap`` times."""
    rows: list[Row] = []
    for start in range(LOW, LOW + count * distance, distance):
        rows += [(start, start + size, 20, 0, 0), (start + size, start + distance, gap, 9, 0)]
    return rows


@pytest.mark.parametrize("gap", [0, 0.3])
@pytest.mark.parametrize("count", [1, 9, 10, 15, 20, 21, 50, 400])
def test_all_hot_areas_are_drawn_as_hot(count: int, gap: float) -> None:
    """Also where there are more of them than lines; and not more lines than asked for."""
    drawn, rest = picture(recording(*arenas(count, gap=gap)))
    assert len(drawn) <= 20
    starts = sorted(drawn)
    for start in range(LOW, LOW + count * 64 * MIB, 64 * MIB):
        line = max(edge for edge in starts if edge <= start)
        assert {"@"} == set(drawn[line]), hex(start)
    assert "hot" not in rest


@pytest.mark.parametrize("count", [15, 20, 30])
def test_all_ranges_that_were_asked_for_are_drawn(count: int) -> None:
    """A line each at least, beginning at their first address."""
    ranges = tuple((start, start + ARENA) for start in range(LOW, LOW + count * 64 * MIB, 64 * MIB))
    of = recording(*((start, end, 20.0, 0, 0.0) for start, end in ranges))
    drawn, rest = picture(evolve(of, config=Config(pid=42, ops="fvaddr", ranges=ranges)))
    assert {start for start, _ in ranges} <= set(drawn)
    assert {"@"} == set("".join(drawn.values()))
    assert "" == rest


@pytest.mark.parametrize("size", [GIB, 100 * TIB])
@pytest.mark.parametrize("asked", [False, True])
def test_a_line_is_as_hot_as_its_hottest_part(size: int, asked: bool) -> None:
    """Half a MiB, or a page, of very much idle memory."""
    hot = LOW // 2 + size // 3 // 4096 * 4096
    rows: list[Row] = [(LOW // 2, hot, 0, 9, 0), (hot, hot + 4096, 20, 9, 0), (hot + 4096, LOW // 2 + size, 0, 9, 0)]
    of = recording(*rows)
    drawn, _ = picture(evolve(of, config=evolve(CONFIG, ranges=((LOW // 2, LOW // 2 + size),) if asked else ())))
    hottest = [line for line in drawn.values() if set(line) == {"@"}]
    assert 1 == len(hottest)
    assert len(drawn) <= 20
    assert {"."} == set("".join(drawn.values())) - {"@"}


def test_what_finds_no_line_is_counted() -> None:
    """Hot areas that are too far apart to share lines: those with most accessed bytes are drawn."""
    sizes = {TIB * n: (n + 1) * 4096 for n in range(1, 100)}
    drawn, rest = picture(recording(*((start, start + size, 20.0, 0, 0.0) for start, size in sizes.items())))
    assert list(sizes)[-20:] == list(drawn)
    left = sum(list(sizes.values())[:-20]) / MIB
    assert f"not drawn: {left:.1f} MiB hot in 79 areas" == rest


def test_hot_comes_before_large() -> None:
    """A page that is always accessed has a line; memory that is accessed now and then is counted if there is none."""
    warm: list[Row] = [(n * TIB, n * TIB + GIB, 4, 0, 0) for n in range(1, 40)]
    hot = (50 * TIB, 50 * TIB + 4096, 20, 0, 0)
    drawn, rest = picture(recording(*warm, hot))
    assert "@" in drawn[50 * TIB]
    assert "not drawn: 20.0 GiB accessed in at most 20%" == rest


def test_what_is_not_drawn_and_unknown_or_warm_is_said() -> None:
    """Each by its size; what was hot for a moment only is part of the account with its hottest time."""
    rows: list[Row] = [(TIB, TIB + 64 * MIB, 20, 0, 0), (2 * TIB, 2 * TIB + MIB, 0.3, 0, 0)]
    snapshots = [Snapshot.of(100 + t / 10, rows) for t in range(100)]
    snapshots[50] = Snapshot.of(105, [*rows, (3 * TIB, 3 * TIB + MIB, 0, 0, 20), (4 * TIB, 4 * TIB + MIB, 20, 0, 0)])
    _, rest = picture(Recording(CONFIG, snapshots, Counters(), 100.0, 110.0))
    assert "not drawn: 1.0 MiB unknown, 2.0 MiB accessed in at most 25%" == rest


def test_hot_for_some_time_is_hot() -> None:
    """A second of a minute, which is a column, is drawn although it is less than two hundredths of the run."""
    busy = (4 * TIB, 4 * TIB + MIB, 20.0, 0, 0.0)
    idle: list[Row] = [busy, (LOW, LOW + GIB, 0, 0, 0)]
    burst: list[Row] = [busy, (LOW, LOW + 512 * MIB, 0, 0, 0), (LOW + 512 * MIB, LOW + 513 * MIB, 20, 0, 0)]
    snapshots = [Snapshot.of(100.1 + t / 10, burst if 300 <= t < 312 else idle) for t in range(700)]
    drawn, rest = picture(Recording(CONFIG, snapshots, Counters(), 100.0, 170.0))
    assert set("+*#%@") & set("".join(line for address, line in drawn.items() if address >= LOW))
    assert rest.endswith("MiB not accessed")


def test_unknown_and_hot_in_the_same_line() -> None:
    """The hot part shows; without one the line is unknown."""
    rows: list[Row] = [(LOW, LOW + 20 * MIB, 0, 0, 20), (LOW + 20 * MIB, LOW + 20 * MIB + 4096, 15, 0, 0)]
    drawn, _ = picture(recording(*rows, (LOW + 21 * MIB, LOW + 22 * MIB, 0, 0, 0), times=3))
    assert {"#"} == set(drawn[max(address for address in drawn if address <= LOW + 20 * MIB)])
    assert {"?"} == set(drawn[LOW])


@pytest.mark.parametrize(("accesses", "unknown", "character"), [(20, 0, "@"), (0, 20, "?"), (0, 0, ".")])
def test_all_memory_alike(accesses: float, unknown: float, character: str) -> None:
    """All hot, all unknown, all idle: thousands of small areas in not more than 20 lines."""
    rows: list[Row] = [(LOW + n * 64 * KIB, LOW + n * 64 * KIB + 4096, accesses, 0, unknown) for n in range(5000)]
    drawn, rest = picture(recording(*rows))
    assert 10 <= len(drawn) <= 20
    assert {character} == set("".join(drawn.values()))
    assert "" == rest


@pytest.mark.parametrize("width", [28, 40, 60, 133])
@pytest.mark.parametrize("times", [1, 2, 150])
def test_narrow_pictures_and_short_runs(width: int, times: int) -> None:
    """No line is wider than asked for, the words about the rest and the legend included."""
    idle = (LOW - 700 * MIB, LOW - 100 * MIB, 0.3, 9, 0)
    far: list[Row] = [(n * TIB, n * TIB + 4096, 20, 0, 0) for n in range(1, 60)]
    for rows in ([idle, *arenas(3)], [*far, idle, *arenas(15)]):
        text = render_heatmap(recording(*rows, times=times), width=width, height=20)
        assert max(map(len, text.splitlines())) <= width
        assert "not" in text
    assert "hot" in text


def test_one_early_glimpse_makes_no_range_worthwhile() -> None:
    """The large regions of a run's first moments must not spoil the zoom."""
    coarse = Snapshot.of(100.1, [(LOW, LOW + 200 * MIB, 10, 0, 0)])
    fine = [(LOW, LOW + 16 * MIB, 20, 0, 0), (LOW + 16 * MIB, LOW + 200 * MIB, 0, 0, 0)]
    snapshots = [coarse] + [Snapshot.of(100.1 + t / 10, fine) for t in range(1, 100)]
    assert [(LOW, LOW + 17 * MIB)] == chosen(snapshots)
    assert [(LOW, LOW + 200 * MIB)] == monitored_ranges(profile_of(snapshots, CONFIG))


def test_what_was_unknown_for_long_is_shown_and_a_short_guess_is_not() -> None:
    """Unknown memory must not pass for idle; one unknown sample of a mapping that came and went says nothing."""
    hot: list[Row] = [(0x10_0000, 0x11_0000, 20, 0, 0)]
    short = [*hot, (0x1000_0000, 0x1001_0000, 0, 0, 20)]
    snapshots = [Snapshot.of(101, short)] + [Snapshot.of(101 + t / 10, hot) for t in range(1, 100)]
    assert [(0x10_0000, 0x11_0000)] == chosen(snapshots)
    snapshots = [Snapshot.of(101 + t / 10, short if t < 20 else hot) for t in range(100)]
    assert [(0x10_0000, 0x11_0000), (0x1000_0000, 0x1001_0000)] == chosen(snapshots)


@pytest.mark.parametrize(
    ("sizes", "lines", "expected"),
    [
        ([4096], 20, 4096),
        ([20 * 4096], 20, 4096),
        ([21 * 4096], 20, 2 * 4096),
        ([100 * MIB], 10, 10 * MIB),
        ([ARENA] * 15, 20, 4 * MIB),
        ([MIB] * 30, 20, MIB),
        ([100 * TIB], 20, 5 * TIB),
    ],
)
def test_lines_are_as_small_as_they_can_be(sizes: list[int], lines: int, expected: int) -> None:
    """With three significant bits, and each range has its own."""
    assert expected == line_size([(n * 200 * TIB, n * 200 * TIB + size) for n, size in enumerate(sizes)], lines)
