# SPDX-License-Identifier: GPL-2.0-only
"""Reads page table entries of any process: a BPF program that walks the tables for a batch of addresses (x86_64).

The program finds the address space through an open /proc/PID/pagemap of this process: current -> files ->
fd[n] -> private_data is the ``struct mm_struct`` that the kernel let us open, and the descriptor keeps it. All
kernel memory is read by bpf_probe_read_kernel(), which answers a bad address with an error.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import platform
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U8Array, U64Array
from kdamon.kernel import PAGE_SHIFT, PAGE_SIZE
from kdamon.lib.rights import refused_program
from kdamon.mm import FrameKind
from kdamon.mm.bpf.btf import vmlinux
from kdamon.mm.bpf.interval_program import IntervalLayout, IntervalProgram
from kdamon.mm.bpf.program import Array, Program
from kdamon.mm.bpf.walk_program import (
    HEADER_SIZE,
    LEVEL,
    PEEK,
    PRESENT,
    PTE_PRESENT,
    PTE_UNCACHED,
    Layout,
    PageLayout,
    Source,
    Word,
)

__all__ = ["RWSEM_FLAG_WAITERS", "Walker", "made_walker", "shared_walker"]

_ENTRY_PFN: Final = ((1 << 52) - 1) & ~(PAGE_SIZE - 1)
_GIB: Final = 1 << 30
_PGDIR: Final = 1 << 39
#: In the state of a semaphore (kernel/locking/rwsem.c).
RWSEM_FLAG_WAITERS: Final = 1 << 1
_KERNEL_HALF: Final = 0xFFFF_8000_0000_0000
_ULONG_MAX: Final = (1 << 64) - 1
#: Where 5-level kernels map all memory, and the lowest kernel address there is.
_LOWEST: Final = 0xFF11_0000_0000_0000

#: How sentences about what is missing begin.
_NEEDS: Final = "reading page tables needs"


class Walker:
    """Walks page tables for up to :attr:`capacity` addresses in one system call.

    :param looped: use bpf_loop(); None tries it and falls back, which kernels before 5.17 need.
    :raises OSError: EPERM or EOPNOTSUPP with a sentence on what this machine lacks.
    """

    def __init__(self, looped: bool | None = None) -> None:
        if platform.machine() != "x86_64":
            raise OSError(
                errno.EOPNOTSUPP,
                f"the page table walk supports x86_64 only, and this machine is {platform.machine()}",
            )
        self._lock = threading.Lock()
        #: What the address space of each open pagemap may be.
        self._mms: dict[int, int] = {}
        self._layout = Layout(vmlinux())
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

    def walk(self, pagemap_fd: int, addrs: U64Array) -> tuple[U8Array, U64Array]:
        """Flags and raw entries for ``addrs`` (bytes, shape (n,)) in an open /proc/PID/pagemap's address space.

        Addresses outside the user's half, and all addresses of an address space that ended, are not present.

        :returns: two new arrays of shape (n,); the flags are those of :mod:`kdamon.mm.bpf.walk_program`.
        """
        with self._lock:
            self._header[Word.FD] = pagemap_fd
            return self._batch(addrs)

    def young(self, pagemap_fd: int, addrs: U64Array) -> U8Array:
        """The flags of :meth:`walk` alone."""
        count = len(addrs)
        if count > self.capacity:
            return self.walk(pagemap_fd, addrs)[0]
        with self._lock:
            self._header[Word.FD] = pagemap_fd
            self._run(addrs, count)
            return self._flags[:count].copy()

    def frame_kinds(self, pagemap_fd: int, pfns: U64Array) -> U8Array:
        """The kinds of page frames by the kernel's ``struct page``, a value of :class:`FrameKind` each, shape (n,).

        The kind stays open for reserved pages, addresses without memory, folios of several pages that are on no LRU
        list, and for all if the layout of ``struct page`` is unknown.

        :param pagemap_fd: any open /proc/PID/pagemap.
        :param pfns: shape (n,), any order.
        """
        found = np.full(len(pfns), FrameKind.UNTOLD, dtype=np.uint8)
        page, vmemmap = self._layout.page, self._header[Word.VMEMMAP]
        # Nothing beyond RAM is read: device registers may be there.
        there = np.flatnonzero(pfns < self._header[Word.LIMIT] >> np.uint64(PAGE_SHIFT))
        if page is None or not vmemmap or not len(there):
            return found
        places = vmemmap + pfns[there] * np.uint64(page.size)
        with self._lock:
            self._header[Word.FD] = pagemap_fd
            readable, (compound, flags, counts) = self._members(places, (page.compound, page.flags, page.counts))
            tail = (compound & np.uint64(1)) != 0
            heads = np.where(tail, compound - np.uint64(1), places)
            large = readable & (tail | ((flags & np.uint64(page.head)) != 0))
            large &= (heads >= vmemmap) & (heads <= places)
            large_readable, (head_flags, mapcount) = self._members(
                heads[large], (page.flags, page.flags if page.large_mapcount is None else page.large_mapcount)
            )
        single = readable & ~tail & ((flags & np.uint64(page.head | page.reserved)) == 0)
        # One less than the number of mappings; the types of pages that are not mapped are further below.
        mappings = counts.astype(np.uint32).view(np.int32)
        # Memory that was not put into use since boot has 0 in everything.
        used = counts >> np.uint64(32) != 0
        on_list = (flags & np.uint64(page.lru)) != 0
        kinds = np.where(used & (mappings == 0), FrameKind.MAPPED_ONCE, FrameKind.OTHER)
        kinds[((mappings < 0) | ~used) & ~on_list] = FrameKind.UNREACHABLE
        found[there[single]] = kinds[single]
        once = (mapcount.astype(np.uint32) == 0) & (page.large_mapcount is not None)
        kinds = np.where(once, FrameKind.MAPPED_ONCE, FrameKind.OTHER)
        on_list = large_readable & ((head_flags & np.uint64(page.lru)) != 0)
        found[there[large][on_list]] = kinds[on_list]
        return found

    def _members(self, places: U64Array, members: Sequence[int]) -> tuple[Mask, U64Array]:
        """Which structures at ``places`` can be read, and 8 bytes at each offset in them, shape (len(members), n)."""
        offsets = np.array(members, dtype=np.uint64)
        readable, words = self._peek((places + offsets[:, None]).ravel())
        whole: Mask = np.logical_and.reduce(readable.reshape(len(offsets), -1))
        return whole, words.reshape(len(offsets), -1)

    def mm(self, pagemap_fd: int) -> int:
        """A number that identifies the address space of an open /proc/PID/pagemap among all others."""
        with self._lock:
            self._header[Word.FD] = pagemap_fd
            self._run(np.empty(0, dtype=np.uint64), 0)
            return int(self._header[Word.MM])

    def page_directory(self, pagemap_fd: int) -> tuple[int, int]:
        """Where the ``struct mm_struct`` of an open /proc/PID/pagemap is, and its page directory; they stay there."""
        with self._lock:
            self._header[Word.FD] = pagemap_fd
            self._run(np.empty(0, dtype=np.uint64), 0)
            return int(self._header[Word.MM]), int(self._header[Word.PGD])

    def interval_program(self) -> IntervalProgram:
        """A new program for whole sampling intervals, the caller's to close.

        :raises OSError: EPERM without the rights; EOPNOTSUPP, and what the verifier says, where the kernel cannot.
        """
        with self._lock:
            return IntervalProgram(self._layout, IntervalLayout(vmlinux()), self._header.copy())

    def waited_for(self, pagemap_fd: int, unseen: bool = True) -> bool:
        """Return whether some thread waits for the mmap_lock of the address space of an open /proc/PID/pagemap.

        :param unseen: the answer where that cannot be seen.
        """
        word = self._word_of_mm(pagemap_fd, self._layout.mmap_lock)
        return unseen if word is None else bool(word & RWSEM_FLAG_WAITERS)

    def changes(self, pagemap_fd: int) -> int | None:
        """A number that differs from an earlier one if the mappings changed since, None where the kernel has none.

        It is ``mm_lock_seq``: every change of a mapping takes the mmap_lock for writing.

        :param pagemap_fd: open /proc/PID/pagemap of the address space.
        """
        word = self._word_of_mm(pagemap_fd, self._layout.mm_lock_seq)
        return None if word is None else word & 0xFFFF_FFFF

    def table_bytes(self, pagemap_fd: int) -> int | None:
        """How many bytes the page tables of the address space take, None where that is not known.

        :param pagemap_fd: open /proc/PID/pagemap of the address space.
        """
        return self._word_of_mm(pagemap_fd, self._layout.pgtables_bytes)

    def _word_of_mm(self, pagemap_fd: int, offset: int | None) -> int | None:
        """8 bytes at ``offset`` in the ``struct mm_struct`` of an open /proc/PID/pagemap, None if they are not seen."""
        if offset is None:
            return None
        with self._lock:
            self._header[Word.FD] = pagemap_fd
            while True:
                # The shared memory shows afterwards for which address space the program ran.
                expected = self._mms.get(pagemap_fd, 0)
                readable, words = self._peek(np.array([expected + offset], dtype=np.uint64))
                mm = int(self._header[Word.MM])
                if mm == expected:
                    return int(words[0]) if readable[0] else None
                self._mms[pagemap_fd] = mm

    def pfns(self, entries: U64Array) -> U64Array:
        """Page frame numbers in ``entries``; 0 for an entry that has none in plain form (P is clear)."""
        found: U64Array = (entries & np.uint64(self._pfn_mask)) >> np.uint64(PAGE_SHIFT)
        found[(entries & np.uint64(PTE_PRESENT)) == 0] = 0
        return found

    def _batch(self, addrs: U64Array) -> tuple[U8Array, U64Array]:
        """Flags and entries for ``addrs``, in as many system calls as they take."""
        count = len(addrs)
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

    def _peek(self, places: U64Array) -> tuple[Mask, U64Array]:
        """Whether kernel memory at ``places`` can be read, and the 8 bytes there."""
        header = self._header
        before = header[[Word.LEVELS, Word.TOP]]
        header[[Word.LEVELS, Word.TOP]] = PEEK, _ULONG_MAX
        try:
            flags, words = self._batch(places)
        finally:
            header[[Word.LEVELS, Word.TOP]] = before
        return flags != 0, words

    def _run(self, addrs: U64Array, count: int) -> None:
        self._addrs[:count] = addrs
        self._header[Word.COUNT] = count
        self._program.run()
        if self._header[Word.FAILED]:
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
            source = Source(self._layout, array.fd, capacity).assemble(with_loop)
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
            self._header: U64Array = whole[:HEADER_SIZE].view(np.uint64)
            self._addrs: U64Array = whole[HEADER_SIZE : HEADER_SIZE + 8 * capacity].view(np.uint64)
            self._entries: U64Array = whole[HEADER_SIZE + 8 * capacity : HEADER_SIZE + 16 * capacity].view(np.uint64)
            self._flags: U8Array = whole[HEADER_SIZE + 16 * capacity : HEADER_SIZE + 17 * capacity]
            return
        assert error is not None
        raise refused_program(_NEEDS, error) from error

    def _calibrate(self) -> None:
        """Find the address at which the kernel maps all memory (it is random), and check it on pages of our own."""
        try:
            fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            raise OSError(
                errno.EPERM,
                "this process may not read its own memory, as after a change of user; run as root or start it as "
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
        header[Word.MASK] = self._pfn_mask
        header[Word.LIMIT] = limit
        header[Word.TOP] = _ULONG_MAX
        header[Word.LEVELS] = 4
        self.mm(fd)
        pgd = int(header[Word.PGD])
        levels = 4 if pgd >= _KERNEL_HALF else 5
        header[Word.LEVELS] = levels
        bases = [base for base in self._find_bases(fd, pgd, limit) if self._walks_right(fd, own, base)]
        if len(bases) != 1:
            raise OSError(
                errno.EOPNOTSUPP,
                f"the kernel's map of physical memory was not found ({len(bases)} candidates); "
                "the layout of this kernel's page tables is unknown",
            )
        header[Word.BASE] = base = bases[0]
        _, entries = self.walk(fd, own.addrs)
        touched = own.addrs[own.touched]
        if self._layout.page is not None:
            pfns = self.pfns(entries[own.touched])
            header[Word.VMEMMAP] = self._find_vmemmap(fd, self._layout.page, touched, pfns, base, limit)
        header[Word.TOP] = 1 << (47 if levels == 4 else 56)

    def _find_bases(self, fd: int, pgd: int, limit: int) -> list[int]:
        """The bases under which walking to the page directory's own address ends at its own physical address.

        Under a wrong base any memory may be read for a page table; seldom, that fits too.
        """
        found = []
        target = np.array([pgd], dtype=np.uint64)
        candidate = pgd & ~(_GIB - 1)
        while candidate >= max(pgd - limit - _GIB, _LOWEST):
            self._header[Word.BASE] = candidate
            flags, entries = self.walk(fd, target)
            if flags[0] & PRESENT:
                within = (1 << (PAGE_SHIFT + 9 * (int(flags[0] & LEVEL) - 1))) - 1
                physical = int(entries[0]) & self._pfn_mask & ~within | pgd & within
                if physical == pgd - candidate:
                    found.append(candidate)
            candidate -= _GIB
        return found

    def _walks_right(self, fd: int, own: _OwnPages, base: int) -> bool:
        """Return whether walks under ``base`` agree with /proc/self/pagemap about pages of our own."""
        self._header[Word.BASE] = base
        flags, entries = self.walk(fd, own.addrs)
        return own.agree(fd, flags, self.pfns(entries))

    def _find_vmemmap(  # noqa: PLR0917 -- what the calibration knows by then
        self, fd: int, page: PageLayout, own: U64Array, pfns: U64Array, base: int, limit: int
    ) -> int:
        """Where the array of struct page is, or 0 when it was not found for certain.

        The struct page of an anonymous page of ours holds the page's index, which is its address in pages.
        """
        size = page.size
        first = int(pfns[0]) * size
        found = []
        for slot in self._kernel_slots(fd, base, limit):
            address = slot + first % _GIB
            flags, entries = self.walk(fd, np.array([address], dtype=np.uint64))
            # Device registers must not be read: they lie outside RAM or are mapped uncached.
            memory = int(entries[0]) & self._pfn_mask < limit and not int(entries[0]) & PTE_UNCACHED
            if not flags[0] & PRESENT or not memory:
                continue
            candidate = (slot - first // _GIB * _GIB) & _ULONG_MAX
            with np.errstate(over="ignore"):
                places = np.uint64(candidate) + pfns * np.uint64(size) + np.uint64(page.index)
            if not self._all_memory(fd, places, limit):
                continue
            with self._lock:
                readable, indexes = self._peek(places)
            if readable.all() and np.array_equal(indexes, own >> np.uint64(PAGE_SHIFT)):
                found.append(candidate)
        return found[0] if len(found) == 1 else 0

    def _all_memory(self, fd: int, places: U64Array, limit: int) -> bool:
        flags, entries = self.walk(fd, places)
        physical = entries & np.uint64(self._pfn_mask)
        cached = (entries & np.uint64(PTE_UNCACHED)) == 0
        return bool(((flags & PRESENT) != 0).all() and (physical < limit).all() and cached.all())

    def _kernel_slots(self, fd: int, base: int, limit: int) -> list[int]:
        """Kernel addresses, multiples of 1 GiB, where something is mapped, leaving out the map of all memory."""
        lowest = _KERNEL_HALF if self._header[Word.LEVELS] == 4 else _LOWEST
        slots = np.arange(lowest, _ULONG_MAX - _PGDIR, _PGDIR, dtype=np.uint64)
        flags, _ = self.walk(fd, slots)
        tables = slots[(flags & LEVEL) <= 3]
        inner = np.arange(0, _PGDIR, _GIB, dtype=np.uint64)
        slots = (tables[:, None] + inner[None, :]).ravel()
        flags, _ = self.walk(fd, slots)
        within = flags & LEVEL
        used = (within < 3) | ((flags & PRESENT) != 0)
        outside = (slots < np.uint64(base)) | (slots >= np.uint64(min(base + limit, _ULONG_MAX)))
        return slots[used & outside].tolist()


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
        # No regular pattern: a wrong base must not match by chance.
        self.touched: Mask = np.random.default_rng(1).permutation(count) % 2 == 0
        for index in np.flatnonzero(self.touched).tolist():
            self._memory[index * PAGE_SIZE] = 1
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()

    def agree(self, fd: int, flags: U8Array, pfns: U64Array) -> bool:
        """Return whether a walk's results agree with the touched pages and with the pagemap."""
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


@functools.cache
def _shared() -> Walker:
    return Walker()


_shared_lock = threading.Lock()
# Parent and child would overwrite each other's batches: the memory is shared, so a child makes its own.
os.register_at_fork(after_in_child=_shared.cache_clear)


def made_walker() -> Walker | None:
    """The walker that :func:`shared_walker` made before; None if there is none."""
    return _shared() if _shared.cache_info().currsize else None


def shared_walker() -> Walker:
    """The one walker of this process, made when it is first asked for; any thread may use it.

    :raises OSError: see :class:`Walker`; a failure is not remembered.
    """
    with _shared_lock:
        return _shared()
