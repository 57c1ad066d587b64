# SPDX-License-Identifier: GPL-2.0-only
"""Which capabilities a verb keeps once everything is opened and started; the others it gives up."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["begin", "capabilities_for", "keep_only", "load_numpy"]

#: How many threads numpy's library starts when it is loaded.
_OPENBLAS_THREADS: Final = "OPENBLAS_NUM_THREADS"

_own_process = False
_threads_before: str | None = None


def begin() -> None:
    """This process is for nothing but the command line, so its capabilities may be given up. Before numpy is loaded.

    :func:`load_numpy` has to follow before another program is started.
    """
    global _own_process, _threads_before  # noqa: PLW0603 (a process is one)
    _own_process = True
    _threads_before = os.environ.get(_OPENBLAS_THREADS)
    os.environ[_OPENBLAS_THREADS] = "1"


def load_numpy() -> None:
    """Load numpy such that its library starts no threads, as nothing here has work for them.

    They would keep all capabilities, since no thread can give up those of another one.
    """
    import numpy  # noqa: F401, PLC0415 (it looks at the environment)

    # Programs that are started later are none of our business.
    if _own_process and _threads_before is None:
        os.environ.pop(_OPENBLAS_THREADS, None)
    elif _own_process and _threads_before is not None:
        os.environ[_OPENBLAS_THREADS] = _threads_before


def keep_only(*capabilities: str, new_privileges: bool = False) -> None:
    """Give up all capabilities but these, unless this process goes on after the command line.

    See :func:`kdamon.lib.capabilities.give_up_capabilities`.
    """
    if _own_process:
        # What numpy loads when it is used may be out of reach then.
        import numpy.ma  # noqa: PLC0415
        import numpy.random  # noqa: F401, PLC0415

        from kdamon.lib.capabilities import give_up_capabilities  # noqa: PLC0415 (numpy comes with it)

        give_up_capabilities(*capabilities, new_privileges=new_privileges)


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
