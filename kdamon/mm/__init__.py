# SPDX-License-Identifier: GPL-2.0-only
"""What ``mm/`` gives DAMON in the kernel, done from user space.

The core and the operations sets know memory only through the protocols here. :class:`Machine` finds tasks,
:class:`Task` is ``struct pid`` with what hangs on it, :class:`AddressSpace` is ``struct mm_struct`` as far as DAMON
looks at it. :mod:`kdamon.mm.linux` implements them for the running kernel, :mod:`kdamon.mm.sim` for simulated memory.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["OLD", "UNKNOWN", "YOUNG", "AddressSpace", "Answers", "Machine", "Task", "U64Array"]

U64Array = npt.NDArray[np.uint64]
#: One answer for each sampled address: OLD, YOUNG or UNKNOWN.
Answers = npt.NDArray[np.uint8]

#: The page was not accessed since the last :meth:`AddressSpace.mkold`, or is not mapped.
OLD: Final = 0
#: The page was accessed since the last :meth:`AddressSpace.mkold`.
YOUNG: Final = 1
#: The page's accessed bit could not be cleared or read: nothing is known, and nothing is claimed.
UNKNOWN: Final = 2


class AddressSpace(Protocol):
    """One process's address space (kernel: ``struct mm_struct``).

    A pair of :meth:`mkold` and :meth:`young` calls with the same addresses is one sample of each address.
    """

    def vmas(self) -> U64Array:
        """Start and end of every mapping in address order, shape (n, 2), bytes; shape (0, 2) when it is gone."""
        ...

    def mkold(self, addrs: U64Array) -> None:
        """Forget that the pages at ``addrs`` (bytes, shape (n,), any order, unaligned) were accessed."""
        ...

    def young(self, addrs: U64Array) -> Answers:
        """Tell which pages at ``addrs`` were accessed since :meth:`mkold` of the same array, shape (n,)."""
        ...


class Task(Protocol):
    """One process (kernel: ``struct pid`` and its task). It stays this process also when its number is reused."""

    @property
    def pid(self) -> int:
        """The process's number."""
        ...

    def valid(self) -> bool:
        """Tell whether the process exists; one that ended but was not reaped still does."""
        ...

    def get_mm(self) -> AddressSpace | None:
        """The present address space, or None where there is none (ended, or a kernel thread).

        The object changes when the process called exec(): identity tells.
        """
        ...

    def put(self) -> None:
        """Give everything back that this object holds (file descriptors, mappings); further calls are harmless."""
        ...


class Machine(Protocol):
    """Finds processes; the choice of what this machine has."""

    def get_task(self, pid: int) -> Task:
        """Find process ``pid``.

        :raises OSError: ESRCH no such process; EPERM or EOPNOTSUPP with a sentence on what is missing.
        """
        ...
