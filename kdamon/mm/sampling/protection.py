# SPDX-License-Identifier: GPL-2.0-only
"""The protection of one address space, by a userfaultfd of its process (``fs/userfaultfd.c``).

A part of :mod:`kdamon.mm.sampling.page_fault`: it registers mappings, arms pages for its users, and releases the
process if that needs the only place for a userfaultfd itself. Where the kernel lets reads fault, mappings for which it
does are in :mod:`kdamon.mm.sampling.access_protection`; in all others writes fault.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Final

import attrs
import numpy as np
from attrs import frozen

from kdamon.arrays import Indexes, Mask, U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.mm import Observed
from kdamon.mm.proc.maps import Mappings
from kdamon.mm.proc.pagemap import Pagemap
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.ranges import NO_RANGES, among, holding, in_order, inside, overlaps, subtract, total
from kdamon.mm.sampling.access_protection import AccessProtection, Armed, keys
from kdamon.mm.sampling.fault_sample import State, States
from kdamon.mm.sampling.shared_memory import shared_memory
from kdamon.mm.sampling.uffd import (
    FILE,
    HUGE,
    PRESENT,
    SWAPPED,
    WPALLOWED,
    Pages,
    Userfaultfd,
    has_userfaultfd,
    reads_fault,
    userfaultfds,
)
from kdamon.mm.sampling.unregistration import Unregistration

__all__ = ["Arming", "Protection", "has_its_own"]

log = logging.getLogger("kdamon")

#: The pause between two searches for a userfaultfd of the process's own, as a multiple of the last search's time.
_LOOK_RARELY: Final = 100
#: File descriptors of a process that are checked at once.
_DESCRIPTORS: Final = 1024
_NONE_WHOLE: Final = np.empty((0, 3), dtype=np.uint64)

#: Seconds after which a process has passed on and closed a userfaultfd that it only made for another process.
_GIVEN_AWAY: Final = 0.02
#: Nanoseconds after which two users that want to observe different accesses are no transition any more.
_LASTS: Final = 1_000_000_000


def has_its_own(pid: int) -> OSError:
    """The error that process ``pid`` uses a userfaultfd of its own."""
    return OSError(
        errno.EBUSY,
        f"process {pid} uses a userfaultfd of its own, and memory has room for one only; monitor it by page_table "
        "instead",
    )


@frozen
class Arming:
    """What became of pages that were to be armed.

    :ivar states: theirs, shape (n,).
    :ivar missing: some are in mappings that are not registered: to follow all mappings anew would help.
    :ivar whole: start and end of huge pages that are armed, and a page in each, for each such page, shape (k, 3).
    """

    states: States
    missing: bool
    whole: U64Array


class Protection:
    """The protection of one address space, shared by all its monitors: a mapping has room for one userfaultfd.

    :param pid: the process.
    :param userfaultfd: becomes this object's.
    :param files: of the address space; stays the caller's.
    """

    def __init__(self, pid: int, userfaultfd: Userfaultfd, files: ProcessFiles) -> None:
        self._pid = pid
        self._userfaultfd = userfaultfd
        self._identity = files.identity
        try:
            self._pagemap = os.dup(files.pagemap)
        except OSError:
            userfaultfd.close()
            raise
        self._can_track_reads = userfaultfd.tracks_reads and reads_fault()
        # Whether reads fault now, and since when a user misses writes by that.
        self._reads = False
        self._mixed_since = 0
        # Its users, and whether each of them wants to observe reads.
        self._users: dict[object, bool] = {}
        self._table = Pages(self._pagemap, reads=self._can_track_reads)
        self._access = AccessProtection(userfaultfd, self._table)
        self._lock = threading.Lock()
        self._mappings: Mappings | None = None
        # Mappings where writes fault, mappings of either kind that may be others by now, mappings that are to be
        # registered, those that are not because they are not writable, those with memory of their own.
        self._ranges = self._unsure = self._pending = self._spared = self._private = NO_RANGES
        # Those of hugetlbfs.
        self._hugetlb = NO_RANGES
        # Of those that are not writable: where reads cannot fault either.
        self._refused = NO_RANGES
        self._armed: dict[object, tuple[U64Array, U64Array]] = {}
        # What was armed for a sample that is under way, and is not any more.
        self._given_up: dict[object, U64Array] = {}
        self._logged_huge = False
        self._let_go = False
        self._changed = True
        #: The accesses to the process's memory that are observed, of the mappings that were registered last.
        self.observed = Observed(0, 0, 0)
        self._search: Iterator[bool] | None = None
        self._searched = 0
        self._look_at = 0

    @property
    def reads(self) -> bool:
        """Whether reads fault, too, where the mapping allows that."""
        return self._reads

    def join(self, user: object, *, reads: bool) -> None:
        """Let ``user`` arm pages, until it leaves.

        Reads fault if any user wants that and the kernel can do it. A read that comes first hides the write after it,
        so users that want writes alone miss such writes meanwhile; that is logged.

        :param reads: it wants to observe reads, too.
        """
        with self._lock:
            self._users[user] = reads
            self._choose_mode()

    def leave(self, user: object) -> bool:
        """Undo :meth:`join`; returns whether there are other users."""
        with self._lock:
            self._users.pop(user, None)
            if self._users:
                self._choose_mode()
            return len(self._users) > 0

    def _choose_mode(self) -> None:
        reads = self._can_track_reads and any(self._users.values())
        self._mixed_since = time.monotonic_ns() if reads and not all(self._users.values()) else 0
        if reads != self._reads:
            self._reads = reads
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Let all mappings be registered in the other mode; nothing is known of what is armed now."""
        for user, (pages, ranges) in self._armed.items():
            lost = np.concatenate((np.stack((pages, pages + np.uint64(PAGE_SIZE)), axis=1), ranges))
            self._given_up[user] = np.concatenate((self._given_up.get(user, NO_RANGES), lost))
            self._armed[user] = pages[:0], NO_RANGES
        self._logged_huge = False
        if self._mappings is not None and not self._let_go:
            self._unregister_all()
            self._follow(self._mappings)

    def _say_if_mixed(self, user: object) -> None:
        """Log once that ``user`` misses writes, if that lasts: for a moment it also does while a user is replaced."""
        if self._mixed_since and not self._users.get(user, True) and time.monotonic_ns() - self._mixed_since >= _LASTS:
            self._mixed_since = 0
            log.warning(
                "process %d: writes that come right after a read of the same page are not counted as long as another "
                "monitor of this process counts reads",
                self._pid,
            )

    @property
    def registered(self) -> U64Array:
        """The mappings where writes alone fault, in address order, shape (n, 2)."""
        with self._lock:
            return self._ranges

    @property
    def registered_reads(self) -> tuple[U64Array, Mask]:
        """The mappings where reads fault, too, and which of them have huge pages that can be armed as a whole."""
        with self._lock:
            ranges = self._access.ranges
            return ranges, self._access.whole(ranges[:, 0])

    def protect(self, ranges: U64Array) -> Mask:
        """Arm all pages in ``ranges``, of mappings where reads fault, until :meth:`close`.

        :param ranges: see :meth:`kdamon.mm.sampling.uffd.Userfaultfd.protect`.
        :returns: which are armed now, shape (n,).
        """
        with self._lock:
            if self._let_go:
                return np.zeros(len(ranges), dtype=np.bool_)
            return self._userfaultfd.protect(ranges) == 0

    def fits(self, files: ProcessFiles) -> bool:
        """Return whether ``files`` are of this address space and it is alive."""
        with self._lock:
            return files.identity == self._identity and (self._let_go or self._userfaultfd.alive())

    def follow(self, mappings: Mappings) -> None:
        """Let pages in ``mappings``, all of the address space as they were lately, be armed once they are registered.

        Those that were registered before are, the others with :meth:`register`.
        """
        with self._lock:
            self._begin_to_look()
            if not self._let_go:
                self._follow(mappings)

    def _follow(self, mappings: Mappings) -> None:
        kept = mappings.writable | ~mappings.files
        tried = kept | self._reads
        wanted = mappings.ranges[tried]
        self._ranges = wanted[among(self._ranges, wanted)]
        self._access.keep(among(wanted, self._access.ranges))
        refused = among(self._refused, wanted) & ~kept[tried]
        self._refused = wanted[refused]
        before = among(self._ranges, wanted) | among(self._access.ranges, wanted)
        self._unsure = wanted[before]
        self._pending = wanted[~before & ~refused]
        self._spared = mappings.ranges[~kept]
        self._private = mappings.ranges[~mappings.shared]
        self._hugetlb = wanted[among(self._hugetlb, wanted)]
        self._mappings = mappings
        self._changed = True

    def look_for_another(self) -> None:
        """Release the process if it made a userfaultfd of its own; for updates that find the mappings unchanged."""
        with self._lock:
            self._begin_to_look()

    def _begin_to_look(self) -> None:
        if self._let_go:
            return
        if self._search is None and self._pid != os.getpid() and time.monotonic_ns() >= self._look_at:
            self._search, self._searched = userfaultfds(self._pid), 0
        self._look_for_another(_DESCRIPTORS)

    def register(self, count: int) -> bool:
        """Register at most ``count`` mappings; returns whether there are more.

        As many file descriptors are checked, if the process has so many that :meth:`follow` could not see all.

        :raises OSError: ESRCH the address space ended.
        """
        with self._lock:
            self._look_for_another(count)
            if not (self._changed or len(self._pending) or len(self._unsure)):
                return False
            part, self._pending = self._pending[:count], self._pending[count:]
            unsure, self._unsure = self._unsure[: count - len(part)], self._unsure[count - len(part) :]
            if len(unsure):
                # Another mapping may have taken the same place.
                access = among(self._access.ranges, unsure)
                lost = unsure[~access]
                lost = lost[~self._table.registered(lost[:, 0])]
                if len(lost):
                    self._ranges = self._ranges[~among(lost, self._ranges)]
                # Nothing but another registration shows it there; those that are registered it leaves as they are.
                self._access.keep(~among(unsure[access], self._access.ranges))
                part = np.concatenate((part, lost, unsure[access]))
            if len(part):
                self._register(part)
            more = len(self._pending) + len(self._unsure) > 0
            if not more and self._changed:
                self._changed = False
                self.observed = self._observe()
            return more

    def _register(self, part: U64Array) -> None:
        assert self._mappings is not None
        if self._reads:
            rows = np.searchsorted(self._mappings.ranges[:, 0], part[:, 0])
            files, writable = self._mappings.files[rows], self._mappings.writable[rows]
            found, hugetlb = self._access.register(part, files)
            self._hugetlb = in_order(self._hugetlb, part[hugetlb])
            self._refused = in_order(self._refused, part[~found & files & ~writable])
            # Anonymous memory without access gets it later, as by mprotect(); its mode cannot be changed any more.
            part = part[~found & files & writable]
        found, hugetlb = self._userfaultfd.register(part)
        self._ranges = in_order(self._ranges, part[found])
        self._hugetlb = in_order(self._hugetlb, part[hugetlb])

    def _observe(self) -> Observed:
        assert self._mappings is not None
        mapped = self._mappings.ranges[self._mappings.accessible]
        accesses = int(overlaps(mapped, self._access.ranges).sum())
        spared = subtract(self._spared, self._access.ranges)
        writes = int((overlaps(mapped, self._ranges) + overlaps(mapped, spared)).sum())
        return Observed(accesses, writes, total(mapped) - accesses - writes)

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

    # Deviation: docs/deviations.md#write-protection-instead-of-access-protection
    def arm(self, user: object, pages: U64Array) -> Arming:
        """Arm ``pages`` for ``user``, as far as they can be."""
        with self._lock:
            self._say_if_mixed(user)
            states = np.zeros(len(pages), dtype=np.uint8)
            if not len(self._access.ranges):
                ours = self._arm(pages)
                missing = self._arm_writes(pages, states, (~ours).nonzero()[0])
                self._armed[user] = pages[ours], NO_RANGES
                return Arming(states, missing, _NONE_WHOLE)
            access = inside(self._access.ranges, pages)
            armed = self._arm_accesses(pages, states, access)
            rest = np.flatnonzero(~access)
            missing = self._arm_writes(pages, states, rest[~self._arm(pages[rest])])
            self._armed[user] = pages[states == State.ARMED], armed.ranges
            starts = pages[access][armed.whole]
            sizes = armed.sizes[armed.whole]
            first = starts & ~(sizes - np.uint64(1))
            whole = np.stack((first, first + sizes, starts), axis=1)
            return Arming(states, missing or len(armed.missing) > 0, whole)

    def _arm_writes(self, pages: U64Array, states: States, unarmed: Indexes) -> bool:
        """Set the states of ``pages`` that were not armed; returns whether some are there but not registered."""
        if not len(unarmed):
            return False
        states[unarmed], missing = self._look(pages[unarmed])
        if len(missing):
            # Others are at their place by now: those are to be registered.
            gone = np.searchsorted(self._ranges[:, 0], missing[inside(self._ranges, missing)], side="right") - 1
            self._ranges = np.delete(self._ranges, gone, axis=0)
        return len(missing) > 0

    def _arm_accesses(self, pages: U64Array, states: States, access: Mask) -> Armed:
        """Arm those of ``pages`` in mappings where reads fault, and set their states."""
        armed = self._access.arm(pages[access])
        states[access] = armed.states
        if len(armed.missing):
            self._access.keep(~holding(self._access.ranges, armed.missing))
        if armed.left_out:
            self._log_huge()
        return armed

    def _arm(self, pages: U64Array) -> Mask:
        # Where the process uses a userfaultfd of its own, arming would disturb its notifications.
        ours = inside(self._ranges, pages)
        if ours.all():
            return self._table.arm(pages)
        armed = np.zeros(len(pages), dtype=np.bool_)
        armed[ours] = self._table.arm(pages[ours])
        return armed

    def _look(self, pages: U64Array) -> tuple[States, U64Array]:
        """The states of ``pages``, that were not armed; and those that are there but not registered."""
        categories = self._table.categories(pages)
        spared = inside(self._spared, pages)
        there = ((categories & np.uint64(PRESENT)) != 0) & ~spared
        ready = inside(self._ranges, pages) & ((categories & np.uint64(WPALLOWED)) != 0)
        states = np.full(len(pages), State.BARE, dtype=np.uint8)
        states[ready] = State.EMPTY
        states[ready & ((categories & np.uint64(SWAPPED)) != 0)] = State.SWAPPED
        # One that can be armed and was not came between the two looks.
        states[there] = State.UNKNOWN
        states[spared] = State.SPARED
        missing = there & ~ready
        if (huge := there & ((categories & np.uint64(HUGE)) != 0)).any():
            unknown_huge = huge & self._unknown_huge(pages, categories)
            if unknown_huge.any():
                self._log_huge()
            states[huge & ~unknown_huge & ready] = State.COPIED
            missing &= ~unknown_huge
        return states, pages[missing]

    def _log_huge(self) -> None:
        if self._logged_huge:
            return
        self._logged_huge = True
        which = "huge pages of shared memory and files" if self._reads else "huge pages"
        log.warning(
            "process %d: %s are neither sampled nor paged out: page_fault would split them; use page_table for those",
            self._pid,
            which,
        )

    def _unknown_huge(self, pages: U64Array, categories: U64Array) -> Mask:
        """Which of ``pages`` are of huge pages that can be accessed without a fault."""
        access = inside(self._access.ranges, pages)
        copied = ((categories & np.uint64(FILE)) != 0) & inside(self._private, pages)
        known = np.where(access, self._access.whole(pages), copied | inside(self._spared, pages))
        return ((categories & np.uint64(HUGE)) != 0) & ~known

    def known(self, wanted: U64Array, pagemap: Pagemap) -> U64Array:
        """The part of ``wanted`` that can be sampled: all but such huge pages, nothing of a process that was released.

        :param pagemap: of this address space.
        """
        huge = [NO_RANGES]
        for blocks in pagemap.groups(wanted):
            # PAGEMAP_SCAN shows it all, but the page table walk is faster.
            with contextlib.suppress(OSError):
                blocks = blocks[pagemap.huge(blocks)[0]]  # noqa: PLW2901
            with self._lock:
                categories = self._table.huge(blocks[:, 0])
                huge.append(blocks[self._unknown_huge(blocks[:, 0], categories)])
        with self._lock:
            return NO_RANGES if self._let_go else subtract(wanted, np.concatenate(huge))

    def _look_for_another(self, count: int) -> None:
        """Check ``count`` more of the process's file descriptors; release it if it made a userfaultfd of its own."""
        if self._search is None:
            return
        began = time.monotonic_ns()
        looked = [*itertools.islice(self._search, count)]
        self._searched += time.monotonic_ns() - began
        if any(looked):
            # It may be just giving one to another kdamon.
            time.sleep(_GIVEN_AWAY)
            if has_userfaultfd(self._pid):
                log.warning(
                    "process %d: its memory is no longer sampled: it uses a userfaultfd of its own; use page_table",
                    self._pid,
                )
                self._let_go = True
                self.observed = Observed(0, 0, sum(attrs.astuple(self.observed)))
                self._close()
        if any(looked) or len(looked) < count:
            self._search = None
            self._look_at = time.monotonic_ns() + _LOOK_RARELY * self._searched

    def disarm(self, user: object) -> U64Array:
        """End the sample of ``user``: disarm its pages except those that others armed, too.

        :returns: ranges of it that are in other mappings by now, of which nothing is known, shape (n, 2), any order.
        """
        with self._lock:
            armed = self._armed.pop(user, None)
            given_up = self._given_up.pop(user, NO_RANGES)
            if armed is None or self._let_go:
                return given_up
            pages, ranges = armed
            if others := [*self._armed.values()]:
                pages = pages[~np.isin(pages, np.concatenate([armed for armed, _ in others]))]
                ranges = ranges[~np.isin(keys(ranges), keys(np.concatenate([armed for _, armed in others])))]
            if len(pages):
                self._userfaultfd.disarm(pages[self._table.armed(pages)])
            return np.concatenate((given_up, self._access.disarm(ranges)))

    def close(self) -> None:
        """Take all protection off."""
        with self._lock:
            if not self._let_go:
                self._close()
            os.close(self._pagemap)

    def _close(self) -> None:
        try:
            self._unregister_all()
        finally:
            self._userfaultfd.close()

    def _unregister_all(self) -> None:
        access = self._access.ranges
        registered = in_order(self._ranges, access)
        whole = among(self._hugetlb, registered)
        self._ranges = self._unsure = self._pending = NO_RANGES
        self._access.keep(np.zeros(len(access), dtype=np.bool_))
        try:
            memory = NO_RANGES if self._mappings is None else shared_memory(self._pid, self._mappings)
            # In one step: the kernel never joins such mappings again.
            self._userfaultfd.unregister(registered[whole])
            steps = Unregistration(self._pid, self._pagemap, self._table, self._userfaultfd)
            steps.unregister(registered[~whole], subtract(memory, access))
        except OSError as error:
            log.debug("process %d: its protection is removed in one step: %s", self._pid, error.strerror)
            # Not only as the userfaultfd is closed: it may go on in the other mode.
            self._userfaultfd.unregister(registered)
