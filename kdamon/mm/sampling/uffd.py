# SPDX-License-Identifier: GPL-2.0-only
"""Protection by userfaultfd(2) and PAGEMAP_SCAN: the kernel resolves the faults (``fs/userfaultfd.c``).

There are two modes. With WP_ASYNC writes fault. A page is armed with PAGEMAP_SCAN, which protects it only if it is
present and no part of a huge page, all under one lock. UFFDIO_WRITEPROTECT would allocate page tables in the target for
a page that is not there, and split a huge one.

With RWP_ASYNC (Linux 7.3) reads and writes fault. Pages are armed with UFFDIO_RWPROTECT, which leaves out what is not
there, keeps huge pages of anonymous memory whole if it is given all of each, and splits those of shared memory
(``mm/mprotect.c: pgtable_split_needed()``). A mapping has one of the two modes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import itertools
import logging
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from kdamon.arrays import I64Array, Mask, U64Array
from kdamon.kernel import PAGE_SIZE, PMD_SIZE
from kdamon.lib.rights import needs_linux
from kdamon.lib.syscalls import NR_IOCTL, NR_USERFAULTFD, checked, syscall
from kdamon.mm.mmap_lock import CallSize, held
from kdamon.mm.syscall_batch import RESULT, WORDS, make_calls, runner

__all__ = [
    "ACCESSED",
    "FILE",
    "HUGE",
    "PRESENT",
    "SWAPPED",
    "WPALLOWED",
    "WRITTEN",
    "ZERO",
    "Batch",
    "Pages",
    "Userfaultfd",
    "has_userfaultfd",
    "reads_fault",
    "userfaultfds",
]

log = logging.getLogger("kdamon")


#: Categories of pages (``enum page_type`` of PAGEMAP_SCAN).
WPALLOWED: Final = 1 << 0
WRITTEN: Final = 1 << 1
FILE: Final = 1 << 2
PRESENT: Final = 1 << 3
SWAPPED: Final = 1 << 4
ZERO: Final = 1 << 5
HUGE: Final = 1 << 6
#: In mappings where reads fault: the page is there and not protected. Kernels without RWP refuse a mask with it.
ACCESSED: Final = 1 << 9


_USER_MODE_ONLY: Final = 1
_API: Final = 0xAA
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFDIO_UNREGISTER: Final = 0x8010AA01
_UFFDIO_WRITEPROTECT: Final = 0xC018AA06
_UFFDIO_RWPROTECT: Final = 0xC018AA09
_FEATURE_WP_ASYNC: Final = 1 << 15
#: UFFD_FEATURE_RWP, UFFD_FEATURE_RWP_ASYNC.
_FEATURES_RWP: Final = 1 << 17 | 1 << 18
_MODE_WP: Final = 2
_MODE_RWP: Final = 8
#: UFFDIO_RWPROTECT_MODE_RWP.
_PROTECTED: Final = 1
#: What UFFDIO_REGISTER reports of mappings that are not hugetlbfs: UFFDIO_ZEROPAGE works there.
_ZEROPAGE_WORKS: Final = 1 << 4

_PAGEMAP_SCAN: Final = 0xC0606610
_WP_MATCHING: Final = 1

#: Rows that there is room for besides those that are asked for.
_SPARE: Final = 16

#: Calls that are made together while the target cannot map anything: to begin with, and at most.
_TOGETHER: Final = 8
_TOGETHER_AT_MOST: Final = 256


class Batch:
    """System calls of up to three arguments, made in one call without Python in between; other threads run.

    :param number: the system call's number, and its first two arguments, the same for all.
    """

    def __init__(self, number: int, first: int, second: int) -> None:
        self._fixed = (number, first, second)
        self._run = runner()
        self._address = 0
        self._calls = np.zeros((0, WORDS), dtype=np.uint64)
        self._results: I64Array = self._calls[:, RESULT].view(np.int64)

    def prepare(self, third: U64Array) -> None:
        """Get ready for calls whose last argument is one of ``third``, shape (n,)."""
        self._calls = np.zeros((len(third), WORDS), dtype=np.uint64)
        self._calls[:, :3] = self._fixed
        self._calls[:, 3] = third
        self._results = self._calls[:, RESULT].view(np.int64)
        self._address = self._calls.ctypes.data

    def run(self, first: int, end: int) -> I64Array:
        """Make the calls from ``first`` to before ``end``.

        :returns: what each returned, shape (n,): negative ones are errno. A view, good until the next run.
        """
        if self._run is None:
            make_calls(self._calls[first:end])
        elif first < end:
            self._run(self._address + self._calls.itemsize * WORDS * first, end - first, end - first)
        return self._results[first:end]


class _Arguments:
    """Argument structures of a batch of ioctl(2) calls, as rows of words.

    :param words: a structure's fields.
    :ivar rows: those that there is room for, shape (n, fields).
    """

    def __init__(self, fd: int, request: int, words: tuple[int, ...]) -> None:
        self._batch = Batch(NR_IOCTL, fd, request)
        self._words = words
        self.rows = np.empty((0, len(words)), dtype=np.uint64)
        self._together = CallSize(_TOGETHER, _TOGETHER, _TOGETHER_AT_MOST)

    def reserve(self, count: int) -> bool:
        """Make room for ``count`` calls; returns whether :attr:`rows` are new ones."""
        if count <= len(self.rows):
            return False
        # Regions are split and merged: their number is seldom the same.
        self.rows = np.empty((count + count // 2 + _SPARE, len(self._words)), dtype=np.uint64)
        self.rows[:] = self._words
        self._batch.prepare(_places(self.rows))
        return True

    def run(self, count: int) -> I64Array:
        """Make the calls of the first ``count`` rows, see :meth:`Batch.run`."""
        return self._batch.run(0, count)

    def run_apart(self, count: int) -> I64Array:
        """As :meth:`run`, of calls that take long: with pauses, in which the target can map memory."""
        results = np.empty(count, dtype=np.int64)
        at = 0
        while at < count:
            end = min(at + self._together.now, count)
            with held:
                results[at:end] = self._batch.run(at, end)
            self._together.called(end - at)
            at = end
        return results


def _places(rows: U64Array) -> U64Array:
    """The addresses of ``rows``, shape (n,)."""
    return np.uint64(rows.ctypes.data) + np.arange(len(rows), dtype=np.uint64) * np.uint64(rows.strides[0])


class _Scan(_Arguments):
    """PAGEMAP_SCAN of single pages.

    :param flags: and three masks of categories: inverted, required, returned.
    :ivar found: what each found, as ``struct page_region``, shape (n, 3).
    """

    def __init__(self, pagemap: int, flags: int, inverted: int, required: int, returned: int) -> None:
        # Size, flags, start, end, end of the walk, where to write, room there, limit, and four masks of categories:
        # inverted, required, any-of, returned.
        super().__init__(pagemap, _PAGEMAP_SCAN, (96, flags, 0, 0, 0, 0, 1, 0, inverted, required, 0, returned))
        self.found = np.empty((0, 3), dtype=np.uint64)

    def of(self, pages: U64Array, size: int = PAGE_SIZE, *, apart: bool = False) -> Mask:
        """Which of ``pages``, shape (n,), of ``size`` bytes each, are found."""
        count = len(pages)
        if self.reserve(count):
            self.found = np.empty((len(self.rows), 3), dtype=np.uint64)
            self.rows[:, 5] = _places(self.found)
        rows = self.rows
        rows[:count, 2] = pages
        np.add(pages, np.uint64(size), out=rows[:count, 3])
        return (self.run_apart(count) if apart else self.run(count)) == 1

    def categories(self, pages: U64Array, size: int = PAGE_SIZE, *, apart: bool = False) -> U64Array:
        """The categories of ``pages``, 0 for those that are not found, shape (n,)."""
        found = self.of(pages, size, apart=apart)
        return self.found[: len(pages), 2] * found


class Userfaultfd:
    """A userfaultfd of some address space, with asynchronous protection as its only feature.

    All protection goes with the last copy of the file descriptor.

    :param fd: a new one with this API chosen; becomes this object's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._register = _Arguments(fd, _UFFDIO_REGISTER, (0, 0, _MODE_WP, 0))
        self._register_reads = _Arguments(fd, _UFFDIO_REGISTER, (0, 0, _MODE_RWP, 0))
        self._unregister = _Arguments(fd, _UFFDIO_UNREGISTER, (0, 0))
        self._protect = _Arguments(fd, _UFFDIO_WRITEPROTECT, (0, PAGE_SIZE, 0))
        self._guard = _Arguments(fd, _UFFDIO_RWPROTECT, (0, 0, 0))
        #: Whether reads can fault, too: see :meth:`register_reads`.
        self.tracks_reads = _features(fd) & _FEATURES_RWP == _FEATURES_RWP
        #: Whether another userfaultfd had some of the mappings that :meth:`register` was called for.
        self.contested = False

    @classmethod
    def own(cls) -> Userfaultfd:
        """One of this process's own memory; OSError as userfaultfd(2), EOPNOTSUPP the kernel has no WP_ASYNC."""
        fd = checked(syscall(NR_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY), "userfaultfd()")
        try:
            try:
                fcntl.ioctl(fd, _UFFDIO_API, struct.pack("<QQQ", _API, _FEATURE_WP_ASYNC | _FEATURES_RWP, 0))
            except OSError:
                fcntl.ioctl(fd, _UFFDIO_API, struct.pack("<QQQ", _API, _FEATURE_WP_ASYNC, 0))
        except OSError as error:
            os.close(fd)
            raise OSError(
                errno.EOPNOTSUPP,
                f"the kernel's userfaultfd knows no asynchronous write protection; {needs_linux('6.7')}",
            ) from error
        return cls(fd)

    def register(self, ranges: U64Array) -> tuple[Mask, Mask]:
        """Register the mappings ``ranges`` (start and end, bytes, shape (n, 2)), so that their pages can be protected.

        :returns: which are registered now, and which of these are hugetlbfs, each of shape (n,). Others are special
            ([vdso]), read-only for good, another userfaultfd's, or gone.
        :raises OSError: ESRCH the address space ended.
        """
        return self._registered(self._register, ranges)

    def register_reads(self, ranges: U64Array) -> tuple[Mask, Mask]:
        """Register the mappings ``ranges``, as :meth:`register`, so that reads and writes of their pages can fault.

        Registered again, they stay what they are; the kernel refuses a part of one in the other mode (EBUSY).

        :returns: as for :meth:`register`. Others are ordinary files, without access (PROT_NONE), or as for that.
        :raises OSError: ESRCH the address space ended.
        """
        return self._registered(self._register_reads, ranges)

    def _registered(self, arguments: _Arguments, ranges: U64Array) -> tuple[Mask, Mask]:
        results = _on(arguments, ranges, apart=True)
        registered: Mask = results == 0
        self.contested |= bool((results == -errno.EBUSY).any())
        # The kernel says ENOMEM of an address space that ended, as of a single mapping that it has no room to change.
        if (results == -errno.ENOMEM).any() and not self.alive():
            raise ProcessLookupError(errno.ESRCH, "the address space of a userfaultfd ended")
        offered = arguments.rows[: len(ranges), 3]
        return registered, registered & ((offered & np.uint64(_ZEROPAGE_WORKS)) == 0)

    def protect(self, ranges: U64Array) -> I64Array:
        """Let the next read or write of each page in ``ranges`` (start and end, bytes, shape (n, 2)) fault.

        A range that has a huge page in part splits it, as does any that has one of shared memory. Pages that are not
        there are left out. A call flushes the range from the TLBs.

        :returns: 0 for each that is protected, or a negative errno, shape (n,): ENOENT it is not all in mappings that
            :meth:`register_reads` registered, EINVAL a part of a hugetlbfs page, ESRCH the address space ended. A
            view, good until the next call.
        """
        return self._set_guard(ranges, _PROTECTED)

    def unprotect(self, ranges: U64Array) -> I64Array:
        """Undo :meth:`protect`, as for it; a range may have pages that are not protected, but no part of a huge one."""
        return self._set_guard(ranges, 0)

    def _set_guard(self, ranges: U64Array, mode: int) -> I64Array:
        self._guard.reserve(len(ranges))
        self._guard.rows[: len(ranges), 2] = mode
        return _on(self._guard, ranges, apart=False)

    def alive(self) -> bool:
        """Return whether some process still lives in the address space."""
        self._protect.reserve(1)
        # Nothing is registered there.
        self._protect.rows[0, 0] = 0
        return int(self._protect.run(1)[0]) != -errno.ESRCH

    def disarm(self, pages: U64Array) -> None:
        """Take the protection off ``pages`` (their addresses, shape (n,)).

        Only of pages that :meth:`Pages.armed` returns: the kernel would split a huge page.
        """
        self._protect.reserve(len(pages))
        self._protect.rows[: len(pages), 0] = pages
        self._protect.run(len(pages))

    def unregister(self, ranges: U64Array) -> None:
        """Unregister ``ranges`` (start and end, bytes, shape (n, 2)); none of their pages stays protected.

        The kernel visits every page of a range while the target cannot map anything: 2 MiB in some tens of
        microseconds. A huge page that one ends in is split.
        """
        _on(self._unregister, ranges, apart=True)

    def close(self) -> None:
        """Give the file descriptor back; nothing stays protected.

        That visits all pages of all mappings that are still registered at once, see :meth:`unregister`.
        """
        os.close(self._fd)


def _on(arguments: _Arguments, ranges: U64Array, *, apart: bool) -> I64Array:
    """The results of calls on ``ranges``, whose structures begin with a start and a length."""
    arguments.reserve(len(ranges))
    rows = arguments.rows[: len(ranges)]
    rows[:, 0] = ranges[:, 0]
    rows[:, 1] = ranges[:, 1] - ranges[:, 0]
    return arguments.run_apart(len(ranges)) if apart else arguments.run(len(ranges))


def _features(fd: int) -> int:
    """The features that were chosen for a userfaultfd; 0 where /proc does not show them."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"API:"):
                return int(line.split(b":")[2], 16)
    return 0


@functools.cache
def reads_fault() -> bool:
    """Return whether this kernel lets reads fault: tried on a page of this process, once."""
    try:
        userfaultfd = Userfaultfd.own()
    except OSError:
        return False
    with contextlib.closing(userfaultfd), mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        with contextlib.suppress(OSError):
            page.madvise(mmap.MADV_NOHUGEPAGE)
        page[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        ranges = np.array([[address, address + PAGE_SIZE]], dtype=np.uint64)
        if not userfaultfd.tracks_reads or not userfaultfd.register_reads(ranges)[0].all():
            return False
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            table = Pages(pagemap.fileno(), reads=True)
            seen = []
            if userfaultfd.protect(ranges)[0] == 0:
                seen.append(int(table.categories(ranges[:, 0])[0]))
                seen.append(page[0])
                seen.append(int(table.categories(ranges[:, 0])[0]))
    return seen == [PRESENT, 1, PRESENT | ACCESSED]


def userfaultfds(pid: int) -> Iterator[bool]:
    """Whether each of the file descriptors that process ``pid`` holds is a userfaultfd."""
    directories = itertools.chain([f"/proc/{pid}/fd"], (f"/proc/{pid}/task/{tid}/fd" for tid in _threads(pid)))
    for directory in directories:
        none = True
        with contextlib.suppress(OSError), os.scandir(directory) as descriptors:
            for descriptor in descriptors:
                none = found = False
                with contextlib.suppress(OSError):
                    found = os.readlink(descriptor.path) == "anon_inode:[userfaultfd]"
                yield found
        if not none:
            return
        # A thread that ended has none; that may be the first one.


def _threads(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from os.listdir(f"/proc/{pid}/task")


def has_userfaultfd(pid: int) -> bool:
    """Return whether process ``pid`` holds a userfaultfd, perhaps with nothing registered yet."""
    return any(userfaultfds(pid))


class Pages:
    """Single pages of an address space, by PAGEMAP_SCAN.

    :param pagemap: open /proc/PID/pagemap; stays the caller's.
    :param reads: whether the kernel knows ACCESSED, see :func:`reads_fault`.
    """

    def __init__(self, pagemap: int, *, reads: bool = False) -> None:
        wanted = PRESENT | HUGE
        returned = WPALLOWED | WRITTEN | FILE | PRESENT | SWAPPED | ZERO | HUGE | (ACCESSED if reads else 0)
        self._arm = _Scan(pagemap, _WP_MATCHING, HUGE, wanted, PRESENT)
        alone = WRITTEN | HUGE
        self._armed = _Scan(pagemap, 0, alone, alone, PRESENT | SWAPPED)
        alone = ACCESSED | HUGE
        self._guarded = _Scan(pagemap, 0, alone, alone, PRESENT | SWAPPED)
        self._huge = _Scan(pagemap, 0, 0, HUGE, FILE | HUGE)
        self._registered = _Scan(pagemap, 0, 0, WPALLOWED, WPALLOWED)
        self._look = _Scan(pagemap, 0, 0, 0, returned)

    def arm(self, pages: U64Array) -> Mask:
        """Write-protect those of ``pages`` (addresses, shape (n,)) that are present, registered and not huge.

        :returns: which are protected now, shape (n,).
        """
        return self._arm.of(pages)

    def armed(self, pages: U64Array) -> Mask:
        """Which of ``pages`` are armed still, be they in memory or not; shape (n,)."""
        return self._armed.of(pages)

    def guarded(self, pages: U64Array) -> Mask:
        """As :meth:`armed`, where reads fault: pages of mappings that were registered for that; shape (n,)."""
        return self._guarded.of(pages)

    def categories(self, pages: U64Array) -> U64Array:
        """The categories of ``pages``, 0 for those in no mapping, shape (n,).

        WPALLOWED is about the mapping, also where no page is there; WRITTEN says something with PRESENT and WPALLOWED.
        ACCESSED is of pages in mappings where reads fault, which have neither of those two.
        """
        return self._look.categories(pages)

    def registered(self, pages: U64Array) -> Mask:
        """Which of ``pages`` are in mappings that some userfaultfd has, be they there or not; shape (n,)."""
        return self._registered.of(pages, apart=True)

    def huge(self, blocks: U64Array) -> U64Array:
        """HUGE, and FILE if it is of one, for those of ``blocks`` that are a huge page, 0 for others, shape (n,).

        :param blocks: addresses of the places that huge pages can have, shape (n,).
        """
        return self._huge.categories(blocks, PMD_SIZE, apart=True)
