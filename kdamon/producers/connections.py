# SPDX-License-Identifier: GPL-2.0-only
"""Connections from processes that may be hostile: one message each, no file descriptors, and no close that waits.

A message may carry file descriptors. The process that makes the last close of one waits as long as its sender likes: a
TCP socket with unsent data and SO_LINGER takes hours, and a file of a dead server may take for ever. The kernel makes
that close in the process that receives a message without room for them, and in the one that closes a connection in
which such a message is left.

* Linux 6.16 and later refuse them for us (``SO_PASSRIGHTS``): the sender gets EPERM.
* Before that, kdamon peeks at a message before it receives it. After the first one the sender can send no more, so that
  a connection is known to be empty when it is closed. One that is not empty goes to a process that does nothing but
  end: an ending process does not linger, and one that waits nevertheless may be lost.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from typing import Final

from kdamon.lib.helpers import LostHelpers, python, start_helper

__all__ = ["ReportListener"]

log = logging.getLogger("kdamon")

_SO_PASSRIGHTS: Final = 83
#: Connections that may wait to be accepted.
_BACKLOG: Final = 64
#: Room for the credentials of a sender, and for nothing else: every message has them, the end of a connection has none.
_CREDENTIALS: Final = socket.CMSG_SPACE(12)
#: Messages that are thrown away when a connection is closed.
_THROWN_AWAY: Final = 16

#: Seconds between two processes that close connections, connections that wait for one before no other is accepted,
#: and processes that may be lost at most.
_CLOSER_PERIOD: Final = 1.0
_MOST_WAITING: Final = 64
_MOST_LOST: Final = 8
#: Seconds that the last of them may take to end.
_CLOSER_END: Final = 1.0
#: It ends when its standard input does, and the kernel closes what it inherited.
_CLOSER: Final = "import os; os.read(0, 1)"


class ReportListener:
    """Accepts connections at a socket, and receives one message from each.

    :param bound: a socket of type SOCK_SEQPACKET that has its address; it belongs to this object from now on.
    :param refusing: let the kernel refuse file descriptors, if it can. False does without that as on kernels before
        6.16.
    :raises OSError: as ``listen(2)``.
    """

    def __init__(self, bound: socket.socket, refusing: bool = True) -> None:
        self._socket = bound
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._refusing = refusing and _refuse_descriptors(bound)
        self._closer = _Closer()
        bound.listen(_BACKLOG)

    def fileno(self) -> int:
        """The listening socket."""
        return self._socket.fileno()

    @property
    def waiting(self) -> bool:
        """Whether connections wait for :meth:`tidy`."""
        return self._closer.waiting > 0

    def accept(self) -> socket.socket | None:
        """The next connection, which does not block; None while there is none, or no more can be taken.

        :raises OSError: as ``accept(2)``.
        """
        if self._closer.waiting >= _MOST_WAITING:
            return None
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return None
        connection.setblocking(False)
        return connection

    def receive(self, connection: socket.socket, size: int) -> bytes | None:
        """The only message of ``connection``; it can send no more afterwards.

        :param size: of the message, bytes; a longer one is cut after one byte more.
        :returns: None while there is none; empty when the connection ended.
        :raises OSError: EPERM it came with file descriptors; EPROTO there was another one.
        """
        try:
            sent = _look(connection)
        except BlockingIOError:
            return None
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RD)
        if sent is None:
            return b""
        if sent:
            raise OSError(errno.EPERM, "it sent file descriptors")
        message = connection.recv(size + 1)
        if _look(connection) is not None:
            raise OSError(errno.EPROTO, "it sent more than one message")
        return message

    def hang_up(self, connection: socket.socket) -> None:
        """Close ``connection`` without waiting for anything."""
        if _throw_away(connection) or self._refusing:
            connection.close()
        else:
            self._closer.take(connection)

    def tidy(self) -> None:
        """Let go of connections that could not be closed at once; to be called now and then."""
        self._closer.run()

    def close(self) -> None:
        """Hang up on connections that were not accepted yet, and stop listening; may be repeated."""
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            # From now on there is none that could connect.
            self._socket.shutdown(socket.SHUT_RDWR)
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno == errno.EINVAL or self._refusing:
                    self._socket.close()
                else:
                    self._closer.take(self._socket)
                break
            self.hang_up(connection)
        self._closer.end()


def _refuse_descriptors(bound: socket.socket) -> bool:
    try:
        bound.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def _look(connection: socket.socket) -> bool | None:
    """Whether the next message comes with file descriptors; None where there is no other and none can come.

    :raises BlockingIOError: there is none yet.
    """
    while True:
        try:
            _, sender, flags, _ = connection.recvmsg(1, _CREDENTIALS, socket.MSG_PEEK)
        except ConnectionResetError:
            # The other end closed before it read everything, which is said once; messages of it may be here.
            continue
        return bool(flags & socket.MSG_CTRUNC) if sender else None


def _throw_away(connection: socket.socket) -> bool:
    """Empty ``connection``; returns whether it is, and stays so."""
    try:
        connection.shutdown(socket.SHUT_RD)
        for _ in range(_THROWN_AWAY):
            sent = _look(connection)
            if sent is None:
                return True
            if sent:
                return False
            connection.recv(1)
    except OSError as error:
        log.debug("a connection is closed although messages may be in it: %s", error.strerror)
    return False


class _Closer:
    """Closes connections by processes of which each does nothing else."""

    def __init__(self) -> None:
        self._connections: list[socket.socket] = []
        self._lost = LostHelpers(_MOST_LOST)
        self._next = 0.0
        self._complained = False

    @property
    def waiting(self) -> int:
        return len(self._connections)

    def take(self, connection: socket.socket) -> None:
        self._connections.append(connection)

    def run(self) -> None:
        """Close what waits, if it is time to."""
        if not self._connections or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _CLOSER_PERIOD
        if not self._lost.full():
            self._close()
        elif not self._complained:
            self._complained = True
            log.error("%d processes cannot close files that producers sent; no others are taken", _MOST_LOST)

    def _close(self) -> None:
        ended, running = os.pipe2(os.O_CLOEXEC)
        try:
            inherited = [connection.fileno() for connection in self._connections]
            process = start_helper(python("-c", _CLOSER), *inherited, stdin=ended)
        except OSError as error:
            log.warning("connections of producers of reports stay open: %s", error.strerror)
        else:
            self._lost.add(process)
            # None of these is the last close, because the process has them all until its standard input ends.
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        finally:
            os.close(ended)
            os.close(running)

    def end(self) -> None:
        """Close what waits, and leave alone what does not end."""
        if self._connections:
            self._close()
        for connection in self._connections:
            # The end of this process closes them.
            connection.detach()
        self._connections.clear()
        self._lost.wait(_CLOSER_END)
