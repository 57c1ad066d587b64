# SPDX-License-Identifier: GPL-2.0-only
"""Which pages of an address space are in memory, anonymous or of files, and which in swap; by PAGEMAP_SCAN.

One call looks at so much that it ends soon, see :mod:`kdamon.mm.mmap_lock`. The zero page and the huge zero page are in
no memory of the process. Pages of shared memory in swap do not show in page tables.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

import numpy as np

from kdamon.arrays import Mask, Records, U64Array
from kdamon.kernel import PMD_SIZE
from kdamon.mm.mmap_lock import CallSize, stays_locked
from kdamon.mm.proc.pagemap_scan import FILE, GUARD, PRESENT, SWAPPED, ZERO, PagemapScan
from kdamon.mm.ranges import NO_RANGES, in_order, inside, intersect, joined, subtract
from kdamon.mm.values import RESIDENT

__all__ = ["residency"]

#: Blocks that one call looks at: at first, and at most.
_FIRST: Final = 16
_MOST: Final = 512
#: Runs that one call finds at most.
_ROOM: Final = 1024
#: Bytes of anonymous mappings side by side from which on they have calls of their own: about what costs as much as one.
_LARGE: Final = 8 << 20
#: Seconds for which others wait for the lock of the process's memory, before that counts as held for ever.
_LOCKED: Final = 0.001


def residency(
    fd: int, wanted: U64Array, *, anon: U64Array = NO_RANGES, shared: U64Array = NO_RANGES
) -> Iterator[tuple[int, Records]]:
    """Look at all pages in ``wanted``, a call at a time.

    It ends early where the process ended, or holds the lock of its memory.

    :param fd: open /proc/PID/pagemap.
    :param wanted: user space addresses, ascending and disjoint ranges.
    :param anon: private mappings of no file.
    :param shared: shared mappings: pages there that are of no file are a device's, or the kernel's.
    :returns: for each call the address up to which it looked, and rows of :data:`kdamon.mm.RESIDENT`: runs of pages
        that are alike, in address order.
    :raises OSError: ENOTTY this kernel cannot say.
    """
    pieces, plain = _pieces(wanted, anon)
    if not len(pieces):
        return
    scans = {False: _scan(fd), True: _scan(fd, file=0)}
    sizes = {kind: CallSize(_FIRST, 1, _MOST) for kind in scans}
    # The last piece of each row of pieces of a kind.
    last_of = np.append(np.flatnonzero(plain[1:] != plain[:-1]), len(plain) - 1)
    row, at = 0, int(pieces[0, 0])
    while row < len(pieces):
        if stays_locked(fd, _LOCKED):
            return
        kind = bool(plain[row])
        # Small mappings side by side take one call.
        most = at + sizes[kind].now * PMD_SIZE
        last = max(row, int(np.searchsorted(pieces[:, 1], most, side="right")) - 1)
        last = min(last, int(last_of[np.searchsorted(last_of, row)]))
        end = min(int(pieces[last, 1]), most)
        try:
            runs, reached = scans[kind].runs(at, end)
        except ProcessLookupError:
            return
        sizes[kind].called(max(1, (reached - at) // PMD_SIZE))
        yield reached, _rows(runs, pieces[row : last + 1], shared)
        row = int(np.searchsorted(pieces[:, 1], reached, side="right"))
        at = max(reached, int(pieces[row, 0])) if row < len(pieces) else reached


def _pieces(wanted: U64Array, anon: U64Array) -> tuple[U64Array, Mask]:
    """``wanted``, divided where a large part is all anonymous, and which pieces are such.

    Whether a page is of a file, the kernel looks up in memory of its own, which takes most of the time of a call.
    """
    wanted = joined(wanted)
    anon = joined(anon)
    anon = joined(intersect(wanted, anon[anon[:, 1] - anon[:, 0] >= _LARGE]))
    if not len(anon):
        return wanted, np.zeros(len(wanted), np.bool_)
    pieces = in_order(anon, subtract(wanted, anon))
    return pieces, inside(anon, pieces[:, 0])


def _scan(fd: int, file: int = FILE) -> PagemapScan:
    categories = PRESENT | SWAPPED | ZERO | file
    scan = PagemapScan(fd, _ROOM, categories | GUARD)
    try:
        scan.runs(0, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Before Linux 6.15 there are no guard pages.
        return PagemapScan(fd, _ROOM, categories)
    return scan


def _rows(runs: U64Array, wanted: U64Array, shared: U64Array) -> Records:
    runs = runs[(runs[:, 2] & np.uint64(ZERO | GUARD)) == 0]
    if not len(runs):
        return np.empty(0, RESIDENT)
    shared = shared[(shared[:, 1] > runs[0, 0]) & (shared[:, 0] < runs[-1, 1])]
    if len(shared):
        devices = intersect(runs[(runs[:, 2] & np.uint64(PRESENT | FILE)) == PRESENT, :2], shared)
        wanted = subtract(wanted, devices) if len(devices) else wanted
    places, kinds = _cut(runs, wanted)
    rows = np.zeros(len(places), RESIDENT)
    rows["start"], rows["end"] = places.T
    sizes = places[:, 1] - places[:, 0]
    there, file = (kinds & np.uint64(PRESENT)) != 0, (kinds & np.uint64(FILE)) != 0
    rows["anon"], rows["file"], rows["swapped"] = sizes * (there & ~file), sizes * (there & file), sizes * ~there
    return rows


def _cut(runs: U64Array, wanted: U64Array) -> tuple[U64Array, U64Array]:
    """The parts of ``runs`` in ``wanted``, and their categories."""
    around = wanted[np.minimum(np.searchsorted(wanted[:, 1], runs[:, 0], side="right"), len(wanted) - 1)]
    if ((around[:, 0] <= runs[:, 0]) & (runs[:, 1] <= around[:, 1])).all():
        return runs[:, :2], runs[:, 2]
    places = intersect(runs[:, :2], wanted)
    return places, runs[np.searchsorted(runs[:, 1], places[:, 0], side="right"), 2]
