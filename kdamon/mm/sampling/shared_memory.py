# SPDX-License-Identifier: GPL-2.0-only
"""Spares a process faults in its shared memory after a userfaultfd is unregistered (``mm/userfaultfd.c``).

To unregister a shared mapping, the kernel sets all its page table entries anew, write-protected: the next write to each
page faults. Where a file system wants to know of writes it makes them writable at once
(``vma_wants_manual_pte_write_upgrade()``), but not where files are in memory: shared anonymous memory, memfd, System V
shared memory, tmpfs. A GiB of it has 262144 faults.

process_vm_writev(2) makes the kernel take those faults on our behalf. Its source lies in memory of ours without read
access, so it faults each page in for writing, and then writes nothing (EFAULT). A process that maps something else
there meanwhile decides how long that takes: for another user's process, a helper process makes the call.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import logging
import mmap
import os
import struct
from typing import Final

import numpy as np

from kdamon.arrays import U8Array, U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.lib.mountinfo import mounts
from kdamon.lib.process_status import status_fields
from kdamon.lib.syscalls import NR_PROCESS_VM_WRITEV, syscall
from kdamon.mm.apart.madvise import fault_apart
from kdamon.mm.mmap_lock import held
from kdamon.mm.proc.file_systems import MEMORY, memory_device
from kdamon.mm.proc.maps import Mappings
from kdamon.mm.ranges import NO_RANGES

__all__ = ["PIECE", "make_writable", "present_runs", "shared_memory"]

log = logging.getLogger("kdamon")

_PAGEMAP_SCAN: Final = 0xC0606610
_PRESENT: Final = 1 << 3
_PROT_NONE: Final = 0

#: Bytes that one call makes writable at most: about 0.1 ms.
PIECE: Final = 128 * PAGE_SIZE
#: Runs of pages that one page table can have.
_RUNS: Final = 256


def shared_memory(pid: int, mappings: Mappings) -> U64Array:
    """Those of ``mappings``, of process ``pid``, that are shared memory which it may write, as ranges."""
    found = mappings.of(mappings.shared & mappings.writable)
    if not len(found):
        return NO_RANGES
    devices = np.array([*_file_systems_of_memory(pid)], dtype=np.uint64)
    return found.ranges[np.isin(found.devices, devices)]


def _file_systems_of_memory(pid: int) -> set[int]:
    """The devices of file systems that hold their files in memory, as process ``pid`` sees them."""
    devices = {memory_device()}
    try:
        devices |= {entry.device for entry in mounts(pid) if entry.fstype in MEMORY}
    except OSError as error:
        log.debug("process %d: its mounts are not known: %s", pid, error.strerror)
    return devices


def make_writable(pid: int, runs: list[tuple[int, int]]) -> bool:
    """Make pages writable without a fault.

    :param pid: the process; the caller knows that it still lives in the address space that the pages are of.
    :param runs: start and end of pages that are there, in shared mappings that it may write.
    :returns: False where the kernel refuses; then the process has those faults itself.
    """
    pieces = [(at, min(PIECE, end - at)) for start, end in runs for at in range(start, end, PIECE)]
    if _is_ours(pid):
        source = _unreadable().ctypes.data
        return all(_write(pid, source, at, size) == -errno.EFAULT for at, size in pieces)
    try:
        with held:
            return fault_apart(pid, b"".join(struct.pack("<QQ", at, size) for at, size in pieces))
    except OSError as error:
        log.warning("process %d: %s", pid, error.strerror)
        return False


def _is_ours(pid: int) -> bool:
    """Return whether a process is of our user, which can disturb us in other ways, too."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            users = status_fields(file.read())["Uid"].split()
    except OSError:
        return False
    return all(int(user) == os.geteuid() for user in users)


def _write(pid: int, source: int, target: int, size: int) -> int:
    """process_vm_writev() of ``size`` bytes from ``source`` to ``target``: how many were written, or -errno."""
    local, remote = struct.pack("<QQ", source, size), struct.pack("<QQ", target, size)
    with held:
        return syscall(NR_PROCESS_VM_WRITEV, pid, local, 1, remote, 1, 0)


def present_runs(pagemap: int, start: int, end: int) -> list[tuple[int, int]]:
    """The runs of pages that are in memory and mapped, within one page table."""
    found = (ctypes.c_uint64 * (3 * _RUNS))()
    place = ctypes.addressof(found)
    argument = bytearray(struct.pack("<12Q", 96, 0, start, end, 0, place, _RUNS, 0, 0, _PRESENT, 0, _PRESENT))
    with held:
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument)
    return [(found[3 * index], found[3 * index + 1]) for index in range(count)]


@functools.cache
def _unreadable() -> U8Array:
    """Addresses of ours without access, for as long as this process lives."""
    memory = mmap.mmap(-1, PIECE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=_PROT_NONE)
    return np.frombuffer(memory, dtype=np.uint8)
