# SPDX-License-Identifier: GPL-2.0-only
"""Runs the BPF program that walks page tables, for batches of addresses (x86_64).

The program finds the address space through an open /proc/PID/pagemap of this process: current -> files ->
fd[n] -> private_data is the ``struct mm_struct`` that the kernel let us open, and the descriptor keeps it. All
kernel memory is read by bpf_probe_read_kernel(), which answers a bad address with an error.
"""

from __future__ import annotations

import errno
import platform
import threading
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U8Array, U64Array
from kdamon.kernel import PAGE_SHIFT, PAGE_SIZE
from kdamon.lib.rights import refused_program
from kdamon.mm.bpf.btf import vmlinux
from kdamon.mm.bpf.program import Array, Program
from kdamon.mm.bpf.walk_program import HEADER_SIZE, PEEK, PTE_PRESENT, Layout, Source, Word

__all__ = ["ULONG_MAX", "WalkBatches"]

ULONG_MAX: Final = (1 << 64) - 1

#: How sentences about what is missing begin.
_NEEDS: Final = "reading page tables needs"


class WalkBatches:
    """The program, and the memory that it shares with this process; :mod:`kdamon.mm.bpf.calibration` makes it usable.

    :param looped: use bpf_loop(); None tries it and falls back, which kernels before 5.17 need.
    :ivar capacity: addresses in one system call.
    :ivar header: the words of :class:`kdamon.mm.bpf.walk_program.Word`.
    :ivar layout: offsets in the running kernel's structures.
    :ivar pfn_mask: the physical address in an entry; the calibration sets it.
    :ivar lock: to be held while the shared memory is used.
    :raises OSError: EPERM or EOPNOTSUPP with a sentence on what this machine lacks.
    """

    def __init__(self, looped: bool | None) -> None:
        if platform.machine() != "x86_64":
            raise OSError(
                errno.EOPNOTSUPP,
                f"the page table walk supports x86_64 only, and this machine is {platform.machine()}",
            )
        self.lock = threading.Lock()
        self.layout = Layout(vmlinux())
        self.pfn_mask = 0
        self._array: Array
        self._program: Program
        self._load(looped)

    def close(self) -> None:
        """Unload the program and give its memory back."""
        self._program.close()
        self._array.close()

    def walk(self, pagemap_fd: int, addrs: U64Array) -> tuple[U8Array, U64Array]:
        """Flags and raw entries for ``addrs`` (bytes, shape (n,)) in an open /proc/PID/pagemap's address space.

        Addresses outside the user's half, and all addresses of an address space that ended, are not present.

        :returns: two new arrays of shape (n,); the flags are those of :mod:`kdamon.mm.bpf.walk_program`.
        """
        with self.lock:
            self.header[Word.FD] = pagemap_fd
            return self.batch(addrs)

    def mm(self, pagemap_fd: int) -> int:
        """A number that identifies the address space of an open /proc/PID/pagemap among all others."""
        with self.lock:
            self.header[Word.FD] = pagemap_fd
            self.run(np.empty(0, dtype=np.uint64), 0)
            return int(self.header[Word.MM])

    def pfns(self, entries: U64Array) -> U64Array:
        """Page frame numbers in ``entries``; 0 for an entry that has none in plain form (P is clear)."""
        found: U64Array = (entries & np.uint64(self.pfn_mask)) >> np.uint64(PAGE_SHIFT)
        found[(entries & np.uint64(PTE_PRESENT)) == 0] = 0
        return found

    def batch(self, addrs: U64Array) -> tuple[U8Array, U64Array]:
        """Flags and entries for ``addrs``, in as many system calls as they take."""
        count = len(addrs)
        if count <= self.capacity:
            self.run(addrs, count)
            return self._flags[:count].copy(), self._entries[:count].copy()
        flags = np.empty(count, dtype=np.uint8)
        entries = np.empty(count, dtype=np.uint64)
        for first in range(0, count, self.capacity):
            part = addrs[first : first + self.capacity]
            self.run(part, len(part))
            flags[first : first + len(part)] = self._flags[: len(part)]
            entries[first : first + len(part)] = self._entries[: len(part)]
        return flags, entries

    def peek(self, places: U64Array) -> tuple[Mask, U64Array]:
        """Whether kernel memory at ``places`` can be read, and the 8 bytes there."""
        header = self.header
        before = header[[Word.LEVELS, Word.TOP]]
        header[[Word.LEVELS, Word.TOP]] = PEEK, ULONG_MAX
        try:
            flags, words = self.batch(places)
        finally:
            header[[Word.LEVELS, Word.TOP]] = before
        return flags != 0, words

    def run(self, addrs: U64Array, count: int) -> None:
        self._addrs[:count] = addrs
        self.header[Word.COUNT] = count
        self._program.run()
        if self.header[Word.FAILED]:
            raise OSError(errno.EBADF, "the page table walk found no address space for its file descriptor")

    def _load(self, looped: bool | None) -> None:
        # The verifier follows 400 instructions a round without bpf_loop(), and gives up after a million.
        attempts = ((True, 1 << 14), (False, 1 << 8), (False, 1 << 6))
        error: OSError | None = None
        for with_loop, capacity in attempts:
            if looped is not None and looped != with_loop:
                continue
            size = -(-(HEADER_SIZE + 17 * capacity) // PAGE_SIZE) * PAGE_SIZE
            try:
                array = Array(size)
            except OSError as failure:
                raise refused_program(_NEEDS, failure) from failure
            source = Source(self.layout, array.fd, capacity).assemble(with_loop)
            try:
                self._program = Program(source, "kdamon_walk", ("each",) if with_loop else ())
            except OSError as failure:
                error = failure
                array.memory.close()
                array.close()
                if failure.errno == errno.EPERM:
                    break
                continue
            self.capacity = capacity
            self._array = array
            whole = np.frombuffer(array.memory, dtype=np.uint8)
            self.header: U64Array = whole[:HEADER_SIZE].view(np.uint64)
            self._addrs: U64Array = whole[HEADER_SIZE : HEADER_SIZE + 8 * capacity].view(np.uint64)
            self._entries: U64Array = whole[HEADER_SIZE + 8 * capacity : HEADER_SIZE + 16 * capacity].view(np.uint64)
            self._flags: U8Array = whole[HEADER_SIZE + 16 * capacity : HEADER_SIZE + 17 * capacity]
            return
        assert error is not None
        raise refused_program(_NEEDS, error) from error
