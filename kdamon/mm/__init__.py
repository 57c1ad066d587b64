# SPDX-License-Identifier: GPL-2.0-only
"""What ``mm/`` gives DAMON in the kernel, done from user space.

The core and the operations sets know memory only through the protocols here. :class:`Machine` finds tasks,
:class:`Task` is ``struct pid`` with what hangs on it, :class:`AddressSpace` is ``struct mm_struct`` as far as DAMON
looks at it. :mod:`kdamon.mm.linux` implements them for the running kernel, :mod:`kdamon.mm.sim` for simulated memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from attrs import frozen

__all__ = [
    "FAULT_DTYPE",
    "OLD",
    "UNKNOWN",
    "YOUNG",
    "AddressSpace",
    "Answers",
    "Faults",
    "Machine",
    "PageFilter",
    "PhysicalMemory",
    "Single",
    "Task",
    "U64Array",
]

U64Array = npt.NDArray[np.uint64]
#: One answer for each sampled address: OLD, YOUNG or UNKNOWN.
Answers = npt.NDArray[np.uint8]

#: One fault of a process that is monitored by faults: when (CLOCK_MONOTONIC nanoseconds), the process, the address
#: (bytes), the NUMA node of the CPU, whether it was a write, the CPU, the thread. Unknown: node and CPU -1, thread 0.
FAULT_DTYPE: Final = np.dtype(
    [
        ("time", np.uint64),
        ("pid", np.int32),
        ("addr", np.uint64),
        ("node_id", np.int32),
        ("write", np.bool_),
        ("cpu", np.int32),
        ("tid", np.int32),
    ]
)
#: Faults, an array of FAULT_DTYPE.
Faults = npt.NDArray[np.void]

#: The page was not accessed since the last :meth:`AddressSpace.mkold`, or is not mapped.
OLD: Final = 0
#: The page was accessed since the last :meth:`AddressSpace.mkold`.
YOUNG: Final = 1
#: The page's accessed bit could not be cleared or read: nothing is known, and nothing is claimed.
UNKNOWN: Final = 2


class Single(IntEnum):
    """What a page frame is that is a folio by itself, told for many at once."""

    #: It has to be looked at by itself: a part of a folio of several pages, reserved, no memory, or not to be told.
    UNTOLD = 0
    MAPPED_ONCE = 1
    #: Not mapped, and on no LRU list.
    UNREACHABLE = 2
    OTHER = 3


@frozen
class PageFilter:
    """A condition on mapped pages (kernel: ``struct damos_filter`` of a type that operations sets handle).

    :ivar type: ``anon``, ``active`` (on an active LRU list), ``memcg``, ``young`` (accessed since the last time that
        this was asked), ``hugepage_size``, ``unmapped``.
    :ivar matching: whether it matches pages of the type, or all others.
    :ivar allow: whether pages that it matches pass.
    :ivar memcg_id: of type memcg: the control group's inode number.
    :ivar min_size: of type hugepage_size: smallest size of the folio that a page is of, bytes.
    :ivar max_size: largest size of it.
    """

    type: str
    matching: bool
    allow: bool
    memcg_id: int = 0
    min_size: int = 0
    max_size: int = 0


class AddressSpace(Protocol):
    """One process's address space (kernel: ``struct mm_struct``).

    A pair of :meth:`mkold` and :meth:`young` calls with the same addresses is one sample of each address.

    There are two primitives. ``page_table`` goes by accessed bits: :meth:`mkold` clears and :meth:`young` reads them.
    ``page_fault`` lets accesses fault: :meth:`mkold` arms the pages, :meth:`young` disarms them, and who accessed what
    in between comes from :meth:`Machine.faults`.
    """

    def vmas(self) -> U64Array:
        """Start and end of every mapping in address order, shape (n, 2), bytes; shape (0, 2) when it is gone."""
        ...

    def mkold(self, addrs: U64Array) -> None:
        """Forget that the pages at ``addrs`` (bytes, shape (n,), any order, unaligned) were accessed.

        By ``page_fault``: let the next write to each of them fault, which the kernel resolves by itself.
        """
        ...

    def young(self, addrs: U64Array) -> Answers:
        """Tell which pages at ``addrs`` were accessed since :meth:`mkold` of the same array, shape (n,).

        By ``page_fault``: UNKNOWN where nothing could fault although something is mapped, else OLD.
        """
        ...

    def young_frames(self, addrs: U64Array) -> tuple[Answers, U64Array]:
        """As :meth:`young`, and the page frames that the answers are about, whoever else maps them; 0 for none."""
        ...

    def frames(self, addrs: U64Array) -> U64Array:
        """The page frames at ``addrs`` (shape (n,)) that this address space alone maps; 0 for others, shape (n,)."""
        ...

    def advise(self, action: str, ranges: U64Array) -> U64Array:
        """Apply an action of DAMOS to the memory in ``ranges``.

        What is not mapped, or refuses the action, is left out. Ranges side by side are advised as one.

        :param action: ``willneed``, ``cold``, ``pageout``, ``collapse``, ``hugepage`` or ``nohugepage``.
        :param ranges: start and end of each, page-aligned bytes, ascending and disjoint, shape (n, 2).
        :returns: to how many bytes of each range it was applied, see :mod:`kdamon.mm.advice`, shape (n,).
        :raises OSError: EOPNOTSUPP this machine cannot do that to another process; EPERM with a sentence on what is
            missing.
        """
        ...

    def migrate(self, ranges: U64Array, dests: Sequence[tuple[int, int]]) -> U64Array:
        """Migrate the memory in ``ranges`` to NUMA nodes.

        :param ranges: as for :meth:`advise`.
        :param dests: node and weight of each destination; folios take turns in proportion to the weights.
        :returns: how many bytes of each range are on another node than before, the wanted one, shape (n,).
        :raises OSError: EINVAL a node without memory; else as for :meth:`advise`.
        """
        ...

    def page_filter(self, ranges: U64Array, filters: Sequence[PageFilter], default_reject: bool) -> U64Array:
        """Tell which pages in ``ranges`` pass ``filters``: the first one that matches a page decides.

        A page that a filter of type ``young`` found accessed is not accessed any more afterwards.

        :param ranges: as for :meth:`advise`.
        :param default_reject: what becomes of pages that no filter matches.
        :returns: ranges of pages, a part of ``ranges``, shape (n, 2); only mapped pages are there.
        :raises OSError: as for :meth:`advise`.
        """
        ...

    def page_match(self, addrs: U64Array, filters: Sequence[PageFilter]) -> npt.NDArray[np.bool_]:
        """Tell which sampled pages are of the type of each of ``filters``; what these match and allow does not count.

        Besides ``anon``, ``memcg`` and ``hugepage_size`` there are two other types: ``young`` pages were accessed since
        :meth:`mkold` of the same array, ``idle`` ones are mapped and were not. Neither changes the page.

        :param addrs: bytes, shape (n,), any order, unaligned.
        :returns: shape (len(filters), n). What is not mapped is of no type.
        :raises OSError: EINVAL another type; else as for :meth:`advise`.
        """
        ...


class Task(Protocol):
    """One process (kernel: ``struct pid`` and its task). It stays this process also when its number is reused."""

    @property
    def pid(self) -> int:
        """The process's number."""
        ...

    @property
    def primitive(self) -> str:
        """How accesses to its memory are told: ``page_table`` or ``page_fault``."""
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


@runtime_checkable
class PhysicalMemory(Task, Protocol):
    """The machine's memory by physical addresses: a task of number 0 that is no process.

    What is known of it is what processes show, as they were at the last :meth:`update`.
    """

    def update(self) -> None:
        """Find out anew which process maps which page frame."""
        ...

    def begin_update(self) -> None:
        """As :meth:`update`, but in pieces, one with each :meth:`mkold`; what was known before stays until it is done.

        One that is under way goes on.
        """
        ...

    def ram(self) -> U64Array:
        """All memory that is not only for devices, start and end of each piece, bytes, ascending, shape (n, 2).

        :raises OSError: EPERM the machine does not tell.
        """
        ...

    def known(self) -> tuple[int, int]:
        """Bytes whose accesses could be told at the last :meth:`update`, and bytes of memory on LRU lists."""
        ...

    def mkold(self, addrs: U64Array) -> None:
        """As :meth:`AddressSpace.mkold`, of physical addresses."""
        ...

    def young(self, addrs: U64Array) -> Answers:
        """As :meth:`AddressSpace.young`, of physical addresses. What nobody maps and no LRU list has is OLD."""
        ...

    def page_match(self, addrs: U64Array, filters: Sequence[PageFilter]) -> npt.NDArray[np.bool_]:
        """As :meth:`AddressSpace.page_match`, of physical addresses: of all page frames on LRU lists."""
        ...

    def node_mem(self, ranges: U64Array) -> dict[int, int]:
        """Bytes of pages in ``ranges`` (start and end, bytes, shape (n, 2)) on each NUMA node, by its number.

        Of those whose accesses could be told at the last :meth:`update`.
        """
        ...

    def owners(self, ranges: U64Array) -> Iterator[tuple[AddressSpace, U64Array, npt.NDArray[np.intp]]]:
        """Where the whole pages in ``ranges`` (start and end, bytes, shape (n, 2)) are that one process alone maps.

        :returns: address space by address space, ranges in it as for :meth:`AddressSpace.advise`, and in which of
            ``ranges`` each of these lies.
        """
        ...


class Machine(Protocol):
    """Finds processes; the choice of what this machine has."""

    def get_task(self, pid: int, primitive: str = "page_table") -> Task:
        """Find process ``pid``.

        :param primitive: how accesses to its memory are to be told: ``page_table`` or ``page_fault``.
        :raises OSError: ESRCH no such process; EPERM or EOPNOTSUPP with a sentence on what is missing; EPERM, EBUSY or
            EOPNOTSUPP with the reason why letting it fault would not be safe; EINVAL an unknown primitive.
        """
        ...

    def physical_memory(self) -> PhysicalMemory:
        """The memory by physical addresses, to be put(); nothing is known of it before the first update().

        :raises OSError: EPERM or EOPNOTSUPP with a sentence on what is missing.
        """
        ...

    def faults(self) -> Faults:
        """The faults of all processes monitored by ``page_fault`` since the last call, each once, shape (n,).

        Besides those of armed pages they are the first accesses to pages that were not mapped before.
        """
        ...

    @property
    def faults_tell_who(self) -> bool:
        """Whether faults tell the CPU, the thread, and reads from writes; else only addresses of writes."""
        ...

    @property
    def faults_lost(self) -> int:
        """How many faults were lost so far because nobody fetched them in time."""
        ...

    def metric(self, name: str, *, nid: int = 0, memcg: str = "") -> int:
        """Measure what goals and watermarks of schemes go by, see :mod:`kdamon.mm.metrics`.

        :param name: the tree's keyword of the metric, without ``user_input``.
        :param nid: NUMA node, where the metric is about one.
        :param memcg: path of a memory cgroup below the root of their tree, where the metric is about one.
        :raises OSError: EINVAL an unknown name; EOPNOTSUPP this kernel does not tell.
        """
        ...

    def memcg_id(self, path: str) -> int:
        """The number of a memory cgroup, as ``/proc/kpagecgroup`` shows it.

        :param path: as above, just as the kernel writes it.
        :raises OSError: ENOENT there is none.
        """
        ...

    def cgroup_processes(self, path: str) -> tuple[int, ...]:
        """Numbers of the processes of a control group of the second version and of those below, ascending.

        This process itself is left out.

        :param path: below the root of their tree, as ``/proc/PID/cgroup`` has it.
        :raises OSError: ENOENT there is none.
        """
        ...
