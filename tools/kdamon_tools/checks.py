# SPDX-License-Identifier: GPL-2.0-only
"""What this machine has and lacks, as plain values for reporters; and what the tools look for besides the monitor."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from attrs import frozen

__all__ = ["Check", "Usable", "monitor_checks", "tool_checks"]


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


@frozen
class Usable:
    """By which primitives processes can be monitored.

    :ivar own: those of this user that have no more capabilities than kdamon.
    :ivar others: those of other users.
    """

    own: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.own or self.others)


def monitor_checks() -> tuple[list[Check], Usable]:
    """What monitoring is made of, and the primitives by which processes can be monitored here."""
    from kdamon.mm.doctor import examine  # noqa: PLC0415 (needs more than the other verbs)

    primitives, own, others = examine()
    return [Check(p.name, p.available, p.why, p.remedy) for p in primitives], Usable(own, others)


def tool_checks() -> list[Check]:
    """What ``kdamon mount`` and ``kdamon exec`` need, and the client that they are mostly for."""
    return [_libfuse(), _fuse_device(), *_mounting(), _damo()]


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


def _mounting() -> list[Check]:
    from kdamon_fs import mount_checks  # noqa: PLC0415 (needs more than the other verbs)

    return [
        _tried("mounting (mount)", mount_checks.check_may_mount, "the right for it is there"),
        _tried("mount namespace (exec)", mount_checks.check_may_unshare, "the capability for it is there"),
    ]


def _tried(name: str, check: Callable[[], None], works: str) -> Check:
    """What ``check`` finds out, whose errors are "what is wrong; what to do"."""
    try:
        check()
    except OSError as error:
        why, _, remedy = (error.strerror or str(error)).partition("; ")
        return Check(name, False, why, remedy)
    return Check(name, True, works)


def _damo() -> Check:
    name = "damo (client of the tree)"
    path = shutil.which("damo")
    if path is None:
        return Check(name, False, "it is not on PATH", "pip install damo")
    return Check(name, True, path)
