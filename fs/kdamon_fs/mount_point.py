# SPDX-License-Identifier: GPL-2.0-only
"""A directory to mount on, which users may move, replace and link while root mounts and unmounts.

:class:`MountPoint` ``(name)`` looks its name up once and keeps a descriptor: what is mounted later is on that very
directory, wherever it is by then, or nowhere. What is unmounted is the mount that was made, and never another one.

Links are not followed where other users may replace them.
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

#: How many mounts of killed predecessors may lie on one another.
_MOST_DEAD: Final = 16


class MountPoint:
    """An existing directory, kept open; dead mounts of killed predecessors are unmounted from it.

    :param name: where it is; relative names start at the working directory.
    :raises OSError: ENOENT, ENOTDIR, ELOOP, EBUSY why nothing can be mounted there.
    :ivar name: the same, for sentences.
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
            raise OSError(errno.EBUSY, f"cannot mount on {name}: others leave dead mounts there again and again")
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
        """Let go of the directory; may be repeated."""
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1

    def warn_of_others(self) -> None:
        """Log which user may lead programs that use the tree by its name to something else."""
        found = replaceable(self.directory)
        if found is not None:
            place, user = found
            log.warning(
                "%s: %s may replace %s, and programs that use the tree by its name then find something else; choose a "
                "directory that only root may replace, such as one in /run",
                self.name,
                user,
                place,
            )

    def attach(self, root: int) -> None:
        """Mount what was made as ``root``, of which nothing is looked at.

        :raises OSError: ENOENT the directory was removed; EBUSY something else was mounted there meanwhile.
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
            raise OSError(errno.EBUSY, f"cannot mount on {self.name}: something else was mounted there meanwhile")
        self._number, self._device = entry.number, entry.device

    def detach(self) -> None:
        """Unmount what :meth:`attach` mounted, if it is there still; only while the file system lives.

        :raises OSError: why it stays.
        """
        self._detach(lambda _root: True)

    def detach_dead(self) -> None:
        """Unmount what :meth:`attach` mounted, if it is there still and dead: it may be another kdamon's by now.

        :raises OSError: why it stays.
        """
        self._detach(_is_dead)

    def _detach(self, wanted: Callable[[int], bool]) -> None:
        root = open_mounted(self.directory, self._number, self._last)
        if root is None:
            return
        try:
            # A number is used again, and so is a device, but not while its file system is there.
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
            reason = f"a kdamon that was killed left its mount there, and it cannot be unmounted: {error.strerror}"
            raise OSError(error.errno, f"cannot mount on {self.name}: {reason}") from None

    def _refusal(self, error: OSError) -> OSError:
        # The kernel says EINVAL of a directory in no mount of this namespace, which was unmounted since.
        removed = error.errno in (errno.ENOENT, errno.EINVAL)
        reason = "it was removed meanwhile" if removed else (error.strerror or "").rpartition(": ")[2]
        return OSError(errno.ENOENT if removed else error.errno, f"cannot mount on {self.name}: {reason}")


def _is_dead(directory: int) -> bool:
    """Return whether a directory is the root of a tree that is not served any more."""
    try:
        os.fstat(directory)
    except OSError as error:
        entry = mount_of(directory)
        return error.errno == errno.ENOTCONN and entry is not None and entry.fstype == FSTYPE
    return False


def _last_name(directory: int, name: str) -> str:
    """What a directory is called in its parent."""
    try:
        return os.path.basename(os.readlink(f"/proc/self/fd/{directory}"))
    except OSError:
        # Longer paths than the kernel shows leave the name that was given.
        last = os.path.basename(name.rstrip("/"))
        return "" if last in (".", "..") else last
