# SPDX-License-Identifier: GPL-2.0-only
"""The limit of open files, and what it means to have reached it: that processes cannot be looked at any more."""

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
    """Let this process have as many files open as it may: a few for each process that is monitored or reports.

    The usual limit, 1024, is that of select(), which nothing here uses. What this process starts afterwards inherits
    it: to be called after other programs were started.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def files_ran_out(error: BaseException | None) -> bool:
    """Return whether ``error`` says that no more files can be opened: EMFILE by this process, ENFILE by any."""
    return isinstance(error, OSError) and error.errno in _RAN_OUT


def too_many_files(error: OSError, what: str) -> OSError:
    """``error``, for which :func:`files_ran_out`, with a sentence on what cannot be done, and what to do.

    :param what: such as "process 7 cannot be monitored"; not used where there is a sentence already.
    """
    if error.strerror != os.strerror(error.errno or 0):
        return error
    if error.errno == errno.ENFILE:
        return OSError(error.errno, f"{what}: the machine has too many files open; raise fs.file-max by sysctl")
    return OSError(error.errno, f"{what}: too many files are open; raise the limit with 'ulimit -n'")


class FileShortage:
    """A shortage of files that is borne for a moment, and then is an error: what is not seen must not look idle."""

    def __init__(self) -> None:
        self._since: float | None = None

    def bear(self, error: OSError, what: str) -> None:
        """Go on without the file that could not be opened.

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
