# SPDX-License-Identifier: GPL-2.0-only
"""Which process a helper process looks at, for the one that waits for it, see :mod:`kdamon.mm.apart`."""

from __future__ import annotations

import mmap
import struct
from typing import Final

from kdamon.kernel import PAGE_SIZE

__all__ = ["Looks", "looking_at", "show_looks"]

_FORM: Final = "<QQ"


class Looks:
    """Memory of two processes, in which one writes what it does.

    :param fd: a file of one page.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, PAGE_SIZE)
        self._count = 0

    def at(self, pid: int) -> None:
        """Note that process ``pid`` is looked at from now on; 0 for none."""
        self._count += 1
        struct.pack_into(_FORM, self._memory, 0, self._count, pid)

    def last(self) -> tuple[int, int]:
        """How many looks there were, and at which process the last one is."""
        count, pid = struct.unpack_from(_FORM, self._memory)
        return count, pid

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


_shown: list[Looks] = []


def show_looks(looks: Looks) -> None:
    """Write to ``looks`` from now on what this process looks at."""
    _shown[:] = [looks]


def looking_at(pid: int) -> None:
    """Say that process ``pid`` is looked at from now on, where this is a helper process."""
    for looks in _shown:
        looks.at(pid)
