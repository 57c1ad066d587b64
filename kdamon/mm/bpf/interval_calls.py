# SPDX-License-Identifier: GPL-2.0-only
"""How the interval program decides about the system calls around it (:mod:`kdamon.mm.syscall_batch`).

It runs in a batch of calls: a sleep, the program, an advice for each target, the program again to look at what was
advised, and so on for the next interval. These functions emit what sets the calls: which advice is to be given,
whether another interval follows, and where Python has to do something first.
"""

from __future__ import annotations

from kdamon.kernel import NSEC_PER_SEC, PAGE_SIZE
from kdamon.lib.syscalls import NR_FUTEX, NR_GETPID, NR_PROCESS_MADVISE
from kdamon.mm.bpf.interval_memory import (
    ADVISE,
    BEGIN,
    CALLS_AT,
    CONTROL_AT,
    END,
    RECORD_SHIFT,
    RWSEM_FLAG_WAITERS,
    SLEEP,
    TARGETS,
    TARGETS_AT,
    VERIFY,
    Control,
    IntervalWord,
    Target,
)
from kdamon.mm.bpf.program import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, Assembler, Helper
from kdamon.mm.syscall_batch import RESULT, STOP, WORDS, jump

__all__ = ["advise", "advised", "begin", "end", "go_on", "go_round", "look_again", "loop", "set_call", "wake"]


def loop(asm: Assembler, count: int, callback: str) -> None:
    asm.load(R1, R9, 8 * count)
    asm.load_function(R2, callback)
    asm.op("mov", R3, 0)
    asm.op("mov", R4, 0)
    asm.call(Helper.LOOP)


def begin(asm: Assembler, memory: int, label: str, capacity: int) -> None:
    """The beginning of a callback: R6 becomes the index, R9 the shared memory, that of the map ``memory``."""
    asm.label(label)
    asm.op_reg("mov", R6, R1)
    asm.load_map_value(R9, memory)
    asm.jump_if("jgt", R6, capacity - 1, f"{label} stop")


def end(asm: Assembler, label: str) -> None:
    asm.label(f"{label} next")
    asm.op("mov", R0, 0)
    asm.exit()
    asm.label(f"{label} stop")
    asm.op("mov", R0, 1)
    asm.exit()


def set_call(asm: Assembler, row: int, number: int) -> None:
    """Let ``number`` be what row ``row`` of the calls does; R1 and R2 are lost."""
    asm.op_reg("mov", R2, R9)
    asm.op("add", R2, CALLS_AT + 8 * WORDS * row)
    asm.op("mov", R1, number)
    asm.store(8, R2, 0, R1)


def wake(asm: Assembler) -> None:
    """After a sleep: leave if the kdamond is wanted, and sleep on if the interval is not over.

    There was none before the first sample of a batch, whose caller has just looked whether the kdamond is wanted.
    """
    set_call(asm, SLEEP, STOP)
    asm.call(Helper.KTIME_GET_NS)
    asm.store(8, R9, CONTROL_AT + 8 * Control.NOW, R0)
    asm.load(R1, R9, CONTROL_AT + 8 * Control.TAKEN)
    asm.jump_if("jeq", R1, 0, "awake")
    asm.load(R1, R9, CONTROL_AT + 8 * Control.WANTED)
    asm.jump_if("jeq", R1, 0, "not wanted")
    asm.op("mov", R1, 1)
    asm.store(8, R9, CONTROL_AT + 8 * Control.WOKEN, R1)
    asm.jump("leave")
    asm.label("not wanted")
    asm.load(R1, R9, CONTROL_AT + 8 * Control.DEADLINE)
    asm.jump_if_reg("jge", R0, R1, "awake")
    # A signal woke it.
    set_call(asm, SLEEP, NR_FUTEX)
    set_call(asm, ADVISE, jump(SLEEP))
    asm.jump("leave")
    asm.label("awake")


def go_on(asm: Assembler) -> None:
    """Let the calls after this run be made if they are all that is to be done: few small pages of each target."""
    asm.load(R1, R9, 8 * IntervalWord.MODE)
    asm.jump_if("jset", R1, BEGIN, "begun")
    asm.jump("leave")
    asm.label("begun")
    asm.load(R1, R9, 8 * IntervalWord.RANDOM)
    asm.load(R2, R9, 8 * IntervalWord.ROWS)
    asm.op_reg("add", R1, R2)
    asm.store(8, R9, 8 * IntervalWord.RANDOM, R1)
    asm.load(R1, R9, CONTROL_AT + 8 * Control.TAKEN)
    asm.op("add", R1, 1)
    asm.store(8, R9, CONTROL_AT + 8 * Control.TAKEN, R1)
    for word in (IntervalWord.ENDED, IntervalWord.WAITED_FOR, IntervalWord.HUGE, IntervalWord.HARD):
        asm.load(R1, R9, 8 * word)
        asm.jump_if("jne", R1, 0, "leave")
    asm.load(R1, R9, 8 * IntervalWord.LISTED)
    asm.jump_if("jne", R1, 0, "pages are listed")
    set_call(asm, ADVISE, jump(SLEEP))
    asm.jump("begun and done")
    asm.label("pages are listed")
    asm.op("mov", R1, VERIFY)
    asm.store(8, R9, 8 * IntervalWord.MODE, R1)
    _advise_each(asm)


def _advise_each(asm: Assembler) -> None:
    """Set the calls that advise what is listed, or the next part of it."""
    asm.op("mov", R1, 0)
    asm.store(8, R9, CONTROL_AT + 8 * Control.OFFSET, R1)
    asm.store(8, R9, CONTROL_AT + 8 * Control.MORE, R1)
    # Until it is looked at again.
    asm.op("mov", R1, 1)
    asm.store(8, R9, CONTROL_AT + 8 * Control.SHORT, R1)
    loop(asm, IntervalWord.TARGETS, "advise")
    asm.jump("leave")


def look_again(asm: Assembler) -> None:
    """After the calls that advise: whether the kernel took all; the next part follows if no thread waits for a lock."""
    set_call(asm, SLEEP, STOP)
    asm.op("mov", R1, 0)
    asm.store(8, R9, CONTROL_AT + 8 * Control.SHORT, R1)
    loop(asm, IntervalWord.TARGETS, "advised")
    asm.load(R1, R9, CONTROL_AT + 8 * Control.SHORT)
    asm.jump_if("jne", R1, 0, "leave")
    asm.load(R1, R9, CONTROL_AT + 8 * Control.MORE)
    asm.jump_if("jeq", R1, 0, "all advised")
    set_call(asm, SLEEP, jump(ADVISE))
    _advise_each(asm)
    asm.label("all advised")


def go_round(asm: Assembler) -> None:
    """Let another interval follow, if it was asked for, in time, and where this thread runs is where it should."""
    asm.load(R1, R9, CONTROL_AT + 8 * Control.LEFT)
    asm.jump_if("jeq", R1, 0, "leave")
    asm.op("sub", R1, 1)
    asm.store(8, R9, CONTROL_AT + 8 * Control.LEFT, R1)
    # CPUs that are seen twice ask for a decision.
    asm.load(R1, R9, 8 * IntervalWord.LISTED)
    asm.jump_if("jeq", R1, 0, "settled")
    asm.load(R1, R9, 8 * IntervalWord.CPUS)
    asm.jump_if("jeq", R1, 0, "settled")
    asm.load(R2, R9, CONTROL_AT + 8 * Control.SETTLED)
    asm.jump_if_reg("jeq", R1, R2, "settled")
    asm.load(R2, R9, CONTROL_AT + 8 * Control.SEEN)
    asm.store(8, R9, CONTROL_AT + 8 * Control.SEEN, R1)
    asm.jump_if_reg("jeq", R1, R2, "leave")
    asm.label("settled")
    # Less than half of an interval is too little.
    asm.call(Helper.KTIME_GET_NS)
    asm.load(R1, R9, CONTROL_AT + 8 * Control.DEADLINE)
    asm.load(R2, R9, CONTROL_AT + 8 * Control.INTERVAL)
    asm.op_reg("add", R1, R2)
    asm.op("rsh", R2, 1)
    asm.op_reg("add", R0, R2)
    asm.jump_if_reg("jlt", R1, R0, "leave")
    asm.store(8, R9, CONTROL_AT + 8 * Control.DEADLINE, R1)
    asm.op_reg("mov", R2, R1)
    asm.op("div", R2, NSEC_PER_SEC)
    asm.store(8, R9, CONTROL_AT + 8 * Control.SECONDS, R2)
    asm.op("mul", R2, NSEC_PER_SEC)
    asm.op_reg("sub", R1, R2)
    asm.store(8, R9, CONTROL_AT + 8 * Control.NANOSECONDS, R1)
    asm.op("mov", R1, END | BEGIN)
    asm.store(8, R9, 8 * IntervalWord.MODE, R1)
    set_call(asm, SLEEP, NR_FUTEX)


def advise(asm: Assembler, memory: int) -> None:
    """For each target: the call that advises what is listed of it, or the next part of that."""
    begin(asm, memory, "advise", TARGETS)
    _find_call(asm)
    asm.load(R4, R6, 8 * Target.ADVISED)
    asm.load(R7, R6, 8 * Target.LISTED)
    asm.load(R8, R9, CONTROL_AT + 8 * Control.OFFSET)
    asm.op_reg("mov", R3, R8)
    asm.op_reg("add", R8, R7)
    asm.store(8, R9, CONTROL_AT + 8 * Control.OFFSET, R8)
    asm.op_reg("sub", R7, R4)
    asm.op("mov", R1, NR_GETPID)
    asm.jump_if("jeq", R7, 0, "no page")
    asm.load(R2, R9, CONTROL_AT + 8 * Control.MOST)
    asm.jump_if_reg("jge", R2, R7, "the rest")
    asm.op_reg("mov", R7, R2)
    asm.op("mov", R1, 1)
    asm.store(8, R9, CONTROL_AT + 8 * Control.MORE, R1)
    asm.label("the rest")
    asm.store(8, R5, 8 * 3, R7)
    asm.load(R2, R6, 8 * Target.RANGES)
    asm.op_reg("add", R3, R4)
    asm.op("lsh", R3, 4)
    asm.op_reg("add", R2, R3)
    asm.store(8, R5, 8 * 2, R2)
    asm.op_reg("add", R4, R7)
    asm.store(8, R6, 8 * Target.ADVISED, R4)
    asm.op("mov", R1, NR_PROCESS_MADVISE)
    asm.label("no page")
    asm.store(8, R5, 0, R1)
    end(asm, "advise")


def advised(asm: Assembler, memory: int, lock: int | None) -> None:
    """For each target: whether the kernel took all that was to be advised, and more may follow at once.

    :param lock: where the mmap_lock's state is in an address space; None where that is not known.
    """
    begin(asm, memory, "advised", TARGETS)
    _find_call(asm)
    asm.load(R1, R5, 0)
    asm.jump_if("jne", R1, NR_PROCESS_MADVISE, "advised next")
    asm.load(R1, R5, 8 * 3)
    asm.op("mul", R1, PAGE_SIZE)
    asm.load(R2, R5, 8 * RESULT)
    asm.jump_if_reg("jne", R1, R2, "stop here")
    asm.load(R1, R9, CONTROL_AT + 8 * Control.MORE)
    asm.jump_if("jeq", R1, 0, "advised next")
    if lock is not None:
        asm.load(R3, R6, 8 * Target.MM)
        asm.op("add", R3, lock)
        asm.read_kernel(-8, "stop here")
        asm.op("and", R1, RWSEM_FLAG_WAITERS)
        asm.jump_if("jeq", R1, 0, "advised next")
    asm.label("stop here")
    asm.op("mov", R1, 1)
    asm.store(8, R9, CONTROL_AT + 8 * Control.SHORT, R1)
    end(asm, "advised")


def _find_call(asm: Assembler) -> None:
    """R5 = the row of the call that advises what is listed of the target with the number in R6; R6 = that target."""
    asm.op("lsh", R6, RECORD_SHIFT)
    asm.op_reg("mov", R5, R6)
    asm.op_reg("add", R5, R9)
    asm.op("add", R5, CALLS_AT + 8 * WORDS * ADVISE)
    asm.op_reg("add", R6, R9)
    asm.op("add", R6, TARGETS_AT)
