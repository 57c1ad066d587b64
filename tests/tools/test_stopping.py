# SPDX-License-Identifier: GPL-2.0-only
"""Signals that request the end: what comes twice at once is one, and a second one later is impatience."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from kdamon_tools.stopping import StopSignals


def send(times: int) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGTERM)


def test_one_that_comes_twice_at_once_is_one() -> None:
    """Without the default effect of a second one, which would end this process."""
    with StopSignals() as stop:
        send(1)
        # As if it came a moment later, in which the handler of the first one waits.
        stop._note(signal.SIGTERM, None)
        assert stop
        assert not stop.urgent
        assert signal.SIG_DFL == signal.getsignal(signal.SIGTERM)


@pytest.mark.real
def test_a_duplicate_while_the_first_one_is_handled() -> None:
    """As timeout(1) sends it: the second one may reach the process at any time within milliseconds."""
    with StopSignals() as stop:
        main = threading.main_thread().ident
        assert main is not None

        def send_some() -> None:
            for _ in range(3):
                signal.pthread_kill(main, signal.SIGTERM)
                time.sleep(0.01)

        thread = threading.Thread(target=send_some)
        thread.start()
        thread.join()
        assert (True, False) == (bool(stop), stop.urgent)


def test_a_second_one_later_is_urgent() -> None:
    """It ends a wait, once there is something to lose."""
    with StopSignals() as stop:
        stop.protect()
        send(2)
        assert not stop.urgent
        time.sleep(0.3)
        send(1)
        assert stop.urgent
        assert not stop.wait_for(lambda: time.sleep(1), 60)
