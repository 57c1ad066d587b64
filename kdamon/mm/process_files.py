# SPDX-License-Identifier: GPL-2.0-only
"""A process's own files in /proc, held open: they stand for one address space and do not follow an exec()."""

from __future__ import annotations

import os

from kdamon.mm import U64Array, maps

__all__ = ["ProcessFiles"]


class ProcessFiles:
    """/proc/PID/pagemap and /proc/PID/maps of one address space.

    :param directory: open /proc/PID, which stands for that process also when its number is used again.
    :raises OSError: ESRCH when the process has no memory of its own (ended, or a kernel thread); EPERM, EACCES
        without ptrace access.
    """

    def __init__(self, directory: int) -> None:
        try:
            # In this order: if the process calls exec() in between, the older file shows it.
            self.pagemap = os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            raise ProcessLookupError("the process ended") from None
        try:
            if not self.alive():
                raise ProcessLookupError("the process has no memory of its own")
            self._maps = os.open("maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except BaseException as error:
            os.close(self.pagemap)
            if isinstance(error, FileNotFoundError):
                raise ProcessLookupError("the process ended") from None
            raise

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
