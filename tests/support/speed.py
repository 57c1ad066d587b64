# SPDX-License-Identifier: GPL-2.0-only
"""How slow this machine is, for tests whose programs must keep up with time; an emulated one is ten times slower."""

from __future__ import annotations

import functools
import mmap
import time
from typing import Final

__all__ = ["slowness"]

#: Seconds that the function below takes on the machines that the tests' intervals are chosen for.
_USUAL: Final = 0.006
_PAGES: Final = 2048


def _touch() -> float:
    """Seconds for page faults and Python, which is what monitoring by faults consists of."""
    with mmap.mmap(-1, _PAGES * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        began = time.perf_counter()
        for page in range(_PAGES):
            memory[page * 4096] = 1
        return time.perf_counter() - began


@functools.cache
def slowness() -> float:
    """By what factor this machine is slower than usual, at least 1; the best of some tries, so without load."""
    return max(1.0, min(_touch() for _ in range(10)) / _USUAL)
