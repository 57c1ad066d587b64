# SPDX-License-Identifier: GPL-2.0-only
"""Names that lead through directories of other users, looked up one step at a time.

:func:`walk` opens each step below the descriptor of the one before, and lets its caller judge it before it goes on:
the file that is judged is the file that is used, however names change meanwhile. The caller, such as
:mod:`kdamon.lib.trusted`, decides which names it accepts.

A file system that another user serves by FUSE is refused before it gets any request: it need not answer, and a process
that waits for the answer cannot be killed.

This module and what it imports do not load numpy, which the command line does with care.

In a user namespace all owners outside of it look the same. Their files count as root's there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from attrs import define, frozen

from kdamon.lib.mountinfo import mount_of
from kdamon.lib.watcher import mount_number

__all__ = [
    "Judge",
    "Place",
    "Step",
    "UntrustedError",
    "check_server",
    "other_writers",
    "path_of",
    "trusted_owners",
    "walk",
]

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: As many symbolic links as the kernel follows.
_MAX_LINKS: Final = 40


@frozen
class Step:
    """One name on the way.

    :ivar directory: a descriptor of the directory that it is in (``O_PATH``).
    :ivar name: the name, which may be ``..``.
    :ivar entry: a descriptor of what has the name (``O_PATH``).
    :ivar status: its status.
    :ivar through: it is what a link in ``/proc`` leads to that has this name.
    """

    directory: int
    name: str
    entry: int
    status: os.stat_result
    through: bool


#: Raises OSError to refuse a step.
Judge = Callable[[Step], None]


class UntrustedError(PermissionError):
    """Another user can change what a name stands for; ``strerror`` says by what, ``filename`` is the name."""


@define(eq=False)
class Place:
    """Where a name leads. A context manager, which closes the descriptors.

    :ivar directory: a descriptor of the directory that it is in (``O_PATH``).
    :ivar name: its name there, which is no symbolic link, but for those of a process in ``/proc``.
    :ivar found: a descriptor of it (``O_PATH``); -1 where nothing has the name.
    """

    directory: int
    name: str
    found: int

    def take(self) -> int:
        """Give :attr:`found` to the caller, who closes it."""
        taken, self.found = self.found, -1
        return taken

    def close(self) -> None:
        """Close the descriptors; may be repeated."""
        for descriptor in (self.directory, self.found):
            if descriptor >= 0:
                os.close(descriptor)
        self.directory = self.found = -1

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _start(self, directory: str) -> None:
        self.close()
        self.directory, self.name = os.open(directory, _LOOK), "."
        self.found = os.dup(self.directory)

    def _step(self, name: str, entry: int) -> None:
        os.close(self.directory)
        self.directory, self.name, self.found = self.found, name, entry


def walk(path: str | os.PathLike[str], judge: Judge, *, own_descriptors: bool = False) -> Place:
    """Find where a name leads, or would be made, with symbolic links followed.

    :param path: a relative one starts at the working directory.
    :param judge: what each step has to pass, symbolic links among them, and what they lead to. The root of a FUSE mount
        that is not served any more has no status to be judged, and can be the last step only.
    :param own_descriptors: accept what this process has open already, on any file system, as the last step.
    :raises UntrustedError: another user serves a file system on the way; or as ``judge``.
    :raises OSError: as ``open(2)``, or as ``judge``, with the name.
    """
    name = os.fspath(path)
    place = Place(-1, "", -1)
    try:
        _walk(place, name, judge, own_descriptors)
    except BaseException as error:
        place.close()
        if isinstance(error, OSError):
            raise type(error)(error.errno, error.strerror, name) from None
        raise
    return place


def _walk(place: Place, name: str, judge: Judge, own_descriptors: bool) -> None:
    proc, own = os.stat("/proc").st_dev, os.stat("/proc/self/fd")
    place._start("/" if os.path.isabs(name) else ".")
    if not os.path.isabs(name):
        check_server(place.found)
    mount, links, through = mount_number(place.found), 0, False
    parts = _parts(name)
    while parts:
        part = parts.pop()
        try:
            entry = _open_entry(place.found, part, through)
        except FileNotFoundError:
            if parts or name.endswith("/"):
                raise
            place._step(part, -1)
            return
        try:
            # Before anything is asked about it, which its server would have to answer.
            number = mount_number(entry)
            open_already = own_descriptors and not parts and os.path.samestat(os.fstat(place.found), own)
            if number != mount and not open_already:
                check_server(entry)
            status = _status(entry, last=not parts)
            if status is not None:
                judge(Step(place.found, part, entry, status, through))
            through = False
            if status is not None and stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink("", dir_fd=entry)
                os.close(entry)
                entry = -1
                if status.st_dev == proc and (os.path.isabs(target) or ":" in target):
                    # /proc/PID/root and its like do not lead where they say.
                    parts.append(part)
                    through = True
                    continue
                parts += _parts(target)
                if os.path.isabs(target):
                    place._start("/")
                    mount = mount_number(place.found)
                continue
        except BaseException:
            if entry >= 0:
                os.close(entry)
            raise
        place._step(part, entry)
        mount = number


def _parts(path: str) -> list[str]:
    """The names in ``path``, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _open_entry(directory: int, entry: str, through: bool) -> int:
    """Open ``entry``, or, for ``through``, where it leads as a link."""
    flags = _LOOK & ~os.O_NOFOLLOW if through else _LOOK
    try:
        # An automounter mounts what is opened as a directory.
        return os.open(entry, flags | os.O_DIRECTORY, dir_fd=directory)
    except NotADirectoryError:
        return os.open(entry, flags, dir_fd=directory)


def _status(entry: int, last: bool) -> os.stat_result | None:
    try:
        return os.fstat(entry)
    except OSError as error:
        if error.errno == errno.ENOTCONN and last:
            return None
        raise


def check_server(descriptor: int) -> None:
    """Refuse a file, a descriptor of which is asked nothing, in a file system that another user serves.

    :raises UntrustedError: it is.
    """
    entry = mount_of(descriptor)
    if entry is not None and entry.server is not None and entry.server not in trusted_owners():
        raise UntrustedError(errno.EPERM, f"it is in a file system that user {entry.server} serves")


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


def other_writers(status: os.stat_result) -> str | None:
    """Which other users may write to a file by its mode, for sentences; None none.

    Root's group is trusted, and for a user that of this process: with a umask of 002 each user has one.
    """
    if status.st_mode & stat.S_IWOTH:
        return "every user"
    own_group = status.st_gid == 0 or (os.geteuid() != 0 and status.st_gid == os.getegid())
    # Access control lists show as the group's bits.
    return f"group {status.st_gid}" if status.st_mode & stat.S_IWGRP and not own_group else None


def path_of(descriptor: int) -> str:
    """The path of an open file or directory, for sentences."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return "a directory whose path is too long"
