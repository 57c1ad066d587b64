# SPDX-License-Identifier: GPL-2.0-only
"""The names of a process's memory while it runs."""

from __future__ import annotations

from types import TracebackType

from kdamon.names.table import NameTable

__all__ = ["ProcessNames"]


class ProcessNames:
    """Names the memory of a process; a context manager.

    A thread of its own reads ``/proc/PID/maps``, ELF headers and threads' stack pointers, when :meth:`look` asks for
    it: at most once a second, seldom where there are many mappings, and not where no mapping changed.

    :param pid: the process.
    :param birth: see :func:`kdamon.mm.proc.process_files.birth_of`; None: of the process that has the number now.
    :raises OSError: ESRCH there is no such process.
    """

    def __init__(self, pid: int, birth: int | None = None) -> None:
        raise NotImplementedError

    def __enter__(self) -> ProcessNames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def look(self, wait: float = 0.0) -> None:
        """Read the names in a thread, unless that is under way or was done lately.

        :param wait: seconds that the caller waits for the end of it.
        """

    def table(self) -> NameTable | None:
        """The names as they were read last; None before the first time."""

    def whole(self) -> NameTable | None:
        """The last name that each address had since the beginning, also of memory that is not mapped any more."""

    def close(self) -> None:
        """Give the descriptors back; may be repeated."""
