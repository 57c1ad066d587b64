# SPDX-License-Identifier: GPL-2.0-only
"""Finds where the running kernel maps all memory and has its array of struct page; both places are random."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U8Array, U64Array
from kdamon.kernel import PAGE_SHIFT, PAGE_SIZE
from kdamon.mm.bpf.walk_batches import ULONG_MAX, WalkBatches
from kdamon.mm.bpf.walk_program import LEVEL, PRESENT, PTE_UNCACHED, PageLayout, Word

__all__ = ["calibrate", "find_bases"]

_ENTRY_PFN: Final = ((1 << 52) - 1) & ~(PAGE_SIZE - 1)
_GIB: Final = 1 << 30
_PGDIR: Final = 1 << 39
_KERNEL_HALF: Final = 0xFFFF_8000_0000_0000
#: Where 5-level kernels map all memory, and the lowest kernel address there is.
_LOWEST: Final = 0xFF11_0000_0000_0000


def calibrate(walk: WalkBatches) -> None:
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
            _calibrate_on(walk, fd, own)
    finally:
        os.close(fd)


def _calibrate_on(walk: WalkBatches, fd: int, own: _OwnPages) -> None:
    header = walk.header
    limit = _end_of_ram()
    # Bits above the end of RAM are no address: AMD's memory encryption keeps a flag there.
    walk.pfn_mask = ((1 << limit.bit_length()) - 1) & _ENTRY_PFN
    header[Word.MASK] = walk.pfn_mask
    header[Word.LIMIT] = limit
    header[Word.TOP] = ULONG_MAX
    header[Word.LEVELS] = 4
    walk.mm(fd)
    pgd = int(header[Word.PGD])
    levels = 4 if pgd >= _KERNEL_HALF else 5
    header[Word.LEVELS] = levels
    bases = [base for base in find_bases(walk, fd, pgd, limit) if _walks_right(walk, fd, own, base)]
    if len(bases) != 1:
        raise OSError(
            errno.EOPNOTSUPP,
            f"the kernel's map of physical memory was not found ({len(bases)} candidates); "
            "the layout of this kernel's page tables is unknown",
        )
    header[Word.BASE] = base = bases[0]
    _, entries = walk.walk(fd, own.addrs)
    touched = own.addrs[own.touched]
    if walk.layout.page is not None:
        pfns = walk.pfns(entries[own.touched])
        header[Word.VMEMMAP] = _find_vmemmap(walk, fd, walk.layout.page, touched, pfns, base, limit)
    header[Word.TOP] = 1 << (47 if levels == 4 else 56)


def find_bases(walk: WalkBatches, fd: int, pgd: int, limit: int) -> list[int]:
    """The bases under which walking to the page directory's own address ends at its own physical address.

    Under a wrong base any memory may be read for a page table; seldom, that fits too.
    """
    found = []
    target = np.array([pgd], dtype=np.uint64)
    candidate = pgd & ~(_GIB - 1)
    while candidate >= max(pgd - limit - _GIB, _LOWEST):
        walk.header[Word.BASE] = candidate
        flags, entries = walk.walk(fd, target)
        if flags[0] & PRESENT:
            within = (1 << (PAGE_SHIFT + 9 * (int(flags[0] & LEVEL) - 1))) - 1
            physical = int(entries[0]) & walk.pfn_mask & ~within | pgd & within
            if physical == pgd - candidate:
                found.append(candidate)
        candidate -= _GIB
    return found


def _walks_right(walk: WalkBatches, fd: int, own: _OwnPages, base: int) -> bool:
    """Return whether walks under ``base`` agree with /proc/self/pagemap about pages of our own."""
    walk.header[Word.BASE] = base
    flags, entries = walk.walk(fd, own.addrs)
    return own.agree(fd, flags, walk.pfns(entries))


def _find_vmemmap(  # noqa: PLR0917 -- what the calibration knows by then
    walk: WalkBatches, fd: int, page: PageLayout, own: U64Array, pfns: U64Array, base: int, limit: int
) -> int:
    """Where the array of struct page is, or 0 when it was not found for certain.

    The struct page of an anonymous page of ours holds the page's index, which is its address in pages.
    """
    size = page.size
    first = int(pfns[0]) * size
    found = []
    for slot in _kernel_slots(walk, fd, base, limit):
        address = slot + first % _GIB
        flags, entries = walk.walk(fd, np.array([address], dtype=np.uint64))
        # Device registers must not be read: they lie outside RAM or are mapped uncached.
        memory = int(entries[0]) & walk.pfn_mask < limit and not int(entries[0]) & PTE_UNCACHED
        if not flags[0] & PRESENT or not memory:
            continue
        candidate = (slot - first // _GIB * _GIB) & ULONG_MAX
        with np.errstate(over="ignore"):
            places = np.uint64(candidate) + pfns * np.uint64(size) + np.uint64(page.index)
        if not _all_memory(walk, fd, places, limit):
            continue
        with walk.lock:
            readable, indexes = walk.peek(places)
        if readable.all() and np.array_equal(indexes, own >> np.uint64(PAGE_SHIFT)):
            found.append(candidate)
    return found[0] if len(found) == 1 else 0


def _all_memory(walk: WalkBatches, fd: int, places: U64Array, limit: int) -> bool:
    flags, entries = walk.walk(fd, places)
    physical = entries & np.uint64(walk.pfn_mask)
    cached = (entries & np.uint64(PTE_UNCACHED)) == 0
    return bool(((flags & PRESENT) != 0).all() and (physical < limit).all() and cached.all())


def _kernel_slots(walk: WalkBatches, fd: int, base: int, limit: int) -> list[int]:
    """Kernel addresses, multiples of 1 GiB, where something is mapped, leaving out the map of all memory."""
    lowest = _KERNEL_HALF if walk.header[Word.LEVELS] == 4 else _LOWEST
    slots = np.arange(lowest, ULONG_MAX - _PGDIR, _PGDIR, dtype=np.uint64)
    flags, _ = walk.walk(fd, slots)
    tables = slots[(flags & LEVEL) <= 3]
    inner = np.arange(0, _PGDIR, _GIB, dtype=np.uint64)
    slots = (tables[:, None] + inner[None, :]).ravel()
    flags, _ = walk.walk(fd, slots)
    within = flags & LEVEL
    used = (within < 3) | ((flags & PRESENT) != 0)
    outside = (slots < np.uint64(base)) | (slots >= np.uint64(min(base + limit, ULONG_MAX)))
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
