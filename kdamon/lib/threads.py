# SPDX-License-Identifier: GPL-2.0-only
"""Threads that are to end: waits for them, and says where those are that do not."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from pathlib import Path
from typing import Final

from kdamon.lib.process_status import stat_fields

__all__ = ["join_for", "where_is"]

log = logging.getLogger("kdamon")

#: Seconds of one wait among several.
_STEP: Final = 0.1


def join_for(thread: threading.Thread, seconds: float) -> bool:
    """Wait until ``thread`` ended or ``seconds`` passed; returns whether it ended.

    Only time in which this process could run counts: it may be stopped (SIGSTOP), or the machine may be.
    """
    left = seconds
    while thread.is_alive() and left > 0:
        thread.join(min(left, _STEP))
        left -= _STEP
    return not thread.is_alive()


def where_is(thread: threading.Thread) -> str:
    """What a thread of this process is doing, for an error: "kdamond.0 (thread 7) in clear() at space.py:9, ...".

    The log at level DEBUG gets its Python stack.
    """
    frames = sys._current_frames()
    name = f"{thread.name} (thread {thread.native_id})"
    if thread.ident is None or thread.ident not in frames:
        return f"{name} has ended"
    stack = traceback.extract_stack(frames[thread.ident])
    log.debug("%s is at:\n%s", name, "".join(traceback.format_list(stack)).rstrip())
    here = stack[-1]
    return f"{name} in {here.name}() at {Path(here.filename).name}:{here.lineno}, {_in_kernel(thread.native_id)}"


def _in_kernel(tid: int | None) -> str:
    """The state of a thread, and where in the kernel it waits."""
    task = Path(f"/proc/self/task/{tid}")
    try:
        state = stat_fields((task / "stat").read_bytes())[0].decode()
        place = (task / "wchan").read_text()
    except OSError:
        return "gone"
    return f"state {state}" if place in {"", "0"} else f"state {state} in the kernel's {place}()"
