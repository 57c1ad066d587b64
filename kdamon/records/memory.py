# SPDX-License-Identifier: GPL-2.0-only
"""What a record holds of a process's memory besides regions: how much is in use, looks at pages, what is in memory.

docs/record.md describes the tables ``resident``, ``windows``, ``looks`` and ``residency``, which older records have
not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs
import numpy as np

from kdamon.arrays import Records, U8Array
from kdamon.kernel import PAGE_SHIFT
from kdamon.mm import RESIDENT, Resident
from kdamon.monitoring.residency import NO_RESIDENCY, RESIDENT_BYTES, Residency
from kdamon.monitoring.snapshot import Snapshot
from kdamon.monitoring.use import ABSENT, FILE, LOOK, MemoryUse, WindowUse
from kdamon.records.columns import MOST_BYTES, MOST_ROWS, Corrupt, pack_bytes, unpack_bytes

__all__ = [
    "INSERT",
    "MemoryOverTime",
    "ResidencyChanges",
    "last_use",
    "look_rows",
    "looks_of",
    "residencies_of",
    "residency_rows",
    "use_rows",
    "uses_of",
]

#: Rows of :data:`RESIDENT` in a row of the table ``residency`` at most.
_AT_ONCE: Final = 1 << 16
_WINDOW: Final = tuple(field.name for field in attrs.fields(WindowUse))
#: Rows that are read at once.
_PAGE: Final = 256
#: Changes of what is in memory after which all of it is written again, so that readers need not begin at the first.
_WHOLE: Final = 256
#: Sentences that insert rows, by table.
INSERT: Final = {
    "resident": "INSERT OR REPLACE INTO resident VALUES (?, ?, ?, ?)",
    "windows": f"INSERT OR REPLACE INTO windows VALUES (?, {', '.join('?' * len(_WINDOW))})",
    "looks": "INSERT INTO looks (began, seconds, bytes, pages, data) VALUES (?, ?, ?, ?, ?)",
    "residency": "INSERT INTO residency (time, gone, new) VALUES (?, ?, ?)",
}
#: Rows of a query: a function of its text and its values.
_Query = Callable[..., list[tuple[Any, ...]]]
_Rows = Iterator[tuple[str, tuple[Any, ...]]]


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _octets(values: np.ndarray[Any, Any]) -> bytes:
    """Numbers of 8 bytes, the lowest bytes of all of them first, as in columns."""
    return np.ascontiguousarray(values, "<u8").view(np.uint8).reshape(-1, 8).T.tobytes()


def _numbers(octets: bytes) -> np.ndarray[Any, Any]:
    """The reverse of :func:`_octets`."""
    if len(octets) % 8:
        raise Corrupt("a table has a part of a row")
    return np.frombuffer(octets, np.uint8).reshape(8, -1).T.copy().view("<u8").reshape(-1)


# How much memory is in use.


def use_rows(use: MemoryUse) -> _Rows:
    """Tables and rows for an estimate."""
    time = _ns(use.time)
    resident = (None, None, None) if use.resident is None else attrs.astuple(use.resident)
    yield "resident", (time, *resident)
    for window in use.windows:
        yield "windows", (time, *attrs.astuple(window))


def uses_of(query: _Query, low: int, high: int) -> Iterator[MemoryUse]:
    """The estimates from ``low`` on and before ``high``, nanoseconds, oldest first."""
    names = ", ".join(_WINDOW)
    while True:
        rows = query(
            "SELECT time, anon, file, swapped FROM resident WHERE time >= ? AND time < ? ORDER BY time LIMIT ?",
            *(low, high, _PAGE),
        )
        if not rows:
            return
        windows: dict[int, list[WindowUse]] = {}
        between = f"SELECT time, {names} FROM windows WHERE time >= ? AND time <= ? ORDER BY time, seconds"
        for time, seconds, *sizes in query(between, rows[0][0], rows[-1][0]):
            windows.setdefault(time, []).append(WindowUse(float(seconds), *map(_size, sizes)))
        for time, *sizes in rows:
            resident = None if None in sizes else Resident(*map(_size, sizes))
            yield MemoryUse(time / 1e9, resident, tuple(windows.get(time, ())))
        low = rows[-1][0] + 1


def last_use(query: _Query, time: int) -> int:
    """When the last estimate until ``time`` was made, nanoseconds; ``time`` without any."""
    found = query("SELECT max(time) FROM resident WHERE time <= ?", time)[0][0]
    return time if found is None else int(found)


def _size(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise Corrupt("a size is none")
    return value


# Looks at pages.


def look_rows(looks: Records) -> _Rows:
    """Table and row for the looks of one cohort and window, rows of :data:`kdamon.LOOK`."""
    if not len(looks):
        return
    looks = looks[np.argsort(looks["addr"], kind="stable")]
    pages = looks["addr"] >> np.uint64(PAGE_SHIFT)
    answers = looks["state"] | looks["kind"] << np.uint8(4)
    data = _octets(np.diff(pages, prepend=np.uint64(0))) + answers.tobytes()
    total = round(float(looks["weight"].sum(dtype=np.float64)))
    yield (
        "looks",
        (_ns(float(looks["began"][0])), float(looks["window"][0]), total, len(looks), pack_bytes(data)),
    )


def looks_of(query: _Query, low: int, high: int) -> Iterator[Records]:
    """The looks whose windows ended from ``low`` on and before ``high``, nanoseconds: an array for each row."""
    last, end = 0, "began + seconds * 1e9"
    while True:
        rows = query(
            "SELECT id, began, seconds, bytes, pages, data FROM looks "
            f"WHERE id > ? AND {end} >= ? AND {end} < ? ORDER BY id LIMIT ?",
            *(last, low, high, _PAGE),
        )
        if not rows:
            return
        for _, *row in rows:
            yield _looks(*row)
        last = rows[-1][0]


def _looks(began: int, seconds: float, total: int, number: int, data: bytes) -> Records:
    if not isinstance(number, int) or not 0 < number <= MOST_ROWS:
        raise Corrupt("there are too many looks at pages")
    octets = unpack_bytes(data, 9 * number)
    answers: U8Array = np.frombuffer(octets[8 * number :], np.uint8)
    looks = np.zeros(number, LOOK)
    looks["addr"] = np.cumsum(_numbers(octets[: 8 * number]), dtype=np.uint64) << np.uint64(PAGE_SHIFT)
    looks["state"], looks["kind"] = answers & np.uint8(15), answers >> np.uint8(4)
    if (looks["state"] > ABSENT).any() or (looks["kind"] > FILE).any():
        raise Corrupt("a look at a page has an unknown answer")
    looks["weight"], looks["began"], looks["window"] = _size(total) / number, began / 1e9, float(seconds)
    return looks


# What is in memory.


def residency_rows(before: Residency | None, now: Residency) -> _Rows:
    """Tables and rows for how what is in memory changed.

    :param before: None: all of it is written.
    """
    gone, came = NO_RESIDENCY, now.rows
    if before is not None:
        same_old, same_new = _in_both(before.rows, now.rows)
        gone, came = before.rows[~same_old], now.rows[~same_new]
        if not len(gone) and not len(came):
            return
    for first in range(0, max(len(gone), len(came), 1), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        starts = pack_bytes(_octets(np.diff(gone["start"][part], prepend=np.uint64(0))))
        whole = before is None and not first
        yield "residency", (_ns(now.time), None if whole else starts, pack_bytes(_packed(came[part])))


def _in_both(old: Records, new: Records) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Which rows of each table the other one has, too; the starts of a table are all different."""
    same_old, same_new = np.zeros(len(old), np.bool_), np.zeros(len(new), np.bool_)
    _, at_old, at_new = np.intersect1d(old["start"], new["start"], assume_unique=True, return_indices=True)
    alike = old[at_old] == new[at_new]
    same_old[at_old[alike]] = True
    same_new[at_new[alike]] = True
    return same_old, same_new


def _packed(rows: Records) -> bytes:
    gaps = np.diff(rows["start"], prepend=np.uint64(0))
    return b"".join(map(_octets, (gaps, rows["end"] - rows["start"], *(rows[name] for name in RESIDENT_BYTES))))


def _unpacked(data: bytes) -> Records:
    octets = unpack_bytes(data)
    width = len(RESIDENT.names or ())
    number, rest = divmod(len(octets), 8 * width)
    if rest:
        raise Corrupt("a table has a part of a row")
    step = 8 * number
    columns = [_numbers(octets[at * step : (at + 1) * step]) for at in range(width)]
    rows = np.zeros(number, RESIDENT)
    rows["start"] = np.cumsum(columns[0], dtype=np.uint64)
    rows["end"] = rows["start"] + columns[1]
    for name, column in zip(RESIDENT_BYTES, columns[2:], strict=True):
        rows[name] = column
    return rows


def residencies_of(query: _Query, since: int) -> Iterator[Residency]:
    """What was in memory after each change, oldest first, from the last one that is whole and not after ``since``."""
    first = query("SELECT max(id) FROM residency WHERE gone IS NULL AND time <= ?", since)[0][0]
    rows, time, last = NO_RESIDENCY, None, 0 if first is None else first - 1
    while found := query("SELECT id, time, gone, new FROM residency WHERE id > ? ORDER BY id LIMIT 1", last):
        last, at, gone, new = found[0]
        if time is not None and at != time:
            yield _checked(time / 1e9, rows)
        time = at
        if gone is None:
            rows = NO_RESIDENCY
        else:
            starts = np.cumsum(_numbers(unpack_bytes(gone)), dtype=np.uint64)
            rows = rows[~np.isin(rows["start"], starts)]
        rows = np.concatenate([rows, _unpacked(new)])
        rows = rows[np.argsort(rows["start"], kind="stable")]
        if rows.nbytes > 4 * MOST_BYTES:
            raise Corrupt("there is too much memory")
    if time is not None:
        yield _checked(time / 1e9, rows)


class ResidencyChanges:
    """Makes rows of each state of what is in memory; now and then all of it."""

    def __init__(self) -> None:
        self._before: Residency | None = None
        self._changes = 0

    def rows(self, now: Residency) -> _Rows:
        """Tables and rows for ``now``."""
        before = self._before if self._changes % _WHOLE else None
        found = list(residency_rows(self._before, now))
        if found or self._before is None:
            yield from residency_rows(None, now) if before is None else iter(found)
            self._changes += 1
        self._before = now


def _checked(time: float, rows: Records) -> Residency:
    sizes = rows["end"] - rows["start"]
    if (rows["end"] <= rows["start"]).any() or (rows["end"][:-1] > rows["start"][1:]).any():
        raise Corrupt("what is in memory overlaps")
    if any((rows[name] > sizes).any() for name in RESIDENT_BYTES):
        raise Corrupt("more is in memory than there is room for")
    return Residency(time, rows)


class MemoryOverTime:
    """How much memory was in use, and what was in memory, at times that ascend."""

    def __init__(self, uses: Iterator[MemoryUse], residencies: Iterator[Residency]) -> None:
        self._uses = uses
        self._residencies = residencies
        self._use: MemoryUse | None = None
        self._residency: Residency | None = None
        self._next_use, self._next_residency = next(self._uses, None), next(residencies, None)

    def added(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot with what was known when it was taken."""
        while self._next_use is not None and self._next_use.time <= snapshot.time:
            self._use, self._next_use = self._next_use, next(self._uses, None)
        while self._next_residency is not None and self._next_residency.time <= snapshot.time:
            self._residency, self._next_residency = self._next_residency, next(self._residencies, None)
        if self._use is None and self._residency is None:
            return snapshot
        return attrs.evolve(snapshot, use=self._use, residency=self._residency)
