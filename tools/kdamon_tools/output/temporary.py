# SPDX-License-Identifier: GPL-2.0-only
"""Temporary files, where no other user has a say in what becomes of them."""

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
    """The directory for temporary files: the environment's, unless another user can change what it is.

    The working directory, which Python would try at last, is none: it may be anybody's.
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
    """A temporary file without a name and a buffer, so that nothing is left behind whatever happens.

    :raises OSError: as ``open(2)``.
    """
    return tempfile.TemporaryFile(prefix="kdamon-", buffering=0, dir=temporary_directory())
