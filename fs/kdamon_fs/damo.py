# SPDX-License-Identifier: GPL-2.0-only
"""A separate cache of damo, ``~/.damo.sysinfo``, for the tree.

damo caches the features of a kernel in this file and would mix up the kernel's with the tree's.
:func:`private_damo_cache` gives the mount namespace its own file. damo detects features by trying them, which it
refuses while a kdamond runs: :func:`fill_damo_cache` lets it do so before the command starts.

damo opens the file by name, and kdamon creates it. So :func:`trusted_home` chooses a home directory in which no other
user can put a different file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from typing import Final

from kdamon.lib.path_walk import UntrustedError
from kdamon.lib.trusted import find_program, open_trusted, trusted_path
from kdamon.lib.watcher import is_entry
from kdamon_fs.mounts import MNT_DETACH, MS_BIND, mount, set_parent_death_signal, umount
from kdamon_fs.places import OWN_DIRECTORY

__all__ = ["directories_beside", "fill_damo_cache", "private_damo_cache", "trusted_home"]

log = logging.getLogger("kdamon")

_CACHE: Final = ".damo.sysinfo"

#: Time limits in seconds: for damo to inspect the tree, and for another kdamon to remove the cache that it made.
_PATIENCE: Final = 20
_UNCOVERING: Final = 5.0
#: Time limit in seconds for damo to exit after SIGKILL.
_DYING: Final = 1


def trusted_home() -> str | None:
    """The HOME of the command: the environment's, or this user's own where another user can change the former.

    None where another user can change both; HOME stays unchanged then.
    """
    refusal: UntrustedError | None = None
    for home in _homes():
        try:
            os.close(open_trusted(home))
        except UntrustedError as error:
            refusal = refusal or error
            continue
        except OSError:
            # A directory that does not exist cannot be created by another user either.
            pass
        if refusal is not None:
            log.warning("HOME=%s: %s; the command runs with HOME=%s instead", refusal.filename, refusal.strerror, home)
        return home
    if refusal is not None:
        log.warning("HOME=%s: %s; damo's cache there is used unchanged", refusal.filename, refusal.strerror)
    return None


def _homes() -> Iterator[str]:
    if (home := os.environ.get("HOME")) is not None:
        yield home
    # The caller asks for the next one only if the first is unsuitable, so a directory service is rarely queried.
    with contextlib.suppress(KeyError):
        yield pwd.getpwuid(os.geteuid()).pw_dir


@contextlib.contextmanager
def private_damo_cache(home: str | None) -> Iterator[bool]:
    """Cover damo's cache with an empty file that only this namespace sees; damo ignores an empty cache.

    A separate process removes the cover, so that nothing remains after this one is killed. Yields whether the cache is
    covered.

    :param home: the result of :func:`trusted_home`; without one nothing is covered.
    """
    if home is None:
        yield False
        return
    try:
        directory = open_trusted(home)
    except OSError as error:
        log.info("damo's cache stays as it is: %s", error.strerror)
        yield False
        return
    try:
        lock = _lock_cache(directory)
        _cover(lock)
    except OSError as error:
        os.close(directory)
        log.info("damo's cache stays as it is: %s", error.strerror)
        yield False
        return
    ended, running = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.close(running)
            os.read(ended, 1)
            _uncover(directory, lock)
        finally:
            os._exit(0)
    os.close(ended)
    try:
        yield True
    finally:
        os.close(running)
        os.waitpid(pid, 0)
        os.close(lock)
        os.close(directory)


def _lock_cache(directory: int) -> int:
    """Open the cache in ``directory``, create it if it is missing, and lock it so that it is not removed.

    :raises OSError: ELOOP, EPERM it is not a regular file of this user alone; EAGAIN another process holds the lock.
    """
    # Opening must neither block on a FIFO nor acquire a controlling terminal.
    flags = os.O_CREAT | os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    while True:
        lock = os.open(_CACHE, flags, 0o644, dir_fd=directory)
        try:
            status = os.fstat(lock)
            others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or others_write:
                raise OSError(errno.EPERM, f"{_CACHE} is not a regular file that only this user can write")
            _wait_for_lock(lock)
            if is_entry(directory, _CACHE, lock):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _wait_for_lock(lock: int) -> None:
    """Take the shared lock of the cache; every user with read access may hold it."""
    deadline = time.monotonic() + _UNCOVERING
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise OSError(errno.EAGAIN, f"another process holds the lock of {_CACHE}") from None
            time.sleep(_UNCOVERING / 100)
        else:
            return


def _cover(lock: int) -> None:
    """Bind-mount an empty file, on its own file system, over the open one."""
    mount("tmpfs", OWN_DIRECTORY, "tmpfs", data="mode=700")
    try:
        cover = os.path.join(OWN_DIRECTORY, _CACHE)
        os.close(os.open(cover, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        mount(cover, f"/proc/self/fd/{lock}", flags=MS_BIND)
    finally:
        # The bind mount keeps the file system alive, so nothing needs cleaning up.
        umount(OWN_DIRECTORY, MNT_DETACH)


def _uncover(directory: int, lock: int) -> None:
    """Unmount the cover, and remove the file below it if it is still empty and no other process locks it."""
    with contextlib.suppress(OSError):
        cover = os.open(_CACHE, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        umount(f"/proc/self/fd/{cover}", MNT_DETACH)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_entry(directory, _CACHE, lock) and os.fstat(lock).st_size == 0:
            os.unlink(_CACHE, dir_fd=directory)


def directories_beside() -> list[str]:
    """The directories of programs that were installed together with kdamon, for this Python."""
    return list(dict.fromkeys([os.path.dirname(sys.executable), sysconfig.get_path("scripts")]))


def fill_damo_cache() -> None:
    """Let damo inspect the tree while no kdamond runs; only with a covered cache.

    Runs the damo on PATH that no other user can change, else the one installed together with kdamon, for this Python.
    Does nothing if there is no damo or it fails.
    """
    program = find_program("damo") or shutil.which("damo", path=os.pathsep.join(directories_beside()))
    if program is None:
        return
    asking = os.getpid()

    def end_with_this() -> None:
        # If kdamon is killed, so is this process, and damo has no tree to inspect any more.
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != asking:
            os._exit(1)

    try:
        process = subprocess.Popen(
            [program, "report", "sysinfo"],
            # damo finds further programs through PATH.
            env={**os.environ, "PATH": trusted_path()},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=end_with_this,  # noqa: PLW1509 (there is one thread)
        )
        if status := process.wait(_PATIENCE):
            log.info("damo's cache stays empty: damo failed with status %s", status)
    except subprocess.TimeoutExpired as error:
        log.info("damo's cache stays empty: %s", error)
        process.kill()
        # Even SIGKILL does not end it while a file system does not answer.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_DYING)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("damo's cache stays empty: %s", error)
