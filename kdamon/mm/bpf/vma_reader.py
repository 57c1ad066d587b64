# SPDX-License-Identifier: GPL-2.0-only
"""Reads the mappings of any process: a BPF program that iterates over them (``kernel/bpf/task_iter.c``, Linux 6.7).

The kernel needs ten times as long to write a mapping as a line of /proc/PID/maps, and Python to read that line, as to
copy five words of it. The program finds the address space as :mod:`kdamon.mm.bpf.walker` does, through an open
/proc/PID/pagemap of this process, and its owner among the tasks. It never waits for the mmap_lock,
nor takes it where a thread waits for it (``kernel/locking/rwsem.c: __down_read_trylock()``).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import threading
from enum import IntEnum
from typing import Final

import numpy as np

from kdamon.arrays import U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.lib.file_limit import files_ran_out
from kdamon.mm.bpf.btf import Btf, vmlinux
from kdamon.mm.bpf.program import R0, R1, R2, R3, R6, R7, R8, R9, R10, Array, Assembler, Helper, Program
from kdamon.mm.bpf.shared import Shared

__all__ = ["AT_ONCE", "Found", "VmaReader", "made_vma_reader", "vma_reader"]

log = logging.getLogger("kdamon")

#: Mappings that one call reads at most: 0.1 ms with the mmap_lock held for reading.
AT_ONCE: Final = 512

#: Words of a record, see :meth:`VmaReader.read`.
_WORDS: Final = 5
_HEADER: Final = 64
_HEADER_WORDS: Final = _HEADER // 8
#: Where in the program's frame kernel memory is read to, and where ``struct bpf_iter_task_vma`` is.
_SLOT: Final = -8
_ITERATOR: Final = -16


class _Word:
    """Words of the header of the memory that is shared with the program."""

    #: The /proc/PID/pagemap.
    FD: Final = 0
    #: The first address.
    START: Final = 1
    #: How many mappings are wanted.
    MOST: Final = 2
    #: Set by the program: how many there are.
    COUNT: Final = 3
    #: Set by the program: the address space.
    MM: Final = 4
    #: Set by the program: a value of :class:`Found`.
    FOUND: Final = 5


class Found(IntEnum):
    """How one call of :meth:`VmaReader.read` ended."""

    #: There may be more mappings after those.
    MORE = 0
    #: There are no more.
    ALL = 1
    #: The mmap_lock was taken; try again.
    BUSY = 2
    #: No task owns the address space any more, or it became another one's; read /proc/PID/maps.
    LOST = 3


class VmaReader:
    """Reads mappings, up to :data:`AT_ONCE` in one system call; any thread may use it.

    :raises OSError: EPERM without CAP_BPF and CAP_PERFMON; EOPNOTSUPP and others before Linux 6.7.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._array = Array(-(-(_HEADER + 8 * _WORDS * AT_ONCE) // PAGE_SIZE) * PAGE_SIZE)
        whole = np.frombuffer(self._array.memory, dtype=np.uint64)
        self._header: U64Array = whole[:_HEADER_WORDS]
        self._records: U64Array = whole[_HEADER_WORDS : _HEADER_WORDS + _WORDS * AT_ONCE].reshape(-1, _WORDS)
        try:
            self._program = Program(_assemble(vmlinux(), self._array.fd), "kdamon_vmas", runs_kfuncs=True)
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
            self._run(pagemap, start, min(count, AT_ONCE))
            rows = self._records[: int(self._header[_Word.COUNT])].copy()
            found = Found(int(self._header[_Word.FOUND]))
        return rows, found

    def _run(self, pagemap: int, start: int, count: int) -> None:
        self._header[:_HEADER_WORDS] = (pagemap, start, count, 0, 0, Found.LOST, 0, 0)
        self._program.run()

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
                row = rows[0].tolist() if len(rows) else [0] * _WORDS
                if not row[0] <= address < row[1] or row[1] - row[0] > 1 << 47 or not row[4] or not row[2] & 0x80:
                    raise OSError(errno.EOPNOTSUPP, "the kernel's mappings are not where they are expected")
        finally:
            os.close(fd)


def _assemble(btf: Btf, map_fd: int) -> Assembler:
    """The program. Registers: R6 the mapping, R7 the number of records, R8 the owner, R9 the shared memory."""
    asm = Assembler()
    asm.load_map_value(R9, map_fd)
    asm.call(Helper.GET_CURRENT_TASK)
    asm.op_reg("mov", R3, R0)
    for place in (
        btf.offset("task_struct", "files"),
        btf.offset("files_struct", "fdt"),
        btf.offset("fdtable", "fd"),
    ):
        asm.op("add", R3, place)
        asm.read_kernel(_SLOT, "lost")
        asm.op_reg("mov", R3, R1)
    asm.load(R1, R9, 8 * _Word.FD)
    asm.op("lsh", R1, 3)
    asm.op_reg("add", R3, R1)
    asm.read_kernel(_SLOT, "lost")
    asm.op_reg("mov", R3, R1)
    asm.op("add", R3, btf.offset("file", "private_data"))
    asm.read_kernel(_SLOT, "lost")
    asm.store(8, R9, 8 * _Word.MM, R1)
    asm.op_reg("mov", R3, R1)
    asm.op("add", R3, btf.offset("mm_struct", "owner"))
    asm.read_kernel(_SLOT, "lost")
    asm.jump_if("jeq", R1, 0, "lost")
    asm.op_reg("mov", R3, R1)
    asm.op("add", R3, btf.offset("task_struct", "pid"))
    asm.read_kernel(_SLOT, "lost")
    asm.op("lsh", R1, 32)
    asm.op("rsh", R1, 32)
    asm.call_kfunc(btf.function("bpf_task_from_pid"))
    asm.jump_if("jeq", R0, 0, "lost")
    asm.op_reg("mov", R8, R0)
    _iterate(asm, btf)
    asm.op_reg("mov", R1, R8)
    asm.call_kfunc(btf.function("bpf_task_release"))
    asm.jump("leave")
    asm.label("lost")
    asm.op("mov", R6, Found.LOST)
    asm.label("leave")
    asm.store(8, R9, 8 * _Word.FOUND, R6)
    asm.op("mov", R0, 0)
    asm.exit()
    return asm


def _iterate(asm: Assembler, btf: Btf) -> None:
    """Write a record of each mapping of task R8; R6 becomes a value of :class:`Found`."""

    def of_vma(member: str) -> int:
        return btf.offset("vm_area_struct", member)

    asm.op_reg("mov", R1, R10)
    asm.op("add", R1, _ITERATOR)
    asm.op_reg("mov", R2, R8)
    asm.load(R3, R9, 8 * _Word.START)
    asm.call_kfunc(btf.function("bpf_iter_task_vma_new"))
    asm.op("mov", R6, Found.BUSY)
    asm.jump_if("jne", R0, 0, "failed")
    asm.label("next")
    asm.op_reg("mov", R1, R10)
    asm.op("add", R1, _ITERATOR)
    asm.call_kfunc(btf.function("bpf_iter_task_vma_next"))
    asm.op("mov", R6, Found.ALL)
    asm.jump_if("jeq", R0, 0, "failed")
    # The owner may have called exec() meanwhile.
    asm.op("mov", R6, Found.LOST)
    asm.load(R1, R0, of_vma("vm_mm"))
    asm.load(R2, R9, 8 * _Word.MM)
    asm.jump_if_reg("jne", R1, R2, "failed")
    asm.op("mov", R6, Found.MORE)
    # The verifier follows the loop to its end unless the number comes from memory.
    asm.load(R7, R9, 8 * _Word.COUNT)
    asm.jump_if("jgt", R7, AT_ONCE - 1, "failed")
    asm.load(R1, R9, 8 * _Word.MOST)
    asm.jump_if_reg("jge", R7, R1, "failed")
    asm.op_reg("mov", R2, R7)
    asm.op("mul", R2, 8 * _WORDS)
    asm.op_reg("add", R2, R9)
    for word, member in enumerate(("vm_start", "vm_end", "vm_flags", "vm_pgoff")):
        asm.load(R3, R0, of_vma(member))
        asm.store(8, R2, _HEADER + 8 * word, R3)
    asm.op("mov", R3, 0)
    asm.load(R1, R0, of_vma("vm_file"))
    asm.jump_if("jeq", R1, 0, "anonymous")
    asm.load(R1, R1, btf.offset("file", "f_inode"))
    asm.load(R1, R1, btf.offset("inode", "i_sb"))
    asm.load(R3, R1, btf.offset("super_block", "s_dev"), width=4)
    asm.label("anonymous")
    asm.store(8, R2, _HEADER + 8 * 4, R3)
    asm.op("add", R7, 1)
    asm.store(8, R9, 8 * _Word.COUNT, R7)
    asm.jump("next")
    asm.label("failed")
    asm.op_reg("mov", R1, R10)
    asm.op("add", R1, _ITERATOR)
    asm.call_kfunc(btf.function("bpf_iter_task_vma_destroy"))


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
    """The one reader of this process, made when it is first asked for; None where it cannot be had, or not now.

    To make it takes some 50 ms, because the functions that it calls are among the last of the kernel's types (BTF).
    """
    try:
        return _shared.get()
    except OSError as error:
        log.debug("mappings are read from /proc/PID/maps for now: %s", error.strerror)
        return None
