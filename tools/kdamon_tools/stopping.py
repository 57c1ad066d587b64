# SPDX-License-Identifier: GPL-2.0-only
"""The end of a verb: the signals that request it, and work that must not delay it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from kdamon.lib.threads import join_for

__all__ = ["StopSignals"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds between two checks for a signal.
_LOOK_S: Final = 0.02


class StopSignals:
    """Collects SIGINT, SIGTERM and SIGHUP while the ``with`` block runs; true once one came.

    The second signal of a kind has its default effect; after :meth:`protect` it ends :meth:`wait_for` instead, and the
    third one has the default effect. SIGHUP stays ignored under nohup.
    """

    def __init__(self) -> None:
        self._came: list[int] = []
        self._previous: dict[int, Any] = {}
        self._noted = 1

    def __bool__(self) -> bool:
        return bool(self._came)

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}
        if self._previous[signal.SIGHUP] is signal.SIG_IGN:
            del self._previous[signal.SIGHUP]
        for number in self._previous:
            signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.let_through()

    def let_through(self) -> None:
        """Restore the usual effect of the signals; may be repeated."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, _frame: object) -> None:
        self._came.append(number)
        if self._came.count(number) >= self._noted and number in self._previous:
            signal.signal(number, self._previous[number])

    def protect(self) -> None:
        """Collect one more signal of each kind: from now on, data could be lost."""
        self._noted = 2
        for number in self._previous:
            signal.signal(number, self._note)

    @property
    def urgent(self) -> bool:
        """Whether a signal came a second time."""
        return len(self._came) > len(set(self._came))

    def wait_for(self, work: Callable[[], object], seconds: float) -> bool:
        """Do ``work`` in a thread, which is abandoned after ``seconds``, or when a signal comes a second time.

        :returns: whether it is done.
        :raises: the exception that ``work`` raised.
        """
        failures: list[BaseException] = []

        def do() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=do, name="kdamon-end", daemon=True)
        thread.start()
        # Some time after the other, not until a time: this process may be stopped meanwhile, and the machine may be.
        left = seconds
        while left > 0 and not self.urgent and not join_for(thread, min(left, _LOOK_S)):
            left -= _LOOK_S
        if failures:
            raise failures[0]
        return not thread.is_alive()
