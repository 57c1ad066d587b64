# SPDX-License-Identifier: GPL-2.0-only
"""Physical memory through a helper process, which reads all processes: see :mod:`kdamon.mm.apart`."""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from kdamon.arrays import Indexes, Mask, U64Array
from kdamon.mm import UNKNOWN, Answers, Owner, PageFilter
from kdamon.mm.apart.objects import Apart, HeldUpError
from kdamon.mm.proc.process_files import birth_of, user_of
from kdamon.mm.sampling.frames import LinuxFrames, say_left_out
from kdamon.mm.sampling.physical import MemoryTask

__all__ = ["MemoryApart"]

log = logging.getLogger("kdamon")

#: Processes of one user that may block a helper, before no process of that user is read any more.
_OF_USER: Final = 3
#: Updates that are begun, each without the process that blocked the one before.
_ATTEMPTS: Final = 10
#: The module that the helper process loads.
_SERVICE: Final = "kdamon.mm.linux.memory_service"


class _Owner:
    """The address space that the helper has, see :class:`kdamon.mm.Owner`."""

    def __init__(self, act: Callable[..., U64Array]) -> None:
        self._act = act

    def advise(self, action: str, ranges: U64Array) -> U64Array:
        """See :meth:`kdamon.mm.Owner.advise`."""
        return self._act("advise", action, ranges)

    def migrate(self, ranges: U64Array, dests: Sequence[tuple[int, int]]) -> U64Array:
        """See :meth:`kdamon.mm.Owner.migrate`."""
        return self._act("migrate", ranges, dests)

    def page_filter(self, ranges: U64Array, filters: Sequence[PageFilter], default_reject: bool) -> U64Array:
        """See :meth:`kdamon.mm.Owner.page_filter`."""
        return self._act("page_filter", ranges, filters, default_reject)


class MemoryApart(MemoryTask):
    """Physical memory; implements :class:`kdamon.mm.PhysicalMemory`.

    A process that blocks the helper is left out from then on: its mappings are unknown.

    :param primitive: as for :class:`kdamon.mm.linux.memory_service.MemoryService`.
    :param frames: answers what is known without reading any process; becomes this object's.
    """

    def __init__(self, primitive: str, frames: LinuxFrames) -> None:
        self._primitive = primitive
        self._frames = frames
        self._lock = threading.Lock()
        self._helper: Apart | None = None
        #: The addresses of the sample under way.
        self._begun: U64Array | None = None
        self._cpu_s = 0.0
        self._left_out: dict[int, int] = {}
        self._held_up: Counter[int] = Counter()
        self._said = ""

    @property
    def cpu_s(self) -> float:
        """CPU time of the helper processes, seconds."""
        helper = self._helper
        return self._cpu_s + (0.0 if helper is None else helper.cpu_s)

    def put(self) -> None:
        """See :meth:`kdamon.mm.Task.put`."""
        with self._lock:
            self._drop()
            self._frames.close()

    def _drop(self) -> None:
        if self._helper is not None:
            self._helper.close()
            self._cpu_s += self._helper.cpu_s
            self._helper = None

    def _call(self, method: str, *arguments: Any) -> Any:
        """The answer of the helper; None where a process blocked it, or too many helpers are blocked."""
        with self._lock:
            try:
                if self._helper is None:
                    users = frozenset(user for user, count in self._held_up.items() if user and count >= _OF_USER)
                    self._helper = Apart(_SERVICE, "MemoryService", self._primitive, self._left_out, users)
                found = self._helper.call(method, *arguments)
                self._said = ""
                return found
            except HeldUpError as error:
                self._drop()
                self._leave_out(error.pid)
            except OSError as error:
                if self._helper is not None and self._helper.closed:
                    self._drop()
                elif error.errno != errno.EBUSY:
                    raise
                if self._said != error.strerror:
                    self._said = error.strerror or ""
                    log.warning("physical memory is unknown for now: %s", self._said)
            return None

    def _leave_out(self, pid: int) -> None:
        try:
            self._left_out[pid], user = birth_of(pid), user_of(pid)
        except OSError:
            # It ended, or no process was it.
            return
        self._held_up[user] += 1
        say_left_out(pid)
        if user and self._held_up[user] == _OF_USER:
            log.warning("physical memory: other processes of user %d are not read any more either", user)

    def update(self) -> None:
        """See :meth:`kdamon.mm.PhysicalMemory.update`."""
        for _ in range(_ATTEMPTS):
            if self._call("update") or self._said:
                return

    def begin_update(self) -> None:
        """See :meth:`kdamon.mm.PhysicalMemory.begin_update`."""
        self._call("begin_update")

    def known(self) -> tuple[int, int]:
        """See :meth:`kdamon.mm.PhysicalMemory.known`."""
        return self._call("known") or (0, self._frames.reachable())

    def ram(self) -> U64Array:
        """See :meth:`kdamon.mm.PhysicalMemory.ram`."""
        return self._frames.ram()

    def begin_sample(self, addrs: U64Array) -> None:
        """See :meth:`kdamon.mm.Samples.begin_sample`."""
        self._begun = addrs if self._call("begin_sample", addrs) else None

    def end_sample(self, addrs: U64Array) -> Answers:
        """See :meth:`kdamon.mm.Samples.end_sample`."""
        begun, self._begun = self._begun, None
        answers: Answers | None = self._call("end_sample") if begun is addrs else None
        return np.full(len(addrs), UNKNOWN, np.uint8) if answers is None else answers

    def page_match(self, addrs: U64Array, filters: Sequence[PageFilter], answers: Answers | None = None) -> Mask:
        """See :meth:`kdamon.mm.Samples.page_match`."""
        matches: Mask | None = self._call("page_match", addrs, filters, answers)
        return np.zeros((len(filters), len(addrs)), np.bool_) if matches is None else matches

    def node_mem(self, ranges: U64Array) -> dict[int, int]:
        """See :meth:`kdamon.mm.PhysicalMemory.node_mem`."""
        return self._call("node_mem", ranges) or {}

    def owners(self, ranges: U64Array) -> Iterator[tuple[Owner, U64Array, Indexes]]:
        """See :meth:`kdamon.mm.PhysicalMemory.owners`."""
        self._call("begin_owners", ranges)
        while (found := self._call("next_owner")) is not None:
            yield _Owner(self._act), *found

    def _act(self, method: str, *arguments: Any) -> U64Array:
        found: U64Array | None = self._call("act", method, *arguments)
        if found is None:
            raise OSError(errno.EBUSY, "a process holds the lock of its memory; it is left out from now on")
        return found
