# SPDX-License-Identifier: GPL-2.0-only
"""What this machine has and lacks, as plain values for reporters; and what the tools look for besides the monitor."""

from __future__ import annotations

import shutil
from typing import Final

from attrs import frozen

__all__ = ["Check", "monitor_checks", "tool_checks"]

#: What page_fault cannot do without; without the rest it does not tell who writes.
_PAGE_FAULT: Final = ("page_fault: arm", "page_fault: take")


@frozen
class Check:
    """One thing that something needs.

    :ivar name: what it is.
    :ivar available: whether it is there.
    :ivar why: how that was found out, or what is wrong; a sentence without capital and full stop.
    :ivar remedy: how to get it; empty where it is there or cannot be had.
    """

    name: str
    available: bool
    why: str
    remedy: str = ""


def monitor_checks() -> tuple[list[Check], tuple[str, ...]]:
    """What monitoring is made of, and the primitives by which processes can be monitored here."""
    from kdamon.mm.doctor import can_monitor, primitives  # noqa: PLC0415 (needs more than the other verbs)

    checks = [Check(p.name, p.available, p.why, p.remedy) for p in primitives()]
    faults = all(check.available for check in checks if check.name in _PAGE_FAULT)
    works = {"page_table": can_monitor(), "page_fault": faults}
    return checks, tuple(name for name in works if works[name])


def tool_checks() -> list[Check]:
    """What ``kdamon mount`` and ``kdamon exec`` need, and the client that they are mostly for."""
    return [_libfuse(), _fuse_device(), _mount_namespace(), _damo()]


def _libfuse() -> Check:
    from kdamon_fs.fuse_binding import Lack, python_fuse  # noqa: PLC0415 (needs more than the other verbs)

    name, found = "libfuse 2 (mount, exec)", python_fuse()
    if isinstance(found, Lack):
        return Check(name, False, found.why, found.remedy)
    return Check(name, True, "fusepy loads it")


def _fuse_device() -> Check:
    from kdamon_fs.fuse_binding import device_lack  # noqa: PLC0415 (needs more than the other verbs)

    name, lack = "/dev/fuse (mount, exec)", device_lack()
    if lack is not None:
        return Check(name, False, lack.why, lack.remedy)
    return Check(name, True, "it can be opened")


def _mount_namespace() -> Check:
    from kdamon.mm.walker import missing_capability  # noqa: PLC0415 (needs more than the other verbs)

    name = "mount namespace (exec)"
    if missing_capability("CAP_SYS_ADMIN"):
        return Check(name, False, "making one needs CAP_SYS_ADMIN", "run as root")
    return Check(name, True, "the capability for it is there")


def _damo() -> Check:
    name = "damo (client of the tree)"
    path = shutil.which("damo")
    if path is None:
        return Check(name, False, "it is not on PATH", "pip install damo")
    return Check(name, True, path)
