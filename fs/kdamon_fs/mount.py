# SPDX-License-Identifier: GPL-2.0-only
"""The tree in the file system, through FUSE.

* :func:`mount_tree` ``(tree, mountpoint, ready=None)`` mounts a tree that :func:`kdamon_fs.sysfs.damon_sysfs_init` made
  and serves it until SIGINT, SIGTERM, SIGHUP or ``umount``: what a command does in the foreground.
* :class:`mounted_tree` ``(tree, mountpoint)`` is a context manager that serves in the background.

Both stop all kdamonds when they end and leave no mount behind, also when the process is killed: another one unmounts
then. Where that was killed, too, the mount point says "Transport endpoint is not connected" until the next one cleans
it up. Raised everywhere: :class:`OSError` with one sentence
on what is missing and what to do.

Where a mount differs from the kernel's own tree:

* a second write to the same file waits until the first is done (the kernel's FUSE takes the file's lock), where the
  kernel's tree answers EBUSY; any other file of the tree answers EBUSY as it should;
* users other than the one who mounted it get EACCES for everything, where root's tree lets them list directories;
* ``fstat()`` of a file whose directory was removed says ENOENT, where the kernel's says that it has no links.
"""

from __future__ import annotations

import atexit
import errno
import itertools
import logging
import os
import resource
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

from kdamon.kernel import PAGE_SIZE
from kdamon.leftovers import FSTYPE, Leftovers
from kdamon_fs.fuse_binding import device_lack, load_fuse
from kdamon_fs.kobject import open_file
from kdamon_fs.mount_checks import check_may_mount
from kdamon_fs.mounts import (
    MNT_DETACH,
    mount_at,
    mount_containing,
    private_mount_namespace,
    umount,
)
from kdamon_fs.sysfs import damon_sysfs_tree

__all__ = ["mount_tree", "mounted_tree", "raise_file_limit"]

log = logging.getLogger("kdamon")

#: Signals that end :func:`mount_tree`.
_END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: How often to look whether a signal came, and how long the tree's end may take, seconds.
_POLL: Final = 0.1
_END_TIMEOUT: Final = 2.0

#: What a tree may answer. Any other error comes from a bug and becomes EIO.
_ANSWERS: Final = frozenset(
    {
        errno.EACCES,
        errno.EBUSY,
        errno.ECANCELED,
        errno.EINVAL,
        errno.EIO,
        errno.EISDIR,
        errno.EMFILE,
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


class _operations:
    """The FUSE operations, under the names that fusepy looks for; those that are absent the kernel answers itself."""

    use_ns = True

    def __init__(self, tree: damon_sysfs_tree) -> None:
        self.mounted = threading.Event()
        self._tree = tree
        self._files: dict[int, open_file] = {}
        self._handles = itertools.count(1)

    def __call__(self, operation: str, *arguments: Any) -> Any:
        try:
            return getattr(self, operation)(*arguments)
        except OSError as error:
            if error.errno in _ANSWERS:
                raise
            log.exception("%s of %s failed for a reason that is no answer", operation, arguments[0])
        except BaseException:
            # Also SystemExit: fusepy would leave a dead mount behind.
            log.exception("%s of %s failed by an internal error", operation, arguments[0])
        raise OSError(errno.EIO, "internal error, see the log")

    def init(self, _path: str) -> None:
        self.mounted.set()

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        return self._tree.getattr(path)

    def readdir(self, path: str, _handle: int) -> list[tuple[str, dict[str, int] | None, int]]:
        entries = self._tree.readdir(path)
        own: list[tuple[str, dict[str, int] | None, int]] = [(".", None, 0), ("..", None, 0)]
        return own + [(name, {"st_mode": mode, "st_ino": ino}, 0) for name, mode, ino in entries]

    def open(self, path: str, flags: int) -> int:
        handle = next(self._handles)
        self._files[handle] = self._tree.open(path, flags)
        return handle

    def read(self, _path: str, size: int, offset: int, handle: int) -> bytes:
        return self._files[handle].read(size, offset)

    def write(self, _path: str, data: bytes, _offset: int, handle: int) -> int:
        return self._files[handle].write(data)

    def release(self, _path: str, handle: int) -> None:
        del self._files[handle]

    def truncate(self, path: str, _length: int, _handle: int | None = None) -> None:
        # O_TRUNC of the shell's ">" arrives as this; sysfs ignores it.
        self._tree.lookup(path)

    def chmod(self, path: str, mode: int) -> None:
        self._tree.setattr(path, st_mode=stat.S_IMODE(mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        owners = {"st_uid": uid, "st_gid": gid}
        self._tree.setattr(path, **{name: owner for name, owner in owners.items() if owner != -1})

    def utimens(self, path: str, times: tuple[int, int]) -> None:
        self._tree.setattr(path, st_atime=times[0], st_mtime=times[1])

    def statfs(self, _path: str) -> dict[str, int]:
        return {"f_bsize": PAGE_SIZE, "f_frsize": PAGE_SIZE, "f_namemax": 255}

    def listxattr(self, _path: str) -> list[str]:
        return []

    def create(self, path: str, *_arguments: object) -> int:
        raise OSError(errno.EACCES, f"{path} cannot be created: files come with their directories")

    def _refuse(self, path: str, *_arguments: object) -> None:
        raise OSError(errno.EPERM, f"{path} cannot be made or removed: nr_* files say which directories there are")

    mkdir = rmdir = unlink = rename = link = symlink = mknod = _refuse


def _unmount(target: str) -> None:
    """Unmount ``target``, at once from the file system's tree and from use when its last user closes it."""
    try:
        umount(target)
    except OSError as error:
        if error.errno == errno.EPERM and (fusermount := shutil.which("fusermount")):
            subprocess.run([fusermount, "-u", "-z", target], check=False)
        elif error.errno == errno.EBUSY:
            umount(target, MNT_DETACH)
        elif error.errno != errno.EINVAL:  # EINVAL: nothing is mounted there any more
            raise


def _clean_mountpoint(target: str) -> None:
    """Unmount what killed predecessors left on ``target``."""
    while True:
        try:
            mode = os.stat(target).st_mode
        except OSError as error:
            entry = mount_at(target)
            if error.errno != errno.ENOTCONN or entry is None or entry.fstype != FSTYPE:
                raise OSError(error.errno, f"cannot mount on {target}: {error.strerror}") from None
            log.warning("%s: taking over the mount of a kdamon that was killed", target)
            umount(target, MNT_DETACH)
            continue
        if not stat.S_ISDIR(mode):
            raise OSError(errno.ENOTDIR, f"cannot mount on {target}: it is not a directory")
        return


def _check_mountpoint(target: str) -> None:
    """Refuse to hide a tree that is in use: another kdamon's, or the machine's own."""
    containing = mount_containing(target)
    if containing.fstype == FSTYPE:
        raise OSError(errno.EBUSY, f"another kdamon serves {target}: stop it first, or choose another directory")
    if containing.fstype == "sysfs" and (containing.shared or not private_mount_namespace()):
        raise OSError(
            errno.EPERM,
            f"{target} belongs to the kernel: 'kdamon exec -- COMMAND' lets a command see the tree there",
        )


class mounted_tree:
    """A tree that is mounted and served in the background, by threads of this process.

    :param tree: it is shut down at the end.
    :param mountpoint: an existing directory.
    :param private: this process is in a mount namespace made for it, so anything may be hidden.
    :raises OSError: ENOENT the mount point's name is empty.
    """

    def __init__(self, tree: damon_sysfs_tree, mountpoint: str | os.PathLike[str], *, private: bool = False) -> None:
        if not os.fspath(mountpoint):
            # realpath() takes this for the working directory.
            raise OSError(errno.ENOENT, "cannot mount: no directory was given")
        self.mountpoint = os.path.realpath(mountpoint)
        self._tree = tree
        self._private = private
        self._operations = _operations(tree)
        self._leftovers: Leftovers | None = None
        self._thread = threading.Thread(target=self._serve, name="kdamon-fuse", daemon=True)

    def _serve(self) -> None:
        options: dict[str, Any] = {
            # Names are bytes; this encoding gives every one of them back as it came.
            "encoding": "latin-1",
            "foreground": True,
            "direct_io": True,
            "use_ino": True,
            "big_writes": True,
            "fsname": "kdamon",
            "subtype": "kdamon",
            "entry_timeout": 60,
            "attr_timeout": 0,
        }
        if os.listdir(self.mountpoint):
            options["nonempty"] = True
        try:
            load_fuse().FUSE(self._operations, os.fsencode(self.mountpoint).decode("latin-1"), **options)
        except RuntimeError as error:
            log.error("%s: FUSE ended with status %s", self.mountpoint, error)

    def start(self) -> None:
        """Mount and serve; returns when the tree can be used.

        :raises OSError: what is in the way, and what to do.
        """
        load_fuse()
        if lack := device_lack():
            raise lack.error("cannot mount")
        check_may_mount()
        _clean_mountpoint(self.mountpoint)
        if not self._private:
            _check_mountpoint(self.mountpoint)
            # A private namespace ends with its processes, and so do the mounts in it.
            self._leftovers = Leftovers("mount", self.mountpoint)
        atexit.register(self.stop)
        with _signals_kept_from_fuse():
            self._thread.start()
            while not self._operations.mounted.wait(0.02):
                if not self._thread.is_alive():
                    self._forget()
                    raise OSError(errno.EIO, f"FUSE could not mount on {self.mountpoint}; it said why on stderr")

    def alive(self) -> bool:
        """Return whether the tree is still served; not so after somebody unmounted it."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Return when the tree is not served any more, or after ``seconds``."""
        self._thread.join(seconds)

    def stop(self) -> None:
        """Stop the kdamonds, unmount, and end the serving threads."""
        self._tree.shutdown()
        if self._thread.is_alive():
            _unmount(self.mountpoint)
            self._thread.join(_END_TIMEOUT)
        self._forget()
        if self._thread.is_alive():
            log.warning("%s: still in use by somebody, who gets errors from now on", self.mountpoint)

    def _forget(self) -> None:
        atexit.unregister(self.stop)
        if self._leftovers is not None:
            self._leftovers.forget()

    def __enter__(self) -> mounted_tree:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class _signals_kept_from_fuse:
    """While it is entered, no signal has its default action: libfuse makes such signals end its loop.

    A broken pipe gets a handler for good: where it is ignored, libfuse gives it its default action back when the loop
    ends, and the next log line would kill this process.
    """

    def __enter__(self) -> None:
        self._defaults: list[signal.Signals] = []
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN:
            signal.signal(signal.SIGPIPE, lambda _number, _frame: None)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        for number in _END_SIGNALS:
            if number not in blocked and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.SIG_IGN)
                self._defaults.append(number)

    def __exit__(self, *_exception: object) -> None:
        for number in self._defaults:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _end_signals() -> Iterator[list[int]]:
    """Collect the signals that are to end the tree; further ones cannot disturb its end.

    Handlers, not a mask: numpy's library has threads that block no signal, and one of them would get it. What is
    ignored, as with nohup, stays so.
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


def raise_file_limit() -> None:
    """Let this process have as many files open as it may: a few for each process that is monitored.

    The usual limit, 1024, is that of select(), which nothing here uses. Not for a process that runs other programs.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def mount_tree(
    tree: damon_sysfs_tree, mountpoint: str | os.PathLike[str], ready: Callable[[], None] | None = None
) -> None:
    """Mount ``tree`` and serve it until SIGINT, SIGTERM or SIGHUP comes, or somebody unmounts it.

    To be called in the main thread. The kdamonds are stopped and nothing stays mounted when it returns.

    :param mountpoint: an existing directory.
    :param ready: called once the tree can be used.
    :raises OSError: what is in the way, and what to do.
    """
    raise_file_limit()
    with _end_signals() as came, mounted_tree(tree, mountpoint) as mounted:
        if ready is not None:
            ready()
        while mounted.alive() and not came:
            mounted.wait(_POLL)
