# SPDX-License-Identifier: GPL-2.0-only
"""The write protection of one address space, by a userfaultfd of its process (``fs/userfaultfd.c``).

A part of :mod:`kdamon.mm.page_fault`: which mappings are registered, which pages are armed for whom, and when the
process is let go because it needs the only place for a userfaultfd itself.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from kdamon.mm import U64Array, maps
from kdamon.mm.fault_sample import State, States
from kdamon.mm.pagemap import BLOCK
from kdamon.mm.ranges import NO_RANGES, blocks, inside, intersect, subtract
from kdamon.mm.uffd import FILE, HUGE, PRESENT, SWAPPED, WPALLOWED, Pages, Userfaultfd, has_userfaultfd

__all__ = ["Protection", "has_its_own"]

log = logging.getLogger("kdamon")

#: Nanoseconds after which mappings that turned out not to be registered are looked for again.
_REGISTER_AGAIN: Final = 1_000_000_000
#: A userfaultfd of the process's own is looked for after so many times as long as the last look took.
_LOOK_RARELY: Final = 100
#: Seconds after which a process has given away, and closed, one that it was only asked for.
_GIVEN_AWAY: Final = 0.02

_Mask = npt.NDArray[np.bool_]


def _written_files_and_memory(contents: bytes) -> bytes:
    """Those lines of /proc/PID/maps that are no files, or files that may be written."""
    kept = []
    for line in _lines(contents):
        _, permissions, _, _, inode, *_ = line.split(None, 5)
        if b"w" in permissions or inode == b"0":
            kept.append(line)
    return b"".join(kept)


def _private(contents: bytes) -> bytes:
    """Those lines of /proc/PID/maps whose memory gets a copy of a page of a file when it is written."""
    return b"".join(line for line in _lines(contents) if line.split(None, 2)[1].endswith(b"p"))


def _lines(contents: bytes) -> list[bytes]:
    """The lines with their ends. Not splitlines(), for which a carriage return in a file's name is one."""
    return io.BytesIO(contents).readlines()


def has_its_own(pid: int) -> OSError:
    """Why process ``pid`` cannot be protected by us."""
    return OSError(
        errno.EBUSY,
        f"process {pid} uses a userfaultfd of its own, and memory has room for one only; monitor it by page_table "
        "instead",
    )


class Protection:
    """The protection of one address space, shared by all who monitor it: a mapping has room for one userfaultfd.

    :param pid: the process.
    :param userfaultfd: becomes this object's.
    :param contents: of /proc/PID/maps, whose last mapping tells this address space from others.
    """

    def __init__(self, pid: int, userfaultfd: Userfaultfd, contents: bytes) -> None:
        self._pid = pid
        self._userfaultfd = userfaultfd
        self._vdso = maps.parse(contents)[-1:, 1]
        self._lock = threading.Lock()
        self._ranges = self._spared = self._private = NO_RANGES
        self._armed: dict[object, U64Array] = {}
        self._register_at = 0
        self._told_huge = False
        self._let_go = False
        self._look_at = 0
        self.users = 0

    def fits(self, contents: bytes) -> bool:
        """Tell whether /proc/PID/maps is of this address space and it is alive; if so its mappings are registered."""
        if not np.array_equal(maps.parse(contents)[-1:, 1], self._vdso):
            return False
        try:
            self.register(contents)
        except ProcessLookupError:
            return False
        return True

    def register(self, contents: bytes) -> None:
        """Let pages in mappings be armed, as far as that is possible; OSError ESRCH the address space ended."""
        with self._lock:
            self._register(contents)

    def check(self) -> None:
        """Refuse a process that needs the only place for a userfaultfd, once :meth:`fits` was asked; OSError EBUSY."""
        with self._lock:
            if self._let_go:
                raise has_its_own(self._pid)

    def check_alone(self) -> None:
        """As :meth:`check`, and refuse one that is watched by another userfaultfd already."""
        self.check()
        with self._lock:
            if self._userfaultfd.contested:
                raise OSError(
                    errno.EBUSY,
                    f"the memory of process {self._pid} is watched by another userfaultfd, as of another kdamon; end "
                    "that one first, or monitor by page_table instead",
                )

    def arm(self, user: object, table: Pages, pages: U64Array, read: Callable[[], bytes]) -> States:
        """Arm ``pages`` for ``user``, as far as they can be.

        :param table: of this address space, the user's own.
        :param read: reads /proc/PID/maps, for when some mappings are not registered.
        :returns: their states, shape (n,).
        """
        with self._lock:
            states = np.zeros(len(pages), dtype=np.uint8)
            unarmed = np.flatnonzero(~self._arm(table, pages))
            states[unarmed], again = self._look(table, pages[unarmed])
            if again and time.monotonic_ns() >= self._register_at:
                self._register(read())
                unarmed = unarmed[~self._arm(table, pages[unarmed])]
                states[:] = State.ARMED
                states[unarmed], _ = self._look(table, pages[unarmed])
            self._armed[user] = pages[states == State.ARMED]
            return states

    def _arm(self, table: Pages, pages: U64Array) -> _Mask:
        # Where the process uses a userfaultfd of its own, arming would spoil what that tells it.
        ours = inside(self._ranges, pages)
        if ours.all():
            return table.arm(pages)
        armed = np.zeros(len(pages), dtype=np.bool_)
        armed[ours] = table.arm(pages[ours])
        return armed

    def _look(self, table: Pages, pages: U64Array) -> tuple[States, bool]:
        """The states of ``pages``, that were not armed; and whether registering could help."""
        categories = table.categories(pages)
        spared = inside(self._spared, pages)
        there = ((categories & np.uint64(PRESENT)) != 0) & ~spared
        huge = there & ((categories & np.uint64(HUGE)) != 0)
        copied = huge & ~self._unknown_huge(pages, categories)
        unknown_huge = huge & ~copied
        if unknown_huge.any() and not self._told_huge:
            self._told_huge = True
            log.warning(
                "process %d: huge pages are neither sampled nor paged out: page_fault would split them; use page_table "
                "for those",
                self._pid,
            )
        ready = inside(self._ranges, pages) & ((categories & np.uint64(WPALLOWED)) != 0)
        states = np.full(len(pages), State.BARE, dtype=np.uint8)
        states[ready] = State.EMPTY
        states[ready & ((categories & np.uint64(SWAPPED)) != 0)] = State.SWAPPED
        # One that can be armed and was not came between the two looks.
        states[there] = State.UNKNOWN
        states[copied & ready] = State.COPIED
        states[spared] = State.SPARED
        return states, bool((there & ~unknown_huge & ~ready).any())

    def _unknown_huge(self, pages: U64Array, categories: U64Array) -> _Mask:
        """Which of ``pages`` are of huge pages that can be written without a fault."""
        copied = ((categories & np.uint64(FILE)) != 0) & inside(self._private, pages)
        unknown: _Mask = ((categories & np.uint64(HUGE)) != 0) & ~copied & ~inside(self._spared, pages)
        return unknown

    def known(self, table: Pages, ranges: U64Array, vmas: U64Array) -> U64Array:
        """What of ``ranges`` can be sampled: all but such huge pages, nothing of a process that was let go.

        :param table: of this address space, the caller's own.
        :param vmas: its mappings.
        """
        with self._lock:
            if self._let_go:
                return NO_RANGES
            starts = blocks(intersect(ranges, vmas), BLOCK)[:, 0]
            huge = starts[self._unknown_huge(starts, table.huge(starts))]
            return subtract(ranges, np.stack((huge, huge + np.uint64(BLOCK)), axis=1))

    def _register(self, contents: bytes) -> None:
        self._register_at = time.monotonic_ns() + _REGISTER_AGAIN
        if self._let_go or self._wanted_by_process():
            return
        wanted = maps.parse(_written_files_and_memory(contents))
        self._ranges = wanted[self._userfaultfd.register(wanted)]
        self._spared = subtract(maps.parse(contents), wanted)
        self._private = maps.parse(_private(contents))

    def _wanted_by_process(self) -> bool:
        """Let the process go if it made a userfaultfd of its own."""
        began = time.monotonic_ns()
        if self._pid == os.getpid() or began < self._look_at:
            return False
        found = has_userfaultfd(self._pid)
        if found:
            # It may be just giving one to another kdamon.
            time.sleep(_GIVEN_AWAY)
            found = has_userfaultfd(self._pid)
        now = time.monotonic_ns()
        self._look_at = now + _LOOK_RARELY * (now - began)
        if found:
            log.warning(
                "process %d: its memory is sampled no more: it uses a userfaultfd of its own; use page_table", self._pid
            )
            self._let_go = True
            self._close()
        return found

    def disarm(self, user: object, table: Pages) -> None:
        """End the sample of ``user``: what it armed is armed no more, but for pages that others armed, too."""
        with self._lock:
            pages = self._armed.pop(user, np.empty(0, dtype=np.uint64))
            if self._let_go:
                return
            if len(pages) and self._armed:
                pages = pages[~np.isin(pages, np.concatenate([*self._armed.values()]))]
            if len(pages):
                self._userfaultfd.disarm(pages[table.armed(pages)])

    def close(self) -> None:
        """Take all protection off."""
        with self._lock:
            if not self._let_go:
                self._close()

    def _close(self) -> None:
        self._userfaultfd.close(self._ranges)
        self._ranges = NO_RANGES
