# SPDX-License-Identifier: GPL-2.0-only
"""Tables of names: what lies where, what changed, and one table over another, compared with one name for each byte."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.arrays import Records
from kdamon.names import table as table_module
from kdamon.names.table import NAMED_RANGE, NO_OFFSET, NameTable, Part, apply, changes, joined, overlaid

NAMES = ("[heap]", "libfoo.so .data", "data.bin", "[stack]")
LAST = 40


def rows(*ranges: tuple[int, int, str] | tuple[int, int, str, int]) -> Records:
    """Rows of start, end, name, and offset if there is one."""
    return np.array(
        [(start, end, offset[0] if offset else NO_OFFSET, NAMES.index(name)) for start, end, name, *offset in ranges],
        NAMED_RANGE,
    )


def as_bytes(of: Records) -> dict[int, tuple[int, int | None]]:
    """The name and the offset of each byte."""
    return {
        byte: (name, None if offset == NO_OFFSET else offset + byte - start)
        for start, end, offset, name in of.tolist()
        for byte in range(start, end)
    }


@st.composite
def tables(draw: st.DrawFn) -> Records:
    """Disjoint rows in address order."""
    edges = sorted(draw(st.sets(st.integers(0, LAST), max_size=16)))
    found = []
    for start, end in itertools.pairwise(edges):
        name = draw(st.sampled_from([None, 0, 1, 2]))
        if name is not None:
            offset = draw(st.sampled_from([NO_OFFSET, start, 100]))
            found.append((start, end, offset, name))
    return np.array(found, NAMED_RANGE)


@pytest.fixture(autouse=True, params=[2, 1024])
def _pieces(request: pytest.FixtureRequest) -> None:
    """In many pieces, and in one."""
    patched = patch.object(table_module, "AT_ONCE", request.param)
    patched.start()
    request.addfinalizer(patched.stop)


class TestParts:
    TABLE = NameTable(rows((0, 100, "[heap]"), (100, 120, "libfoo.so .data"), (200, 300, "data.bin", 4096)), NAMES)

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (10, 20, "[heap]"),
            (0, 120, "[heap] 83%, libfoo.so .data 17%"),
            (50, 150, "[heap] 50%, libfoo.so .data 20%"),
            (120, 200, ""),
            (300, 400, ""),
            (250, 260, "data.bin+0x1032"),
            (150, 250, "data.bin+0x1000 50%"),
            (99, 299, "data.bin+0x1000 50%, libfoo.so .data 10%"),
            (0, 10_000, "[heap] 1%"),
            (0, 1_000_000, "[heap] <1%"),
        ],
    )
    def test_named(self, start: int, end: int, expected: str) -> None:
        """The largest part first, shares where it is not all, small parts left out."""
        assert [expected] == self.TABLE.named([(start, end)])

    def test_all_parts(self) -> None:
        """With sizes and shares."""
        expected = [Part("[heap]", 100, 0.25), Part("data.bin", 100, 0.25, 4096), Part("libfoo.so .data", 20, 0.05)]
        assert expected == self.TABLE.parts(0, 400)
        assert expected[:1] == self.TABLE.parts(0, 400, most=1)

    def test_regions_of_a_snapshot(self) -> None:
        """Rows with other fields beside start and end."""
        regions = np.array([(0, 50, 3), (100, 300, 4)], [("start", "<u8"), ("end", "<u8"), ("age", "<u4")])
        assert ["[heap]", "data.bin"] == self.TABLE.main(regions)

    def test_nothing(self) -> None:
        """No ranges; no rows."""
        assert [] == self.TABLE.named(np.empty((0, 2)))
        assert ["", ""] == NameTable().named([(0, 1), (1, 1 << 64 - 1)])

    def test_the_last_addresses(self) -> None:
        """Nothing wraps around."""
        top = (1 << 64) - 4096
        of = NameTable(rows((top, (1 << 64) - 1, "[stack]")), NAMES)
        assert ["[stack]"] == of.named([(top, (1 << 64) - 1)])

    @given(of=tables(), ranges=st.lists(st.tuples(st.integers(0, LAST), st.integers(1, LAST)), max_size=8))
    def test_sums(self, of: Records, ranges: list[tuple[int, int]]) -> None:
        """Sizes are those of the bytes."""
        of_byte = as_bytes(of)
        for parts, (start, size) in zip(
            NameTable(of, NAMES).parts_of([(start, start + size) for start, size in ranges], 9), ranges, strict=True
        ):
            there = [of_byte[byte] for byte in range(start, start + size) if byte in of_byte]
            names = [name for name, _ in there]
            assert {NAMES[name]: names.count(name) for name in names} == {part.name: part.size for part in parts}
            assert [part.size for part in parts] == sorted((part.size for part in parts), reverse=True)
            for part in parts:
                first = next(offset for name, offset in there if NAMES[name] == part.name)
                assert (first, part.size / size) == (part.offset, part.share)


@given(below=tables(), above=tables())
def test_overlaid(below: Records, above: Records) -> None:
    """Each byte has the upper name if there is one; rows stay disjoint and in order."""
    found = overlaid(below, above)
    assert as_bytes(below) | as_bytes(above) == as_bytes(found)
    assert (found["start"] < found["end"]).all()
    assert (found["start"][1:] >= found["end"][:-1]).all()


@given(of=tables())
def test_joined(of: Records) -> None:
    """The same bytes, and as few rows as possible."""
    found = joined(of)
    assert as_bytes(of) == as_bytes(found)
    runs = 0
    before: tuple[int, int, int | None] | None = None
    for byte, (name, offset) in sorted(as_bytes(of).items()):
        goes_on = before is not None and before[0] + 1 == byte and before[1] == name
        goes_on = goes_on and (offset is None) == (before[2] is None)  # type: ignore[index]
        goes_on = goes_on and (offset is None or before[2] + 1 == offset)  # type: ignore[index, operator]
        runs += not goes_on
        before = byte, name, offset
    assert runs == len(found)


@given(older=st.none() | tables(), newer=tables())
def test_changes_restore_the_newer_table(older: Records | None, newer: Records) -> None:
    """And hold nothing that both have."""
    before = None if older is None else NameTable(older, NAMES[:3], 1.0)
    after = NameTable(newer, NAMES, 2.0)
    changed = changes(before, after)
    restored = apply(before, changed)
    assert (after.rows.tolist(), NAMES, 2.0) == (restored.rows.tolist(), restored.names, restored.time)
    old = set() if older is None else set(older.tolist())
    assert old - set(newer.tolist()) == set(changed.gone.tolist())
    assert set(newer.tolist()) - old == set(changed.new.tolist())
    assert bool(old ^ set(newer.tolist())) == bool(changed)


def test_changes_of_another_table_are_refused() -> None:
    """Rather than mixed."""
    changed = changes(NameTable(rows((0, 1, "[heap]")), NAMES), NameTable(rows((1, 2, "[heap]")), NAMES))
    with pytest.raises(ValueError, match="another table"):
        apply(NameTable(rows((5, 6, "[heap]")), NAMES), changed)
    with pytest.raises(ValueError, match="another table"):
        apply(None, changed)
