# SPDX-License-Identifier: GPL-2.0-only
"""Processes and memory of the running kernel: implements the protocols of :mod:`kdamon.mm`."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kdamon.lib.file_limit import files_ran_out
from kdamon.lib.rights import MissingRights, may, needs_linux, refusal
from kdamon.mm import Faults, Primitive
from kdamon.mm.actions.madvise import Adviser
from kdamon.mm.bpf.walker import Walker, shared_walker
from kdamon.mm.linux.task import AccessSource, LinuxTask, Space
from kdamon.mm.proc import cgroup, metrics
from kdamon.mm.proc.kpageflags import Folios
from kdamon.mm.proc.process_files import (
    ProcessFiles,
    birth_of,
)
from kdamon.mm.sampling.frames import LinuxFrames
from kdamon.mm.sampling.intervals import LinuxIntervals
from kdamon.mm.sampling.page_fault import PageFault, PageFaultSpace
from kdamon.mm.sampling.page_idle import BITMAP, Bitmap, PageIdleSpace, PagemapFrames
from kdamon.mm.sampling.page_table import PageTableSpace
from kdamon.mm.sampling.physical import Physical
from kdamon.mm.sampling.placement import FaultPlacement
from kdamon.mm.sampling.uffd import reads_fault

if TYPE_CHECKING:
    from kdamon.mm.linux.memory_apart import MemoryApart

__all__ = ["LinuxMachine", "check_cold", "linux_machine", "make_ready"]

log = logging.getLogger("kdamon")

#: Nanoseconds for which a process that calls exec() all the time is asked again.
_EXECS: Final = 5_000_000_000
#: Seconds after which a program is loaded.
_LOADING: Final = 0.05


class _PageTable:
    """The page table walk and MADV_COLD."""

    name = Primitive.PAGE_TABLE

    def __init__(self) -> None:
        self._walker: Walker = shared_walker()
        self._folios = Folios()

    def check(self, pidfd: int) -> None:
        check_cold(pidfd)

    def open(self, files: ProcessFiles, pidfd: int, pid: int) -> Space:
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

    name = Primitive.PAGE_IDLE

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

    def open(self, files: ProcessFiles, pidfd: int, pid: int) -> Space:
        return PageIdleSpace(self._bitmap, self._folios, files, pidfd, PagemapFrames(files.pagemap))

    def close(self) -> None:
        self._bitmap.close()
        self._folios.close()


class LinuxMachine:
    """This machine.

    :param primitive: reads accessed bits; becomes this object's. None: chosen when a task needs it.
    """

    def __init__(self, primitive: AccessSource | None) -> None:
        self._lock = threading.Lock()
        self._accessed = primitive
        self._page_fault = PageFault()
        #: The kernel refused the program for whole sampling intervals.
        self._one_by_one = False

    @property
    def primitive(self) -> str:
        """The name of the primitive for accessed bits, page_table or page_idle; page_fault if none was needed yet."""
        return self._accessed.name if self._accessed is not None else self._page_fault.name

    def birth(self, pid: int) -> int:
        """See :meth:`kdamon.mm.Machine.birth`."""
        return birth_of(pid)

    def get_task(self, pid: int, primitive: str = Primitive.PAGE_TABLE, birth: int | None = None) -> LinuxTask:
        """Find process ``pid``, see :meth:`kdamon.mm.Machine.get_task`; the task must be put()."""
        if primitive == Primitive.PAGE_TABLE:
            try:
                accessed = self._accessed_bits()
            except MissingRights as error:
                raise error.or_else(f"use page_fault, which sees {_seen_by_faults()}") from error
            except OSError as error:
                why = f"{error.strerror}, or use page_fault, which sees {_seen_by_faults()}"
                raise OSError(error.errno, why) from error
            return LinuxTask(accessed, pid, birth)
        by_faults: dict[str, AccessSource] = {
            Primitive.PAGE_FAULT: self._page_fault,
            Primitive.PAGE_FAULT_WRITES: self._page_fault.of_writes,
        }
        if primitive not in by_faults:
            raise OSError(errno.EINVAL, f"there is no primitive {primitive}; use page_table or page_fault")
        task = LinuxTask(by_faults[primitive], pid, birth)
        try:
            task.check_process()
            make_ready(task)
        except BaseException:
            task.put()
            raise
        return task

    def _accessed_bits(self) -> AccessSource:
        with self._lock:
            if self._accessed is None:
                self._accessed = _accessed_bits()
            return self._accessed

    def interval_sampler(self) -> LinuxIntervals | None:
        """See :meth:`kdamon.mm.Machine.interval_sampler`; None without bpf_loop(), which came with Linux 5.17."""
        if self._one_by_one or not isinstance(self._accessed_bits(), _PageTable):
            return None
        try:
            return LinuxIntervals(shared_walker())
        except OSError as error:
            # It would be asked for again in each sampling interval.
            self._one_by_one = not files_ran_out(error)
            log.info("sampling intervals are taken one by one: %s", error.strerror)
            return None

    def placement(self) -> FaultPlacement:
        """See :meth:`kdamon.mm.Machine.placement`."""
        return FaultPlacement()

    def physical_memory(self) -> MemoryApart:
        """See :meth:`kdamon.mm.Machine.physical_memory`."""
        primitive = self._accessed_bits()
        # Seeing page frames, looking at every process's memory, marking its pages as not accessed.
        needed = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_SYS_NICE")
        if not may(*needed):
            raise refusal("physical addresses need", "looking at all processes", *needed)
        from kdamon.mm.linux.memory_apart import MemoryApart  # noqa: PLC0415 (not for processes)

        return MemoryApart(primitive.name, self._frames(primitive))

    def physical_memory_here(self, left_out: Callable[[int], bool]) -> Physical:
        """As :meth:`physical_memory`, for a process that any process may hold up.

        :param left_out: whether a process must not be read.
        """
        return Physical(self._frames(self._accessed_bits(), left_out))

    @staticmethod
    def _frames(primitive: AccessSource, left_out: Callable[[int], bool] = lambda pid: False) -> LinuxFrames:
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
    def attributes_faults(self) -> bool:
        """See :class:`kdamon.mm.Machine`."""
        return self._page_fault.attributes_faults

    @property
    def faults_of_reads(self) -> bool:
        """See :class:`kdamon.mm.Machine`."""
        return self._page_fault.faults_of_reads

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

    :param primitive: the primitive that must work: ``page_table`` or ``page_idle`` for accessed bits; None takes the
        first that works. The page table walk comes first because it is a batch: the idle bitmap needs system calls for
        each address. With ``page_fault`` a primitive for accessed bits is chosen when a task needs it. Each machine can
        monitor by page_fault besides.
    :raises OSError: EOPNOTSUPP or EPERM with a sentence on what is missing; EINVAL for an unknown name.
    """
    _check_proc()
    if primitive == Primitive.PAGE_FAULT:
        return LinuxMachine(None)
    if primitive == Primitive.PAGE_IDLE:
        return LinuxMachine(_PageIdle())
    if primitive == Primitive.PAGE_TABLE:
        return LinuxMachine(_PageTable())
    if primitive is not None:
        raise OSError(errno.EINVAL, f"there is no primitive {primitive}; use page_table, page_idle or page_fault")
    return LinuxMachine(_accessed_bits())


def _accessed_bits() -> AccessSource:
    """The first primitive for accessed bits that works."""
    try:
        return _PageTable()
    except OSError as error:
        if os.access(BITMAP, os.R_OK | os.W_OK) and may("CAP_SYS_ADMIN"):
            log.info("using the idle page bitmap: %s", error.strerror)
            return _PageIdle()
        raise


def _seen_by_faults() -> str:
    return "reads and writes" if reads_fault() else "writes"


def _check_proc() -> None:
    """Refuse a /proc of another PID namespace, whose process numbers differ from those of system calls."""
    try:
        own = os.readlink("/proc/self")
    except OSError:
        own = ""
    if own != str(os.getpid()):
        raise OSError(
            errno.EOPNOTSUPP,
            "/proc is missing or that of another PID namespace; mount it with 'mount -t proc proc /proc'",
        )


def make_ready(task: LinuxTask) -> None:
    """Make the memory of ``task``, of the primitive page_fault, ready to be armed; OSError why it cannot be."""
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
