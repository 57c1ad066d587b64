# SPDX-License-Identifier: GPL-2.0-only
"""The running kernel's processes and memory, behind the protocols of :mod:`kdamon.mm`."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from kdamon.lib.file_limit import FileShortage, files_ran_out, too_many_files
from kdamon.lib.pidfd import exited, pidfd_open
from kdamon.lib.process_status import stat_fields
from kdamon.lib.rights import OF_PROCESS, OTHER_PROCESS, MissingRights, may, needs_linux, refusal
from kdamon.mm import AddressSpace, Faults
from kdamon.mm.actions.madvise import Adviser
from kdamon.mm.bpf.walker import Walker, shared_walker
from kdamon.mm.linux.memory_apart import MemoryApart
from kdamon.mm.mmap_lock import stays_locked
from kdamon.mm.proc import cgroup, metrics
from kdamon.mm.proc.kpageflags import Folios
from kdamon.mm.proc.process_files import (
    ProcessFiles,
    birth_of,
    birth_of_directory,
    is_kernel_thread,
    no_such_process,
    open_directory,
)
from kdamon.mm.sampling.frames import LinuxFrames
from kdamon.mm.sampling.page_fault import PageFault, PageFaultSpace
from kdamon.mm.sampling.page_idle import BITMAP, Bitmap, PageIdleSpace, PagemapFrames
from kdamon.mm.sampling.page_table import PageTableSpace
from kdamon.mm.sampling.physical import Physical

__all__ = ["LinuxMachine", "LinuxTask", "check_cold", "linux_machine"]

log = logging.getLogger("kdamon")

#: Nanoseconds after which it is looked whether a process left a living address space (see LinuxTask.get_mm()).
_RECHECK: Final = 100_000_000
#: Nanoseconds for which a process that calls exec() all the time is asked again.
_EXECS: Final = 5_000_000_000
#: Seconds for which others wait for the lock of a process's memory, before that counts as held for ever.
_LOCKED: Final = 0.02
#: Seconds after which a program is loaded.
_LOADING: Final = 0.05


class _Space(AddressSpace, Protocol):
    @property
    def pagemap(self) -> int: ...

    def alive(self) -> bool: ...

    def same(self, files: ProcessFiles) -> bool: ...

    def close(self) -> None: ...


class _Primitive(Protocol):
    """A way to tell accesses; what :meth:`check` raises ESRCH for reaches a process by its first thread alone."""

    @property
    def name(self) -> str: ...

    def check(self, pidfd: int) -> None: ...

    def open(self, files: ProcessFiles, pidfd: int, pid: int) -> _Space: ...

    def close(self) -> None: ...


class _PageTable:
    """The page table walk and MADV_COLD."""

    name = "page_table"

    def __init__(self) -> None:
        self._walker: Walker = shared_walker()
        self._folios = Folios()

    def check(self, pidfd: int) -> None:
        check_cold(pidfd)

    def open(self, files: ProcessFiles, pidfd: int, pid: int) -> _Space:
        return PageTableSpace(self._walker, self._folios, files, pidfd)

    def close(self) -> None:
        self._folios.close()


def check_cold(pidfd: int) -> None:
    """Find out whether pages of a process can be marked as not accessed.

    :raises OSError: EPERM, EOPNOTSUPP with a sentence; ESRCH its first thread ended, others may go on.
    """
    try:
        Adviser(pidfd).check()
    except ProcessLookupError:
        raise
    except OSError as error:
        if error.errno == errno.EPERM:
            raise refusal(
                "marking another process's pages as not accessed needs", "process_madvise()", "CAP_SYS_NICE"
            ) from error
        if error.errno == errno.ENOSYS:
            raise OSError(errno.EOPNOTSUPP, f"the kernel has no process_madvise(); {needs_linux('5.10')}") from error


class _PageIdle:
    """The bitmap of idle pages."""

    name = "page_idle"

    def __init__(self) -> None:
        self._folios = Folios()
        try:
            self._bitmap = Bitmap(BITMAP)
        except BaseException:
            self._folios.close()
            raise

    def check(self, pidfd: int) -> None:
        if not may("CAP_SYS_ADMIN"):
            raise refusal("the numbers of page frames, for the idle page bitmap, need", "seeing them", "CAP_SYS_ADMIN")

    def open(self, files: ProcessFiles, pidfd: int, pid: int) -> _Space:
        return PageIdleSpace(self._bitmap, self._folios, files, pidfd, PagemapFrames(files.pagemap))

    def close(self) -> None:
        self._bitmap.close()
        self._folios.close()


class LinuxTask:
    """A process of this machine.

    ``pid`` may be the id of any thread, as find_get_pid() takes it in the kernel: the address space is the
    process's, and the task ends with that thread. A process goes on as long as one of its threads does.

    :param birth: of the process that is meant, see :meth:`kdamon.mm.Machine.get_task`.
    :raises OSError: ESRCH no such process; EPERM, EOPNOTSUPP with a sentence.
    """

    def __init__(self, primitive: _Primitive, pid: int, birth: int | None = None) -> None:
        self._pid = self._group = pid
        self._primitive = primitive
        self._lock = threading.Lock()
        self._space: _Space | None = None
        self._recheck_at = 0
        self._said_unreachable = self._said_locked = False
        self._shortage = FileShortage()
        self._directory = self._pidfd = -1
        try:
            self._directory = open_directory(pid)
            self._birth = birth_of_directory(self._directory)
            if birth not in (None, self._birth):
                raise OSError(errno.ESRCH, f"process {pid} ended, and another one has its number now")
            self._pidfd = self._open_pidfd()
            self._check()
        except BaseException as error:
            self.put()
            if isinstance(error, OSError) and files_ran_out(error):
                raise too_many_files(error, f"process {pid}") from error
            raise

    @property
    def pid(self) -> int:
        """The number that the task was asked for by."""
        return self._pid

    @property
    def birth(self) -> int:
        """See :class:`kdamon.mm.Task`."""
        return self._birth

    @property
    def primitive(self) -> str:
        """See :class:`kdamon.mm.Task`; the idle page bitmap goes by accessed bits as ``page_table`` does."""
        return "page_fault" if self._primitive.name == "page_fault" else "page_table"

    @property
    def physical(self) -> None:
        """It is a process, see :meth:`kdamon.mm.Task.physical`."""

    def valid(self) -> bool:
        """Return whether the process exists; one that ended but was not reaped still does."""
        with self._lock:
            return self._exists()

    def ended(self) -> bool:
        """See :meth:`kdamon.mm.Task.ended`."""
        with self._lock:
            return self._pidfd < 0 or exited(self._pidfd)

    def check_process(self) -> None:
        """Refuse the id of a thread where the process's number is needed: OSError EINVAL."""
        if self._group != self._pid:
            raise OSError(
                errno.EINVAL,
                f"{self._pid} is a thread of process {self._group}, and faults carry that number; name the process",
            )

    def get_mm(self) -> AddressSpace | None:
        """The present address space; a new object after each exec(), None for a kernel thread or an ended process.

        An exec() leaves an empty address space behind, which is seen at once. One after vfork() leaves the
        parent's, which is seen within a tenth of a second.

        :raises OSError: EMFILE, ENFILE it has been impossible for a second to look at the process, because too many
            files are open.
        """
        with self._lock:
            if self._directory < 0:
                return None
            now = time.monotonic_ns()
            if self._space is not None and now < self._recheck_at and self._space.alive():
                return self._space
            self._recheck_at = now + _RECHECK
            if self._space is not None and self._stays_locked(self._space):
                return None
            try:
                files = ProcessFiles(self._directory)
            except OSError as error:
                if files_ran_out(error):
                    self._shortage.bear(error, f"process {self._pid} cannot be looked at")
                    return self._space if self._space is not None and self._space.alive() else None
                if error.errno != errno.ESRCH and self._space is not None:
                    log.warning("pid %d: its memory is out of reach now: %s", self._pid, os.strerror(error.errno or 0))
                self._drop()
                return None
            self._shortage.end()
            if self._space is not None:
                if self._space.alive() and self._space.same(files):
                    files.close()
                    self._look_whether_reached()
                    return self._space
                self._drop()
            self._space = self._primitive.open(files, self._pidfd, self._group)
            return self._space

    def _stays_locked(self, space: _Space) -> bool:
        """Whether a look at the process may take for ever, which is said once."""
        if not stays_locked(space.pagemap, _LOCKED):
            return False
        # The next look is as soon as this one: until then nothing is to be asked of it.
        self._recheck_at = 0
        if not self._said_locked:
            self._said_locked = True
            log.warning("%s", _held_locked(self._group).strerror)
        return True

    def is_kernel_thread(self) -> bool:
        """Return whether it is a thread of the kernel, which has no memory of its own."""
        return self._directory >= 0 and is_kernel_thread(self._directory)

    def has_thread(self, tid: int) -> bool:
        """See :meth:`kdamon.mm.Task.has_thread`."""
        with self._lock:
            if self._directory < 0:
                return False
            try:
                fd = os.open(f"task/{tid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
                with open(fd, "rb") as stat:
                    return stat_fields(stat.read())[0] not in {b"Z", b"X"}
            except (FileNotFoundError, ProcessLookupError):
                return False

    def put(self) -> None:
        """Give everything back."""
        with self._lock:
            self._drop()
            for fd in (self._pidfd, self._directory):
                if fd >= 0:
                    os.close(fd)
            self._pidfd = self._directory = -1

    def _drop(self) -> None:
        if self._space is not None:
            self._space.close()
            self._space = None

    def _exists(self) -> bool:
        if self._directory < 0:
            return False
        try:
            os.stat("maps", dir_fd=self._directory)
        except OSError:
            return False
        return True

    def _open_pidfd(self) -> int:
        """A pidfd of the process that ``pid`` is a thread of."""
        fd = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        # Bytes: a thread's name may hold a carriage return, which text takes for the end of a line.
        with open(fd, "rb") as status:
            self._group = next(int(line.split()[1]) for line in status if line.startswith(b"Tgid:"))
        pidfd = pidfd_open(self._group)
        if not self._exists():
            # The number may be another process's by now.
            os.close(pidfd)
            raise no_such_process(self._pid)
        return pidfd

    def _look_whether_reached(self) -> None:
        """Say once that the process cannot be sampled any more, though it goes on."""
        if self._said_unreachable:
            return
        try:
            self._primitive.check(self._pidfd)
        except ProcessLookupError:
            if self._space is not None and self._space.alive():
                self._said_unreachable = True
                log.warning("%s", _unreachable(self._group, self._primitive.name).strerror)
        except OSError as error:
            log.debug("process %d: %s", self._group, error)

    def _check(self) -> None:
        try:
            files = ProcessFiles(self._directory)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise refusal(
                f"looking at the memory of process {self._pid} needs",
                f"/proc/{self._pid}/pagemap",
                *("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"),
                where=OF_PROCESS,
                otherwise=OTHER_PROCESS,
            ) from error
        try:
            if stays_locked(files.pagemap, _LOCKED):
                raise _held_locked(self._group)
            self._primitive.check(self._pidfd)
        except ProcessLookupError:
            if files.alive():
                raise _unreachable(self._group, self._primitive.name) from None
        finally:
            files.close()


class LinuxMachine:
    """This machine.

    :param primitive: what tells accessed bits; becomes this object's. None: found when a task asks for it.
    """

    def __init__(self, primitive: _Primitive | None) -> None:
        self._lock = threading.Lock()
        self._accessed = primitive
        self._page_fault = PageFault()

    @property
    def primitive(self) -> str:
        """The name of what tells accessed bits, page_table or page_idle; page_fault where none was looked for."""
        return self._accessed.name if self._accessed is not None else self._page_fault.name

    def birth(self, pid: int) -> int:
        """See :meth:`kdamon.mm.Machine.birth`."""
        return birth_of(pid)

    def get_task(self, pid: int, primitive: str = "page_table", birth: int | None = None) -> LinuxTask:
        """Find process ``pid``, see :meth:`kdamon.mm.Machine.get_task`; the task must be put()."""
        if primitive == "page_table":
            try:
                accessed = self._accessed_bits()
            except MissingRights as error:
                raise error.or_else("use page_fault, which sees writes") from error
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}, or use page_fault, which sees writes") from error
            return LinuxTask(accessed, pid, birth)
        if primitive != "page_fault":
            raise OSError(errno.EINVAL, f"there is no primitive {primitive}; use page_table or page_fault")
        task = LinuxTask(self._page_fault, pid, birth)
        try:
            task.check_process()
            _take(task)
        except BaseException:
            task.put()
            raise
        return task

    def _accessed_bits(self) -> _Primitive:
        with self._lock:
            if self._accessed is None:
                self._accessed = _accessed_bits()
            return self._accessed

    def physical_memory(self) -> MemoryApart:
        """See :meth:`kdamon.mm.Machine.physical_memory`."""
        primitive = self._accessed_bits()
        # Seeing page frames, looking at every process's memory, marking its pages as not accessed.
        needed = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_SYS_NICE")
        if not may(*needed):
            raise refusal("physical addresses need", "looking at all processes", *needed)
        return MemoryApart(primitive.name, self._frames(primitive))

    def physical_memory_here(self, left_out: Callable[[int], bool]) -> Physical:
        """As :meth:`physical_memory`, for a process that any process may hold up.

        :param left_out: whether a process is not to be looked at.
        """
        return Physical(self._frames(self._accessed_bits(), left_out))

    @staticmethod
    def _frames(primitive: _Primitive, left_out: Callable[[int], bool] = lambda pid: False) -> LinuxFrames:
        return LinuxFrames(shared_walker(), lambda pid: LinuxTask(primitive, pid), left_out)

    def adopt_userfaultfd(self, pid: int, fd: int) -> None:
        """Use ``fd`` to monitor process ``pid`` by page_fault, as :func:`kdamon.mm.inject.requests.launch` got it.

        :param fd: a new userfaultfd of the process's address space; becomes this object's.
        :raises OSError: EOPNOTSUPP the kernel cannot do that.
        """
        self._page_fault.adopt(pid, fd)

    def faults(self) -> Faults:
        """See :meth:`kdamon.mm.Machine.faults`; in no order."""
        return self._page_fault.faults()

    @property
    def faults_tell_who(self) -> bool:
        """See :class:`kdamon.mm.Machine`."""
        return self._page_fault.tells_who

    @property
    def faults_lost(self) -> int:
        """How many faults were not fetched in time and are lost."""
        return self._page_fault.lost

    def metric(self, name: str, *, nid: int = 0, memcg: str = "") -> int:
        """See :mod:`kdamon.mm.proc.metrics`."""
        return metrics.metric(name, nid=nid, memcg=memcg)

    def memcg_id(self, path: str) -> int:
        """See :meth:`kdamon.mm.Machine.memcg_id`."""
        return metrics.memcg_id(path)

    def cgroup_processes(self, path: str) -> tuple[int, ...]:
        """See :meth:`kdamon.mm.Machine.cgroup_processes`."""
        return cgroup.processes(path)

    def close(self) -> None:
        """Give back what all tasks shared; only after they were put."""
        self._page_fault.close()
        if self._accessed is not None:
            self._accessed.close()


def linux_machine(primitive: str | None = None) -> LinuxMachine:
    """The running kernel.

    :param primitive: what must work: ``page_table`` or ``page_idle`` to tell accessed bits; None takes the first that
        works. The page table walk comes first because it is a batch: the idle bitmap costs several system calls for
        each address. With ``page_fault`` accessed bits are looked for when a task first asks for them. Each machine can
        monitor by page_fault besides.
    :raises OSError: EOPNOTSUPP or EPERM with a sentence on what is missing; EINVAL for an unknown name.
    """
    _check_proc()
    if primitive == "page_fault":
        return LinuxMachine(None)
    if primitive == "page_idle":
        return LinuxMachine(_PageIdle())
    if primitive == "page_table":
        return LinuxMachine(_PageTable())
    if primitive is not None:
        raise OSError(errno.EINVAL, f"there is no primitive {primitive}; use page_table, page_idle or page_fault")
    return LinuxMachine(_accessed_bits())


def _accessed_bits() -> _Primitive:
    """The first way to tell accessed bits that works."""
    try:
        return _PageTable()
    except OSError as error:
        if os.access(BITMAP, os.R_OK | os.W_OK) and may("CAP_SYS_ADMIN"):
            log.info("using the idle page bitmap: %s", error.strerror)
            return _PageIdle()
        raise


def _check_proc() -> None:
    """Refuse a /proc in which the numbers of processes are not those of the system calls."""
    try:
        own = os.readlink("/proc/self")
    except OSError:
        own = ""
    if own != str(os.getpid()):
        raise OSError(
            errno.EOPNOTSUPP,
            "/proc is missing or that of another PID namespace; mount it with 'mount -t proc proc /proc'",
        )


def _take(task: LinuxTask) -> None:
    """Make the memory of ``task`` ready to be armed; OSError why it cannot be."""
    deadline = time.monotonic_ns() + _EXECS
    refused = None
    while isinstance(mm := task.get_mm(), PageFaultSpace):
        try:
            mm.take()
            return
        except OSError as error:
            # Memory that an exec() takes away meanwhile, and a program that is just being loaded, look like all kinds
            # of refusals.
            lasting = mm.alive() and (mm is refused or error.errno == errno.EBUSY)
            if lasting or not task.valid() or time.monotonic_ns() >= deadline:
                raise
            refused = mm
            time.sleep(_LOADING)


def _held_locked(pid: int) -> OSError:
    """Why process ``pid`` is not looked at."""
    return OSError(
        errno.EBUSY,
        f"process {pid} holds the lock of its memory and is not looked at meanwhile; end it, it seems to wait for a "
        "file system that does not answer",
    )


def _unreachable(pid: int, primitive: str) -> OSError:
    """Why process ``pid`` cannot be monitored by ``primitive`` although it has memory."""
    return OSError(
        errno.EOPNOTSUPP,
        f"process {pid} cannot be sampled by {primitive}: its first thread ended, and the kernel takes advice about a "
        "process (process_madvise) by that one alone; use page_fault (--primitive page_fault)",
    )
