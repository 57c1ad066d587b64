# SPDX-License-Identifier: GPL-2.0-only
"""Directories by name, as root may use names that lead through directories of users.

* :func:`open_directory` ``(name)`` opens it, and follows no link that another user may replace, nor ``..`` of a
  directory that another user may move;
* :func:`open_place` ``(name)`` does the same for whatever has the name.
* :func:`replaceable` ``(directory)`` says which part of an open directory's path another user may replace.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from kdamon.leftovers import mount_number
from kdamon.trusted import trusted_owners
from kdamon_fs.mounts import mount_of

__all__ = ["open_directory", "open_place", "replaceable"]

#: How many links a name may lead through, as in the kernel (MAXSYMLINKS).
_MOST_LINKS: Final = 40

_OPEN: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_directory(name: str) -> int:
    """Open a directory (O_PATH), or the root of a dead FUSE mount.

    :raises OSError: ELOOP there are too many links, or one that another user may replace; EACCES a file system that
        another user serves, or ``..`` of a directory that another user may move; EXDEV a link of ``/proc`` leads out of
        this mount namespace; ENOTDIR; or as ``openat(2)``.
    """
    place = open_place(name)
    try:
        if not stat.S_ISDIR(_mode(place, last=True)):
            raise OSError(errno.ENOTDIR, "it is not a directory")
    except BaseException:
        os.close(place)
        raise
    return place


def open_place(name: str) -> int:
    """Open what has a name (O_PATH), of whatever type it is.

    :raises OSError: those of :func:`open_directory`.
    """
    at = os.open("/" if name.startswith("/") else ".", _OPEN)
    try:
        links, mount = 0, mount_number(at)
        steps = _steps(name)
        while steps:
            step = steps.pop()
            found = _open_step(at, step)
            try:
                if mount_number(found) != mount:
                    mount = mount_number(found)
                    _check_server(found, step)
                mode = _mode(found, last=not steps)
                if stat.S_ISLNK(mode):
                    links += 1
                    link, (found, further) = found, _follow(at, found, step, links)
                    os.close(link)
                    steps += further
                    mount = mount_number(found)
                elif steps and not stat.S_ISDIR(mode):
                    raise OSError(errno.ENOTDIR, f"{step} is not a directory")
            except BaseException:
                os.close(found)
                raise
            os.close(at)
            at = found
    except BaseException:
        os.close(at)
        raise
    return at


def _steps(name: str) -> list[str]:
    """The names that a name consists of, the first one last."""
    return [step for step in reversed(name.split("/")) if step]


def _open_step(directory: int, step: str) -> int:
    if step == ".." and (movable := replaceable(directory)):
        place, user = movable
        inside = "" if place == (path := _path(directory)) else f" in {place}"
        sentence = f"'..' leads out of {path}{inside}, and {user} may move that; name the directory that is meant"
        raise OSError(errno.EACCES, sentence)
    try:
        # An automounter mounts what is opened as a directory.
        return os.open(step, _OPEN | os.O_DIRECTORY, dir_fd=directory)
    except NotADirectoryError:
        return os.open(step, _OPEN, dir_fd=directory)


def _check_server(found: int, step: str) -> None:
    """Refuse a file system that another user serves, before it is asked anything: it need not answer."""
    entry = mount_of(found)
    if entry is None or entry.fstype.partition(".")[0] not in ("fuse", "fuseblk"):
        return
    users = [int(option.partition("=")[2]) for option in entry.options if option.startswith("user_id=")]
    if not trusted_owners().issuperset(users):
        raise OSError(errno.EACCES, f"user {users[0]} serves the file system of {step}")


def _mode(found: int, last: bool) -> int:
    try:
        return os.fstat(found).st_mode
    except OSError as error:
        if error.errno == errno.ENOTCONN and last:
            return stat.S_IFDIR
        raise


def _follow(directory: int, link: int, name: str, number: int) -> tuple[int, list[str]]:
    """Follow the link ``name`` of a directory: open where it starts; and the steps from there, the first one last."""
    if number > _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    status = os.fstat(link)
    user = _replacer(os.fstat(directory), status)
    found = (_path(directory), user) if user else replaceable(directory)
    if found is not None:
        place, user = found
        sentence = f"{name} is a symbolic link, and {user} may replace it or {place}; name the directory that is meant"
        raise OSError(errno.ELOOP, sentence)
    target = os.readlink("", dir_fd=link)
    if not target.startswith("/"):
        return os.dup(directory), _steps(target)
    if status.st_dev == os.stat("/proc").st_dev:
        # /proc/PID/root and its like do not lead where they say.
        return _open_linked(directory, name), []
    return os.open("/", _OPEN), _steps(target)


def _open_linked(directory: int, name: str) -> int:
    found = os.open(name, _OPEN & ~os.O_NOFOLLOW, dir_fd=directory)
    try:
        if mount_of(found) is None:
            sentence = f"{name} leads out of this mount namespace or root directory; run kdamon there, as by nsenter(1)"
            raise OSError(errno.EXDEV, sentence)
        _check_server(found, name)
    except BaseException:
        os.close(found)
        raise
    return found


def replaceable(directory: int) -> tuple[str, str] | None:
    """The nearest part of a directory's path that another user may replace.

    :param directory: a descriptor of it.
    :returns: the path of that part, and who may replace it; None if only root and this user may.
    """
    below = os.dup(directory)
    try:
        while True:
            above = os.open("..", _OPEN, dir_fd=below)
            below, child = above, below
            try:
                outer, inner = os.fstat(above), os.fstat(child)
                if os.path.samestat(outer, inner):
                    return None
                if user := _replacer(outer, inner):
                    return _path(child), user
            finally:
                os.close(child)
    finally:
        os.close(below)


def _replacer(directory: os.stat_result, entry: os.stat_result) -> str | None:
    """Which other user may rename, remove and replace ``entry`` of ``directory``."""
    trusted = trusted_owners()
    if directory.st_uid not in trusted:
        return f"user {directory.st_uid}"
    writers = None
    if directory.st_mode & stat.S_IWOTH:
        writers = "every user"
    elif directory.st_mode & stat.S_IWGRP and directory.st_gid not in (0, os.getegid()):
        # Access control lists show as the group's bits.
        writers = f"group {directory.st_gid}"
    if writers and directory.st_mode & stat.S_ISVTX:
        return None if entry.st_uid in trusted else f"user {entry.st_uid}"
    return writers


def _path(directory: int) -> str:
    """The path of an open directory, for sentences."""
    try:
        return os.readlink(f"/proc/self/fd/{directory}")
    except OSError:
        return "a directory whose path is too long"
