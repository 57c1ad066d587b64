# SPDX-License-Identifier: GPL-2.0-only
"""Sets the interpreter up for a process whose kdamonds share it with displays, files and clients."""

from __future__ import annotations

import gc
import sys
from typing import Final

__all__ = ["begin", "ready"]

#: Seconds after which a thread yields the interpreter to one that waits for it. Python's own 5 ms are a sampling
#: interval.
_SWITCH_S: Final = 0.0001

_own_process = False


def begin() -> None:
    """Note that this process only runs the command line, and collect no garbage while modules are loaded."""
    global _own_process  # noqa: PLW0603 (a process is one)
    _own_process = True
    gc.disable()


def ready() -> None:
    """Let no thread keep kdamonds from running for long, from now on; may be repeated when more was loaded.

    The garbage collector leaves out what exists by now: a walk through all modules takes 10 ms or more, in which no
    thread runs. Without :func:`begin` nothing changes: the process may be another program's.
    """
    if _own_process:
        sys.setswitchinterval(_SWITCH_S)
        gc.freeze()
        gc.enable()
