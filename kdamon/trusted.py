# SPDX-License-Identifier: GPL-2.0-only
"""Files that no other user can change or exchange: what root may run, load or write to by a name it was given.

``sudo -E``, ``su -m`` and a container's start keep HOME, PATH, TMPDIR and the like of another user. A name from there
is trusted if each directory and symbolic link on the way to it and the file itself belong to root or to the user of
this process, and no other user can write to them; a directory on the way may be open to all if it is sticky, as /tmp.

* :func:`open_trusted` opens such a name, or says what of it is not trusted;
* :func:`open_place` finds where such a file is without symbolic links of others, in whatever directory;
* :func:`open_to_read` opens a file that need not be trusted;
* :func:`find_program` finds a program on PATH, and skips what is not trusted; :func:`trusted_path` is the rest of it.

A file system that another user serves by FUSE is refused before it is asked anything: it need not answer, and who waits
for that cannot be killed.

In a user namespace the owners outside of it look all the same. What belongs to them counts as root's there. A user's
own group, the one of this process, may write where the user is not root: with a umask of 002 each user has one.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

__all__ = [
    "UntrustedError",
    "check_server",
    "find_program",
    "open_place",
    "open_to_read",
    "open_trusted",
    "others_may_write",
    "trusted_owners",
    "trusted_path",
]

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: As many symbolic links as the kernel follows.
_MAX_LINKS: Final = 40


class UntrustedError(PermissionError):
    """Another user can change what a name stands for; ``strerror`` says by what, ``filename`` is the name."""


def open_trusted(path: str | os.PathLike[str], *, sticky: bool = False) -> int:
    """Open what ``path`` stands for with ``O_PATH``; the descriptor is the caller's to close.

    :param path: symbolic links are followed.
    :param sticky: accept a directory like /tmp as well, in which each user has files that the others cannot exchange.
    :raises UntrustedError: another user can exchange it; also for a relative name.
    :raises OSError: as ``open(2)``.
    """
    name = os.fspath(path)
    if not os.path.isabs(name):
        raise _untrusted(name, "it is relative to the working directory")
    trusted = trusted_owners()
    here = os.open("/", _LOOK)
    try:
        seen, shared, links = _mount_id(here), False, 0
        parts, jump = _parts(name), False
        while parts:
            part = parts.pop()
            entry = _open_entry(here, part, name, jump)
            jump = False
            try:
                mount = _mount_id(entry)
                if mount != seen:
                    _check_server(name, mount, trusted)
                status = os.fstat(entry)
                _check(name, entry, status, shared, trusted)
                if not stat.S_ISLNK(status.st_mode):
                    here, entry, seen = entry, here, mount
                    shared = _others_write(status)
                    continue
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                target = os.readlink("", dir_fd=entry)
                if os.path.isabs(target) and status.st_dev == os.stat("/proc").st_dev:
                    # /proc/PID/root and its like do not lead where they say.
                    parts.append(part)
                    jump = True
                    continue
                parts += _parts(target)
                if os.path.isabs(target):
                    root = os.open("/", _LOOK)
                    os.close(here)
                    here, seen, shared = root, _mount_id(root), False
            finally:
                os.close(entry)
        if shared and not sticky:
            raise _untrusted(name, "other users can write to it")
        return here
    except BaseException:
        os.close(here)
        raise


def trusted_path() -> str:
    """PATH without the directories in which another user can put programs."""
    return os.pathsep.join(directory for directory in os.get_exec_path() if _is_trusted(directory))


def find_program(name: str) -> str | None:
    """Where the first program ``name`` on PATH is that no other user can change; None if there is none."""
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


def _parts(path: str) -> list[str]:
    """The names in ``path``, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _open_entry(directory: int, entry: str, name: str, jump: bool) -> int:
    """Open ``entry``, or, for ``jump``, where it leads as a link."""
    flags = _LOOK & ~os.O_NOFOLLOW if jump else _LOOK
    try:
        try:
            # An automounter mounts what is opened as a directory.
            return os.open(entry, flags | os.O_DIRECTORY, dir_fd=directory)
        except NotADirectoryError:
            return os.open(entry, flags, dir_fd=directory)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def _check(name: str, entry: int, status: os.stat_result, shared: bool, trusted: frozenset[int]) -> None:
    """Refuse a step on the way to ``name``, in a directory that others may write to if that is ``shared``."""
    if status.st_uid not in trusted:
        raise _untrusted(name, f"user {status.st_uid} owns {_place(entry)}")
    if stat.S_ISDIR(status.st_mode):
        if _others_write(status) and not status.st_mode & stat.S_ISVTX:
            raise _untrusted(name, f"other users can write to {_place(entry)}")
    elif shared:
        # Others may have put a hard link there.
        raise _untrusted(name, f"other users can write to the directory of {_place(entry)}")
    elif _others_write(status) and not stat.S_ISLNK(status.st_mode):
        raise _untrusted(name, f"other users can write to {_place(entry)}")


def _others_write(status: os.stat_result) -> bool:
    own_group = os.geteuid() != 0 and status.st_gid == os.getegid()
    return bool(status.st_mode & (stat.S_IWOTH if own_group else stat.S_IWGRP | stat.S_IWOTH))


def _place(entry: int) -> str:
    return os.readlink(f"/proc/self/fd/{entry}")


def _untrusted(name: str, why: str) -> UntrustedError:
    return UntrustedError(errno.EPERM, why, name)


def trusted_owners() -> frozenset[int]:
    """The users whose files are trusted: root, this process's, and in a user namespace those outside of it."""
    owners = {0, os.geteuid()}
    with open("/proc/self/uid_map", "rb") as lines:
        ranges = [tuple(map(int, line.split())) for line in lines]
    with open("/proc/sys/kernel/overflowuid", "rb") as file:
        overflow = int(file.read())
    if not any(first <= overflow < first + number for first, _, number in ranges):
        owners.add(overflow)
    return frozenset(owners)


def _mount_id(descriptor: int) -> bytes:
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as lines:
        return next(line.split()[1] for line in lines if line.startswith(b"mnt_id:"))


def _check_server(name: str, mount: bytes, trusted: frozenset[int]) -> None:
    """Refuse a file system that another user serves."""
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.rstrip(b"\n").partition(b" - ")
            fstype, _source, options = after.split(b" ")[:3]
            if before.split(b" ", 1)[0] != mount or fstype.split(b".")[0] not in (b"fuse", b"fuseblk"):
                continue
            for option in options.split(b","):
                key, _, user = option.partition(b"=")
                if key == b"user_id" and int(user) not in trusted:
                    raise _untrusted(name, f"it is in a file system that user {int(user)} serves")


def open_place(path: str | os.PathLike[str], *, links_of_others: bool = False) -> tuple[int, str]:
    """Find where the file ``path`` is, or would be made, without following any other user's symbolic link.

    Directories may be other users': there they can remove the file and put another in its place, but what is done by
    the descriptor and the name is done in that directory.

    :param links_of_others: follow them nevertheless, where the file is only read.
    :returns: a descriptor of the directory (``O_PATH``), which is the caller's to close, and the name in it. That is no
        symbolic link now, but for those of a process in ``/proc``.
    :raises UntrustedError: another user made a symbolic link on the way, or serves a file system there.
    :raises OSError: as ``open(2)``.
    """
    name = os.fspath(path)
    trusted, own, proc = trusted_owners(), os.stat("/proc/self/fd"), os.stat("/proc").st_dev
    parts, links, jump = _parts(name), 0, False
    here = os.open("/" if os.path.isabs(name) else ".", _LOOK)
    try:
        seen = _mount_id(here)
        _check_server(name, seen, trusted)
        while parts:
            part = parts.pop()
            if not parts and os.path.samestat(os.fstat(here), own):
                return here, part
            try:
                entry = _open_entry(here, part, name, jump)
            except FileNotFoundError:
                if parts or name.endswith("/"):
                    raise
                return here, part
            jump = False
            try:
                # Before anything is asked about it, which its server would have to answer.
                mount = _mount_id(entry)
                if mount != seen:
                    _check_server(name, mount, trusted)
                status = os.fstat(entry)
                if stat.S_ISLNK(status.st_mode):
                    # A link that has further names may have been brought there by anyone.
                    if not links_of_others and (status.st_uid not in trusted or status.st_nlink > 1):
                        raise _untrusted(name, f"{_place(entry)} is a symbolic link of user {status.st_uid}")
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                    target = os.readlink("", dir_fd=entry)
                    if status.st_dev == proc and (os.path.isabs(target) or ":" in target):
                        # /proc/PID/root and its like do not lead where they say.
                        parts.append(part)
                        jump = True
                        continue
                    parts += _parts(target)
                    if os.path.isabs(target):
                        root = os.open("/", _LOOK)
                        os.close(here)
                        here, seen = root, _mount_id(root)
                elif not parts and not stat.S_ISDIR(status.st_mode):
                    return here, part
                else:
                    here, entry, seen = entry, here, mount
            finally:
                os.close(entry)
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    except BaseException:
        os.close(here)
        raise


def open_to_read(path: str | os.PathLike[str], flags: int = 0) -> int:
    """Open a file to read it, whoever's it is; the descriptor is the caller's to close.

    :param flags: more of ``open(2)``.
    :raises UntrustedError: another user serves the file system that it is in.
    :raises OSError: as ``open(2)``.
    """
    name = os.fspath(path)
    directory, entry = open_place(name, links_of_others=True)
    try:
        found = os.open(entry, _LOOK, dir_fd=directory)
        try:
            check_server(found, name)
            if stat.S_ISLNK(os.fstat(found).st_mode):
                # Of a process in /proc: what it leads to, as the kernel knows it.
                return os.open(entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | flags, dir_fd=directory)
            return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | flags)
        finally:
            os.close(found)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, name) from None
    finally:
        os.close(directory)


def check_server(descriptor: int, name: str) -> None:
    """Refuse a file, a descriptor of which is asked nothing, in a file system that another user serves.

    :raises UntrustedError: it is.
    """
    _check_server(name, _mount_id(descriptor), trusted_owners())


def others_may_write(directory: int) -> bool:
    """Return whether another user can make files in a directory, sticky or not, and so hard links too.

    :param directory: a descriptor of it.
    """
    status = os.fstat(directory)
    return status.st_uid not in trusted_owners() or _others_write(status)
