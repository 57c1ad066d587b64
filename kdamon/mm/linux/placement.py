# SPDX-License-Identifier: GPL-2.0-only
"""Where and how a kdamond runs: on the CPU of its target, and in time.

To make pages old, the kernel flushes them from the TLBs of the CPUs that the target runs on
(``arch/x86/mm/tlb.c: flush_tlb_mm_range()``). To interrupt another CPU costs some microseconds a page, and both wait;
on the target's own CPU there is nobody to interrupt. So the kdamond moves there if the target runs on that one alone.

There it has to wake up beside a busy target: during its samples it has real-time priority where that is allowed. What
it does then is a matter of microseconds, and if it takes more than :data:`_SHARE` of a CPU it goes on without.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Final

__all__ = ["Placement", "usable_cpus"]

log = logging.getLogger("kdamon")

#: The part of a CPU that samples may take with real-time priority, and over how many nanoseconds.
_SHARE: Final = 0.2
_WINDOW: Final = 1_000_000_000
#: Nanoseconds without real-time priority after they took more.
_PENALTY: Final = 10_000_000_000

_ISOLATED: Final = ("/sys/devices/system/cpu/isolated", "/sys/devices/system/cpu/nohz_full")


def usable_cpus() -> frozenset[int]:
    """The CPUs that this thread may use, without isolated and nohz_full ones unless there are no others."""
    allowed = frozenset(os.sched_getaffinity(0))
    kept_free: set[int] = set()
    for path in _ISOLATED:
        try:
            kept_free |= _cpu_list(Path(path).read_text(encoding="ascii"))
        except OSError:
            continue
    return allowed - kept_free or allowed


def _cpu_list(text: str) -> set[int]:
    """The numbers in ``text``, such as ``0-3,8``; ``(null)`` is none."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found |= set(range(int(first), int(last or first) + 1))
    return found


class Placement:
    """Of the thread that makes it, a kdamond; only that one may use it.

    :param cpus: those that it may run on.
    """

    def __init__(self, cpus: frozenset[int]) -> None:
        self._cpus = cpus
        self._home = frozenset(os.sched_getaffinity(0))
        self._mask = sum(1 << cpu for cpu in cpus)
        self._seen = 0
        self._at = 0
        self._real_time = self._refused = False
        self._window = 0
        self._used = 0
        self._penalty_until = 0

    def follow(self, mask: int) -> None:
        """Move to the target's CPU.

        :param mask: the CPUs that the targets run on, a bit each; 0: on none, or on the one of this thread.
        """
        if mask == self._at or not mask:
            return
        # Only what is seen twice: a thread that the scheduler moves about is not worth to be followed.
        if mask != self._seen:
            self._seen = mask
            return
        single = mask & (mask - 1) == 0 and mask & self._mask
        if single:
            self._move(frozenset((mask.bit_length() - 1,)), mask)
        elif self._at:
            self._move(self._cpus, 0)

    def _move(self, cpus: frozenset[int], at: int) -> None:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            # A cpuset took the CPU away.
            log.debug("kdamond does not move to CPUs %s: %s", sorted(cpus), error.strerror)
            self._seen = 0
            return
        self._at = at

    def begin(self) -> None:
        """Take real-time priority, if it is allowed and was not abused."""
        if self._refused or self._real_time:
            return
        now, used = time.monotonic_ns(), time.thread_time_ns()
        if now < self._penalty_until:
            return
        if not self._window or now - self._window > _WINDOW:
            self._window, self._used = now, used
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        except OSError as error:
            self._refused = True
            log.info("kdamond has no real-time priority, and may wake up late: %s", error.strerror)
            return
        self._real_time = True

    def end(self) -> None:
        """Give real-time priority back."""
        if not self._real_time:
            return
        self._real_time = False
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

    def check(self) -> None:
        ...

    def close(self) -> None:
        """Run as before."""
        self.end()
        if self._at:
            self._move(self._home, 0)
