# SPDX-License-Identifier: GPL-2.0-only
"""Access reports from other processes: a socket that hands out rings, and a thread that reads them.

``ReportServer(path)`` is a context manager. While it is entered, any process that connects to the socket gets a ring
in shared memory (:mod:`kdamon.report_ring`), and what it writes there goes to
:func:`kdamon.reports.damon_report_accesses`, if it may: see :class:`kdamon.mm.credentials.Rights`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from attrs import define, field

from kdamon.mm.capabilities import give_up_capabilities
from kdamon.mm.credentials import Rights
from kdamon.mm.madvise import pidfd_open
from kdamon.report_connections import ReportListener
from kdamon.report_ring import HELLO, MAGIC, REPLY, VERSION, Records, ReportRing, ring_size, well_formed
from kdamon.report_socket import ReportSocket
from kdamon.reports import damon_report_accesses

__all__ = ["DEFAULT_CAPACITY", "ReportServer", "ReportServerCounters", "default_report_path"]

log = logging.getLogger("kdamon")

#: Records of a ring whose producer does not say how many it wants, and what it may want.
DEFAULT_CAPACITY: Final = 1 << 18
_MIN_CAPACITY: Final = 1 << 8
_MAX_CAPACITY: Final = 1 << 20

#: Time between two looks at the rings: the shortest, while there is something to read, and the longest, seconds.
_BUSY_WAIT: Final = 0.002
_IDLE_WAIT: Final = 0.006
#: Records taken from one ring before the next ring has its turn.
_TAKEN_AT_ONCE: Final = 1 << 16
#: Records taken at each look from all rings of users who have no power over us: what they can cost is limited.
_TAKEN_FROM_OTHERS: Final = 1 << 14
#: Rings of one user other than ours, twice as many connections, and records in all of these rings: memory that we may
#: have to pay for.
_MAX_PER_USER: Final = 64
_MAX_RECORDS_PER_USER: Final = 1 << 22
#: New connections between two looks at the rings, and seconds that one may take to say hello.
_ACCEPTED_AT_ONCE: Final = 16
_HELLO_WITHIN: Final = 5.0
#: Seconds that the thread may take to end, and the longest between two looks at what is not a ring.
_END: Final = 5.0
_LOOK: Final = 0.1

_SO_PEERPIDFD: Final = 77
_UCRED: Final = struct.Struct("iII")


def default_report_path() -> Path:
    """Where a kdamon of this user serves reports: below /run for root, else below XDG_RUNTIME_DIR."""
    if os.geteuid() == 0:
        return Path("/run/kdamon/reports")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "kdamon/reports"


@define
class ReportServerCounters:
    """What went through the rings.

    ``received == malformed + not_permitted`` + what went on to the contexts. Once all rings are empty,
    ``sent == dropped + received``, if the producers told the truth.

    :ivar producers: how many are connected now.
    :ivar received: records taken out of rings.
    :ivar malformed: of these, such that can be no report (:func:`kdamon.report_ring.well_formed`).
    :ivar not_permitted: of these, about what the producer must not tell about.
    :ivar resyncs: how often a ring's ``head`` made no sense and the ring was emptied.
    :ivar sent: what producers wanted to send, as they told.
    :ivar dropped: what found no room in their rings, as they told.
    """

    producers: int = 0
    received: int = 0
    malformed: int = 0
    not_permitted: int = 0
    resyncs: int = 0
    sent: int = 0
    dropped: int = 0


@define(eq=False)
class _Producer:
    """One connection, and the ring that it got once it said what it wants."""

    connection: socket.socket
    pid: int
    uid: int
    gid: int
    pidfd: int
    ring: ReportRing | None = None
    rights: Rights | None = None
    #: How many more records may come out of the ring of a producer that hung up; None while it did not.
    left: int | None = None
    counters: ReportServerCounters = field(factory=ReportServerCounters)

    @property
    def limited(self) -> bool:
        """Whether it has a ring, and could not harm us by other means than reports."""
        return self.rights is not None and not self.rights.everything and self.uid != os.geteuid()

    def told(self) -> ReportServerCounters:
        """The counters so far."""
        if self.ring is not None:
            self.counters.sent, self.counters.dropped = self.ring.told()
            self.counters.resyncs = self.ring.resyncs
        return self.counters

    def close(self) -> None:
        """Free all but the connection."""
        if self.rights is not None:
            self.rights.close()
        if self.ring is not None:
            self.ring.close()
        os.close(self.pidfd)


class ReportServer:
    """Serves rings for access reports; a context manager.

    :param path: of the socket; :func:`default_report_path` if None. What a server that was killed left there,
        because its :class:`kdamon.leftovers.Leftovers` were killed too, is replaced.
    :param refusing: as for :class:`kdamon.report_connections.ReportListener`.
    :raises OSError: on entering, what :meth:`kdamon.report_socket.ReportSocket.bind` raises.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, refusing: bool = True) -> None:
        self.path = Path(path).absolute() if path is not None else default_report_path()
        self._place = ReportSocket(self.path.absolute(), own_directory=path is None)
        self._refusing = refusing
        self._listener: ReportListener | None = None
        self._epoll: select.epoll | None = None
        self._stop_read, self._stop = -1, -1
        self._thread: threading.Thread | None = None
        self._lost = False
        self._producers: dict[int, _Producer] = {}
        #: Those that connected and did not say hello yet, and until when they may.
        self._silent: deque[tuple[float, _Producer]] = deque()
        #: Whether it was said that connections cannot be accepted.
        self._complained = False
        #: Of producers that are gone; and what protects the moments when one comes or goes, or counters change.
        self._gone = ReportServerCounters()
        self._lists_lock = threading.Lock()

    def __enter__(self) -> ReportServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Make the socket and serve it in a thread of its own."""
        if self._lost:
            raise OSError(errno.EBUSY, "the thread that read reports did not end; make another server")
        try:
            self._listener = ReportListener(self._place.bind(), self._refusing)
            self._stop_read, self._stop = os.pipe2(os.O_CLOEXEC)
            self._epoll = select.epoll()
            self._epoll.register(self._listener, select.EPOLLIN)
            self._epoll.register(self._stop_read, select.EPOLLIN)
            self._thread = threading.Thread(target=self._serve, name="kdamon.reports", daemon=True)
            self._thread.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Read what producers wrote so far, then end the thread and leave nothing behind; may be repeated.

        It takes a few seconds at most: a thread that does not end is left.
        """
        if self._thread is not None:
            if not self._lost:
                os.write(self._stop, b"x")
                self._thread.join(_END)
            if self._thread.is_alive():
                # It may go on at any time: what it uses stays as it is, as long as this process lives.
                if not self._lost:
                    log.error("the thread that reads reports does not end; what producers sent last may be lost")
                self._lost = True
                self._place.remove()
                return
            self._thread, self._lost = None, False
        for producer in list(self._producers.values()):
            self._free(producer)
        self._silent.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        for fd in (self._stop_read, self._stop):
            if fd >= 0:
                os.close(fd)
        self._stop_read = self._stop = -1
        self._place.remove()

    def counters(self) -> ReportServerCounters:
        """What went through the rings since the server was made."""
        total = ReportServerCounters()
        with self._lists_lock:
            parts = [self._gone, *(producer.told() for producer in self._producers.values())]
            total.producers = sum(producer.ring is not None for producer in self._producers.values())
            for part in parts:
                _add(total, part)
        return total

    # The thread.

    def _serve(self) -> None:
        # What producers say can make this thread do no more than look at processes.
        give_up_capabilities("CAP_SYS_PTRACE")
        wait = _BUSY_WAIT
        while True:
            moved, full = self._drain_all()
            wait = _BUSY_WAIT if moved else min(2 * wait, _IDLE_WAIT)
            assert self._epoll is not None and self._listener is not None
            idle = _LOOK if self._listener.waiting else -1
            ready = {fd for fd, _ in self._epoll.poll(wait - _BUSY_WAIT if self._producers else idle)}
            if self._stop_read in ready:
                break
            if ready:
                self._hear(ready)
            self._hang_up_on_the_silent()
            self._listener.tidy()
            if not full:
                # However often connections come, the interpreter is left to the kdamonds in between.
                time.sleep(_BUSY_WAIT)
        for _ in range(_MAX_CAPACITY // _TAKEN_AT_ONCE):
            if not self._drain_all(to_the_end=True)[1]:
                break

    def _hear(self, ready: set[int]) -> None:
        assert self._listener is not None
        if self._listener.fileno() in ready:
            for _ in range(_ACCEPTED_AT_ONCE):
                try:
                    connection = self._listener.accept()
                except OSError as error:
                    if not self._complained:
                        self._complained = True
                        log.warning("a producer of reports has to wait: %s", error.strerror)
                    break
                if connection is None:
                    break
                self._complained = False
                self._accept(connection)
        for fd in ready & self._producers.keys():
            producer = self._producers[fd]
            try:
                self._answer(producer)
            except Exception:
                log.exception("process %d is sent away by an internal error", producer.pid)
                self._free(producer)

    def _hang_up_on_the_silent(self) -> None:
        """Give the places of connections that did not say hello in time to others."""
        now = time.monotonic()
        while self._silent:
            until, producer = self._silent[0]
            gone = self._producers.get(producer.connection.fileno()) is not producer
            if not gone and producer.ring is None:
                if now < until:
                    return
                self._refuse(producer.connection, OSError(errno.ETIMEDOUT, f"process {producer.pid} did not say hello"))
                self._free(producer)
            self._silent.popleft()

    def _accept(self, connection: socket.socket) -> None:
        try:
            pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            same_user = sum(producer.uid == uid for producer in self._producers.values())
            if same_user >= 2 * _MAX_PER_USER and uid != os.geteuid():
                raise OSError(errno.EUSERS, f"user {uid} has too many connections")
            if pid <= 0:
                raise OSError(errno.EPERM, "it is in a PID namespace that cannot be seen from here")
            producer = _Producer(connection, pid, uid, gid, _peer_pidfd(connection, pid))
        except OSError as error:
            self._refuse(connection, error)
            self._hang_up(connection)
            return
        with self._lists_lock:
            self._producers[connection.fileno()] = producer
        self._silent.append((time.monotonic() + _HELLO_WITHIN, producer))
        assert self._epoll is not None
        self._epoll.register(connection, select.EPOLLIN)

    def _answer(self, producer: _Producer) -> None:
        """Hand out the ring to a producer that says hello, or take notice that it hung up."""
        assert self._epoll is not None and self._listener is not None
        if producer.ring is not None:
            # Its ring is freed when it was read to its end.
            self._epoll.unregister(producer.connection)
            producer.left = producer.ring.capacity
            return
        try:
            hello = self._listener.receive(producer.connection, HELLO.size)
            if hello is None:
                return
            if hello:
                self._welcome(producer, hello)
                # It can say no more: all that is to be noticed is its hangup, which always is.
                self._epoll.modify(producer.connection, 0)
                return
        except OSError as error:
            self._refuse(producer.connection, error)
        self._free(producer)

    def _welcome(self, producer: _Producer, hello: bytes) -> None:
        if len(hello) != HELLO.size or HELLO.unpack(hello)[:2] != (MAGIC, VERSION):
            raise OSError(errno.EPROTONOSUPPORT, f"process {producer.pid} does not speak version {VERSION}")
        wanted = HELLO.unpack(hello)[2] or DEFAULT_CAPACITY
        capacity = 1 << (min(max(wanted, _MIN_CAPACITY), _MAX_CAPACITY) - 1).bit_length()
        others = [p.ring.capacity for p in self._producers.values() if p.uid == producer.uid and p.ring is not None]
        too_many = len(others) >= _MAX_PER_USER or sum(others) + capacity > _MAX_RECORDS_PER_USER
        if too_many and producer.uid != os.geteuid():
            raise OSError(errno.EUSERS, f"user {producer.uid} has {len(others)} rings of {sum(others)} records already")
        producer.rights = Rights(producer.pid, producer.pidfd, producer.uid, producer.gid)
        ring = ReportRing(capacity)
        reply = REPLY.pack(MAGIC, VERSION, 0, ring_size(capacity), producer.pid, 0)
        try:
            socket.send_fds(producer.connection, [reply], [ring.fd])
        except OSError:
            ring.close()
            raise
        producer.ring = ring
        log.debug("process %d of user %d sends reports", producer.pid, producer.uid)

    def _drain_all(self, to_the_end: bool = False) -> tuple[bool, bool]:
        """Read from every ring; returns whether there was something, and whether there is more to be read at once."""
        moved = full = False
        others = sum(producer.limited for producer in self._producers.values())
        share = _TAKEN_AT_ONCE if to_the_end else max(_TAKEN_FROM_OTHERS // max(others, 1), 1)
        for producer in list(self._producers.values()):
            if producer.ring is None:
                continue
            try:
                n = self._drain(producer, share if producer.limited else _TAKEN_AT_ONCE)
            except Exception:
                log.exception("the ring of process %d is given up by an internal error", producer.pid)
                n, producer.left = 0, 0
            moved |= n > 0
            full |= n == _TAKEN_AT_ONCE
            if producer.left is not None:
                producer.left -= n
                if n == 0 or producer.left <= 0:
                    self._free(producer)
        return moved, full

    def _drain(self, producer: _Producer, limit: int) -> int:
        """Pass on what the ring of ``producer`` holds; returns how many records there were, at most ``limit``."""
        assert producer.ring is not None
        records = producer.ring.drain(limit)
        taken = len(records)
        if not taken:
            return 0
        good = well_formed(records)
        if good is not None:
            records = _pick(records, good)
        malformed = taken - len(records)
        records = _permitted(producer, records)
        damon_report_accesses(records)
        # Counted when all is done, and all at once: whoever looks at the counters finds that they add up.
        with self._lists_lock:
            producer.counters.received += taken
            producer.counters.malformed += malformed
            producer.counters.not_permitted += taken - malformed - len(records)
        return taken

    def _free(self, producer: _Producer) -> None:
        with self._lists_lock:
            del self._producers[producer.connection.fileno()]
            _add(self._gone, producer.told())
        if self._epoll is not None:
            # It may not be closed at once.
            with contextlib.suppress(OSError):
                self._epoll.unregister(producer.connection)
        self._hang_up(producer.connection)
        producer.close()

    def _hang_up(self, connection: socket.socket) -> None:
        assert self._listener is not None
        self._listener.hang_up(connection)

    def _refuse(self, connection: socket.socket, error: OSError) -> None:
        log.info("a producer of reports is refused: %s", error.strerror)
        with contextlib.suppress(OSError):
            connection.send(REPLY.pack(MAGIC, VERSION, error.errno or errno.EIO, 0, 0, 0))


def _permitted(producer: _Producer, records: Records) -> Records:
    """What ``producer`` may tell of ``records``."""
    rights = producer.rights
    assert rights is not None
    if rights.everything or not len(records):
        return records
    pids = records["pid"]
    if (pids == pids[0]).all():
        return records if rights.permitted([int(pids[0])])[0] else records[:0]
    named, which = np.unique(pids, return_inverse=True)
    return _pick(records, np.array(rights.permitted(named.tolist()))[which])


def _pick(records: Records, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Records:
    """The records where ``mask`` is true: as a whole, not field by field."""
    opaque = records.view(f"V{records.dtype.itemsize}")
    picked: Records = opaque[mask].view(records.dtype)
    return picked


def _add(total: ReportServerCounters, part: ReportServerCounters) -> None:
    for name in ("received", "malformed", "not_permitted", "resyncs", "sent", "dropped"):
        setattr(total, name, getattr(total, name) + getattr(part, name))


def _peer_pidfd(connection: socket.socket, pid: int) -> int:
    """A pidfd of the process that connected.

    :raises OSError: ESRCH it ended.
    """
    try:
        return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4), "little")
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    # Before Linux 6.5. The number may be another process's by now, but not one of another user: Rights looks at that.
    return pidfd_open(pid)
