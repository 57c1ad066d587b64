# SPDX-License-Identifier: GPL-2.0-only
"""Reading the trace of ``valgrind --tool=lackey --trace-mem=yes``: every access of a program, in order, without times.

The order stands for the time: a fixed number of accesses makes one second.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from kdamon.arrays import I64Array, Records, U8Array, U64Array
from kdamon_tools.defaults import LACKEY_RATE
from kdamon_tools.report_files.records import TextNotes, new_records

__all__ = ["Lackey", "count_accesses"]

_ACCESS: Final = re.compile(rb"^(?: [LSM]|I ) [0-9a-f]{1,16},\d{1,6}$", re.MULTILINE)
_VALGRIND: Final = re.compile(rb"^(?:==|--|\*\*)(\d{1,9})(?:==|--|\*\*)", re.MULTILINE)
#: Column of an access's address, and the maximum lengths of the address and the size.
_ADDRESS_AT: Final = 3
_ADDRESS_DIGITS: Final = 16
_SIZE_DIGITS: Final = 6

_NO_DIGIT: Final = 255
_HEX: Final = np.full(256, _NO_DIGIT, np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _HEX[_digit] = _value


def count_accesses(block: bytes) -> int:
    """The number of lines of ``block`` that look like accesses."""
    return len(_ACCESS.findall(block))


def _number_at(text: U8Array, at: I64Array, digits: int, base: int) -> tuple[U64Array, I64Array]:
    """The numbers that begin at ``at``, shape (n,), and their ends; they have ``digits`` digits at most."""
    values = np.zeros(len(at), np.uint64)
    end = at.copy()
    inside = np.ones(len(at), np.bool_)
    for place in range(digits):
        digit = _HEX[text[at + place]]
        inside &= digit < base
        if not inside.any():
            break
        np.copyto(values, values * np.uint64(base) + digit, where=inside)
        end += inside
    return values, end


class Lackey:
    """A reader of lackey's traces.

    :param pid: the process; None: the one that valgrind's own lines name, 0 before the first of them.
    :param rate: accesses per second.
    :param instructions: whether an instruction fetch counts as an access.
    """

    def __init__(self, pid: int | None = None, rate: int = LACKEY_RATE, instructions: bool = False) -> None:
        self.notes = TextNotes()
        self._pid = pid
        self._rate = rate
        self._instructions = instructions
        self._passed = 0

    def parse(self, block: bytes) -> Records:
        """The accesses in a block of whole lines; a modification is a read and a write at the same time."""
        if self._pid is None and (prefix := _VALGRIND.search(block)):
            self._pid = int(prefix[1])
        # Padding, so that the search for digits past a line's end needs no bounds check.
        text = np.frombuffer(block + bytes(_ADDRESS_AT + _ADDRESS_DIGITS + _SIZE_DIGITS), np.uint8)
        ends = np.flatnonzero(text == ord("\n"))
        starts = np.concatenate(([0], ends[:-1] + 1))
        self.notes.lines += len(ends)
        kinds, addresses, sizes = self._accesses(block, text, starts, ends)
        if not self._instructions:
            data = kinds != ord("I")
            kinds, addresses, sizes = kinds[data], addresses[data], sizes[data]
        numbers = self._passed + np.arange(len(kinds), dtype=np.uint64)
        self._passed += len(kinds)
        seconds, part = np.divmod(numbers, np.uint64(self._rate))
        times = seconds * np.uint64(1_000_000_000) + part * np.uint64(1_000_000_000) // np.uint64(self._rate)
        twice = np.where(kinds == ord("M"), 2, 1)
        rows = np.repeat(np.arange(len(kinds)), twice)
        second = np.concatenate(([False], rows[1:] == rows[:-1]))[: len(rows)]
        return new_records(
            len(rows),
            time=times[rows],
            pid=self._pid or 0,
            addr=addresses[rows],
            size=sizes[rows],
            write=(kinds[rows] == ord("S")) | second,
        )

    def _accesses(
        self, block: bytes, text: U8Array, starts: I64Array, ends: I64Array
    ) -> tuple[U8Array, U64Array, U64Array]:
        """Letters, addresses and sizes of the accesses; other lines than valgrind's own are counted."""
        # The shortest access has six characters; a longer one begins with a letter and blanks.
        at = starts[ends - starts >= _ADDRESS_AT + 3]
        first, second = text[at], text[at + 1]
        kinds = np.where(first == ord(" "), second, first)
        blank = np.where(first == ord(" "), text[at + 2], second)
        data = (first == ord(" ")) & ((second == ord("L")) | (second == ord("S")) | (second == ord("M")))
        likely = (data | (first == ord("I"))) & (blank == ord(" ")) & (text[at + 2] == ord(" "))
        at, kinds = at[likely], kinds[likely]
        addresses, comma = _number_at(text, at + _ADDRESS_AT, _ADDRESS_DIGITS, 16)
        sizes, end = _number_at(text, comma + 1, _SIZE_DIGITS, 10)
        good = (comma > at + _ADDRESS_AT) & (text[comma] == ord(",")) & (end > comma + 1) & (text[end] == ord("\n"))
        nr_others = len(starts) - int(np.count_nonzero(good))
        if nr_others:
            nr_others -= len(_VALGRIND.findall(block)) + int(np.count_nonzero(starts == ends))
        self.notes.unparsable += nr_others
        return kinds[good], addresses[good], sizes[good]
