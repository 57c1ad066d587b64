# SPDX-License-Identifier: GPL-2.0-only
"""The mounts that this process sees, of ``/proc/self/mountinfo`` (``fs/proc_namespace.c: show_mountinfo()``)."""

from __future__ import annotations

import os
import re
from typing import Final

from attrs import frozen

from kdamon.lib.watcher import mount_number

__all__ = ["MountEntry", "mount_of", "mounts"]

#: The kernel's escapes of a blank, a tab, a newline, a backslash and a number sign.
_ESCAPE: Final = re.compile(rb"\\([0-3][0-7]{2})")


@frozen(slots=True)
class MountEntry:
    """A line of ``/proc/self/mountinfo``. Names are as all names of files: with surrogates for what is not UTF-8.

    :ivar number: the kernel's id of the mount, used again once it is unmounted.
    :ivar parent: that of the mount which it is on.
    :ivar device: the device number of its file system, as ``st_dev`` has it.
    :ivar root: which directory of its file system is mounted.
    :ivar target: where it is mounted.
    :ivar fstype: type of the file system.
    :ivar options: options of the file system.
    :ivar shared: whether mounts inside show up in other namespaces.
    """

    number: int
    parent: int
    device: int
    root: str
    target: str
    fstype: str
    options: tuple[str, ...]
    shared: bool

    @property
    def server(self) -> int | None:
        """The user that serves the file system by FUSE; None if the kernel implements it itself."""
        if self.fstype.partition(".")[0] not in ("fuse", "fuseblk"):
            return None
        return next((int(option[8:]) for option in self.options if option.startswith("user_id=")), None)


def mounts(pid: int | str = "self") -> list[MountEntry]:
    """All mounts of this namespace, or of that of another process, later ones on top of earlier ones."""
    # Bytes: a name may hold any, and what text takes for the end of a line, such as a carriage return, is part of it.
    with open(f"/proc/{pid}/mountinfo", "rb") as lines:
        return [_entry(line.rstrip(b"\n")) for line in lines]


def mount_of(descriptor: int) -> MountEntry | None:
    """The mount that an open file or directory is in; None if it is unmounted, or its root is outside of a chroot."""
    number = mount_number(descriptor)
    return next((entry for entry in mounts() if entry.number == number), None)


def _entry(line: bytes) -> MountEntry:
    before, _, after = line.partition(b" - ")
    fields = before.split(b" ")
    fstype, _source, options = after.split(b" ")[:3]
    shared = any(field.startswith(b"shared:") for field in fields[6:])
    major, _, minor = fields[2].partition(b":")
    return MountEntry(
        number=int(fields[0]),
        parent=int(fields[1]),
        device=os.makedev(int(major), int(minor)),
        root=_name(fields[3]),
        target=_name(fields[4]),
        fstype=_name(fstype),
        options=tuple(map(_name, options.split(b","))),
        shared=shared,
    )


def _name(escaped: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), escaped))
