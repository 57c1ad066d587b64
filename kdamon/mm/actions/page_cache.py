# SPDX-License-Identifier: GPL-2.0-only
"""How much of the files that a process maps is in memory: cachestat(2) on /proc/PID/map_files (``mm/filemap.c``)."""

from __future__ import annotations

import ctypes
import os
import stat

import numpy as np

from kdamon.arrays import U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.lib.syscalls import NR_CACHESTAT, syscall
from kdamon.mm import ranges
from kdamon.mm.proc.file_systems import answers
from kdamon.mm.proc.maps import Mappings

__all__ = ["FileMappings"]


class FileMappings:
    """The files of a process's mappings.

    :param directory: path of /proc/PID.
    :param mappings: all of its mappings.
    """

    def __init__(self, directory: str, mappings: Mappings) -> None:
        self._directory = directory
        found = mappings.of(mappings.files)
        self._offsets = found.offsets
        self.ranges: U64Array = found.ranges

    def cached(self, start: int, end: int) -> int | None:
        """How many bytes of the file that [start, end), within one mapping, maps are in memory.

        None where it is no regular file, where we may not look (CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE), where that
        would wait for another user's process, and before Linux 6.5.
        """
        row = int(np.searchsorted(self.ranges[:, 0], np.uint64(start), side="right")) - 1
        first, last = self.ranges[row].tolist()
        try:
            # The process may have mapped another file there by now: this checks the file that was opened.
            found = os.open(f"{self._directory}/map_files/{first:x}-{last:x}", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # Opening a device has side effects.
            if not answers(int(os.path.basename(self._directory)), found) or not stat.S_ISREG(os.fstat(found).st_mode):
                return None
            fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        finally:
            os.close(found)
        try:
            return _cached(fd, int(self._offsets[row]) + start - first, end - start)
        finally:
            os.close(fd)

    def within(self, wanted: U64Array) -> tuple[U64Array, U64Array]:
        """The parts of ``wanted`` that are of files, each within one mapping, and the other parts."""
        return ranges.intersect(wanted, self.ranges), ranges.subtract(wanted, self.ranges)


def _cached(fd: int, offset: int, size: int) -> int | None:
    asked = (ctypes.c_uint64 * 2)(offset, size)
    counts = (ctypes.c_uint64 * 5)()
    if syscall(NR_CACHESTAT, fd, ctypes.byref(asked), ctypes.byref(counts), 0) < 0:
        return None
    return int(counts[0]) * PAGE_SIZE
