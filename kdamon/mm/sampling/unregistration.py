# SPDX-License-Identifier: GPL-2.0-only
"""Mappings are let go in steps, because the kernel visits their pages while the process can map nothing.

A part of :mod:`kdamon.mm.sampling.protection`. A step cuts a mapping in two, and the kernel joins the two when the rest
follows.
"""

from __future__ import annotations

import os

import numpy as np
from attrs import frozen

from kdamon.arrays import U64Array
from kdamon.kernel import PMD_SIZE
from kdamon.mm.proc.pagemap import Pagemap
from kdamon.mm.ranges import intersect
from kdamon.mm.sampling.shared_memory import PIECE, make_writable, present_runs
from kdamon.mm.sampling.uffd import Pages, Userfaultfd

__all__ = ["Unregistration"]


@frozen
class Unregistration:
    """Unregisters mappings of one process.

    :ivar pid: the process.
    :ivar pagemap: open /proc/PID/pagemap.
    :ivar table: its pages.
    :ivar userfaultfd: what they are registered with.
    """

    pid: int
    pagemap: int
    table: Pages
    userfaultfd: Userfaultfd

    def unregister(self, registered: U64Array, shared: U64Array) -> None:
        """Unregister mappings block by block where pages are, and spare the process the faults of it.

        :param registered: the mappings, in address order, shape (n, 2).
        :param shared: the parts of them that are shared memory with faults of that kind: the kernel takes the right to
            write from pages whose protection it takes off.
        :raises OSError: the process ended.
        """
        rest = np.ones(len(registered), dtype=np.bool_)
        for blocks in Pagemap(self.pagemap).groups(registered):
            parts = intersect(registered, blocks)
            shared = self._unregister_shared(intersect(parts, shared), shared)
            # From the beginning of each mapping: parts of it that went before cost nothing, and holes little.
            at = np.searchsorted(registered[:, 0], parts[:, 0], side="right") - 1
            self.userfaultfd.unregister(np.stack((registered[at, 0], parts[:, 1]), axis=1))
            rest[at[parts[:, 1] == registered[at, 1]]] = False
        self.userfaultfd.unregister(registered[rest])

    def _unregister_shared(self, parts: U64Array, memory: U64Array) -> U64Array:
        """Let ``parts`` of blocks in ``memory`` go; returns of which memory that is worth while from now on."""
        huge = self.table.huge(parts[:, 0] & ~np.uint64(PMD_SIZE - 1)) != 0
        for (start, end), whole in zip(parts.tolist(), huge.tolist(), strict=True):
            for first in range(start, end, PMD_SIZE if whole else PIECE):
                last = min(first + (PMD_SIZE if whole else PIECE), end)
                runs = present_runs(self.pagemap, first, last)
                # Nothing but this comes in between: meanwhile each write faults.
                self.userfaultfd.unregister(np.array([[first, last]], dtype=np.uint64))
                if not os.pread(self.pagemap, 8, 0) or not make_writable(self.pid, runs):
                    return memory[:0]
        return memory
