# SPDX-License-Identifier: GPL-2.0-only
"""The ``page_fault`` primitive: sampled pages are protected, and the kernel reports the faults that follow.

It does what the seed series does with its fault handler: the page that stands for a region is armed, an access to it
faults, and the fault is reported with address, CPU and thread. The kernel itself takes the protection off in that fault
(userfaultfd RWP_ASYNC or WP_ASYNC): the process never waits for us, and when we end all protection is gone.

* Where the kernel lets reads fault (RWP, Linux 7.3), it observes reads and writes of anonymous and shared memory, tmpfs
  and hugetlbfs. Elsewhere, of other files, and where no monitor of the process wants reads, it observes writes: a read
  that faults hides the write after it. Everywhere it observes first touches of pages that were not there.
* Where reads fault, huge pages of anonymous memory and hugetlbfs are armed as a whole. Others are not armed, neither as
  a whole nor in part: the kernel would split them. Samples of those are UNKNOWN, and actions on memory that is not
  accessed leave them out. Where only writes fault, samples of huge pages of files that are mapped privately are OLD: a
  write to them faults anyway, because it makes a copy. (docs/deviations.md#huge-pages-with-page_fault)
* Ordinary files that are mapped without the right to write are not registered, because the kernel maps pages of
  registered ones one by one. Writes are impossible there, so samples of them are OLD.
* Other mappings that cannot be registered, such as [vdso], are UNKNOWN.
* A mapping has room for one userfaultfd. kdamon does not monitor a process that has a userfaultfd of its own, and stops
  monitoring one that makes it, because the kernel would refuse the process's own registration. The same holds for a
  process that another kdamon monitors.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from typing import Final

import attrs
import numpy as np

from kdamon.arrays import U64Array
from kdamon.lib.file_limit import FileShortage, files_ran_out
from kdamon.lib.pidfd import exited
from kdamon.mm import FAULT_DTYPE, UNKNOWN, Answers, Faults, Observed, Primitive
from kdamon.mm.inject.requests import take_userfaultfd
from kdamon.mm.proc.maps import Mappings
from kdamon.mm.proc.pagemap import Pagemap
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.ranges import NO_RANGES, inside, intersect, union
from kdamon.mm.sampling.fault_recorder import FaultRecorder
from kdamon.mm.sampling.fault_sample import FaultSample, State
from kdamon.mm.sampling.huge_faults import spread
from kdamon.mm.sampling.protection import Protection, has_its_own
from kdamon.mm.sampling.space import NOTHING, ProcessSpace
from kdamon.mm.sampling.turns import Turns
from kdamon.mm.sampling.uffd import Pages, Userfaultfd, has_userfaultfd, reads_fault

__all__ = ["PageFault", "PageFaultSpace"]

log = logging.getLogger("kdamon")

_PAGE_MASK: Final = np.uint64(0xFFFF_FFFF_FFFF_F000)

_NO_SAMPLE: Final = FaultSample(NOTHING, np.empty(0, dtype=np.uint8))

_NO_HUGE: Final[U64Array] = np.empty((0, 3), dtype=np.uint64)

#: Actions on memory because it is not accessed.
_FOR_COLD: Final = frozenset({"cold", "pageout"})

#: Mappings that are registered at once.
_AT_ONCE: Final = 1024
#: Nanoseconds after which mappings that turned out not to be registered are registered.
_FOLLOW_AGAIN: Final = 1_000_000_000

#: Nanoseconds after which a process that refused its userfaultfd after an exec() is asked again: at first, at most.
_ASK_AGAIN: Final = 1_000_000_000
_ASK_AT_MOST: Final = 64_000_000_000
#: The same where too many files were open.
_SHORTAGE: Final = 100_000_000


class PageFaultSpace(ProcessSpace):
    """An address space whose sampled pages fault when they are accessed, or only when they are written.

    :param primitive: what this machine's page_fault shares.
    :param files: becomes this object's; :meth:`close` closes it.
    :param pidfd: the process; stays the caller's.
    :param pid: its number (not that of a thread of it).
    :ivar reads: whether reads are wanted, too, where the kernel lets them fault.
    """

    def __init__(self, primitive: PageFault, files: ProcessFiles, pid: int, pidfd: int, *, reads: bool = True) -> None:
        super().__init__(files, pidfd)
        self._primitive = primitive
        self.reads = reads
        self._pid = pid
        self._table = Pages(files.pagemap, reads=reads_fault())
        self._protection: Protection | None = None
        self._ask_at = 0
        self._ask_after = _ASK_AGAIN
        self._shortage = FileShortage()
        self._followed: Mappings | None = None
        self._looks = -1
        self._missing_at = 0
        self._sample = _NO_SAMPLE
        self._observed = Observed(0, 0, 0)
        # Of the present sample and the one before; replaced, never changed, because spread() takes no lock.
        self._whole = (_NO_HUGE, _NO_HUGE)

    def same(self, files: ProcessFiles) -> bool:
        """Return whether ``files`` are of this address space."""
        with self._lock:
            return not self._closed and self._files.same(files)

    def take(self) -> None:
        """Make the address space ready to be armed.

        :raises OSError: why that is not possible, see :func:`kdamon.mm.inject.requests.take_userfaultfd`.
        """
        with self._lock:
            if self._protection is None and not self._closed:
                self._protection = self._acquire()
                log.info(
                    "process %d: faults show reads and writes of %d KiB, only writes of %d KiB, neither of %d KiB",
                    self._pid,
                    *(size >> 10 for size in attrs.astuple(self._protection.observed)),
                )

    @property
    def taken(self) -> bool:
        """Whether its memory can be armed, as after :meth:`take`; else a sample may take long to begin."""
        return self._protection is not None

    @property
    def protection(self) -> Protection:
        """The protection of its memory, after :meth:`take`."""
        assert self._protection is not None
        return self._protection

    def vmas(self) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.vmas`; new mappings can be armed from now on."""
        with self._lock:
            if self._closed:
                return NO_RANGES
            mappings = self._files.mappings.now()
            self._follow(_AT_ONCE)
            return mappings.ranges

    def extent(self) -> None:
        """See :meth:`kdamon.mm.AddressSpace.extent`; not known, because each update is to look for a userfaultfd."""

    def begin_sample(self, addrs: U64Array) -> None:
        """See :meth:`kdamon.mm.Samples.begin_sample`."""
        pages = addrs & _PAGE_MASK
        with self._lock:
            self._sample, self._sampled = _NO_SAMPLE, None
            if self._protection is not None:
                self._protection.disarm(self)
            self._whole = _NO_HUGE, self._whole[0]
            if not self._closed and len(pages):
                self._sample = self._arm(pages)
            self._sampled = addrs, pages

    def _arm(self, pages: U64Array) -> FaultSample:
        protection = self._protection or self._ask()
        if protection is None:
            return FaultSample(pages, np.full(len(pages), State.UNKNOWN, dtype=np.uint8))
        count = self._share()
        self._files.mappings.go_on(count)
        self._follow(count)
        arming = protection.arm(self, pages)
        self._whole = arming.whole, self._whole[1]
        if arming.missing and time.monotonic_ns() >= self._missing_at:
            self._missing_at = time.monotonic_ns() + _FOLLOW_AGAIN
            self._files.mappings.begin(anyway=True)
        return FaultSample(pages, arming.states)

    def end_sample(self, addrs: U64Array) -> Answers:
        """See :meth:`kdamon.mm.Samples.end_sample`."""
        answers: Answers = np.zeros(len(addrs), dtype=np.uint8)
        with self._lock:
            pages = self._end(addrs)
            lost = NO_RANGES if self._protection is None else self._protection.disarm(self)
            self._sample.end()
            if pages is None:
                answers[:] = UNKNOWN
            elif not self._closed:
                answers[self._sample.unknown] = UNKNOWN
                if len(lost):
                    answers[inside(union(lost, NO_RANGES), pages)] = UNKNOWN
            return answers

    def observed(self) -> Observed:
        """See :meth:`kdamon.mm.AddressSpace.observed`; takes no lock."""
        protection = self._protection
        return self._observed if protection is None else protection.observed

    def advise(self, action: str, ranges: U64Array) -> U64Array:
        """See :meth:`kdamon.mm.AddressSpace.advise`; memory that cannot be sampled may be hot, so it is left out."""
        if action not in _FOR_COLD:
            return super().advise(action, ranges)
        with self._lock:
            known = NO_RANGES
            if self._protection is not None and not self._closed:
                mapped = intersect(ranges, self._files.mappings.recent(_FOLLOW_AGAIN).ranges)
                known = self._protection.known(mapped, Pagemap(self._files.pagemap))
        applied = np.zeros(len(ranges), dtype=np.uint64)
        np.add.at(applied, np.searchsorted(ranges[:, 0], known[:, 0], side="right") - 1, super().advise(action, known))
        return applied

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._pid

    def whole(self) -> list[U64Array]:
        """The huge pages armed in the present sample and in the one before, for :func:`spread`; takes no lock."""
        return [rows for rows in self._whole if len(rows)]

    def accessed(self) -> Faults:
        """The sampled pages that were accessed, or appeared, since the last call, see :class:`FaultSample`.

        None while another thread works on this address space: that thread collects them itself.
        """
        if not self._lock.acquire(blocking=False):
            return np.empty(0, dtype=FAULT_DTYPE)
        try:
            if self._closed:
                return np.empty(0, dtype=FAULT_DTYPE)
            return self._sample.faults(self._table, self._pid)
        finally:
            self._lock.release()

    def close(self) -> None:
        """See :meth:`kdamon.mm.sampling.space.ProcessSpace.close`; nothing stays armed."""
        with self._lock:
            protection, self._protection = self._protection, None
            if protection is not None:
                self._observed = protection.observed
                protection.disarm(self)
                self._primitive.release(self._pid, protection, self)
        super().close()

    def _follow(self, count: int) -> None:
        """Make ``count`` more mappings ready to be armed."""
        if self._protection is None:
            return
        mappings = self._files.mappings.known()
        try:
            if mappings is not self._followed:
                self._followed = mappings
                self._protection.follow(mappings)
            elif self._files.mappings.looks != self._looks:
                self._protection.look_for_another()
            self._looks = self._files.mappings.looks
            self._protection.register(count)
        except ProcessLookupError:
            log.debug("pid %d: its address space ended", self._pid)

    def _acquire(self) -> Protection:
        return self._primitive.acquire(self._pid, self._pidfd, self._files, self)

    def _ask(self) -> Protection | None:
        """Try to get ready after an exec(); refusals are logged once, and attempts become less and less frequent."""
        now = time.monotonic_ns()
        if now < self._ask_at:
            return None
        try:
            self._protection = self._acquire()
            self._shortage.end()
        except OSError as error:
            if not self._files.alive():
                # It called exec() once more.
                return None
            if files_ran_out(error):
                self._shortage.bear(error, f"process {self._pid} cannot be read")
                self._ask_at = now + _SHORTAGE
                return None
            say = log.warning if not self._ask_at else log.debug
            say("process %d: its memory is not sampled after an exec: %s", self._pid, error.strerror)
            self._ask_at = time.monotonic_ns() + self._ask_after
            self._ask_after = min(2 * self._ask_after, _ASK_AT_MOST)
        return self._protection


class _OfWrites:
    """The primitive for monitors that want to observe writes alone; what :class:`PageFault` shares stays its own."""

    name = Primitive.PAGE_FAULT_WRITES

    def __init__(self, primitive: PageFault) -> None:
        self._primitive = primitive

    def check(self, pidfd: int) -> None:
        """See :meth:`PageFault.check`."""
        self._primitive.check(pidfd)

    def open(self, files: ProcessFiles, pidfd: int, pid: int) -> PageFaultSpace:
        """See :meth:`PageFault.open`."""
        return PageFaultSpace(self._primitive, files, pid, pidfd, reads=False)

    def close(self) -> None:
        """Give back nothing."""


class PageFault:
    """The common state of all address spaces of a machine that ``page_fault`` monitors; any thread may use it.

    :param recorded: whether :meth:`faults` has the faults, with thread and CPU where the kernel shows them.
    :ivar of_writes: the same for those that want to observe writes alone.
    """

    name = Primitive.PAGE_FAULT

    def __init__(self, *, recorded: bool = True) -> None:
        self.of_writes = _OfWrites(self)
        self._recorded = recorded
        self._lock = threading.Lock()
        # Those of a process are used in its turn only.
        self._turns = Turns()
        self._protections: dict[int, Protection] = {}
        self._adopted: dict[int, Userfaultfd] = {}
        # Replaced, never changed: faults() goes through it without the lock.
        self._spaces: tuple[PageFaultSpace, ...] = ()
        self._recorder_lock = threading.Lock()
        self._recorder: FaultRecorder | None = None
        self._attributes_faults: bool | None = None
        self._lost = 0

    def check(self, pidfd: int) -> None:
        """Accept every process: only :meth:`PageFaultSpace.take` can find out."""

    def open(self, files: ProcessFiles, pidfd: int, pid: int) -> PageFaultSpace:
        """An address space, not yet ready to be armed; owns ``files``."""
        return PageFaultSpace(self, files, pid, pidfd)

    def adopt(self, pid: int, fd: int) -> None:
        """Use the userfaultfd ``fd`` for process ``pid``; it becomes this object's."""
        userfaultfd = Userfaultfd(fd)
        with self._lock:
            former = self._adopted.pop(pid, None)
            self._adopted[pid] = userfaultfd
        if former is not None:
            former.close()

    def acquire(self, pid: int, pidfd: int, files: ProcessFiles, user: PageFaultSpace) -> Protection:
        """The protection of process ``pid``'s address space, made at its first use; OSError with the reason why not."""
        with self._turns.of(pid):
            protection = self._protections.get(pid)
            if protection is None or not protection.fits(files):
                protection = self._protections[pid] = self._protect(pid, pidfd, files, user)
            else:
                protection.join(user, reads=user.reads)
                try:
                    _register_all(protection, files)
                    protection.check()
                except BaseException:
                    protection.leave(user)
                    raise
            with self._lock:
                self._spaces = (*self._spaces, user)
            return protection

    def release(self, pid: int, protection: Protection, user: PageFaultSpace) -> None:
        """Undo :meth:`acquire`."""
        with self._lock:
            self._spaces = tuple(space for space in self._spaces if space is not user)
        with self._turns.of(pid):
            if protection.leave(user):
                return
            if self._protections.get(pid) is protection:
                del self._protections[pid]
            protection.close()
        self._unwatch(pid)

    def _protect(self, pid: int, pidfd: int, files: ProcessFiles, user: PageFaultSpace) -> Protection:
        adopted = self._adopted.pop(pid, None)
        if adopted is not None:
            protection = Protection(pid, adopted, files)
            if protection.fits(files):
                return self._begin(pid, protection, files, user)
            protection.close()
        # Deviation: docs/deviations.md#processes-with-a-userfaultfd
        if pid != os.getpid() and has_userfaultfd(pid):
            raise has_its_own(pid)
        if pid == os.getpid():
            taken = Userfaultfd.own()
        else:
            taken = Userfaultfd(take_userfaultfd(pid, valid=lambda: not exited(pidfd)))
        return self._begin(pid, Protection(pid, taken, files), files, user)

    def _begin(self, pid: int, protection: Protection, files: ProcessFiles, user: PageFaultSpace) -> Protection:
        try:
            protection.join(user, reads=user.reads)
            if not files.alive() or not protection.fits(files):
                raise ProcessLookupError(errno.ESRCH, f"process {pid} ended or called exec meanwhile")
            _register_all(protection, files)
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
                return self._spread(self._recorder.read())
        found = [space.accessed() for space in self._spaces]
        if not found:
            return np.empty(0, dtype=FAULT_DTYPE)
        faults = np.concatenate(found)
        # Another monitor of the same process may have chosen the same page.
        return faults[np.unique(faults[["pid", "addr"]], return_index=True)[1]]

    def _spread(self, faults: Faults) -> Faults:
        whole: dict[int, list[U64Array]] = {}
        for space in self._spaces if len(faults) else ():
            # Monitors of one process share its faults.
            whole.setdefault(space.pid, []).extend(space.whole())
        for pid, rows in whole.items():
            faults = spread(faults, pid, rows)
        return faults

    @property
    def faults_of_reads(self) -> bool:
        """See :attr:`kdamon.mm.Machine.faults_of_reads`."""
        return reads_fault()

    @property
    def attributes_faults(self) -> bool:
        """See :attr:`kdamon.mm.Machine.attributes_faults`."""
        with self._recorder_lock:
            if self._attributes_faults is None:
                self._open_recorder()
                self._close_recorder()
            return bool(self._attributes_faults)

    @property
    def lost(self) -> int:
        """How many faults were lost so far because they were not fetched in time."""
        with self._recorder_lock:
            return self._lost + (self._recorder.lost if self._recorder is not None else 0)

    def _watch(self, pid: int) -> None:
        with self._recorder_lock:
            if self._recorder is None and self._recorded:
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
            if files_ran_out(error):
                raise
            if self._attributes_faults is None:
                log.warning("page faults are recorded without thread and CPU: %s", error.strerror)
        self._attributes_faults = self._recorder is not None

    def _close_recorder(self) -> None:
        if self._recorder is not None and not self._recorder.watching:
            self._lost += self._recorder.lost
            self._recorder.close()
            self._recorder = None

    def close(self) -> None:
        """Give back everything that no address space uses."""
        with self._lock:
            adopted, self._adopted = self._adopted, {}
        for userfaultfd in adopted.values():
            userfaultfd.close()


def _register_all(protection: Protection, files: ProcessFiles) -> None:
    """Make all mappings that ``files`` show ready to be armed."""
    protection.follow(files.mappings.now())
    while protection.register(_AT_ONCE):
        pass
