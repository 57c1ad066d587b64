# SPDX-License-Identifier: GPL-2.0-only
"""Records in a file, as ``numpy.save()`` writes an array of them, read in pieces when they are asked for.

The file is not mapped: one that another program truncates meanwhile is an error then, where a mapping would be the end
of this process (SIGBUS). What a file claims of itself is believed as far as it is there.
"""

from __future__ import annotations

import errno
import os
import re
from typing import IO, Final, NamedTuple, Protocol, overload

import numpy as np

from kdamon.arrays import Indexes, Records
from kdamon_tools.report_files.records import RECORD_DTYPE

__all__ = ["HEAD_BYTES", "MAGIC", "RecordSource", "StoredRecords", "parse_head"]

#: What a recording begins with.
MAGIC: Final = b"\x93NUMPY"
#: More than any head of a recording.
HEAD_BYTES: Final = 1 << 16
#: How many bytes hold the length of the text that follows, in each version that numpy writes where all is ASCII.
_LENGTH_BYTES: Final = {b"\x01\x00": 2, b"\x02\x00": 4}
#: What numpy writes of an array, and of an array of records. Nothing else is taken for a head: numpy's own reader
#: evaluates it as Python's literals, for which memory and the stack can be too small.
_ARRAY: Final = r"\{{'descr': {}, 'fortran_order': {}, 'shape': \({}\)(?:, )?\}} *\n?"
_ANY_ARRAY: Final = re.compile(_ARRAY.format(r"[\[']\S.*[\]']", "(?:True|False)", "[^()]{0,200}").encode(), re.DOTALL)
_RECORDS: Final = re.compile(
    _ARRAY.format(re.escape(repr(np.lib.format.dtype_to_descr(RECORD_DTYPE))), "False", r"(\d{1,40}),").encode()
)
#: Indexes that lie so much wider than close together are read one by one.
_WIDE: Final = 8


class RecordSource(Protocol):
    """Records of any number, an array or :class:`StoredRecords`."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, rows: slice, /) -> Records: ...
    @overload
    def __getitem__(self, rows: Indexes, /) -> Records: ...


class Head(NamedTuple):
    """Where the rows of a recording begin, bytes, and how many it says there are."""

    offset: int
    promised: int


def parse_head(begin: bytes, name: str) -> Head:
    """Read the head of a recording.

    :param begin: the first :data:`HEAD_BYTES` of it, or all there is.
    :param name: the file's, for errors.
    :raises OSError: EINVAL it is none.
    """
    at = len(MAGIC) + 2
    length_bytes = _LENGTH_BYTES.get(begin[len(MAGIC) : at], 0)
    offset = at + length_bytes + int.from_bytes(begin[at : at + length_bytes], "little")
    text = begin[at + length_bytes : offset]
    if not begin.startswith(MAGIC) or offset > len(begin) or not (length_bytes and _ANY_ARRAY.fullmatch(text)):
        raise OSError(errno.EINVAL, "this is no array of numpy's that can be read", name)
    records = _RECORDS.fullmatch(text)
    if records is None:
        raise OSError(errno.EINVAL, "this array of numpy's does not hold access reports with their times", name)
    return Head(offset, int(records[1]))


class StoredRecords:
    """The records in ``file``, shape (n,), which the caller keeps open.

    :param file: a regular file; what is read through it elsewhere does not matter.
    :param offset: where the rows begin, bytes.
    :param name: the file's, for errors.
    """

    def __init__(self, file: IO[bytes], offset: int, name: str) -> None:
        self._descriptor = file.fileno()
        self._offset = offset
        self._name = name
        size = max(0, os.fstat(self._descriptor).st_size - offset)
        self._n, self.rest = divmod(size, RECORD_DTYPE.itemsize)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, rows: slice | Indexes) -> Records:
        """Read a slice without steps, or single rows by their numbers.

        :raises OSError: EIO the file is shorter than it was.
        """
        if isinstance(rows, slice):
            first, end, _ = rows.indices(self._n)
            return self._read(first, max(0, end - first))
        if not len(rows):
            return np.empty(0, RECORD_DTYPE)
        first, width = int(rows.min()), int(rows.max() - rows.min()) + 1
        if width <= _WIDE * len(rows):
            return self._read(first, width)[rows - first]
        return np.concatenate([self._read(row, 1) for row in rows.tolist()])

    def _read(self, first: int, n: int) -> Records:
        records = np.empty(n, RECORD_DTYPE)
        rest = records.view(np.uint8).data
        at = self._offset + first * RECORD_DTYPE.itemsize
        while rest:
            done = os.preadv(self._descriptor, [rest], at)
            if not done:
                raise OSError(errno.EIO, "the file became shorter while it was read", self._name)
            rest, at = rest[done:], at + done
        return records
