# SPDX-License-Identifier: GPL-2.0-only
"""The socket of reports as a file: the directory that it is in, its lock, and its name.

The directory is looked up once, and no other user can change a step of the way to it (:mod:`kdamon.lib.trusted`). From
then on its descriptor stands for it: however names change, nothing is made, given a mode, locked or removed elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from pathlib import Path
from typing import Final

from kdamon.lib.path_walk import UntrustedError
from kdamon.lib.trusted import open_trusted
from kdamon.lib.watcher import (
    Leftovers,
    find_beside,
    is_entry,
    lock_name,
    open_lock,
    remove_dead_socket,
    remove_directory,
)

__all__ = ["ReportSocket", "check_socket_path"]

#: Of sun_path.
_MAX_PATH: Final = 107
#: Of the socket: every user may connect.
_MODE: Final = 0o666
#: Seconds for which a lock may be held by what cleans up after a server that was killed.
_CLEANING_UP: Final = 0.2
_PATH: Final = os.O_PATH | os.O_CLOEXEC


def check_socket_path(path: Path) -> None:
    """Check, without making anything, whether a socket can have this path.

    :param path: absolute.
    :raises OSError: as :meth:`ReportSocket.bind`; EISDIR it is a directory.
    """
    _check_length(path)
    directory = _open_directory(path.parent)
    try:
        found = find_beside(directory, path.name or ".")
    except FileNotFoundError:
        return
    finally:
        os.close(directory)
    mode = os.fstat(found).st_mode
    os.close(found)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "something else is there")


class ReportSocket:
    """The place of a server of reports, ``path``, which no other kdamon has meanwhile.

    :param path: of the socket, absolute.
    :param own_directory: its directory is kdamon's own: made if it is missing, and removed at the end.
    """

    def __init__(self, path: Path, own_directory: bool) -> None:
        self.path = path
        self._name = path.name
        self._own_directory = own_directory
        #: Descriptors: of the directory of an own directory, the directory, the lock in it, and the bound socket.
        self._parent = self._directory = self._lock = self._bound = -1
        self._leftovers: Leftovers | None = None

    def bind(self) -> socket.socket:
        """Make the socket, which every user may connect to. The socket of a killed server is replaced.

        :returns: a socket of type SOCK_SEQPACKET, which belongs to the caller.
        :raises OSError: EADDRINUSE another process serves there; ENOENT there is no directory; EPERM other users can
            change what is in it; EEXIST something else is there; ENAMETOOLONG; what else the file system answers.
        """
        try:
            _check_length(self.path)
            self._take_place()
            # Before the socket, so that it goes whenever this process is killed.
            path = os.fspath(self.path)
            if self._own_directory:
                self._leftovers = Leftovers("directory", path, self._directory, self._parent)
            else:
                self._leftovers = Leftovers("socket", path, self._directory)
            remove_dead_socket(self._directory, self._name)
            return self._make()
        except OSError as error:
            sentence = f"the socket of reports cannot be made at {self.path}: {error.strerror}"
            raise OSError(error.errno, sentence) from None

    def remove(self) -> None:
        """Remove the files that :meth:`bind` made and that are still there; may be repeated."""
        # The lock last: its holder may replace the socket.
        for name, fd in ((self._name, self._bound), (lock_name(self._name), self._lock)):
            with contextlib.suppress(OSError):
                if fd >= 0 and is_entry(self._directory, name, fd):
                    os.unlink(name, dir_fd=self._directory)
        if self._lock >= 0 and self._own_directory:
            with contextlib.suppress(OSError):
                remove_directory(self._parent, self.path.parent.name, self._directory)
        self._close()
        if self._leftovers is not None:
            self._leftovers.forget()
            self._leftovers = None

    def _close(self) -> None:
        for fd in (self._bound, self._lock, self._directory, self._parent):
            if fd >= 0:
                os.close(fd)
        self._parent = self._directory = self._lock = self._bound = -1

    def _take_place(self) -> None:
        for attempt in range(10):
            try:
                if self._own_directory:
                    self._make_directory()
                else:
                    self._directory = _open_directory(self.path.parent)
                self._lock = self._take_lock()
                return
            except FileNotFoundError:
                # Another kdamon that ended may just have removed the directory.
                again = self._own_directory and self._parent >= 0 and attempt < 9
                self._close()
                if not again:
                    break
        raise OSError(errno.ENOENT, f"there is no directory {self.path.parent}; make it")

    def _make_directory(self) -> None:
        name = self.path.parent.name
        self._parent = _open_directory(self.path.parent.parent)
        made = False
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._parent)
            made = True
        self._directory = _open_directory(self.path.parent)
        if made:
            # Not by mkdir(), which the umask takes something from.
            os.chmod(f"/proc/self/fd/{self._directory}", 0o755)

    def _take_lock(self) -> int:
        """Take the lock, which is held as long as the server lives, and a moment longer if it was killed."""
        name = lock_name(self._name)
        patience = time.monotonic() + _CLEANING_UP
        while True:
            lock = open_lock(self._directory, name, create=True)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_entry(self._directory, name, lock):
                    return lock
            except BlockingIOError:
                os.close(lock)
                if time.monotonic() >= patience:
                    sentence = "another kdamon serves reports there; choose another path for this one"
                    raise OSError(errno.EADDRINUSE, sentence) from None
                time.sleep(_CLEANING_UP / 10)
                continue
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def _make(self) -> socket.socket:
        address = f"/proc/self/fd/{self._directory}/{self._name}"
        if (excess := len(os.fsencode(address)) - _MAX_PATH) > 0:
            room = len(os.fsencode(self._name)) - excess
            raise OSError(errno.ENAMETOOLONG, f"its name is longer than {room} bytes")
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # The permission to report is decided for each producer. The file takes its mode from this, less the
            # umask, which then has to be put right.
            os.fchmod(made.fileno(), _MODE)
            made.bind(address)
            self._bound = os.open(self._name, _PATH | os.O_NOFOLLOW, dir_fd=self._directory)
            status = os.fstat(self._bound)
            if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
                raise OSError(errno.EEXIST, "another process exchanged it")
            if stat.S_IMODE(status.st_mode) != _MODE:
                os.chmod(f"/proc/self/fd/{self._bound}", _MODE)
        except BaseException:
            made.close()
            raise
        return made


def _check_length(path: Path) -> None:
    if len(os.fsencode(path)) > _MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, f"the name is longer than the {_MAX_PATH} bytes of a socket's")


def _open_directory(path: Path) -> int:
    """Open a directory that no other user can exchange for another one, nor what this user makes in it.

    :param path: absolute.
    :returns: a descriptor for O_PATH, which the caller closes.
    :raises OSError: EPERM another user can; ENOENT, ENOTDIR; what else :func:`kdamon.lib.trusted.open_trusted` raises.
    """
    try:
        fd = open_trusted(path, sticky=True)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"there is no directory {path}; make it") from None
    except UntrustedError as error:
        advice = "only root can change, such as /run" if os.geteuid() == 0 else "only you and root can change"
        sentence = f"{error.strerror} and could replace what is there; choose a directory that {advice}"
        raise OSError(error.errno, sentence) from None
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a directory")
    return fd
