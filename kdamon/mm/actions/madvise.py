# SPDX-License-Identifier: GPL-2.0-only
"""Advice about another process's memory: process_madvise(2) in batches (``mm/madvise.c``).

The kernel holds the process's mmap_lock during a batch (since Linux 6.15 during all of it), so batches are short, see
:mod:`kdamon.mm.mmap_lock`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
from collections.abc import Callable
from typing import Final

import numpy as np

from kdamon.arrays import Mask, U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.lib.syscalls import NR_PROCESS_MADVISE, checked, syscall
from kdamon.mm.apart.madvise import advise_apart
from kdamon.mm.mman import MADV_COLD, MADV_COLLAPSE, MADV_PAGEOUT, MADV_WILLNEED
from kdamon.mm.mmap_lock import CallSize, held

__all__ = ["Adviser", "drain_lru", "spare_page"]

#: UIO_MAXIOV is 1024, and the kernel cuts a batch off at 2 GiB - 4 KiB: 1023 ranges of 2 MiB are below both.
_BATCH: Final = 1023
#: The limit of a batch, in neighbouring page table entries that MADV_COLD changes: some 0.1 ms, and as much again
#: where other CPUs have to forget them.
_BUDGET: Final = 1152
_LEAST: Final = _BUDGET // 2
#: Advice that reads files.
_READING: Final = frozenset((MADV_WILLNEED, MADV_COLLAPSE))
#: The size of a struct iovec.
_IOVEC: Final = 16
#: The cost of a range besides its entries, and of an entry.
_RANGE: Final = 8
_ENTRY: Final = {
    MADV_PAGEOUT: 12,
    # It waits for all CPUs and copies all of the memory: each in a call of its own.
    MADV_COLLAPSE: _BUDGET,
}


class Adviser:
    """Gives advice to one process.

    :param pidfd: the process; stays the caller's to close.
    :param pagemap: its open /proc/PID/pagemap, see :data:`kdamon.mm.mmap_lock.held`; stays the caller's to close.
    """

    def __init__(self, pidfd: int, pagemap: int = -1) -> None:
        self._pidfd = pidfd
        self._pagemap = pagemap
        self._budgets: dict[int, CallSize] = {}
        self._ranges = np.empty((_BATCH, 2), dtype=np.uint64)
        self._pointer = ctypes.c_void_p(self._ranges.ctypes.data)
        self._refusal: OSError | None = None

    def _call(self, count: int, advice: int) -> int:
        """Advise the first ``count`` ranges: how many bytes were taken, or a negative errno."""
        if advice in _READING and count:
            return self._call_apart(self._ranges[:count].tobytes(), advice)
        return syscall(NR_PROCESS_MADVISE, self._pidfd, self._pointer, count, advice, 0)

    def _call_apart(self, ranges: bytes, advice: int) -> int:
        if self._refusal is not None:
            raise self._refusal
        try:
            return advise_apart(self._pidfd, ranges, advice)
        except OSError as error:
            # The next range would fail in the same way, and take as much time.
            self._refusal = error
            raise

    def check(self, advice: int = MADV_COLD) -> None:
        """Advise nothing, which still asks for the permissions.

        :raises OSError: EPERM without CAP_SYS_NICE or ptrace access, EINVAL or ENOSYS when the kernel does not know
            the call or the advice, ESRCH or EINVAL when the process has no memory.
        """
        checked(self._call(0, advice), "process_madvise()")

    def advise(
        self, starts: U64Array, sizes: U64Array, advice: int, entries: U64Array | None = None
    ) -> tuple[int, int]:
        """Advise range after range until one is refused.

        :param starts: page-aligned addresses, bytes, shape (n,).
        :param sizes: bytes, shape (n,): at most 2 MiB each, or all together less than 2 GiB.
        :param entries: page table entries of each, shape (n,); None: of pages of 4 KiB.
        :returns: how many ranges were taken, and the errno of the next one (0 when there is none).
        :raises OSError: EBUSY the memory is of a file system that does not answer.
        """
        total = len(starts)
        done = 0
        budget = self._budgets.setdefault(advice, CallSize(_BUDGET, _LEAST, _BUDGET))
        entries = sizes // np.uint64(PAGE_SIZE) if entries is None else entries
        spent = np.append(0, np.cumsum(entries.astype(np.int64) * _ENTRY.get(advice, 1) + _RANGE))
        while done < total:
            fitting = int(np.searchsorted(spent, spent[done] + budget.now, side="right")) - 1 - done
            count = min(max(fitting, 1), _BATCH)
            self._ranges[:count, 0] = starts[done : done + count]
            self._ranges[:count, 1] = sizes[done : done + count]
            with held.of(self._pagemap):
                advised = self._call(count, advice)
            budget.called(int(spent[done + count] - spent[done]))
            if advised < 0:
                return done, -advised
            if advised == int(self._ranges[:count, 1].sum()):
                done += count
            else:
                # It stopped before the first range that it refused; the next round returns the reason.
                done += int(np.searchsorted(np.cumsum(self._ranges[:count, 1]), advised, side="right"))
        return done, 0

    def advise_pages(self, address: int, count: int, advice: int) -> bool:
        """Advise pages whose ranges are in memory already; returns whether all were taken.

        :param address: of ``count`` ranges of PAGE_SIZE each, as ``struct iovec``; they must stay as they are.
        """
        budget = self._budgets.setdefault(advice, CallSize(_BUDGET, _LEAST, _BUDGET))
        done = 0
        while done < count:
            part = min(count - done, budget.now // (_RANGE + 1))
            with held.of(self._pagemap):
                place = ctypes.c_void_p(address + _IOVEC * done)
                advised = syscall(NR_PROCESS_MADVISE, self._pidfd, place, part, advice, 0)
            if advised != part * PAGE_SIZE:
                return False
            budget.called(part * (_RANGE + 1))
            done += part
        return True

    def advise_each(
        self,
        starts: U64Array,
        sizes: U64Array,
        advice: int,
        refused: Callable[[int], int],
        entries: U64Array | None = None,
    ) -> Mask:
        """Advise every range that accepts it; ranges that refuse do not stop the others.

        :param starts: ascending, otherwise as for :meth:`advise`.
        :param entries: as for :meth:`advise`.
        :param refused: is called with the address of a range for which the kernel refuses this advice (EINVAL), and
            returns the address up to which the following ranges need not be tried.
        :returns: which ranges were taken, shape (n,).
        """
        taken = np.ones(len(starts), dtype=np.bool_)
        at = 0
        while at < len(starts):
            rest = None if entries is None else entries[at:]
            done, error = self.advise(starts[at:], sizes[at:], advice, rest)
            at += done
            if not error:
                break
            if error == errno.EINVAL:
                following = max(at + 1, int(np.searchsorted(starts, np.uint64(refused(int(starts[at]))))))
            elif error in {errno.ESRCH, errno.EPERM}:
                following = len(starts)
            else:
                # It was unmapped meanwhile (ENOMEM), or nothing could be done about this one now.
                following = at + 1
            taken[at:following] = False
            at = following
        return taken


@functools.cache
def _spare() -> mmap.mmap:
    return mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@functools.cache
def spare_page() -> int:
    """The address of a page of ours that is not there, for :func:`drain_lru` in other ways."""
    return ctypes.addressof(ctypes.c_char.from_buffer(_spare()))


def drain_lru() -> None:
    """Make this CPU move the pages in its batches to their LRU lists.

    MADV_COLD does that first of all, also for a mapping of ours that has no pages.
    """
    _spare().madvise(MADV_COLD)
