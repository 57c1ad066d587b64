# SPDX-License-Identifier: GPL-2.0-only
"""Access reports with their times, as files hold them, and statistics of reading them from text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, Final, Protocol

import numpy as np
from attrs import define

from kdamon.arrays import Records
from kdamon.reports.record import REPORT_DTYPE

__all__ = ["RECORD_DTYPE", "Records", "TextFormat", "TextNotes", "line_blocks", "new_records", "reports_of"]

#: One report and its time, nanoseconds of CLOCK_MONOTONIC (or of the clock of a file's source).
#: A C struct of the time and the report's fields, so that the reports have the layout of batches.
RECORD_DTYPE: Final = np.dtype(
    [("time", np.uint64), *((name, REPORT_DTYPE[name]) for name in REPORT_DTYPE.names or ())], align=True
)
_LONGEST_LINE: Final = 1 << 20
_TIMED_REPORT: Final = np.dtype([("time", np.uint64), ("report", REPORT_DTYPE)])


def new_records(n: int, **columns: Any) -> Records:
    """``n`` records with the defaults of a report, and ``columns`` (numbers or shape (n,)) set."""
    records = np.zeros(n, RECORD_DTYPE)
    records["nr_accesses"] = 1
    records["size"] = 1
    records["node_id"] = records["cpu"] = -1
    for name, column in columns.items():
        records[name] = column
    return records


def reports_of(records: Records) -> Records:
    """The reports in ``records`` as a batch of :data:`kdamon.reports.record.REPORT_DTYPE`, without a copy."""
    return records.view(_TIMED_REPORT)["report"]


@define
class TextNotes:
    """Statistics of reading a file; the counts are of its lines if it is a text.

    :ivar lines: all of them.
    :ivar unparsable: lines that are neither an access nor of another known kind.
    :ivar without_address: samples without a data address.
    :ivar without_operation: accesses that may be reads or writes; counted as reads.
    :ivar without_process: accesses that name the thread only.
    :ivar remote: accesses that were served by the memory or a cache of another NUMA node.
    :ivar recording: whether it is a recording of kdamon.
    :ivar cut: a sentence on how the file is truncated; empty if it is complete.
    """

    lines: int = 0
    unparsable: int = 0
    without_address: int = 0
    without_operation: int = 0
    without_process: int = 0
    remote: int = 0
    recording: bool = False
    cut: str = ""


class TextFormat(Protocol):
    """A reader of one kind of text file, block by block."""

    #: The statistics so far.
    notes: TextNotes

    def parse(self, block: bytes) -> Records:
        """The accesses in a block of whole lines, in their order."""
        ...


def line_blocks(stream: IO[bytes], size: int, head: bytes = b"") -> Iterator[bytes]:
    """Blocks of whole lines from ``stream``, of about ``size`` bytes; a last line without end is a block of its own.

    Overlong lines are cut: memory is bounded, whatever the file contains.

    :param head: the bytes that were read from it already.
    """
    rest = head
    while data := stream.read(size):
        rest += data
        end = rest.rfind(b"\n") + 1
        if end:
            yield rest[:end]
            rest = rest[end:]
        elif len(rest) > _LONGEST_LINE:
            yield rest + b"\n"
            rest = b""
    end = rest.rfind(b"\n") + 1
    yield from filter(None, (rest[:end], rest[end:]))
