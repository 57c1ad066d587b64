# SPDX-License-Identifier: GPL-2.0-only
"""Named ranges of an address space as plain values, and what changed between two of them.

A recorder stores :func:`changes` of each table since the one before, and :func:`apply` restores the tables from them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from attrs import frozen

from kdamon.arrays import I64Array, Indexes, Mask, Records, U64Array, distinct

__all__ = [
    "NAMED_RANGE",
    "NO_OFFSET",
    "NameChanges",
    "NameTable",
    "Part",
    "apply",
    "changes",
    "describe",
    "joined",
    "overlaid",
]

#: One named range: bytes, end exclusive; the place of ``start`` in its file, bytes; the number of its name.
NAMED_RANGE: Final = np.dtype([("start", "<u8"), ("end", "<u8"), ("offset", "<u8"), ("name", "<i4")])
#: The offset of a range that is named without one.
NO_OFFSET: Final = (1 << 64) - 1

#: Rows that one numpy call takes at most: no other thread of this process runs during a call.
AT_ONCE: Final = 512
#: Parts that :meth:`NameTable.named` gives of a range, and the smallest share of each but the first.
_MOST_PARTS: Final = 3
_LEAST_SHARE: Final = 0.05
#: A name that covers less than this of a range has its share beside it.
_WHOLE: Final = 0.995
_LITTLE: Final = 0.005
_NO_ROWS: Final = np.empty(0, NAMED_RANGE)


@frozen
class Part:
    """A part of a range.

    :ivar name: what lies there, as the process wrote it: escape it before it is shown.
    :ivar size: bytes of the range that have this name.
    :ivar share: of the range, 0 to 1.
    :ivar offset: the first of them in its file, bytes; None without one.
    """

    name: str
    size: int
    share: float
    offset: int | None = None

    @property
    def percent(self) -> str:
        """The share as a text after a name, empty for all of the range."""
        if self.share >= _WHOLE:
            return ""
        return f" {self.share:.0%}" if self.share >= _LITTLE else " <1%"

    def __str__(self) -> str:
        return self.name if self.offset is None else f"{self.name}+{self.offset:#x}"


@frozen(eq=False)
class NameTable:
    """The names of an address space at one time.

    :ivar rows: of :data:`NAMED_RANGE`, in address order and disjoint, shape (n,). Touching rows differ.
    :ivar names: ``rows["name"]`` are places in it. Tables of one process share their names: later ones have more, and a
        place keeps its name.
    :ivar time: CLOCK_MONOTONIC seconds when it was read.
    """

    rows: Records = _NO_ROWS
    names: tuple[str, ...] = ()
    time: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, start: int, end: int, most: int = _MOST_PARTS) -> list[Part]:
        """What lies between two addresses, the largest part first.

        :param start: bytes.
        :param end: bytes, exclusive; above ``start``.
        :param most: how many parts to return at most, at least 1.
        :returns: none where nothing has a name. The shares of a range with gaps add up to less than 1.
        """
        return self.parts_of([(start, end)], most)[0]

    def named(self, ranges: Any) -> list[str]:
        """What lies in each of some ranges, as one text: ``[heap]``, or ``libc.so.6 .data 80%, [heap] 17%``.

        :param ranges: start and end (exclusive), bytes, shape (n, 2); or rows with the fields ``start`` and ``end``,
            as of a snapshot's regions.
        :returns: a text for each, empty where nothing has a name; names as the process wrote them.
        """
        return [describe(parts) for parts in self.parts_of(ranges)]

    def main(self, ranges: Any) -> list[str]:
        """The name of the largest part of each of ``ranges``, as of :meth:`named`, without share and offset."""
        return [parts[0].name if parts else "" for parts in self.parts_of(ranges, 1)]

    def parts_of(self, ranges: Any, most: int = _MOST_PARTS) -> list[list[Part]]:
        """What lies in each of some ranges, see :meth:`parts`.

        :param ranges: as of :meth:`named`.
        :param most: how many parts of each to return at most, at least 1.
        """
        bounds = _bounds(ranges)
        found: list[list[Part]] = [[] for _ in bounds]
        if not len(self.rows):
            return found
        first = np.searchsorted(self.rows["end"], bounds[:, 0], side="right")
        stop = np.maximum(np.searchsorted(self.rows["start"], bounds[:, 1], side="left"), first)
        # Ranges that have AT_ONCE rows together, or one that has more.
        before = np.cumsum(np.append(0, stop - first))
        at = 0
        while at < len(bounds):
            end = max(at + 1, int(np.searchsorted(before, before[at] + AT_ONCE, side="right")) - 1)
            sums = self._sums(bounds[at:end], first[at:end], stop[at:end])
            for place, name, size, offset in zip(*(column.tolist() for column in sums), strict=True):
                parts = found[at + place]
                if len(parts) < most:
                    whole = int(bounds[at + place, 1] - bounds[at + place, 0])
                    parts.append(Part(self.names[name], size, size / whole, None if offset == NO_OFFSET else offset))
            at = end
        return found

    def _sums(self, bounds: U64Array, first: Indexes, stop: Indexes) -> tuple[Indexes, I64Array, U64Array, U64Array]:
        """How much of each range has which name.

        :returns: places in ``bounds``, in order; for each the names, the largest part first; its bytes; the offset in
            its file, shape (n,) each.
        """
        counts = stop - first
        total = int(counts.sum())
        sums: list[list[U64Array]] = []
        for begin in range(0, total, AT_ONCE):
            pairs = np.arange(begin, min(begin + AT_ONCE, total))
            place = np.searchsorted(np.cumsum(counts), pairs, side="right")
            rows = self.rows[first[place] + pairs - (np.cumsum(counts) - counts)[place]]
            starts = np.maximum(rows["start"], bounds[place, 0])
            keys = place.astype(np.uint64) << np.uint64(32) | rows["name"].astype(np.uint64)
            offsets = np.where(rows["offset"] == NO_OFFSET, rows["offset"], rows["offset"] + (starts - rows["start"]))
            sums.append(_added(keys, np.minimum(rows["end"], bounds[place, 1]) - starts, offsets))
        if not sums:
            return np.empty(0, np.intp), np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.uint64)
        keys, sizes, offsets = sums[0] if len(sums) == 1 else _added(*map(np.concatenate, zip(*sums, strict=True)))
        places, names = keys >> np.uint64(32), keys & np.uint64(0xFFFF_FFFF)
        # The largest first: sizes are unsigned.
        order = np.lexsort((names, ~sizes, places))
        return places[order].astype(np.intp), names[order].astype(np.int64), sizes[order], offsets[order]


def _added(keys: U64Array, sizes: U64Array, offsets: U64Array) -> list[U64Array]:
    """The sum of the sizes of each key, and the first of its offsets: keys, sizes and offsets, shape (n,) each."""
    unique, first, which = np.unique(keys, return_index=True, return_inverse=True)
    sums = np.zeros(len(unique), np.uint64)
    np.add.at(sums, which, sizes)
    return [unique, sums, offsets[first]]


@frozen(eq=False)
class NameChanges:
    """What a table has that an older one of the same process has not.

    :ivar time: of the newer one, CLOCK_MONOTONIC seconds.
    :ivar first_name: the place of the first of ``names``.
    :ivar names: those that the older one did not have.
    :ivar gone: rows of the older one that the newer one has not, shape (n,) of :data:`NAMED_RANGE`.
    :ivar new: rows of the newer one that the older one has not, likewise.
    """

    time: float
    first_name: int
    names: tuple[str, ...]
    gone: Records
    new: Records

    def __bool__(self) -> bool:
        return bool(len(self.gone) or len(self.new))


def changes(older: NameTable | None, newer: NameTable) -> NameChanges:
    """What changed between two tables of one process.

    :param older: None stands for an empty one.
    """
    before = NameTable() if older is None else older
    known = len(before.names)
    gone, new = _missing(before.rows, newer.rows), _missing(newer.rows, before.rows)
    return NameChanges(newer.time, known, newer.names[known:], before.rows[gone], newer.rows[new])


def apply(older: NameTable | None, changed: NameChanges) -> NameTable:
    """The newer of two tables, from the older one and :func:`changes`.

    :raises ValueError: the changes do not belong to this table.
    """
    before = NameTable() if older is None else older
    missing = _missing(changed.gone, before.rows)
    if len(before.names) < changed.first_name or missing.any():
        raise ValueError("these changes are of another table of names")
    rows = np.concatenate([before.rows[_missing(before.rows, changed.gone)], changed.new])
    rows = rows[np.argsort(rows["start"], kind="stable")]
    return NameTable(rows, before.names[: changed.first_name] + changed.names, changed.time)


def _missing(rows: Records, among: Records) -> Mask:
    """Which of ``rows`` are not in ``among``; both in address order and disjoint."""
    missing = np.ones(len(rows), np.bool_)
    if not len(among):
        return missing
    starts = among["start"].copy()
    for at in range(0, len(rows), AT_ONCE):
        part = rows[at : at + AT_ONCE]
        places = np.minimum(np.searchsorted(starts, part["start"]), len(among) - 1)
        missing[at : at + AT_ONCE] = among[places] != part
    return missing


def joined(rows: Records) -> Records:
    """``rows``, in address order and disjoint, with touching ones of one name, at one place of a file, as one."""
    begins = np.ones(len(rows), np.bool_)
    for at in range(1, len(rows), AT_ONCE):
        before, after = rows[at - 1 : at - 1 + AT_ONCE][: len(rows) - at], rows[at : at + AT_ONCE]
        goes_on = (before["end"] == after["start"]) & (before["name"] == after["name"])
        without = (before["offset"] == NO_OFFSET) & (after["offset"] == NO_OFFSET)
        there = before["offset"] + (after["start"] - before["start"])
        begins[at : at + AT_ONCE] = ~(goes_on & (without | (after["offset"] == there) & (after["offset"] != NO_OFFSET)))
    first: Indexes = np.flatnonzero(begins)
    if len(first) == len(rows):
        return rows
    result, last = np.empty(len(first), NAMED_RANGE), np.append(first[1:] - 1, len(rows) - 1)
    for at in range(0, len(first), AT_ONCE):
        part = rows[first[at : at + AT_ONCE]]
        part["end"] = rows["end"][last[at : at + AT_ONCE]]
        result[at : at + AT_ONCE] = part
    return result


def overlaid(below: Records, above: Records) -> Records:
    """Rows of ``above``, and those of ``below`` where ``above`` has none; each in address order and disjoint."""
    if not len(above):
        return below
    edges = distinct(np.concatenate([above["start"], above["end"]]))
    first = int(np.searchsorted(below["end"], edges[0], side="right"))
    stop = int(np.searchsorted(below["start"], edges[-1], side="left"))
    parts = [below[:first]]
    covered_until = 0
    for at in range(first, stop, AT_ONCE):
        piece = below[at : min(at + AT_ONCE, stop)]
        # To the end of this piece's last row; the rows above that begin later belong to the next one.
        until = int(piece["end"][-1]) if at + AT_ONCE < stop else NO_OFFSET
        begin, end = np.searchsorted(above["start"], np.array([covered_until, until], np.uint64)).tolist()
        if until == NO_OFFSET:
            end = len(above)
        over = above[max(0, begin - 1) : end]
        rows = np.concatenate([_uncovered(piece, over), above[begin:end]])
        parts.append(rows[np.argsort(rows["start"], kind="stable")])
        covered_until = until
    if first >= stop:
        parts.append(above)
    return joined(_in_a_row([*parts, below[stop:]]))


def _in_a_row(parts: list[Records]) -> Records:
    """All of ``parts`` together."""
    rows, at = np.empty(sum(map(len, parts)), NAMED_RANGE), 0
    for part in parts:
        for first in range(0, len(part), AT_ONCE):
            piece = part[first : first + AT_ONCE]
            rows[at : at + len(piece)] = piece
            at += len(piece)
    return rows


def _uncovered(rows: Records, above: Records) -> Records:
    """What ``above`` leaves of ``rows``."""
    edges = distinct(np.concatenate([rows["start"], rows["end"], above["start"], above["end"]]))
    starts, ends = edges[:-1], edges[1:]
    at = np.searchsorted(rows["start"], starts, side="right") - 1
    left = (at >= 0) & (ends <= rows["end"][np.maximum(at, 0)])
    if len(above):
        over = np.searchsorted(above["start"], starts, side="right") - 1
        left &= (over < 0) | (starts >= above["end"][np.maximum(over, 0)])
    at, starts, ends = at[left], starts[left], ends[left]
    result = rows[at].copy()
    in_file = result["offset"] != NO_OFFSET
    result["offset"][in_file] += starts[in_file] - result["start"][in_file]
    result["start"], result["end"] = starts, ends
    return result


def _bounds(ranges: Any) -> U64Array:
    """Start and end of each of ``ranges``, shape (n, 2)."""
    table = np.asarray(ranges)
    if table.dtype.names:
        return np.stack([table["start"], table["end"]], axis=1).astype(np.uint64)
    return table.astype(np.uint64).reshape(-1, 2)


def describe(parts: list[Part]) -> str:
    """One text of the parts of a range, the largest of which is first; a share stands beside each that is not all."""
    if not parts:
        return ""
    shown = [part for at, part in enumerate(parts) if not at or part.share >= _LEAST_SHARE]
    return ", ".join(f"{part}{part.percent}" for part in shown)
