# SPDX-License-Identifier: GPL-2.0-only
"""The system calls on mounts and namespaces that Python has no function for."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
from typing import Final

from kdamon_fs.mount_checks import refusal_to_mount, refusal_to_unshare

__all__ = [
    "MNT_DETACH",
    "MS_BIND",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "MS_SLAVE",
    "attach_mount",
    "make_mount",
    "mount",
    "private_mount_namespace",
    "set_child_subreaper",
    "set_parent_death_signal",
    "umount",
    "unshare_mount_namespace",
]

MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

_CLONE_NEWNS: Final = 0x20000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

#: Inode numbers that the first mount namespace of a machine can have, by kernel version.
_FIRST_MOUNT_NAMESPACES: Final = (4026531832, 4026531840, 4026531841)

# The calls that the C library has had since 2022 only; the numbers are those of every architecture but alpha.
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_FSOPEN_CLOEXEC: Final = 1
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_FSMOUNT_CLOEXEC: Final = 1
_MOUNT_ATTR_NOSUID: Final = 2
_MOUNT_ATTR_NODEV: Final = 4
#: MOVE_MOUNT_F_EMPTY_PATH and MOVE_MOUNT_T_EMPTY_PATH: from a descriptor to a descriptor.
_MOVE_MOUNT_EMPTY_PATHS: Final = 0x44

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


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    plain = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    return int(_libc.syscall(ctypes.c_long(number), *plain))


def make_mount(fstype: str, settings: dict[str, str]) -> int:
    """Make a mount that is nowhere yet, without programs that change user and without devices.

    It ends when its descriptor is closed before :func:`attach_mount`.

    :param settings: the options of the file system.
    :returns: the descriptor of its root.
    :raises OSError: EPERM, ENOSYS what is missing; or as the system calls.
    """
    context = _syscall(_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC)
    if context < 0 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
        raise refusal_to_mount(ctypes.get_errno())
    what = f"cannot make a mount of type {fstype}"
    _check(context, what)
    try:
        for key, value in settings.items():
            words = (key.encode(), value.encode())
            _check(_syscall(_FSCONFIG, context, _FSCONFIG_SET_STRING, *words, 0), f"{what} with {key}={value}")
        _check(_syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), what)
        root = _syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV)
        _check(root, what)
        return root
    finally:
        os.close(context)


def attach_mount(root: int, directory: int) -> None:
    """Attach a mount of :func:`make_mount` to a directory; both are descriptors, so that no name is looked up.

    :raises OSError: as ``move_mount(2)``; ENOENT the directory was removed.
    """
    _check(_syscall(_MOVE_MOUNT, root, b"", directory, b"", _MOVE_MOUNT_EMPTY_PATHS), "cannot attach a mount")


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
