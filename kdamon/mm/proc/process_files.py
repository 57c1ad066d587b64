# SPDX-License-Identifier: GPL-2.0-only
"""A process's own files in /proc, held open: they belong to one address space and do not follow an exec()."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from kdamon.lib import process_status
from kdamon.lib.process_status import stat_fields, status_fields
from kdamon.mm.mmap_lock import held
from kdamon.mm.proc.maps import RecentMappings, read_lines

__all__ = [
    "ProcessFiles",
    "birth_of",
    "birth_of_directory",
    "is_kernel_thread",
    "no_such_process",
    "open_directory",
    "open_stat",
    "program_of",
    "user_of",
]


def no_such_process(pid: int) -> OSError:
    """The error for a process ``pid`` that does not exist."""
    return OSError(errno.ESRCH, f"there is no process {pid}")


#: Fields of /proc/PID/stat, as proc_pid_stat(5) counts them.
_START_CODE: Final = 26
_START_STACK: Final = 28
_START_DATA: Final = 45
_ENV_END: Final = 51


def open_directory(pid: int) -> int:
    """Open /proc/PID, which stands for that process also when its number is used again.

    :returns: a file descriptor, the caller's to close.
    :raises OSError: ESRCH no such process.
    """
    if pid <= 0:
        raise no_such_process(pid)
    try:
        return os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise no_such_process(pid) from None


def birth_of(pid: int) -> int:
    """When process ``pid`` began, see :meth:`kdamon.mm.Machine.birth`."""
    directory = open_directory(pid)
    try:
        return birth_of_directory(directory)
    finally:
        os.close(directory)


def birth_of_directory(directory: int) -> int:
    """When the process, or the thread, began whose /proc directory is open as ``directory``, clock ticks since boot.

    :raises OSError: ESRCH it ended.
    """
    return _stat_field(directory, 22)


def is_kernel_thread(directory: int) -> bool:
    """Return whether the process whose /proc directory is open as ``directory`` is a thread of the kernel.

    :raises OSError: ESRCH it ended.
    """
    return process_status.is_kernel_thread(_stat(directory))


def _stat_field(directory: int, number: int) -> int:
    """Field ``number`` of /proc/PID/stat, 3 or more, as proc_pid_stat(5) counts them."""
    return int(stat_fields(_stat(directory))[number - 3])


def _stat(directory: int) -> bytes:
    try:
        with open(open_stat(directory), "rb") as file:
            return file.read()
    except ProcessLookupError:
        raise ProcessLookupError(errno.ESRCH, "the process ended") from None


def open_stat(directory: int) -> int:
    """Open /proc/PID/stat below ``directory``, open /proc/PID.

    :returns: a file descriptor, the caller's to close.
    :raises OSError: ESRCH the process ended.
    """
    try:
        return os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(errno.ESRCH, "the process ended") from None


def program_of(stat: int) -> list[bytes] | None:
    """Where the program of an open /proc/PID/stat, its data, stack, arguments and environment are in memory.

    These are other addresses after each exec(), unless addresses are not random. The file shows the process's present
    memory, in contrast to those of :class:`ProcessFiles`.

    :returns: None where they are not shown: the process ended, or ptrace access is missing.
    """
    try:
        fields = stat_fields(os.pread(stat, 1 << 12, 0))
    except ProcessLookupError:
        return None
    found = [*fields[_START_CODE - 3 : _START_STACK - 2], *fields[_START_DATA - 3 : _ENV_END - 2]]
    return found if fields and fields[_START_STACK - 3] != b"0" else None


def user_of(pid: int) -> int:
    """The real user of process ``pid``.

    :raises OSError: ESRCH, ENOENT no such process.
    """
    with open(f"/proc/{pid}/status", "rb") as file:
        return int(status_fields(file.read())["Uid"].split()[0])


class ProcessFiles:
    """/proc/PID/pagemap and /proc/PID/maps of one address space.

    A process whose first thread ended, as by pthread_exit(), while others go on has its memory by one of those.

    :param directory: open /proc/PID, which stands for that process also when its number is used again.
    :ivar mappings: the mappings.
    :raises OSError: ESRCH when the process has no memory of its own (ended, or a kernel thread); EPERM, EACCES
        without ptrace access.
    """

    # Deviation: docs/deviations.md#a-process-whose-first-thread-ended
    def __init__(self, directory: int) -> None:
        for thread in _threads(directory):
            if self._open(directory, thread):
                return
        raise ProcessLookupError(errno.ESRCH, "the process has no memory of its own")

    def _open(self, directory: int, thread: str) -> bool:
        """Open the files of a thread, unless it has no memory any more."""
        try:
            # In this order: if the process calls exec() in between, the older file shows it, or the older identity.
            self.identity = _identity(directory, thread)
            self.pagemap = os.open(f"{thread}pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except (FileNotFoundError, ProcessLookupError):
            return False
        except PermissionError:
            # Without memory its files belong to root, not to its user.
            if _has_memory(directory, thread):
                raise
            return False
        try:
            if self.alive():
                self._maps = os.open(f"{thread}maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
                self.mappings = RecentMappings(self._maps, self.pagemap)
                return True
        except (FileNotFoundError, ProcessLookupError):
            # It ended meanwhile.
            pass
        except BaseException:
            os.close(self.pagemap)
            raise
        os.close(self.pagemap)
        return False

    def lines(self) -> list[bytes]:
        """The lines of /proc/PID/maps, as :func:`kdamon.mm.proc.maps.read_lines` has them."""
        return read_lines(self._maps, self.pagemap)

    def read_maps(self, size: int, offset: int) -> bytes:
        """A piece of /proc/PID/maps, as :func:`os.pread` reads it.

        Others must not read it meanwhile, or the kernel starts over each time.

        :raises OSError: ESRCH the address space is gone.
        """
        with held.of(self.pagemap):
            return os.pread(self._maps, size, offset)

    def alive(self) -> bool:
        """Return whether the address space is still some process's: the pagemap of one that ended is empty.

        Part of an entry cannot be read, which is refused before the process's mmap_lock is taken.
        """
        try:
            os.pread(self.pagemap, 1, 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return True
        return False

    def same(self, files: ProcessFiles) -> bool:
        """Return whether ``files`` are of this address space, in a time that does not depend on its size.

        Two programs that were started without random addresses (``setarch -R``), and alike in all else, look the same.
        """
        return self.identity == files.identity

    def close(self) -> None:
        """Give both file descriptors back."""
        os.close(self.pagemap)
        os.close(self._maps)


def _threads(directory: int) -> Iterator[str]:
    """Where the files of each thread are below ``directory``, those of the first one at once."""
    yield ""
    try:
        listing = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return
    try:
        threads = sorted(map(int, os.listdir(listing)))
    except OSError:
        return
    finally:
        os.close(listing)
    yield from (f"task/{tid}/" for tid in threads)


def _has_memory(directory: int, thread: str) -> bool:
    """Return whether a thread has memory of its own, by files that every user may read."""
    try:
        fd = os.open(f"{thread}status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(fd, "rb") as status:
            return any(line.startswith(b"VmSize:") for line in status)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _identity(directory: int, thread: str) -> bytes:
    """The auxiliary vector: random addresses of the program, its stack and the vdso, given at each exec()."""
    fd = os.open(f"{thread}auxv", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, 1 << 12)
    finally:
        os.close(fd)
