# SPDX-License-Identifier: GPL-2.0-only
"""Tables and heading of ``kdamon top``: what they say, and that they fit."""

from __future__ import annotations

import pytest

from kdamon_tools.top.tables import (
    MOST_ROWS,
    ORDERS,
    Heading,
    Process,
    Sizes,
    arranged,
    fitted,
    names_table,
    processes_table,
    sizes_of,
)
from kdamon_tools.views.actors import actors_view
from kdamon_tools.views.table import Table
from tests.support.views import HOSTILE, MIB, name_table, recording, stairs

HEAP, LIBRARY = 1 << 40, 1 << 41


def some(seconds: float = 12.0) -> Table:
    """Of a heap of 4 MiB, of which 1 is hot and 2 are idle, and an unknown library."""
    age = int(seconds * 10)
    rows = [
        (HEAP, HEAP + MIB, 20.0, age, 0.0),
        (HEAP + MIB, HEAP + 2 * MIB, 1.0, age, 0.0),
        (HEAP + 2 * MIB, HEAP + 4 * MIB, 0.0, age, 0.0),
        (LIBRARY, LIBRARY + MIB, 0.0, age, 20.0),
    ]
    names = name_table((HEAP, HEAP + 4 * MIB, "[heap]"), (LIBRARY, LIBRARY + MIB, "libc.so.6 .text"))
    return names_table(recording([rows] * age, names))


def test_a_row_has_the_sizes_of_a_name() -> None:
    """Size, hot, working set, idle, unknown."""
    assert (
        (4 * MIB, MIB, 2 * MIB, 2 * MIB, 0, "[heap]"),
        (MIB, 0, 0, 0, MIB, "libc.so.6 .text"),
    ) == some().rows


def test_idle_memory_is_not_known_at_first() -> None:
    """None is idle for 10 s after 2 s, and none is said to be in use."""
    assert [None, None] == [row[3] for row in some(2.0).rows]
    assert "-" == fitted(some(2.0), "hot_bytes", 79).rows[0][2].strip()


def test_the_sizes_of_a_process_are_the_sums_of_its_names() -> None:
    """With the same words."""
    of = stairs(30)
    table = names_table(of)
    hot, working_set, idle, unknown = (sum(row[place] for row in table.rows) for place in (1, 2, 3, 4))
    sizes = sizes_of(of)
    assert (hot, working_set, idle, unknown) == (sizes.hot, sizes.working_set, sizes.idle, sizes.unknown)


def test_rows_are_sorted_and_filtered() -> None:
    """By any column; the text is looked for in any case; unknown is least."""
    table = some()
    assert ["[heap]", "libc.so.6 .text"] == [row[-1] for row in arranged(table, "hot_bytes").rows]
    assert ["libc.so.6 .text", "[heap]"] == [row[-1] for row in arranged(table, "unknown_bytes").rows]
    assert ["libc.so.6 .text"] == [row[-1] for row in arranged(table, "hot_bytes", "LIBC").rows]
    assert () == arranged(table, "hot_bytes", "none").rows
    rows = processes_table([Process(1, "a"), Process(2, "b", Sizes(hot=1)), Process(3, "c", Sizes(hot=2))])
    assert [3, 2, 1] == [row[0] for row in arranged(rows, "hot_bytes").rows]
    assert [2] == [row[0] for row in arranged(rows, "hot_bytes", "2").rows]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 250])
def test_a_table_fits(width: int) -> None:
    """Numbers are whole, names lose their middle, and the column to sort by is there."""
    for order in ORDERS["names"]:
        shown = fitted(arranged(names_table(stairs(30)), order), order, width)
        assert sum(shown.widths) + 2 * len(shown.widths) <= width
        for row in shown.rows:
            assert all(len(cell) <= size for cell, size in zip(row, shown.widths, strict=True))
            assert not any("…" in cell for cell in row[:-1])
        assert shown.sorted_by is not None
        assert all("\x1b" not in cell and "\n" not in cell for row in shown.rows for cell in row)


def test_a_narrow_terminal_has_fewer_columns() -> None:
    """The size goes first, then what is unknown."""
    titles = {width: [title.strip() for title in fitted(some(), "hot_bytes", width).titles] for width in (59, 79, 109)}
    assert ["hot", "accessed", "idle 10 s", "name"] == titles[59]
    assert ["hot", "accessed", "idle 10 s", "unknown", "name"] == titles[79]
    assert ["size", "hot", "accessed", "idle 10 s", "unknown", "name"] == titles[109]


def test_a_row_keeps_its_key() -> None:
    """Its name, with the process, thread or CPU before it."""
    assert ["[heap]", "libc.so.6 .text"] == fitted(some(), "hot_bytes", 80).keys
    assert ["7\0server"] == fitted(processes_table([Process(7, "server", Sizes())]), "hot_bytes", 80).keys
    assert [] == fitted(actors_view("threads", stairs()).tables[0], "reports", 80).keys


def test_there_is_an_end_of_rows() -> None:
    """A line counts the others."""
    table = processes_table([Process(pid, "x", Sizes()) for pid in range(1, MOST_ROWS + 4)])
    shown = fitted(table, "hot_bytes", 80)
    assert (MOST_ROWS, "and 3 more processes") == (len(shown.rows), shown.more)


def test_the_heading() -> None:
    """What is monitored, memory, and how monitoring goes."""
    sizes = Sizes(346 * MIB, 20 * MIB, 22 * MIB, None, 10 * MIB)
    heading = Heading("process 1234 (python3)", "reads and writes", 12, ("paused",), sizes, 230 * MIB, 3, 2000, 0.029)
    assert [
        "kdamon: process 1234 (python3), reads and writes, 12 s, paused",
        "accessed 22.0 MiB of 346.0 MiB, in memory 230.0 MiB, unknown 3%",
        "missed 0.1% of intervals, kdamond 2.9% of a CPU",
    ] == heading.lines(80)
    assert [
        "kdamon: process 1234 (python3), reads and writes, 12 s",
        "paused",
        "accessed 22.0 MiB of 346.0 MiB, in memory 230.0 MiB",
        "unknown 3%, missed 0.1% of intervals, kdamond 2.9% of a CPU",
    ] == heading.lines(60)


def test_a_few_missed_intervals_are_not_none() -> None:
    """One of a million."""
    assert "missed <0.1% of intervals" in Heading("x", sizes=Sizes(), missed=1, intervals=1_000_000).lines(200)[-1]
    assert "missed 0.0% of intervals" in Heading("x", sizes=Sizes(), intervals=9).lines(200)[-1]


@pytest.mark.parametrize("width", [30, 60, 80])
def test_a_hostile_heading_fits(width: int) -> None:
    """Whatever a process is called."""
    lines = Heading(f"process 1 ({HOSTILE * 9})", "writes", 1, (HOSTILE * 9,), Sizes(MIB)).lines(width)
    assert all(len(line) <= width for line in lines)
    assert "\x1b" not in "".join(lines)
