# SPDX-License-Identifier: GPL-2.0-only
"""Decides which files of a process can be opened without waiting for a FUSE server (``fs/fuse/dev.c``).

A file system that a process serves by FUSE need not answer. The kernel lets a process that sent a request wait without
a limit, and not even SIGKILL ends the wait. An overlay that a user mounted in a namespace of their own may lead to such
a file system. So only these file systems are accepted: those that this process has mounted, too, those on disks, and
those that hold their files in memory.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from kdamon.lib.mountinfo import MountEntry, mounts
from kdamon.lib.path_walk import trusted_owners
from kdamon.lib.syscalls import call, checked
from kdamon.lib.watcher import mount_number

__all__ = ["MEMORY", "answers", "memory_device"]

#: Types of file systems that hold their files in memory.
MEMORY: Final = ("tmpfs", "ramfs")

_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_TYPE: Final = 1
#: Where struct statx has the device.
_DEVICE: Final = 136


def answers(pid: int, file: int) -> bool:
    """Return whether a file can be opened without waiting for a process of another user.

    :param pid: a process that has it mapped.
    :param file: its descriptor, of O_PATH: the file's own file system is not asked anything.
    :raises OSError: as ``statx(2)``; ENOENT the process ended.
    """
    number = mount_number(file)
    own = mounts()
    for entry in own:
        if entry.number == number:
            return _is_trusted(entry)
    for entry in mounts(pid):
        if entry.number == number:
            shared = any(entry.device == other.device and _is_trusted(other) for other in own)
            # Devices with a major number are disks.
            return shared or entry.fstype in MEMORY or os.major(entry.device) != 0
    return _device(file) == memory_device()


def memory_device() -> int:
    """The device of the kernel's own file system for shared memory, which is mounted nowhere."""
    memory = os.memfd_create("kdamon")
    try:
        return os.fstat(memory).st_dev
    finally:
        os.close(memory)


def _is_trusted(entry: MountEntry) -> bool:
    """Whether a mount of ours is of the kernel's own file systems, or of one that a trusted user serves."""
    return entry.server is None or entry.server in trusted_owners()


def _device(file: int) -> int:
    """The device of a file, of which the kernel knows it already: fstat() may ask."""
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    checked(call("statx", file, b"", flags, _STATX_TYPE, buffer))
    return os.makedev(*struct.unpack_from("=II", buffer, _DEVICE))
