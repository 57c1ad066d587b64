# SPDX-License-Identifier: GPL-2.0-only
"""Reporting accesses to a kdamon in another process: the Python counterpart of ``kdamon_report.h``.

>>> with ReportClient() as client:
...     client.report(report_array(2, pid=client.pid, addr=[0x1000, 0x2000], size=64))
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from kdamon.arrays import Records
from kdamon.names.labels import LONGEST
from kdamon.producers.naming import name_records
from kdamon.producers.ring import (
    CAPACITY,
    CLOSED,
    DROPPED,
    HEAD,
    HELLO,
    MAGIC,
    REPLY,
    SENT,
    TAIL,
    VERSION,
    fence,
    map_ring,
    own_report_path,
    ring_size,
)
from kdamon.reports.record import REPORT_DTYPE

__all__ = ["ReportClient", "kdamon_name", "report_paths"]

#: Records of a ring for one name.
_FEW: Final = 256

_TIMEVAL: Final = struct.Struct("@ll")
_FD: Final = struct.Struct("@i")


def report_paths() -> list[Path]:
    """Sockets at which a kdamon may serve: KDAMON_REPORTS alone if it is set, else this user's kdamon, then root's."""
    if path := os.environ.get("KDAMON_REPORTS"):
        return [Path(path)]
    system = Path("/run/kdamon/reports")
    if os.geteuid() == 0:
        return [system]
    return [own_report_path(), system]


class ReportClient:
    """A ring of our own at a kdamon; a context manager.

    One thread at a time may use it. Children must not use it after a fork: each opens its own. Only making the object
    waits for kdamon, no other call does.

    :param path: of kdamon's socket; the first of :func:`report_paths` that answers if None.
    :param capacity: reports that may be under way; rounded up to a power of two, and kdamon's choice if 0.
    :param patience: seconds to wait for a kdamon that does not answer.
    :raises OSError: ENOENT, ECONNREFUSED no kdamon serves there; ETIMEDOUT it does not answer; EPERM, EUSERS,
        EPROTONOSUPPORT it refuses; EPROTO it is no kdamon.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, capacity: int = 0, *, patience: float = 10.0
    ) -> None:
        self._connection = _connect([Path(path)] if path is not None else report_paths(), patience)
        try:
            # A refused producer may find the connection closed, and the reason in it.
            with contextlib.suppress(BrokenPipeError):
                self._connection.send(HELLO.pack(MAGIC, VERSION, capacity))
            reply, memory = _receive(self._connection, patience)
            try:
                self._map(reply, memory)
            finally:
                if memory is not None:
                    os.close(memory)
        except BaseException:
            _hang_up(self._connection)
            raise
        self._head = self._sent = self._dropped = 0

    def _map(self, reply: bytes, fd: int | None) -> None:
        if len(reply) != REPLY.size:
            raise OSError(errno.EPROTO, "the process at the socket of reports is no kdamon")
        magic, version, error, size, pid, _ = REPLY.unpack(reply)
        #: Our process as kdamon numbers it.
        self.pid: int = pid
        if error > 0:
            raise OSError(error, f"kdamon gives no ring to this process: {os.strerror(error)}")
        capacity = (size - ring_size(0)) // REPORT_DTYPE.itemsize
        stranger = OSError(errno.EPROTO, "the process at the socket of reports is no kdamon of this version")
        if magic != MAGIC or version != VERSION or fd is None or capacity <= 0 or capacity & (capacity - 1):
            raise stranger
        # Memory that can shrink kills its users.
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK or os.fstat(fd).st_size != size:
            raise stranger
        self._memory, self._words, self._records = map_ring(fd, capacity)
        #: Reports that may be under way.
        self.capacity = capacity
        if self._words[CAPACITY] != capacity:
            del self._words, self._records
            self._memory.close()
            raise stranger

    def report(self, batch: Records) -> int:
        """Report a batch, shape (n,) of :data:`kdamon.reports.record.REPORT_DTYPE`; reports without room are dropped.

        :returns: how many of them, from the first one on, found room.
        :raises TypeError: the array has another dtype or shape.
        """
        if batch.dtype != REPORT_DTYPE or batch.ndim != 1:
            raise TypeError("a batch of reports must be a one-dimensional array of REPORT_DTYPE")
        return self._put(batch, min(len(batch), self._room()))

    def name(self, start: int, size: int, label: str, pid: int | None = None) -> bool:
        """Name an area of memory, in place of the names that parts of it had; kdamon shows the name in its results.

        :param start: of the area, bytes.
        :param size: of the area, bytes, at least 1.
        :param label: the name, of 56 bytes at most in UTF-8; a longer one is cut. Empty: the area has none any more.
        :param pid: the process, as kdamon numbers it; None: this one.
        :returns: False: there was no room in the ring.
        :raises ValueError: the area is empty, or ends beyond the last address.
        """
        if not 0 <= start < start + size < 1 << 64:
            raise ValueError("an area has at least one byte, and ends below 2**64")
        text = os.fsencode(
            label.partition("\0")[0].encode("utf-8", "surrogateescape")[:LONGEST].decode("utf-8", "ignore")
        )
        records = name_records(self.pid if pid is None else pid, start, size, text)
        # All of it or nothing.
        return self._put(records, len(records) if self._room() >= len(records) else 0) > 0

    def _room(self) -> int:
        """Records that find room."""
        return max(self.capacity - ((self._head - int(self._words[TAIL])) & ((1 << 64) - 1)), 0)

    def _put(self, batch: Records, n: int) -> int:
        """Write the first ``n`` of ``batch``, for which there is room, and count the others."""
        fence()
        opaque = np.ascontiguousarray(batch[:n]).view(self._records.dtype)
        at = self._head & (self.capacity - 1)
        first = min(n, self.capacity - at)
        self._records[at : at + first] = opaque[:first]
        self._records[: n - first] = opaque[first:]
        self._sent += len(batch)
        self._dropped += len(batch) - n
        self._words[SENT] = self._sent
        self._words[DROPPED] = self._dropped
        fence()
        self._head += n
        self._words[HEAD] = self._head
        return n

    @property
    def sent(self) -> int:
        """The number of reports that :meth:`report` got."""
        return self._sent

    @property
    def dropped(self) -> int:
        """The number of those that found no room."""
        return self._dropped

    @property
    def pending(self) -> int:
        """The number of reports that kdamon did not read yet."""
        tail = int(self._words[TAIL])
        return self._head - tail

    def connected(self) -> bool:
        """Return whether kdamon still reads; when it ended, reports find no room sooner or later."""
        if self._words[CLOSED]:
            return False
        poll = select.poll()
        poll.register(self._connection, select.POLLRDHUP)
        return not poll.poll(0)

    def close(self) -> None:
        """Give the ring back; kdamon still reads the reports in it. May be repeated."""
        if self._connection.fileno() >= 0:
            del self._words, self._records
            self._memory.close()
            _hang_up(self._connection)

    def __enter__(self) -> ReportClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def kdamon_name(start: int, size: int, label: str) -> bool:
    """Name an area of this process's memory, see :meth:`ReportClient.name`; without a kdamon nothing happens.

    It connects each time: a program that names much uses a :class:`ReportClient`.

    :returns: whether a kdamon takes names.
    :raises ValueError: the area is empty, or ends beyond the last address.
    """
    try:
        with ReportClient(capacity=_FEW) as client:
            return client.name(start, size, label)
    except OSError:
        return False


def _connect(paths: list[Path], patience: float) -> socket.socket:
    for path in paths:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Not settimeout(): with that, connect() does not wait for its turn at all.
            limit = _TIMEVAL.pack(int(patience), max(1, int(patience % 1 * 1e6)))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            connection.connect(os.fspath(path))
        except BlockingIOError:
            connection.close()
            if path == paths[-1]:
                raise _no_answer() from None
        except OSError as error:
            connection.close()
            if path == paths[-1]:
                raise OSError(
                    error.errno, f"no kdamon takes reports at {' or '.join(map(str, paths))}: start one first"
                ) from None
        else:
            return connection
    raise AssertionError("there is always a path")


def _no_answer() -> OSError:
    return OSError(errno.ETIMEDOUT, "the kdamon at the socket of reports does not answer; it may be stopped")


def _receive(connection: socket.socket, patience: float) -> tuple[bytes, int | None]:
    """The reply, and the memory that came with it; anything else that a stranger sends stays in the connection.

    :raises OSError: ETIMEDOUT; EPROTO it came with something else than memory.
    """
    # Unlike SO_RCVTIMEO it does not begin anew with each signal.
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if not poll.poll(patience * 1000):
        raise _no_answer()
    look = socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC
    reply, sent, flags, _ = connection.recvmsg(REPLY.size, socket.CMSG_LEN(_FD.size), look)
    fds = [_FD.unpack(data)[0] for _, kind, data in sent if kind == socket.SCM_RIGHTS]
    stranger = OSError(errno.EPROTO, "the process at the socket of reports is no kdamon")
    try:
        for fd in fds:
            fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise stranger from None
    if flags & socket.MSG_CTRUNC:
        raise stranger
    # The message is thrown away; we have its memory.
    connection.recv(1)
    return reply, next(iter(fds), None)


def _hang_up(connection: socket.socket) -> None:
    """Close ``connection``, but leave it to the end of this process if what is in it may take long to close."""
    flags = 0
    with contextlib.suppress(OSError):
        message, _, flags, _ = connection.recvmsg(1, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        flags |= socket.MSG_CTRUNC if message else 0
    if flags & socket.MSG_CTRUNC:
        connection.detach()
    else:
        connection.close()
