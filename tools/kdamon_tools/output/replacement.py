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
import stat
from pathlib import Path
from types import TracebackType
from typing import Final

from kdamon.lib.path_walk import UntrustedError, trusted_owners
from kdamon.lib.trusted import open_place, open_to_read, others_may_write
from kdamon.lib.watcher import is_entry, is_same
from kdamon_tools.output.temporary import temporary_file

__all__ = ["Replacement", "same_file"]

_FLAGS: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
#: Extended attributes that a file keeps, beside those of users: others give rights, or are a file system's own.
_ATTRIBUTES: Final = frozenset({"system.posix_acl_access", "security.selinux"})


class Replacement:
    """New content for the file ``path``, which is as it was until :meth:`commit`.

    * An existing file is written anew beside, as ``NAME.RANDOM.part``, with its owner and mode, and renamed. Where that
      cannot be (no right to the directory, further hard links), it is written in ``TMPDIR`` and copied.
    * A file that does not exist is made at once: when this process is killed, what was written so far is there.
    * Devices, pipes and descriptors of this process (``/dev/stdout``) are written as they are.

    The directory may be another user's. It is looked up once, no symbolic link of other users is followed to it or in
    it (:func:`kdamon.lib.trusted.open_place`), and everything is done by its descriptor: what others rename or put
    there meanwhile is not written to, given a mode or removed. Refused are hard links where others can make them, and
    pipes of other users. Where the name stands for another file in the end, that is an error.

    A context manager: what was not committed is discarded at its end.

    :param path: where to; symbolic links of this user and of root are followed.
    :ivar file: what to write to, without a buffer.
    :raises OSError: it cannot be written there, with ``path`` as its file name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._directory = -1
        #: The name of what is written where that is a file of its own: one to rename, or at its place already.
        self._part: str | None = None
        #: An existing file that is written where nothing can be renamed to it.
        self._existing: int | None = None
        try:
            with open_place(path) as place:
                self._name = place.name
                self._directory = os.dup(place.directory)
                self.file = io.FileIO(self._open(place.found), "w")
        except OSError as error:
            self._close()
            raise OSError(error.errno, error.strerror, str(path)) from error
        except BaseException:
            self._close()
            raise

    def _open(self, found: int) -> int:
        """Open what is written to; ``found`` is a descriptor of what is there, -1 nothing."""
        if self._name.isdecimal() and self._name.isascii() and _is_own_descriptors(self._directory):
            # To open it anew would begin at the beginning of a file that a shell appends to.
            descriptor = int(self._name)
            # It says that it cannot be written now.
            os.write(descriptor, b"")
            return os.dup(descriptor)
        if found < 0:
            made = os.open(self._name, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=self._directory)
            self._part = self._name
            return made
        status = os.fstat(found)
        self._check(status)
        # Whether it may be written is found out now, and nothing of it is lost.
        opened = os.open(f"/proc/self/fd/{found}", _FLAGS)
        if not stat.S_ISREG(status.st_mode):
            return opened
        self._existing = opened
        if status.st_nlink == 1:
            with contextlib.suppress(OSError):
                return self._open_beside(status, opened)
        with temporary_file() as file:
            return os.dup(file.fileno())

    def _check(self, status: os.stat_result) -> None:
        """Refuse an existing file that others may have put there for it to be written."""
        if stat.S_ISFIFO(status.st_mode) and status.st_uid not in trusted_owners():
            raise OSError(errno.EPERM, f"it is a pipe of user {status.st_uid}")
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode) and others_may_write(self._directory):
            raise OSError(errno.EPERM, "it has further names, and other users can write to its directory")

    def _open_beside(self, existing: os.stat_result, opened: int) -> int:
        """Make a file that can take the place of the ``existing`` one."""
        part = f"{self._name}.{secrets.token_hex(4)}.part"
        made = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            now = os.fstat(made)
            if (existing.st_uid, existing.st_gid) != (now.st_uid, now.st_gid):
                os.fchown(made, existing.st_uid, existing.st_gid)
            # As the kernel has it when a file is written: what gives rights to a program goes.
            os.fchmod(made, stat.S_IMODE(existing.st_mode) & ~(stat.S_ISUID | stat.S_ISGID))
            for attribute in os.listxattr(opened):
                if attribute.startswith("user.") or attribute in _ATTRIBUTES:
                    os.setxattr(made, attribute, os.getxattr(opened, attribute))
        except BaseException:
            self._remove(part, made)
            os.close(made)
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
            written = self.file.fileno()
            if self._part is not None:
                os.fsync(written)
            if self._part not in (None, self._name):
                written = self._rename(written)
            elif self._existing is not None:
                _copy(written, self._existing)
                written = self._existing
            if self._part is not None or self._existing is not None:
                self._check_place(written)
            self.file.close()
            self._part = None
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.discard()

    def _rename(self, written: int) -> int:
        """Give what was ``written`` its name; returns a descriptor of what has the content now."""
        assert self._part is not None
        assert self._existing is not None
        try:
            os.rename(self._part, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            # A file that is a mount point, or another user's in a directory like /tmp.
            _copy(written, self._existing)
            self._remove(self._part, written)
            written = self._existing
        self._part = None
        return written

    def _check_place(self, descriptor: int) -> None:
        """Raise an error where the path does not lead to what was written: someone removed or renamed something."""
        if os.fstat(self._directory).st_dev == os.stat("/proc").st_dev:
            # A descriptor of another process: it is no name, and capabilities to look at it again may be gone.
            return
        with open_place(self.path) as place:
            if place.found < 0 or not is_same(place.found, descriptor):
                raise OSError(errno.ESTALE, "another file took the place of what was written")

    def _remove(self, name: str, descriptor: int) -> None:
        """Remove ``name`` if it still is what ``descriptor`` is."""
        with contextlib.suppress(OSError):
            if is_entry(self._directory, name, descriptor):
                os.unlink(name, dir_fd=self._directory)

    def keep_part(self) -> Path | None:
        """Leave what was written so far where it is instead of discarding it; returns where, None nowhere."""
        part, self._part = self._part, None
        return None if part is None else self.path if part == self._name else self.path.with_name(part)

    def discard(self) -> None:
        """Leave everything as it was; may be repeated, and does nothing after :meth:`commit`."""
        if self._part is not None and not self.file.closed:
            self._remove(self._part, self.file.fileno())
        self._part = None
        with contextlib.suppress(OSError):
            self.file.close()
        self._close()

    def _close(self) -> None:
        for descriptor in (self._existing, self._directory):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._existing, self._directory = None, -1

    def __enter__(self) -> Replacement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.discard()


def _is_own_descriptors(directory: int) -> bool:
    """Whether a directory is that of this process's descriptors, as of /dev/stdout and /dev/fd/3."""
    return os.path.samestat(os.fstat(directory), os.stat("/proc/self/fd"))


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
        status = _status(one)
        return stat.S_ISREG(status.st_mode) and os.path.samestat(status, _status(other))
    except UntrustedError:
        # It is refused when it is opened.
        return False
    except OSError:
        # Where a link cannot be read, what is wrong is found when the file is opened.
        with contextlib.suppress(OSError):
            return os.path.realpath(one) == os.path.realpath(other)
        return False


def _status(path: Path) -> os.stat_result:
    descriptor = open_to_read(path, os.O_PATH)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
