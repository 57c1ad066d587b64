# SPDX-License-Identifier: GPL-2.0-only
"""Waiting for a condition: on a busy machine another process may get no CPU for long."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["eventually"]


def eventually(condition: Callable[[], object], what: str = "", seconds: float = 120, pause: float = 0.002) -> bool:
    """Wait until ``condition()`` is true; return whether it became so.

    :param what: if given, name of the condition; the test fails where it does not become true.
    :param pause: seconds between two looks.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            assert not what, f"{what} never came true"
            return False
        time.sleep(pause)
    return True
