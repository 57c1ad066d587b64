# SPDX-License-Identifier: GPL-2.0-only
"""How slow this machine is, for tests whose programs must keep up with time; an emulated one is ten times slower."""

from __future__ import annotations

import functools
import time
from typing import Final

__all__ = ["slowness"]

#: Seconds that the loop below takes on the machines that the tests' intervals are chosen for.
_USUAL: Final = 0.0125
_TURNS: Final = 200_000


def _loop() -> float:
    began = time.perf_counter()
    for _ in range(_TURNS):
        pass
    return time.perf_counter() - began


@functools.cache
def slowness() -> float:
    """By what factor Python is slower here than usual, at least 1; the best of some tries, so without load."""
    return max(1.0, min(_loop() for _ in range(5)) / _USUAL)
