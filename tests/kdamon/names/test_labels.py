# SPDX-License-Identifier: GPL-2.0-only
"""Names that programs give: the last one counts, and there is a limit to all of them."""

from __future__ import annotations

import itertools
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from kdamon.names import labels as labels_module
from kdamon.names.labels import MOST_OF_PROCESS, Area, Labels, label_rows
from kdamon.names.mappings import read_names
from kdamon.names.texts import NameList


def areas(labels: Labels, pid: int = 7, birth: int | None = 1) -> list[tuple[int, int, str]]:
    """Start, end and text of each area."""
    return [(area.start, area.end, area.text) for area in labels.of(pid, birth)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20), st.sampled_from(["a", "b", ""])), max_size=12))
def test_the_last_name_counts(given_names: list[tuple[int, int, str]]) -> None:
    """For each byte."""
    labels = Labels()
    expected: dict[int, str] = {}
    for start, size, text in given_names:
        assert labels.name(0, 7, 1, Area(start, start + size, text))
        expected |= dict.fromkeys(range(start, start + size), text)
    found = areas(labels)
    assert {byte: text for byte, text in expected.items() if text} == {
        byte: text for start, end, text in found for byte in range(start, end)
    }
    assert found == sorted(found)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(found))


def test_another_process_with_the_number() -> None:
    """Has none of its names."""
    labels = Labels()
    labels.name(0, 7, 1, Area(0, 10, "a"))
    assert [] == areas(labels, birth=2)
    labels.name(0, 7, 2, Area(20, 30, "b"))
    assert [(20, 30, "b")] == areas(labels, birth=2)
    assert [] == areas(labels, birth=1)


def test_a_process_that_runs_another_program() -> None:
    """Names of before are gone."""
    labels = Labels()
    labels.name(0, 7, 1, Area(0, 10, "before", 1.0))
    labels.name(0, 7, 1, Area(20, 30, "after", 3.0))
    labels.forget(7, 2.0)
    labels.forget(8, 2.0)
    assert [(20, 30, "after")] == areas(labels)


def test_of_a_process() -> None:
    """It has a limit; names can be given back."""
    labels = Labels()
    for at in range(MOST_OF_PROCESS):
        assert labels.name(0, 7, 1, Area(at * 10, at * 10 + 5, "a"))
    assert not labels.name(0, 7, 1, Area(100_000, 100_001, "a"))
    assert labels.name(0, 7, 1, Area(0, 5, ""))
    assert labels.name(0, 7, 1, Area(100_000, 100_001, "a"))


def test_of_a_user() -> None:
    """It names areas of so many processes; others are not affected, and room is used again."""
    labels = Labels()
    with patch.multiple(labels_module, _may=lambda _user: True, birth_of=lambda _pid: 1):
        for pid in range(1, 65):
            assert labels.name(1000, pid, 1, Area(0, 10, "a"))
        assert not labels.name(1000, 65, 1, Area(0, 10, "a"))
        assert labels.name(0, 65, 1, Area(0, 10, "b"))
        assert labels.name(1000, 3, 1, Area(0, 10, ""))
        assert labels.name(1000, 65, 1, Area(0, 10, "a"))
        assert not labels.name(1000, 66, 1, Area(0, 10, "a"))
        assert [False] * 3 == [labels.name(uid, 1, 1, Area(0, 10, "x")) for uid in range(2000, 2065)][-3:]


def test_of_processes_that_ended() -> None:
    """Their room is used again; looking for them is not done for each name."""
    labels, looks = Labels(), []

    def birth_of(pid: int) -> int:
        looks.append(pid)
        if pid == 3:
            raise ProcessLookupError
        return 2 if pid == 4 else 1

    with patch.multiple(labels_module, _may=lambda _user: True, birth_of=birth_of):
        for pid in range(1, 65):
            assert labels.name(1000, pid, 1, Area(0, 10, "a"))
        assert [] == looks
        assert [True, True, False, False] == [labels.name(1000, pid, 1, Area(0, 10, "a")) for pid in range(65, 69)]
        assert 64 == len(looks)
        assert ([], [(0, 10, "a")]) == (areas(labels, 3), areas(labels, 66))


def test_in_a_second() -> None:
    """No user floods kdamon with names."""
    labels = Labels()
    given_names = [labels.name(1000, 7, 1, Area(0, 10, "a")) for _ in range(5000)]
    assert 1024 <= sum(given_names) < 5000
    assert labels.name(1001, 7, 1, Area(0, 10, "a"))


def test_rows_are_of_what_is_mapped() -> None:
    """Names of memory that was unmapped are not shown."""
    maps = b"1000-3000 rw-p 0 00:00 0\n3000-5000 rw-p 0 00:00 0\n8000-9000 rw-p 0 00:00 0\n"
    names = NameList()
    mapped = read_names(lambda size, at: maps[at : at + size], names).rows
    given_names = [
        Area(0, 0x2000, "a"),
        Area(0x2800, 0x3800, "b"),
        Area(0x6000, 0x7000, "c"),
        Area(0x8100, 0x9900, "d"),
    ]
    rows = [(start, end, names.name(name)) for start, end, _, name in label_rows(given_names, mapped, names).tolist()]
    assert [(0x1000, 0x2000, '"a"'), (0x2800, 0x3800, '"b"'), (0x8100, 0x9000, '"d"')] == rows
