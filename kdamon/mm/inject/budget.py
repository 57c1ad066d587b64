# SPDX-License-Identifier: GPL-2.0-only
"""Limits the number and the time of the stops of a process's threads for :mod:`kdamon.mm.inject`.

A stop interrupts the system call that a thread waits in, and some calls begin their timeout anew. So the total time of
the stops is limited, and the number of stops in vain: otherwise a process that can never be used would be stopped for
ever, and its timeout would never expire.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import define

from kdamon.lib.process_status import stat_fields

__all__ = ["HOLD", "Stop", "StopBudget"]

#: Seconds after which the helper's timer lets a thread go, or a multiple of them on a slow machine.
HOLD: Final = 0.25
#: Seconds in the last minute for which threads of a process may have stood still; then it is left alone.
_SECONDS: Final = 0.5
#: Stops in the last minute that may have led to nothing.
_IN_VAIN: Final = 10
_MINUTE: Final = 60.0


@define(slots=True)
class Stop:
    """A stop of a thread.

    :ivar ended: when it ended, seconds of the monotonic clock.
    :ivar seconds: for how long the thread may have stood still.
    :ivar in_vain: it led to nothing.
    """

    ended: float = 0.0
    seconds: float = 0.0
    in_vain: bool = True


class StopBudget:
    """The stops of the last minute, for each process.

    :param seconds: for how long its threads may stand still in a minute, together.
    :param in_vain: how many stops in a minute may lead to nothing.
    """

    def __init__(self, seconds: float = _SECONDS, in_vain: float = _IN_VAIN) -> None:
        self.seconds = seconds
        self.in_vain = in_vain
        self._lock = threading.Lock()
        self._stops: dict[tuple[int, str], list[Stop]] = {}

    def check(self, pid: int, why: str = "") -> None:
        """Refuse to stop a process more often.

        :param why: what came of the last stop, for the message.
        :raises OSError: EBUSY it was stopped often enough.
        """
        with self._lock:
            self._forget()
            stops = list(self._stops.get((pid, _start_time(pid)), ()))
        spent, in_vain = sum(stop.seconds for stop in stops), sum(stop.in_vain for stop in stops)
        if spent < self.seconds and in_vain < self.in_vain:
            return
        how = f"for {spent:.1f} s" if spent >= self.seconds else f"{in_vain} times in vain"
        reason = f" ({why})" if why else ""
        raise OSError(
            errno.EBUSY,
            f"process {pid} was stopped {how} in the last minute, and more stops would disturb it{reason}; try again "
            "in a minute",
        )

    @contextlib.contextmanager
    def spending(self, pid: int, most: float = HOLD) -> Iterator[Stop]:
        """A thread of the process may be stopped in this context; the caller marks a stop that was in vain.

        :param most: seconds after which the helper lets it go at the latest.
        """
        key = pid, _start_time(pid)
        begin = time.monotonic()
        stop = Stop()
        try:
            yield stop
        finally:
            stop.ended = time.monotonic()
            stop.seconds = min(stop.ended - begin, most)
            with self._lock:
                self._stops.setdefault(key, []).append(stop)

    def _forget(self) -> None:
        since = time.monotonic() - _MINUTE
        for key, stops in list(self._stops.items()):
            self._stops[key] = [stop for stop in stops if stop.ended > since]
            if not self._stops[key]:
                del self._stops[key]


def _start_time(pid: int) -> str:
    """The identity of a process, which a later one of the same number does not have."""
    try:
        return stat_fields(Path(f"/proc/{pid}/stat").read_bytes())[19].decode()
    except (OSError, IndexError):
        return ""
