# SPDX-License-Identifier: GPL-2.0-only
"""Columns of numbers as compressed bytes."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kdamon.monitoring.snapshot import REGION
from kdamon.records import columns
from kdamon.records.columns import Corrupt, pack, pack_bytes, pack_regions, unpack, unpack_bytes, unpack_regions

TYPES = [np.dtype(name) for name in ("u1", "u2", "<u4", "<u8", "i1", "<i4", "<i8", "<f4", "<f8", "?")]


@given(st.sampled_from(TYPES).flatmap(lambda kind: arrays.arrays(kind, st.integers(0, 50))))
def test_every_column_comes_back(values: np.ndarray[Any, Any]) -> None:
    """With its values, whatever type they are stored as; a float keeps its bits."""
    kind, data = pack(values)
    found = unpack(kind, len(values), data).astype(values.dtype)
    assert values.tobytes() == found.tobytes() or np.array_equal(values, found, equal_nan=values.dtype.kind == "f")
    if values.dtype.kind == "f":
        assert np.array_equal(np.signbit(values), np.signbit(found))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 255], "u1"),
        ([0, 256], "u2"),
        ([0, 1 << 32], "u8"),
        ([-1, 127], "i1"),
        ([-129, 0], "i2"),
        ([0.0, 20.0], "u1"),
        ([0.5, 20.0], "f8"),
        ([0.0, np.nan], "f8"),
    ],
)
def test_a_column_takes_the_smallest_type(values: list[float], kind: str) -> None:
    """That holds its values; fractions stay floats."""
    assert kind == pack(np.array(values))[0]


@given(st.data())
def test_regions_come_back(data: st.DataObject) -> None:
    """Those of several snapshots, also without any, up to the last address."""
    counts = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    tables = []
    for count in counts:
        edges = sorted(data.draw(st.sets(st.integers(0, (1 << 64) - 1), min_size=2 * count, max_size=2 * count)))
        table = np.zeros(count, REGION)
        table["start"], table["end"] = np.array(edges[0::2], np.uint64), np.array(edges[1::2], np.uint64)
        table["age"] = data.draw(st.integers(0, (1 << 32) - 1))
        table["nr_accesses"] = data.draw(st.floats(0, 1e6, width=32))
        tables.append(table)
    table = np.concatenate(tables)
    packed = {name: pack(column) for name, column in pack_regions(table, np.array(counts)).items()}
    found = {name: unpack(kind, len(table), octets) for name, (kind, octets) in packed.items()}
    assert np.array_equal(table, unpack_regions(found, np.array(counts), REGION))


@pytest.mark.parametrize(
    ("kind", "rows", "data"),
    [
        ("u8", 2, pack_bytes(bytes(15))),
        ("u8", 2, pack_bytes(bytes(17))),
        ("u8", -1, pack_bytes(b"")),
        ("u8", 1 << 62, pack_bytes(b"")),
        ("O", 1, pack_bytes(bytes(8))),
        ("V8", 1, pack_bytes(bytes(8))),
        ("u1", 1, b"no zlib"),
        ("u1", 1, b""),
        ("u8", 2, pack_bytes(bytes(16))[:-2]),
    ],
)
def test_a_damaged_column_is_refused(kind: str, rows: int, data: bytes) -> None:
    """Sizes that do not fit, types that are no numbers, and data that is cut."""
    with pytest.raises(Corrupt):
        unpack(kind, rows, data)


def test_compressed_data_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is decompressed than is allowed."""
    monkeypatch.setattr(columns, "MOST_BYTES", 1000)
    assert bytes(1000) == unpack_bytes(zlib.compress(bytes(1000)))
    with pytest.raises(Corrupt, match="another size"):
        unpack_bytes(zlib.compress(bytes(1 << 24)))


def test_columns_of_different_length_are_refused() -> None:
    """Or those that a table needs."""
    counts = np.array([2])
    for found in ({"gap": np.zeros(2)}, {"gap": np.zeros(2), "size": np.zeros(3)}, {}):
        with pytest.raises(Corrupt):
            unpack_regions(found, counts, REGION)
    with pytest.raises(Corrupt):
        unpack_regions({"gap": np.zeros(2), "size": np.zeros(2)}, np.array([-1, 3]), REGION)
