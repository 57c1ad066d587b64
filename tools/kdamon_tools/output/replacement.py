# SPDX-License-Identifier: GPL-2.0-only
"""Files that replace earlier ones only when they are complete.

A result or a recording may take hours: a mistyped number, a full disk or a killed program must destroy neither the new
one nor the earlier one.
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
#: Extended attributes that a file keeps besides user attributes: others grant rights, or belong to a file system.
_ATTRIBUTES: Final = frozenset({"system.posix_acl_access", "security.selinux"})


class Replacement:
    """New content for the file ``path``, which stays unchanged until :meth:`commit`.

    * For an existing file, ``NAME.RANDOM.part`` in the same directory, with its owner and mode, is written and finally
      renamed. Where that is impossible (no right to the directory, further hard links), a file in ``TMPDIR`` is written
      and copied.
    * A file that does not exist is created at once: if this process is killed, the part written so far remains.
    * Devices, pipes and descriptors of this process (``/dev/stdout``) are written directly.

    The directory may be another user's. Its name is resolved once, without symbolic links of other users
    (:func:`kdamon.lib.trusted.open_place`), and all accesses go through its descriptor: files that others rename or put
    there meanwhile are neither written to, nor given a mode, nor removed. Hard links that others could create, and
    pipes of other users, are rejected. It is an error if the name finally refers to another file.

    A context manager: uncommitted content is discarded at its end.

    :param path: the file's name; symbolic links of this user and of root are followed.
    :ivar file: the unbuffered file to write to.
    :raises OSError: it cannot be written there; ``path`` is its file name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._directory = -1
        #: The name of the written file, where it is separate: one to rename, or already in its place.
        self._part: str | None = None
        #: An existing file that is overwritten because nothing can be renamed to it.
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
        """Open the file to write to; ``found`` is a descriptor of the existing one, -1 if there is none."""
        if self._name.isdecimal() and self._name.isascii() and _is_own_descriptors(self._directory):
            # Opening it anew would start at offset 0 of a file that a shell appends to.
            descriptor = int(self._name)
            # This reports now that it cannot be written.
            os.write(descriptor, b"")
            return os.dup(descriptor)
        if found < 0:
            made = os.open(self._name, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=self._directory)
            self._part = self._name
            return made
        status = os.fstat(found)
        self._check(status)
        # This checks now that it may be written, and does not truncate it.
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
        """Reject an existing file that another user may have planted."""
        if stat.S_ISFIFO(status.st_mode) and status.st_uid not in trusted_owners():
            raise OSError(errno.EPERM, f"it is a pipe of user {status.st_uid}")
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode) and others_may_write(self._directory):
            raise OSError(errno.EPERM, "it has further names, and other users can write to its directory")

    def _open_beside(self, existing: os.stat_result, opened: int) -> int:
        """Create a file that can replace the ``existing`` one."""
        part = f"{self._name}.{secrets.token_hex(4)}.part"
        made = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            now = os.fstat(made)
            if (existing.st_uid, existing.st_gid) != (now.st_uid, now.st_gid):
                os.fchown(made, existing.st_uid, existing.st_gid)
            # As in the kernel when a file is written: set-user-ID bits and file capabilities are removed.
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
        """Replace the file by the written content.

        :raises OSError: the content is missing there, or incomplete; ``path`` is its file name.
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
        """Give the ``written`` file its name; return a descriptor of the file with the content."""
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
        """Raise an error if the path does not refer to the written file any more, as after a removal or a rename."""
        if os.fstat(self._directory).st_dev == os.stat("/proc").st_dev:
            # A descriptor of another process is not a name, and the capabilities to open it again may be given up.
            return
        with open_place(self.path) as place:
            if place.found < 0 or not is_same(place.found, descriptor):
                raise OSError(errno.ESTALE, "another file replaced the written one")

    def _remove(self, name: str, descriptor: int) -> None:
        """Remove ``name`` if it still refers to the file of ``descriptor``."""
        with contextlib.suppress(OSError):
            if is_entry(self._directory, name, descriptor):
                os.unlink(name, dir_fd=self._directory)

    def keep_part(self) -> Path | None:
        """Keep the part written so far instead of discarding it; return its name, None if there is none."""
        part, self._part = self._part, None
        return None if part is None else self.path if part == self._name else self.path.with_name(part)

    def discard(self) -> None:
        """Discard the new content; may be repeated, and does nothing after :meth:`commit`."""
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
    """Whether a directory is that of this process's descriptors, as for /dev/stdout and /dev/fd/3."""
    return os.path.samestat(os.fstat(directory), os.stat("/proc/self/fd"))


def _copy(source: int, target: int) -> None:
    """Copy the content of ``source`` to the file ``target``, which stays unchanged if there is not enough room."""
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
    """Return whether two names refer to the same regular file, or will when it exists."""
    try:
        status = _status(one)
        return stat.S_ISREG(status.st_mode) and os.path.samestat(status, _status(other))
    except UntrustedError:
        # Opening it reports the error.
        return False
    except OSError:
        # If a link cannot be read, opening the file reports the error.
        with contextlib.suppress(OSError):
            return os.path.realpath(one) == os.path.realpath(other)
        return False


def _status(path: Path) -> os.stat_result:
    descriptor = open_to_read(path, os.O_PATH)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
