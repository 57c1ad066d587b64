# SPDX-License-Identifier: GPL-2.0-only
"""What damo keeps about a kernel, in its file ``~/.damo.sysinfo``, apart for the tree.

damo would mix up the kernel's features with the tree's. :func:`private_damo_cache` gives the mount namespace that one
file for itself. damo finds features out by trying them, and refuses to while a kdamond runs: :func:`fill_damo_cache`
lets it do so before the command starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Final

from kdamon_fs.mounts import MNT_DETACH, MS_BIND, mount, set_parent_death_signal, umount

__all__ = ["fill_damo_cache", "private_damo_cache"]

log = logging.getLogger("kdamon")

#: How long damo may take to look the tree over, seconds.
_PATIENCE: Final = 20


@contextlib.contextmanager
def private_damo_cache() -> Iterator[bool]:
    """Cover damo's cache by an empty file that only this namespace sees; damo takes an empty one for none.

    A process of its own takes the cover away, so that nothing is left when this one is killed. Yields whether the cache
    is covered.
    """
    path = os.path.join(os.environ.get("HOME", "/nonexistent"), ".damo.sysinfo")
    try:
        lock = _lock_cache(path)
        _cover(path)
    except OSError as error:
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
            _uncover(path, lock)
        finally:
            os._exit(0)
    os.close(ended)
    try:
        yield True
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


def fill_damo_cache() -> None:
    """Have damo look the tree over, in which no kdamond runs; only with a cache that is covered.

    By damo itself, whichever version it is: the one on PATH, or else the one beside this Python. Without damo, and if
    it fails, nothing is done.
    """
    program = shutil.which("damo") or shutil.which("damo", path=os.path.dirname(sys.executable))
    if program is None:
        return
    asking = os.getpid()

    def end_with_this() -> None:
        # Where kdamon is killed, this process is, and damo has nothing to look over any more.
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != asking:
            os._exit(1)

    try:
        subprocess.run(
            [program, "report", "sysinfo"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            preexec_fn=end_with_this,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.info("damo's cache stays empty: %s", error)
