# SPDX-License-Identifier: GPL-2.0-only
"""The features and missing requirements of this machine, as plain values for reporters, with checks of the tools."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

from attrs import frozen

from kdamon.lib.check import Check
from kdamon.lib.path_walk import UntrustedError
from kdamon.lib.trusted import open_trusted

__all__ = ["Usable", "monitor_checks", "own_checks", "tool_checks"]


@frozen
class Usable:
    """The primitives that processes can be monitored with.

    :ivar own: for processes of this user that have no more capabilities than kdamon.
    :ivar others: for processes of other users.
    """

    own: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.own or self.others)


def monitor_checks() -> tuple[list[Check], Usable]:
    """The requirements of monitoring, and the primitives that processes can be monitored with here."""
    from kdamon.mm.doctor.checks import examine  # noqa: PLC0415 (needs more than the other verbs)

    checks, own, others = examine()
    return checks, Usable(own, others)


def own_checks() -> list[Check]:
    """Whether another user can change the running code: the interpreter, its modules, or their directories."""
    name = "kdamon's own files"
    for path in sorted(_own_files()):
        if why := _changeable(path):
            remedy = (
                "to run kdamon as root, install it where only root can write, such as a virtual environment in /opt"
            )
            return [Check(name, False, why, remedy)]
    return [Check(name, True, "no other user can change them")]


def _own_files() -> set[str]:
    """The interpreter, its module search path, and the modules that it has loaded or would load from it."""
    files = {sys.executable, *sys.path}
    for module in list(sys.modules.values()):
        files.add(getattr(module, "__file__", None) or "")
        files.add(getattr(getattr(module, "__spec__", None), "cached", None) or "")
    return {os.path.abspath(path) for path in files if path}


def _changeable(path: str) -> str | None:
    """The reason why another user can change ``path``, or create it if it does not exist; None if no other user can."""
    while True:
        try:
            os.close(open_trusted(path))
        except UntrustedError as error:
            return f"{path}: {error.strerror}"
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path)
        except OSError as error:
            return f"{path} cannot be examined: {error.strerror}"
        else:
            return None


def tool_checks() -> list[Check]:
    """The requirements of ``kdamon mount`` and ``kdamon exec``, and damo, their most common client."""
    return [_binding(), _fuse_device(), *_mounting(), _damo()]


def _binding() -> Check:
    from kdamon_fs.fuse_binding import Lack, choose_binding  # noqa: PLC0415 (needs more than the other verbs)

    name, found = "libfuse (mount, exec)", choose_binding()
    if isinstance(found, Lack):
        return Check(name, False, found.why, found.remedy)
    return Check(name, True, str(found))


def _fuse_device() -> Check:
    from kdamon_fs.fuse_binding import device_lack  # noqa: PLC0415 (needs more than the other verbs)

    name, lack = "/dev/fuse (mount, exec)", device_lack()
    if lack is not None:
        return Check(name, False, lack.why, lack.remedy)
    return Check(name, True, "it can be opened")


def _mounting() -> list[Check]:
    from kdamon_fs import mount_checks  # noqa: PLC0415 (needs more than the other verbs)

    return [
        _tried("mounting (mount)", mount_checks.check_may_mount, "this process may mount"),
        _tried("mount namespace (exec)", mount_checks.check_may_unshare, "this process has the capability for it"),
    ]


def _tried(name: str, check: Callable[[], None], works: str) -> Check:
    """The result of ``check``, whose errors have the form "problem; remedy"."""
    try:
        check()
    except OSError as error:
        why, _, remedy = (error.strerror or str(error)).partition("; ")
        return Check(name, False, why, remedy)
    return Check(name, True, works)


def _damo() -> Check:
    name = "damo (client of the tree)"
    from kdamon_fs.damo import directories_beside  # noqa: PLC0415 (needs more than the other verbs)

    # kdamon exec finds it there, too.
    path = shutil.which("damo") or shutil.which("damo", path=os.pathsep.join(directories_beside()))
    if path is None:
        remedy = "pipx install damo, or pip install damo in kdamon's environment"
        return Check(name, False, "it is neither on PATH nor beside kdamon", remedy)
    return Check(name, True, path)
