# SPDX-License-Identifier: GPL-2.0-only
"""Reads the mappings of any process by a BPF program, see :mod:`kdamon.mm.bpf.vma_program`.

The kernel needs ten times as long to write a mapping as a line of /proc/PID/maps, and Python to read that line, as to
copy five words of it. The program finds the address space as :mod:`kdamon.mm.bpf.walker` does, through an open
/proc/PID/pagemap of this process.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import threading
from typing import Final

import numpy as np

from kdamon.arrays import U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.lib.file_limit import files_ran_out
from kdamon.mm.bpf.btf import vmlinux
from kdamon.mm.bpf.program import Array, Program
from kdamon.mm.bpf.shared import Shared
from kdamon.mm.bpf.vma_program import AT_ONCE, CALLBACK, RECORD_WORDS, RECORDS, Found, VmaProgram, Word

__all__ = ["AT_ONCE", "Found", "VmaReader", "made_vma_reader", "vma_reader"]

log = logging.getLogger("kdamon")


class VmaReader:
    """Reads mappings, up to :data:`AT_ONCE` in one system call; any thread may use it.

    :raises OSError: EPERM without CAP_BPF and CAP_PERFMON; EOPNOTSUPP and others before Linux 6.4, and without
        CONFIG_PER_VMA_LOCK.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._array = Array(-(-(RECORDS + 8 * RECORD_WORDS * AT_ONCE) // PAGE_SIZE) * PAGE_SIZE)
        whole = np.frombuffer(self._array.memory, dtype=np.uint64)
        self._words: U64Array = whole[: Word.COUNT_OF_WORDS]
        first = RECORDS // 8
        self._records: U64Array = whole[first : first + RECORD_WORDS * AT_ONCE].reshape(-1, RECORD_WORDS)
        try:
            text = VmaProgram(vmlinux(), self._array.fd)
            if not text.known:
                raise OSError(errno.EOPNOTSUPP, "the kernel's tree of mappings is not laid out as expected")
            self._program = Program(text.assemble(), "kdamon_vmas", (CALLBACK,))
        except BaseException:
            self._array.close()
            raise
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unload the program and give its memory back."""
        self._program.close()
        self._array.close()

    def read(self, pagemap: int, start: int, count: int) -> tuple[U64Array, Found]:
        """The mappings from address ``start`` on, ``count`` or :data:`AT_ONCE` at most.

        :param pagemap: open /proc/PID/pagemap of the address space.
        :returns: start, end, ``vm_flags``, offset in its file in pages and device of its file (``dev_t`` of the
            kernel, 0 without a file) of each; shape (n, 5).
        """
        with self._lock:
            self._words[:] = 0
            self._words[: Word.FOUND + 1] = pagemap, start, min(count, AT_ONCE), 0, Found.LOST
            self._program.run()
            found = Found(int(self._words[Word.FOUND]))
            rows = int(self._words[Word.COUNT]) if found in (Found.MORE, Found.ALL) else 0
            return self._records[:rows].copy(), found

    def _check(self) -> None:
        """Refuse a kernel that gives another answer than expected about a mapping of our own."""
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with mmap.mmap(-1, 2 * PAGE_SIZE, mmap.MAP_SHARED) as own:
                anchor = ctypes.c_char.from_buffer(own)
                address = ctypes.addressof(anchor)
                del anchor
                rows, found = self.read(fd, address, 1)
                if found == Found.BUSY:
                    return
                row = rows[0].tolist() if len(rows) else [0] * RECORD_WORDS
                if not row[0] <= address < row[1] or row[1] - row[0] > 1 << 47 or not row[4] or not row[2] & 0x80:
                    raise OSError(errno.EOPNOTSUPP, "the kernel's mappings are not where they are expected")
        finally:
            os.close(fd)


def _make() -> VmaReader | None:
    try:
        return VmaReader()
    except OSError as error:
        # Files may be there the next time.
        if files_ran_out(error):
            raise
        log.debug("mappings are read from /proc/PID/maps: %s", error.strerror)
        return None


_shared: Final = Shared(_make)


def made_vma_reader() -> VmaReader | None:
    """The reader that :func:`vma_reader` made before; None if there is none."""
    return _shared.made()


def vma_reader() -> VmaReader | None:
    """The one reader of this process, made when it is first asked for; None where it cannot be had, or not now."""
    try:
        return _shared.get()
    except OSError as error:
        log.debug("mappings are read from /proc/PID/maps for now: %s", error.strerror)
        return None
