# SPDX-License-Identifier: GPL-2.0-only
"""The ``page_fault`` primitive: sampled pages are write-protected, and the kernel tells of the faults that follow.

It does what the seed series does with its fault handler: the page that stands for a region is armed, an access to it
faults, and the fault is reported with address, CPU and thread. The kernel itself takes the protection off at the first
write (userfaultfd WP_ASYNC): the process never waits for us, and when we end all protection is gone.

* Writes are seen, and first touches of pages that were not there; reads of what is mapped are not.
* A part of a huge page is not armed, and neither is a whole one: the kernel would split it at the first write. Samples
  of huge pages are UNKNOWN, and they are left out of what is done to memory because it is not accessed. Those of files
  that are mapped privately are OLD: a write to them faults anyway, because it makes a copy.
* Files that are mapped without the right to write are left alone, because the kernel maps pages of registered ones one
  by one: nobody writes there. Samples of them are OLD.
* What else is mapped but cannot be registered is UNKNOWN: [vdso] and kin.
* A mapping has room for one userfaultfd. A process that has one of its own is not monitored, and let go when it makes
  one, because the kernel would refuse to register what we have. So is one that another kdamon monitors.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from kdamon.mm import FAULT_DTYPE, OLD, UNKNOWN, Answers, Faults, U64Array, maps
from kdamon.mm.faults import FaultRecorder
from kdamon.mm.inject import take_userfaultfd
from kdamon.mm.pagemap import BLOCK
from kdamon.mm.process import NOTHING, ProcessSpace
from kdamon.mm.process_files import ProcessFiles
from kdamon.mm.ranges import NO_RANGES, blocks, inside, intersect, subtract
from kdamon.mm.uffd import FILE, HUGE, PRESENT, WPALLOWED, WRITTEN, ZERO, Pages, Userfaultfd, has_userfaultfd

__all__ = ["PageFault", "PageFaultSpace"]

log = logging.getLogger("kdamon")

_PAGE_MASK: Final = np.uint64(0xFFFF_FFFF_FFFF_F000)

#: What is done to memory because it is not accessed.
_FOR_COLD: Final = frozenset({"cold", "pageout"})

#: Nanoseconds after which mappings that turned out not to be registered are looked for again.
_REGISTER_AGAIN: Final = 1_000_000_000
#: Nanoseconds after which a process that refused its userfaultfd after an exec() is asked again: at first, at most.
_ASK_AGAIN: Final = 1_000_000_000
_ASK_AT_MOST: Final = 64_000_000_000
#: A userfaultfd of the process's own is looked for after so many times as long as the last look took.
_LOOK_RARELY: Final = 100
#: Seconds after which a process has given away, and closed, one that it was only asked for.
_GIVEN_AWAY: Final = 0.02

_Mask = npt.NDArray[np.bool_]


def _written_files_and_memory(contents: bytes) -> bytes:
    """Those lines of /proc/PID/maps that are no files, or files that may be written."""
    kept = []
    for line in contents.splitlines(keepends=True):
        _, permissions, _, _, inode, *_ = line.split(None, 5)
        if b"w" in permissions or inode == b"0":
            kept.append(line)
    return b"".join(kept)


def _private(contents: bytes) -> bytes:
    """Those lines of /proc/PID/maps whose memory gets a copy of a page of a file when it is written."""
    lines = contents.splitlines(keepends=True)
    return b"".join(line for line in lines if line.split(None, 2)[1].endswith(b"p"))


def _has_its_own(pid: int) -> OSError:
    return OSError(
        errno.EBUSY,
        f"process {pid} uses a userfaultfd of its own, and memory has room for one only; monitor it by page_table "
        "instead",
    )


class _Protection:
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
                raise _has_its_own(self._pid)

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

    def arm(self, user: object, table: Pages, pages: U64Array, read: Callable[[], bytes]) -> tuple[_Mask, _Mask]:
        """Arm ``pages`` for ``user``.

        :param table: of this address space, the user's own.
        :param read: reads /proc/PID/maps, for when some mappings are not registered.
        :returns: which are armed, and which are mapped but cannot be armed.
        """
        with self._lock:
            armed = self._arm(table, pages)
            unarmed = np.flatnonzero(~armed)
            missed, again = self._missed(table, pages[unarmed])
            if again and time.monotonic_ns() >= self._register_at:
                self._register(read())
                armed[unarmed] = self._arm(table, pages[unarmed])
                unarmed = np.flatnonzero(~armed)
                missed, _ = self._missed(table, pages[unarmed])
            unknown = np.zeros(len(pages), dtype=np.bool_)
            unknown[unarmed[missed]] = True
            self._armed[user] = pages[armed]
            return armed, unknown

    def _arm(self, table: Pages, pages: U64Array) -> _Mask:
        # Where the process uses a userfaultfd of its own, arming would spoil what that tells it.
        ours = inside(self._ranges, pages)
        if ours.all():
            return table.arm(pages)
        armed = np.zeros(len(pages), dtype=np.bool_)
        armed[ours] = table.arm(pages[ours])
        return armed

    def _missed(self, table: Pages, pages: U64Array) -> tuple[_Mask, bool]:
        """Which of ``pages``, that were not armed, are there; and whether registering could help.

        Those that came just now are not missed: that was a first touch.
        """
        categories = table.categories(pages)
        there = ((categories & np.uint64(PRESENT)) != 0) & ~inside(self._spared, pages)
        huge = there & self._unknown_huge(pages, categories)
        if huge.any() and not self._told_huge:
            self._told_huge = True
            log.warning(
                "process %d: huge pages are neither sampled nor paged out: page_fault would split them; use page_table "
                "for those",
                self._pid,
            )
        ready = inside(self._ranges, pages) & ((categories & np.uint64(WPALLOWED)) != 0)
        unregistered = there & ~huge & ~ready
        return huge | unregistered, bool(unregistered.any())

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
            pages = self._armed.pop(user, NOTHING)
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


class PageFaultSpace(ProcessSpace):
    """An address space whose sampled pages fault when they are written.

    :param primitive: what this machine's page_fault shares.
    :param files: becomes this object's; :meth:`close` closes it.
    :param pidfd: the process; stays the caller's.
    :param pid: its number (not that of a thread of it).
    """

    def __init__(self, primitive: PageFault, files: ProcessFiles, pid: int, pidfd: int) -> None:
        super().__init__(files, pidfd)
        self._primitive = primitive
        self._pid = pid
        self._table = Pages(files.pagemap)
        self._protection: _Protection | None = None
        self._ask_at = 0
        self._ask_after = _ASK_AGAIN
        #: Pages of the present sample that were not found written yet, and which of them are armed.
        self._waiting = NOTHING
        self._waiting_armed = np.zeros(0, dtype=np.bool_)

    def same(self, files: ProcessFiles) -> bool:
        """Tell whether ``files`` are of this address space, by the random place of its last mapping, the vdso."""
        with self._lock:
            return not self._closed and np.array_equal(self._files.vmas()[-1:, 1], files.vmas()[-1:, 1])

    def take(self) -> None:
        """Make the address space ready to be armed.

        :raises OSError: why that is not possible, see :func:`kdamon.mm.inject.take_userfaultfd`.
        """
        with self._lock:
            if self._protection is None and not self._closed:
                self._protection = self._primitive.acquire(self._pid, self._files, self)

    def vmas(self) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.vmas`; new mappings can be armed from now on."""
        with self._lock:
            contents = b"" if self._closed else self._files.maps()
            if self._protection is not None and contents:
                try:
                    self._protection.register(contents)
                except ProcessLookupError:
                    log.debug("pid %d: its address space ended", self._pid)
            return maps.parse(contents)

    def mkold(self, addrs: U64Array) -> None:
        """See :meth:`kdamon.mm.AddressSpace.mkold`."""
        pages = addrs & _PAGE_MASK
        with self._lock:
            self._unknown = self._waiting = NOTHING
            if self._closed or not len(pages):
                return
            protection = self._protection or self._ask()
            if protection is None:
                self._unknown = pages
                return
            protection.disarm(self, self._table)
            try:
                armed, unknown = protection.arm(self, self._table, pages, self._files.maps)
            except ProcessLookupError:
                # The process left it just now; it ended, or has another one.
                self._unknown = pages
                return
            self._unknown = pages[unknown]
            self._waiting, self._waiting_armed = pages[~unknown], armed[~unknown]

    def young(self, addrs: U64Array) -> Answers:
        """See :meth:`kdamon.mm.AddressSpace.young`."""
        answers: Answers = np.full(len(addrs), OLD, dtype=np.uint8)
        with self._lock:
            if self._closed or not len(addrs):
                return answers
            if self._protection is not None:
                self._protection.disarm(self, self._table)
            self._waiting = NOTHING
            if len(self._unknown):
                answers[np.isin(addrs & _PAGE_MASK, self._unknown)] = UNKNOWN
            return answers

    def advise(self, action: str, ranges: U64Array) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.advise`; of what cannot be sampled nobody knows whether it is cold."""
        if action not in _FOR_COLD:
            return super().advise(action, ranges)
        with self._lock:
            known = NO_RANGES
            if self._protection is not None and not self._closed:
                known = self._protection.known(self._table, ranges, self._files.vmas())
        applied = np.zeros(len(ranges), dtype=np.uint64)
        np.add.at(applied, np.searchsorted(ranges[:, 0], known[:, 0], side="right") - 1, super().advise(action, known))
        return applied

    def written(self) -> Faults:
        """Which sampled pages were written since they were armed, or came: each once, without who did it."""
        with self._lock:
            if self._closed or not len(self._waiting):
                return np.empty(0, dtype=FAULT_DTYPE)
            categories = self._table.categories(self._waiting)
            hit = (categories & np.uint64(PRESENT | WRITTEN | HUGE)) == PRESENT | WRITTEN
            faults = np.zeros(int(hit.sum()), dtype=FAULT_DTYPE)
            faults["time"], faults["pid"] = time.monotonic_ns(), self._pid
            faults["cpu"] = faults["node_id"] = -1
            faults["addr"] = self._waiting[hit]
            # The zero page came by a read, and a page of a file that was not there may have.
            read = (categories[hit] & np.uint64(ZERO)) != 0
            read |= ((categories[hit] & np.uint64(FILE)) != 0) & ~self._waiting_armed[hit]
            faults["write"] = ~read
            self._waiting, self._waiting_armed = self._waiting[~hit], self._waiting_armed[~hit]
            return faults

    def close(self) -> None:
        """See :meth:`kdamon.mm.process.ProcessSpace.close`; nothing stays armed."""
        with self._lock:
            protection, self._protection = self._protection, None
            if protection is not None:
                protection.disarm(self, self._table)
                self._primitive.release(self._pid, protection, self)
        super().close()

    def _ask(self) -> _Protection | None:
        """Try to get ready after an exec(); refusals are told once, and asked about more and more seldom."""
        now = time.monotonic_ns()
        if now < self._ask_at:
            return None
        try:
            self._protection = self._primitive.acquire(self._pid, self._files, self)
        except OSError as error:
            if not self._files.alive():
                # It called exec() once more.
                return None
            say = log.warning if not self._ask_at else log.debug
            say("process %d: its memory is not sampled after an exec: %s", self._pid, error.strerror)
            self._ask_at = time.monotonic_ns() + self._ask_after
            self._ask_after = min(2 * self._ask_after, _ASK_AT_MOST)
        return self._protection


class PageFault:
    """What all address spaces of a machine share that are monitored by ``page_fault``; any thread may use it."""

    name = "page_fault"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._protections: dict[int, _Protection] = {}
        self._adopted: dict[int, Userfaultfd] = {}
        # Replaced, never changed: faults() goes through it without the lock, which is held while a process is asked.
        self._spaces: tuple[PageFaultSpace, ...] = ()
        self._recorder_lock = threading.Lock()
        self._recorder: FaultRecorder | None = None
        self._tells_who: bool | None = None
        self._lost = 0

    def check(self, pidfd: int) -> None:
        """Nothing can be told before the process is asked, see :meth:`PageFaultSpace.take`."""

    def open(self, files: ProcessFiles, pidfd: int, pid: int) -> PageFaultSpace:
        """An address space, not yet asked for anything; ``files`` becomes its."""
        return PageFaultSpace(self, files, pid, pidfd)

    def adopt(self, pid: int, fd: int) -> None:
        """Use the userfaultfd ``fd`` for process ``pid``; it becomes this object's."""
        userfaultfd = Userfaultfd(fd)
        with self._lock:
            former = self._adopted.pop(pid, None)
            self._adopted[pid] = userfaultfd
        if former is not None:
            former.close(NO_RANGES)

    def acquire(self, pid: int, files: ProcessFiles, user: PageFaultSpace) -> _Protection:
        """The protection of process ``pid``'s address space, made if nobody has it yet; OSError why not."""
        with self._lock:
            protection = self._protections.get(pid)
            if protection is None or not protection.fits(files.maps()):
                protection = self._protections[pid] = self._protect(pid, files)
            else:
                protection.check()
            protection.users += 1
            self._spaces = (*self._spaces, user)
            return protection

    def release(self, pid: int, protection: _Protection, user: PageFaultSpace) -> None:
        """Undo :meth:`acquire`."""
        with self._lock:
            self._spaces = tuple(space for space in self._spaces if space is not user)
            protection.users -= 1
            if protection.users:
                return
            if self._protections.get(pid) is protection:
                del self._protections[pid]
            protection.close()
        self._unwatch(pid)

    def _protect(self, pid: int, files: ProcessFiles) -> _Protection:
        contents = files.maps()
        adopted = self._adopted.pop(pid, None)
        if adopted is not None:
            protection = _Protection(pid, adopted, contents)
            if protection.fits(contents):
                self._watch(pid)
                return protection
            protection.close()
        if pid != os.getpid() and has_userfaultfd(pid):
            raise _has_its_own(pid)
        taken = Userfaultfd.own() if pid == os.getpid() else Userfaultfd(take_userfaultfd(pid))
        protection = _Protection(pid, taken, contents)
        try:
            if not files.alive() or not protection.fits(files.maps()):
                raise ProcessLookupError(errno.ESRCH, f"process {pid} ended or called exec meanwhile")
            protection.check_alone()
            self._watch(pid)
        except BaseException:
            protection.close()
            raise
        return protection

    def faults(self) -> Faults:
        """See :meth:`kdamon.mm.Machine.faults`."""
        with self._recorder_lock:
            if self._recorder is not None:
                return self._recorder.read()
        found = [space.written() for space in self._spaces]
        if not found:
            return np.empty(0, dtype=FAULT_DTYPE)
        faults = np.concatenate(found)
        # Who monitors the same process may have chosen the same page.
        return faults[np.unique(faults[["pid", "addr"]], return_index=True)[1]]

    @property
    def tells_who(self) -> bool:
        """See :attr:`kdamon.mm.Machine.faults_tell_who`."""
        with self._recorder_lock:
            if self._tells_who is None:
                self._open_recorder()
                self._close_recorder()
            return bool(self._tells_who)

    @property
    def lost(self) -> int:
        """How many faults were lost so far because nobody fetched them in time."""
        with self._recorder_lock:
            return self._lost + (self._recorder.lost if self._recorder is not None else 0)

    def _watch(self, pid: int) -> None:
        with self._recorder_lock:
            if self._recorder is None:
                self._open_recorder()
            if self._recorder is not None:
                self._recorder.watch(pid)

    def _unwatch(self, pid: int) -> None:
        with self._recorder_lock:
            if self._recorder is not None:
                self._recorder.unwatch(pid)
                self._close_recorder()

    def _open_recorder(self) -> None:
        try:
            self._recorder = FaultRecorder()
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise
            if self._tells_who is None:
                log.warning("who causes a page fault is not known, only where: %s", error.strerror)
        self._tells_who = self._recorder is not None

    def _close_recorder(self) -> None:
        if self._recorder is not None and not self._recorder.watching:
            self._lost += self._recorder.lost
            self._recorder.close()
            self._recorder = None

    def close(self) -> None:
        """Give everything back that no address space has."""
        with self._lock:
            for userfaultfd in self._adopted.values():
                userfaultfd.close(NO_RANGES)
            self._adopted.clear()
