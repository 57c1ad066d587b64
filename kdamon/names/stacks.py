# SPDX-License-Identifier: GPL-2.0-only
"""The stacks of a process's threads, found by their stack pointers (``fs/proc/base.c: proc_pid_syscall()``).

/proc/PID/task/TID/syscall shows the stack pointer of a thread that sleeps, without stopping it; of one that runs it
shows nothing, and its stack is known once it was seen asleep. The size of a stack is not shown anywhere: it begins
above a guard, a mapping without access, and is at most as large as new threads get it, RLIMIT_STACK.
"""

from __future__ import annotations

import os
import time
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import Records
from kdamon.names.mappings import NamedMappings
from kdamon.names.table import NAMED_RANGE, NO_OFFSET
from kdamon.names.texts import NameList, stack_text

__all__ = ["ThreadStacks", "stack_rows"]

#: Threads that one look reads: those without a known stack first, then the ones that were read longest ago.
_NEW_AT_ONCE: Final = 256
_KNOWN_AT_ONCE: Final = 32
_MOST_THREADS: Final = 1 << 14
#: Bytes of a stack where the limit is none, and what the C library adds: its own data, and rounding.
_UNLIMITED: Final = 8 << 20
_BESIDES: Final = 1 << 16


@frozen
class _Thread:
    """A thread.

    :ivar pointer: its stack pointer; 0 unknown.
    :ivar name: its name, with surrogates for what is not UTF-8.
    """

    pointer: int
    name: str


class ThreadStacks:
    """The stack pointers of the threads of one process."""

    def __init__(self) -> None:
        # In the order in which they were read.
        self._threads: dict[int, _Thread] = {}
        self.largest = _UNLIMITED

    def look(self, directory: int) -> bool:
        """Look at some threads.

        :param directory: open /proc/PID.
        :returns: whether something is known that was not known before.
        """
        before = {tid: thread for tid, thread in self._threads.items() if thread.pointer}
        tids = _tids(directory)
        present = set(tids)
        for tid in [tid for tid in self._threads if tid not in present]:
            del self._threads[tid]
        unknown = [tid for tid in tids if tid not in before]
        for tid in [*unknown[:_NEW_AT_ONCE], *[tid for tid in self._threads if tid in before][:_KNOWN_AT_ONCE]]:
            old = self._threads.pop(tid, None)
            self._threads[tid] = _read(directory, tid, old)
        self.largest = _stack_limit(directory)
        return before != {tid: thread for tid, thread in self._threads.items() if thread.pointer}

    def found(self) -> list[tuple[int, int, str]]:
        """Id, stack pointer and name of the threads whose stack pointer is known."""
        return [(tid, thread.pointer, thread.name) for tid, thread in self._threads.items() if thread.pointer]


def _tids(directory: int) -> list[int]:
    try:
        listing = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return []
    try:
        return [int(name) for name in os.listdir(listing)[:_MOST_THREADS]]
    except OSError:
        return []
    finally:
        os.close(listing)


def _read(directory: int, tid: int, old: _Thread | None) -> _Thread:
    """A thread as it is now; one that runs has the stack pointer that it had before."""
    time.sleep(0)
    name = os.fsdecode(_contents(directory, f"task/{tid}/comm").removesuffix(b"\n"))
    # The number of the system call, its arguments, the stack pointer, the program counter; or "running".
    fields = _contents(directory, f"task/{tid}/syscall").split()
    pointer = int(fields[-2], 16) if len(fields) >= 3 else 0
    return _Thread(pointer or (old.pointer if old is not None else 0), name)


def _contents(directory: int, path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _stack_limit(directory: int) -> int:
    """Bytes that the stack of a new thread may have."""
    for line in _contents(directory, "limits").split(b"\n"):
        if line.startswith(b"Max stack size"):
            soft = line.removeprefix(b"Max stack size").split()[0]
            return int(soft) if soft.isdigit() else _UNLIMITED
    return _UNLIMITED


def stack_rows(mappings: NamedMappings, threads: list[tuple[int, int, str]], largest: int, names: NameList) -> Records:
    """The rows of threads' stacks in anonymous memory.

    :param threads: id, stack pointer and name of each.
    :param largest: bytes that a stack has at most.
    :param names: takes the names.
    :returns: rows of :data:`kdamon.names.table.NAMED_RANGE`, ascending and disjoint, shape (n,).
    """
    rows, found = mappings.rows, dict[int, tuple[int, int, int, int]]()
    if not len(rows) or not threads:
        return np.empty(0, NAMED_RANGE)
    pointers = np.array([pointer for _, pointer, _ in threads], np.uint64)
    places = np.searchsorted(rows["start"], pointers, side="right") - 1
    largest = min(largest, 1 << 40) + _BESIDES
    for (tid, pointer, name), at in zip(threads, places.tolist(), strict=True):
        if at < 1 or not mappings.anonymous[at] or not mappings.accessible[at]:
            continue
        start, end = int(rows["start"][at]), int(rows["end"][at])
        guarded = not mappings.accessible[at - 1] and mappings.anonymous[at - 1] and int(rows["end"][at - 1]) == start
        # Without a guard the memory may have been something else before: it is a stack if it is no larger than one.
        end = min(end, start + largest) if guarded else end
        if pointer < end <= start + largest:
            # Two pointers in one mapping: threads that ended, or stacks of the program's own; the last one is as good.
            found[start] = start, end, NO_OFFSET, names.number(stack_text(tid, name))
    return np.array(sorted(found.values()), NAMED_RANGE)
