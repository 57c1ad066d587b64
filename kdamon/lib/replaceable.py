# SPDX-License-Identifier: GPL-2.0-only
"""Opens directories by name, safely for root where the name leads through directories of other users.

* :func:`open_directory` ``(name)`` opens it, and follows no link that another user may replace, nor ``..`` of a
  directory that another user may move;
* :func:`open_place` ``(name)`` does the same for whatever has the name.
* :func:`check_dots` ``(step)`` is the latter alone.
* :func:`replaceable` ``(directory)`` says which part of an open directory's path another user may replace.
"""

from __future__ import annotations

import errno
import os
import stat

from kdamon.lib.mountinfo import mount_of
from kdamon.lib.path_walk import Step, other_writers, path_of, trusted_owners, walk

__all__ = ["check_dots", "open_directory", "open_place", "replaceable"]


def open_directory(name: str) -> int:
    """Open a directory (O_PATH), or the root of a dead FUSE mount.

    :raises OSError: ELOOP there are too many links, or one that another user may replace; EPERM a file system that
        another user serves; EACCES ``..`` of a directory that another user may move; EXDEV a link of ``/proc`` leads
        out of this mount namespace; ENOTDIR; or as ``openat(2)``.
    """
    place = open_place(name)
    try:
        if not _is_directory(place):
            raise OSError(errno.ENOTDIR, "it is not a directory")
    except BaseException:
        os.close(place)
        raise
    return place


def _is_directory(place: int) -> bool:
    try:
        return stat.S_ISDIR(os.fstat(place).st_mode)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return True
        raise


def open_place(name: str) -> int:
    """Open what has a name (O_PATH), of whatever type it is.

    :raises OSError: those of :func:`open_directory`.
    """
    with walk(name, _judge) as place:
        if place.found < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return place.take()


def check_dots(step: Step) -> None:
    """Refuse ``..`` of a directory that another user may move: that user chooses the directory above it.

    :raises OSError: EACCES it is.
    """
    if step.name == ".." and (found := replaceable(step.directory)):
        place, user = found
        inside = "" if place == (path := path_of(step.directory)) else f" in {place}"
        sentence = f"'..' leads out of {path}{inside}, and {user} may move that; name the directory that is meant"
        raise OSError(errno.EACCES, sentence)


def _judge(step: Step) -> None:
    check_dots(step)
    if step.through and mount_of(step.entry) is None:
        sentence = "leads out of this mount namespace or root directory; run kdamon there, as by nsenter(1)"
        raise OSError(errno.EXDEV, f"{step.name} {sentence}")
    if not stat.S_ISLNK(step.status.st_mode):
        return
    replacer = _replacer(os.fstat(step.directory), step.status)
    found = (path_of(step.directory), replacer) if replacer else replaceable(step.directory)
    if found is not None:
        place, user = found
        sentence = f"{step.name} is a symbolic link, and {user} may replace it or {place}"
        raise OSError(errno.ELOOP, f"{sentence}; name the directory that is meant")


def replaceable(directory: int) -> tuple[str, str] | None:
    """The nearest part of a directory's path that another user may replace.

    :param directory: a descriptor of it.
    :returns: the path of that part, and the user that may replace it; None if only root and this user may.
    """
    below = os.dup(directory)
    try:
        while True:
            above = os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=below)
            below, child = above, below
            try:
                outer, inner = os.fstat(above), os.fstat(child)
                if os.path.samestat(outer, inner):
                    return None
                if user := _replacer(outer, inner):
                    return path_of(child), user
            finally:
                os.close(child)
    finally:
        os.close(below)


def _replacer(directory: os.stat_result, entry: os.stat_result) -> str | None:
    """Which other user may rename, remove and replace ``entry`` of ``directory``."""
    trusted = trusted_owners()
    if directory.st_uid not in trusted:
        return f"user {directory.st_uid}"
    writers = other_writers(directory)
    if writers and directory.st_mode & stat.S_ISVTX:
        return None if entry.st_uid in trusted else f"user {entry.st_uid}"
    return writers
