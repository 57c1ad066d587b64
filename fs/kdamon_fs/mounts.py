# SPDX-License-Identifier: GPL-2.0-only
"""The system calls on mounts and namespaces that Python has no function for, and what is mounted where."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
from typing import Final

from kdamon.mm.mountinfo import mount_entry, mounts
from kdamon_fs.mount_checks import refusal_to_unshare

__all__ = [
    "MNT_DETACH",
    "MS_BIND",
    "MS_MOVE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "MS_SLAVE",
    "mount",
    "mount_at",
    "mount_containing",
    "private_mount_namespace",
    "set_child_subreaper",
    "set_parent_death_signal",
    "umount",
    "unshare_mount_namespace",
]

MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

_CLONE_NEWNS: Final = 0x20000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

#: Inode numbers that the first mount namespace of a machine can have, by kernel version.
_FIRST_MOUNT_NAMESPACES: Final = (4026531832, 4026531840, 4026531841)

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """``mount(2)``.

    :raises OSError: as the system call, naming the target.
    """
    arguments = (
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )
    _check(_libc.mount(*arguments), f"cannot mount {fstype or source} on {target}")


def umount(target: str, flags: int = 0) -> None:
    """``umount2(2)``.

    :raises OSError: as the system call, naming the target.
    """
    _check(_libc.umount2(os.fsencode(target), flags), f"cannot unmount {target}")


def unshare_mount_namespace() -> None:
    """Give this process a mount namespace of its own, from which nothing gets out.

    What others unmount is unmounted there, too, where the machine's mounts are shared: otherwise it would stay in use.
    Only for a process that has one thread.

    :raises OSError: EPERM without the capability CAP_SYS_ADMIN.
    """
    result = _libc.unshare(_CLONE_NEWNS)
    if result < 0 and ctypes.get_errno() == errno.EPERM:
        raise refusal_to_unshare()
    _check(result, "cannot make a private mount namespace")
    mount("none", "/", flags=MS_REC | MS_SLAVE)


def private_mount_namespace() -> bool:
    """Return whether this process is in another mount namespace than the machine's first process."""
    own = os.readlink("/proc/self/ns/mnt")
    try:
        return own != os.readlink("/proc/1/ns/mnt")
    except PermissionError:
        number = re.search(r"\d+", own)
        return number is not None and int(number[0]) not in _FIRST_MOUNT_NAMESPACES


def set_parent_death_signal(number: signal.Signals) -> None:
    """Let the kernel send this process ``number`` when the thread that forked it ends.

    :raises OSError: as ``prctl(2)``.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0), "cannot ask for a parent death signal")


def set_child_subreaper(wanted: bool) -> None:
    """Become the parent of descendants whose own parents end, or stop becoming it.

    :raises OSError: as ``prctl(2)``.
    """
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0), "cannot adopt processes")


def mount_at(path: str) -> mount_entry | None:
    """The topmost mount on exactly ``path`` (absolute, without links), None if nothing is mounted there."""
    return next((entry for entry in reversed(mounts()) if entry.target == path), None)


def mount_containing(path: str) -> mount_entry:
    """The mount that ``path`` (absolute, without links) is in.

    :raises OSError: ENOENT there is none, so no root either.
    """
    containing: mount_entry | None = None
    for entry in mounts():
        inside = path == entry.target or path.startswith(entry.target.rstrip("/") + "/")
        if inside and (containing is None or len(entry.target) >= len(containing.target)):
            containing = entry
    if containing is None:
        raise OSError(errno.ENOENT, f"{path} is in no mount")
    return containing
