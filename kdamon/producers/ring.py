# SPDX-License-Identifier: GPL-2.0-only
"""Shared memory through which another process hands its access reports to kdamon; this is kdamon's side.

One producer has one ring: a page of counters, then a power of two of records. The producer alone writes ``head``,
``sent``, ``dropped`` and the records, kdamon alone writes ``tail``, and no lock is needed. ``docs/reports.md``
describes the layout; ``kdamon_report.h`` and :mod:`kdamon.producers.client` are the other side.

Whatever a producer writes anywhere in this memory, kdamon stays within it: it uses its own copy of the size and of
``tail``, reads ``head`` once, and looks at records only after they were copied out. Those of a producer that is not
trusted it copies by pread(2), which gives zeros for pages that were never written: a read of mapped memory, which is
some times as fast, would make the kernel allocate them, for kdamon.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import threading
from pathlib import Path
from typing import Final

import numpy as np

from kdamon.arrays import Mask, Records, U64Array
from kdamon.reports.record import REPORT_DTYPE

__all__ = [
    "CAPACITY",
    "CLOSED",
    "DROPPED",
    "HEAD",
    "HEADER_SIZE",
    "HELLO",
    "MAGIC",
    "MAX_CPU",
    "MAX_NODE",
    "REPLY",
    "SENT",
    "TAIL",
    "VERSION",
    "ReportRing",
    "fence",
    "map_ring",
    "own_report_path",
    "ring_size",
    "well_formed",
]

#: "kdamonRR" as the number that its bytes are on a little endian machine.
MAGIC: Final = int.from_bytes(b"kdamonRR", "little")
VERSION: Final = 1

#: Bytes before the first record.
HEADER_SIZE: Final = 4096

# The layout of the header, as indices of 64-bit words. Each side's counters have cache lines of their own, two lines
# apart because processors fetch lines in pairs.
#: Number of records, written once by kdamon.
CAPACITY: Final = 3
#: Records written since the beginning, by the producer.
HEAD: Final = 16
#: Reports that the producer wanted to send, and those of them that found no room.
SENT: Final = 17
DROPPED: Final = 18
#: Records read since the beginning, by kdamon.
TAIL: Final = 32
#: Not 0 once kdamon stopped to read.
CLOSED: Final = 33

#: Magic, version, header size, record size, reserved, capacity: the header's beginning.
_IDENTITY: Final = struct.Struct("<QIIIIQ")
#: A producer's hello: magic, version, wanted number of records (0: kdamon chooses).
HELLO: Final = struct.Struct("<QII")
#: kdamon's answer, with the memory's file descriptor: magic, version, errno, size in bytes, the producer's pid, 0.
REPLY: Final = struct.Struct("<QIiQiI")

#: Largest numbers of a CPU and a node that a record may name: more than any kernel is built for.
MAX_CPU: Final = 8191
MAX_NODE: Final = 1023

#: Records are judged so many at a time, so that they are still in the processor's cache the second time.
_JUDGED_AT_ONCE: Final = 8192

_MFD_NOEXEC_SEAL: Final = 8
_WRAP: Final = (1 << 64) - 1


_order = threading.Lock()


def own_report_path() -> Path:
    """The socket at which a kdamon of this user, not root, serves reports.

    A relative XDG_RUNTIME_DIR is invalid by its specification: it would depend on the working directory.
    """
    directory = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(directory if os.path.isabs(directory) else f"/run/user/{os.geteuid()}", "kdamon/reports")


def fence() -> None:
    """A full memory fence: order this thread's accesses to memory before it and after it.

    Python has no fence of its own, and x86 needs none here; elsewhere two rounds of a lock are one.
    """
    with _order:
        pass
    with _order:
        pass


def ring_size(capacity: int) -> int:
    """Bytes of a ring's memory."""
    return HEADER_SIZE + capacity * REPORT_DTYPE.itemsize


def map_ring(fd: int, capacity: int) -> tuple[mmap.mmap, U64Array, Records]:
    """Map a ring's memory: the mapping, the header's words, and the records as opaque bytes of shape (capacity,)."""
    memory = mmap.mmap(fd, ring_size(capacity))
    words = np.frombuffer(memory, np.uint64, HEADER_SIZE // 8)
    # A record as a whole is copied twenty times as fast as one field after the other.
    records = np.frombuffer(memory, f"V{REPORT_DTYPE.itemsize}", capacity, HEADER_SIZE)
    return memory, words, records


def _memfd_create() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("kdamon-reports", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Before Linux 6.3.
        return os.memfd_create("kdamon-reports", flags)


class ReportRing:
    """kdamon's end of one ring.

    :param capacity: number of records, a power of two.
    :param mapped: the producer is trusted not to make us allocate the memory.
    :raises OSError: ENOMEM, EMFILE, ENFILE.
    """

    def __init__(self, capacity: int, *, mapped: bool) -> None:
        if capacity <= 0 or capacity & (capacity - 1):
            raise ValueError(f"{capacity} records: the number must be a power of two")
        self.capacity = capacity
        #: Times that ``head`` made no sense.
        self.resyncs = 0
        #: Times that there was no room for another record.
        self.full = 0
        self._tail = 0
        self._records: Records | None = None
        #: To be handed to the producer. Sealed: a producer that truncated it would make kdamon die of SIGBUS.
        self.fd = _memfd_create()
        try:
            os.ftruncate(self.fd, ring_size(capacity))
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            if mapped:
                self._memory, self._words, self._records = map_ring(self.fd, capacity)
            else:
                self._memory = mmap.mmap(self.fd, HEADER_SIZE)
                self._words = np.frombuffer(self._memory, np.uint64)
        except BaseException:
            os.close(self.fd)
            raise
        _IDENTITY.pack_into(self._memory, 0, MAGIC, VERSION, HEADER_SIZE, REPORT_DTYPE.itemsize, 0, capacity)

    def waiting(self) -> int:
        """The number of records in it, at most its capacity."""
        return min((int(self._words[HEAD]) - self._tail) & _WRAP, self.capacity)

    def drain(self, limit: int) -> Records:
        """Take the oldest records out, at most ``limit``: a copy of :data:`REPORT_DTYPE`, shape (n,).

        A ``head`` that jumped back or beyond the capacity says nothing about which records are good: all are skipped,
        and :attr:`resyncs` counts.
        """
        head = int(self._words[HEAD])
        available = (head - self._tail) & _WRAP
        self.full += available == self.capacity
        if available > self.capacity:
            self.resyncs += 1
            self._advance(head)
            available = 0
        n = min(available, limit)
        out = np.empty(n, f"V{REPORT_DTYPE.itemsize}")
        if n:
            fence()
            at = self._tail & (self.capacity - 1)
            first = min(n, self.capacity - at)
            self._copy(at, out[:first])
            self._copy(0, out[first:])
            self._advance((self._tail + n) & _WRAP)
        return out.view(REPORT_DTYPE)

    def _copy(self, at: int, out: Records) -> None:
        """Fill ``out`` with records from number ``at`` on."""
        if self._records is not None:
            out[:] = self._records[at : at + len(out)]
            return
        offset = HEADER_SIZE + at * REPORT_DTYPE.itemsize
        rest = out.view(np.uint8)
        while len(rest):
            # Sealed against shrinking, the memory has no end before the last record.
            n = os.preadv(self.fd, [rest.data], offset)
            offset += n
            rest = rest[n:]

    def _advance(self, tail: int) -> None:
        fence()
        self._tail = tail
        self._words[TAIL] = tail

    def claimed(self) -> tuple[int, int]:
        """The producer's own counters, sent and dropped; kdamon only shows them."""
        return int(self._words[SENT]), int(self._words[DROPPED])

    def close(self) -> None:
        """Mark the ring as closed for the producer, and give the memory back."""
        self._words[CLOSED] = 1
        # The mapping cannot go while arrays look at it.
        del self._words, self._records
        self._memory.close()
        os.close(self.fd)


def well_formed(records: Records) -> tuple[Mask | None, bool]:
    """Return which ``records``, shape (n,), can be reports, None when all of them are; and whether all have one pid.

    Refused are: no bytes or a range that wraps around, a negative pid or tid, no accesses, a CPU or node that no
    kernel has (-1 is unknown), and a bool that is neither 0 nor 1.
    """
    good = np.empty(len(records), np.bool_)
    same = True
    first = int(records["pid"][0]) if len(records) else 0
    for at in range(0, len(records), _JUDGED_AT_ONCE):
        part = records[at : at + _JUDGED_AT_ONCE]
        addr, size = part["addr"], part["size"]
        ok = size - np.uint64(1) <= ~addr
        ok &= size != 0
        pid = part["pid"]
        same = same and bool((pid == first).all())
        if not same or first < 0:
            ok &= pid >= 0
        ok &= part["nr_accesses"] > 0
        ok &= (part["node_id"] + np.int32(1)).view(np.uint32) <= MAX_NODE + 1
        ok &= (part["cpu"] + np.int32(1)).view(np.uint32) <= MAX_CPU + 1
        ok &= part["tid"] >= 0
        ok &= part["write"].view(np.uint8) <= 1
        good[at : at + len(part)] = ok
    return None if good.all() else good, same
