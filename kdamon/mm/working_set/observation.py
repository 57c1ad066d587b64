# SPDX-License-Identifier: GPL-2.0-only
"""A window in which a process's pages are observed: its begin, its end, and its cost."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

from attrs import frozen

from kdamon.mm.linux.task import LinuxTask
from kdamon.mm.proc.maps import NamedMapping
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.working_set.sets import WorkingSet

__all__ = ["Cost", "Observation", "named_mappings", "space_of"]

#: [vsyscall] is shown in the kernel's half; it is no mapping of the process.
_KERNEL_HALF = 1 << 63

_Space = TypeVar("_Space")


@frozen
class Cost:
    """The expected cost of a window: bytes, and faults.

    :ivar resident: in memory now.
    :ivar observed: pages that are to be armed, or made old.
    :ivar unknown: in memory, but not to be observed.
    :ivar faults: how many faults the process has for them, at most.
    """

    resident: int
    observed: int
    unknown: int
    faults: int


class Observation(Protocol):
    """The pages of one process, observed from :meth:`begin` to :meth:`end`; a context that lets go of them.

    Methods raise OSError with a sentence where the process cannot be observed (any more).

    :ivar reads: whether reads are observed, too.
    """

    reads: bool

    def __enter__(self) -> Observation: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...

    @property
    def pidfd(self) -> int:
        """A pidfd of the process."""
        ...

    def alive(self) -> bool:
        """Return whether the process still has the address space that is observed."""
        ...

    def cost(self, stop: Callable[[], bool]) -> Cost:
        """The cost of :meth:`begin` now; nothing is armed or made old yet.

        :param stop: asked every gibibyte; once it is true, the rest is left out.
        """
        ...

    def begin(self, stop: Callable[[], bool]) -> None:
        """Begin the window.

        :param stop: asked every gibibyte; once it is true, the window has not begun.
        """
        ...

    def look(self) -> None:
        """Check, now and then, that the process can still be observed.

        :raises OSError: EBUSY it needs the kernel's means for itself.
        """
        ...

    def end(self) -> WorkingSet:
        """End the window and count."""
        ...


def space_of(task: LinuxTask, kind: type[_Space]) -> _Space:
    """The address space of ``task``, of the class ``kind`` that its primitive opens.

    :raises OSError: ESRCH it has none.
    """
    space = task.get_mm()
    if space is None:
        why = "is a kernel thread" if task.is_kernel_thread() else "ended"
        raise OSError(errno.ESRCH, f"process {task.pid} {why}: it has no memory of its own")
    assert isinstance(space, kind)
    return space


def named_mappings(files: ProcessFiles) -> tuple[NamedMapping, ...]:
    """The present mappings, ascending and disjoint: the list comes in pieces, between which mappings come and go."""
    found: list[NamedMapping] = []
    for line in files.lines():
        mapping = NamedMapping.parse(line)
        if mapping.start < _KERNEL_HALF and (not found or mapping.start >= found[-1].end):
            found.append(mapping)
    return tuple(found)
