# SPDX-License-Identifier: GPL-2.0-only
"""Where and how a kdamond runs: on the CPU of its target, and in time.

To make pages old, and to arm them, the kernel flushes them from the TLBs of the CPUs that the target runs on
(``arch/x86/mm/tlb.c: flush_tlb_mm_range()``). To interrupt another CPU costs some microseconds a page, and both wait;
on the target's own CPU there is nobody to interrupt. So the kdamond moves there if the target runs on that one alone.

There it has to run in time beside a busy target: while it samples and merges it has real-time priority where that is
allowed. What others want of it, and all that may take long, it does without; and if that takes more than
:data:`_SHARE` of a CPU it goes on without.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Final

from kdamon.mm import AddressSpace
from kdamon.mm.bpf.running_cpus import ANY_CPU, running_cpus
from kdamon.mm.sampling.page_fault import PageFaultSpace

__all__ = ["FaultPlacement", "Placement", "take_real_time"]

log = logging.getLogger("kdamon")

#: The part of a CPU that samples may take with real-time priority, and over how many nanoseconds.
_SHARE: Final = 0.2
_WINDOW: Final = 1_000_000_000
#: Nanoseconds without real-time priority after they took more.
_PENALTY: Final = 10_000_000_000
#: Pages of a sample by ``page_fault`` from which on it pays to be on the target's CPU: the Python of an interval, some
#: tenths of a millisecond, runs there as well.
_WORTH_A_MOVE: Final = 32


class Placement:
    """Of the thread that makes it, a kdamond, on the CPUs that it may use then; only that one may use it."""

    def __init__(self) -> None:
        self._cpus = frozenset(os.sched_getaffinity(0))
        self._mask = sum(1 << cpu for cpu in self._cpus)
        self._seen = self._at = 0
        self._resting = True
        self._priority = _RealTime()

    def follow(self, mask: int) -> bool:
        """Move to the target's CPU.

        :param mask: the CPUs on which threads of the targets run or are about to, a bit each; 0: all sleep.
        :returns: whether this thread is where it should be for ``mask``; False: to see it once more would decide.
        """
        if mask in (0, self._at):
            return True
        # A thread that the scheduler moves about is not worth to be followed: what is seen twice counts.
        if mask != self._seen:
            self._seen = mask
            return False
        if mask & (mask - 1) == 0 and mask & self._mask:
            self._at = mask if self._bind(mask) else 0
        elif self._at:
            self._bind(self._mask)
            self._at = 0
        return True

    @property
    def followed(self) -> bool:
        """Whether this thread is on the one CPU of its targets."""
        return self._at != 0

    def begin(self) -> None:
        """Samples follow, and merging: be where they are cheap, with real-time priority if that is allowed."""
        if self._resting and self._at:
            self._bind(self._at)
        self._resting = False
        self._priority.take()

    def rest(self) -> None:
        """Other work follows, here or in children: run anywhere, as before, but begin where the target does not run.

        Beside it, without real-time priority, this thread would wait for some milliseconds.
        """
        if self._resting:
            return
        self._resting = True
        if self._at:
            if others := self._mask & ~self._at:
                self._bind(others)
            self._bind(self._mask)
        self._priority.give_back()

    def _bind(self, mask: int) -> bool:
        """Let this thread run on the CPUs of ``mask`` only; False: a cpuset took them away."""
        try:
            os.sched_setaffinity(0, [cpu for cpu in self._cpus if mask >> cpu & 1])
        except OSError as error:
            log.debug("the kdamond does not move to the CPUs %x: %s", mask, error.strerror)
            return False
        return True


class FaultPlacement:
    """Implements :class:`kdamon.mm.Placement` for samples by ``page_fault``."""

    def __init__(self) -> None:
        self._placement = Placement()
        # To load the program takes some milliseconds.
        running_cpus()

    def begin(self, spaces: Sequence[AddressSpace], pages: int) -> None:
        """See :meth:`kdamon.mm.Placement.begin`."""
        mask = 0
        for space in spaces:
            if not isinstance(space, PageFaultSpace) or not space.taken:
                # It is asked for its userfaultfd first, in a child.
                self.rest()
                return
            mask |= space.cpus() if pages >= _WORTH_A_MOVE else ANY_CPU
        self._placement.begin()
        self._placement.follow(mask)

    def rest(self) -> None:
        """See :meth:`kdamon.mm.Placement.rest`."""
        self._placement.rest()


def take_real_time() -> None:
    """Give the calling thread the lowest real-time priority; its children do not get it.

    :raises OSError: EPERM without CAP_SYS_NICE, or in a control group without real-time bandwidth.
    """
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def _is_usual() -> bool:
    try:
        return os.sched_getscheduler(0) == os.SCHED_OTHER
    except OSError:
        # A C library without these calls (musl).
        return False


class _RealTime:
    """Real-time priority of this thread, now and then."""

    def __init__(self) -> None:
        self._taken = False
        #: The kernel refused it, or another scheduling policy was chosen for this thread: that stays.
        self._refused = not _is_usual()
        #: Since when the time is measured that was spent with it, and that time; nanoseconds.
        self._since = time.monotonic_ns()
        self._used = 0
        #: The thread's time when it was taken, or at the end of the last window.
        self._began = 0
        self._not_before = 0

    def take(self) -> None:
        now = time.monotonic_ns()
        if now - self._since > _WINDOW:
            self._check(now)
        if self._taken or self._refused or now < self._not_before:
            return
        try:
            take_real_time()
        except OSError as error:
            self._refused = True
            log.info("the kdamond has no real-time priority and may wake up late: %s", error.strerror)
            return
        self._taken = True
        self._began = time.thread_time_ns()

    def give_back(self) -> None:
        if self._taken:
            self._taken = False
            try:
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            except PermissionError:
                # Without CAP_SYS_NICE a resource limit allows the priority, but not to give up what children get.
                os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
            self._used += time.thread_time_ns() - self._began

    def _check(self, now: int) -> None:
        """Do without for a while if too much of a window was spent with it."""
        spent = time.thread_time_ns()
        if self._taken:
            self._used += spent - self._began
            self._began = spent
        if self._used > _SHARE * (now - self._since):
            self.give_back()
            self._not_before = now + _PENALTY
            log.info("sampling takes more than %d %% of a CPU: no real-time priority for a while", _SHARE * 100)
        self._since, self._used = now, 0
