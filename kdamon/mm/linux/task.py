# SPDX-License-Identifier: GPL-2.0-only
"""A process of the running kernel, for as long as it is that process."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from typing import Final, Protocol

from kdamon.lib.file_limit import FileShortage, files_ran_out, too_many_files
from kdamon.lib.pidfd import exited, pidfd_open
from kdamon.lib.process_status import stat_fields, status_fields
from kdamon.lib.rights import OF_PROCESS, OTHER_PROCESS, refusal
from kdamon.mm import AddressSpace, Primitive, Resident
from kdamon.mm.mmap_lock import stays_locked
from kdamon.mm.proc.process_files import (
    ProcessFiles,
    birth_of_directory,
    is_kernel_thread,
    no_such_process,
    open_directory,
    open_stat,
    program_of,
)

__all__ = ["AccessSource", "LinuxTask", "Space"]

log = logging.getLogger("kdamon")

#: Nanoseconds after which it is looked whether a process left a living address space (see LinuxTask.get_mm()), and
#: after which its files are opened again for that, which takes ten times as long.
_RECHECK: Final = 100_000_000
_REOPEN: Final = 1_000_000_000
#: Seconds for which others wait for the lock of a process's memory, before that counts as held for ever; and the same
#: before a process is refused: on a busy machine those that wait may get no CPU for a while.
_LOCKED: Final = 0.02
_LOCKED_AT_FIRST: Final = 0.5
#: Lines of /proc/PID/status.
_RESIDENT: Final = ("RssAnon", "RssFile", "RssShmem", "VmSwap")


class Space(AddressSpace, Protocol):
    """An address space as a primitive opens it, which may end, or become another one by exec()."""

    @property
    def pagemap(self) -> int: ...

    def alive(self) -> bool: ...

    def same(self, files: ProcessFiles) -> bool: ...

    def close(self) -> None: ...


class AccessSource(Protocol):
    """A way to detect accesses; what :meth:`check` raises ESRCH for reaches a process by its first thread alone."""

    @property
    def name(self) -> str: ...

    def check(self, pidfd: int) -> None: ...

    def open(self, files: ProcessFiles, pidfd: int, pid: int) -> Space: ...

    def close(self) -> None: ...


class LinuxTask:
    """A process of this machine.

    ``pid`` may be the id of any thread, as find_get_pid() takes it in the kernel: the address space is the
    process's, and the task ends with that thread. A process goes on as long as one of its threads does.

    :param birth: of the process that is meant, see :meth:`kdamon.mm.Machine.get_task`.
    :raises OSError: ESRCH no such process; EPERM, EOPNOTSUPP with a sentence.
    """

    def __init__(self, primitive: AccessSource, pid: int, birth: int | None = None) -> None:
        self._pid = self._group = pid
        self._primitive = primitive
        self._lock = threading.Lock()
        self._space: Space | None = None
        self._recheck_at = self._reopen_at = 0
        self._program: list[bytes] | None = None
        self._said_unreachable = self._said_locked = False
        self._shortage = FileShortage()
        self._directory = self._stat = self._pidfd = -1
        try:
            self._directory = open_directory(pid)
            self._stat = open_stat(self._directory)
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
        """See :class:`kdamon.mm.Task`; the idle page bitmap is based on accessed bits, as ``page_table`` is."""
        return Primitive.PAGE_TABLE if self._primitive.name == Primitive.PAGE_IDLE else self._primitive.name

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

        After an exec() the old address space is empty, which is detected at once. After one that follows vfork() it is
        still the parent's, which is detected by the first call after a tenth of a second.

        :raises OSError: EMFILE, ENFILE it has been impossible for a second to read the process, because too many
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
            # Before the files are opened: if it calls exec() in between, the next look is at another program.
            program = program_of(self._stat)
            looks_same = now < self._reopen_at and program is not None and program == self._program
            if looks_same and self._space is not None and self._space.alive():
                return self._space
            self._program, self._reopen_at = program, now + _REOPEN
            try:
                files = ProcessFiles(self._directory)
            except OSError as error:
                if files_ran_out(error):
                    self._shortage.bear(error, f"process {self._pid} cannot be read")
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

    def _stays_locked(self, space: Space) -> bool:
        """Whether reading the process may block for ever, which is logged once."""
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

    def memory(self) -> Resident | None:
        """See :meth:`kdamon.mm.Task.memory`."""
        with self._lock:
            if self._directory < 0:
                return None
            try:
                fd = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
                with open(fd, "rb") as status:
                    fields = status_fields(status.read())
            except OSError:
                return None
        sizes = {name: int(fields[name].split()[0]) << 10 for name in _RESIDENT if name in fields}
        if "RssAnon" not in sizes:
            return None
        return Resident(sizes["RssAnon"], sizes["RssFile"] + sizes["RssShmem"], sizes["VmSwap"])

    def put(self) -> None:
        """Give everything back."""
        with self._lock:
            self._drop()
            for fd in (self._pidfd, self._stat, self._directory):
                if fd >= 0:
                    os.close(fd)
            self._pidfd = self._stat = self._directory = -1

    def _drop(self) -> None:
        if self._space is not None:
            self._space.close()
            self._space = None

    def _exists(self) -> bool:
        if self._directory < 0:
            return False
        try:
            # Not os.access(): that asks with the rights of the real user, to whom /proc may show no others' processes.
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
                f"reading the memory of process {self._pid} needs",
                f"/proc/{self._pid}/pagemap",
                *("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"),
                where=OF_PROCESS,
                otherwise=OTHER_PROCESS,
            ) from error
        try:
            if stays_locked(files.pagemap, _LOCKED_AT_FIRST):
                raise _held_locked(self._group)
            self._primitive.check(self._pidfd)
        except ProcessLookupError:
            if files.alive():
                raise _unreachable(self._group, self._primitive.name) from None
        finally:
            files.close()


def _held_locked(pid: int) -> OSError:
    """The error that process ``pid`` blocks every read of its memory."""
    return OSError(
        errno.EBUSY,
        f"process {pid} holds the lock of its memory, so kdamon does not read it; end it, it seems to wait for a "
        "file system that does not answer",
    )


def _unreachable(pid: int, primitive: str) -> OSError:
    """The error that ``primitive`` cannot monitor process ``pid`` although it has memory."""
    return OSError(
        errno.EOPNOTSUPP,
        f"process {pid} cannot be sampled by {primitive}: its first thread ended, and process_madvise() "
        "works through that thread only; use page_fault (--primitive page_fault)",
    )
