# SPDX-License-Identifier: GPL-2.0-only
"""A BPF program that reads mappings from the tree that the kernel keeps them in (``lib/maple_tree.c``, Linux 6.1).

It takes no lock, so that neither it nor the process waits. ``mm_lock_seq`` and the mmap_lock show whether a mapping
changed meanwhile: a thread that changes one holds the lock for writing, and increments ``mm_lock_seq`` before it
releases the lock (``include/linux/mmap_lock.h: vma_end_write_all()``). In that case all that was read is dropped. Nodes
may be freed and used again meanwhile: bpf_probe_read_kernel() reads all of them, and all numbers from them are bounded.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from kdamon.mm.bpf.btf import Btf
from kdamon.mm.bpf.program import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, Assembler, Helper

__all__ = ["AT_ONCE", "CALLBACK", "RECORDS", "RECORD_WORDS", "Found", "VmaProgram", "Word"]

#: Mappings that one run reads at most: 0.1 ms, in which none must change.
AT_ONCE: Final = 1024
#: The function that bpf_loop() calls.
CALLBACK: Final = "each"

#: Where in the shared memory a node, a mapping and the records are; the words of :class:`Word` are before.
_NODE: Final = 128
_NODE_SIZE: Final = 256
_VMA: Final = _NODE + _NODE_SIZE
_MOST_OF_VMA: Final = 192
RECORDS: Final = _VMA + _MOST_OF_VMA
RECORD_WORDS: Final = 5
#: Steps of a run: one for each entry of a leaf, be it empty, and some to get to each leaf.
_STEPS: Final = 4 * AT_ONCE + 256
#: Where in the program's frame kernel memory is read to.
_SLOT: Final = -8

# include/linux/maple_tree.h: of a pointer to a node. A root that is one has bit 1 set.
_MAPLE_NODE_MASK: Final = _NODE_SIZE - 1
_MAPLE_NODE_TYPE_SHIFT: Final = 3
_MAPLE_NODE_TYPE_MASK: Final = 15
_MAPLE_ROOT_NODE: Final = 2
#: The largest address, as a number of 32 bits that is extended by its sign.
_ULONG_MAX: Final = -1
# kernel/locking/rwsem.c
_RWSEM_WRITER_LOCKED: Final = 1


class Word:
    """Words at the beginning of the shared memory."""

    #: The /proc/PID/pagemap.
    FD: Final = 0
    #: The address from which on mappings are read; goes on with each leaf.
    ADDRESS: Final = 1
    #: How many mappings are wanted.
    MOST: Final = 2
    # Set by the program: how many there are, and a value of :class:`Found`.
    COUNT: Final = 3
    FOUND: Final = 4
    # Its own: the address space and its state at the beginning; the next node to read, 0 for the root, and its last
    # address; of a leaf that was read the next entry, and the last one; whether a leaf was read.
    MM: Final = 5
    SEQUENCE: Final = 6
    NODE: Final = 7
    LAST: Final = 8
    ENTRY: Final = 9
    END: Final = 10
    IN_LEAF: Final = 11
    #: How many there are.
    COUNT_OF_WORDS: Final = 12


class Found(IntEnum):
    """How one run ended."""

    #: There may be more mappings after those.
    MORE = 0
    #: There are no more.
    ALL = 1
    #: Mappings changed meanwhile; try again.
    BUSY = 2
    #: No task owns the address space any more; read /proc/PID/maps.
    LOST = 3


class VmaProgram:
    """The program's text. Register R9 is the shared memory.

    :param btf: the kernel's types.
    :param map_fd: the shared memory.
    :raises OSError: EOPNOTSUPP the kernel does not have what is read, or where it is too far apart.
    """

    def __init__(self, btf: Btf, map_fd: int) -> None:
        self._map_fd = map_fd
        self._to_mm = (
            btf.offset("task_struct", "files"),
            btf.offset("files_struct", "fdt"),
            btf.offset("fdtable", "fd"),
        )
        self._private_data = btf.offset("file", "private_data")
        self._owner = btf.offset("mm_struct", "owner")
        self._lock = btf.offset("mm_struct", "mmap_lock") + btf.offset("rw_semaphore", "count")
        self._sequence = btf.offset("mm_struct", "mm_lock_seq")
        self._root = btf.offset("mm_struct", "mm_mt") + btf.offset("maple_tree", "ma_root")
        self._to_device = (
            btf.offset("file", "f_inode"),
            btf.offset("inode", "i_sb"),
            btf.offset("super_block", "s_dev"),
        )
        self._types = [btf.enumerator("maple_type", f"maple_{name}_64") for name in ("leaf", "range", "arange")]
        self._pivots = _NODE + btf.offset("maple_range_64", "pivot")
        self._slots = btf.offset("maple_range_64", "slot")
        self._end = _NODE + btf.offset("maple_range_64", "meta") + btf.offset("maple_metadata", "end")
        self._slots_of_arange = btf.offset("maple_arange_64", "slot")
        self._end_of_arange = _NODE + btf.offset("maple_arange_64", "meta") + btf.offset("maple_metadata", "end")
        self._members = [
            btf.offset("vm_area_struct", name) for name in ("vm_start", "vm_end", "vm_flags", "vm_pgoff", "vm_file")
        ]

    @property
    def known(self) -> bool:
        """Whether nodes and mappings are laid out as the program expects."""
        begin = self._pivots - _NODE
        layout = (begin + 8 * 15, begin + 8 * 9, _NODE_SIZE - 8)
        return (
            layout == (self._slots, self._slots_of_arange, self._end - _NODE)
            and self._end_of_arange < _NODE + _NODE_SIZE
            and max(self._members) + 8 - min(self._members) <= _MOST_OF_VMA
        )

    def assemble(self) -> Assembler:
        """The whole program."""
        asm = Assembler()
        asm.load_map_value(R9, self._map_fd)
        self._find_mm(asm)
        self._of_mm(asm, self._owner)
        asm.jump_if("jeq", R1, 0, "lost")
        self._of_mm(asm, self._sequence)
        _store(asm, Word.SEQUENCE, R1)
        self._of_mm(asm, self._lock)
        asm.jump_if("jset", R1, _RWSEM_WRITER_LOCKED, "busy")
        _set(asm, Word.FOUND, Found.MORE)
        asm.op("mov", R1, _STEPS)
        asm.load_function(R2, CALLBACK)
        asm.op("mov", R3, 0)
        asm.op("mov", R4, 0)
        asm.call(Helper.LOOP)
        # First the lock: one that has it for writing from now on changed nothing that was read.
        self._of_mm(asm, self._lock)
        asm.jump_if("jset", R1, _RWSEM_WRITER_LOCKED, "busy")
        self._of_mm(asm, self._sequence)
        _load(asm, R2, Word.SEQUENCE)
        asm.op("lsh", R1, 32)
        asm.op("lsh", R2, 32)
        asm.jump_if_reg("jeq", R1, R2, "end")
        asm.label("busy")
        _set(asm, Word.FOUND, Found.BUSY)
        asm.jump("end")
        asm.label("lost")
        _set(asm, Word.FOUND, Found.LOST)
        _return(asm, "end", 0)
        asm.label(CALLBACK)
        asm.load_map_value(R9, self._map_fd)
        _load(asm, R1, Word.IN_LEAF)
        asm.jump_if("jne", R1, 0, "entry")
        self._read_node(asm)
        self._search(asm)
        self._read_entry(asm)
        asm.label("all")
        _set(asm, Word.FOUND, Found.ALL)
        asm.jump("stop")
        asm.label("torn")
        _set(asm, Word.FOUND, Found.BUSY)
        _return(asm, "stop", 1)
        _return(asm, "go on", 0)
        return asm

    def _find_mm(self, asm: Assembler) -> None:
        asm.call(Helper.GET_CURRENT_TASK)
        asm.op_reg("mov", R3, R0)
        for offset in self._to_mm:
            _follow(asm, offset, "lost")
        _load(asm, R1, Word.FD)
        asm.op("lsh", R1, 3)
        asm.op_reg("add", R3, R1)
        _follow(asm, 0, "lost")
        _follow(asm, self._private_data, "lost")
        _store(asm, Word.MM, R3)

    @staticmethod
    def _of_mm(asm: Assembler, offset: int, unreadable: str = "lost") -> None:
        """R1 = 8 bytes at ``offset`` in the address space."""
        _load(asm, R3, Word.MM)
        asm.op("add", R3, offset)
        asm.read_kernel(_SLOT, unreadable)

    def _read_node(self, asm: Assembler) -> None:
        """R7 = the type of the next node, which is copied; R6 = where its slots are, R2 = the last one in use."""
        leaf, inner, arange = self._types
        _load(asm, R8, Word.NODE)
        asm.jump_if("jne", R8, 0, "node")
        _set(asm, Word.LAST, _ULONG_MAX)
        self._of_mm(asm, self._root, "torn")
        asm.op_reg("mov", R8, R1)
        asm.jump_if("jeq", R8, 0, "all")
        asm.jump_if("jset", R8, _MAPLE_ROOT_NODE, "node")
        asm.jump("torn")
        asm.label("node")
        asm.op_reg("mov", R3, R8)
        asm.op("and", R3, ~_MAPLE_NODE_MASK)
        self._copy(asm, _NODE, _NODE_SIZE)
        asm.op_reg("mov", R7, R8)
        asm.op("rsh", R7, _MAPLE_NODE_TYPE_SHIFT)
        asm.op("and", R7, _MAPLE_NODE_TYPE_MASK)
        # As ma_data_end(): the last pivot, if it is in use, and the number of the last slot otherwise.
        asm.op("mov", R6, self._slots_of_arange)
        asm.load(R2, R9, self._end_of_arange, width=1)
        asm.jump_if("jeq", R7, arange, "search")
        asm.op("mov", R6, self._slots)
        asm.jump_if("jeq", R7, leaf, "range")
        asm.jump_if("jne", R7, inner, "torn")
        asm.label("range")
        asm.load(R2, R9, self._end, width=1)
        asm.load(R3, R9, self._pivots + 8 * 14)
        asm.jump_if("jeq", R3, 0, "search")
        asm.op("mov", R2, 14)
        _load(asm, R4, Word.LAST)
        asm.jump_if_reg("jeq", R3, R4, "search")
        asm.op("mov", R2, 15)

    def _search(self, asm: Assembler) -> None:
        """Find the entry with the address, and go down to it; in a leaf begin with it."""
        leaf = self._types[0]
        asm.label("search")
        asm.jump_if("jgt", R2, 15, "torn")
        _load(asm, R1, Word.ADDRESS)
        for entry in range(15):
            asm.op("mov", R5, entry)
            asm.jump_if("jeq", R2, entry, "found")
            asm.load(R3, R9, self._pivots + 8 * entry)
            asm.jump_if_reg("jge", R3, R1, "bounded")
        asm.op("mov", R5, 15)
        asm.jump("found")
        asm.label("bounded")
        asm.jump_if("jeq", R7, leaf, "found")
        _store(asm, Word.LAST, R3)
        asm.label("found")
        asm.jump_if("jeq", R7, leaf, "leaf")
        asm.op("lsh", R5, 3)
        asm.op_reg("add", R5, R6)
        asm.op("and", R5, _MAPLE_NODE_MASK & ~7)
        asm.op_reg("add", R5, R9)
        asm.load(R1, R5, _NODE)
        asm.jump_if("jeq", R1, 0, "torn")
        _store(asm, Word.NODE, R1)
        asm.jump("go on")
        asm.label("leaf")
        _store(asm, Word.ENTRY, R5)
        _store(asm, Word.END, R2)
        _set(asm, Word.IN_LEAF, 1)
        asm.jump("go on")

    def _read_entry(self, asm: Assembler) -> None:
        """Write a record of the next entry of the leaf, unless it is empty."""
        asm.label("entry")
        _load(asm, R6, Word.ENTRY)
        asm.op_reg("mov", R5, R6)
        asm.op("and", R5, 15)
        asm.op("lsh", R5, 3)
        asm.op_reg("add", R5, R9)
        asm.load(R3, R5, _NODE + self._slots)
        asm.jump_if("jeq", R3, 0, "next")
        _load(asm, R7, Word.COUNT)
        asm.jump_if("jgt", R7, AT_ONCE - 1, "stop")
        _load(asm, R1, Word.MOST)
        asm.jump_if_reg("jge", R7, R1, "stop")
        self._record(asm)
        asm.op("add", R7, 1)
        _store(asm, Word.COUNT, R7)
        asm.label("next")
        _load(asm, R1, Word.END)
        asm.jump_if_reg("jge", R6, R1, "next leaf")
        asm.op("add", R6, 1)
        _store(asm, Word.ENTRY, R6)
        asm.jump("go on")
        asm.label("next leaf")
        _load(asm, R1, Word.LAST)
        asm.jump_if("jeq", R1, _ULONG_MAX, "all")
        asm.op("add", R1, 1)
        _store(asm, Word.ADDRESS, R1)
        _set(asm, Word.NODE, 0)
        _set(asm, Word.IN_LEAF, 0)
        asm.jump("go on")

    def _record(self, asm: Assembler) -> None:
        """Write record number R7 of the mapping at R3."""
        first = min(self._members)
        asm.op("add", R3, first)
        self._copy(asm, _VMA, max(self._members) + 8 - first)
        asm.op_reg("mov", R8, R7)
        asm.op("mul", R8, 8 * RECORD_WORDS)
        asm.op_reg("add", R8, R9)
        *numbers, file = (_VMA + member - first for member in self._members)
        for word, place in enumerate(numbers):
            asm.load(R3, R9, place)
            asm.store(8, R8, RECORDS + 8 * word, R3)
        asm.load(R3, R9, file)
        asm.jump_if("jeq", R3, 0, "device")
        for offset in self._to_device:
            _follow(asm, offset, "torn")
        asm.op("lsh", R3, 32)
        asm.op("rsh", R3, 32)
        asm.label("device")
        asm.store(8, R8, RECORDS + 8 * (RECORD_WORDS - 1), R3)

    @staticmethod
    def _copy(asm: Assembler, place: int, size: int) -> None:
        """Copy ``size`` bytes of kernel memory at R3 to ``place`` in the shared memory."""
        asm.op_reg("mov", R1, R9)
        asm.op("add", R1, place)
        asm.op("mov", R2, size)
        asm.call(Helper.PROBE_READ_KERNEL)
        asm.jump_if("jne", R0, 0, "torn")


def _load(asm: Assembler, register: int, word: int) -> None:
    asm.load(register, R9, 8 * word)


def _store(asm: Assembler, word: int, register: int) -> None:
    asm.store(8, R9, 8 * word, register)


def _set(asm: Assembler, word: int, value: int) -> None:
    asm.op("mov", R1, value)
    _store(asm, word, R1)


def _follow(asm: Assembler, offset: int, unreadable: str) -> None:
    """R3 = 8 bytes at ``offset`` from it."""
    asm.op("add", R3, offset)
    asm.read_kernel(_SLOT, unreadable)
    asm.op_reg("mov", R3, R1)


def _return(asm: Assembler, label: str, value: int) -> None:
    asm.label(label)
    asm.op("mov", R0, value)
    asm.exit()
