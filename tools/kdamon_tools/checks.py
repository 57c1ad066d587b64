# SPDX-License-Identifier: GPL-2.0-only
"""What this machine has and lacks, as plain values for reporters; and what the tools look for besides the monitor."""

from __future__ import annotations

import importlib.util
import os
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
    name = "libfuse 2 (mount, exec)"
    if importlib.util.find_spec("fuse") is None:
        return Check(name, False, "the Python package fusepy is not installed", "pip install fusepy")
    try:
        import fuse  # noqa: F401, PLC0415 (it loads the library, or raises)
    except OSError as error:
        return Check(name, False, str(error), "apt-get install libfuse2 (libfuse2t64 on newer releases)")
    return Check(name, True, "fusepy loads it")


def _fuse_device() -> Check:
    name = "/dev/fuse (mount, exec)"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        remedy = "run as root" if isinstance(error, PermissionError) else "modprobe fuse"
        return Check(name, False, (error.strerror or str(error)).lower(), remedy)
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
