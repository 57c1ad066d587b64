# SPDX-License-Identifier: GPL-2.0-only
"""The memory that :mod:`kdamon.mm.bpf.interval_program` shares with this process: its words, and where they are."""

from __future__ import annotations

from typing import Final

from kdamon.mm.bpf.walk_program import HEADER_SIZE
from kdamon.mm.syscall_batch import WORDS

__all__ = [
    "ADVISE",
    "BEGIN",
    "CALLS_AT",
    "CAPACITY",
    "CONTROL_AT",
    "END",
    "HARD_AT",
    "LISTED_AT",
    "MEMORY_SIZE",
    "NOT_CLEARED",
    "OTHERS",
    "RANDOM",
    "RANDOM_AT",
    "RANGES_AT",
    "RECORD_SHIFT",
    "RECORD_SIZE",
    "ROWS_AT",
    "RUN",
    "RWSEM_FLAG_WAITERS",
    "SLEEP",
    "TARGETS",
    "TARGETS_AT",
    "TARGET_MASK",
    "UNKNOWN_ONE",
    "VERIFY",
    "WIDE",
    "Control",
    "IntervalWord",
    "Row",
    "Target",
]

#: Rows, targets, and random numbers at most.
CAPACITY: Final = 1 << 14
TARGETS: Final = 1 << 10
RANDOM: Final = 1 << 16

#: What a run does: end the present sample, begin the next one; or only look again at the pages that were listed.
END: Final = 1
BEGIN: Final = 2
VERIFY: Final = 4

#: In Row.STATE beside the flags of the walk: the page is young, and could not be made old.
NOT_CLEARED: Final = 1 << 8
#: In Row.INFO beside the number of the target: its sizes need more than 32 bits.
WIDE: Final = 1 << 30
TARGET_MASK: Final = 0xFFFF

#: In the state of a semaphore: some thread waits for it (kernel/locking/rwsem.c).
RWSEM_FLAG_WAITERS: Final = 1 << 1

#: One unknown sample in Row.COUNTS.
UNKNOWN_ONE: Final = 1 << 32


class IntervalWord:
    """Words of the header besides :class:`kdamon.mm.bpf.walk_program.Word`'s, in place of those for a single walk."""

    #: See :data:`END`.
    MODE: Final = 11
    #: How many rows and targets there are.
    ROWS: Final = 0
    TARGETS: Final = 1
    #: The first random number of the next interval that is begun; the program goes on to the next one.
    RANDOM: Final = 3
    #: Set by the program: how many rows are listed to be cleared by themselves, and how many need more than that.
    LISTED: Final = 4
    HARD: Final = 8
    #: Set by the program: how many targets ended.
    ENDED: Final = 12
    #: Set by the program: whether pages of 2 MiB are listed.
    HUGE: Final = 13
    #: Set by the program: the CPUs that threads of the targets run on or are about to, a bit each; all are set if there
    #: are too many threads to look at each, CPUs from 64 on, or a thread of real-time priority. Not mm_cpumask(), which
    #: keeps a CPU for up to a second (Linux 6.14).
    CPUS: Final = 14
    #: Set by the program: for how many targets' mmap_lock some thread waits.
    WAITED_FOR: Final = 15


class Row:
    """Words of a row, 64 bytes."""

    START: Final = 0
    SPAN: Final = 1
    #: The page directory.
    PGD: Final = 2
    #: The number of the target, and :data:`WIDE`.
    INFO: Final = 3
    #: The address that is sampled.
    ADDR: Final = 4
    #: The flags of the last walk, and :data:`NOT_CLEARED`.
    STATE: Final = 5
    #: Its page table entry.
    ENTRY: Final = 6
    #: How often it was accessed, 32 bits, and above them how often that is unknown.
    COUNTS: Final = 7


class Target:
    """Words of a target, 64 bytes."""

    #: Its struct mm_struct.
    MM: Final = 0
    #: Set by the program: how many of its rows are listed.
    LISTED: Final = 1
    #: Set by the program: the state of its mmap_lock.
    LOCK: Final = 2
    #: Set by the program: whether no process lives in it any more.
    ENDED: Final = 3
    #: Where the ranges are that are listed, an address of this process.
    RANGES: Final = 4
    #: Set by the program: how many of those have had a call.
    ADVISED: Final = 5


class Control:
    """Words about the intervals that follow one another without Python in between."""

    #: Another thread wants the kdamond: a futex.
    WANTED: Final = 0
    #: How many more intervals may follow the present one; the program counts down.
    LEFT: Final = 1
    #: Set by the program: how many samples were begun since this was 0.
    TAKEN: Final = 2
    #: Set by the program: it was woken because the kdamond is wanted, in a sampling interval or at its end.
    WOKEN: Final = 3
    #: Nanoseconds of a sampling interval, and the end of the present one (CLOCK_MONOTONIC).
    INTERVAL: Final = 4
    DEADLINE: Final = 6
    #: Set by the program: whether more is listed than its calls advise.
    MORE: Final = 5
    #: The end of the present one as ``struct timespec``.
    SECONDS: Final = 7
    NANOSECONDS: Final = 8
    #: CPUs of the targets, as :data:`IntervalWord.CPUS`: those that need no decision, and those seen last.
    SETTLED: Final = 9
    SEEN: Final = 10
    #: Set by the program: how many ranges were given to calls so far, and whether the kernel may have taken less.
    OFFSET: Final = 11
    SHORT: Final = 12
    #: Set by the program: when it ran last, nanoseconds of the kernel's CLOCK_MONOTONIC.
    NOW: Final = 13
    #: How many pages of a target a call advises at most.
    MOST: Final = 14


#: Rows of the system calls that are made together (:mod:`kdamon.mm.syscall_batch`). In the first one the thread sleeps
#: to the end of the interval; the second one runs this program. One for each target follows: process_madvise() on what
#: was listed of it. Then moving the advised pages to their LRU lists, this program, to look at them again, and back to
#: the first row. The program sets the numbers and ranges of the targets' rows. It also decides whether another sleep
#: follows, or the targets' rows with the next part of what is listed. Where something else has to be done first, the
#: first row or the first target's ends the batch.
SLEEP: Final = 0
RUN: Final = 1
ADVISE: Final = 2
#: Rows besides those of the targets.
OTHERS: Final = 5

RECORD_SIZE: Final = 64
RECORD_SHIFT: Final = 6
CONTROL_AT: Final = HEADER_SIZE
TARGETS_AT: Final = CONTROL_AT + 8 * 16
ROWS_AT: Final = TARGETS_AT + RECORD_SIZE * TARGETS
RANDOM_AT: Final = ROWS_AT + RECORD_SIZE * CAPACITY
RANGES_AT: Final = RANDOM_AT + 8 * RANDOM
LISTED_AT: Final = RANGES_AT + 16 * CAPACITY
HARD_AT: Final = LISTED_AT + 4 * CAPACITY
CALLS_AT: Final = HARD_AT + 4 * CAPACITY
MEMORY_SIZE: Final = CALLS_AT + 8 * WORDS * (TARGETS + OTHERS)
