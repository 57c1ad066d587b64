# SPDX-License-Identifier: GPL-2.0-only
"""Whole sampling intervals of real address spaces by ``page_table``, in few system calls.

A BPF program (:mod:`kdamon.mm.bpf.interval_program`) ends the sample, chooses and looks; process_madvise() makes old
what it listed, and the program looks whether it became so. What it cannot decide (huge pages, folios of several pages,
pages that are on no LRU list at the moment) is done as for a sample of its own, by
:class:`kdamon.mm.sampling.page_table.PageTableSpace`, so that both give the same answers.

Until then, intervals follow one another without Python: the thread sleeps and samples in one batch of system calls
(:mod:`kdamon.mm.syscall_batch`), which another thread can interrupt.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from kdamon.arrays import Indexes, U8Array, U32Array, U64Array, distinct
from kdamon.kernel import PAGE_SIZE
from kdamon.lib.file_limit import files_ran_out
from kdamon.lib.syscalls import NR_FUTEX, NR_GETPID, NR_MADVISE, syscall
from kdamon.mm import OLD, UNKNOWN, YOUNG, Answers, IntervalTarget
from kdamon.mm.actions.madvise import drain_lru, spare_page
from kdamon.mm.bpf.interval_memory import (
    ADVISE,
    BEGIN,
    CAPACITY,
    END,
    NOT_CLEARED,
    OTHERS,
    RANDOM,
    RUN,
    RWSEM_FLAG_WAITERS,
    SLEEP,
    TARGETS,
    VERIFY,
    WIDE,
    Control,
    IntervalWord,
    Row,
    Target,
)
from kdamon.mm.bpf.interval_program import IntervalProgram
from kdamon.mm.bpf.walker import Walker
from kdamon.mm.mman import MADV_COLD
from kdamon.mm.mmap_lock import stays_locked
from kdamon.mm.sampling.page_table import LOCKED, PageTableSpace
from kdamon.mm.sampling.placement import Placement
from kdamon.mm.syscall_batch import RESULT, STOP, WORDS, jump, runner

__all__ = ["LinuxIntervals"]

_WORD: Final = 0xFFFF_FFFF_FFFF_FFFF
_PAGE_MASK: Final = ~np.uint64(PAGE_SIZE - 1)
_FLAGS: Final = np.uint64(0xFF)

#: How the thread sleeps: until a time of CLOCK_MONOTONIC, or until it is wanted.
_FUTEX_WAKE: Final = 1 | 128
_FUTEX_WAIT: Final = 9 | 128
_FUTEX_ANY: Final = 0xFFFF_FFFF

#: Nanoseconds that two ways to read one clock differ by at most.
_CLOCKS_DIFFER: Final = 1_000_000

#: Words of the calls: numbers that the program sets, and results.
_SLEEP: Final = WORDS * SLEEP
_ADVISE: Final = WORDS * ADVISE
_RAN: Final = WORDS * RUN + RESULT

#: Pages that are cleared in one call, because the target's mmap_lock is held for it: some 0.1 ms where no other CPU has
#: to be interrupted, and otherwise the least that :mod:`kdamon.mm.actions.madvise` takes.
_MOST_HERE: Final = 512
_MOST_ELSEWHERE: Final = 64


def _column(parts: list[U64Array]) -> U64Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _Space:
    """An address space, pinned: its page directory stays where it is while its /proc/PID/pagemap is open."""

    def __init__(self, space: PageTableSpace, walker: Walker) -> None:
        self.space = space
        self.pagemap = self.pidfd = -1
        try:
            self.pagemap = os.dup(space.pagemap)
            self.pidfd = os.dup(space.pidfd)
            self.mm, self.pgd = walker.page_directory(self.pagemap)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for fd in (self.pagemap, self.pidfd):
            if fd >= 0:
                os.close(fd)


class LinuxIntervals:
    """Implements :class:`kdamon.mm.IntervalSampler` for address spaces of the running kernel.

    Belongs to the thread that begins the first sample: that one moves to the CPU of its target.

    :param walker: gives where page tables are; stays the caller's.
    :raises OSError: EPERM, EOPNOTSUPP this kernel cannot run the program.
    """

    def __init__(self, walker: Walker) -> None:
        self._walker = walker
        self._program: IntervalProgram = walker.interval_program()
        self._known: dict[PageTableSpace, _Space] = {}
        self._spaces: list[_Space] = []
        #: Where the rows of each target begin, and the end of the last.
        self._edges: list[int] = [0]
        self._count = 0
        self.taken = 0
        self.woken = False
        self._same_clock = False
        self._reading: list[PageTableSpace] = []
        self._placement: Placement | None = None
        self._make_calls = runner()
        self._program.calls[RUN, :4] = self._program.run_call
        self._program.calls[SLEEP, 1:7] = (
            *(self._program.control_at + 8 * Control.WANTED, _FUTEX_WAIT, 0),
            *(self._program.control_at + 8 * Control.SECONDS, 0, _FUTEX_ANY),
        )
        #: The same as numbers.
        self._calls_at = self._program.calls_at
        self._calls = (ctypes.c_int64 * (3 * WORDS)).from_address(self._calls_at)

    @property
    def addrs(self) -> U64Array:
        """See :class:`kdamon.mm.IntervalSampler`."""
        return self._program.rows[: self._count, Row.ADDR].copy()

    @property
    def accessed(self) -> U32Array:
        """See :class:`kdamon.mm.IntervalSampler`."""
        return self._program.rows[: self._count, Row.COUNTS].astype(np.uint32)

    @property
    def unknown(self) -> U32Array:
        """See :class:`kdamon.mm.IntervalSampler`."""
        return (self._program.rows[: self._count, Row.COUNTS] >> np.uint64(32)).astype(np.uint32)

    def close(self) -> None:
        """Unload the program, and let the address spaces go."""
        for one in self._known.values():
            one.close()
        self._known.clear()
        self._program.close()
        if self._placement is not None:
            self._placement.rest()

    @staticmethod
    def at_once(rows: int) -> int:
        """See :class:`kdamon.mm.IntervalSampler`."""
        return RANDOM // rows if 0 < rows <= CAPACITY else 0

    def begin(self, targets: Sequence[IntervalTarget], random: U64Array) -> bool:
        """See :class:`kdamon.mm.IntervalSampler`."""
        if not 0 < len(targets) <= TARGETS or random.size > RANDOM:
            return False
        spaces = self._pin(targets)
        if spaces is None:
            return False
        program = self._program
        self._spaces = spaces
        lengths = [len(target.start) for target in targets]
        self._edges = [0, *itertools.accumulate(lengths)]
        self._count = self._edges[-1]
        rows = program.rows[: self._count]
        info = [i | (WIDE if target.wide else 0) for i, target in enumerate(targets)]
        rows[:, Row.START] = _column([target.start for target in targets])
        rows[:, Row.SPAN] = _column([target.size for target in targets])
        rows[:, Row.PGD] = np.repeat(np.array([one.pgd for one in spaces], np.uint64), lengths)
        rows[:, Row.INFO] = np.repeat(np.array(info, np.uint64), lengths)
        rows[:, Row.COUNTS] = 0
        program.targets[: len(spaces)] = 0
        program.targets[: len(spaces), Target.MM] = [one.mm for one in spaces]
        program.targets[: len(spaces), Target.RANGES] = program.ranges_at
        program.random[: random.size] = random.ravel()
        program.words[IntervalWord.ROWS] = self._count
        program.words[IntervalWord.TARGETS] = len(spaces)
        program.words[IntervalWord.RANDOM] = 0
        self._set_calls(spaces)
        self._reading = [one.space for one in spaces]
        self._placement = self._placement or Placement()
        self._placement.begin()
        before = time.monotonic_ns()
        begun = self._run(BEGIN)
        ran = program.control[Control.NOW]
        # In a time namespace CLOCK_MONOTONIC may be another one than the kernel's own.
        self._same_clock = before - _CLOCKS_DIFFER < ran < time.monotonic_ns() + _CLOCKS_DIFFER
        return begun

    def _set_calls(self, spaces: Sequence[_Space]) -> None:
        """Write what is the same of the system calls of each sample."""
        calls = self._program.calls
        count = len(spaces)
        advise = calls[ADVISE : ADVISE + count]
        advise[:, 1] = [one.pidfd for one in spaces]
        advise[:, 4] = MADV_COLD
        advise[:, 5] = 0
        calls[ADVISE + count, :4] = NR_MADVISE, spare_page(), PAGE_SIZE, MADV_COLD
        calls[ADVISE + count + 1, :4] = self._program.run_call
        calls[ADVISE + count + 2, 0] = jump(SLEEP) & _WORD

    def follow(self, most: int = 1, deadline: int = 0, interval: int = 0) -> bool:
        """See :class:`kdamon.mm.IntervalSampler`."""
        if most > 1 and self._make_calls is not None and not self._reading and self._same_clock:
            control = self._program.control
            control[Control.LEFT] = most - 1
            control[Control.DEADLINE] = deadline
            control[Control.INTERVAL] = interval
            # Signals end sleeps: it sleeps on, but not for ever.
            return self._run(END | BEGIN, 2 * most + 8)
        return self._run(END | BEGIN)

    def interrupt(self) -> None:
        """See :class:`kdamon.mm.IntervalSampler`."""
        program = self._program
        program.control[Control.WANTED] = 1
        syscall(NR_FUTEX, ctypes.c_void_p(program.control_at + 8 * Control.WANTED), _FUTEX_WAKE, 1)

    def end(self) -> Answers:
        """See :class:`kdamon.mm.IntervalSampler`."""
        counts = self._program.rows[: self._count, Row.COUNTS]
        before = counts.copy()
        self._run(END)
        answers = np.full(self._count, OLD, dtype=np.uint8)
        changed = counts != before
        if changed.any():
            answers[changed] = np.where(counts[changed] - before[changed] == np.uint64(1), YOUNG, UNKNOWN)
            counts[:] = before
        return answers

    @property
    def lives(self) -> list[bool]:
        """See :class:`kdamon.mm.IntervalSampler`."""
        lives: list[bool] = (self._program.targets[: len(self._spaces), Target.ENDED] == 0).tolist()
        return lives

    def rest(self) -> None:
        """See :class:`kdamon.mm.IntervalSampler`."""
        if self._placement is not None:
            self._placement.rest()

    def _pin(self, targets: Sequence[IntervalTarget]) -> list[_Space] | None:
        """The address spaces of ``targets``, None if any of them must be sampled by itself."""
        spaces = []
        for target in targets:
            space = target.mm
            if not isinstance(space, PageTableSpace) or not space.can_be_listed():
                return None
            if space not in self._known:
                try:
                    self._known[space] = _Space(space, self._walker)
                except OSError as error:
                    if not files_ran_out(error):
                        raise
                    # One by one it can be sampled without more files.
                    return None
            spaces.append(self._known[space])
        if len(self._known) > len(spaces):
            wanted = {one.space for one in spaces}
            for space in [space for space in self._known if space not in wanted]:
                self._known.pop(space).close()
        return spaces

    def _run(self, mode: int, rounds: int = 1) -> bool:
        """Run the program; returns False if some process ended, and clears nothing then.

        :param rounds: how many times it may run in this batch.
        """
        placement = self._placement
        assert placement is not None
        words, control = self._program.words, self._program.control
        words[IntervalWord.MODE] = mode
        control[Control.TAKEN] = control[Control.WOKEN] = 0
        advised = self._run_program(placement, rounds)
        control[Control.LEFT] = control[Control.WANTED] = 0
        self.taken = control[Control.TAKEN]
        # Without being woken it still sleeps if there were too many signals.
        self.woken = control[Control.WOKEN] != 0 or self._calls[_SLEEP] == NR_FUTEX
        if self.woken or not mode & BEGIN:
            return True
        if words[IntervalWord.ENDED]:
            return False
        if self._reading:
            self._reading = [space for space in self._reading if space.read_mappings()]
        if listed := words[IntervalWord.LISTED]:
            mask = words[IntervalWord.CPUS]
            if placement.follow(mask):
                control[Control.SETTLED] = mask
        if not advised:
            if listed or words[IntervalWord.HARD]:
                self._clear()
        elif words[IntervalWord.HARD] or control[Control.SHORT]:
            self._clear_rest()
        return True

    def _run_program(self, placement: Placement, rounds: int) -> bool:
        """Run the program; returns whether the calls were made that clear what it listed, and look at that again."""
        calls = self._calls
        calls[_SLEEP] = NR_GETPID
        calls[_ADVISE] = STOP
        most = _MOST_HERE if placement.followed else _MOST_ELSEWHERE
        self._program.control[Control.MOST] = most
        if self._make_calls is None:
            self._program.run()
            return False
        count = len(self._spaces) + OTHERS
        self._make_calls(self._calls_at, count, rounds * count * (1 + self._count // most))
        if calls[_RAN] < 0:
            self._program.run()
            return False
        return bool(calls[_ADVISE] >= 0)

    def _clear_rest(self) -> None:
        """Make the pages old that are young although they were advised to be cleared."""
        program = self._program
        rows = program.hard[: program.words[IntervalWord.HARD]]
        if program.control[Control.SHORT]:
            rows = program.listed[: program.words[IntervalWord.LISTED]]
        self._clear_rows(distinct(rows).astype(np.intp), ())

    def _clear(self) -> None:
        """Make the pages old that were young when the sample began."""
        program = self._program
        listed, hard = program.words[IntervalWord.LISTED], program.words[IntervalWord.HARD]
        rows: list[Indexes] = []
        if hard:
            rows.append(program.hard[:hard].astype(np.intp))
        locked = self._locked()
        if listed:
            at = 0
            for i, count in enumerate(program.targets[: len(self._spaces), Target.LISTED].tolist()):
                if count and (i in locked or not self._clear_listed(self._spaces[i].space, at, count)):
                    rows.append(program.listed[at : at + count].astype(np.intp))
                at += count
            drain_lru()
            program.words[IntervalWord.MODE] = VERIFY
            program.run()
            if hard := program.words[IntervalWord.HARD]:
                rows.append(program.hard[:hard].astype(np.intp))
        if rows:
            self._clear_rows(distinct(np.concatenate(rows)), locked)

    def _clear_listed(self, space: PageTableSpace, at: int, count: int) -> bool:
        """Make ``count`` listed pages of an address space old; returns whether the kernel took all."""
        program = self._program
        if not program.words[IntervalWord.HUGE]:
            return space.clear_listed(program.ranges_at + 16 * at, count)
        ranges = program.ranges[at : at + count]
        # Of a 2 MiB page that several regions lie in once is enough.
        ranges = ranges[np.append(True, ranges[1:, 0] != ranges[:-1, 0])]
        return space.clear_ranges(ranges[:, 0], ranges[:, 1])

    def _locked(self) -> list[int]:
        """The targets whose memory nobody can take the lock of: to clear a page there might never end."""
        if not self._program.words[IntervalWord.WAITED_FOR]:
            return []
        states = self._program.targets[: len(self._spaces), Target.LOCK]
        waited_for = np.flatnonzero(states & np.uint64(RWSEM_FLAG_WAITERS)).tolist()
        return [i for i in waited_for if stays_locked(self._spaces[i].pagemap, LOCKED)]

    def _clear_rows(self, rows: Indexes, locked: Sequence[int]) -> None:
        """Make the young pages of ``rows`` (ascending) old, address space by address space, or note that it failed."""
        table = self._program.rows
        edges = np.searchsorted(rows, self._edges).tolist()
        for i, one in enumerate(self._spaces):
            part = rows[edges[i] : edges[i + 1]]
            if not len(part):
                continue
            if i not in locked:
                flags: U8Array = (table[part, Row.STATE] & _FLAGS).astype(np.uint8)
                pages = table[part, Row.ADDR] & _PAGE_MASK
                part = part[one.space.clear_looked_at(pages, flags, table[part, Row.ENTRY])]
            table[part, Row.STATE] |= np.uint64(NOT_CLEARED)
