# SPDX-License-Identifier: GPL-2.0-only
"""Columns of numbers as compressed bytes, and tables of snapshots as such columns.

A column is stored in the smallest type that holds its values, the first bytes of all values before the second ones, and
so on, compressed by zlib: addresses and counters that differ little become a quarter as long as when they are
compressed as they are.
"""

from __future__ import annotations

import errno
import zlib
from typing import Any, Final

import numpy as np

from kdamon.arrays import Records

__all__ = [
    "MOST_BYTES",
    "MOST_ROWS",
    "Corrupt",
    "pack",
    "pack_bytes",
    "pack_regions",
    "unpack",
    "unpack_bytes",
    "unpack_regions",
]

#: Rows of a column, and bytes of anything that is compressed, at most: a file of another user may promise any number.
MOST_ROWS: Final = 1 << 22
MOST_BYTES: Final = MOST_ROWS * 8
_LEVEL: Final = 6
#: Types by the name that the file has.
_TYPES: Final = {name: np.dtype(f"<{name}") for name in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8")}
_UNSIGNED: Final = ("u1", "u2", "u4", "u8")
_SIGNED: Final = ("i1", "i2", "i4", "i8")
#: The largest number up to which a float of 32 bits holds every integer.
_EXACT: Final = 1 << 24


class Corrupt(OSError):
    """A record that cannot be read further: EBADMSG and a sentence."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EBADMSG, f"the record is damaged: {what}")


def pack_bytes(data: bytes) -> bytes:
    """``data`` compressed."""
    return zlib.compress(data, _LEVEL)


def unpack_bytes(data: bytes, size: int | None = None) -> bytes:
    """The reverse of :func:`pack_bytes`.

    :param size: bytes that there have to be; None: any number up to :data:`MOST_BYTES`.
    :raises Corrupt: it is something else, or too much.
    """
    limit = MOST_BYTES if size is None else size
    stream = zlib.decompressobj()
    try:
        # One byte more shows that there is more.
        found = stream.decompress(data, min(limit, MOST_BYTES) + 1)
    except zlib.error as error:
        raise Corrupt("compressed data cannot be read") from error
    if len(found) > limit or not stream.eof or (size is not None and len(found) != size):
        raise Corrupt("compressed data has another size than it should have")
    return found


def pack(values: np.ndarray[Any, Any]) -> tuple[str, bytes]:
    """A column as its type and its bytes.

    :param values: integers or floats, shape (n,).
    """
    values = _smallest(values)
    name = values.dtype.str[1:]
    octets = np.ascontiguousarray(values, _TYPES[name]).view(np.uint8).reshape(len(values), _TYPES[name].itemsize)
    return name, pack_bytes(octets.T.tobytes())


def unpack(type_name: str, rows: int, data: bytes) -> np.ndarray[Any, Any]:
    """The reverse of :func:`pack`, shape (rows,).

    :raises Corrupt: it is no such column.
    """
    found = _TYPES.get(type_name)
    if found is None or not 0 <= rows <= MOST_ROWS:
        raise Corrupt("a column has an unknown type or an impossible number of rows")
    octets = np.frombuffer(unpack_bytes(data, rows * found.itemsize), np.uint8)
    return np.ascontiguousarray(octets.reshape(found.itemsize, rows).T).view(found).reshape(rows)


def _smallest(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``values`` in the smallest type that holds them."""
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(np.uint8)
    if not len(values):
        return values.astype("u1")
    if kind == "f":
        # Counters are fractions only where snapshots were merged. -0.0 and NaN stay floats.
        whole = (values >= 0) & (values < _EXACT) & (values == np.trunc(values)) & ~np.signbit(values)
        if not whole.all():
            return values
        values = values.astype(np.uint32)
    low, high = int(values.min()), int(values.max())
    for name in _UNSIGNED if low >= 0 else _SIGNED:
        bounds = np.iinfo(_TYPES[name])
        if bounds.min <= low and high <= bounds.max:
            return values.astype(_TYPES[name])
    return values


def pack_regions(table: Records, counts: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The columns of ``table``; instead of start and end, the gap to the row before, and the size.

    Most regions touch, so that their gap is 0.

    :param table: rows with ``start`` and ``end``, of several snapshots one after the other.
    :param counts: how many rows each snapshot has; the first row of each has its start as the gap.
    """
    gaps = table["start"].copy()
    gaps[1:] -= table["end"][:-1]
    first = (np.cumsum(counts) - counts)[counts > 0]
    gaps[first] = table["start"][first]
    rest = {name: table[name] for name in table.dtype.names or () if name not in {"start", "end"}}
    return {"gap": gaps, "size": table["end"] - table["start"], **rest}


def unpack_regions(
    columns: dict[str, np.ndarray[Any, Any]], counts: np.ndarray[Any, Any], form: np.dtype[Any]
) -> Records:
    """The reverse of :func:`pack_regions`, rows of ``form``; fields without a column are 0.

    :raises Corrupt: columns are missing, or of different length.
    """
    total = int(counts.sum())
    if (
        total > MOST_ROWS
        or (counts < 0).any()
        or any(len(column) != total for column in columns.values())
        or not {"gap", "size"} <= columns.keys()
    ):
        raise Corrupt("the columns of a chunk do not fit together")
    table = np.zeros(total, form)
    # As in the kernel, addresses wrap.
    sizes = columns["size"].astype(np.uint64)
    ends = np.cumsum(columns["gap"].astype(np.uint64) + sizes, dtype=np.uint64)
    before = np.concatenate([np.zeros(1, np.uint64), ends])[np.cumsum(counts) - counts]
    ends -= np.repeat(before, counts)
    table["start"], table["end"] = ends - sizes, ends
    for name in form.names or ():
        if name in columns and name not in {"start", "end"}:
            table[name] = columns[name]
    return table
