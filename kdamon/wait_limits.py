# SPDX-License-Identifier: GPL-2.0-only
"""Limits how long callers wait for a kdamond.

Kernel: waits without a limit, because no target can block a kdamond. Here: a process decides how fast the kernel works
on its memory, for example if it maps a FUSE file system of its own. So a target can block a kdamond for as long as it
likes; callers that wait for the kdamond give up, and it ends, or answers, when it can.
(docs/deviations.md#stopping-has-a-time-limit)
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Final

from kdamon.damon import damon_ctx

__all__ = ["PATIENCE", "held_up_error", "wait_for_kdamond"]

#: Seconds that a kdamond may be late, or take to end, before it counts as blocked.
PATIENCE: Final = 10.0
#: Seconds between two checks of the kdamond.
_STEP: Final = 0.5


def wait_for_kdamond(ctx: damon_ctx, done: Callable[[float], bool]) -> bool:
    """Wait for the kdamond of ``ctx``, however long its intervals are; returns False once it is blocked.

    :param done: waits for what is waited for, so many seconds at most, and returns whether it came.
    """
    end = time.monotonic() + PATIENCE
    while not done(_STEP):
        # The context's own clock, by which it sleeps, need not be that of the machine.
        if time.monotonic() > end and ctx.clock.now() - ctx.deadline > PATIENCE * 1e9:
            return done(0.0)
    return True


def held_up_error(ctx: damon_ctx) -> OSError:
    """The error EBUSY that the kdamond of ``ctx`` is blocked."""
    kdamond = ctx.kdamond
    return OSError(
        errno.EBUSY,
        f"{'the kdamond' if kdamond is None else kdamond.name} has waited for its targets' memory for more than "
        f"{PATIENCE:.0f} s, and goes on when that answers; try again later, or end the targets",
    )
