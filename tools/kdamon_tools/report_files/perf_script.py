# SPDX-License-Identifier: GPL-2.0-only
"""Reads the output of ``perf script`` on a recording of ``perf mem record`` (IBS, PEBS, Arm SPE).

A line is ``[comm] [pid/]tid [cpu] time: [period event:] addr [data_src text] ...``; fields in brackets may be missing.
Later fields (weight, instruction pointer, symbols, physical address, a callchain on separate lines) are not used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import repeat
from typing import Final

import numpy as np

from kdamon.arrays import I64Array, Mask, Records, U64Array
from kdamon_tools.report_files.records import TextNotes, new_records

__all__ = ["PerfScript", "count_samples"]

#: A command's name may contain any character, and even look like a sample. It has 15 bytes at most, and perf aligns it
#: right in a column of 16; with callchains the column has no fixed width: then the name is the longest text before a
#: thread. Possessive, and with a name of bounded length, so that lines which are not samples fail quickly.
_SAMPLE: Final = re.compile(
    rb"""
    ^(?:[ ][^\n]{14}(?:[^ \n][ ]|[ ]{2}(?=[ ]*+[-\d]\d*+(?:/\S++)?[ ]|[ ]*+\[\d))[ \t]*+      # in its column
      |(?!\t)[^\n]{1,15}[ \t]++(?=-?\d{1,9}+(?:/-?\d{1,9}+)?[ \t]++(?:\[\d{1,6}+\][ \t]++)?\d{1,10}+\.\d{1,9}+:[ \t])
      |[ \t]*+(?:[^\n]{1,24}?[ \t]++)??)
    (?:(-?\d{1,9}+)(?:/(-?\d{1,9}+))?[ \t]++)?            # pid/tid, or one number: perf's default is the thread's
    (?:\[(\d{1,6}+)\][ \t]++)?                           # cpu
    (\d{1,10}+)\.(\d{1,9}+):[ \t]++                      # seconds
    (?:(?:\d++[ \t]++)?(\S+):[ \t]++)?                   # period and event
    ([0-9a-f]{1,16}+)(?!\S)                              # address
    (?:[ \t]++([0-9a-f]{1,16}+)[ \t]++\|OP[ ][^\n]*+|([^\n]*+))$     # data_src, or whatever there is
    """,
    re.VERBOSE | re.MULTILINE,
)
#: Symbols may come before it, and before Linux 5.18 perf did not decode the operation.
_DATA_SRC: Final = re.compile(rb"(?:^|[ \t])([0-9a-f]{1,16}+)[ \t]++(?:\|OP |[A-Z][^|]{0,64}+\|SNP )")
#: After an address comes the end of the line, another number, or its own symbol and then another number. An address
#: before a symbol alone is an instruction's address.
_AFTER_DATA_ADDRESS: Final = re.compile(rb"[ \t]*+(?:$|(?:\d++|[0-9a-f]{6,16}+)(?!\S)|.*\)[ \t]++[0-9a-f]++(?!\S))")
#: Comments, empty lines, callchains, and records that are not samples.
_NO_SAMPLE: Final = re.compile(rb"[ \t]*+(?:$|#|.*PERF_RECORD_)|\t *+[0-9a-f]++(?: |$)| ++[0-9a-f]++ [^ ].*\)$")

# Bits of data_src (include/uapi/linux/perf_event.h).
_NOTHING_KNOWN: Final = b"1"
_OP_STORE: Final = 0x4
_OP_KNOWN: Final = 0x1E
_LVL_LOCAL: Final = (0x08 | 0x10 | 0x20 | 0x40 | 0x80) << 5
_LVL_REMOTE: Final = (0x100 | 0x200 | 0x400 | 0x800) << 5
_MEM_REMOTE: Final = 1 << 37


def count_samples(block: bytes) -> int:
    """The number of lines of ``block`` that look like samples."""
    return len(_SAMPLE.findall(block))


def _numbers(texts: Sequence[bytes], missing: bytes) -> I64Array:
    """Decimal numbers, ``missing`` for those that are not there, shape (n,)."""
    if not all(texts):
        texts = [text or missing for text in texts]
    return np.fromiter(map(int, texts), np.int64, len(texts))


def _hex(texts: Sequence[bytes]) -> U64Array:
    return np.fromiter(map(int, texts, repeat(16)), np.uint64, len(texts))


def _nanoseconds(seconds: Sequence[bytes], fractions: Sequence[bytes]) -> U64Array:
    digits = set(map(len, fractions))
    if len(digits) > 1:
        fractions, digits = [text.ljust(9, b"0") for text in fractions], {9}
    unit = np.uint64(10 ** (9 - digits.pop()))
    whole = np.fromiter(map(int, seconds), np.uint64, len(seconds))
    return whole * np.uint64(10**9) + np.fromiter(map(int, fractions), np.uint64) * unit


class PerfScript:
    """A reader of ``perf script`` output.

    :param pid: the process of samples that name the thread only; None: the thread's ID is used.
    """

    def __init__(self, pid: int | None = None) -> None:
        self.notes = TextNotes()
        self._pid = pid

    def parse(self, block: bytes) -> Records:
        """The accesses in a block of whole lines."""
        samples = _SAMPLE.findall(block)
        lines = block.count(b"\n")
        self.notes.lines += lines
        if len(samples) != lines:
            rest = _SAMPLE.sub(b"", block).split(b"\n")
            self.notes.unparsable += sum(1 for line in rest if not _NO_SAMPLE.match(line))
        if not samples:
            return new_records(0)
        first, second, cpus, seconds, fractions, events, addresses, sources, others = zip(*samples, strict=True)
        records = new_records(len(samples), time=_nanoseconds(seconds, fractions), addr=_hex(addresses))
        records["cpu"] = _numbers(cpus, b"-1")
        self._set_process(records, first, second)
        accesses = self._set_operation(records, sources, events, others)
        if accesses.all():
            return records
        self.notes.without_address += int(np.count_nonzero(~accesses))
        return records.compress(accesses)

    def _set_process(self, records: Records, first: Sequence[bytes], second: Sequence[bytes]) -> None:
        numbers = np.maximum(_numbers(first, b"0"), 0)
        if all(second):
            records["pid"] = numbers
            records["tid"] = np.maximum(_numbers(second, b"0"), 0)
            return
        both = np.fromiter(map(bool, second), np.bool_, len(second))
        records["tid"] = np.where(both, np.maximum(_numbers(second, b"0"), 0), numbers)
        records["pid"] = numbers if self._pid is None else np.where(both, numbers, self._pid)
        self.notes.without_process += int(np.count_nonzero(~both))

    def _set_operation(
        self, records: Records, sources: Sequence[bytes], events: Sequence[bytes], others: Sequence[bytes]
    ) -> Mask:
        """Mark the writes among the accesses; return which samples have a data address at all."""
        accesses: Mask = records["addr"] != 0
        if not all(sources):
            known, sources = _look_further(sources, others)
            accesses &= known
        data_src = _hex(sources)
        write = (data_src & _OP_STORE) != 0
        unknown = (data_src & _OP_KNOWN) == 0
        if unknown.any():
            # The event's name may show the operation that the sample does not have.
            write |= unknown & _named(events, b"store")
            unknown &= accesses & ~write & ~_named(events, b"load")
            self.notes.without_operation += int(np.count_nonzero(unknown))
        records["write"] = write
        remote = ((data_src & _LVL_REMOTE) != 0) & ((data_src & _LVL_LOCAL) == 0) | ((data_src & _MEM_REMOTE) != 0)
        self.notes.remote += int(np.count_nonzero(remote & accesses))
        return accesses


def _look_further(sources: Sequence[bytes], others: Sequence[bytes]) -> tuple[Mask, list[bytes]]:
    """Which lines have a data address, and the data_src of each; without one, the value that stands for unknown."""
    known = np.ones(len(sources), np.bool_)
    found = list(sources)
    for row, other in enumerate(others):
        if found[row]:
            continue
        data_src = _DATA_SRC.search(other)
        if data_src is None:
            known[row] = _AFTER_DATA_ADDRESS.match(other) is not None
        found[row] = data_src[1] if data_src else _NOTHING_KNOWN
    return known, found


def _named(events: Sequence[bytes], word: bytes) -> Mask:
    """Which events have ``word`` in their names."""
    named = {event: word in event.lower() for event in set(events)}
    return np.fromiter((named[event] for event in events), np.bool_, len(events))
