# SPDX-License-Identifier: GPL-2.0-only
"""The BPF program that takes whole sampling intervals of many address spaces: end a sample, choose, and begin the next.

For each row, a region, it looks at the page that was sampled and counts the result, chooses another address in the
region, and looks at that page. The young ones among these are to be cleared: they are listed as process_madvise(2)
reads its ranges, so that nothing has to be touched between the two system calls.

Where that is all that is to be done, it lets the calls begin anew (:mod:`kdamon.mm.syscall_batch`): the thread sleeps
to the end of the next interval and comes here again, for as many intervals as were asked for.
"""

from __future__ import annotations

import ctypes
from typing import Final

import numpy as np

from kdamon.arrays import U64Array
from kdamon.kernel import PAGE_SIZE, PMD_SIZE
from kdamon.mm.bpf.interval_calls import advise, advised, begin, end, go_on, go_round, look_again, loop, set_call, wake
from kdamon.mm.bpf.interval_memory import (
    ADVISE,
    BEGIN,
    CALLS_AT,
    CAPACITY,
    CONTROL_AT,
    END,
    HARD_AT,
    LISTED_AT,
    MEMORY_SIZE,
    NOT_CLEARED,
    RANDOM,
    RANDOM_AT,
    RANGES_AT,
    RECORD_SHIFT,
    ROWS_AT,
    RWSEM_FLAG_WAITERS,
    TARGET_MASK,
    TARGETS,
    TARGETS_AT,
    UNKNOWN_ONE,
    VERIFY,
    WIDE,
    IntervalWord,
    Row,
    Target,
)
from kdamon.mm.bpf.program import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Array, Assembler, Program
from kdamon.mm.bpf.running_cpus import TaskLayout, find_cpus, low_half, read_member
from kdamon.mm.bpf.walk_program import ACCESSED, CLEARABLE, FRAME, HEADER_SIZE, LEVEL, PRESENT, SHARED, Layout, PageWalk
from kdamon.mm.bpf.watched_pages import note_page
from kdamon.mm.syscall_batch import STOP, WORDS

__all__ = ["IntervalProgram"]

#: Slots of the frame.
_INDEX: Final = FRAME


class IntervalProgram:
    """The program and the memory that it shares with this process.

    :param layout: of the running kernel.
    :param tasks: the same of the targets' threads.
    :param header: the header of a walker's memory after its calibration, see :class:`kdamon.mm.bpf.walk_program.Word`.
    :param watched: the map of :class:`kdamon.mm.bpf.watched_pages.WatchedPages`.
    :ivar words: the header, as numbers.
    :ivar control: the words of :class:`kdamon.mm.bpf.interval_memory.Control`; any thread may write WANTED.
    :ivar control_at: their address.
    :ivar rows: shape (CAPACITY, 8).
    :ivar calls: shape (TARGETS + OTHERS, WORDS).
    :ivar run_call: number and arguments of the system call that runs the program.
    :ivar calls_at: their address.
    :ivar targets: shape (TARGETS, 8).
    :ivar random: shape (RANDOM,).
    :ivar listed: rows, in the order of ``ranges``, shape (CAPACITY,).
    :ivar hard: rows, shape (CAPACITY,).
    :ivar ranges: address and size of what is to be cleared, as ``struct iovec``, shape (CAPACITY, 2).
    :ivar ranges_at: their address.
    :raises OSError: EPERM without the rights; what the verifier says otherwise.
    """

    def __init__(self, layout: Layout, tasks: TaskLayout, header: U64Array, watched: int) -> None:
        self._layout = layout
        self._watched = watched
        self._tasks = tasks
        self._array = Array(-(-MEMORY_SIZE // PAGE_SIZE) * PAGE_SIZE)
        try:
            self._program = Program(
                self._assemble(), "kdamon_interval", ("target", "row", "verify", "advise", "advised")
            )
        except BaseException:
            self._array.close()
            raise
        whole = np.frombuffer(self._array.memory, dtype=np.uint8)
        whole[:HEADER_SIZE].view(np.uint64)[:] = header
        self.words = (ctypes.c_uint64 * (HEADER_SIZE // 8)).from_buffer(self._array.memory)
        self.control = (ctypes.c_uint64 * 16).from_buffer(self._array.memory, CONTROL_AT)
        self.control_at = ctypes.addressof(self.control)
        self.calls: U64Array = whole[CALLS_AT:MEMORY_SIZE].view(np.uint64).reshape(-1, WORDS)
        self.calls_at = int(self.calls.ctypes.data)
        self.run_call = self._program.run_call
        self.targets: U64Array = whole[TARGETS_AT:ROWS_AT].view(np.uint64).reshape(-1, 8)
        self.rows: U64Array = whole[ROWS_AT:RANDOM_AT].view(np.uint64).reshape(-1, 8)
        self.random: U64Array = whole[RANDOM_AT:RANGES_AT].view(np.uint64)
        self.listed = whole[LISTED_AT:HARD_AT].view(np.uint32)
        self.hard = whole[HARD_AT:CALLS_AT].view(np.uint32)
        self.ranges: U64Array = whole[RANGES_AT:LISTED_AT].view(np.uint64).reshape(-1, 2)
        self.ranges_at = int(self.ranges.ctypes.data)
        self.run = self._program.run

    def close(self) -> None:
        """Unload the program and give its memory back."""
        self._program.close()
        self._array.close()

    def _assemble(self) -> Assembler:
        asm = Assembler()
        asm.load_map_value(R9, self._array.fd)
        asm.op("mov", R1, 0)
        asm.store(8, R9, 8 * IntervalWord.HARD, R1)
        asm.load(R1, R9, 8 * IntervalWord.MODE)
        asm.jump_if("jset", R1, VERIFY, "look again")
        set_call(asm, ADVISE, STOP)
        wake(asm)
        asm.op("mov", R1, 0)
        asm.store(8, R9, 8 * IntervalWord.LISTED, R1)
        asm.store(8, R9, 8 * IntervalWord.ENDED, R1)
        asm.store(8, R9, 8 * IntervalWord.HUGE, R1)
        asm.store(8, R9, 8 * IntervalWord.CPUS, R1)
        asm.store(8, R9, 8 * IntervalWord.WAITED_FOR, R1)
        loop(asm, IntervalWord.TARGETS, "target")
        loop(asm, IntervalWord.ROWS, "row")
        go_on(asm)
        asm.label("look again")
        look_again(asm)
        loop(asm, IntervalWord.LISTED, "verify")
        asm.load(R1, R9, 8 * IntervalWord.HARD)
        asm.jump_if("jne", R1, 0, "leave")
        asm.label("begun and done")
        go_round(asm)
        asm.label("leave")
        asm.op("mov", R0, 0)
        asm.exit()
        self._target(asm)
        self._row(asm)
        self._verify(asm)
        advise(asm, self._array.fd)
        advised(asm, self._array.fd, self._layout.mmap_lock)
        return asm

    def _target(self, asm: Assembler) -> None:
        """For each target: whether it ended, its lock and its CPUs."""
        begin(asm, self._array.fd, "target", TARGETS)
        asm.op("lsh", R6, RECORD_SHIFT)
        asm.op_reg("add", R6, R9)
        asm.load(R7, R6, TARGETS_AT + 8 * Target.MM)
        asm.op("mov", R1, 0)
        asm.store(8, R6, TARGETS_AT + 8 * Target.LISTED, R1)
        asm.store(8, R6, TARGETS_AT + 8 * Target.ADVISED, R1)
        asm.store(8, R6, TARGETS_AT + 8 * Target.LOCK, R1)
        read_member(asm, self._tasks.users, "target next")
        asm.op("lsh", R1, 32)
        asm.jump_if("jne", R1, 0, "target lives")
        asm.op("mov", R1, 1)
        asm.store(8, R6, TARGETS_AT + 8 * Target.ENDED, R1)
        asm.load(R1, R9, 8 * IntervalWord.ENDED)
        asm.op("add", R1, 1)
        asm.store(8, R9, 8 * IntervalWord.ENDED, R1)
        asm.label("target lives")
        if self._layout.mmap_lock is not None:
            read_member(asm, self._layout.mmap_lock, "target next")
            asm.store(8, R6, TARGETS_AT + 8 * Target.LOCK, R1)
            asm.op("and", R1, RWSEM_FLAG_WAITERS)
            asm.jump_if("jeq", R1, 0, "lock is free")
            asm.load(R1, R9, 8 * IntervalWord.WAITED_FOR)
            asm.op("add", R1, 1)
            asm.store(8, R9, 8 * IntervalWord.WAITED_FOR, R1)
            asm.label("lock is free")
        if self._tasks.owner is not None:
            find_cpus(asm, self._tasks, 8 * IntervalWord.CPUS, "target next")
        end(asm, "target")

    def _row(self, asm: Assembler) -> None:
        """For each row: end its sample and begin another one."""
        begin(asm, self._array.fd, "row", CAPACITY)
        asm.store(8, R10, _INDEX, R6)
        asm.op("lsh", R6, RECORD_SHIFT)
        asm.op_reg("add", R6, R9)
        asm.op("add", R6, ROWS_AT)
        asm.load(R1, R9, 8 * IntervalWord.MODE)
        asm.jump_if("jset", R1, END, "count")
        asm.jump("choose")
        asm.label("count")
        self._count(asm)
        asm.label("choose")
        asm.load(R1, R9, 8 * IntervalWord.MODE)
        asm.jump_if("jset", R1, BEGIN, "chosen")
        asm.jump("row next")
        asm.label("chosen")
        self._choose(asm)
        asm.load(R8, R6, 8 * Row.PGD)
        PageWalk(self._layout).emit(asm, "begin ", whole=True)
        asm.store(8, R6, 8 * Row.ENTRY, R1)
        asm.store(8, R6, 8 * Row.STATE, R2)
        self._list(asm)
        end(asm, "row")

    def _count(self, asm: Assembler) -> None:
        """End the sample of the row at R6."""
        asm.load(R7, R6, 8 * Row.ADDR)
        asm.load(R8, R6, 8 * Row.PGD)
        PageWalk(self._layout).emit(asm, "end ", whole=False)
        asm.jump_if("jeq", R2, 0, "unknown")
        asm.load(R1, R6, 8 * Row.STATE)
        asm.jump_if("jset", R1, NOT_CLEARED, "not cleared")
        asm.jump_if("jset", R2, ACCESSED, "young")
        asm.jump("choose")
        asm.label("young")
        asm.load(R1, R6, 8 * Row.COUNTS)
        asm.op("add", R1, 1)
        asm.store(8, R6, 8 * Row.COUNTS, R1)
        asm.jump("choose")
        asm.label("not cleared")
        # What is not there any more was not accessed. Deviation: docs/deviations.md#pages-whose-bit-cannot-be-cleared
        asm.jump_if("jset", R2, PRESENT, "unknown")
        asm.jump("choose")
        asm.label("unknown")
        asm.load(R1, R6, 8 * Row.COUNTS)
        asm.load_number(R2, UNKNOWN_ONE)
        asm.op_reg("add", R1, R2)
        asm.store(8, R6, 8 * Row.COUNTS, R1)

    @staticmethod
    def _choose(asm: Assembler) -> None:
        """R7 = a random address in the region of the row at R6 (``damon_rand()``), which is stored."""
        asm.load(R1, R10, _INDEX)
        asm.load(R2, R9, 8 * IntervalWord.RANDOM)
        asm.op_reg("add", R1, R2)
        asm.jump_if("jgt", R1, RANDOM - 1, "row stop")
        asm.op("lsh", R1, 3)
        asm.op_reg("add", R1, R9)
        asm.op("add", R1, RANDOM_AT)
        asm.load(R7, R1, 0)
        asm.load(R2, R6, 8 * Row.SPAN)
        asm.load(R1, R6, 8 * Row.INFO)
        asm.jump_if("jset", R1, WIDE, "wide")
        asm.op_reg("mul", R7, R2)
        asm.op("rsh", R7, 32)
        asm.jump("add start")
        asm.label("wide")
        # The upper half of a 64 by 64 bit product, from 32-bit halves: R7 and R1 of the random number, R2 and R3 of the
        # size.
        asm.op_reg("mov", R1, R7)
        low_half(asm, R1)
        asm.op("rsh", R7, 32)
        asm.op_reg("mov", R3, R2)
        low_half(asm, R3)
        asm.op("rsh", R2, 32)
        asm.op_reg("mov", R4, R1)
        asm.op_reg("mul", R4, R3)
        asm.op("rsh", R4, 32)
        asm.op_reg("mov", R5, R7)
        asm.op_reg("mul", R5, R3)
        asm.op_reg("add", R4, R5)
        # R4 is the middle, R1 the carry.
        asm.op_reg("mul", R1, R2)
        asm.op_reg("mov", R5, R4)
        low_half(asm, R5)
        asm.op_reg("add", R1, R5)
        asm.op("rsh", R1, 32)
        asm.op("rsh", R4, 32)
        asm.op_reg("mul", R7, R2)
        asm.op_reg("add", R7, R4)
        asm.op_reg("add", R7, R1)
        asm.label("add start")
        asm.load(R1, R6, 8 * Row.START)
        asm.op_reg("add", R7, R1)
        asm.store(8, R6, 8 * Row.ADDR, R7)

    def _list(self, asm: Assembler) -> None:
        """Note what is to be done with the page of the row at R6, whose flags are in R2."""
        asm.jump_if("jset", R2, ACCESSED, "to clear")
        asm.jump("row next")
        asm.label("to clear")
        asm.jump_if("jset", R2, SHARED, "leave alone")
        asm.jump_if("jset", R2, CLEARABLE, "clearable")
        _append(asm, IntervalWord.HARD, HARD_AT, "row stop")
        asm.jump("row next")
        asm.label("leave alone")
        asm.op("or", R2, NOT_CLEARED)
        asm.store(8, R6, 8 * Row.STATE, R2)
        asm.jump("row next")
        asm.label("clearable")
        asm.load(R7, R6, 8 * Row.ADDR)
        asm.op_reg("mov", R4, R2)
        asm.op("and", R4, LEVEL)
        asm.jump_if("jeq", R4, 1, "4 KiB")
        asm.op("and", R7, -PMD_SIZE)
        asm.op("mov", R4, PMD_SIZE)
        asm.op("mov", R1, 1)
        asm.store(8, R9, 8 * IntervalWord.HUGE, R1)
        asm.jump("range")
        asm.label("4 KiB")
        asm.op("and", R7, -PAGE_SIZE)
        asm.op("mov", R4, PAGE_SIZE)
        asm.label("range")
        asm.load(R5, R6, 8 * Row.PGD)
        note_page(asm, self._watched, R7, R5)
        asm.load(R1, R9, 8 * IntervalWord.LISTED)
        asm.jump_if("jgt", R1, CAPACITY - 1, "row stop")
        asm.op("lsh", R1, 4)
        asm.op_reg("add", R1, R9)
        asm.op("add", R1, RANGES_AT)
        asm.store(8, R1, 0, R7)
        asm.store(8, R1, 8, R4)
        _append(asm, IntervalWord.LISTED, LISTED_AT, "row stop")
        asm.load(R1, R6, 8 * Row.INFO)
        asm.op("and", R1, TARGET_MASK)
        asm.jump_if("jgt", R1, TARGETS - 1, "row stop")
        asm.op("lsh", R1, RECORD_SHIFT)
        asm.op_reg("add", R1, R9)
        asm.load(R2, R1, TARGETS_AT + 8 * Target.LISTED)
        asm.op("add", R2, 1)
        asm.store(8, R1, TARGETS_AT + 8 * Target.LISTED, R2)

    def _verify(self, asm: Assembler) -> None:
        """For each listed row: look at its page again; it is hard where it was not cleared for certain."""
        begin(asm, self._array.fd, "verify", CAPACITY)
        asm.op("lsh", R6, 2)
        asm.op_reg("add", R6, R9)
        asm.op("add", R6, LISTED_AT)
        asm.load(R6, R6, 0, width=4)
        asm.jump_if("jgt", R6, CAPACITY - 1, "verify stop")
        asm.store(8, R10, _INDEX, R6)
        asm.op("lsh", R6, RECORD_SHIFT)
        asm.op_reg("add", R6, R9)
        asm.op("add", R6, ROWS_AT)
        asm.load(R7, R6, 8 * Row.ADDR)
        asm.load(R8, R6, 8 * Row.PGD)
        PageWalk(self._layout).emit(asm, "verify ", whole=True)
        asm.store(8, R6, 8 * Row.ENTRY, R1)
        asm.store(8, R6, 8 * Row.STATE, R2)
        asm.jump_if("jset", R2, ACCESSED, "young again")
        asm.jump("verify next")
        asm.label("young again")
        # What can be cleared now could be before: it was cleared, and accessed since.
        asm.jump_if("jset", R2, CLEARABLE, "verify next")
        _append(asm, IntervalWord.HARD, HARD_AT, "verify stop")
        end(asm, "verify")


def _append(asm: Assembler, count: int, place: int, full: str) -> None:
    """Append the row's number to the list at ``place`` that has ``count`` elements; R1 and R2 are lost."""
    asm.load(R1, R9, 8 * count)
    asm.jump_if("jgt", R1, CAPACITY - 1, full)
    asm.op_reg("mov", R2, R1)
    asm.op("add", R2, 1)
    asm.store(8, R9, 8 * count, R2)
    asm.op("lsh", R1, 2)
    asm.op_reg("add", R1, R9)
    asm.op("add", R1, place)
    asm.load(R2, R10, _INDEX)
    asm.store(4, R1, 0, R2)
