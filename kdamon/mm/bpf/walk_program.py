# SPDX-License-Identifier: GPL-2.0-only
"""The BPF program that walks page tables (x86_64): the memory that it shares with this process, and its text."""

from __future__ import annotations

import contextlib
import errno
from typing import Final

from kdamon.kernel import PAGE_SHIFT, PMD_SIZE
from kdamon.mm.bpf.btf import Btf
from kdamon.mm.bpf.program import R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Assembler, Helper

__all__ = [
    "ACCESSED",
    "CLEARABLE",
    "FRAME",
    "HEADER_SIZE",
    "LARGE",
    "LEVEL",
    "PEEK",
    "PRESENT",
    "PTE_PRESENT",
    "PTE_UNCACHED",
    "SHARED",
    "Layout",
    "PageLayout",
    "PageWalk",
    "Source",
    "Word",
]

# Page table entry bits (arch/x86/include/asm/pgtable_types.h).
PTE_PRESENT: Final = 1 << 0
PTE_UNCACHED: Final = 0x18
PTE_ACCESSED: Final = 1 << 5
PTE_PSE: Final = 1 << 7
PTE_PROTNONE: Final = 1 << 8

#: Parts of a walk's flag byte. The level where the walk ended: 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB; 0 = unreadable.
LEVEL: Final = 0x07
#: The walk ended at a page.
PRESENT: Final = 0x08
#: The page is young 4 KiB, and is or may be part of a larger folio.
LARGE: Final = 0x10
#: The page's accessed bit is set.
ACCESSED: Final = PTE_ACCESSED
#: The page is young, mapped once and on an LRU list: all that MADV_COLD asks of a page. Of 2 MiB pages that is known
#: from Linux 6.10 on.
CLEARABLE: Final = 0x40
#: The page is young 4 KiB, and not all pages of its folio are mapped exactly once: MADV_COLD leaves it alone, or would
#: split the folio. For folios of several pages that is known from Linux 6.10 on.
SHARED: Final = 0x80

#: Bytes before the addresses in the shared memory; after them the entries (8 bytes each) and the flags (1 byte each).
HEADER_SIZE: Final = 128
#: Value of Word.LEVELS that makes the program read the addresses themselves.
PEEK: Final = 0

PMD_SHIFT: Final = PMD_SIZE.bit_length() - 1

#: Where in the program's frame kernel memory is read to.
_SLOT: Final = -8
#: Where the flags of a page are kept.
_KEPT: Final = -16
#: From here down the frame is free for what is around a walk.
FRAME: Final = -24


class Word:
    """Words of the header of the memory that is shared with the program."""

    #: How many addresses there are.
    COUNT: Final = 0
    #: The /proc/PID/pagemap to walk for.
    FD: Final = 1
    #: The kernel's map of all physical memory.
    BASE: Final = 2
    #: Set by the program: the page directory.
    PGD: Final = 3
    #: Set by the program: the address space.
    MM: Final = 4
    #: The physical address in an entry.
    MASK: Final = 5
    #: The end of physical memory.
    LIMIT: Final = 6
    #: 4 or 5, or :data:`PEEK`.
    LEVELS: Final = 7
    #: Set by the program: 1 when it found no address space.
    FAILED: Final = 8
    #: The first address that is not walked for.
    TOP: Final = 9
    #: The array of struct page, 0 when its place is not known.
    VMEMMAP: Final = 10


class PageLayout:
    """Offsets (bytes) and flags of ``struct page``."""

    def __init__(self, btf: Btf) -> None:
        self.size = btf.size("page")
        self.flags = btf.offset("page", "flags")
        self.mapcount = btf.offset("page", "_mapcount")
        #: Where the number of mappings and the number of uses are, 32 bits each.
        self.counts = _side_by_side(self.mapcount, btf.offset("page", "_refcount"))
        self.head = 1 << btf.enumerator("pageflags", "PG_head")
        self.lru = 1 << btf.enumerator("pageflags", "PG_lru")
        self.reserved = 1 << btf.enumerator("pageflags", "PG_reserved")
        #: The number of mappings of a folio of several pages and of its parts, in its second page; Linux 6.10.
        self.large_mapcount: int | None = None
        with contextlib.suppress(OSError):
            self.large_mapcount = btf.offset("folio", "_large_mapcount")
        #: The number of its pages, likewise; it was renamed in Linux 6.15.
        self.nr_pages: int | None = None
        for name in ("_nr_pages", "_folio_nr_pages"):
            with contextlib.suppress(OSError):
                self.nr_pages = btf.offset("folio", name)
        # Both were renamed on the way to separate memory descriptors.
        self.compound = _either(btf, "compound_head", "compound_info")
        self.index = _either(btf, "index", "__folio_index")


def _side_by_side(first: int, second: int) -> int:
    if second != first + 4:
        raise OSError(errno.EOPNOTSUPP, "struct page is not as expected")
    return first


def _either(btf: Btf, old: str, new: str) -> int:
    try:
        return btf.offset("page", old)
    except OSError:
        return btf.offset("page", new)


class Layout:
    """Offsets (bytes) in the running kernel's structures that the program goes through."""

    def __init__(self, btf: Btf) -> None:
        self.files = btf.offset("task_struct", "files")
        self.fdt = btf.offset("files_struct", "fdt")
        self.fd = btf.offset("fdtable", "fd")
        self.private_data = btf.offset("file", "private_data")
        self.pgd = btf.offset("mm_struct", "pgd")
        #: The state of the semaphore mmap_lock; None where it is another kind of lock (PREEMPT_RT).
        self.mmap_lock: int | None = None
        with contextlib.suppress(OSError):
            self.mmap_lock = btf.offset("mm_struct", "mmap_lock") + btf.offset("rw_semaphore", "count")
        #: How often mmap_lock was taken for writing (32 bits); None without CONFIG_PER_VMA_LOCK (Linux 6.4).
        self.mm_lock_seq: int | None = None
        with contextlib.suppress(OSError):
            self.mm_lock_seq = btf.offset("mm_struct", "mm_lock_seq")
        #: Bytes of page tables.
        self.pgtables_bytes: int | None = None
        with contextlib.suppress(OSError):
            self.pgtables_bytes = btf.offset("mm_struct", "pgtables_bytes")
        #: None where struct page is not as expected: the program then does not distinguish folios.
        self.page: PageLayout | None = None
        with contextlib.suppress(OSError):
            self.page = PageLayout(btf)


class PageWalk:
    """The walk for one address, as a part of a program.

    :param layout: of the running kernel.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def emit(self, asm: Assembler, prefix: str, *, whole: bool) -> None:
        """Append the walk for the address in R7, from the page directory in R8; R9 is the shared memory's header.

        Afterwards R1 is the entry, R2 the flags; R0, R3 to R5, R7 and R8 are lost, R6 is not touched.

        :param prefix: of all labels.
        :param whole: look at the folio of a young 4 KiB page, too.
        """
        asm.load(R1, R9, 8 * Word.TOP)
        asm.jump_if_reg("jge", R7, R1, f"{prefix}outside")
        asm.load(R1, R9, 8 * Word.LEVELS)
        asm.jump_if("jne", R1, 5, f"{prefix}level 4")
        for level in (5, 4, 3, 2, 1):
            self._step(asm, prefix, level)
        self._leaf(asm, prefix, whole)
        asm.label(f"{prefix}outside")
        asm.op("mov", R1, 0)
        asm.op("mov", R2, LEVEL)
        asm.jump(f"{prefix}walked")
        asm.label(f"{prefix}lost")
        asm.op("mov", R1, 0)
        asm.op("mov", R2, 0)
        asm.label(f"{prefix}walked")

    def _step(self, asm: Assembler, prefix: str, level: int) -> None:
        asm.label(f"{prefix}level {level}")
        asm.op_reg("mov", R3, R7)
        asm.op("rsh", R3, PAGE_SHIFT + 9 * (level - 1))
        asm.op("and", R3, 511)
        asm.op("lsh", R3, 3)
        asm.op_reg("add", R3, R8)
        asm.read_kernel(_SLOT, f"{prefix}lost")
        asm.op("mov", R2, level)
        if level == 1:
            # A page of another node that NUMA balancing watches has no P bit but is mapped.
            asm.jump_if("jset", R1, PTE_PRESENT | PTE_PROTNONE, f"{prefix}leaf")
            asm.jump(f"{prefix}walked")
            return
        if level in (2, 3):
            # PSE alone: the kernel takes P away while it splits or changes a large page.
            asm.jump_if("jset", R1, PTE_PSE, f"{prefix}leaf")
        asm.jump_if("jset", R1, PTE_PRESENT, f"{prefix}table {level}")
        asm.jump(f"{prefix}walked")
        asm.label(f"{prefix}table {level}")
        asm.load(R2, R9, 8 * Word.MASK)
        asm.op_reg("and", R1, R2)
        # A table that is freed under us holds anything; nothing beyond RAM, where devices are, is read for it.
        asm.load(R2, R9, 8 * Word.LIMIT)
        asm.jump_if_reg("jge", R1, R2, f"{prefix}lost")
        asm.load(R2, R9, 8 * Word.BASE)
        asm.op_reg("add", R1, R2)
        asm.op_reg("mov", R8, R1)

    def _leaf(self, asm: Assembler, prefix: str, whole: bool) -> None:
        asm.label(f"{prefix}leaf")
        asm.op("or", R2, PRESENT)
        asm.op_reg("mov", R3, R1)
        asm.op("and", R3, PTE_ACCESSED)
        asm.op_reg("or", R2, R3)
        # Only a young 4 KiB page will be cleared, and only then its folio matters.
        if not whole:
            asm.jump(f"{prefix}walked")
            return
        page = self._layout.page
        if page is not None and page.large_mapcount is not None:
            asm.jump_if("jeq", R2, 2 | PRESENT | ACCESSED, f"{prefix}huge")
        asm.jump_if("jne", R2, 1 | PRESENT | ACCESSED, f"{prefix}walked")
        asm.op_reg("mov", R7, R1)
        if page is not None:
            self._folio(asm, prefix, page)
        asm.label(f"{prefix}large")
        asm.op("mov", R2, 1 | PRESENT | ACCESSED | LARGE)
        asm.label(f"{prefix}raw")
        asm.op_reg("mov", R1, R7)
        asm.jump(f"{prefix}walked")
        if page is not None and page.large_mapcount is not None:
            self._huge(asm, prefix, page, page.large_mapcount)

    def _huge(self, asm: Assembler, prefix: str, page: PageLayout, mapcount: int) -> None:
        """The flags of a young 2 MiB page, whose entry is in R1, by its folio."""
        unclear = f"{prefix}huge unclear"
        asm.label(f"{prefix}huge")
        asm.op_reg("mov", R7, R1)
        # Without P the entry is no plain one.
        asm.jump_if("jset", R1, PTE_PRESENT, f"{prefix}huge folio")
        asm.jump(f"{prefix}walked")
        asm.label(f"{prefix}huge folio")
        self._struct_page(asm, page, unclear, PMD_SHIFT)
        self._page_member(asm, page.flags, unclear)
        asm.op_reg("mov", R3, R1)
        asm.op("and", R3, page.head)
        asm.jump_if("jeq", R3, 0, unclear)
        asm.op("and", R1, page.lru)
        asm.jump_if("jeq", R1, 0, unclear)
        self._page_member(asm, mapcount, unclear)
        asm.op("lsh", R1, 32)
        asm.jump_if("jne", R1, 0, unclear)
        asm.op("mov", R2, 2 | PRESENT | ACCESSED | CLEARABLE)
        asm.jump(f"{prefix}raw")
        asm.label(unclear)
        asm.op("mov", R2, 2 | PRESENT | ACCESSED)
        asm.jump(f"{prefix}raw")

    @staticmethod
    def _struct_page(asm: Assembler, page: PageLayout, unknown: str, shift: int = PAGE_SHIFT) -> None:
        """R8 = the struct page of the entry in R7, of a page of 1 << ``shift`` bytes; R3 is lost."""
        asm.load(R8, R9, 8 * Word.VMEMMAP)
        asm.jump_if("jeq", R8, 0, unknown)
        asm.load(R3, R9, 8 * Word.MASK)
        asm.op_reg("and", R3, R7)
        asm.op("rsh", R3, shift)
        asm.op("lsh", R3, shift - PAGE_SHIFT)
        asm.op("mul", R3, page.size)
        asm.op_reg("add", R8, R3)

    def _folio(self, asm: Assembler, prefix: str, page: PageLayout) -> None:
        """The flags of a young 4 KiB page, whose entry is in R7, by its struct page."""
        large = f"{prefix}large"
        asm.jump_if("jset", R1, PTE_PRESENT, f"{prefix}folio")
        asm.jump(large)
        asm.label(f"{prefix}folio")
        self._struct_page(asm, page, large)
        counted = page.large_mapcount is not None and page.nr_pages is not None
        tail, head = (f"{prefix}tail", f"{prefix}head") if counted else (large, large)
        self._page_member(asm, page.compound, large)
        asm.jump_if("jset", R1, 1, tail)
        self._page_member(asm, page.flags, large)
        asm.jump_if("jset", R1, page.head, head)
        asm.store(8, R10, _KEPT, R1)
        self._page_member(asm, page.mapcount, large)
        # 32 bits, and 0 means one mapping.
        asm.op("lsh", R1, 32)
        asm.op("mov", R2, 1 | PRESENT | ACCESSED | SHARED)
        asm.jump_if("jne", R1, 0, f"{prefix}raw")
        asm.load(R1, R10, _KEPT)
        asm.op("mov", R2, 1 | PRESENT | ACCESSED | CLEARABLE)
        asm.jump_if("jset", R1, page.lru, f"{prefix}raw")
        asm.op("mov", R2, 1 | PRESENT | ACCESSED)
        asm.jump(f"{prefix}raw")
        if page.large_mapcount is not None and page.nr_pages is not None:
            self._large(asm, prefix, page.large_mapcount, page.nr_pages)

    def _large(self, asm: Assembler, prefix: str, mapcount: int, nr_pages: int) -> None:
        """The flags of a young 4 KiB page of a larger folio: its struct page is in R8; of a tail its word is in R1."""
        large = f"{prefix}large"
        asm.label(f"{prefix}tail")
        asm.jump_if_reg("jgt", R1, R8, f"{prefix}mask")
        asm.op("add", R1, -1)
        asm.op_reg("mov", R8, R1)
        asm.jump(f"{prefix}head")
        # As in walker.heads_of(); the lowest bit of R8 is 0.
        asm.label(f"{prefix}mask")
        asm.op_reg("and", R8, R1)
        asm.label(f"{prefix}head")
        self._page_member(asm, mapcount, large)
        # 32 bits, one less than there are mappings of all its pages together.
        asm.op("add", R1, 1)
        asm.op("lsh", R1, 32)
        asm.store(8, R10, _KEPT, R1)
        self._page_member(asm, nr_pages, large)
        asm.op("lsh", R1, 32)
        asm.load(R3, R10, _KEPT)
        asm.jump_if_reg("jeq", R1, R3, large)
        asm.op("mov", R2, 1 | PRESENT | ACCESSED | LARGE | SHARED)
        asm.jump(f"{prefix}raw")

    @staticmethod
    def _page_member(asm: Assembler, offset: int, unreadable: str) -> None:
        """R1 = 8 bytes at ``offset`` in the struct page at R8."""
        asm.op_reg("mov", R3, R8)
        asm.op("add", R3, offset)
        asm.read_kernel(_SLOT, unreadable)


class Source:
    """The program's text.

    Registers: R6 the index, R7 the address, R8 the table, R9 the shared memory.
    """

    def __init__(self, layout: Layout, map_fd: int, capacity: int) -> None:
        self._layout = layout
        self._walk = PageWalk(layout)
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
            asm.load(R1, R9, 8 * Word.COUNT)
            asm.load_function(R2, "each")
            asm.op("mov", R3, 0)
            asm.op("mov", R4, 0)
            asm.call(Helper.LOOP)
        else:
            asm.op("mov", R6, 0)
            asm.label("again")
            asm.load(R1, R9, 8 * Word.COUNT)
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
        asm.store(8, R9, 8 * Word.FAILED, R1)
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

    def _find_pgd(self, asm: Assembler) -> None:
        layout = self._layout
        asm.call(Helper.GET_CURRENT_TASK)
        asm.op_reg("mov", R3, R0)
        for offset in (layout.files, layout.fdt, layout.fd):
            asm.op("add", R3, offset)
            asm.read_kernel(_SLOT, "failed")
            asm.op_reg("mov", R3, R1)
        asm.load(R1, R9, 8 * Word.FD)
        asm.op("lsh", R1, 3)
        asm.op_reg("add", R3, R1)
        asm.read_kernel(_SLOT, "failed")
        asm.op_reg("mov", R3, R1)
        asm.op("add", R3, layout.private_data)
        asm.read_kernel(_SLOT, "failed")
        asm.store(8, R9, 8 * Word.MM, R1)
        asm.op_reg("mov", R3, R1)
        asm.op("add", R3, layout.pgd)
        asm.read_kernel(_SLOT, "failed")
        asm.store(8, R9, 8 * Word.PGD, R1)

    def _one(self, asm: Assembler) -> None:
        """Walk for address number R6, and store the entry and the flags."""
        asm.op_reg("mov", R8, R6)
        asm.op("lsh", R8, 3)
        asm.op_reg("add", R8, R9)
        asm.load(R7, R8, HEADER_SIZE)
        asm.load(R8, R9, 8 * Word.PGD)
        asm.load(R1, R9, 8 * Word.LEVELS)
        asm.jump_if("jne", R1, PEEK, "walk")
        asm.op_reg("mov", R3, R7)
        asm.read_kernel(_SLOT, "unreadable")
        asm.op("mov", R2, PRESENT)
        asm.jump("store")
        asm.label("unreadable")
        asm.op("mov", R1, 0)
        asm.op("mov", R2, 0)
        asm.jump("store")
        asm.label("walk")
        self._walk.emit(asm, "", whole=True)
        asm.label("store")
        asm.op_reg("mov", R3, R6)
        asm.op("lsh", R3, 3)
        asm.op_reg("add", R3, R9)
        asm.op("add", R3, HEADER_SIZE + 8 * self._capacity)
        asm.store(8, R3, 0, R1)
        asm.op_reg("mov", R3, R6)
        asm.op_reg("add", R3, R9)
        asm.op("add", R3, HEADER_SIZE + 16 * self._capacity)
        asm.store(1, R3, 0, R2)
