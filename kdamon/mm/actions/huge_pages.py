# SPDX-License-Identifier: GPL-2.0-only
"""Allows and forbids huge pages in another process: MADV_HUGEPAGE, MADV_NOHUGEPAGE (``mm/madvise.c``).

The kernel takes that advice from the process itself only, so kdamon briefly stops one of its threads to make the call
(:mod:`kdamon.mm.inject`). Memory that has the flag already is not advised again: only a change stops the process.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Final

import numpy as np

from kdamon.arrays import U64Array
from kdamon.mm import ranges
from kdamon.mm.inject.requests import inject_madvise
from kdamon.mm.mman import MADV_HUGEPAGE, MADV_NOHUGEPAGE
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.proc.vma_flags import Mappings, VmaFlag, mappings_with_flags

__all__ = ["HugePages"]

#: The advice, and the flag of a mapping that shows it.
_ADVICE: Final = {
    "hugepage": (MADV_HUGEPAGE, VmaFlag.HUGEPAGE),
    "nohugepage": (MADV_NOHUGEPAGE, VmaFlag.NOHUGEPAGE),
}
#: Mappings that stay as they are: huge TLB, page frames and devices without pages, sealed ones; and those that grow
#: downwards, the first thread's stack.
_LEFT_ALONE: Final = (
    VmaFlag.HUGE_TLB | VmaFlag.PFN_MAP | VmaFlag.IO | VmaFlag.MIXED_MAP | VmaFlag.SEALED | VmaFlag.GROWS_DOWN
)

#: Nanoseconds for which the flags are believed; the more it costs to read them, the longer.
_REMEMBERED: Final = 1_000_000_000
_COSTS: Final = 100
#: Ranges that are advised in one call, about a second's work.
_RANGES: Final = 1024
#: Mappings that one range has.
_TOGETHER: Final = 64
#: Nanoseconds for which a process that could not be stopped is left alone, at first; each time twice as long, up to the
#: second number. Each attempt may begin a timeout of the process anew.
_PAUSE: Final = 10_000_000_000
_LONGEST_PAUSE: Final = 64 * _PAUSE


class HugePages:
    """Allows or forbids huge pages in one address space.

    :param files: of the address space; stays the caller's.
    :param pidfd: the process; stays the caller's.
    """

    def __init__(self, files: ProcessFiles, pidfd: int) -> None:
        self._files = files
        self._pidfd = pidfd
        self._known: Mappings = np.empty((0, 3), dtype=np.uint64)
        self._known_until = 0
        self._refusal: OSError | None = None
        self._refused_until = 0
        self._pause = _PAUSE

    def apply(self, action: str, wanted: U64Array) -> U64Array:
        """Advise the mappings in ``wanted`` that do not have the flag yet.

        :param action: ``hugepage`` or ``nohugepage``.
        :returns: bytes of each range that got the flag, shape (n,).
        :raises OSError: as for :func:`kdamon.mm.inject.requests.inject_madvise`; ENOMEM the process has too many
            mappings.
        """
        advice, flag = _ADVICE[action]
        missing = _joined(ranges.intersect(wanted, self._mappings(flag, wanted_flag=False)))
        if not len(missing):
            return np.zeros(len(wanted), dtype=np.uint64)
        if self._refusal is not None and time.monotonic_ns() < self._refused_until:
            raise self._refusal
        missing = missing[: self._room()]
        self._refusal = None
        try:
            inject_madvise(self._pid(), missing.tolist(), advice, self._files.alive)
        except OSError as error:
            if not self._files.alive():
                # All of the memory is gone.
                return np.zeros(len(wanted), dtype=np.uint64)
            # It would be refused for the next region, too.
            self._refusal, self._refused_until = error, time.monotonic_ns() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        else:
            self._pause = _PAUSE
        self._known_until = 0
        applied = ranges.overlaps(wanted, ranges.intersect(missing, self._mappings(flag, wanted_flag=True)))
        if self._refusal is not None and not applied.any():
            raise self._refusal
        return applied

    def _mappings(self, flag: int, *, wanted_flag: bool) -> U64Array:
        """The mappings that may be advised and have, or have not, ``flag``."""
        begin = time.monotonic_ns()
        if begin >= self._known_until:
            self._known = mappings_with_flags(self._files, self._pidfd)
            now = time.monotonic_ns()
            self._known_until = now + max(_REMEMBERED, _COSTS * (now - begin))
        flags = self._known[:, 2]
        chosen = ((flags & np.uint64(flag)) != 0) == wanted_flag
        return self._known[chosen & ((flags & np.uint64(_LEFT_ALONE)) == 0), :2]

    def _room(self) -> int:
        """How many ranges may be advised now; each may make two mappings more, and at its limit a program fails.

        Kernel: goes on to the limit. Here: to a half of it, because the program needs mappings, too; and not for more
        than about a second, because nothing is sampled meanwhile. (docs/deviations.md#advice-by-the-process-itself)
        """
        limit = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
        room = (limit // 2 - len(self._known)) // 2
        if room <= 0:
            raise OSError(
                errno.ENOMEM,
                f"process {self._pid()} has {len(self._known)} mappings, and more could make it fail; use collapse",
            )
        return min(room, _RANGES)

    def _pid(self) -> int:
        for line in Path(f"/proc/self/fdinfo/{self._pidfd}").read_text(encoding="ascii").splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
        raise ProcessLookupError(errno.ESRCH, "the process ended; nothing is left to advise")


def _joined(mappings: U64Array) -> U64Array:
    """``mappings`` with neighbours joined, so many in a range as one call may change: it holds mmap_lock meanwhile."""
    at = np.arange(len(mappings))
    apart = np.append(True, mappings[1:, 0] != mappings[:-1, 1])[: len(mappings)]
    within = at - np.maximum.accumulate(np.where(apart, at, 0))
    first = np.flatnonzero(within % _TOGETHER == 0)
    last = np.append(first[1:], len(mappings)) - 1
    return np.stack((mappings[first, 0], mappings[last[: len(first)], 1]), axis=1)
