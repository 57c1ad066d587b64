# SPDX-License-Identifier: GPL-2.0-only
"""Access reports from other processes: a socket that hands out rings, and a thread that reads them.

``ReportServer(path)`` is a context manager. While it is entered, any process that connects to the socket gets a ring
in shared memory (:mod:`kdamon.producers.ring`). The reports that it writes there go to
:func:`kdamon.reports.deliver.report_accesses`, if :class:`kdamon.producers.credentials.Rights` permits them.
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

from kdamon.lib.capabilities import give_up_capabilities
from kdamon.lib.pidfd import pidfd_open
from kdamon.producers.admission import Admission, User
from kdamon.producers.connected import Producer, ReportServerCounters
from kdamon.producers.connections import ReportListener
from kdamon.producers.ring import HELLO, MAGIC, REPLY, VERSION, own_report_path, ring_size
from kdamon.producers.socket_file import ReportSocket

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
#: Records taken at each look from all rings of users that have no power over us: this limits their cost.
_TAKEN_FROM_OTHERS: Final = 1 << 14
#: Of that, a ring's share, or so many: how many records they have costs less than how many rings they are in.
_TAKEN_FROM_A_RING: Final = 1 << 10
#: New connections, and hellos or hangups, between two looks at the rings. Together they take one part of this thread's
#: time in so many, but no pause is longer than that, seconds.
_ACCEPTED_AT_ONCE: Final = 8
_HEARD_AT_ONCE: Final = 16
_HEARING_SHARE: Final = 5
_LONGEST_PAUSE: Final = 0.01
#: Seconds that a connection may take to say hello.
_HELLO_WITHIN: Final = 5.0
#: Seconds in which what is in the rings at the end is read, and that the thread may take to end; and the longest
#: between two checks of everything else.
_LAST_READ: Final = 2.0
_END: Final = 5.0
_LOOK: Final = 0.1

_SO_PEERPIDFD: Final = 77
_UCRED: Final = struct.Struct("iII")


def default_report_path() -> Path:
    """The socket at which a kdamon of this user serves reports: below /run for root, else below XDG_RUNTIME_DIR."""
    if os.geteuid() == 0:
        return Path("/run/kdamon/reports")
    return own_report_path()


class ReportServer:
    """Serves rings for access reports; a context manager.

    :param path: of the socket; :func:`default_report_path` if None. What a server that was killed left there,
        because its :class:`kdamon.lib.watcher.Leftovers` were killed too, is replaced.
    :param refusing: as for :class:`kdamon.producers.connections.ReportListener`.
    :raises OSError: on entering, what :meth:`kdamon.producers.socket_file.ReportSocket.bind` raises.
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
        self._producers: dict[int, Producer] = {}
        self._admission = Admission()
        #: Those that connected and did not say hello yet, and until when they may.
        self._silent: deque[tuple[float, Producer]] = deque()
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
        """Make the socket and serve it in a thread of its own.

        :raises OSError: what :meth:`kdamon.producers.socket_file.ReportSocket.bind` raises; EBUSY a thread of this
            server did not end.
        """
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
        """Read the reports that producers wrote so far, end the thread and remove the socket; may be repeated.

        It takes a few seconds at most: a thread that does not end is left.
        """
        if self._thread is not None:
            if not self._lost:
                os.write(self._stop, b"x")
                self._thread.join(_END)
            if self._thread.is_alive():
                # It may go on at any time: what it uses stays as it is, as long as this process lives.
                if not self._lost:
                    log.error("the thread that reads reports does not end; the last reports of producers may be lost")
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
        """The counters since the server was made."""
        total = ReportServerCounters()
        with self._lists_lock:
            for part in [self._gone, *(producer.counted() for producer in self._producers.values())]:
                total.add(part)
            total.producers = sum(producer.ring is not None for producer in self._producers.values())
        return total

    # The thread.

    def _serve(self) -> None:
        # Data of producers can make this thread only read processes, nothing else.
        give_up_capabilities("CAP_SYS_PTRACE")
        wait = _BUSY_WAIT
        while True:
            moved, full = self._drain_all()
            wait = _BUSY_WAIT if moved else min(2 * wait, _IDLE_WAIT)
            assert self._epoll is not None and self._listener is not None
            idle = _LOOK if self._listener.waiting else -1
            patience = wait - _BUSY_WAIT if self._producers else idle
            # Which of them come first takes turns.
            ready = {fd for fd, _ in self._epoll.poll(patience, _HEARD_AT_ONCE)}
            if self._stop_read in ready:
                break
            began = time.thread_time()
            if ready:
                self._hear(ready)
            self._hang_up_on_the_silent()
            self._listener.tidy()
            if not full:
                # However often connections come, the interpreter is left to the kdamonds in between.
                pause = (_HEARING_SHARE - 1) * (time.thread_time() - began)
                time.sleep(min(max(pause, _BUSY_WAIT), _LONGEST_PAUSE))
        self._drain_to_the_end()

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
                log.exception("process %d is disconnected after an internal error", producer.pid)
                self._free(producer)

    def _hang_up_on_the_silent(self) -> None:
        """Close connections that did not say hello in time, so that others get their places."""
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
            if pid <= 0:
                raise OSError(errno.EPERM, "it is in a PID namespace that is not visible from here")
            user = self._admission.connect(uid)
            try:
                producer = Producer(connection, pid, gid, _peer_pidfd(connection, pid), user)
            except OSError:
                self._admission.disconnect(user)
                raise
        except OSError as error:
            self._refuse(connection, error)
            self._hang_up(connection)
            return
        with self._lists_lock:
            self._producers[connection.fileno()] = producer
        self._silent.append((time.monotonic() + _HELLO_WITHIN, producer))
        assert self._epoll is not None
        self._epoll.register(connection, select.EPOLLIN)

    def _answer(self, producer: Producer) -> None:
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

    def _welcome(self, producer: Producer, hello: bytes) -> None:
        if len(hello) != HELLO.size or HELLO.unpack(hello)[:2] != (MAGIC, VERSION):
            raise OSError(errno.EPROTONOSUPPORT, f"process {producer.pid} does not speak version {VERSION}")
        wanted = HELLO.unpack(hello)[2] or DEFAULT_CAPACITY
        capacity = 1 << (min(max(wanted, _MIN_CAPACITY), _MAX_CAPACITY) - 1).bit_length()
        ring = producer.open_ring(capacity, self._admission)
        reply = REPLY.pack(MAGIC, VERSION, 0, ring_size(capacity), producer.pid, 0)
        try:
            socket.send_fds(producer.connection, [reply], [ring.fd])
        except OSError:
            ring.close()
            self._admission.take_back(producer.user, capacity)
            raise
        producer.ring = ring
        log.debug("process %d of user %d sends reports", producer.pid, producer.user.uid)

    def _drain_to_the_end(self) -> None:
        """Read the records that are in the rings now; if a flood leaves no time for all, those of others come first."""
        until = time.monotonic() + _LAST_READ
        for producer in self._producers.values():
            if producer.ring is not None:
                producer.left = producer.ring.waiting()
        while time.monotonic() < until and any(producer.ring is not None for producer in self._producers.values()):
            self._drain_all()

    def _drain_all(self) -> tuple[bool, bool]:
        """Read from the rings; returns whether there was something, and whether there is more to be read at once."""
        moved = full = False
        users = self._admission.users()
        producers = [producer for producer in self._producers.values() if producer.ring is not None]
        # All users that are limited and have something there have the same share, and so has each ring of a user, in
        # turn.
        of_user = _TAKEN_FROM_OTHERS // (len({p.user for p in producers if p.limited and p.waiting()}) or 1)
        rest: dict[User, int] = {}
        for producer in producers:
            user, limit, share = producer.user, _TAKEN_AT_ONCE, 1
            if producer.limited:
                limit = min(rest.get(user, of_user), max(of_user // user.rings, _TAKEN_FROM_A_RING))
                share = user.rings
                if limit <= 0:
                    continue
            try:
                n = producer.drain(limit, share, users, self._lists_lock)
            except Exception:
                log.exception("the ring of process %d is given up after an internal error", producer.pid)
                n, producer.left = 0, 0
            moved |= n > 0
            full |= n == _TAKEN_AT_ONCE
            if producer.limited and n:
                rest[user] = rest.get(user, of_user) - n
                self._put_last(producer)
            if producer.left is not None:
                producer.left -= n
                if n == 0 or producer.left <= 0:
                    self._free(producer)
        return moved, full

    def _put_last(self, producer: Producer) -> None:
        """Let the other rings have their turn first the next time."""
        fd = producer.connection.fileno()
        with self._lists_lock:
            self._producers[fd] = self._producers.pop(fd)

    def _free(self, producer: Producer) -> None:
        with self._lists_lock:
            del self._producers[producer.connection.fileno()]
            self._gone.add(producer.counted())
        if self._epoll is not None:
            # It may not be closed at once.
            with contextlib.suppress(OSError):
                self._epoll.unregister(producer.connection)
        self._hang_up(producer.connection)
        producer.close(self._admission)

    def _hang_up(self, connection: socket.socket) -> None:
        assert self._listener is not None
        self._listener.hang_up(connection)

    def _refuse(self, connection: socket.socket, error: OSError) -> None:
        log.info("a producer of reports is refused: %s", error.strerror)
        with contextlib.suppress(OSError):
            connection.send(REPLY.pack(MAGIC, VERSION, error.errno or errno.EIO, 0, 0, 0))


def _peer_pidfd(connection: socket.socket, pid: int) -> int:
    """A pidfd of the process that connected.

    :raises OSError: ESRCH it ended.
    """
    try:
        return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4), "little")
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    # Before Linux 6.5. The number may be another process's by now, but not one of another user: Rights checks that.
    return pidfd_open(pid)
