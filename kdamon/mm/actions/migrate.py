# SPDX-License-Identifier: GPL-2.0-only
"""Migration of another process's pages between NUMA nodes: move_pages(2) in batches (``mm/migrate.c``).

A page counts as migrated when it is on the wanted node afterwards and was on another one before. Pages that other
processes map, too, stay where they are, as do pages that the kernel cannot move or finds no room for.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from kdamon.arrays import I32Array, Indexes, U64Array
from kdamon.kernel import PAGE_SHIFT
from kdamon.lib.rights import OF_PROCESS, refusal
from kdamon.lib.syscalls import NR_MOVE_PAGES, syscall
from kdamon.mm import ranges
from kdamon.mm.mmap_lock import CallSize, held
from kdamon.mm.proc.kpageflags import shared_folios
from kdamon.mm.proc.pagemap import Pagemap, frames, present
from kdamon.mm.proc.process_files import ProcessFiles

__all__ = ["Migration", "choose_nodes", "interleave_index", "memory_nodes", "page_nodes"]

#: Only pages that no other process maps.
#: Deviation: docs/deviations.md#shared-pages-do-not-migrate
_MPOL_MF_MOVE: Final = 2
_PAGE_SHIFT: Final = np.uint64(PAGE_SHIFT)
#: Pages (or first pages of folios) of one call: the lock is taken for each 16 at most, but again and again.
_PAGES: Final = 128
_MOST_PAGES: Final = 4096

#: A node for each page, or a negative errno.
Nodes = I32Array


def memory_nodes() -> frozenset[int]:
    """The NUMA nodes that have memory; none where the kernel knows no nodes."""
    try:
        text = Path("/sys/devices/system/node/has_memory").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return frozenset()
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def interleave_index(addrs: U64Array, starts: U64Array, offsets: U64Array, orders: U64Array) -> U64Array:
    """The numbers of folios by which they are spread over nodes (``damos_va_migrate_dests_add()``).

    :param addrs: of one page of each folio, bytes, shape (n,).
    :param starts: where their mappings begin, bytes, shape (n,).
    :param offsets: the offsets of the mappings, in pages from the start of the file (of anonymous memory: of the
        address space), shape (n,).
    :param orders: binary logarithms of the folios' numbers of pages, shape (n,).
    """
    return (offsets >> orders) + ((addrs - starts) >> (_PAGE_SHIFT + orders))


def choose_nodes(index: U64Array, dests: Sequence[tuple[int, int]]) -> Nodes:
    """The node of each folio: they take turns in proportion to the weights.

    :param index: see :func:`interleave_index`, shape (n,).
    :param dests: (node, weight) of each destination.
    :returns: nodes; -1 for all when the weights are 0.
    """
    # Deviation: docs/deviations.md#weights-of-destinations
    bounds = np.cumsum([weight for _, weight in dests], dtype=np.uint64)
    if not len(dests) or not bounds[-1]:
        return np.full(len(index), -1, dtype=np.int32)
    nodes = np.array([node for node, _ in dests], dtype=np.int32)
    return nodes[np.searchsorted(bounds, index % bounds[-1], side="right")]


def page_nodes(pid: int, addrs: U64Array) -> Nodes:
    """On which node the page at each of ``addrs`` is, a negative errno where there is none.

    :raises OSError: EPERM without ptrace access; ESRCH no such process; ENOSYS no NUMA.
    """
    return _move_pages(pid, addrs, None)


def _move_pages(pid: int, addrs: U64Array, nodes: Nodes | None) -> Nodes:
    """Move pages, or only look where they are; returns the status of each."""
    pages = np.ascontiguousarray(addrs, dtype=np.uint64)
    # The kernel may stop early; the node of the remaining pages is unknown.
    status = np.full(len(pages), -errno.EAGAIN, dtype=np.int32)
    wanted = None if nodes is None else np.ascontiguousarray(nodes, dtype=np.int32)
    size = CallSize(_PAGES, _PAGES, _MOST_PAGES)
    done = 0
    while done < len(pages):
        count = min(size.now, len(pages) - done)
        with held:
            result = syscall(
                NR_MOVE_PAGES,
                pid,
                count,
                ctypes.c_void_p(pages[done:].ctypes.data),
                ctypes.c_void_p(None if wanted is None else wanted[done:].ctypes.data),
                ctypes.c_void_p(status[done:].ctypes.data),
                _MPOL_MF_MOVE,
            )
        if result < 0:
            raise OSError(-result, f"move_pages(): {os.strerror(-result).lower()}")
        size.called(count)
        done += count
    return status


class Migration:
    """Migrates pages of one address space.

    :param files: of the address space; stays the caller's.
    :param pagemap: its pages.
    """

    def __init__(self, files: ProcessFiles, pagemap: Pagemap) -> None:
        self._files = files
        self._pagemap = pagemap

    def apply(self, wanted: U64Array, dests: Sequence[tuple[int, int]]) -> Iterator[U64Array]:
        """Migrate the mapped pages in ``wanted``, at most a gibibyte at each step.

        :param dests: (node, weight) of each destination.
        :returns: migrated bytes of each range, step by step, shape (n,).
        :raises OSError: see :meth:`kdamon.mm.AddressSpace.migrate`.
        """
        _check(dests)
        if not self._files.alive():
            return
        # The link leads to /proc/PID/pagemap.
        pid = int(os.readlink(f"/proc/self/fd/{self._files.pagemap}").split("/")[-2])
        mappings = self._files.mappings.now()
        # Of anonymous memory no offset is shown: it is that of its address unless it was moved.
        firsts = np.where(mappings.files, mappings.offsets, mappings.ranges[:, 0]) >> _PAGE_SHIFT
        for blocks in self._pagemap.groups(ranges.intersect(wanted, mappings.ranges)):
            pages = self._pagemap.pages(blocks)
            entries = self._pagemap.entries(blocks)
            here = present(entries) & ranges.inside(wanted, pages)
            if not here.any():
                continue
            pages = pages[here]
            first, folio, orders = _folios(frames(entries[here]))
            rows = np.searchsorted(mappings.ranges[:, 0], pages[first], side="right") - 1
            index = interleave_index(pages[first], mappings.ranges[rows, 0], firsts[rows], orders)
            migrated = self._migrate(pid, pages, (first, folio), choose_nodes(index, dests))
            if not self._files.alive():
                return
            yield ranges.overlaps(wanted, ranges.of_pages(migrated))

    def _migrate(self, pid: int, pages: U64Array, folios: tuple[Indexes, Indexes], nodes: Nodes) -> U64Array:
        """Migrate folios to ``nodes``, one for each; returns those of ``pages`` that were."""
        first, folio = folios
        try:
            before = page_nodes(pid, pages)
            move = (before[first] >= 0) & (before[first] != nodes) & (nodes >= 0)
            if not move.any() or not self._files.alive():
                return pages[:0]
            _move_pages(pid, pages[first][move], nodes[move])
            after = page_nodes(pid, pages)
        except ProcessLookupError:
            return pages[:0]
        except OSError as error:
            raise _explained(error) from error
        wanted = nodes[folio]
        return pages[(after == wanted) & (before != wanted) & (before >= 0)]


def _folios(pfns: U64Array) -> tuple[Indexes, Indexes, U64Array]:
    """The folios of page frames: the first row of each, the folio of each row, and the folios' orders."""
    if not pfns.any():
        raise refusal("the numbers of page frames, for migration, need", "seeing them", "CAP_SYS_ADMIN")
    found = shared_folios().table(pfns)
    _, first, folio = np.unique(found.heads, return_index=True, return_inverse=True)
    return first, folio.reshape(-1), np.log2(found.pages[first]).astype(np.uint64)


def _check(dests: Sequence[tuple[int, int]]) -> None:
    """Refuse nodes that have no memory.

    Kernel: such pages stay, without an error. Here: it is an error, because the destination is a mistake.
    (docs/deviations.md#destinations-without-memory)
    """
    nodes = memory_nodes()
    if not nodes:
        raise OSError(errno.EOPNOTSUPP, "this kernel knows no NUMA nodes to migrate between; use another action")
    for node, _ in dests:
        if node not in nodes:
            known = ", ".join(map(str, sorted(nodes)))
            raise OSError(errno.EINVAL, f"NUMA node {node} has no memory; name another one ({known})")


def _explained(error: OSError) -> OSError:
    if error.errno == errno.EPERM:
        return refusal(
            "migration of this process's memory needs",
            "move_pages()",
            "CAP_SYS_PTRACE",
            where=OF_PROCESS,
            otherwise="use another action",
        )
    if error.errno == errno.ENOSYS:
        return OSError(errno.EOPNOTSUPP, "this kernel has no move_pages(), so pages stay; use another action")
    if error.errno in {errno.EACCES, errno.ENODEV}:
        return OSError(error.errno, "the process may not use that NUMA node (cpuset); name another one")
    return error
