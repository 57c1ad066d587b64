# SPDX-License-Identifier: GPL-2.0-only
"""The limit of open files: how to raise it, and how long kdamon bears having reached it.

At the limit kdamon cannot read processes any more, and memory that it does not sample must not look idle."""

from __future__ import annotations

import errno
import logging
import os
import resource
import time
from typing import Final

__all__ = ["FileShortage", "files_ran_out", "raise_file_limit", "too_many_files"]

log = logging.getLogger("kdamon")

_RAN_OUT: Final = frozenset({errno.EMFILE, errno.ENFILE})
#: Seconds for which a shortage of files is borne.
_PATIENCE: Final = 1.0


def raise_file_limit() -> None:
    """Raise this process's limit of open files to the hard limit: each monitored process and each producer takes a few.

    The usual limit, 1024, is that of select(), which nothing here uses. What this process starts afterwards inherits
    it: to be called after other programs were started.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def files_ran_out(error: BaseException | None) -> bool:
    """Return whether ``error`` says that no more files can be opened: EMFILE by this process, ENFILE by any."""
    return isinstance(error, OSError) and error.errno in _RAN_OUT


def too_many_files(error: OSError, what: str) -> OSError:
    """Add to ``error``, a shortage of files (:func:`files_ran_out`), the operation that failed and the remedy.

    :param what: such as "process 7 cannot be monitored"; not used where there is a sentence already.
    """
    if error.strerror != os.strerror(error.errno or 0):
        return error
    if error.errno == errno.ENFILE:
        return OSError(error.errno, f"{what}: the machine has too many files open; raise fs.file-max by sysctl")
    return OSError(error.errno, f"{what}: too many files are open; raise the limit with 'ulimit -n'")


class FileShortage:
    """A shortage of files that is an error once it lasts: memory that is not sampled must not look idle."""

    def __init__(self) -> None:
        self._since: float | None = None

    def bear(self, error: OSError, what: str) -> None:
        """Continue without the file that could not be opened.

        :param error: why not; :func:`files_ran_out`.
        :param what: as for :func:`too_many_files`.
        :raises OSError: EMFILE, ENFILE the shortage lasts.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
            log.warning("%s", too_many_files(error, what).strerror)
        if now - self._since >= _PATIENCE:
            raise too_many_files(error, what) from error

    def end(self) -> None:
        """A file could be opened."""
        self._since = None
