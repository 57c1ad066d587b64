# SPDX-License-Identifier: GPL-2.0-only
"""How much of the files that a process maps is in memory: cachestat(2) on /proc/PID/map_files (``mm/filemap.c``)."""

from __future__ import annotations

import ctypes
import os
import stat
from typing import Final

import numpy as np

from kdamon.mm import U64Array, ranges
from kdamon.mm.bpf import syscall
from kdamon.mm.maps import Mappings

__all__ = ["FileMappings"]

_NR_CACHESTAT: Final = 451


class FileMappings:
    """The files behind a process's mappings.

    :param directory: path of /proc/PID.
    :param mappings: all of its mappings.
    """

    def __init__(self, directory: str, mappings: Mappings) -> None:
        self._directory = directory
        found = mappings.of(mappings.files)
        self._offsets = found.offsets
        self.ranges: U64Array = found.ranges

    def cached(self, start: int, end: int) -> int | None:
        """How many bytes of the file behind [start, end), within one mapping, are in memory.

        None where it is no regular file, where we may not look (CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE), and before
        Linux 6.5.
        """
        row = int(np.searchsorted(self.ranges[:, 0], np.uint64(start), side="right")) - 1
        first, last = self.ranges[row].tolist()
        path = f"{self._directory}/map_files/{first:x}-{last:x}"
        try:
            # To open a device would do something to it.
            if not stat.S_ISREG(os.stat(path).st_mode):
                return None
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            return _cached(fd, int(self._offsets[row]) + start - first, end - start)
        finally:
            os.close(fd)

    def within(self, wanted: U64Array) -> tuple[U64Array, U64Array]:
        """The parts of ``wanted`` that are of files, each within one mapping, and the other parts."""
        return ranges.intersect(wanted, self.ranges), ranges.subtract(wanted, self.ranges)


def _cached(fd: int, offset: int, size: int) -> int | None:
    asked = (ctypes.c_uint64 * 2)(offset, size)
    told = (ctypes.c_uint64 * 5)()
    if syscall(_NR_CACHESTAT, ctypes.c_long(fd), ctypes.byref(asked), ctypes.byref(told), ctypes.c_long(0)) < 0:
        return None
    return int(told[0]) * os.sysconf("SC_PAGESIZE")
