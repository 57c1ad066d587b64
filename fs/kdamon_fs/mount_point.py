# SPDX-License-Identifier: GPL-2.0-only
"""A directory to mount on, safe against users that move, replace or link it while root mounts and unmounts.

:class:`MountPoint` ``(name)`` resolves its name once and keeps a descriptor: a later mount is attached to that very
directory, wherever it was moved, or fails. It unmounts only its own mount.

It follows no links that other users may replace.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from typing import Final

from kdamon.lib.mountinfo import mount_of
from kdamon.lib.replaceable import open_directory, replaceable
from kdamon.lib.watcher import FSTYPE, detach, mount_number, open_mounted, unmount_by_helper
from kdamon_fs.mount_checks import mounts_by_helper
from kdamon_fs.mounts import attach_mount

__all__ = ["MountPoint"]

log = logging.getLogger("kdamon")

#: Maximum number of stacked mounts of killed predecessors.
_MOST_DEAD: Final = 16


class MountPoint:
    """An existing directory, kept open. The constructor unmounts dead mounts of killed predecessors.

    :param name: its path; a relative one starts at the working directory.
    :raises OSError: ENOENT, ENOTDIR, ELOOP, EBUSY nothing can be mounted there.
    :ivar name: the same, for messages.
    :ivar directory: its descriptor (O_PATH).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._number = -1
        self._device = -1
        for _ in range(_MOST_DEAD):
            self.directory = self._open()
            if not _is_dead(self.directory):
                break
            try:
                self._take_over()
            finally:
                self.close()
        else:
            raise OSError(errno.EBUSY, f"cannot mount on {name}: other processes repeatedly leave dead mounts there")
        self._last = _last_name(self.directory, name)
        if not self._last:
            self.close()
            raise OSError(errno.EINVAL, f"cannot mount on {name}: it is the root directory, or its path is too long")

    def _open(self) -> int:
        try:
            return open_directory(self.name)
        except OSError as error:
            raise OSError(error.errno, f"cannot mount on {self.name}: {error.strerror}") from None

    def close(self) -> None:
        """Close the directory; may be repeated."""
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1

    def warn_of_others(self) -> None:
        """Log which user may redirect programs that use the tree by its name."""
        found = replaceable(self.directory)
        if found is not None:
            place, user = found
            log.warning(
                "%s: %s may replace %s and so redirect programs that use the tree by name; choose a directory that "
                "only root may replace, such as one in /run",
                self.name,
                user,
                place,
            )

    def attach(self, root: int) -> None:
        """Attach the mount ``root`` without accessing its content.

        :raises OSError: ENOENT the directory was removed; EBUSY another file system was mounted there meanwhile.
        """
        below = mount_number(self.directory)
        try:
            attach_mount(root, self.directory)
        except OSError as error:
            raise self._refusal(error) from None
        entry = mount_of(root)
        if entry is None or entry.parent != below:
            with contextlib.suppress(OSError):
                detach(root)
            raise OSError(errno.EBUSY, f"cannot mount on {self.name}: another file system was mounted there meanwhile")
        self._number, self._device = entry.number, entry.device

    def detach(self) -> None:
        """Unmount what :meth:`attach` mounted, if it is still there; only while the file system is served.

        :raises OSError: it stays mounted; the reason.
        """
        self._detach(lambda _root: True)

    def detach_dead(self) -> None:
        """Unmount what :meth:`attach` mounted, if it is still there and dead: it may be another kdamon's by now.

        :raises OSError: it stays mounted; the reason.
        """
        self._detach(_is_dead)

    def _detach(self, wanted: Callable[[int], bool]) -> None:
        root = open_mounted(self.directory, self._number, self._last)
        if root is None:
            return
        try:
            # The kernel reuses mount and device numbers, but not while their file system exists.
            entry = mount_of(root)
            if entry is not None and entry.device == self._device and wanted(root):
                detach(root)
        finally:
            os.close(root)

    def _take_over(self) -> None:
        log.warning("%s: taking over the mount of a kdamon that was killed", self.name)
        try:
            if mounts_by_helper():
                unmount_by_helper(os.path.realpath(self.name))
            else:
                detach(self.directory)
        except OSError as error:
            reason = f"the mount of a killed kdamon is there and cannot be unmounted: {error.strerror}"
            raise OSError(error.errno, f"cannot mount on {self.name}: {reason}") from None

    def _refusal(self, error: OSError) -> OSError:
        # EINVAL: the directory is in no mount of this namespace any more, because its file system was unmounted.
        removed = error.errno in (errno.ENOENT, errno.EINVAL)
        reason = "it was removed meanwhile" if removed else (error.strerror or "").rpartition(": ")[2]
        return OSError(errno.ENOENT if removed else error.errno, f"cannot mount on {self.name}: {reason}")


def _is_dead(directory: int) -> bool:
    """Return whether a directory is the root of a tree that no process serves any more."""
    try:
        os.fstat(directory)
    except OSError as error:
        entry = mount_of(directory)
        return error.errno == errno.ENOTCONN and entry is not None and entry.fstype == FSTYPE
    return False


def _last_name(directory: int, name: str) -> str:
    """The name of a directory in its parent."""
    try:
        return os.path.basename(os.readlink(f"/proc/self/fd/{directory}"))
    except OSError:
        # For paths longer than the kernel shows, keep the given name.
        last = os.path.basename(name.rstrip("/"))
        return "" if last in (".", "..") else last
