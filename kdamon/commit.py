# SPDX-License-Identifier: GPL-2.0-only
"""A commit to a running context: the kdamond makes only the commit itself.

Kernel: the kdamond builds the new context, too, which takes next to no time. Here: opening a process can take seconds,
for example if a thread must be stopped for a userfaultfd and cannot be right now; and so can releasing one. The caller
does both, in a thread of its own, while the kdamond samples. (docs/deviations.md#processes-are-opened-without-the-lock)
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from kdamon.core import damon_call, damon_commit_ctx
from kdamon.damon import damon_call_control, damon_ctx

__all__ = ["call_commit"]


def call_commit(ctx: damon_ctx, src: damon_ctx, then: Callable[[], None] = lambda: None) -> None:
    """Let the kdamond of ``ctx`` commit ``src`` to it, and wait for that.

    ``src`` stays the caller's, to be destroyed afterwards. When this raises, nothing was committed and nothing will be,
    unless it was ``then`` that raised.

    :param then: called in the kdamond after the commit.
    :raises OSError: as :func:`kdamon.core.damon_call`; what :func:`kdamon.core.damon_commit_ctx` and ``then`` raise.
    """
    # A blocked kdamond may come to the call after the caller gave up.
    turn = threading.Lock()
    done = given_up = False

    def commit(_: None) -> None:
        nonlocal done
        with turn:
            if not given_up:
                damon_commit_ctx(ctx, src)
                ctx.machine = ctx.machine or src.machine
                then()
                done = True

    try:
        damon_call(ctx, damon_call_control(fn=commit))
    except OSError:
        with turn:
            given_up = True
        if not done:
            raise
