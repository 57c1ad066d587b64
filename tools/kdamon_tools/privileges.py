# SPDX-License-Identifier: GPL-2.0-only
"""Which capabilities a verb keeps once everything is opened and started; the others it gives up."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kdamon.trusted import open_place

__all__ = ["begin", "capabilities_for", "keep_only"]

_own_process = False


def begin() -> None:
    """This process is for nothing but the command line, so its capabilities may be given up. Before numpy is loaded."""
    global _own_process  # noqa: PLW0603 (a process is one)
    _own_process = True
    _load_numpy()


def keep_only(*capabilities: str, new_privileges: bool = False) -> None:
    """Give up all capabilities but these, unless this process goes on after the command line.

    See :func:`kdamon.mm.capabilities.give_up_capabilities`.
    """
    if _own_process:
        # What numpy loads when it is used may be out of reach then.
        import numpy.ma  # noqa: PLC0415
        import numpy.random  # noqa: F401, PLC0415

        from kdamon.mm.capabilities import give_up_capabilities  # noqa: PLC0415 (numpy comes with it)

        give_up_capabilities(*capabilities, new_privileges=new_privileges)


def _load_numpy() -> None:
    """Load numpy such that its library starts no threads, as nothing here has work for them.

    They would keep all capabilities, since no thread can give up those of another one.
    """
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import numpy  # noqa: F401, PLC0415 (it looks at the environment)
    finally:
        # Programs that are started later are none of our business.
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def capabilities_for(*paths: Path | None) -> tuple[str, ...]:
    """What it takes to replace or remove the files ``paths`` at the end, names ``CAP_...``.

    Nothing where this process's user owns every directory above them; None stands for no file.
    """
    for path in paths:
        if path is not None and not _is_below_own_directories(path):
            return ("CAP_DAC_OVERRIDE", "CAP_FOWNER")
    return ()


def _is_below_own_directories(path: Path) -> bool:
    """Whether this process's user owns all directories that lead to ``path``; no other user's file system is asked."""
    with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
        below = opened.enter_context(open_place(path)).directory
        while os.fstat(below).st_uid == os.geteuid():
            above = os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=below)
            opened.callback(os.close, above)
            if os.path.sameopenfile(above, below):
                return True
            below = above
    return False
