# SPDX-License-Identifier: GPL-2.0-only
"""Decides which processes another process may read: ``ptrace_may_access()`` of ``kernel/ptrace.c``, from outside.

The kernel answers that question for the calling process only. So this module applies the same rules to the credentials
of both processes in /proc. It leaves out security modules, which can only refuse more.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Final

from attrs import define, evolve, frozen

from kdamon.lib.pidfd import exited, pidfd_open
from kdamon.lib.process_status import status_fields

__all__ = ["Credentials", "KnownProcesses", "Rights", "SpareQuestions", "credentials_of", "may_access"]

_CAP_SETGID: Final = 1 << 6
_CAP_SETUID: Final = 1 << 7
_CAP_SYS_PTRACE: Final = 1 << 19

#: How long an answer about a process holds that may change its credentials, nanoseconds.
_ANSWER_HOLDS: Final = 1_000_000_000
#: How many processes the peers of one user may name at a time: a file descriptor each.
_MAX_KNOWN: Final = 256
#: How often they may make us ask the kernel: questions in a row, and questions a second after that.
_QUESTIONS: Final = 256
_QUESTIONS_A_SECOND: Final = 300
#: Refusals that are remembered for the peers of one user: a number each.
_MAX_REFUSED: Final = 1024


@frozen
class Credentials:
    """The credentials that ``ptrace_may_access()`` compares.

    :ivar uids: real, effective and saved user.
    :ivar gids: likewise.
    :ivar dumpable: whether its memory may go to its user (``PR_SET_DUMPABLE``).
    :ivar user_ns: its user namespace, None where that cannot be seen.
    :ivar pid_ns: its PID namespace, None where that is ours or cannot be seen.
    """

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    permitted: int
    effective: int
    dumpable: bool
    user_ns: tuple[int, int] | None
    pid_ns: tuple[int, int] | None = None


def credentials_of(pid: int, pidfd: int) -> Credentials:
    """The credentials of process ``pid``, which ``pidfd`` stands for.

    :raises OSError: ESRCH the process ended; EACCES /proc does not show it.
    """
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            fields = status_fields(file.read())
            # Its owner is root unless the process is dumpable.
            owner = os.fstat(file.fileno()).st_uid
        user_ns, pid_ns = _namespace(f"/proc/{pid}/ns/user"), _namespace(f"/proc/{pid}/ns/pid")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(errno.ESRCH, f"process {pid} ended") from None
    if exited(pidfd):
        raise ProcessLookupError(errno.ESRCH, f"process {pid} ended")
    uids = tuple(map(int, fields["Uid"].split()[:3]))
    return Credentials(
        uids=uids,
        gids=tuple(map(int, fields["Gid"].split()[:3])),
        permitted=int(fields["CapPrm"], 16),
        effective=int(fields["CapEff"], 16),
        dumpable=owner == uids[1],
        user_ns=user_ns,
        pid_ns=None if pid_ns == _namespace("/proc/self/ns/pid") else pid_ns,
    )


def _namespace(path: str) -> tuple[int, int] | None:
    try:
        namespace = os.stat(path)
    except PermissionError:
        return None
    return namespace.st_dev, namespace.st_ino


def may_access(peer: Credentials, target: Credentials) -> bool:
    """Return whether ``peer`` may read ``target`` (``PTRACE_MODE_READ_REALCREDS``).

    Kernel: a capability counts for the targets of descendant user namespaces, too. Here: it does not, because /proc
    does not show how namespaces are related. Kernel: a process has no number for what its PID namespace does not
    contain, and so cannot ask. Here: a peer in another PID namespace may read processes of that one only.
    (docs/deviations.md#reports-of-other-processes)
    """
    if peer.user_ns is None or peer.user_ns != target.user_ns:
        return False
    if peer.pid_ns is not None and peer.pid_ns != target.pid_ns:
        return False
    if peer.effective & _CAP_SYS_PTRACE:
        return True
    same_user = set(target.uids) == {peer.uids[0]} and set(target.gids) == {peer.gids[0]}
    return same_user and target.dumpable and not target.permitted & ~peer.permitted


def _gained(before: Credentials, now: Credentials) -> bool:
    """Return whether a process gained privileges by the program that it called exec() for."""
    users = set(now.uids) <= set(before.uids) or before.permitted & _CAP_SETUID
    groups = set(now.gids) <= set(before.gids) or before.permitted & _CAP_SETGID
    # In a user namespace that it made it has all capabilities, but none of them here.
    capable = now.user_ns == before.user_ns and now.permitted & ~before.permitted
    return not users or not groups or bool(capable)


@define
class _Held:
    """A process that some peer may read."""

    pidfd: int
    credentials: Credentials
    until: int


class SpareQuestions:
    """Questions to the kernel that some users may cause because the others do not.

    :ivar left: how many; less than none if more than their number was asked.
    """

    def __init__(self) -> None:
        self.left = 0.0
        self._then = 0

    def refill(self, now: int) -> None:
        """Refill up to the time ``now``, nanoseconds."""
        since, self._then = now - (self._then or now), now
        self.left = min(self.left + since * 1e-9 * _QUESTIONS_A_SECOND, _QUESTIONS)

    def asked(self) -> None:
        """Count one question of any user."""
        self.left = max(self.left - 1, -_QUESTIONS)


class KnownProcesses:
    """Decisions about the processes that the peers of one user report on; all peers of a user share one object.

    A process that a peer may read is held by a pidfd, so that its end is noticed before its number is used again.
    Of a refusal only the number is kept, for a second at most.

    :param take: called with 1 before a descriptor is taken, and with -1 after one was given back; returns whether it
        may be taken.
    :param spare: what all users share.
    """

    def __init__(self, take: Callable[[int], bool] = lambda _n: True, spare: SpareQuestions | None = None) -> None:
        self._take = take
        self._spare = spare or SpareQuestions()
        self._held: dict[int, _Held] = {}
        self._refused: dict[tuple[Credentials, int], int] = {}
        #: As long as anything is held.
        self._ends: select.epoll | None = None
        self._questions: float = _QUESTIONS
        self._then = time.monotonic_ns()

    def __len__(self) -> int:
        return len(self._held)

    def look(self, now: int, users: int = 1) -> None:
        """Forget the processes that ended; to be called after the records in question were copied.

        :param now: nanoseconds of the monotonic clock.
        :param users: how many users share the questions of a second.
        """
        if self._ends is not None and (ended := {fd for fd, _ in self._ends.poll(0)}):
            for pid in [pid for pid, held in self._held.items() if held.pidfd in ended]:
                self._forget(pid)
        rate = _QUESTIONS_A_SECOND / max(users, 1)
        self._questions = min(self._questions + (now - self._then) * 1e-9 * rate, _QUESTIONS)
        self._then = now
        self._spare.refill(now)

    def may(self, peer: Credentials, pid: int, now: int, free_numbers: bool = False) -> bool:
        """Return whether ``peer`` may report on process ``pid``.

        :param free_numbers: it may also report on a number that no process has.
        """
        if pid <= 0:
            return False
        held = self._held.get(pid)
        if held is not None and now < held.until:
            return may_access(peer, held.credentials)
        if now < self._refused.get((peer, pid), 0) or not (free_numbers or self._may_ask()):
            return False
        try:
            permitted = self._ask(peer, pid, held, now)
        except OSError as error:
            self._forget(pid)
            if error.errno == errno.ESRCH and free_numbers:
                # Not remembered: the number may be a process's a moment later.
                return True
            permitted = False
        if not permitted:
            while len(self._refused) >= _MAX_REFUSED:
                del self._refused[next(iter(self._refused))]
            self._refused[peer, pid] = now + _ANSWER_HOLDS
        return permitted

    def _may_ask(self) -> bool:
        """Take one of its user's own questions, else one that the other users do not need."""
        if self._questions >= 1:
            self._questions -= 1
        elif self._spare.left < 1:
            return False
        self._spare.asked()
        return True

    def _ask(self, peer: Credentials, pid: int, held: _Held | None, now: int) -> bool:
        """Ask the kernel; afterwards the process is held if ``peer`` may read it, and not held if not."""
        pidfd = pidfd_open(pid) if held is None else held.pidfd
        try:
            credentials = credentials_of(pid, pidfd)
            permitted = may_access(peer, credentials)
            if permitted and (held is not None or self._room()):
                self._held[pid] = _Held(pidfd, credentials, now + _ANSWER_HOLDS)
                if held is None:
                    self._ends = self._ends or select.epoll()
                    self._ends.register(pidfd, select.EPOLLIN)
            elif held is not None:
                self._forget(pid)
        finally:
            if held is None and pid not in self._held:
                os.close(pidfd)
        return permitted

    def _room(self) -> bool:
        """Take a descriptor for one more process, if need be that of the one that was held first."""
        if len(self._held) < _MAX_KNOWN and self._take(1):
            return True
        if not self._held:
            return False
        self._forget(next(iter(self._held)))
        return self._take(1)

    def _forget(self, pid: int) -> None:
        held = self._held.pop(pid, None)
        if held is not None:
            # It leaves the epoll set by being closed.
            os.close(held.pidfd)
            self._take(-1)
        if not self._held and self._ends is not None:
            self._ends.close()
            self._ends = None

    def close(self) -> None:
        """Give the file descriptors back; it may be used on."""
        for pid in list(self._held):
            self._forget(pid)


class Rights:
    """The processes that one peer, at the other end of a socket, may report on.

    Its credentials are those that it had when it connected, as with an open file.

    * With CAP_SYS_PTRACE in our user namespace: every number, 0 (physical memory) and numbers of no process included.
    * Else itself, unless it gained privileges since, and the processes that it could read with ptrace.
    * Numbers of no process: only for a peer of the very user and group that we run as.

    All numbers are those of our PID namespace.

    :param pid: the peer.
    :param pidfd: the peer; stays the caller's to close, after this object.
    :param uid: effective user when it connected (``SO_PEERCRED``).
    :param gid: likewise.
    :param known: what all peers of its user share.
    :raises OSError: ESRCH the peer ended; EPERM it is not the process that connected any more.
    """

    def __init__(self, pid: int, pidfd: int, uid: int, gid: int, known: KnownProcesses) -> None:
        self._pid = pid
        peer = credentials_of(pid, pidfd)
        if peer.uids[1] != uid or peer.gids[1] != gid:
            raise OSError(errno.EPERM, f"process {pid} changed its user or group since it connected")
        self._then = peer
        if uid and not peer.dumpable:
            # It may have gained its present rights by an exec() since it connected.
            peer = evolve(peer, permitted=0, effective=0)
        self._peer = peer
        at_home = peer.user_ns == _namespace("/proc/self/ns/user")
        #: Nothing is forbidden to this peer.
        self.everything = at_home and bool(peer.effective & _CAP_SYS_PTRACE)
        self._free_numbers = at_home and (uid, gid) == (os.geteuid(), os.getegid())
        self._known = known
        self._pidfd = pidfd
        self._end = select.poll()
        self._end.register(pidfd, select.POLLIN)
        #: Until when it is known to be what it was, nanoseconds.
        self._itself_until = 0

    def permitted(self, pids: list[int], users: int = 1) -> list[bool]:
        """Return for each of ``pids`` whether the peer may report on it; costs little for those that are known.

        To be called after the reports were copied: then they are older than its answers.

        :param users: how many users share the questions that may be asked.
        """
        if self.everything:
            return [True] * len(pids)
        now = time.monotonic_ns()
        self._known.look(now, users)
        results = [
            self._is_itself(now) if pid == self._pid else self._known.may(self._peer, pid, now, self._free_numbers)
            for pid in pids[:_MAX_KNOWN]
        ]
        return results + [False] * (len(pids) - len(results))

    def _is_itself(self, now: int) -> bool:
        """Return whether the peer's number cannot have been another process's when the report was made."""
        if not self._end.poll(0):
            if now >= self._itself_until:
                try:
                    if _gained(self._then, credentials_of(self._pid, self._pidfd)):
                        return False
                except ProcessLookupError:
                    return True
                self._itself_until = now + _ANSWER_HOLDS
            return True
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            # It was waited for. Nothing else can have been meant if its number is still free.
            return _is_free(self._pid)
        except PermissionError:
            # It is another user's, and there.
            pass
        return True


def _is_free(pid: int) -> bool:
    """Return whether no process and no thread has the number ``pid``."""
    try:
        os.close(pidfd_open(pid))
    except OSError as error:
        return error.errno == errno.ESRCH
    return False
