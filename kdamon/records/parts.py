# SPDX-License-Identifier: GPL-2.0-only
"""The files of a run that is split: their names, and which of them are too old to be kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from datetime import UTC, datetime

from kdamon.lib.trusted import open_place, open_to_read
from kdamon.records.files import BESIDE, is_record
from kdamon.records.schema import SUFFIX

__all__ = ["free_name", "part_name", "remove_old"]

_TIME = "%Y%m%dT%H%M%SZ"


def part_name(path: str, when: datetime) -> str:
    """The name of the part of ``path`` that begins at a time: ``run.kdamon`` is ``run-20261201T120000Z.kdamon``."""
    return f"{_stem(path)}-{when.astimezone(UTC).strftime(_TIME)}{SUFFIX}"


def _stem(path: str) -> str:
    return path.removesuffix(SUFFIX)


def free_name(path: str) -> str:
    """The first of ``run.kdamon``, ``run-2.kdamon`` and so on that no file has."""
    number, name = 1, path
    while os.path.lexists(name):
        number += 1
        name = f"{_stem(path)}-{number}{SUFFIX}"
    return name


def _is_written(path: str) -> bool:
    """Whether a kdamon writes to a record: what it writes is in another file for some time."""
    descriptor = open_to_read(path, os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove_old(path: str, seconds: float) -> list[str]:
    """Remove the parts of ``path``, of this run and of earlier ones, that were written last so long ago.

    Only records that this process's user owns, with names as of :func:`part_name`, are removed.

    :returns: their names.
    """
    form = re.compile(re.escape(os.path.basename(_stem(path))) + r"-\d{8}T\d{6}Z" + re.escape(SUFFIX))
    above = os.path.dirname(path)
    removed = []
    with open_place(path) as place, contextlib.suppress(OSError):
        listing = os.open(f"/proc/self/fd/{place.directory}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in sorted(filter(form.fullmatch, os.listdir(listing))):
                status = os.stat(name, dir_fd=listing, follow_symlinks=False)
                mine = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
                whole = os.path.join(above, name)
                if not mine or time.time() - status.st_mtime < seconds or not is_record(whole) or _is_written(whole):
                    continue
                for end in ("", *BESIDE):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name + end, dir_fd=listing)
                removed.append(whole)
        finally:
            os.close(listing)
    return removed
