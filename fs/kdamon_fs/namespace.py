# SPDX-License-Identifier: GPL-2.0-only
"""Running a command that finds the tree at the kernel's places, ``/sys/kernel/mm/damon`` and ``/sys/module/damon_*``.

:func:`run_in_namespace` ``(argv, abi, machine) -> int`` gives this process a private mount namespace, mounts the tree
there and runs a command in it; nothing of that is visible to any other process of the machine.

* A kernel without DAMON has no such directory and sysfs lets nobody make one: then ``/sys/kernel/mm`` is covered by a
  tmpfs with the same content and ``damon``. The same goes for ``/sys/module`` and the kernel's modules: what is loaded
  later does not show up there.
* damo does not start without a tracefs; one is mounted where none is.
* damo keeps what it found out about the kernel in ``~/.damo.sysinfo``, and would mix up the kernel's features with the
  tree's. The command gets that one file for itself and keeps the rest of its home directory.
* When this process is killed, the command is too (SIGKILL), and what was made for damo's cache goes; the namespace
  ends with the last process in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

from kdamon.mm import Machine
from kdamon_fs.kobject import ABI_VERSIONS
from kdamon_fs.mount import mounted_tree, raise_file_limit
from kdamon_fs.mounts import (
    MNT_DETACH,
    MS_BIND,
    MS_MOVE,
    MS_REC,
    mount,
    mounts,
    set_parent_death_signal,
    umount,
    unshare_mount_namespace,
)
from kdamon_fs.sysfs import damon_sysfs_init

__all__ = ["DAMON_DIRECTORY", "MODULE_DIRECTORY", "run_in_namespace"]

log = logging.getLogger("kdamon")

#: Where the kernel has its own tree.
DAMON_DIRECTORY: Final = "/sys/kernel/mm/damon"

#: Where the kernel has the parameters of its modules.
MODULE_DIRECTORY: Final = "/sys/module"

_TRACEFS_DIRECTORIES: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")

#: Passed on to the command.
_FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

#: siginfo's si_code of a signal that the kernel sent: a terminal, which sends it to the command as well.
_SI_KERNEL: Final = 0x80

#: Exit statuses of a shell for a command that is not there, and for one that cannot be run.
_NOT_FOUND: Final = 127
_NOT_RUNNABLE: Final = 126


def _make_directories(parent: str, names: Sequence[str]) -> None:
    """Make the directories ``names`` exist in ``parent``, where the kernel lets nobody make any."""
    missing = [name for name in names if not os.path.isdir(os.path.join(parent, name))]
    if not missing:
        return
    workspace = tempfile.mkdtemp(prefix="kdamon-")
    try:
        # Built beside its place: once it covers the directory, what is in there cannot be bound any more.
        mount("tmpfs", workspace, "tmpfs", data="mode=755")
        for name in os.listdir(parent):
            source, target = os.path.join(parent, name), os.path.join(workspace, name)
            if os.path.isdir(source):
                os.mkdir(target)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
            mount(source, target, flags=MS_BIND | MS_REC)
        for name in missing:
            os.mkdir(os.path.join(workspace, name), 0o755)
        mount(workspace, parent, flags=MS_MOVE)
    except OSError as error:
        raise OSError(error.errno, f"cannot make {missing[0]} in {parent}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            umount(workspace, MNT_DETACH)
        os.rmdir(workspace)


@contextlib.contextmanager
def _modules_in_place(names: Sequence[str]) -> Iterator[None]:
    """Show the parameters of the modules ``names`` of the tree, which is served already, where the kernel has them."""
    places: list[str] = []
    try:
        for name in names:
            place = os.path.join(MODULE_DIRECTORY, name)
            mount(os.path.join(DAMON_DIRECTORY, "module", name), place, flags=MS_BIND)
            places.append(place)
        yield
    finally:
        for place in places:
            # The tree does not end as long as a part of it is mounted anywhere; the command may have unmounted this.
            with contextlib.suppress(OSError):
                umount(place, MNT_DETACH)


def _mount_tracefs() -> None:
    """Have a tracefs mounted; where that is impossible damo says so itself."""
    if any(entry.fstype == "tracefs" for entry in mounts()):
        return
    for directory in _TRACEFS_DIRECTORIES:
        if os.path.isdir(directory):
            try:
                mount("tracefs", directory, "tracefs")
            except OSError as error:
                log.warning("%s; damo needs it", error.strerror)
            return


@contextlib.contextmanager
def _private_damo_cache() -> Iterator[None]:
    """Cover damo's cache by an empty file that only this namespace sees; damo takes an empty one for none.

    A process of its own takes the cover away, so that nothing is left when this one is killed.
    """
    path = os.path.join(os.environ.get("HOME", "/nonexistent"), ".damo.sysinfo")
    try:
        lock = _lock_cache(path)
        _cover(path)
    except OSError as error:
        log.info("damo's cache stays as it is: %s", error.strerror)
        yield
        return
    ended, running = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.close(running)
            os.read(ended, 1)
            _uncover(path, lock)
        finally:
            os._exit(0)
    os.close(ended)
    try:
        yield
    finally:
        os.close(running)
        os.waitpid(pid, 0)
        os.close(lock)


def _lock_cache(path: str) -> int:
    """Open the file at ``path``, make it if it is missing, and lock it: nobody removes it then."""
    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(lock)):
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _cover(path: str) -> None:
    handle, cover = tempfile.mkstemp(prefix="kdamon-")
    os.close(handle)
    try:
        mount(cover, path, flags=MS_BIND)
    finally:
        # The mount keeps the file, so that nothing is left to clean up.
        os.unlink(cover)


def _uncover(path: str, lock: int) -> None:
    """Unmount the cover, and remove the file below it if it is as it was made and nobody else covers it."""
    with contextlib.suppress(OSError):
        umount(path, MNT_DETACH)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(path), os.fstat(lock)) and os.path.getsize(path) == 0:
            os.unlink(path)


class _command:
    """A command that is forked now, while this process has one thread, and started later."""

    def __init__(self, argv: Sequence[str], signals: set[int | signal.Signals]) -> None:
        self._argv = list(argv)
        self._signals = signals
        self._go_read, self._go = os.pipe()
        self._failure, self._failed = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(parent)
        os.close(self._go_read)
        os.close(self._failed)

    def _become(self, parent: int) -> NoReturn:
        status = _NOT_RUNNABLE
        try:
            os.close(self._go)
            set_parent_death_signal(signal.SIGKILL)
            # Without the byte the parent failed or is dead already.
            if os.getppid() == parent and os.read(self._go_read, 1):
                signal.pthread_sigmask(signal.SIG_SETMASK, self._signals)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.execvp(self._argv[0], self._argv)
        except (OSError, ValueError) as error:
            # The name that is empty is a ValueError; a shell does not find it.
            number = error.errno or 0 if isinstance(error, OSError) else errno.ENOENT
            status = _NOT_FOUND if number == errno.ENOENT else _NOT_RUNNABLE
            os.write(self._failed, os.strerror(number).encode())
        finally:
            os._exit(status)

    def start(self) -> None:
        """Let the command run."""
        os.write(self._go, b"x")
        os.close(self._go)
        with os.fdopen(self._failure, "rb") as failure:
            if reason := failure.read().decode():
                log.error("%s cannot be run: %s", self._argv[0] or "''", reason)

    def cancel(self) -> None:
        """Let the process end without becoming the command."""
        os.close(self._go)
        os.close(self._failure)
        os.waitpid(self.pid, 0)

    def wait(self) -> int:
        """Wait for its end and pass signals on to it until then; returns the status as a shell does.

        The signals have to be blocked.
        """
        while True:
            number, status = os.waitpid(self.pid, os.WNOHANG)
            if number:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            info = signal.sigwaitinfo((*_FORWARDED, signal.SIGCHLD))
            if info.si_signo != signal.SIGCHLD and info.si_code != _SI_KERNEL:
                os.kill(self.pid, info.si_signo)


def run_in_namespace(
    argv: Sequence[str],
    abi: str = ABI_VERSIONS[-1],
    machine: Machine | Callable[[], Machine] | None = None,
    beside: contextlib.AbstractContextManager[object] | None = None,
) -> int:
    """Run ``argv`` with the tree at the kernel's places and return its exit status, 128 + number for a signal.

    Changes the mount namespace of this process for good: to be called by a process for nothing else, with one thread,
    and as root. Signals sent to this process go to the command. When it ends, the kdamonds are stopped and the tree is
    unmounted, also for processes that the command left behind.

    :param argv: the command and its arguments; looked up in PATH.
    :param abi: as for :func:`kdamon_fs.sysfs.damon_sysfs_init`.
    :param machine: likewise.
    :param beside: entered as long as the tree is served; it may start threads.
    :raises OSError: EINVAL unknown ``abi``; EPERM not root; what :class:`kdamon_fs.mount.mounted_tree` raises.
    """
    tree = damon_sysfs_init(machine, abi)
    unshare_mount_namespace()
    modules = list(tree.modules.children)
    _make_directories(os.path.dirname(DAMON_DIRECTORY), [os.path.basename(DAMON_DIRECTORY)])
    _make_directories(MODULE_DIRECTORY, modules)
    _mount_tracefs()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGCHLD))
    try:
        with _private_damo_cache(), contextlib.ExitStack() as serving:
            command = _command(argv, mask)
            raise_file_limit()
            try:
                if beside is not None:
                    serving.enter_context(beside)
                serving.enter_context(mounted_tree(tree, DAMON_DIRECTORY, private=True))
                serving.enter_context(_modules_in_place(modules))
            except BaseException:
                command.cancel()
                raise
            command.start()
            return command.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
