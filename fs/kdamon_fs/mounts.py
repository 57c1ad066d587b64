# SPDX-License-Identifier: GPL-2.0-only
"""System calls for mounts and namespaces without a function in Python's standard library."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
from typing import Final

from kdamon.lib.syscalls import NR_FSCONFIG, NR_FSMOUNT, NR_FSOPEN, NR_MOVE_MOUNT, call, checked, prctl, syscall
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

#: Inode numbers of a machine's first mount namespace; they depend on the kernel version.
_FIRST_MOUNT_NAMESPACES: Final = (4026531832, 4026531840, 4026531841)

_FSOPEN_CLOEXEC: Final = 1
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_FSMOUNT_CLOEXEC: Final = 1
_MOUNT_ATTR_NOSUID: Final = 2
_MOUNT_ATTR_NODEV: Final = 4
#: MOVE_MOUNT_F_EMPTY_PATH and MOVE_MOUNT_T_EMPTY_PATH: from a descriptor to a descriptor.
_MOVE_MOUNT_EMPTY_PATHS: Final = 0x44


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
    checked(call("mount", *arguments), f"cannot mount {fstype or source} on {target}")


def umount(target: str, flags: int = 0) -> None:
    """``umount2(2)``.

    :raises OSError: as the system call, naming the target.
    """
    checked(call("umount2", os.fsencode(target), flags), f"cannot unmount {target}")


def make_mount(fstype: str, settings: dict[str, str]) -> int:
    """Create a detached mount with ``nosuid`` and ``nodev``.

    It ends if its descriptor is closed before :func:`attach_mount`.

    :param settings: the options of the file system.
    :returns: the descriptor of its root.
    :raises OSError: EPERM, ENOSYS a requirement is missing; or as the system calls.
    """
    what = f"cannot make a mount of type {fstype}"
    context = syscall(NR_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC)
    if context in (-errno.EPERM, -errno.ENOSYS):
        raise refusal_to_mount(-context)
    checked(context, what)
    try:
        for key, value in settings.items():
            words = (key.encode(), value.encode())
            checked(syscall(NR_FSCONFIG, context, _FSCONFIG_SET_STRING, *words, 0), f"{what} with {key}={value}")
        checked(syscall(NR_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), what)
        flags = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
        return checked(syscall(NR_FSMOUNT, context, _FSMOUNT_CLOEXEC, flags), what)
    finally:
        os.close(context)


def attach_mount(root: int, directory: int) -> None:
    """Attach a mount of :func:`make_mount` to a directory; both are descriptors, so that no name is resolved.

    :raises OSError: as ``move_mount(2)``; ENOENT the directory was removed.
    """
    checked(syscall(NR_MOVE_MOUNT, root, b"", directory, b"", _MOVE_MOUNT_EMPTY_PATHS), "cannot attach a mount")


def unshare_mount_namespace() -> None:
    """Give this process its own mount namespace, whose mounts do not propagate to others.

    Where the machine's mounts are shared, unmounts outside propagate into it; otherwise they would stay in use.
    Only for a process with one thread.

    :raises OSError: EPERM without the capability CAP_SYS_ADMIN.
    """
    result = call("unshare", _CLONE_NEWNS)
    if result == -errno.EPERM:
        raise refusal_to_unshare()
    checked(result, "cannot make a private mount namespace")
    mount("none", "/", flags=MS_REC | MS_SLAVE)


def private_mount_namespace() -> bool:
    """Return whether this process is not in the mount namespace of the machine's first process."""
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
    checked(prctl(_PR_SET_PDEATHSIG, int(number)), "cannot ask for a parent death signal")


def set_child_subreaper(wanted: bool) -> None:
    """Adopt descendants whose parents end, or stop adopting them.

    :raises OSError: as ``prctl(2)``.
    """
    checked(prctl(_PR_SET_CHILD_SUBREAPER, int(wanted)), "cannot adopt processes")
