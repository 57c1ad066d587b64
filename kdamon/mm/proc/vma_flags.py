# SPDX-License-Identifier: GPL-2.0-only
"""The flags of a process's mappings: a BPF iterator over them (``kernel/bpf/task_iter.c``), or /proc/PID/smaps.

/proc/PID/smaps counts all pages of a mapping to show its flags, and holds the process's mmap_lock meanwhile: some 20 ms
for a gibibyte in pages of 4 KiB. The iterator (Linux 6.1) reads three words of each mapping.
"""

from __future__ import annotations

import errno
import functools
import logging
import mmap
import os
import re
import struct
from pathlib import Path
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U64Array
from kdamon.kernel import PMD_SIZE
from kdamon.lib.pidfd import pidfd_open
from kdamon.mm.bpf.btf import vmlinux
from kdamon.mm.bpf.program import R0, R1, R2, R3, R6, R7, R8, R10, Assembler, Helper, TaskIterator
from kdamon.mm.mman import MADV_HUGEPAGE, MADV_NOHUGEPAGE
from kdamon.mm.mmap_lock import held
from kdamon.mm.proc.process_files import ProcessFiles

__all__ = ["Mappings", "VmaFlag", "mappings_with_flags"]

log = logging.getLogger("kdamon")

_KERNEL_HALF: Final = np.uint64(1 << 63)
_RECORD: Final = struct.Struct("<3Q")
#: Bytes of one reading: 128 mappings.
_CHUNK: Final = 128 * _RECORD.size

_MAPPING: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags:([a-z0-9 ]*)$", re.MULTILINE | re.DOTALL)


class VmaFlag:
    """Bits of ``vm_flags`` (include/linux/mm.h)."""

    GROWS_DOWN: Final = 0x100
    PFN_MAP: Final = 0x400
    IO: Final = 0x4000
    HUGE_TLB: Final = 0x40_0000
    MIXED_MAP: Final = 0x1000_0000
    HUGEPAGE: Final = 0x2000_0000
    NOHUGEPAGE: Final = 0x4000_0000
    #: Bit 63 before Linux 6.18.
    SEALED: Final = 1 << 42 | 1 << 63


#: The names of these flags in /proc/PID/smaps.
_NAMES: Final = {
    b"gd": VmaFlag.GROWS_DOWN,
    b"pf": VmaFlag.PFN_MAP,
    b"io": VmaFlag.IO,
    b"ht": VmaFlag.HUGE_TLB,
    b"mm": VmaFlag.MIXED_MAP,
    b"hg": VmaFlag.HUGEPAGE,
    b"nh": VmaFlag.NOHUGEPAGE,
    b"sl": VmaFlag.SEALED,
}

#: Start, end, bytes, and flags of each mapping, ascending, shape (n, 3).
Mappings = U64Array


def mappings_with_flags(files: ProcessFiles, pidfd: int) -> Mappings:
    """The mappings of an address space and those of their flags that :class:`VmaFlag` names.

    None when the address space is gone. Without CAP_BPF and CAP_PERFMON, and before Linux 6.1, it is read from smaps.

    :param files: of the address space; stays the caller's.
    :param pidfd: the process; stays the caller's.
    """
    iterator = _vma_iterator()
    try:
        found = _from_smaps(files) if iterator is None else _iterate(iterator, pidfd, files.pagemap)
    except ProcessLookupError:
        found = np.empty((0, 3), dtype=np.uint64)
    if not files.alive():
        # The flags may be another program's.
        return found[:0]
    found = found[found[:, 0] < _KERNEL_HALF]
    # The list comes in pieces, between which mappings come and go.
    ends = np.maximum.accumulate(found[:, 1])
    rows: Mask = np.append(True, found[1:, 0] >= ends[:-1])[: len(found)]
    return found[rows]


def _iterate(iterator: TaskIterator, pidfd: int, pagemap: int = -1) -> Mappings:
    parts = []
    fd = iterator.open(pidfd)
    try:
        while True:
            with held.of(pagemap):
                part = os.read(fd, _CHUNK)
            if not part:
                break
            parts.append(part)
    finally:
        os.close(fd)
    return np.frombuffer(b"".join(parts), dtype=np.uint64).reshape(-1, 3)


@functools.cache
def _vma_iterator() -> TaskIterator | None:
    """The iterator of this process, never closed; None where it cannot be had."""
    try:
        return _load()
    except OSError as error:
        log.debug("the flags of mappings are read from smaps: %s", error.strerror)
        return None


def _load() -> TaskIterator:
    types = vmlinux()
    program = Assembler()
    program.op_reg("mov", R6, R1)
    program.load(R7, R6, types.offset("bpf_iter__task_vma", "vma"))
    program.jump_if("jeq", R7, 0, "end")
    program.load(R8, R6, types.offset("bpf_iter__task_vma", "meta"))
    program.load(R1, R8, types.offset("bpf_iter_meta", "seq"))
    for place, member in ((-24, "vm_start"), (-16, "vm_end"), (-8, "vm_flags")):
        program.load(R0, R7, types.offset("vm_area_struct", member))
        program.store(8, R10, place, R0)
    program.op_reg("mov", R2, R10)
    program.op("add", R2, -_RECORD.size)
    program.op("mov", R3, _RECORD.size)
    program.call(Helper.SEQ_WRITE)
    program.label("end")
    program.op("mov", R0, 0)
    program.exit()
    iterator = TaskIterator(program, "kdamon_vmas", types.function("bpf_iter_task_vma"))
    try:
        _check(iterator)
    except OSError:
        iterator.close()
        raise
    return iterator


def _check(iterator: TaskIterator) -> None:
    """Refuse a kernel whose flags have other places."""
    pidfd = pidfd_open(os.getpid())
    try:
        with mmap.mmap(-1, PMD_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
            address = np.frombuffer(own, np.uint8).ctypes.data
            for advice, flag in ((MADV_NOHUGEPAGE, VmaFlag.NOHUGEPAGE), (MADV_HUGEPAGE, VmaFlag.HUGEPAGE)):
                own.madvise(advice)
                found = _iterate(iterator, pidfd)
                flags = int(found[(found[:, 0] <= address) & (found[:, 1] > address)][0, 2])
                if flags & (VmaFlag.HUGEPAGE | VmaFlag.NOHUGEPAGE) != flag:
                    raise OSError(errno.EOPNOTSUPP, "the flags of mappings are not where they are expected")
    finally:
        os.close(pidfd)


def _from_smaps(files: ProcessFiles) -> Mappings:
    # The link leads to /proc/PID/pagemap; whether that is still the same process is asked afterwards.
    directory = os.path.dirname(os.readlink(f"/proc/self/fd/{files.pagemap}"))
    try:
        text = Path(directory, "smaps").read_bytes()
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, "the process ended") from None
    rows = []
    for start, end, names in (match.groups() for match in _MAPPING.finditer(text)):
        flags = sum(_NAMES.get(name, 0) for name in set(names.split()))
        rows.append((int(start, 16), int(end, 16), flags))
    return np.array(rows, dtype=np.uint64).reshape(-1, 3)
