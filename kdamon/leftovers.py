# SPDX-License-Identifier: GPL-2.0-only
"""What this process has in the file system goes when it is killed: a mount, or the socket of reports.

Nobody can clean up after SIGKILL but another process: :class:`Leftovers` starts one, of this same file, that waits for
the end of this one. It runs as ``python -I -S leftovers.py``, with the standard library and nothing else, to be small.
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
import stat
import subprocess
import sys
from typing import Final

__all__ = ["FSTYPE", "Leftovers"]

log = logging.getLogger("kdamon")

#: Type of the file system in /proc/mounts of the mounts that are cleaned up, made of the subtype given to FUSE.
FSTYPE: Final = "fuse.kdamon"

#: What asks a process to end, or comes from its terminal.
_ASKING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
#: Seconds that cleaning up may take.
_PATIENCE: Final = 10
_MNT_DETACH: Final = 2


class Leftovers:
    """Takes ``path`` away when this process ends without having called :meth:`forget`.

    :param kind: "mount": unmounts the dead mount that this process left there, and nothing else; "socket": removes the
        socket and the lock of a :class:`kdamon.report_server.ReportServer`, unless another one serves there; and
        "directory": the same, and the directory that they are in, if it is empty then.
    """

    def __init__(self, kind: str, path: str) -> None:
        self._watcher: subprocess.Popen[bytes] | None = None
        # It inherits the mask and has a session of its own: what asks this process to end is not for it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
        try:
            pidfd = os.pidfd_open(os.getpid())
            try:
                self._watcher = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__, kind, path, str(pidfd)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    pass_fds=[pidfd],
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


def _unmount_dead(path: str) -> None:
    """Unmount what is topmost on ``path`` if it is a mount of ours that nobody serves."""
    mount = os.open(path, os.O_PATH)
    try:
        os.fstat(mount)
        return
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            return
    with open(f"/proc/self/fdinfo/{mount}", "rb") as info:
        (number,) = (line.split()[1] for line in info if line.startswith(b"mnt_id:"))
    with open("/proc/self/mountinfo", "rb") as mounts:
        (fields,) = (line.split() for line in mounts if line.split(None, 1)[0] == number)
    if fields[fields.index(b"-") + 1] != FSTYPE.encode():
        return
    # By the descriptor, because another one may be mounted there meanwhile.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(b"/proc/self/fd/%d" % mount, _MNT_DETACH) and ctypes.get_errno() == errno.EPERM:
        # The helper of users that may not mount. It knows names only.
        fusermount = shutil.which("fusermount") or shutil.which("fusermount3")
        if fusermount is not None:
            os.execv(fusermount, [fusermount, "-u", "-z", path])


def _remove_socket(path: str, with_directory: bool) -> None:
    """Remove the socket ``path`` and its lock, unless somebody has the lock."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_NOFOLLOW)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.path.samestat(os.stat(f"{path}.lock"), os.fstat(lock)):
        return
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    os.unlink(f"{path}.lock")
    if with_directory:
        os.rmdir(os.path.dirname(path))


def main(kind: str, path: str, pidfd: str) -> None:
    """Wait for the end of a process, then clean up what it left."""
    # Not waitid(): it is no child of ours.
    poll = select.poll()
    poll.register(int(pidfd), select.POLLIN)
    poll.poll()
    signal.alarm(_PATIENCE)
    with contextlib.suppress(OSError):
        if kind == "mount":
            _unmount_dead(path)
        else:
            _remove_socket(path, kind == "directory")


if __name__ == "__main__":
    main(*sys.argv[1:])
