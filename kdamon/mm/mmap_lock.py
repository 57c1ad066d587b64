# SPDX-License-Identifier: GPL-2.0-only
"""Keeps system calls that hold a target's mmap_lock short, with pauses between them (``linux/mmap_lock.h``).

During such a call the target's own mmap(), munmap(), brk() and mprotect() wait. The kernel releases the lock now and
then during a long call, but takes it back before the waiting thread woke up, for up to 4 ms
(``kernel/locking/rwsem.c: RWSEM_WAIT_TIMEOUT``), and so do calls that follow each other at once. So kdamon divides its
work on a target's memory into short calls, and pauses between them without the lock:

* every system call that takes a target's mmap_lock runs within :data:`held`, which pauses only if a thread waits for
  the lock or did so in the last second, where that can be seen (:meth:`kdamon.mm.bpf.walker.Walker.waited_for`);
* the work of such a call is bounded: one page table of a pagemap, or as much as :class:`CallSize` allows.

Both rely on measured time, because the same call costs ten times as much on one machine as on another. Calls without
mmap_lock need neither: the page table walk (:mod:`kdamon.mm.bpf.walker`), /proc/kpageflags, the idle page bitmap.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from kdamon.mm.bpf.walker import made_walker

__all__ = ["LONGEST", "CallSize", "held", "stays_locked"]

#: Nanoseconds for which one thread's calls may hold mmap_locks before it pauses.
_TOGETHER: Final = 100_000
#: Nanoseconds of a pause: a thread that waits for the lock wakes up meanwhile.
_PAUSE: Final = 100_000
#: Nanoseconds for which a thread is expected that waits for the lock, once one did: after mmap() comes munmap().
_SOON: Final = 1_000_000_000
#: Nanoseconds that one call should not exceed, well below the 0.3 ms that docs/access-sources.md promises.
LONGEST: Final = 200_000


class _Held(threading.local):
    """The calls of the present thread: ``with held:`` or ``with held.of(pagemap):`` around each one.

    Entering pauses if the calls since the last pause took too long together and a thread waits for the lock, or lately
    did. The time that the caller spent otherwise counts as a pause.

    :ivar elapsed: nanoseconds of the last call.
    """

    elapsed = 0
    _together = 0
    _begin = 0
    _end = 0
    _waited_at = -_SOON
    _pagemap = -1

    def of(self, pagemap: int) -> _Held:
        """The same for a call on the address space of an open /proc/PID/pagemap: it may need no pause."""
        self._pagemap = pagemap
        return self

    def __enter__(self) -> None:
        now = time.monotonic_ns()
        idle = now - self._end
        if idle < _PAUSE and self._together >= _TOGETHER:
            if _waited_for(self._pagemap):
                self._waited_at = now
            idle = time.monotonic_ns() - self._end
            if now < self._waited_at + _SOON and idle < _PAUSE:
                time.sleep((_PAUSE - idle) / 1e9)
            idle = _PAUSE
        if idle >= _PAUSE:
            self._together = 0
        self._begin = time.monotonic_ns()

    def __exit__(self, *_: object) -> None:
        self._end = time.monotonic_ns()
        self._pagemap = -1
        self.elapsed = self._end - self._begin
        self._together += self.elapsed


def _waited_for(pagemap: int) -> bool:
    """Whether a thread waits for the lock; True where that is not known."""
    walker = made_walker()
    return pagemap < 0 or walker is None or walker.waited_for(pagemap)


def stays_locked(pagemap: int, seconds: float) -> bool:
    """Return whether threads wait for an mmap_lock all the time: then any caller that takes it may wait for ever.

    The check does not take the lock. A process may take it right afterwards; False where it cannot be checked.

    :param pagemap: open /proc/PID/pagemap of the address space.
    :param seconds: for which the lock is observed.
    """
    walker = made_walker()
    if walker is None:
        return False
    end = time.monotonic() + seconds
    while walker.waited_for(pagemap, unseen=False):
        if time.monotonic() >= end:
            return True
        time.sleep(seconds / 20)
    return False


#: Not reentrant; any thread may use it.
held: Final = _Held()


class CallSize:
    """The amount of work with which one call ends within :data:`LONGEST`; learned from the calls before.

    :param first: where it begins, in units of the caller's.
    :param least: never less, be the machine as busy as it may.
    :param most: never more.
    :ivar now: what the next call may do.
    """

    def __init__(self, first: int, least: int, most: int) -> None:
        self.now = first
        self._least = least
        self._most = most

    def called(self, did: int) -> None:
        """Learn from a call within :data:`held` that just ended.

        :param did: what it did, in the same units.
        """
        elapsed = held.elapsed
        if elapsed > LONGEST:
            # Do not shrink at once by all that the time suggests: the thread may have lost its CPU in the middle.
            self.now = max(self._least, self.now // 4, min(self.now, did * LONGEST // (2 * elapsed)))
        elif did >= self.now and elapsed < LONGEST // 4:
            self.now = min(self._most, 2 * self.now)
        elif did >= self.now and elapsed < LONGEST * 3 // 4:
            self.now = min(self._most, self.now + self.now // 16 + 1)
