# SPDX-License-Identifier: GPL-2.0-only
"""Records in a file in the format of ``numpy.save()``, read in pieces on demand.

The file is not mapped: if another program truncates it meanwhile, reading fails, where a mapping would end this process
(SIGBUS). The number of records in the head is limited by the size of the file.
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

#: The first bytes of a recording.
MAGIC: Final = b"\x93NUMPY"
#: An upper bound of the size of a recording's head.
HEAD_BYTES: Final = 1 << 16
#: Size of the field for the length of the head's text, in each version that numpy writes for ASCII.
_LENGTH_BYTES: Final = {b"\x01\x00": 2, b"\x02\x00": 4}
#: The head that numpy writes for an array, and for an array of records. No other head is accepted: numpy's own reader
#: evaluates it as Python literals, which can exhaust memory and the stack.
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
    """The offset of the rows of a recording, bytes, and their number according to the head."""

    offset: int
    promised: int


def parse_head(begin: bytes, name: str) -> Head:
    """Read the head of a recording.

    :param begin: the first :data:`HEAD_BYTES` of it, or the whole file if it is shorter.
    :param name: the file's name, for errors.
    :raises OSError: EINVAL it is not a recording.
    """
    at = len(MAGIC) + 2
    length_bytes = _LENGTH_BYTES.get(begin[len(MAGIC) : at], 0)
    offset = at + length_bytes + int.from_bytes(begin[at : at + length_bytes], "little")
    text = begin[at + length_bytes : offset]
    if not begin.startswith(MAGIC) or offset > len(begin) or not (length_bytes and _ANY_ARRAY.fullmatch(text)):
        raise OSError(errno.EINVAL, "this is not a readable numpy array", name)
    records = _RECORDS.fullmatch(text)
    if records is None:
        raise OSError(errno.EINVAL, "this numpy array does not hold access reports with their times", name)
    return Head(offset, int(records[1]))


class StoredRecords:
    """The records in ``file``, shape (n,), which the caller keeps open.

    :param file: a regular file; its file position is neither used nor changed.
    :param offset: the offset of the rows, bytes.
    :param name: the file's name, for errors.
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
                raise OSError(errno.EIO, "the file was truncated while it was read", self._name)
            rest, at = rest[done:], at + done
        return records
