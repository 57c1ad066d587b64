# SPDX-License-Identifier: GPL-2.0-only
"""The mappings of a process from /proc/PID/maps (``fs/proc/task_mmu.c: show_map_vma()``)."""

from __future__ import annotations

import os
from typing import Final

import numpy as np
import numpy.typing as npt

from kdamon.mm import U64Array
from kdamon.mm.mmap_lock import held

__all__ = ["containing", "parse", "read", "text"]

#: What one read may return; the kernel fills at most its own buffer.
_CHUNK: Final = 1 << 16
#: No address has more hexadecimal digits.
_DIGITS: Final = 16
#: [vsyscall] is shown in the kernel's half; it is no mapping of the process.
_KERNEL_HALF: Final = np.uint64(1 << 63)

_HEX = np.zeros(256, dtype=np.uint64)
_HEX[ord("0") : ord("9") + 1] = np.arange(10)
_HEX[ord("a") : ord("f") + 1] = np.arange(10, 16)
_SHIFTS = np.arange(_DIGITS - 1, -1, -1, dtype=np.uint64) * np.uint64(4)
_COLUMNS = np.arange(_DIGITS)

_Indexes = npt.NDArray[np.intp]


def read(fd: int) -> U64Array:
    """The mappings behind an open /proc/PID/maps, see :func:`parse`; none when the address space is gone."""
    return parse(text(fd))


def text(fd: int) -> bytes:
    """The contents of an open /proc/PID/maps; nothing when the address space is gone."""
    parts = []
    offset = 0
    while True:
        try:
            with held:
                part = os.pread(fd, _CHUNK, offset)
        except ProcessLookupError:
            break
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def parse(contents: bytes) -> U64Array:
    """The mappings in ``contents``, those of /proc/PID/maps.

    The kernel gives the list in pieces, between which mappings come and go: a line that is not above the one
    before it is left out, so that the result is ascending and disjoint.

    :returns: start and end of each mapping in address order, bytes, shape (n, 2).
    """
    if not contents:
        return np.empty((0, 2), dtype=np.uint64)
    # Room for the digits that an address at the very start does not have.
    data = np.frombuffer(b"\n" * _DIGITS + contents, dtype=np.uint8)
    ends = np.flatnonzero(data == ord("\n"))[_DIGITS - 1 :]
    begins = ends[:-1] + 1
    head = data[np.minimum(begins[:, None] + np.arange(2 * _DIGITS + 2), len(data) - 1)]
    dashes = (head == ord("-")).argmax(axis=1)
    spaces = (head == ord(" ")).argmax(axis=1)
    vmas = np.empty((len(begins), 2), dtype=np.uint64)
    vmas[:, 0] = _numbers(data, begins + dashes, dashes)
    vmas[:, 1] = _numbers(data, begins + spaces, spaces - dashes - 1)
    vmas = vmas[vmas[:, 0] < _KERNEL_HALF]
    if (vmas[1:, 0] < vmas[:-1, 1]).any():
        rows: list[list[int]] = []
        for start, end in vmas.tolist():
            if not rows or start >= rows[-1][1]:
                rows.append([start, end])
        vmas = np.array(rows, dtype=np.uint64)
    return vmas


def _numbers(data: npt.NDArray[np.uint8], ends: _Indexes, widths: _Indexes) -> U64Array:
    """The hexadecimal numbers of ``widths`` digits that stop before ``ends`` in ``data``."""
    digits = _HEX[data[ends[:, None] - _DIGITS + _COLUMNS]]
    digits[_DIGITS - widths[:, None] > _COLUMNS] = 0
    numbers: U64Array = np.bitwise_or.reduce(digits << _SHIFTS, axis=1)
    return numbers


def containing(vmas: U64Array, addr: int) -> tuple[int, int] | None:
    """The mapping (start, end) in ``vmas`` that contains ``addr``, None when it is not mapped."""
    index = int(np.searchsorted(vmas[:, 0], np.uint64(addr), side="right")) - 1
    if index < 0 or addr >= vmas[index, 1]:
        return None
    return int(vmas[index, 0]), int(vmas[index, 1])
