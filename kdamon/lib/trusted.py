# SPDX-License-Identifier: GPL-2.0-only
"""Opens files that no other user can change or replace: root may run, load or write to only these by a given name.

``sudo -E``, ``su -m`` and a container's start keep HOME, PATH, TMPDIR and the like of another user. A name from there
is trusted if each directory and symbolic link on the way to it and the file itself belong to root or to the user of
this process, and no other user can write to them; a directory on the way may be open to all if it is sticky, as /tmp.

* :func:`open_trusted` opens such a name, or names the part of it that is not trusted;
* :func:`open_place` finds where such a file is without symbolic links of others, in whatever directory;
* :func:`open_to_read` opens a file that need not be trusted;
* :func:`find_program` finds a program on PATH, and skips what is not trusted; :func:`trusted_path` is the rest of it.

:mod:`kdamon.lib.path_walk` decides which users are trusted and which file systems get no request.
"""

from __future__ import annotations

import errno
import os
import stat

from kdamon.lib.path_walk import Place, Step, UntrustedError, other_writers, path_of, trusted_owners, walk
from kdamon.lib.replaceable import check_dots

__all__ = ["find_program", "open_place", "open_to_read", "open_trusted", "others_may_write", "trusted_path"]


def open_trusted(path: str | os.PathLike[str], *, sticky: bool = False) -> int:
    """Open the file or directory ``path`` with ``O_PATH``; the caller closes the descriptor.

    :param path: symbolic links are followed.
    :param sticky: accept a directory like /tmp as well, in which each user has files that the others cannot exchange.
    :raises UntrustedError: another user can exchange it; also for a relative name.
    :raises OSError: as ``open(2)``.
    """
    name = os.fspath(path)
    if not os.path.isabs(name):
        raise UntrustedError(errno.EPERM, "it is relative to the working directory", name)
    trusted = trusted_owners()

    def judge(step: Step) -> None:
        entry, status = step.entry, step.status
        if status.st_uid not in trusted:
            raise _untrusted(f"user {status.st_uid} owns {path_of(entry)}")
        if stat.S_ISDIR(status.st_mode):
            if other_writers(status) and not status.st_mode & stat.S_ISVTX:
                raise _untrusted(f"other users can write to {path_of(entry)}")
        elif other_writers(os.fstat(step.directory)):
            # Others may have put a hard link there.
            raise _untrusted(f"other users can write to the directory of {path_of(entry)}")
        elif other_writers(status) and not stat.S_ISLNK(status.st_mode):
            raise _untrusted(f"other users can write to {path_of(entry)}")

    with walk(name, judge) as place:
        if place.found < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        try:
            open_to_all = other_writers(os.fstat(place.found)) is not None
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None
        if open_to_all and not sticky:
            raise UntrustedError(errno.EPERM, "other users can write to it", name)
        return place.take()


def _untrusted(why: str) -> UntrustedError:
    return UntrustedError(errno.EPERM, why)


def trusted_path() -> str:
    """PATH without the directories in which another user can place programs."""
    return os.pathsep.join(directory for directory in os.get_exec_path() if _is_trusted(directory))


def find_program(name: str) -> str | None:
    """The path of the first program ``name`` on PATH that no other user can change; None if there is none."""
    for directory in os.get_exec_path():
        path = os.path.join(directory, name)
        if _is_trusted(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _is_trusted(path: str) -> bool:
    try:
        os.close(open_trusted(path))
    except (OSError, ValueError):
        # A name may hold a zero byte.
        return False
    return True


def open_place(path: str | os.PathLike[str], *, links_of_others: bool = False) -> Place:
    """Find where the file ``path`` is, or would be made, without following any other user's symbolic link.

    Directories may be other users': there they can remove the file and put another in its place, but what is done by
    the descriptor and the name is done in that directory.

    :param links_of_others: follow them nevertheless, and ``..`` of what others may move, where the file is only read.
    :raises UntrustedError: another user made a symbolic link on the way, or serves a file system there.
    :raises OSError: EACCES ``..`` of a directory that another user may move.
    :raises OSError: as ``open(2)``; EISDIR it is a directory.
    """
    trusted = trusted_owners()

    def judge(step: Step) -> None:
        status = step.status
        if links_of_others:
            return
        check_dots(step)
        if not stat.S_ISLNK(status.st_mode):
            return
        # A link that has further names may have been brought there by anyone who can write there.
        if status.st_uid not in trusted or (status.st_nlink > 1 and others_may_write(step.directory)):
            raise _untrusted(f"{path_of(step.entry)} is a symbolic link of user {status.st_uid}")

    place = walk(path, judge, own_descriptors=True)
    try:
        if place.found >= 0 and stat.S_ISDIR(os.fstat(place.found).st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        place.close()
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    return place


def open_to_read(path: str | os.PathLike[str], flags: int = 0) -> int:
    """Open a file of any user for reading; the caller closes the descriptor.

    :param flags: more of ``open(2)``.
    :raises UntrustedError: another user serves the file system that it is in.
    :raises OSError: as ``open(2)``.
    """
    name = os.fspath(path)
    with open_place(name, links_of_others=True) as place:
        if place.found < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        try:
            return os.open(f"/proc/self/fd/{place.found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | flags)
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None


def others_may_write(directory: int) -> bool:
    """Return whether another user can make files in a directory, sticky or not, and so hard links too.

    :param directory: a descriptor of it.
    """
    status = os.fstat(directory)
    return status.st_uid not in trusted_owners() or other_writers(status) is not None
