# SPDX-License-Identifier: GPL-2.0-only
"""Reads page table entries of any process: a BPF program that walks the tables for a batch of addresses (x86_64).

The program finds the address space through an open /proc/PID/pagemap of this process: current -> files ->
fd[n] -> private_data is the ``struct mm_struct`` that the kernel let us open, and the descriptor keeps it. All
kernel memory is read by bpf_probe_read_kernel(), which answers a bad address with an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import platform
import threading
from typing import Final

import numpy as np
import numpy.typing as npt

from kdamon.mm import U64Array
from kdamon.mm.bpf import (
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    R9,
    R10,
    Array,
    Assembler,
    Helper,
    Program,
)
from kdamon.mm.btf import Btf, vmlinux

__all__ = ["ACCESSED", "CLEARABLE", "LARGE", "LEVEL", "PRESENT", "Walker", "missing_capability", "shared_walker"]

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT

# Page table entry bits (arch/x86/include/asm/pgtable_types.h).
_P: Final = 1 << 0
_PWT_PCD: Final = 0x18
_A: Final = 1 << 5
_PSE: Final = 1 << 7
_PROTNONE: Final = 1 << 8

#: Parts of a walk's flag byte. The level where the walk ended: 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB; 0 = unreadable.
LEVEL: Final = 0x07
#: The walk ended at a page.
PRESENT: Final = 0x08
#: The page is young 4 KiB, and part of a larger folio, or it could not be told.
LARGE: Final = 0x10
#: The page's accessed bit is set.
ACCESSED: Final = _A
#: The page is young 4 KiB, mapped once and on an LRU list: all that MADV_COLD asks of a page.
CLEARABLE: Final = 0x40

# Words of the header of the memory that is shared with the program.
(
    _COUNT,
    _FD,
    _BASE,
    _PGD,
    _MM,
    _MASK,
    _LIMIT,
    _LEVELS,
    _FAILED,
    _TOP,
    _VMEMMAP,
) = range(11)
_HEADER: Final = 128
#: Value of _LEVELS that makes the program read the addresses themselves.
_PEEK: Final = 0

_ENTRY_PFN: Final = ((1 << 52) - 1) & ~(PAGE_SIZE - 1)
_GIB: Final = 1 << 30
_PGDIR: Final = 1 << 39
_KERNEL_HALF: Final = 0xFFFF_8000_0000_0000
_ULONG_MAX: Final = (1 << 64) - 1
#: Where 5-level kernels map all memory, and the lowest kernel address there is.
_LOWEST: Final = 0xFF11_0000_0000_0000

_CAPABILITIES: Final = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


def missing_capability(*names: str) -> list[str]:
    """Those of ``names`` (``CAP_...``) that this process does not have."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return [name for name in names if not effective >> _CAPABILITIES[name] & 1]


class _Layout:
    """Offsets (bytes) in the running kernel's structures that the program goes through."""

    def __init__(self, btf: Btf) -> None:
        self.files = btf.offset("task_struct", "files")
        self.fdt = btf.offset("files_struct", "fdt")
        self.fd = btf.offset("fdtable", "fd")
        self.private_data = btf.offset("file", "private_data")
        self.pgd = btf.offset("mm_struct", "pgd")
        self.page_size = btf.size("page")
        self.page_flags = btf.offset("page", "flags")
        self.page_mapcount = btf.offset("page", "_mapcount")
        self.page_head = 1 << btf.enumerator("pageflags", "PG_head")
        self.page_lru = 1 << btf.enumerator("pageflags", "PG_lru")
        self.page_compound = self.page_index = -1
        # Both were renamed on the way to separate memory descriptors.
        for name in ("compound_head", "compound_info"):
            with contextlib.suppress(OSError):
                self.page_compound = btf.offset("page", name)
        for name in ("index", "__folio_index"):
            with contextlib.suppress(OSError):
                self.page_index = btf.offset("page", name)


class _Source:
    """The program's text.

    Registers: R6 the index, R7 the address, R8 the table, R9 the shared memory.
    """

    def __init__(self, layout: _Layout, map_fd: int, capacity: int) -> None:
        self._layout = layout
        self._map_fd = map_fd
        self._capacity = capacity

    def assemble(self, looped: bool) -> Assembler:
        """The whole program.

        :param looped: loop with bpf_loop() (kernel 5.17); otherwise with a jump back, which the verifier follows
            round by round and therefore bounds the batch.
        """
        asm = Assembler()
        asm.load_map_value(R9, self._map_fd)
        self._find_pgd(asm)
        if looped:
            asm.load(R1, R9, 8 * _COUNT)
            asm.load_function(R2, "each")
            asm.op("mov", R3, 0)
            asm.op("mov", R4, 0)
            asm.call(Helper.LOOP)
        else:
            asm.op("mov", R6, 0)
            asm.label("again")
            asm.load(R1, R9, 8 * _COUNT)
            asm.jump_if_reg("jge", R6, R1, "end")
            self._one(asm)
            asm.op("add", R6, 1)
            asm.jump_if("jlt", R6, self._capacity, "again")
            asm.label("end")
        asm.op("mov", R1, 0)
        asm.jump("leave")
        asm.label("failed")
        asm.op("mov", R1, 1)
        asm.label("leave")
        asm.store(8, R9, 8 * _FAILED, R1)
        asm.op("mov", R0, 0)
        asm.exit()
        if looped:
            asm.label("each")
            asm.op_reg("mov", R6, R1)
            asm.load_map_value(R9, self._map_fd)
            asm.jump_if("jgt", R6, self._capacity - 1, "stop")
            self._one(asm)
            asm.op("mov", R0, 0)
            asm.exit()
            asm.label("stop")
            asm.op("mov", R0, 1)
            asm.exit()
        return asm

    @staticmethod
    def _read(asm: Assembler, unreadable: str) -> None:
        """R1 = the 8 bytes of kernel memory at R3."""
        asm.op_reg("mov", R1, R10)
        asm.op("add", R1, -8)
        asm.op("mov", R2, 8)
        asm.call(Helper.PROBE_READ_KERNEL)
        asm.jump_if("jne", R0, 0, unreadable)
        asm.load(R1, R10, -8)

    def _find_pgd(self, asm: Assembler) -> None:
        layout = self._layout
        asm.call(Helper.GET_CURRENT_TASK)
        asm.op_reg("mov", R3, R0)
        for offset in (layout.files, layout.fdt, layout.fd):
            asm.op("add", R3, offset)
            self._read(asm, "failed")
            asm.op_reg("mov", R3, R1)
        asm.load(R1, R9, 8 * _FD)
        asm.op("lsh", R1, 3)
        asm.op_reg("add", R3, R1)
        self._read(asm, "failed")
        asm.op_reg("mov", R3, R1)
        asm.op("add", R3, layout.private_data)
        self._read(asm, "failed")
        asm.store(8, R9, 8 * _MM, R1)
        asm.op_reg("mov", R3, R1)
        asm.op("add", R3, layout.pgd)
        self._read(asm, "failed")
        asm.store(8, R9, 8 * _PGD, R1)

    def _one(self, asm: Assembler) -> None:
        """Walk for address number R6: R1 becomes the entry, R2 the flags, and both are stored."""
        asm.op_reg("mov", R8, R6)
        asm.op("lsh", R8, 3)
        asm.op_reg("add", R8, R9)
        asm.load(R7, R8, _HEADER)
        asm.load(R1, R9, 8 * _TOP)
        asm.jump_if_reg("jge", R7, R1, "outside")
        asm.load(R8, R9, 8 * _PGD)
        asm.load(R1, R9, 8 * _LEVELS)
        asm.jump_if("jeq", R1, _PEEK, "peek")
        asm.jump_if("jne", R1, 5, "level 4")
        for level in (5, 4, 3, 2, 1):
            self._step(asm, level)
        self._leaf(asm)
        asm.label("peek")
        asm.op_reg("mov", R3, R7)
        self._read(asm, "unreadable")
        asm.op("mov", R2, PRESENT)
        asm.jump("store")
        asm.label("outside")
        asm.op("mov", R1, 0)
        asm.op("mov", R2, LEVEL)
        asm.jump("store")
        asm.label("unreadable")
        asm.op("mov", R1, 0)
        asm.op("mov", R2, 0)
        asm.label("store")
        asm.op_reg("mov", R3, R6)
        asm.op("lsh", R3, 3)
        asm.op_reg("add", R3, R9)
        asm.op("add", R3, _HEADER + 8 * self._capacity)
        asm.store(8, R3, 0, R1)
        asm.op_reg("mov", R3, R6)
        asm.op_reg("add", R3, R9)
        asm.op("add", R3, _HEADER + 16 * self._capacity)
        asm.store(1, R3, 0, R2)

    def _step(self, asm: Assembler, level: int) -> None:
        asm.label(f"level {level}")
        asm.op_reg("mov", R3, R7)
        asm.op("rsh", R3, PAGE_SHIFT + 9 * (level - 1))
        asm.op("and", R3, 511)
        asm.op("lsh", R3, 3)
        asm.op_reg("add", R3, R8)
        self._read(asm, "unreadable")
        asm.op("mov", R2, level)
        if level == 1:
            # A page of another node that NUMA balancing watches has no P bit but is mapped.
            asm.jump_if("jset", R1, _P | _PROTNONE, "leaf")
            asm.jump("store")
            return
        if level in (2, 3):
            # PSE alone: the kernel takes P away while it splits or changes a large page.
            asm.jump_if("jset", R1, _PSE, "leaf")
        asm.jump_if("jset", R1, _P, f"table {level}")
        asm.jump("store")
        asm.label(f"table {level}")
        asm.load(R2, R9, 8 * _MASK)
        asm.op_reg("and", R1, R2)
        # A table that is freed under us holds anything; nothing beyond RAM, where devices are, is read for it.
        asm.load(R2, R9, 8 * _LIMIT)
        asm.jump_if_reg("jge", R1, R2, "unreadable")
        asm.load(R2, R9, 8 * _BASE)
        asm.op_reg("add", R1, R2)
        asm.op_reg("mov", R8, R1)

    def _leaf(self, asm: Assembler) -> None:
        layout = self._layout
        asm.label("leaf")
        asm.op("or", R2, PRESENT)
        asm.op_reg("mov", R3, R1)
        asm.op("and", R3, _A)
        asm.op_reg("or", R2, R3)
        # Only a young 4 KiB page will be cleared, and only then its folio matters.
        asm.jump_if("jne", R2, 1 | PRESENT | ACCESSED, "store")
        asm.op_reg("mov", R7, R1)
        if layout.page_compound >= 0:
            asm.jump_if("jset", R1, _P, "folio")
            asm.jump("large")
            asm.label("folio")
            asm.load(R8, R9, 8 * _VMEMMAP)
            asm.jump_if("jeq", R8, 0, "large")
            asm.load(R3, R9, 8 * _MASK)
            asm.op_reg("and", R3, R7)
            asm.op("rsh", R3, PAGE_SHIFT)
            asm.op("mul", R3, layout.page_size)
            asm.op_reg("add", R8, R3)
            self._page_member(asm, layout.page_compound)
            asm.jump_if("jset", R1, 1, "large")
            self._page_member(asm, layout.page_flags)
            asm.jump_if("jset", R1, layout.page_head, "large")
            asm.jump_if("jset", R1, layout.page_lru, "listed")
            asm.jump("small")
            asm.label("listed")
            self._page_member(asm, layout.page_mapcount)
            # 32 bits, and 0 means one mapping.
            asm.op("lsh", R1, 32)
            asm.op("mov", R2, 1 | PRESENT | ACCESSED | CLEARABLE)
            asm.jump_if("jeq", R1, 0, "raw")
            asm.label("small")
            asm.op("mov", R2, 1 | PRESENT | ACCESSED)
            asm.jump("raw")
        asm.label("large")
        asm.op("mov", R2, 1 | PRESENT | ACCESSED | LARGE)
        asm.label("raw")
        asm.op_reg("mov", R1, R7)
        asm.jump("store")

    def _page_member(self, asm: Assembler, offset: int) -> None:
        """R1 = 8 bytes at ``offset`` in the struct page at R8."""
        asm.op_reg("mov", R3, R8)
        asm.op("add", R3, offset)
        self._read(asm, "large")


class Walker:
    """Walks page tables for up to :attr:`capacity` addresses in one system call.

    :param looped: use bpf_loop(); None tries it and falls back, which kernels before 5.17 need.
    :raises OSError: EPERM or EOPNOTSUPP with a sentence on what this machine lacks.
    """

    def __init__(self, looped: bool | None = None) -> None:
        if platform.machine() != "x86_64":
            raise OSError(
                errno.EOPNOTSUPP,
                f"page tables can be walked on x86_64 only so far, and this machine is {platform.machine()}",
            )
        self._lock = threading.Lock()
        self._layout = _Layout(vmlinux())
        self._array: Array
        self._program: Program
        self._load(looped)
        try:
            self._calibrate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unload the program and give its memory back."""
        self._program.close()
        self._array.close()

    def walk(self, pagemap_fd: int, addrs: U64Array) -> tuple[npt.NDArray[np.uint8], U64Array]:
        """Flags and raw entries for ``addrs`` (bytes, shape (n,)) in an open /proc/PID/pagemap's address space.

        Addresses outside the user's half, and all addresses of an address space that ended, are not present.

        :returns: two new arrays of shape (n,); see :data:`LEVEL`, :data:`PRESENT`, :data:`LARGE`, :data:`ACCESSED`.
        """
        count = len(addrs)
        with self._lock:
            self._header[_FD] = pagemap_fd
            if count <= self.capacity:
                self._run(addrs, count)
                return self._flags[:count].copy(), self._entries[:count].copy()
            flags = np.empty(count, dtype=np.uint8)
            entries = np.empty(count, dtype=np.uint64)
            for first in range(0, count, self.capacity):
                part = addrs[first : first + self.capacity]
                self._run(part, len(part))
                flags[first : first + len(part)] = self._flags[: len(part)]
                entries[first : first + len(part)] = self._entries[: len(part)]
            return flags, entries

    def young(self, pagemap_fd: int, addrs: U64Array) -> npt.NDArray[np.uint8]:
        """The flags of :meth:`walk` alone."""
        count = len(addrs)
        if count > self.capacity:
            return self.walk(pagemap_fd, addrs)[0]
        with self._lock:
            self._header[_FD] = pagemap_fd
            self._run(addrs, count)
            return self._flags[:count].copy()

    def mm(self, pagemap_fd: int) -> int:
        """Something that tells the address space behind an open /proc/PID/pagemap from every other one."""
        with self._lock:
            self._header[_FD] = pagemap_fd
            self._run(np.empty(0, dtype=np.uint64), 0)
            return int(self._header[_MM])

    def pfns(self, entries: U64Array) -> U64Array:
        """Page frame numbers in ``entries``; 0 for an entry that has none in plain form (P is clear)."""
        found: U64Array = (entries & np.uint64(self._pfn_mask)) >> np.uint64(PAGE_SHIFT)
        found[(entries & np.uint64(_P)) == 0] = 0
        return found

    def _run(self, addrs: U64Array, count: int) -> None:
        self._addrs[:count] = addrs
        self._header[_COUNT] = count
        self._program.run()
        if self._header[_FAILED]:
            raise OSError(errno.EBADF, "the page table walk found no address space behind its file descriptor")

    def _load(self, looped: bool | None) -> None:
        # The verifier follows 400 instructions a round without bpf_loop(), and gives up after a million.
        attempts = ((True, 1 << 14), (False, 1 << 8), (False, 1 << 6))
        error: OSError | None = None
        for with_loop, capacity in attempts:
            if looped is not None and looped != with_loop:
                continue
            size = -(-(_HEADER + 17 * capacity) // PAGE_SIZE) * PAGE_SIZE
            try:
                array = Array(size)
            except OSError as failure:
                raise _explained(failure) from failure
            source = _Source(self._layout, array.fd, capacity).assemble(with_loop)
            try:
                self._program = Program(source, "kdamon_walk", "each" if with_loop else None)
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
            self._header: U64Array = whole[:_HEADER].view(np.uint64)
            self._addrs: U64Array = whole[_HEADER : _HEADER + 8 * capacity].view(np.uint64)
            self._entries: U64Array = whole[_HEADER + 8 * capacity : _HEADER + 16 * capacity].view(np.uint64)
            self._flags: npt.NDArray[np.uint8] = whole[_HEADER + 16 * capacity : _HEADER + 17 * capacity]
            return
        assert error is not None
        raise _explained(error) from error

    def _calibrate(self) -> None:
        """Find where the kernel maps all memory (it is random), and prove it on pages of our own."""
        try:
            fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            raise OSError(
                errno.EPERM,
                "this process may not look at its own memory, as after a change of user; run as root or start it as "
                "the user that it runs as",
            ) from None
        try:
            with _OwnPages() as own:
                self._calibrate_on(fd, own)
        finally:
            os.close(fd)

    def _calibrate_on(self, fd: int, own: _OwnPages) -> None:
        header = self._header
        limit = _end_of_ram()
        # Bits above the end of RAM are no address: AMD's memory encryption keeps a flag there.
        self._pfn_mask = ((1 << limit.bit_length()) - 1) & _ENTRY_PFN
        header[_MASK] = self._pfn_mask
        header[_LIMIT] = limit
        header[_TOP] = _ULONG_MAX
        header[_LEVELS] = 4
        self.mm(fd)
        pgd = int(header[_PGD])
        levels = 4 if pgd >= _KERNEL_HALF else 5
        header[_LEVELS] = levels
        header[_BASE] = base = self._find_base(fd, pgd, limit)
        flags, entries = self.walk(fd, own.addrs)
        if not own.agree(fd, flags, self.pfns(entries)):
            raise OSError(
                errno.EOPNOTSUPP,
                "the page table walk disagrees with /proc/self/pagemap about this process's own pages; "
                "this kernel arranges its page tables in a way that is not known",
            )
        touched = own.addrs[own.touched]
        if self._layout.page_compound >= 0 and self._layout.page_index >= 0:
            header[_VMEMMAP] = self._find_vmemmap(fd, touched, self.pfns(entries[own.touched]), base, limit)
        header[_TOP] = 1 << (47 if levels == 4 else 56)

    def _find_base(self, fd: int, pgd: int, limit: int) -> int:
        """The base under which walking to the page directory's own address ends at its own physical address."""
        found = []
        target = np.array([pgd], dtype=np.uint64)
        candidate = pgd & ~(_GIB - 1)
        while candidate >= max(pgd - limit - _GIB, _LOWEST):
            self._header[_BASE] = candidate
            flags, entries = self.walk(fd, target)
            if flags[0] & PRESENT:
                within = (1 << (PAGE_SHIFT + 9 * (int(flags[0] & LEVEL) - 1))) - 1
                physical = int(entries[0]) & self._pfn_mask & ~within | pgd & within
                if physical == pgd - candidate:
                    found.append(candidate)
            candidate -= _GIB
        if len(found) != 1:
            raise OSError(
                errno.EOPNOTSUPP,
                f"the kernel's map of physical memory was not found ({len(found)} candidates); "
                "this kernel arranges its page tables in a way that is not known",
            )
        return found[0]

    def _find_vmemmap(self, fd: int, own: U64Array, pfns: U64Array, base: int, limit: int) -> int:
        """Where the array of struct page is, or 0 when it was not found for certain.

        The struct page of an anonymous page of ours holds the page's index, which is its address in pages.
        """
        size = self._layout.page_size
        first = int(pfns[0]) * size
        found = []
        for slot in self._kernel_slots(fd, base, limit):
            address = slot + first % _GIB
            flags, entries = self.walk(fd, np.array([address], dtype=np.uint64))
            # Device registers must not be read: they lie outside RAM or are mapped uncached.
            memory = int(entries[0]) & self._pfn_mask < limit and not int(entries[0]) & _PWT_PCD
            if not flags[0] & PRESENT or not memory:
                continue
            candidate = (slot - first // _GIB * _GIB) & _ULONG_MAX
            with np.errstate(over="ignore"):
                places = np.uint64(candidate) + pfns * np.uint64(size) + np.uint64(self._layout.page_index)
            if not self._all_memory(fd, places, limit):
                continue
            levels = int(self._header[_LEVELS])
            self._header[_LEVELS] = _PEEK
            try:
                flags, indexes = self.walk(fd, places)
            finally:
                self._header[_LEVELS] = levels
            if flags.all() and np.array_equal(indexes, own >> np.uint64(PAGE_SHIFT)):
                found.append(candidate)
        return found[0] if len(found) == 1 else 0

    def _all_memory(self, fd: int, places: U64Array, limit: int) -> bool:
        flags, entries = self.walk(fd, places)
        physical = entries & np.uint64(self._pfn_mask)
        cached = (entries & np.uint64(_PWT_PCD)) == 0
        return bool(((flags & PRESENT) != 0).all() and (physical < limit).all() and cached.all())

    def _kernel_slots(self, fd: int, base: int, limit: int) -> list[int]:
        """Kernel addresses, multiples of 1 GiB, where something is mapped, leaving out the map of all memory."""
        lowest = _KERNEL_HALF if self._header[_LEVELS] == 4 else _LOWEST
        slots = np.arange(lowest, _ULONG_MAX - _PGDIR, _PGDIR, dtype=np.uint64)
        flags, _ = self.walk(fd, slots)
        tables = slots[(flags & LEVEL) <= 3]
        inner = np.arange(0, _PGDIR, _GIB, dtype=np.uint64)
        slots = (tables[:, None] + inner[None, :]).ravel()
        flags, _ = self.walk(fd, slots)
        within = flags & LEVEL
        used = (within < 3) | ((flags & PRESENT) != 0)
        outside = (slots < np.uint64(base)) | (slots >= np.uint64(min(base + limit, _ULONG_MAX)))
        found: list[int] = slots[used & outside].tolist()
        return found


class _OwnPages:
    """128 pages of this process, half of them touched, to try the walk on."""

    def __enter__(self) -> _OwnPages:
        count = 128
        self._memory = mmap.mmap(-1, count * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        anchor = ctypes.c_char.from_buffer(self._memory)
        base = ctypes.addressof(anchor)
        del anchor
        self.addrs: U64Array = np.uint64(base) + np.arange(count, dtype=np.uint64) * np.uint64(PAGE_SIZE)
        # No regular pattern: a wrong base must not match by luck.
        self.touched: npt.NDArray[np.bool_] = np.random.default_rng(1).permutation(count) % 2 == 0
        for index in np.flatnonzero(self.touched).tolist():
            self._memory[index * PAGE_SIZE] = 1
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()

    def agree(self, fd: int, flags: npt.NDArray[np.uint8], pfns: U64Array) -> bool:
        """Tell whether a walk's results are what was touched and what the pagemap says."""
        offset = int(self.addrs[0]) // PAGE_SIZE * 8
        pagemap = np.frombuffer(os.pread(fd, 8 * len(self.addrs), offset), dtype=np.uint64)
        visible = pagemap & np.uint64((1 << 55) - 1)
        # Without CAP_SYS_ADMIN the pagemap shows no frame numbers, only what is present.
        same = not visible.any() or np.array_equal(visible[self.touched], pfns[self.touched])
        present = (flags & PRESENT) != 0
        return bool(np.array_equal(present, self.touched) and (flags[self.touched] & LEVEL == 1).all() and same)


def _end_of_ram() -> int:
    """The first physical address (bytes) after all memory, from /proc/zoneinfo."""
    end = spanned = 0
    with open("/proc/zoneinfo", encoding="utf-8") as zones:
        for line in zones:
            words = line.split()
            if words and words[0] == "spanned":
                spanned = int(words[1])
            elif words and words[0] == "start_pfn:":
                end = max(end, int(words[1]) + spanned)
    return end * PAGE_SIZE


def _explained(error: OSError) -> OSError:
    """``error`` of loading the program, with what stands behind it and what to do about it."""
    lacking = missing_capability("CAP_BPF", "CAP_PERFMON")
    if lacking and missing_capability("CAP_SYS_ADMIN"):
        return OSError(
            errno.EPERM,
            f"reading page tables needs {' and '.join(lacking)}; run as root or give these capabilities",
        )
    try:
        with open("/sys/kernel/security/lockdown", encoding="utf-8") as lockdown:
            confidential = "[confidentiality]" in lockdown.read()
    except OSError:
        confidential = False
    if confidential:
        return OSError(
            errno.EPERM,
            "the kernel is locked down (lockdown=confidentiality) and lets no program read its memory; "
            "boot with lockdown=integrity or none",
        )
    if error.errno == errno.EPERM:
        return OSError(
            errno.EPERM,
            "the kernel refuses to load a BPF program although this process may; in a container its seccomp "
            "filter must allow bpf()",
        )
    return OSError(
        errno.EOPNOTSUPP,
        f"the kernel does not take the page table walk ({error.strerror}); Linux 5.10 or later is needed",
    )


@functools.cache
def _shared() -> Walker:
    return Walker()


_shared_lock = threading.Lock()
# Parent and child would overwrite each other's batches: the memory is shared, so a child makes its own.
os.register_at_fork(after_in_child=_shared.cache_clear)


def shared_walker() -> Walker:
    """The one walker of this process, made when it is first asked for; any thread may use it.

    :raises OSError: see :class:`Walker`; a failure is not remembered.
    """
    with _shared_lock:
        return _shared()
