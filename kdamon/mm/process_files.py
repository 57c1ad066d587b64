# SPDX-License-Identifier: GPL-2.0-only
"""A process's own files in /proc, held open: they stand for one address space and do not follow an exec()."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from kdamon.mm import U64Array, maps

__all__ = ["ProcessFiles"]


class ProcessFiles:
    """/proc/PID/pagemap and /proc/PID/maps of one address space.

    A process whose first thread ended, as by pthread_exit(), while others go on has its memory by one of those.

    :param directory: open /proc/PID, which stands for that process also when its number is used again.
    :raises OSError: ESRCH when the process has no memory of its own (ended, or a kernel thread); EPERM, EACCES
        without ptrace access.
    """

    def __init__(self, directory: int) -> None:
        for thread in _threads(directory):
            if self._open(directory, thread):
                return
        raise ProcessLookupError(errno.ESRCH, "the process has no memory of its own")

    def _open(self, directory: int, thread: str) -> bool:
        """Open the files of a thread, unless it has no memory any more."""
        try:
            # In this order: if the process calls exec() in between, the older file shows it.
            self.pagemap = os.open(f"{thread}pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except (FileNotFoundError, ProcessLookupError):
            return False
        try:
            if self.alive():
                self._maps = os.open(f"{thread}maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
                return True
        except (FileNotFoundError, ProcessLookupError):
            # It ended meanwhile.
            pass
        except BaseException:
            os.close(self.pagemap)
            raise
        os.close(self.pagemap)
        return False

    def alive(self) -> bool:
        """Tell whether the address space is still some process's: the pagemap of one that ended is empty."""
        return len(os.pread(self.pagemap, 8, 0)) == 8

    def vmas(self) -> U64Array:
        """All mappings, see :func:`kdamon.mm.maps.read`."""
        return maps.read(self._maps)

    def maps(self) -> bytes:
        """The contents of /proc/PID/maps."""
        return maps.text(self._maps)

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
