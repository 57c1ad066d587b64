# SPDX-License-Identifier: GPL-2.0-only
"""How long a kdamond is waited for.

Kernel: waits without a limit, since nothing that a target does can hold a kdamond up. Here: a process decides how fast
the kernel works on its memory, as where that is of a FUSE file system of its own. So a kdamond may be held up for as
long as a target likes; what waits for one has to go on, and it ends, or answers, when it can.
(docs/deviations.md#stopping-has-a-time-limit)
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Final

from kdamon.damon import damon_ctx

__all__ = ["PATIENCE", "held_up_error", "wait_for_kdamond"]

#: Seconds that a kdamond may be late, or take to end, before it counts as held up.
PATIENCE: Final = 10.0
#: Seconds after which the kdamond is looked at again.
_STEP: Final = 0.5


def wait_for_kdamond(ctx: damon_ctx, done: Callable[[float], bool]) -> bool:
    """Wait for the kdamond of ``ctx``, however long its intervals are; returns False once it is held up.

    :param done: waits for what is waited for, so many seconds at most, and returns whether it came.
    """
    end = time.monotonic() + PATIENCE
    while not done(_STEP):
        # The context's own clock, by which it sleeps, need not be that of the machine.
        if time.monotonic() > end and ctx.clock.now() - ctx.deadline > PATIENCE * 1e9:
            return done(0.0)
    return True


def held_up_error(ctx: damon_ctx) -> OSError:
    """That the kdamond of ``ctx`` is held up: EBUSY."""
    kdamond = ctx.kdamond
    return OSError(
        errno.EBUSY,
        f"{'the kdamond' if kdamond is None else kdamond.name} has been at work on its targets' memory for more than "
        f"{PATIENCE:.0f} s, and goes on when that answers; try again later, or end the targets",
    )
