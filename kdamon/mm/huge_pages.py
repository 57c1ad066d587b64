# SPDX-License-Identifier: GPL-2.0-only
"""Allowing and forbidding huge pages in another process: MADV_HUGEPAGE, MADV_NOHUGEPAGE (``mm/madvise.c``).

The kernel takes that advice from the process itself only, so the process is made to give it
(:mod:`kdamon.mm.inject`). What is allowed already is not advised again: a process is stopped for a change only.
"""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path
from typing import Final

import numpy as np

from kdamon.mm import U64Array, ranges
from kdamon.mm.inject import inject_madvise
from kdamon.mm.madvise import MADV_HUGEPAGE, MADV_NOHUGEPAGE
from kdamon.mm.process_files import ProcessFiles

__all__ = ["HugePages"]

#: The advice, and the flag of a mapping that shows it in /proc/PID/smaps.
_ADVICE: Final = {"hugepage": (MADV_HUGEPAGE, b"hg"), "nohugepage": (MADV_NOHUGEPAGE, b"nh")}
#: Mappings that stay as they are: huge TLB, page frames and devices without pages, sealed ones; and those that grow
#: downwards, the first thread's stack.
_LEFT_ALONE: Final = frozenset((b"ht", b"pf", b"io", b"mm", b"sl", b"gd"))
_MAPPING: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags:([a-z0-9 ]*)$", re.MULTILINE | re.DOTALL)
_KERNEL_HALF: Final = 1 << 63

#: Nanoseconds for which the flags are believed; the more it costs to read them, the longer.
_REMEMBERED: Final = 1_000_000_000
_COSTS: Final = 100
#: Ranges that are advised in one call, about a second's work.
_RANGES: Final = 1024
#: Nanoseconds for which a process that could not be stopped is left alone.
_PAUSE: Final = 10_000_000_000


class HugePages:
    """Allows or forbids huge pages in one address space.

    :param files: of the address space; stays the caller's.
    :param pidfd: the process; stays the caller's.
    """

    def __init__(self, files: ProcessFiles, pidfd: int) -> None:
        self._files = files
        self._pidfd = pidfd
        self._flags: list[tuple[int, int, frozenset[bytes]]] = []
        self._flags_until = 0
        self._refusal: OSError | None = None
        self._refused_until = 0

    def apply(self, action: str, wanted: U64Array) -> U64Array:
        """Advise what is mapped in ``wanted`` and has not that flag.

        :param action: ``hugepage`` or ``nohugepage``.
        :returns: bytes of each range that got the flag, shape (n,).
        :raises OSError: as for :func:`kdamon.mm.inject.inject_madvise`; ENOMEM the process has too many mappings.
        """
        advice, flag = _ADVICE[action]
        missing = ranges.intersect(wanted, self._mappings(flag, wanted_flag=False))
        # One call for neighbours, whatever lies between their mappings.
        missing = ranges.union(missing, ranges.NO_RANGES)
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
                # All that was there is gone.
                return np.zeros(len(wanted), dtype=np.uint64)
            # It would be refused for the next region, too.
            self._refusal, self._refused_until = error, time.monotonic_ns() + _PAUSE
        self._flags_until = 0
        applied = ranges.overlaps(wanted, ranges.intersect(missing, self._mappings(flag, wanted_flag=True)))
        if self._refusal is not None and not applied.any():
            raise self._refusal
        return applied

    def _mappings(self, flag: bytes, *, wanted_flag: bool) -> U64Array:
        """The mappings that may be advised and have, or have not, ``flag``."""
        begin = time.monotonic_ns()
        if begin >= self._flags_until:
            self._flags = self._read()
            now = time.monotonic_ns()
            self._flags_until = now + max(_REMEMBERED, _COSTS * (now - begin))
        found = [
            (start, end)
            for start, end, flags in self._flags
            if (flag in flags) == wanted_flag and not flags & _LEFT_ALONE and start < _KERNEL_HALF
        ]
        return np.array(found, dtype=np.uint64).reshape(-1, 2)

    def _read(self) -> list[tuple[int, int, frozenset[bytes]]]:
        """Start, end and flags of each mapping; nothing when the address space is gone."""
        # The link leads to /proc/PID/pagemap; whether that is still the same process is asked afterwards.
        directory = os.path.dirname(os.readlink(f"/proc/self/fd/{self._files.pagemap}"))
        try:
            text = Path(directory, "smaps").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return []
        if not self._files.alive():
            return []
        found = (match.groups() for match in _MAPPING.finditer(text))
        return [(int(start, 16), int(end, 16), frozenset(flags.split())) for start, end, flags in found]

    def _room(self) -> int:
        """How many ranges may be advised now; each may make two mappings more, and at its limit a program fails.

        Kernel: goes on to the limit. Here: to a half of it, because the program needs mappings, too; and not for more
        than about a second, because nothing is sampled meanwhile.
        """
        limit = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
        room = (limit // 2 - len(self._flags)) // 2
        if room <= 0:
            raise OSError(
                errno.ENOMEM,
                f"process {self._pid()} has {len(self._flags)} mappings, and more could make it fail; use collapse",
            )
        return min(room, _RANGES)

    def _pid(self) -> int:
        for line in Path(f"/proc/self/fdinfo/{self._pidfd}").read_text(encoding="ascii").splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
        raise ProcessLookupError(errno.ESRCH, "the process ended; nothing is left to advise")
