# SPDX-License-Identifier: GPL-2.0-only
"""From when to when a kdamond really sampled: it may have been stopped, or had no CPU, for longer than it takes."""

from __future__ import annotations

import itertools
import threading

from kdamon.kernel import Clock

__all__ = ["SampledTime"]


class SampledTime:
    """A clock that notes when the kdamond that sleeps by it did not go on.

    A kdamond that comes to its next sleep late, or wakes late, misses sampling intervals: the core counts them, and the
    sample in progress lasts longer. When it comes later than ``longest``, this is a pause: next to nothing was sampled.

    :param clock: the clock itself.
    :param longest: nanoseconds that a sample may take too long without a pause.
    """

    __slots__ = ("_began", "_clock", "_longest", "_pauses", "_reached")

    def __init__(self, clock: Clock, longest: int) -> None:
        self._clock = clock
        self._longest = longest
        self._began: int | None = None
        self._reached = 0
        self._pauses: list[tuple[int, int]] = []

    def now(self) -> int:
        """Nanoseconds since some fixed point; any thread may call this."""
        return self._clock.now()

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        """Sleep, and note a pause before it and one at its end; only the kdamond may call this."""
        clock = self._clock
        now = clock.now()
        if self._began is None:
            self._began = self._reached = now
        self._reach(self._reached, now)
        clock.sleep_until(deadline, wake)
        self._reach(max(now, deadline), clock.now())

    @property
    def monotonic(self) -> bool:
        """See :class:`kdamon.kernel.Clock`."""
        return self._clock.monotonic

    def kept(self, until: int) -> None:
        """See :class:`kdamon.kernel.Clock`; only the kdamond may call this."""
        self._reached = max(self._reached, until)

    def _reach(self, planned: int, now: int) -> None:
        if now - planned > self._longest:
            self._pauses.append((planned, now))
        self._reached = now

    @property
    def reached(self) -> int:
        """Nanoseconds until which the kdamond came so far; 0 before it first sleeps."""
        return self._reached

    def take_span(self) -> tuple[int, int]:
        """From when to when samples were taken since the last call, or since the start: nanoseconds.

        With a pause in between it is the longer of the parts around it; only the kdamond may call this.
        """
        now = self.now()
        self._reach(self._reached, now)
        began = now if self._began is None else self._began
        bounds = [began, *itertools.chain(*self._pauses), now]
        self._began, self._pauses = now, []
        return max(zip(bounds[0::2], bounds[1::2], strict=True), key=lambda span: span[1] - span[0])
