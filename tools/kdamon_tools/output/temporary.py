# SPDX-License-Identifier: GPL-2.0-only
"""Temporary files that no other user can change."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import AbstractContextManager
from typing import IO, Final

from kdamon.lib.path_walk import UntrustedError
from kdamon.lib.trusted import open_trusted

__all__ = ["temporary_directory", "temporary_file"]

log = logging.getLogger("kdamon")

_VARIABLES: Final = ("TMPDIR", "TEMP", "TMP")
_USUAL: Final = ("/tmp", "/var/tmp")
_MAKE_FILES: Final = os.W_OK | os.X_OK


def temporary_directory() -> str:
    """The directory for temporary files: the environment's, unless another user can redirect its name.

    Python's last choice, the working directory, is never used: it may be any user's.
    """
    for variable in _VARIABLES:
        directory = os.environ.get(variable)
        if not directory:
            continue
        try:
            os.close(open_trusted(os.path.abspath(directory), sticky=True))
        except UntrustedError as error:
            log.warning("%s=%s is not used: %s", variable, directory, error.strerror)
        except (OSError, ValueError):
            pass
        else:
            if os.access(directory, _MAKE_FILES):
                return directory
    return next((directory for directory in _USUAL if os.access(directory, _MAKE_FILES)), _USUAL[0])


def temporary_file() -> AbstractContextManager[IO[bytes]]:
    """A temporary file without a name and without a buffer; it never outlives this process.

    :raises OSError: as ``open(2)``.
    """
    return tempfile.TemporaryFile(prefix="kdamon-", buffering=0, dir=temporary_directory())
