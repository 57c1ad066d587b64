# SPDX-License-Identifier: GPL-2.0-only
"""Another user's process, which does something again and again while root works."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def attacker(attack: Callable[[], None]) -> Iterator[None]:
    """Another user's process that repeats ``attack`` until the end of the block."""
    ready, started = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            attack()
            os.write(started, b"x")
            while True:
                attack()
        finally:
            os._exit(1)
    os.close(started)
    try:
        assert b"x" == os.read(ready, 1)
        yield
        assert (0, 0) == os.waitpid(pid, os.WNOHANG)
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def exchange(one: Path, other: Path) -> int:
    """Exchange two names at once; returns 0, or -1."""
    names = (os.fsencode(one), os.fsencode(other))
    return int(ctypes.CDLL(None).renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE))
