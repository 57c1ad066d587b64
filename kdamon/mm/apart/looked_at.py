# SPDX-License-Identifier: GPL-2.0-only
"""Shared memory in which a helper process names the process that it reads, see :mod:`kdamon.mm.apart`."""

from __future__ import annotations

import mmap
import struct
from typing import Final

from kdamon.kernel import PAGE_SIZE

__all__ = ["Looks", "looking_at", "show_looks"]

_FORM: Final = "<QQ"


class Looks:
    """Memory that two processes share: the helper writes which process it reads, its parent watches.

    :param fd: a file of one page.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, PAGE_SIZE)
        self._count = 0

    def at(self, pid: int) -> None:
        """Record that the helper reads process ``pid`` from now on; 0 for none."""
        self._count += 1
        struct.pack_into(_FORM, self._memory, 0, self._count, pid)

    def last(self) -> tuple[int, int]:
        """The number of reads so far, and the process of the last one."""
        count, pid = struct.unpack_from(_FORM, self._memory)
        return count, pid

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


_shown: list[Looks] = []


def show_looks(looks: Looks) -> None:
    """Use ``looks`` from now on for the processes that this one reads."""
    _shown[:] = [looks]


def looking_at(pid: int) -> None:
    """Record that process ``pid`` is read from now on; does nothing outside of a helper process."""
    for looks in _shown:
        looks.at(pid)
