# SPDX-License-Identifier: GPL-2.0-only
"""Limits for the producers of reports: the share of each user.

Every producer takes file descriptors, a ring of memory and time of the thread that reads it, and any user may be one.
Root, and the user that kdamon runs as, have no limit, except that half of all file descriptors stays reserved for
monitoring. Other users are limited each, and all of them together: a user may have no more than what remains for the
others, so that a user that has nothing yet gets something, however much the others have.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterable
from typing import Final

from attrs import define, field

from kdamon.producers.credentials import KnownProcesses, SpareQuestions

__all__ = ["MAX_RECORDS", "Admission", "User"]

#: Rings of one user.
_RINGS_PER_USER: Final = 64
#: Records in the rings of one user and of all users together: memory that kdamon may have to pay for, 48 bytes each.
_RECORDS_PER_USER: Final = 1 << 22
MAX_RECORDS: Final = 1 << 24
#: Descriptors of one user and of all users together; and the share of all that the process may have.
_DESCRIPTORS_PER_USER: Final = 1024
_MAX_DESCRIPTORS: Final = 8192
_SHARE_OF_OTHERS: Final = 4
_SHARE_OF_ALL: Final = 2

#: Descriptors that a connection takes: itself and a pidfd; a ring: its memory and the mapping of its head. A user
#: that reports takes one more, an epoll descriptor.
_CONNECTION: Final = 2
_RING: Final = 2

#: Users without any connection whose questions are remembered, and for how long, nanoseconds.
_MAX_LEFT: Final = 1024
_REMEMBERED: Final = 2_000_000_000


@define(eq=False)
class User:
    """The account of one user's producers.

    :ivar uid: the user.
    :ivar limited: it is neither root nor the user that kdamon runs as.
    :ivar known: the processes that they report on.
    :ivar warned: it was said that reports of them found no room.
    """

    uid: int
    limited: bool
    known: KnownProcesses
    connections: int = 0
    rings: int = 0
    records: int = 0
    descriptors: int = 0
    warned: bool = False
    left_at: int = field(default=0)


class Admission:
    """Keeps the accounts of all users; for one thread."""

    def __init__(self) -> None:
        self._users: dict[int, User] = {}
        self._spare = SpareQuestions()

    def connect(self, uid: int) -> User:
        """Let a producer of user ``uid`` connect; :meth:`disconnect` undoes it.

        :raises OSError: EUSERS, EMFILE there are too many.
        """
        user = self._users.get(uid)
        if user is None:
            self._forget_old()
            user = self._users[uid] = self._new_user(uid)
        if not self._take(user, _CONNECTION):
            raise self._too_many(user, "connections")
        user.connections += 1
        return user

    def disconnect(self, user: User, capacity: int = 0) -> None:
        """Account for a producer that disconnected.

        :param capacity: records of its ring, 0 if it got none.
        """
        user.connections -= 1
        self._take(user, -_CONNECTION)
        if capacity:
            self.take_back(user, capacity)
        if not user.connections:
            user.left_at = time.monotonic_ns()
            user.known.close()

    def grant(self, user: User, capacity: int) -> None:
        """Let a producer that is connected have a ring of ``capacity`` records.

        :raises OSError: EUSERS, EMFILE its user, or all users together, have too many.
        """
        if user.limited:
            left = MAX_RECORDS - sum(other.records for other in self._limited()) - capacity
            if user.rings >= _RINGS_PER_USER or user.records + capacity > min(_RECORDS_PER_USER, left):
                raise self._too_many(user, f"rings: {user.rings}, of {user.records} records")
        if not self._take(user, _RING):
            raise self._too_many(user, "rings")
        user.rings += 1
        user.records += capacity

    def take_back(self, user: User, capacity: int) -> None:
        """Undo :meth:`grant`."""
        user.rings -= 1
        user.records -= capacity
        self._take(user, -_RING)

    def users(self) -> int:
        """How many users have rings and are limited."""
        return sum(user.rings > 0 for user in self._limited())

    def close(self) -> None:
        """Give all descriptors back."""
        for user in self._users.values():
            user.known.close()
        self._users.clear()

    def _limited(self) -> Iterable[User]:
        return (user for user in self._users.values() if user.limited)

    def _new_user(self, uid: int) -> User:
        user = User(uid, uid not in {0, os.geteuid()}, KnownProcesses(lambda n: self._take(user, n), self._spare))
        return user

    def _take(self, user: User, n: int) -> bool:
        """Account for ``n`` descriptors more, or -n less; returns whether they may be taken."""
        if n > 0:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            if sum(other.descriptors for other in self._users.values()) + n > limit // _SHARE_OF_ALL:
                return False
            if user.limited:
                others = min(_MAX_DESCRIPTORS, limit // _SHARE_OF_OTHERS)
                left = others - sum(other.descriptors for other in self._limited()) - n
                if user.descriptors + n > min(_DESCRIPTORS_PER_USER, left):
                    return False
        user.descriptors += n
        return True

    def _too_many(self, user: User, what: str) -> OSError:
        if not user.limited:
            return OSError(errno.EMFILE, "kdamon keeps its other file descriptors for monitoring; raise 'ulimit -n'")
        return OSError(errno.EUSERS, f"user {user.uid}, or all users together, have too many {what}")

    def _forget_old(self) -> None:
        """Forget users without connections; not at once, because the number of their questions is forgotten, too."""
        now = time.monotonic_ns()
        gone = [user for user in self._users.values() if not user.connections]
        for i, user in enumerate(gone):
            if len(gone) - i > _MAX_LEFT or now - user.left_at > _REMEMBERED:
                user.known.close()
                del self._users[user.uid]
