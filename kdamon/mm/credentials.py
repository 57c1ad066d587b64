# SPDX-License-Identifier: GPL-2.0-only
"""Which processes another process may look at: ``ptrace_may_access()`` of ``kernel/ptrace.c``, asked from outside.

The kernel answers that question only about the one who asks. So it is answered here by the same rules from what /proc
tells about both processes. Not asked are security modules, which can only refuse more.
"""

from __future__ import annotations

import errno
import os
import select
import time
from typing import Final

from attrs import define, frozen

from kdamon.mm.madvise import exited, pidfd_open

__all__ = ["Credentials", "Rights", "credentials_of", "may_access"]

_CAP_SYS_PTRACE: Final = 1 << 19

#: How long an answer about a process holds that may change its credentials, nanoseconds.
_ANSWER_HOLDS: Final = 1_000_000_000
#: How many processes a peer without privileges may name at a time: a file descriptor each.
_MAX_KNOWN: Final = 256
#: How often it may make us ask the kernel: questions in a row, and questions a second after that.
_QUESTIONS: Final = 256
_QUESTIONS_A_SECOND: Final = 300


@frozen
class Credentials:
    """What ``ptrace_may_access()`` looks at.

    :ivar uids: real, effective and saved user.
    :ivar gids: likewise.
    :ivar dumpable: whether its memory may go to its user (``PR_SET_DUMPABLE``).
    :ivar user_ns: its user namespace, None where that cannot be seen.
    """

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    permitted: int
    effective: int
    dumpable: bool
    user_ns: tuple[int, int] | None


def credentials_of(pid: int, pidfd: int) -> Credentials:
    """The credentials of process ``pid``, which ``pidfd`` stands for.

    :raises OSError: ESRCH the process ended; EACCES /proc does not show it.
    """
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            lines = file.read().split(b"\n")
            # Its owner is root unless the process is dumpable.
            owner = os.fstat(file.fileno()).st_uid
        try:
            namespace = os.stat(f"/proc/{pid}/ns/user")
            user_ns = (namespace.st_dev, namespace.st_ino)
        except PermissionError:
            user_ns = None
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(errno.ESRCH, f"process {pid} ended") from None
    if exited(pidfd):
        raise ProcessLookupError(errno.ESRCH, f"process {pid} ended")
    fields = {name: value.split() for name, _, value in (line.partition(b":") for line in lines)}
    uids = tuple(map(int, fields[b"Uid"][:3]))
    return Credentials(
        uids=uids,
        gids=tuple(map(int, fields[b"Gid"][:3])),
        permitted=int(fields[b"CapPrm"][0], 16),
        effective=int(fields[b"CapEff"][0], 16),
        dumpable=owner == uids[1],
        user_ns=user_ns,
    )


def may_access(peer: Credentials, target: Credentials) -> bool:
    """Return whether ``peer`` may look at ``target`` (``PTRACE_MODE_READ_REALCREDS``).

    Kernel: a capability counts for the targets of descendant user namespaces, too. Here: it does not, because /proc
    does not tell how namespaces are related.
    """
    if peer.user_ns is None or peer.user_ns != target.user_ns:
        return False
    if peer.effective & _CAP_SYS_PTRACE:
        return True
    same_user = set(target.uids) == {peer.uids[0]} and set(target.gids) == {peer.gids[0]}
    return same_user and target.dumpable and not target.permitted & ~peer.permitted


@define
class _Answer:
    pidfd: int
    permitted: bool
    until: int


class Rights:
    """Which processes one peer, at the other end of a socket, may tell about.

    Its credentials are those that it had when it connected, as with an open file.

    * With CAP_SYS_PTRACE in our user namespace: every number, 0 (physical memory) and numbers of no process included.
    * Else itself, and the processes that it could look at with ptrace.
    * Numbers of no process: only for a peer of the very user and group that we run as.

    :param pid: the peer.
    :param pidfd: the peer; stays the caller's to close, after this object.
    :param uid: effective user when it connected (``SO_PEERCRED``).
    :param gid: likewise.
    :raises OSError: ESRCH the peer ended; EPERM it is not who connected any more.
    """

    def __init__(self, pid: int, pidfd: int, uid: int, gid: int) -> None:
        self._pid = pid
        peer = credentials_of(pid, pidfd)
        if peer.uids[1] != uid or peer.gids[1] != gid:
            raise OSError(errno.EPERM, f"process {pid} changed its user or group since it connected")
        if uid and not peer.dumpable:
            # What it may do now it may have gained by an exec() since it connected.
            peer = Credentials(peer.uids, peer.gids, 0, 0, False, peer.user_ns)
        self._peer = peer
        own = os.stat("/proc/self/ns/user")
        at_home = peer.user_ns == (own.st_dev, own.st_ino)
        #: Nothing is forbidden to this peer.
        self.everything = at_home and bool(peer.effective & _CAP_SYS_PTRACE)
        self._free_numbers = at_home and (uid, gid) == (os.geteuid(), os.getegid())
        self._answers: dict[int, _Answer] = {}
        #: Until when reports of the peer about itself count, once it ended: its number is not used again so soon.
        self._itself_until: int | None = None
        self._questions: float = _QUESTIONS
        self._then = time.monotonic_ns()
        self._pidfd = pidfd
        self._exits = select.epoll()
        self._exits.register(pidfd, select.EPOLLIN)

    def permitted(self, pids: list[int]) -> list[bool]:
        """Tell for each of ``pids`` whether the peer may tell about it; costs little for those it told about before."""
        if self.everything:
            return [True] * len(pids)
        now = time.monotonic_ns()
        for fd, _ in self._exits.poll(0):
            if fd == self._pidfd:
                self._exits.unregister(fd)
                self._itself_until = now + _ANSWER_HOLDS
            for pid in [pid for pid, answer in self._answers.items() if answer.pidfd == fd]:
                self._forget(pid)
        self._questions = min(self._questions + (now - self._then) * 1e-9 * _QUESTIONS_A_SECOND, _QUESTIONS)
        self._then = now
        results = []
        for pid in pids[:_MAX_KNOWN]:
            if pid == self._pid:
                results.append(self._itself_until is None or now < self._itself_until)
                continue
            answer = self._answers.get(pid)
            if answer is None or now >= answer.until:
                answer = self._ask(pid, now) if self._questions >= 1 else None
            results.append(answer is not None and answer.permitted)
        return results + [False] * (len(pids) - len(results))

    def _ask(self, pid: int, now: int) -> _Answer:
        self._questions -= 1
        self._forget(pid)
        while len(self._answers) >= _MAX_KNOWN:
            self._forget(next(iter(self._answers)))
        pidfd = -1
        try:
            if pid <= 0:
                permitted = False
            else:
                pidfd = pidfd_open(pid)
                permitted = may_access(self._peer, credentials_of(pid, pidfd))
                self._exits.register(pidfd, select.EPOLLIN)
        except OSError as error:
            permitted = error.errno in (errno.ESRCH, errno.ENOENT, errno.EINVAL) and self._free_numbers
            if pidfd >= 0:
                os.close(pidfd)
                pidfd = -1
        answer = self._answers[pid] = _Answer(pidfd, permitted, now + _ANSWER_HOLDS)
        return answer

    def _forget(self, pid: int) -> None:
        answer = self._answers.pop(pid, None)
        if answer is not None and answer.pidfd >= 0:
            os.close(answer.pidfd)

    def close(self) -> None:
        """Give the file descriptors back."""
        for pid in list(self._answers):
            self._forget(pid)
        self._exits.close()
