# SPDX-License-Identifier: GPL-2.0-only
"""Gives up the capabilities that a verb does not need once everything is opened and started."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["begin", "capabilities_for", "keep_only", "load_numpy"]

#: The variable for the number of threads that numpy's library starts.
_OPENBLAS_THREADS: Final = "OPENBLAS_NUM_THREADS"

_own_process = False
_threads_before: str | None = None


def begin() -> None:
    """Note that this process only runs the command line, so its capabilities may be given up. Before numpy is loaded.

    :func:`load_numpy` must follow before another program is started.
    """
    global _own_process, _threads_before  # noqa: PLW0603 (a process is one)
    _own_process = True
    _threads_before = os.environ.get(_OPENBLAS_THREADS)
    os.environ[_OPENBLAS_THREADS] = "1"


def load_numpy() -> None:
    """Load numpy such that its library starts no threads, which kdamon does not use.

    They would keep all capabilities, because no thread can give up those of another one.
    """
    import numpy  # noqa: F401, PLC0415 (it looks at the environment)

    # Programs that are started later inherit the original environment.
    if _own_process and _threads_before is None:
        os.environ.pop(_OPENBLAS_THREADS, None)
    elif _own_process and _threads_before is not None:
        os.environ[_OPENBLAS_THREADS] = _threads_before


def keep_only(*capabilities: str, new_privileges: bool = False) -> None:
    """Give up all capabilities except these, unless this process continues after the command line.

    See :func:`kdamon.lib.capabilities.give_up_capabilities`.
    """
    if _own_process:
        if "CAP_DAC_OVERRIDE" not in capabilities:
            # Modules that numpy loads lazily may be unreadable then.
            import numpy.ma  # noqa: PLC0415
            import numpy.random  # noqa: F401, PLC0415

        from kdamon.lib.capabilities import give_up_capabilities  # noqa: PLC0415 (numpy comes with it)

        give_up_capabilities(*capabilities, new_privileges=new_privileges)


def capabilities_for(*paths: Path | None) -> tuple[str, ...]:
    """The capabilities (``CAP_...``) to replace or remove the files ``paths`` at the end.

    None are needed if this process's user owns every directory above them; a path None stands for no file.
    """
    for path in paths:
        if path is not None and not _is_below_own_directories(path):
            return ("CAP_DAC_OVERRIDE", "CAP_FOWNER")
    return ()


def _is_below_own_directories(path: Path) -> bool:
    """Whether this process's user owns all directories of ``path``; no other user's file system is accessed."""
    from kdamon.lib.trusted import open_place  # noqa: PLC0415 (not for --help)

    with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
        below = opened.enter_context(open_place(path)).directory
        while os.fstat(below).st_uid == os.geteuid():
            above = os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=below)
            opened.callback(os.close, above)
            if os.path.sameopenfile(above, below):
                return True
            below = above
    return False
