# SPDX-License-Identifier: GPL-2.0-only
"""Removes the mount or the report socket of this process when it is killed.

Only another process can clean up after SIGKILL: :class:`Leftovers` starts one that runs this file and waits for the end
of this process. It runs as ``python -I -S watcher.py``, with the standard library and nothing else, to be small.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
from typing import Final

__all__ = [
    "FSTYPE",
    "Leftovers",
    "detach",
    "find_beside",
    "is_entry",
    "is_same",
    "lock_name",
    "mount_number",
    "open_lock",
    "open_mounted",
    "remove_dead_socket",
    "remove_directory",
    "unmount_by_helper",
]

log = logging.getLogger("kdamon")

#: Type of the file system in /proc/mounts of the mounts that are cleaned up, made of the subtype given to FUSE.
FSTYPE: Final = "fuse.kdamon"

#: Signals that ask a process to end, or that come from its terminal.
_ASKING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
#: Seconds that cleaning up may take.
_PATIENCE: Final = 10
_MNT_DETACH: Final = 2
#: Attempts to find a directory whose name changes all the time.
_LOOKS: Final = 100


class Leftovers:
    """Removes ``path`` when this process ends without having called :meth:`forget`.

    :param kind: "mount": unmounts the dead mount that this process left there, and nothing else; "socket": removes the
        socket and the lock of a :class:`kdamon.producers.server.ReportServer`, unless another one serves there; and
        "directory": the same, and the directory that they are in, if it is empty then.
    :param descriptors: for "socket" of the directory that it is in, for "directory" of the one that this is in, too,
        for "mount" of the directory below it: then only the last components of ``path`` count.
    :param number: for "mount", with a descriptor: the kernel's id of the mount.
    """

    def __init__(self, kind: str, path: str, *descriptors: int, number: int | None = None) -> None:
        self._watcher: subprocess.Popen[bytes] | None = None
        # It inherits the mask and has a session of its own: what asks this process to end is not for it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
        try:
            pidfd = os.pidfd_open(os.getpid())
            numbers = [pidfd, *descriptors] + ([] if number is None else [number])
            try:
                self._watcher = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__, kind, path, *map(str, numbers)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    pass_fds=[pidfd, *descriptors],
                    start_new_session=True,
                )
            finally:
                os.close(pidfd)
        except OSError as error:
            log.warning("%s will stay when this process is killed: %s", path, error.strerror)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def forget(self) -> None:
        """Leave ``path`` alone from now on; may be repeated."""
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
            self._watcher = None


def mount_number(descriptor: int) -> int:
    """The kernel's id of the mount that an open file or directory is in (``fs/proc/fd.c: seq_show()``)."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as info:
        (number,) = (line.split()[1] for line in info if line.startswith(b"mnt_id:"))
    return int(number)


def _mounts() -> list[list[bytes]]:
    """The fields of all mounts. Names hold no blank there, but may hold what else bytes.split() takes for one."""
    with open("/proc/self/mountinfo", "rb") as lines:
        return [line.rstrip(b"\n").split(b" ") for line in lines]


def _is_ours(number: int) -> bool:
    """Return whether a tree is mounted as ``number``."""
    return any(int(line[0]) == number and line[line.index(b"-") + 1] == FSTYPE.encode() for line in _mounts())


def _check_alone(number: int) -> None:
    if any(int(line[1]) == number for line in _mounts()):
        # The kernel would unmount what is on top instead, and what is inside along with it.
        raise OSError(errno.EBUSY, "something else is mounted on or in it; unmount that first, then this")


def detach(root: int) -> None:
    """Unmount the mount whose root is open as ``root``; nothing if it is unmounted already.

    :raises OSError: EBUSY something else is mounted on or in it; or as ``umount2(2)``.
    """
    _check_alone(mount_number(root))
    # Not UMOUNT_NOFOLLOW: it would mean the link itself, which leads to nothing but what was opened.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(b"/proc/self/fd/%d" % root, _MNT_DETACH) and ctypes.get_errno() != errno.EINVAL:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def open_mounted(directory: int, number: int, name: str) -> int | None:
    """Open the root of the tree that is mounted as ``number``, without looking into it; None if there is none.

    :param directory: a descriptor of the directory that it is on, wherever that is by now.
    :param name: the last name that the directory is known by, for where its path is too long.
    :raises OSError: EBUSY something else is mounted on or in it; ESTALE it was moved, or its directory has another name
        each time.
    """
    for _ in range(_LOOKS):
        if not _is_ours(number):
            return None
        _check_alone(number)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            root = _open_mounted_on(directory, name)
            # By then the name may be that of another directory.
            if mount_number(root) == number:
                return root
            os.close(root)
    raise OSError(errno.ESTALE, "it was moved, or its directory has another name each time; unmount it where it is now")


def _open_mounted_on(directory: int, name: str) -> int:
    """Open the root of what is topmost on ``directory``, by the name that this has in its parent."""
    with contextlib.suppress(OSError):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{directory}"))
    parent = os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)


def unmount_by_helper(path: str) -> None:
    """Have ``path`` unmounted by the helper of users that may not; it knows names only, and checks them itself."""
    program = shutil.which("fusermount") or shutil.which("fusermount3")
    if program is not None:
        subprocess.run([program, "-u", "-z", path], check=False)


def _unmount_dead(path: str, directory: int = -1, number: int = -1) -> None:
    """Unmount a tree that is not served any more.

    :param path: its name, which counts for what the helper mounted.
    :param directory: the directory that it is on, if this is known.
    :param number: of the mount.
    """
    known = directory >= 0
    root = open_mounted(directory, number, os.path.basename(path.rstrip("/"))) if known else os.open(path, os.O_PATH)
    if root is None:
        return
    try:
        os.fstat(root)
    except OSError as error:
        # Others may have unmounted it, and the number be that of another one.
        if error.errno != errno.ENOTCONN or not _is_ours(mount_number(root)):
            return
        if known:
            detach(root)
        else:
            unmount_by_helper(path)


def is_entry(directory: int, name: str, fd: int) -> bool:
    """Return whether ``name`` in ``directory`` is the open file ``fd``; what is mounted on it is asked nothing."""
    try:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return False
    try:
        return is_same(found, fd)
    finally:
        os.close(found)


def is_same(one: int, other: int) -> bool:
    """Return whether two descriptors are of one file; descriptors in different mounts are decided without a request."""
    return mount_number(one) == mount_number(other) and os.path.sameopenfile(one, other)


def lock_name(name: str) -> str:
    """The name of the lock of the socket ``name``, in the same directory."""
    return f"{name}.lock"


def open_lock(directory: int, name: str, create: bool = False) -> int:
    """Open a lock file that this user made, and that no other user can open.

    :param directory: a descriptor of the directory that it is in.
    :param create: make it if it is missing.
    :raises OSError: EEXIST something else is there, which is not opened; ENOENT; else as ``open(2)``.
    """
    while True:
        if create:
            with contextlib.suppress(FileExistsError):
                return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            found = find_beside(directory, name)
        except FileNotFoundError:
            if create:
                continue
            raise
        try:
            status = os.fstat(found)
            private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
            if not stat.S_ISREG(status.st_mode) or not private or status.st_nlink > 1:
                sentence = f"{name} is there and is no lock that a kdamon of this user made"
                raise FileExistsError(errno.EEXIST, f"{sentence}; remove it, or choose another path")
            return os.open(f"/proc/self/fd/{found}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(found)


def find_beside(directory: int, name: str) -> int:
    """Open what is ``name`` in ``directory`` for O_PATH: that does nothing to it, and waits for nothing.

    :raises OSError: EEXIST it is in another file system, whose server may be another user and never answer; ENOENT.
    """
    found = os.open(name, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    if mount_number(found) != mount_number(directory):
        os.close(found)
        raise FileExistsError(errno.EEXIST, f"something is mounted on {name}; unmount it, or choose another path")
    return found


def remove_dead_socket(directory: int, name: str) -> None:
    """Remove a socket of this user that no process serves, if it is there.

    :param directory: a descriptor of the directory that it is in.
    :raises OSError: EEXIST something else is there; EADDRINUSE a process serves it.
    """
    try:
        found = find_beside(directory, name)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(found)
        if not stat.S_ISSOCK(status.st_mode):
            raise FileExistsError(errno.EEXIST, f"{name} is there and is no socket; choose another path")
        if status.st_uid != os.geteuid():
            sentence = f"{name} is there and is user {status.st_uid}'s; remove it, or choose another path"
            raise FileExistsError(errno.EEXIST, sentence)
        if not _dead(found):
            raise OSError(errno.EADDRINUSE, f"another process serves {name}; choose another path")
        os.unlink(name, dir_fd=directory)
    finally:
        os.close(found)


def _dead(found: int) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        # Any other answer, also that the type is a wrong one, comes from a socket that is open.
        return probe.connect_ex(f"/proc/self/fd/{found}") == errno.ECONNREFUSED


def remove_directory(parent: int, name: str, directory: int) -> None:
    """Remove the directory with the descriptor ``directory``, if it is empty and still ``name`` in ``parent``."""
    if is_entry(parent, name, directory):
        os.rmdir(name, dir_fd=parent)


def _remove_socket(path: str, directory: int, parent: int = -1) -> None:
    """Remove a socket and its lock, unless another process has that; then the directory, if ``parent`` has one."""
    above, name = os.path.split(path)
    lock = open_lock(directory, lock_name(name))
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not is_entry(directory, lock_name(name), lock):
        return
    with contextlib.suppress(OSError):
        remove_dead_socket(directory, name)
    os.unlink(lock_name(name), dir_fd=directory)
    if parent >= 0:
        remove_directory(parent, os.path.basename(above), directory)


def main(kind: str, path: str, pidfd: str, *numbers: str) -> None:
    """Wait for the end of a process, then remove its leftovers."""
    # Not waitid(): it is no child of ours.
    poll = select.poll()
    poll.register(int(pidfd), select.POLLIN)
    poll.poll()
    signal.alarm(_PATIENCE)
    with contextlib.suppress(OSError):
        if kind == "mount":
            _unmount_dead(path, *map(int, numbers))
        else:
            _remove_socket(path, *map(int, numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
