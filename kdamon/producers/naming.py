# SPDX-License-Identifier: GPL-2.0-only
"""Records by which a producer names areas of memory, among its reports.

The word of a record that is 0 in a report says that it is a name, or goes on with one (docs/reports.md has both as
tables). A kdamon that does not know them counts them as malformed, because their ``nr_accesses`` is not positive.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from attrs import define

from kdamon.arrays import Records, U8Array
from kdamon.mm.proc.process_files import birth_of
from kdamon.names.labels import LONGEST, Area, Labels, labels
from kdamon.reports.record import REPORT_DTYPE, pick_reports

__all__ = ["Named", "Namer", "name_records", "split_names"]

#: The kinds: "name" and "more", as the numbers that these bytes are on a little endian machine.
_NAME: Final = int.from_bytes(b"name", "little")
_MORE: Final = int.from_bytes(b"more", "little")
#: pid, kind, first address, bytes, the negative number of bytes of the text, the first of them.
_BEGIN: Final = struct.Struct("<iIQQi20s")
#: pid, kind, the next bytes of the text, 0, the rest of them.
_REST: Final = struct.Struct("<iI16si20s")
_IN_BEGIN: Final = 20
#: Records with names that are read from a ring at once; further ones are refused.
_AT_ONCE: Final = 256


def name_records(pid: int, start: int, size: int, text: bytes) -> Records:
    """The records that name an area, shape (1,) or (2,) of :data:`kdamon.reports.record.REPORT_DTYPE`.

    :param pid: the process.
    :param start: of the area, bytes.
    :param size: of the area, bytes, at least 1.
    :param text: the name, at most :data:`LONGEST` bytes.
    """
    data = _BEGIN.pack(pid, _NAME, start, size, -len(text), text[:_IN_BEGIN])
    if len(text) > _IN_BEGIN:
        data += _REST.pack(pid, _MORE, text[_IN_BEGIN : _IN_BEGIN + 16], 0, text[_IN_BEGIN + 16 :])
    return np.frombuffer(data, REPORT_DTYPE)


def split_names(records: Records) -> tuple[Records, U8Array | None]:
    """The reports among ``records``, shape (n,); and the records with names as bytes, shape (n, 48), None without any.

    :param records: of :data:`kdamon.reports.record.REPORT_DTYPE`, contiguous.
    """
    kinds = records.view(np.uint32)[1 :: REPORT_DTYPE.itemsize // 4]
    if not kinds.any():
        return records, None
    named = (kinds == _NAME) | (kinds == _MORE)
    if not named.any():
        return records, None
    names = records.view(np.uint8).reshape(-1, REPORT_DTYPE.itemsize)[named]
    return pick_reports(records, ~named), names


@define
class Named:
    """What became of records with names; the sum is that of the records.

    :ivar accepted: names given or taken away.
    :ivar refused: there was no room for them.
    :ivar not_permitted: the producer must not report on the process.
    :ivar malformed: no names.
    """

    accepted: int = 0
    refused: int = 0
    not_permitted: int = 0
    malformed: int = 0


@define
class _Begun:
    """A name of which the rest has not arrived yet."""

    pid: int
    start: int
    end: int
    length: int
    text: bytes


class Namer:
    """Reads the records with names of one producer.

    :param uid: its user.
    :param labels: takes the names.
    """

    def __init__(self, uid: int, labels: Labels = labels) -> None:
        self._uid = uid
        self._labels = labels
        self._begun: _Begun | None = None

    def read(self, records: U8Array, permitted: Callable[[int], bool]) -> Named:
        """Give the areas their names.

        :param records: shape (n, 48).
        :param permitted: says whether the producer may report on a process.
        """
        found = Named()
        for record in records[:_AT_ONCE]:
            self._one(record.tobytes(), permitted, found)
        if len(records) > _AT_ONCE:
            self._begun = None
            found.refused += len(records) - _AT_ONCE
        return found

    def _one(self, record: bytes, permitted: Callable[[int], bool], found: Named) -> None:
        begun, self._begun = self._begun, None
        pid, kind, start, size, length, text = _BEGIN.unpack(record)
        if kind == _MORE:
            if begun is None or pid != begun.pid:
                found.malformed += 1
                return
            _, _, middle, _, end = _REST.unpack(record)
            begun.text = (begun.text + middle + end)[: begun.length]
            self._give(begun, 2, permitted, found)
            return
        # What a name that was not finished leaves.
        found.malformed += begun is not None
        if pid < 0 or not size or start + size >= 1 << 64 or not -LONGEST <= length <= 0:
            found.malformed += 1
            return
        new = _Begun(pid, start, start + size, -length, text[:-length] if length else b"")
        if new.length > _IN_BEGIN:
            self._begun = new
        else:
            self._give(new, 1, permitted, found)

    def _give(self, new: _Begun, count: int, permitted: Callable[[int], bool], found: Named) -> None:
        """Give an area its name, which ``count`` records hold."""
        # Before it is asked about: the answer is then about this process, or about one that began later.
        birth = _birth(new.pid)
        area = Area(new.start, new.end, os.fsdecode(new.text), time.monotonic())
        if not permitted(new.pid):
            found.not_permitted += count
        elif self._labels.name(self._uid, new.pid, birth, area):
            found.accepted += count
        else:
            found.refused += count


def _birth(pid: int) -> int | None:
    try:
        return birth_of(pid)
    except OSError:
        return None
