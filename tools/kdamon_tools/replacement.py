# SPDX-License-Identifier: GPL-2.0-only
"""Files that take the place of earlier ones only when they are whole.

A result or a recording is hours of work: neither the one that is made now nor the one that was there before may be lost
to a mistyped number, to a full disk or to a program that is killed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

__all__ = ["Replacement", "same_file"]

#: As many symbolic links as the kernel follows.
_MAX_LINKS: Final = 40
_FLAGS: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY


class Replacement:
    """New content for the file ``path``, which is as it was until :meth:`commit`.

    * An existing file is written anew beside, as ``NAME.RANDOM.part``, with its owner and mode, and renamed. Where that
      cannot be (no right to the directory, further hard links), it is written in ``TMPDIR`` and copied.
    * A file that does not exist is made at once: when this process is killed, what was written so far is there.
    * Devices, pipes and descriptors of this process (``/dev/stdout``) are written as they are.

    A context manager: what was not committed is discarded at its end.

    :param path: where to; symbolic links are followed.
    :ivar file: what to write to, without a buffer.
    :raises OSError: it cannot be written there, with ``path`` as its file name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: The file to rename or to remove, and the one to copy to.
        self._part: Path | None = None
        self._copied_to: int | None = None
        self._place = Path(os.path.realpath(path))
        try:
            self.file = io.FileIO(self._open(), "w")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    def _open(self) -> int:
        descriptor = _own_descriptor(self.path)
        if descriptor is not None:
            # It says that it cannot be written now.
            os.write(descriptor, b"")
            return os.dup(descriptor)
        try:
            existing = os.stat(self._place)
        except FileNotFoundError:
            made = os.open(self._place, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
            self._part = self._place
            return made
        # Whether it may be written is found out now, and nothing of it is lost.
        opened = os.open(self._place, _FLAGS)
        if not stat.S_ISREG(existing.st_mode):
            return opened
        if existing.st_nlink == 1:
            with contextlib.suppress(OSError):
                beside = self._open_beside(existing)
                os.close(opened)
                return beside
        self._copied_to = opened
        with tempfile.TemporaryFile(prefix="kdamon-", buffering=0) as file:
            return os.dup(file.fileno())

    def _open_beside(self, existing: os.stat_result) -> int:
        """Make a file that can take the place of the ``existing`` one."""
        part = self._place.with_name(f"{self._place.name}.{secrets.token_hex(4)}.part")
        made = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            now = os.fstat(made)
            if (existing.st_uid, existing.st_gid) != (now.st_uid, now.st_gid):
                os.chown(made, existing.st_uid, existing.st_gid)
            shutil.copystat(self._place, part)
        except BaseException:
            os.close(made)
            part.unlink()
            raise
        self._part = part
        return made

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return self.file.isatty()

    def commit(self) -> None:
        """Put what was written in place.

        :raises OSError: it is not there, or only a part of it; ``path`` is its file name.
        """
        try:
            if self._part is not None:
                os.fsync(self.file.fileno())
            if self._part not in (None, self._place):
                self._rename()
            elif self._copied_to is not None:
                _copy(self.file.fileno(), self._copied_to)
            self.file.close()
            self._part = None
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.discard()

    def _rename(self) -> None:
        assert self._part is not None
        try:
            os.rename(self._part, self._place)
        except OSError:
            # A file that is a mount point, or another user's in a directory like /tmp.
            self._copied_to = os.open(self._place, _FLAGS)
            _copy(self.file.fileno(), self._copied_to)
            self._part.unlink()

    def keep_part(self) -> Path | None:
        """Leave what was written so far where it is instead of discarding it; returns where, None nowhere."""
        part, self._part = self._part, None
        return part

    def discard(self) -> None:
        """Leave everything as it was; may be repeated, and does nothing after :meth:`commit`."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self._copied_to is not None:
            os.close(self._copied_to)
            self._copied_to = None
        if self._part is not None:
            with contextlib.suppress(OSError):
                self._part.unlink()
            self._part = None

    def __enter__(self) -> Replacement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.discard()


def _own_descriptor(path: Path) -> int | None:
    """The descriptor of this process that ``path`` stands for, as /dev/stdout and /dev/fd/3 do; None for others.

    Opening these anew would begin at the beginning of a file that a shell appends to.
    """
    own = os.path.realpath("/proc/self/fd")
    for _ in range(_MAX_LINKS):
        directory = os.path.realpath(path.parent)
        if directory == own and path.name.isdecimal() and path.name.isascii():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(directory, os.readlink(path))
    return None


def _copy(source: int, target: int) -> None:
    """Make the file ``target`` hold what ``source`` does; it is not touched where there is no room for it."""
    size, before = os.fstat(source).st_size, os.fstat(target).st_size
    if size > before:
        try:
            os.posix_fallocate(target, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                os.ftruncate(target, before)
                raise
    at = 0
    while at < size:
        at += os.sendfile(target, source, at, size - at)
    os.ftruncate(target, size)
    os.fsync(target)


def same_file(one: Path, other: Path) -> bool:
    """Return whether two names are of one regular file, or will be when it exists."""
    try:
        status = os.stat(one)
        return stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.stat(other))
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
