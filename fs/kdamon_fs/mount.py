# SPDX-License-Identifier: GPL-2.0-only
"""The tree in the file system, through FUSE.

* :func:`mount_tree` ``(tree, mountpoint, ready=None)`` mounts a tree that :func:`kdamon_fs.sysfs.damon_sysfs_init` made
  and serves it until SIGINT, SIGTERM, SIGHUP or ``umount``, in the foreground.
* :class:`MountedTree` ``(tree, mountpoint)`` is a context manager that serves in the background.

Both stop all kdamonds and unmount the tree when they end. If the process is killed, a second process unmounts. If that
one is killed, too, accesses to the mount point fail with ENOTCONN until the next mount there cleans it up. All errors
are :class:`OSError` with one sentence: the problem and the remedy.

A mount differs from the kernel's own tree in these points:

* a second write to the same file waits until the first is done (the kernel's FUSE takes the file's lock), where the
  kernel's tree returns EBUSY; any other file of the tree returns EBUSY as in the kernel
  (docs/deviations.md#a-second-command-waits-in-fuse);
* all users except the mounting one get EACCES for everything, where the kernel's tree lets them list directories
  (docs/deviations.md#the-tree-is-its-users-alone);
* ``fstat()`` of a file whose directory was removed fails with ENOENT, where the kernel reports a link count of 0
  (docs/deviations.md#removed-directories).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import itertools
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from kdamon.kernel import PAGE_SIZE
from kdamon.lib.file_limit import raise_file_limit
from kdamon.lib.mountinfo import mount_of
from kdamon.lib.watcher import FSTYPE, Leftovers, mount_number, unmount_by_helper
from kdamon_fs.fuse_binding import device_lack, load_fuse, open_device
from kdamon_fs.fuse_channel import Channel, connect
from kdamon_fs.kobject import OpenFile
from kdamon_fs.mount_checks import check_may_mount, mounts_by_helper
from kdamon_fs.mount_point import MountPoint
from kdamon_fs.mounts import make_mount, private_mount_namespace
from kdamon_fs.sysfs import SysfsTree

__all__ = ["MountedTree", "mount_tree"]

log = logging.getLogger("kdamon")

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")

#: Signals that end :func:`mount_tree`.
_END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds between checks for a signal, and the time limit for the tree's end.
_POLL: Final = 0.1
_END_TIMEOUT: Final = 2.0

#: Times for utimensat(2), in its nanoseconds with 0 seconds (``include/uapi/linux/stat.h``): the time now, and none.
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2

#: The errnos that a tree may return. Any other error comes from a bug and becomes EIO.
_ANSWERS: Final = frozenset(
    {
        errno.EACCES,
        errno.EBUSY,
        errno.ECANCELED,
        errno.EINVAL,
        errno.EIO,
        errno.EISDIR,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOENT,
        errno.ENOMEM,
        errno.ENOSYS,
        errno.ENOTDIR,
        errno.EOPNOTSUPP,
        errno.EOVERFLOW,
        errno.EPERM,
        errno.ERANGE,
        errno.ESHUTDOWN,
    }
)


def _guarded(
    operation: Callable[Concatenate[_operations, _Arguments], _Answer],
) -> Callable[Concatenate[_operations, _Arguments], _Answer]:
    """Turn every unexpected exception of an operation into EIO and a log line.

    libfuse's Python packages would return EINVAL, or leave a dead mount.
    """

    @functools.wraps(operation)
    def guarded(self: _operations, /, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Answer:
        try:
            return operation(self, *arguments, **named)
        except OSError as error:
            if error.errno in _ANSWERS:
                raise
            log.exception("%s of %s failed with an unexpected error", operation.__name__, arguments[0])
        except BaseException:
            # This includes SystemExit.
            log.exception("%s of %s failed by an internal error", operation.__name__, arguments[0])
        raise OSError(errno.EIO, "internal error, see the log")

    return guarded


class _operations:
    """The FUSE operations, under the names that the packages expect; the kernel handles the absent ones."""

    use_ns = True

    def __init__(self, tree: SysfsTree) -> None:
        self.mounted = threading.Event()
        self._tree = tree
        self._files: dict[int, OpenFile] = {}
        self._handles = itertools.count(1)

    def __call__(self, operation: str, *arguments: Any) -> Any:
        """Dispatch an operation for fusepy; mfusepy calls the operations directly."""
        return getattr(self, operation)(*arguments)

    @_guarded
    def init(self, _path: str) -> None:
        self.mounted.set()

    @_guarded
    def init_with_config(self, _connection: Any, config: Any) -> None:
        """Initialize for mfusepy: libfuse 3 replaces some options by ``struct fuse_config``."""
        config.direct_io = config.use_ino = 1
        self.mounted.set()

    @_guarded
    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        return self._tree.getattr(path)

    @_guarded
    def readdir(self, path: str, _handle: int) -> list[tuple[str, dict[str, int] | None, int]]:
        entries = self._tree.readdir(path)
        own: list[tuple[str, dict[str, int] | None, int]] = [(".", None, 0), ("..", None, 0)]
        return own + [(name, {"st_mode": mode, "st_ino": ino}, 0) for name, mode, ino in entries]

    @_guarded
    def open(self, path: str, flags: int) -> int:
        handle = next(self._handles)
        self._files[handle] = self._tree.open(path, flags)
        return handle

    @_guarded
    def read(self, _path: str, size: int, offset: int, handle: int) -> bytes:
        return self._files[handle].read(size, offset)

    @_guarded
    def write(self, _path: str, data: bytes, _offset: int, handle: int) -> int:
        return self._files[handle].write(data)

    @_guarded
    def release(self, _path: str, handle: int) -> None:
        del self._files[handle]

    @_guarded
    def truncate(self, path: str, _length: int, _handle: int | None = None) -> None:
        # O_TRUNC of the shell's ">" arrives as this; sysfs ignores it.
        self._tree.lookup(path)

    @_guarded
    def chmod(self, path: str, mode: int) -> None:
        self._tree.setattr(path, st_mode=stat.S_IMODE(mode))

    @_guarded
    def chown(self, path: str, uid: int, gid: int) -> None:
        owners = {"st_uid": uid, "st_gid": gid}
        self._tree.setattr(path, **{name: owner for name, owner in owners.items() if owner != -1})

    @_guarded
    def utimens(self, path: str, times: tuple[int, int]) -> None:
        now = time.time_ns()
        given = {"st_atime": times[0], "st_mtime": times[1]}
        # libfuse 3 passes UTIME_NOW and UTIME_OMIT on; libfuse 2 replaces them by a time.
        chosen = {name: now if when == _UTIME_NOW else when for name, when in given.items() if when != _UTIME_OMIT}
        self._tree.setattr(path, **chosen)

    @_guarded
    def statfs(self, _path: str) -> dict[str, int]:
        return {"f_bsize": PAGE_SIZE, "f_frsize": PAGE_SIZE, "f_namemax": 255}

    @_guarded
    def listxattr(self, _path: str) -> list[str]:
        return []

    @_guarded
    def create(self, path: str, *_arguments: object) -> int:
        raise OSError(errno.EACCES, f"{path} cannot be created: each directory has a fixed set of files")

    @_guarded
    def _refuse(self, path: str, *_arguments: object) -> None:
        raise OSError(errno.EPERM, f"{path} cannot be created or removed: write their number to the nr_* file")

    mkdir = rmdir = unlink = rename = link = symlink = mknod = _refuse


def _check_unused(point: MountPoint) -> None:
    """Refuse to cover a tree that is in use: another kdamon's, or the kernel's."""
    containing = mount_of(point.directory)
    if containing is None:
        return
    if containing.fstype == FSTYPE:
        raise OSError(errno.EBUSY, f"another kdamon serves {point.name}: stop it first, or choose another directory")
    if containing.fstype == "sysfs" and (containing.shared or not private_mount_namespace()):
        raise OSError(
            errno.EPERM,
            f"{point.name} belongs to the kernel: 'kdamon exec -- COMMAND' lets a command see the tree there",
        )


class MountedTree:
    """A tree that is mounted and served in the background, by threads of this process.

    :param tree: the tree; it is shut down at the end.
    :param mountpoint: an existing directory; its name is resolved once (:mod:`kdamon_fs.mount_point`).
    :param private: this process has its own mount namespace, so the mount may cover any directory.
    :raises OSError: ENOENT the mount point's name is empty.
    """

    def __init__(self, tree: SysfsTree, mountpoint: str | os.PathLike[str], *, private: bool = False) -> None:
        self.mountpoint = os.fspath(mountpoint)
        if not self.mountpoint:
            raise OSError(errno.ENOENT, "cannot mount: no directory was given")
        self._tree = tree
        self._private = private
        self._operations = _operations(tree)
        self._ending = contextlib.ExitStack()
        self._unmount: Callable[[], None] = lambda: None
        self._unmount_dead: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=lambda: None)

    def start(self) -> None:
        """Mount and serve; return when the tree can be used.

        :raises OSError: the problem and the remedy.
        """
        load_fuse()
        if lack := device_lack():
            raise lack.error("cannot mount")
        check_may_mount()
        with contextlib.ExitStack() as ending:
            point = MountPoint(self.mountpoint)
            ending.callback(point.close)
            if not self._private:
                _check_unused(point)
                point.warn_of_others()
            if mounts_by_helper():
                self._start_by_helper(ending)
            else:
                self._start_at(point, ending)
            atexit.register(self.stop)
            ending.callback(atexit.unregister, self.stop)
            self._ending = ending.pop_all()

    def _start_at(self, point: MountPoint, ending: contextlib.ExitStack) -> None:
        """Mount by descriptors: serve first, then attach the mount, so that no process waits for an answer."""
        device = open_device()
        settings = {"source": "kdamon", "subtype": "kdamon", "fd": str(device), "rootmode": f"{stat.S_IFDIR:o}"}
        settings |= {"user_id": str(os.getuid()), "group_id": str(os.getgid())}
        try:
            root = make_mount("fuse", settings)
        except BaseException:
            os.close(device)
            raise
        try:
            self._unmount, self._unmount_dead = point.detach, point.detach_dead
            self._serve(connect(self._operations, device))
            if not self._private:
                # A private namespace ends with its processes, and so do the mounts in it.
                leftovers = Leftovers("mount", point.name, point.directory, number=mount_number(root))
                ending.callback(leftovers.forget)
            point.attach(root)
        finally:
            # An open descriptor would make umount(8) fail with EBUSY.
            os.close(root)

    def _start_by_helper(self, ending: contextlib.ExitStack) -> None:
        """Let fusermount mount; it resolves the name with the rights of its user."""
        target = os.path.realpath(self.mountpoint)
        leftovers = Leftovers("mount", target)
        ending.callback(leftovers.forget)
        self._unmount = functools.partial(unmount_by_helper, target)
        self._serve(connect(self._operations, directory=target))

    def _serve(self, channel: Channel) -> None:
        """Start serving, and wait until the kernel's first request is answered."""
        self._thread = threading.Thread(target=self._answer, args=(channel,), name="kdamon-fuse", daemon=True)
        self._thread.start()
        while not self._operations.mounted.wait(0.02):
            if not self._thread.is_alive():
                raise OSError(errno.EIO, f"libfuse could not serve {self.mountpoint}; its message is on stderr")

    def _answer(self, channel: Channel) -> None:
        try:
            channel.serve()
        except OSError as error:
            log.error("%s: %s", self.mountpoint, error.strerror)
        finally:
            # Before the connection ends: until then the mount cannot be mistaken for another one.
            connected = channel.connected()
            if connected:
                self._try_unmount()
            channel.close()
            if not connected:
                # Unmounted already, unless root ended the connection by /sys/fs/fuse/connections. Another mount may
                # have its number by now, which is no reason to warn.
                with contextlib.suppress(OSError):
                    self._unmount_dead()

    def alive(self) -> bool:
        """Return whether the tree is still served; it is not once it was unmounted."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait until the tree is not served any more, at most ``seconds``."""
        self._thread.join(seconds)

    def stop(self) -> None:
        """Stop the kdamonds, unmount, and end the serving threads."""
        self._tree.shutdown()
        # Kernel: a tree does not end. Here: commands that still wait get their answers, or a broken connection.
        # (docs/deviations.md#the-tree-can-end-during-a-command)
        if self._thread.is_alive() and self._try_unmount():
            self._thread.join(_END_TIMEOUT)
            if self._thread.is_alive():
                log.warning("%s: still in use; its users get errors from now on", self.mountpoint)
        self._ending.close()

    def _try_unmount(self) -> bool:
        try:
            self._unmount()
        except OSError as error:
            log.warning("%s stays mounted, and every access to it will fail: %s", self.mountpoint, error.strerror)
            return False
        return True

    def __enter__(self) -> MountedTree:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


@contextlib.contextmanager
def _end_signals() -> Iterator[list[int]]:
    """Collect the signals that end the tree; further ones cannot interrupt its end.

    Handlers, not a mask: numpy's library has threads that block no signal, and the kernel would deliver it to one of
    them. Ignored signals, as with nohup, stay ignored.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _END_SIGNALS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def mount_tree(tree: SysfsTree, mountpoint: str | os.PathLike[str], ready: Callable[[], None] | None = None) -> None:
    """Mount ``tree`` and serve it until SIGINT, SIGTERM or SIGHUP comes, or until it is unmounted.

    Only for the main thread. When it returns, the kdamonds are stopped and nothing stays mounted.

    :param mountpoint: an existing directory.
    :param ready: called once the tree can be used.
    :raises OSError: the problem and the remedy.
    """
    raise_file_limit()
    with _end_signals() as came, MountedTree(tree, mountpoint) as mounted:
        if ready is not None:
            ready()
        while mounted.alive() and not came:
            mounted.wait(_POLL)
