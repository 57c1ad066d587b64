# SPDX-License-Identifier: GPL-2.0-only
"""Physical memory inside a helper process (:mod:`kdamon.mm.linux.memory_apart` starts it and asks it)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kdamon.arrays import Indexes, U64Array
from kdamon.mm import Answers, Owner
from kdamon.mm.linux.machine import linux_machine
from kdamon.mm.proc.process_files import birth_of, user_of

__all__ = ["MemoryService"]


class MemoryService:
    """The object in the helper process of a :class:`kdamon.mm.linux.memory_apart.MemoryApart`.

    :param primitive: how accessed bits are read, see :func:`kdamon.mm.linux.machine.linux_machine`.
    :param left_out: processes that must not be read, by their numbers: when each began.
    :param users: whose processes are not.
    """

    def __init__(self, primitive: str, left_out: dict[int, int], users: frozenset[int]) -> None:
        self._left_out = left_out
        self._users = users
        self._memory = linux_machine(primitive).physical_memory_here(self._is_left_out)
        self._owners: Iterator[tuple[Owner, U64Array, Indexes]] = iter(())
        self._owner: Owner | None = None
        memory = self._memory
        self._begun: U64Array | None = None
        self.begin_update, self.known = memory.begin_update, memory.known
        self.page_match, self.node_mem = memory.page_match, memory.node_mem

    def _is_left_out(self, pid: int) -> bool:
        try:
            if pid in self._left_out and birth_of(pid) == self._left_out[pid]:
                return True
            return bool(self._users) and user_of(pid) in self._users
        except OSError:
            # It ended.
            return True

    def update(self) -> bool:
        """See :meth:`kdamon.mm.PhysicalMemory.update`; returns that it is done."""
        self._memory.update()
        return True

    def begin_sample(self, addrs: U64Array) -> bool:
        """See :meth:`kdamon.mm.Samples.begin_sample`; returns that it is begun."""
        self._memory.begin_sample(addrs)
        self._begun = addrs
        return True

    def end_sample(self) -> Answers | None:
        """See :meth:`kdamon.mm.Samples.end_sample`, of the array that it was begun with; None where none was."""
        return None if self._begun is None else self._memory.end_sample(self._begun)

    def begin_owners(self, ranges: U64Array) -> None:
        """See :meth:`kdamon.mm.PhysicalMemory.owners`."""
        self._owners = self._memory.owners(ranges)

    def next_owner(self) -> tuple[U64Array, Indexes] | None:
        """All of the next one but the address space; None for none."""
        self._owner, wanted, region = next(self._owners, (None, None, None))
        return None if wanted is None or region is None else (wanted, region)

    def act(self, method: str, *arguments: Any) -> U64Array:
        """Call a method of the last address space."""
        return getattr(self._owner, method)(*arguments)
